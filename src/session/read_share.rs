//! What a connection may read at once: as many bytes as are quickly taken. Control frames between data frames cost a thousand
//! times what the bytes of a batch do, and are no reason to keep other writers waiting.

use crate::session::read_turns::LITTLE;

/// The share of one connection.
pub(super) struct ReadShare {
    len: usize,
    // Of the last read: what it asked for and what it took, batches and control frames.
    asked: usize,
    count: usize,
    events: u64,
    control_frames: u64,
}

impl ReadShare {
    pub(super) fn new(len_max: usize) -> Self {
        let len = len_max.min(SHARE_BEGIN);
        Self { len, asked: len, count: 0, events: 0, control_frames: 0 }
    }

    /// How much to read now. The share grows to `len_max` at most, and this time it is `now_max` at most.
    pub(super) fn len(&mut self, len_max: usize, now_max: usize) -> usize {
        if self.events > SHARE_EVENTS {
            self.len = (self.len / 4).max(SHARE_MIN);
        } else if self.count >= self.len {
            self.len *= 2;
        }
        self.len = self.len.min(len_max);
        self.asked = self.len.min(now_max);
        self.asked
    }

    /// Tells of a read, and of the control frames that the session has ignored until now.
    pub(super) fn read(&mut self, count: usize, control_frames: u64) {
        self.count = count;
        self.events = control_frames - self.control_frames;
        self.control_frames = control_frames;
    }

    pub(super) fn took_event(&mut self) {
        self.events += 1;
    }

    /// Whether the last read took little, and all that was there.
    pub(super) fn was_small(&self) -> bool {
        self.count < LITTLE.min(self.asked)
    }
}

/// The first share of a connection, in bytes. It doubles with each read that uses it up.
const SHARE_BEGIN: usize = 64 << 10;
/// With more batches and control frames in a read, the next one is shorter.
const SHARE_EVENTS: u64 = 256;
/// No share is smaller: these are some 250 data frames of a byte with a control frame before each.
const SHARE_MIN: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_with_what_comes_and_shrinks_with_what_it_costs() {
        let mut share = ReadShare::new(1 << 20);
        let mut read = |count: fn(usize) -> usize, control_frames| {
            let len = share.len(1 << 20, usize::MAX);
            share.read(count(len), control_frames);
            share.took_event();
            len
        };
        assert_eq!([0; 6].map(|_| read(|len| len, 0) >> 10), [64, 128, 256, 512, 1024, 1024]);
        assert_eq!([0; 2].map(|_| read(|_| 100, 0) >> 10), [1024, 1024]);
        let mut ignored = 0;
        let lens = [0; 7].map(|_| {
            ignored += 1000;
            read(|len| len, ignored) >> 10
        });
        assert_eq!(lens, [1024, 256, 64, 16, 4, 4, 4]);
        assert_eq!([0; 3].map(|_| read(|len| len, ignored) >> 10), [4, 8, 16]);
        let mut small = ReadShare::new(1000);
        small.read(1000, 5000);
        assert_eq!(small.len(1000, usize::MAX), 1000);
    }
}
