//! Blocks to read into.
//!
//! A block is a [`BytesMut`] that is filled from the front; whole frames are split off as batches that share its
//! memory. Once all batches are gone the whole block is free again. Each worker keeps the handles of its resting blocks
//! and takes the most recent free one first: few blocks in rotation stay in the processor's cache (a FIFO of 64 blocks
//! costs 30 to 50 % more).

use bytes::BytesMut;

/// Smallest size that is read into a block, bytes.
pub(crate) const READ_LEN_MIN: usize = 16 << 10;
/// Size of the first reads of a connection, bytes.
pub(crate) const READ_LEN_START: usize = 64 << 10;
/// A block holds this many reads.
const READS_PER_BLOCK: usize = 2;
/// Resting blocks that are looked at before a new one is allocated.
const TRIES: usize = 8;
/// Resting blocks that are remembered; others are freed with their last batch.
const RESTING_MAX: usize = 64;

/// The blocks of one worker that no connection reads into.
#[derive(Default)]
pub(crate) struct BufferPool {
    resting: Vec<BytesMut>,
}

impl BufferPool {
    /// Makes room for a read of `read_len` bytes behind what `buffer` holds (the tail of a frame).
    ///
    /// Rewinds the block when all its batches are gone, goes on in it while there is room, and takes another one else,
    /// to which the tail is copied.
    pub(crate) fn make_room(&mut self, buffer: &mut BytesMut, read_len: usize) {
        let tail = buffer.len();
        let block_len = READS_PER_BLOCK * read_len;
        let whole_block = block_len.saturating_sub(tail).max(read_len);
        if buffer.try_reclaim(whole_block) || buffer.capacity() - tail >= read_len {
            return;
        }
        // A tail that outgrows its block is a long frame: doubling copies it a few times, not once for every read.
        let mut block = self.take(2 * tail + block_len);
        block.extend_from_slice(buffer);
        self.rest(std::mem::replace(buffer, block));
    }

    /// Takes back a block whose connection has no use for it now. What it holds is forgotten.
    pub(crate) fn rest(&mut self, mut block: BytesMut) {
        block.clear();
        if self.resting.len() == RESTING_MAX {
            self.resting.remove(0);
        }
        self.resting.push(block);
    }

    fn take(&mut self, len: usize) -> BytesMut {
        let recent = self.resting.iter_mut().enumerate().rev().take(TRIES);
        match recent.filter_map(|(index, block)| block.try_reclaim(len).then_some(index)).next() {
            Some(index) => self.resting.remove(index),
            None => BytesMut::with_capacity(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(buffer: &mut BytesMut, len: usize) -> bytes::Bytes {
        buffer.extend_from_slice(&vec![1; len]);
        buffer.split_to(len).freeze()
    }

    #[test]
    fn a_block_whose_batches_are_gone_is_read_into_again() {
        let mut pool = BufferPool::default();
        let mut buffer = BytesMut::new();
        pool.make_room(&mut buffer, 1000);
        let address = buffer.as_ptr();
        drop(fill(&mut buffer, 1500));
        buffer.extend_from_slice(b"tail");
        pool.make_room(&mut buffer, 1000);
        assert_eq!((buffer.as_ptr(), &buffer[..]), (address, &b"tail"[..]));
    }

    #[test]
    fn a_block_that_is_still_read_elsewhere_is_left_alone_and_the_tail_moves() {
        let mut pool = BufferPool::default();
        let mut buffer = BytesMut::new();
        pool.make_room(&mut buffer, 1000);
        let address = buffer.as_ptr();
        let batch = fill(&mut buffer, 1500);
        buffer.extend_from_slice(b"tail");
        pool.make_room(&mut buffer, 1000);
        assert_ne!(buffer.as_ptr(), address);
        assert_eq!(&buffer[..], b"tail");
        assert!(batch.iter().all(|&byte| byte == 1));
        // Once the batch is gone the first block serves again.
        drop(batch);
        let mut other = BytesMut::new();
        pool.make_room(&mut other, 1000);
        assert_eq!(other.as_ptr(), address);
    }

    #[test]
    fn there_is_room_for_a_read_however_long_the_tail() {
        let mut pool = BufferPool::default();
        let mut buffer = BytesMut::new();
        let mut blocks = 0;
        for len in (0..1 << 20).step_by(1000) {
            let address = buffer.as_ptr();
            pool.make_room(&mut buffer, 1000);
            assert!(buffer.capacity() - buffer.len() >= 1000, "{len}");
            blocks += usize::from(buffer.as_ptr() != address);
            buffer.extend_from_slice(&[2; 1000]);
        }
        assert!(blocks < 20, "{blocks}");
    }

    #[test]
    fn resting_blocks_are_bounded() {
        let mut pool = BufferPool::default();
        for _ in 0..10 * RESTING_MAX {
            pool.rest(BytesMut::with_capacity(10));
        }
        assert_eq!(pool.resting.len(), RESTING_MAX);
    }
}
