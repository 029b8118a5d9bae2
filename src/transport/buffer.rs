//! What a worker reads into.
//!
//! One block serves all connections of a worker: each reads what has arrived behind what the last one read, and whole
//! frames are split off as batches that share the block's memory. So memory and cache hold what flows, however many
//! connections there are. A block whose batches are gone is filled from its front again; one that is still in use
//! elsewhere rests, and the most recent free one is taken in its place: few blocks in rotation stay in the processor's
//! cache (a FIFO of 64 blocks costs 30 to 50 % more).
//!
//! Between reads a connection keeps the beginning of a frame that has not arrived whole, its [`Tail`], in memory of its
//! own.

use std::collections::VecDeque;

use bytes::BytesMut;

/// A block holds this many of the longest reads.
const READS_PER_BLOCK: usize = 2;
/// Blocks that are remembered, bytes; others are freed with their last batch. As much as the queue of an output holds by
/// default: new memory costs a page fault every 4 KiB.
const RESTING_MAX: usize = 64 << 20;
/// A longer tail is not copied to the front of the next read.
const TAIL_COPIED_MAX: usize = 4 << 10;
/// Least room that is made behind such a tail.
const TAIL_ROOM_MIN: usize = 16 << 10;

/// The beginning of a frame that has not arrived whole.
#[derive(Debug, Default)]
pub(crate) struct Tail(BytesMut);

impl Tail {
    pub(crate) fn new(bytes: BytesMut) -> Self {
        Self(bytes)
    }

    /// A long frame is gathered here: doubling copies it a few times, not once for every read. Nothing is allocated for
    /// a length that was only announced.
    fn read_behind<T>(&mut self, read_len: usize, read: impl FnOnce(&mut BytesMut) -> T) -> T {
        self.0.reserve(self.0.len().min(read_len).max(TAIL_ROOM_MIN));
        let result = read(&mut self.0);
        if self.0.len() <= TAIL_COPIED_MAX {
            // The memory of the long frame goes with it.
            self.0 = BytesMut::from(&self.0[..]);
        }
        result
    }
}

/// The blocks of one worker.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    current: Block,
    // In use when they were put here. The one that rests longest comes first.
    resting: VecDeque<Block>,
    resting_bytes: usize,
    // Blocks that rested all the time since the last look.
    unused: usize,
}

#[derive(Debug, Default)]
struct Block {
    bytes: BytesMut,
    // Of the whole block.
    len: usize,
}

impl ReadBuffer {
    /// Gives `read` a buffer that begins with `tail` and has room for `read_len` bytes, or for what the block has left of
    /// them, half at least, and keeps what it leaves there as the new tail.
    pub(crate) fn with_room<T>(
        &mut self,
        tail: &mut Tail,
        read_len: usize,
        read: impl FnOnce(&mut BytesMut) -> T,
    ) -> T {
        if tail.0.len() > TAIL_COPIED_MAX {
            return tail.read_behind(read_len, read);
        }
        let bytes = self.make_room(tail.0.len(), read_len);
        bytes.extend_from_slice(&tail.0);
        let result = read(bytes);
        tail.0.clear();
        tail.0.extend_from_slice(bytes);
        bytes.clear();
        result
    }

    /// Called at regular intervals: frees the blocks that nobody needed since the last call.
    pub(crate) fn free_unused(&mut self) {
        for _ in 0..self.unused {
            self.forget_oldest();
        }
        self.unused = self.resting.len();
    }

    /// The empty rest of the current block, or of another one where that has no room for the tail and half of a read.
    fn make_room(&mut self, tail_len: usize, read_len: usize) -> &mut BytesMut {
        let len = tail_len + read_len;
        let current = &mut self.current;
        // The whole block if it is free, else what is left of it.
        let whole = current.bytes.try_reclaim(current.len.max(len));
        if !whole && current.bytes.capacity() < tail_len + read_len.div_ceil(2) {
            let fresh = self.take(len, READS_PER_BLOCK * len);
            let used = std::mem::replace(&mut self.current, fresh);
            self.rest(used);
        }
        &mut self.current.bytes
    }

    /// The most recent free block, or a new one. Looks at all of them: that costs less than the page faults of new memory.
    fn take(&mut self, len: usize, block_len: usize) -> Block {
        let mut recent_first = self.resting.iter_mut().enumerate().rev();
        let free = recent_first
            .find_map(|(index, block)| {
                (block.len >= len && block.bytes.try_reclaim(block.len)).then_some(index)
            })
            .and_then(|index| self.resting.remove(index));
        self.resting_bytes -= free.as_ref().map_or(0, |block| block.len);
        self.unused = self.unused.min(self.resting.len());
        free.unwrap_or_else(|| Block { bytes: BytesMut::with_capacity(block_len), len: block_len })
    }

    fn rest(&mut self, block: Block) {
        if block.len == 0 {
            return;
        }
        self.resting_bytes += block.len;
        self.resting.push_back(block);
        while self.resting_bytes > RESTING_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        self.resting_bytes -= self.resting.pop_front().map_or(0, |block| block.len);
        self.unused = self.unused.min(self.resting.len());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const READ_LEN: usize = 1000;

    /// Reads `len` bytes, of which the last `left` remain as tail.
    fn read(buffer: &mut ReadBuffer, tail: &mut Tail, len: usize, left: usize) -> Bytes {
        buffer.with_room(tail, READ_LEN, |bytes| {
            assert!(bytes.capacity() - bytes.len() >= READ_LEN / 2);
            bytes.extend_from_slice(&vec![1; len]);
            bytes.split_to(bytes.len() - left).freeze()
        })
    }

    #[test]
    fn a_block_whose_batches_are_gone_is_filled_from_its_front_again() {
        let mut buffer = ReadBuffer::default();
        let tails = &mut [Tail::default(), Tail::default()];
        let address = read(&mut buffer, &mut tails[0], 900, 4).as_ptr();
        for (index, left) in [(0, 3), (1, 0), (0, 0), (1, 7)] {
            assert_eq!(read(&mut buffer, &mut tails[index], 900, left).as_ptr(), address);
        }
        assert_eq!((tails[0].0.len(), tails[1].0.len()), (0, 7));
    }

    #[test]
    fn connections_read_into_one_block_and_each_goes_on_behind_its_own_tail() {
        let mut buffer = ReadBuffer::default();
        let (mut a, mut b) = (Tail::default(), Tail::default());
        let batches = [read(&mut buffer, &mut a, 300, 5), read(&mut buffer, &mut b, 300, 0)];
        assert_eq!(batches[0].as_ptr_range().end, batches[1].as_ptr());
        let (block, mut seen) = (batches[0].clone(), Bytes::new());
        buffer.with_room(&mut a, READ_LEN, |bytes| seen = bytes.split().freeze());
        assert_eq!(seen[..], [1; 5]);
        // Nothing of what is in use elsewhere was written over.
        assert!(block.iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_block_in_use_is_left_alone_when_it_is_full_and_serves_again_when_it_is_free() {
        let mut buffer = ReadBuffer::default();
        let mut tail = Tail::default();
        let first = read(&mut buffer, &mut tail, 1000, 0);
        let second = read(&mut buffer, &mut tail, 600, 0);
        let address = first.as_ptr();
        let elsewhere = read(&mut buffer, &mut tail, 500, 0);
        assert!(!(address..address.wrapping_add(2000)).contains(&elsewhere.as_ptr()));
        drop((first, second));
        let more: Vec<_> = (0..5).map(|_| read(&mut buffer, &mut tail, 500, 0)).collect();
        assert!(more.iter().any(|batch| batch.as_ptr() == address));
    }

    /// A frame of a megabyte, 100 bytes at a time: copied a few times, and its memory is not kept.
    #[test]
    fn a_long_frame_is_gathered_in_memory_of_its_own() {
        let mut buffer = ReadBuffer::default();
        let mut tail = Tail::default();
        let mut moves = 0;
        for len in (100..1 << 20).step_by(100) {
            let address = tail.0.as_ptr();
            drop(read(&mut buffer, &mut tail, 100, len));
            assert_eq!(tail.0.len(), len);
            moves += usize::from(tail.0.as_ptr() != address);
        }
        assert!(moves < 80, "{moves}");
        let frame = read(&mut buffer, &mut tail, 100, 10);
        assert!(frame.len() > (1 << 20) - 200);
        assert!(tail.0.capacity() < 100);
    }

    #[test]
    fn blocks_that_are_remembered_are_bounded() {
        let mut buffer = ReadBuffer::default();
        for _ in 0..100 {
            buffer.rest(Block { bytes: BytesMut::new(), len: 1 << 20 });
        }
        assert_eq!((buffer.resting.len(), buffer.resting_bytes), (64, RESTING_MAX));
    }

    #[test]
    fn blocks_that_nobody_needed_for_a_while_are_freed() {
        let mut buffer = ReadBuffer::default();
        for _ in 0..3 {
            buffer.rest(Block { bytes: BytesMut::with_capacity(100), len: 100 });
        }
        buffer.free_unused();
        assert_eq!(buffer.resting.len(), 3);
        // One of the three is in use now and then.
        let block = buffer.take(100, 200);
        buffer.rest(block);
        buffer.free_unused();
        assert_eq!((buffer.resting.len(), buffer.resting_bytes), (1, 100));
        buffer.free_unused();
        assert_eq!((buffer.resting.len(), buffer.resting_bytes), (0, 0));
    }
}
