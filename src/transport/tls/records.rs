//! Which bytes of a stream a part of its ciphertext carries.
//!
//! The kernel counts ciphertext: what it has taken, and what the kernel of the peer has acknowledged. The bytes of a record
//! count when the whole record does: before its end nobody can decrypt it.

use std::collections::VecDeque;

/// Where a record ends, in bytes since the stream began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    cipher: u64,
    plain: u64,
}

/// The records of one direction that are not acknowledged, in order.
#[derive(Debug, Default)]
pub(super) struct Records {
    // Ends grow in both numbers.
    ends: VecDeque<End>,
    acknowledged: End,
}

impl Records {
    /// A record ends behind these bytes of ciphertext, and these of the stream.
    pub(super) fn add(&mut self, cipher: u64, plain: u64) {
        self.ends.push_back(End { cipher, plain });
    }

    /// Bytes of the stream in the first `cipher` bytes of ciphertext.
    pub(super) fn plain_within(&self, cipher: u64) -> u64 {
        let whole = self.ends.partition_point(|end| end.cipher <= cipher);
        let last = whole.checked_sub(1).and_then(|last| self.ends.get(last));
        last.map_or(self.acknowledged.plain, |end| end.plain)
    }

    /// The same, where it is known that the peer has them: nobody asks for less any more.
    pub(super) fn acknowledge(&mut self, cipher: u64) -> u64 {
        while let Some(end) = self.ends.front().copied().filter(|end| end.cipher <= cipher) {
            self.acknowledged = end;
            self.ends.pop_front();
        }
        self.acknowledged.plain
    }

    /// Records that are kept.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_record_count_once_all_of_it_does() {
        let mut records = Records::default();
        records.add(122, 100);
        // 30 bytes of ciphertext without a byte of the stream.
        records.add(174, 122);
        records.add(274, 200);
        for (cipher, plain) in [(0, 0), (121, 0), (122, 100), (173, 100), (174, 122), (273, 122), (999, 200)]
        {
            assert_eq!(records.plain_within(cipher), plain, "{cipher}");
        }
        assert_eq!((records.acknowledge(100), records.len()), (0, 3));
        assert_eq!((records.acknowledge(180), records.len()), (122, 1));
        assert_eq!((records.acknowledge(3), records.plain_within(0)), (122, 122));
        assert_eq!((records.acknowledge(275), records.len()), (200, 0));
    }
}
