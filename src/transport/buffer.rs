//! Blocks to read into.
//!
//! A block is a [`BytesMut`] that is filled from the front; whole frames are split off as batches that share its
//! memory. Once all batches are gone the whole block is free again. Each worker keeps the handles of its resting blocks
//! and takes the most recent free one first: few blocks in rotation stay in the processor's cache (a FIFO of 64 blocks
//! costs 30 to 50 % more).

use std::collections::VecDeque;

use bytes::BytesMut;

/// Smallest size that is read into a block, bytes.
pub(crate) const READ_LEN_MIN: usize = 16 << 10;
/// Size of the first reads of a connection, bytes.
pub(crate) const READ_LEN_START: usize = 64 << 10;
/// A block holds this many reads.
const READS_PER_BLOCK: usize = 2;
/// Resting blocks that are looked at before a new one is allocated.
const TRIES: usize = 8;
/// Resting blocks that are remembered, bytes; others are freed with their last batch.
const RESTING_MAX: usize = 4 << 20;

/// What a connection reads into: the tail of a frame, and room behind it.
#[derive(Default)]
pub(crate) struct Block {
    pub(crate) bytes: BytesMut,
    // Of the whole block; 0 for bytes that did not come from a pool and do not go to one.
    len: usize,
}

impl Block {
    /// A copy of a tail, with no room behind it and no block under it.
    pub(crate) fn without_room(tail: &[u8]) -> Self {
        Self { bytes: BytesMut::from(tail), len: 0 }
    }
}

/// The blocks of one worker that no connection reads into.
#[derive(Default)]
pub(crate) struct BufferPool {
    // The one that rests longest comes first.
    resting: VecDeque<Block>,
    resting_bytes: usize,
    // Blocks that rested all the time since the last look.
    unused: usize,
}

impl BufferPool {
    /// Makes room for a read of `read_len` bytes behind what `block` holds (the tail of a frame).
    ///
    /// Rewinds the block when all its batches are gone, goes on in it while there is room, and takes another one else,
    /// to which the tail is copied.
    pub(crate) fn make_room(&mut self, block: &mut Block, read_len: usize) {
        let bytes = &mut block.bytes;
        let tail = bytes.len();
        let block_len = READS_PER_BLOCK * read_len;
        let whole_block = block_len.saturating_sub(tail).max(read_len);
        if bytes.try_reclaim(whole_block) || bytes.capacity() - tail >= read_len {
            return;
        }
        // A tail that outgrows its block is a long frame: doubling copies it a few times, not once for every read.
        let mut fresh = self.take(2 * tail + block_len);
        fresh.bytes.extend_from_slice(bytes);
        self.rest(std::mem::replace(block, fresh));
    }

    /// Takes back a block for which its connection has no use now. What it holds is forgotten.
    pub(crate) fn rest(&mut self, mut block: Block) {
        if block.len == 0 {
            return;
        }
        block.bytes.clear();
        self.resting_bytes += block.len;
        self.resting.push_back(block);
        while self.resting_bytes > RESTING_MAX {
            self.forget_oldest();
        }
    }

    /// Called at regular intervals: frees the blocks that nobody needed since the last call.
    pub(crate) fn free_unused(&mut self) {
        for _ in 0..self.unused {
            self.forget_oldest();
        }
        self.unused = self.resting.len();
    }

    fn take(&mut self, len: usize) -> Block {
        let large = self.resting.iter_mut().enumerate().rev().filter(|(_, block)| block.len >= len);
        let mut free =
            large.take(TRIES).filter_map(|(index, block)| block.bytes.try_reclaim(len).then_some(index));
        let recent = free.next().and_then(|index| self.resting.remove(index));
        self.resting_bytes -= recent.as_ref().map_or(0, |block| block.len);
        self.unused = self.unused.min(self.resting.len());
        recent.unwrap_or_else(|| Block { bytes: BytesMut::with_capacity(len), len })
    }

    fn forget_oldest(&mut self) {
        self.resting_bytes -= self.resting.pop_front().map_or(0, |block| block.len);
        self.unused = self.unused.min(self.resting.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(block: &mut Block, len: usize) -> bytes::Bytes {
        block.bytes.extend_from_slice(&vec![1; len]);
        block.bytes.split_to(len).freeze()
    }

    #[test]
    fn a_block_whose_batches_are_gone_is_read_into_again() {
        let mut pool = BufferPool::default();
        let mut buffer = Block::default();
        pool.make_room(&mut buffer, 1000);
        let address = buffer.bytes.as_ptr();
        drop(fill(&mut buffer, 1500));
        buffer.bytes.extend_from_slice(b"tail");
        pool.make_room(&mut buffer, 1000);
        assert_eq!((buffer.bytes.as_ptr(), &buffer.bytes[..]), (address, &b"tail"[..]));
    }

    #[test]
    fn a_block_that_is_still_read_elsewhere_is_left_alone_and_the_tail_moves() {
        let mut pool = BufferPool::default();
        let mut buffer = Block::default();
        pool.make_room(&mut buffer, 1000);
        let address = buffer.bytes.as_ptr();
        let batch = fill(&mut buffer, 1500);
        buffer.bytes.extend_from_slice(b"tail");
        pool.make_room(&mut buffer, 1000);
        assert_ne!(buffer.bytes.as_ptr(), address);
        assert_eq!(&buffer.bytes[..], b"tail");
        assert!(batch.iter().all(|&byte| byte == 1));
        // Once the batch is gone the first block serves again.
        drop(batch);
        let mut other = Block::default();
        pool.make_room(&mut other, 1000);
        assert_eq!(other.bytes.as_ptr(), address);
    }

    #[test]
    fn there_is_room_for_a_read_however_long_the_tail() {
        let mut pool = BufferPool::default();
        let mut buffer = Block::default();
        let mut blocks = 0;
        for len in (0..1 << 20).step_by(1000) {
            let address = buffer.bytes.as_ptr();
            pool.make_room(&mut buffer, 1000);
            assert!(buffer.bytes.capacity() - buffer.bytes.len() >= 1000, "{len}");
            blocks += usize::from(buffer.bytes.as_ptr() != address);
            buffer.bytes.extend_from_slice(&[2; 1000]);
        }
        assert!(blocks < 20, "{blocks}");
    }

    #[test]
    fn resting_blocks_are_bounded() {
        let mut pool = BufferPool::default();
        for _ in 0..100 {
            pool.rest(Block { bytes: BytesMut::new(), len: 1 << 20 });
            pool.rest(Block::without_room(b"tail"));
        }
        assert_eq!((pool.resting.len(), pool.resting_bytes), (4, RESTING_MAX));
    }

    #[test]
    fn blocks_that_nobody_needed_for_a_while_are_freed() {
        let mut pool = BufferPool::default();
        for _ in 0..3 {
            pool.rest(Block { bytes: BytesMut::with_capacity(100), len: 100 });
        }
        pool.free_unused();
        assert_eq!(pool.resting.len(), 3);
        // One of the three is in use now and then.
        let block = pool.take(100);
        pool.rest(block);
        pool.free_unused();
        assert_eq!((pool.resting.len(), pool.resting_bytes), (1, 100));
        pool.free_unused();
        assert_eq!((pool.resting.len(), pool.resting_bytes), (0, 0));
    }
}
