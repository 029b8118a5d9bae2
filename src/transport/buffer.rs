//! What a worker reads into.
//!
//! One block serves all connections of a worker: each reads what has arrived behind what the last one read, and whole
//! frames are split off as batches that share the block's memory. So memory and cache hold what flows, however many
//! connections there are. A block whose batches are gone is filled from its front again; one that is still in use
//! elsewhere is put aside, and the most recent free one is taken in its place: few blocks in rotation stay in the processor's
//! cache (a FIFO of 64 blocks costs 30 to 50 % more).
//!
//! A batch that waits keeps its whole block, however small it is. So every block that is in use elsewhere is known and
//! counted, in one number for all workers of a relay: [`BlocksInUse`]. Whoever delivers batches compares it with what queues
//! have charged, and copies batches out of their blocks while too much is kept.
//!
//! Between reads a connection keeps the beginning of a frame that has not arrived whole, its [`Tail`], in memory of its
//! own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use bytes::BytesMut;

/// A block holds this many of the longest reads.
const READS_PER_BLOCK: usize = 2;
/// Free blocks that are remembered, bytes; others are freed. As much as the queue of an output holds by default: new memory
/// costs a page fault every 4 KiB.
const FREE_MAX: usize = 64 << 20;
/// A longer tail is not copied to the front of the next read.
const TAIL_COPIED_MAX: usize = 4 << 10;
/// Least room that is made behind such a tail.
const TAIL_ROOM_MIN: usize = 16 << 10;
/// So many of the blocks put aside last are looked at first: the processor's cache may still have them.
const LOOK_RECENT: usize = 32;
/// So many of the oldest are looked at next: a queue lets go of these first.
const LOOK_OLDEST: usize = 32;
/// So many more are looked at, others each time: with thousands of blocks in use a look at all of them would cost more than a read.
const LOOK_IN_TURN: usize = 64;

/// Bytes of the blocks that are in use elsewhere, of all workers together. Clones are the same number.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlocksInUse(Arc<AtomicUsize>);

impl BlocksInUse {
    /// Bytes. May count a block that has become free, until its worker looks.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// The beginning of a frame that has not arrived whole.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: BytesMut,
    // Of the memory of `bytes`, once a batch was split off from it.
    shared_len: Option<usize>,
}

impl Tail {
    pub(crate) fn new(bytes: BytesMut) -> Self {
        Self { bytes, shared_len: None }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the last frame is whole.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Moves the bytes to memory with `room` bytes more. Returns the memory that they had if a batch has a part of it.
    fn move_out(&mut self, room: usize) -> Option<Block> {
        let mut bytes = BytesMut::with_capacity(self.bytes.len() + room);
        bytes.extend_from_slice(&self.bytes);
        let mut shared = std::mem::replace(&mut self.bytes, bytes);
        shared.clear();
        let len = self.shared_len.take()?;
        Some(Block { bytes: shared, len, gathered: true })
    }
}

/// The blocks of one worker.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    current: Block,
    // In use elsewhere when they were looked at last. The one that was put aside first comes first.
    used: VecDeque<Block>,
    used_bytes: usize,
    // The one that became free last comes last.
    free: VecDeque<Block>,
    free_bytes: usize,
    // Blocks that were free all the time since `free_unused` was called.
    unused: usize,
    // Where in `used` the next look in turn begins.
    turn: usize,
    in_use: BlocksInUse,
    // This worker's part of `in_use`: used_bytes, as it was told last.
    told_bytes: usize,
}

#[derive(Debug, Default)]
struct Block {
    bytes: BytesMut,
    // Of the whole block.
    len: usize,
    // The memory in which a long frame was gathered: it counts, and is not read into again.
    gathered: bool,
}

impl Block {
    /// Whether so many bytes may be read into it.
    fn serves(&self, len: usize) -> bool {
        self.len >= len && !self.gathered
    }

    /// Whether nobody else has a part of it. It is whole again then.
    fn is_free(&mut self) -> bool {
        self.bytes.try_reclaim(self.len)
    }
}

impl ReadBuffer {
    /// No block yet; those that will be in use elsewhere count in `in_use`.
    pub(crate) fn new(in_use: BlocksInUse) -> Self {
        let mut buffer = Self::default();
        buffer.in_use = in_use;
        buffer
    }

    /// Gives `read` a buffer that begins with `tail` and has room for `read_len` bytes, or for what the block has left of
    /// them, half at least, and keeps what it leaves there as the new tail.
    pub(crate) fn with_room<T>(
        &mut self,
        tail: &mut Tail,
        read_len: usize,
        read: impl FnOnce(&mut BytesMut) -> T,
    ) -> T {
        if tail.bytes.len() > TAIL_COPIED_MAX {
            return self.read_behind(tail, read_len, read);
        }
        let bytes = self.make_room(tail.bytes.len(), read_len);
        bytes.extend_from_slice(&tail.bytes);
        let result = read(bytes);
        tail.bytes.clear();
        tail.bytes.extend_from_slice(bytes);
        bytes.clear();
        result
    }

    /// A long frame is gathered in memory of its own: doubling copies it a few times, not once for every read. Nothing is
    /// allocated for a length that was only announced.
    fn read_behind<T>(
        &mut self,
        tail: &mut Tail,
        read_len: usize,
        read: impl FnOnce(&mut BytesMut) -> T,
    ) -> T {
        let room = tail.bytes.len().min(read_len).max(TAIL_ROOM_MIN);
        // Memory whose batches are gone serves again.
        if !tail.bytes.try_reclaim(room) {
            if tail.shared_len.is_some() {
                let gathered = tail.move_out(room);
                self.put_gathered_aside(gathered);
            } else {
                tail.bytes.reserve(room);
            }
        }
        let memory_len = tail.shared_len.unwrap_or(0).max(tail.bytes.capacity());
        let capacity = tail.bytes.capacity();
        let result = read(&mut tail.bytes);
        if tail.bytes.capacity() < capacity {
            tail.shared_len = Some(memory_len);
        }
        if tail.bytes.len() <= TAIL_COPIED_MAX {
            let gathered = tail.move_out(0);
            self.put_gathered_aside(gathered);
        }
        result
    }

    fn put_gathered_aside(&mut self, gathered: Option<Block>) {
        if let Some(block) = gathered {
            self.put_aside(block);
            // Faster than more can come.
            self.look_for_free(2);
        }
    }

    /// Looks for blocks that have become free, at a few of those that count as in use.
    pub(crate) fn look_for_free(&mut self, count: usize) {
        for _ in 0..count.min(self.used.len()) {
            self.turn = if self.turn < self.used.len() { self.turn } else { 0 };
            if !self.move_if_free(self.turn) {
                self.turn += 1;
            }
        }
        self.tell();
    }

    /// Called at regular intervals: frees the blocks that nobody needed since the last call.
    pub(crate) fn free_unused(&mut self) {
        for _ in 0..self.unused {
            self.forget_oldest();
        }
        self.look_for_free(self.used.len());
        self.unused = self.free.len();
    }

    /// The empty rest of the current block, or of another one where that has no room for the tail and half of a read.
    fn make_room(&mut self, tail_len: usize, read_len: usize) -> &mut BytesMut {
        let len = tail_len + read_len;
        let current = &mut self.current;
        // The whole block if it is free, else what is left of it.
        let whole = current.bytes.try_reclaim(current.len.max(len));
        if !whole && current.bytes.capacity() < tail_len + read_len.div_ceil(2) {
            let fresh = self.take(len, READS_PER_BLOCK * len);
            let full = std::mem::replace(&mut self.current, fresh);
            self.put_aside(full);
            self.tell();
        }
        &mut self.current.bytes
    }

    /// A free block, or a new one. One of those put aside last is the best: the processor's cache may still have it.
    fn take(&mut self, len: usize, block_len: usize) -> Block {
        let mut recent = self.used.iter_mut().enumerate().rev().take(LOOK_RECENT);
        let recent =
            recent.find_map(|(index, block)| (block.serves(len) && block.is_free()).then_some(index));
        if let Some(block) = recent.and_then(|index| self.used.remove(index)) {
            self.used_bytes -= block.len;
            return block;
        }
        if let Some(block) = self.take_free(len) {
            return block;
        }
        for index in (0..LOOK_OLDEST.min(self.used.len())).rev() {
            self.move_if_free(index);
        }
        self.look_for_free(LOOK_IN_TURN);
        let new = || Block { bytes: BytesMut::with_capacity(block_len), len: block_len, gathered: false };
        self.take_free(len).unwrap_or_else(new)
    }

    fn take_free(&mut self, len: usize) -> Option<Block> {
        let index = self.free.iter().rposition(|block| block.len >= len)?;
        let block = self.free.remove(index)?;
        self.free_bytes -= block.len;
        self.unused = self.unused.min(self.free.len());
        Some(block)
    }

    fn put_aside(&mut self, block: Block) {
        if block.len > 0 {
            self.used_bytes += block.len;
            self.used.push_back(block);
        }
    }

    /// Moves this block to the free ones, or frees it, if nobody else has a part of it. Returns whether that is so.
    fn move_if_free(&mut self, index: usize) -> bool {
        if !self.used.get_mut(index).is_some_and(Block::is_free) {
            return false;
        }
        if let Some(block) = self.used.remove(index) {
            self.used_bytes -= block.len;
            if !block.gathered {
                self.free_bytes += block.len;
                self.free.push_back(block);
            }
        }
        while self.free_bytes > FREE_MAX {
            self.forget_oldest();
        }
        true
    }

    fn forget_oldest(&mut self) {
        self.free_bytes -= self.free.pop_front().map_or(0, |block| block.len);
        self.unused = self.unused.min(self.free.len());
    }

    /// Brings `in_use` up to date. A healthy worker swaps blocks of one length, and has nothing to tell.
    fn tell(&mut self) {
        if self.used_bytes != self.told_bytes {
            // Wraps for a difference below 0, and so does the sum.
            self.in_use.0.fetch_add(self.used_bytes.wrapping_sub(self.told_bytes), Relaxed);
            self.told_bytes = self.used_bytes;
        }
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        self.in_use.0.fetch_sub(self.told_bytes, Relaxed);
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
        assert_eq!((tails[0].bytes.len(), tails[1].bytes.len()), (0, 7));
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
            let address = tail.bytes.as_ptr();
            drop(read(&mut buffer, &mut tail, 100, len));
            assert_eq!(tail.bytes.len(), len);
            moves += usize::from(tail.bytes.as_ptr() != address);
        }
        assert!(moves < 80, "{moves}");
        let frame = read(&mut buffer, &mut tail, 100, 10);
        assert!(frame.len() > (1 << 20) - 200);
        assert!(tail.bytes.capacity() < 100);
    }

    /// Puts a block of `len` bytes aside. It is in use for as long as what is returned lives.
    fn put_aside(buffer: &mut ReadBuffer, len: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(len);
        bytes.extend_from_slice(&[1]);
        let batch = bytes.split().freeze();
        buffer.put_aside(Block { bytes, len, gathered: false });
        buffer.tell();
        batch
    }

    #[test]
    fn blocks_in_use_count_for_all_workers_together_until_they_are_free() {
        let in_use = BlocksInUse::default();
        let mut workers = [0, 1].map(|_| ReadBuffer::new(in_use.clone()));
        let first = put_aside(&mut workers[0], 1000);
        let second = put_aside(&mut workers[1], 500);
        assert_eq!(in_use.bytes(), 1500);
        drop(first);
        workers.iter_mut().for_each(|worker| worker.look_for_free(9));
        assert_eq!((in_use.bytes(), workers[0].free_bytes, workers[1].free_bytes), (500, 1000, 0));
        drop(workers);
        assert_eq!(in_use.bytes(), 0);
        drop(second);
    }

    /// A queue that is full of old batches, one that lets go of the oldest first, and one that lets go of any.
    #[test]
    fn every_block_that_becomes_free_is_found_however_many_are_in_use() {
        for free_first in [LOOK_RECENT, 500, 970] {
            let mut buffer = ReadBuffer::default();
            let mut batches: Vec<_> = (0..1000).map(|_| Some(put_aside(&mut buffer, 100))).collect();
            batches[free_first..free_first + 30].fill(None);
            let mut taken = Vec::new();
            let mut takes = 0;
            while taken.len() < 30 && takes < 100 {
                takes += 1;
                let block = buffer.take(100, 200);
                if block.len == 100 {
                    taken.push(block);
                }
            }
            assert_eq!((taken.len(), buffer.used.len()), (30, 970), "from {free_first} on");
            assert_eq!((buffer.used_bytes, buffer.free_bytes), (97_000, 0));
        }
    }

    #[test]
    fn free_blocks_that_are_remembered_are_bounded_and_those_in_use_are_all_known() {
        let mut buffer = ReadBuffer::default();
        let batches: Vec<_> = (0..100).map(|_| put_aside(&mut buffer, 1 << 20)).collect();
        buffer.free_unused();
        buffer.free_unused();
        assert_eq!((buffer.used_bytes, buffer.free_bytes), (100 << 20, 0));
        drop(batches);
        buffer.look_for_free(usize::MAX);
        assert_eq!((buffer.used_bytes, buffer.free.len(), buffer.free_bytes), (0, 64, FREE_MAX));
    }

    #[test]
    fn blocks_that_nobody_needed_for_a_while_are_freed() {
        let mut buffer = ReadBuffer::default();
        for _ in 0..3 {
            drop(put_aside(&mut buffer, 100));
        }
        buffer.free_unused();
        assert_eq!(buffer.free.len(), 3);
        // One of the three is in use now and then.
        let block = buffer.take(100, 200);
        buffer.put_aside(block);
        buffer.free_unused();
        assert_eq!((buffer.free.len(), buffer.free_bytes), (1, 100));
        buffer.free_unused();
        assert_eq!((buffer.free.len(), buffer.free_bytes), (0, 0));
    }

    /// A frame of 11 000 bytes, of which 6000 had come, and `left` bytes of the next.
    fn gather(buffer: &mut ReadBuffer, tail: &mut Tail, left: usize) -> Bytes {
        *tail = Tail::new(BytesMut::from(&[1; 6000][..]));
        let frame = read(buffer, tail, 5000 + left, left);
        assert_eq!((frame.len(), tail.bytes.len()), (11_000, left));
        frame
    }

    #[test]
    fn memory_in_which_a_frame_was_gathered_counts_until_the_frame_is_gone() {
        let in_use = BlocksInUse::default();
        let mut buffer = ReadBuffer::new(in_use.clone());
        let mut tail = Tail::default();
        let frame = gather(&mut buffer, &mut tail, 10);
        assert!(in_use.bytes() >= 6000 + TAIL_ROOM_MIN);
        assert!(!frame.as_ptr_range().contains(&tail.bytes.as_ptr()) && tail.bytes.capacity() < 100);
        drop(frame);
        buffer.look_for_free(9);
        assert_eq!((in_use.bytes(), buffer.free_bytes), (0, 0));
    }

    /// Frames of many kilobytes in a row: one memory serves them all while they leave at once.
    #[test]
    fn memory_in_which_a_frame_was_gathered_serves_the_next_if_the_frame_is_gone() {
        let mut buffer = ReadBuffer::default();
        let mut tail = Tail::default();
        let address = gather(&mut buffer, &mut tail, 5000).as_ptr();
        let frame = read(&mut buffer, &mut tail, 12_000, 5000);
        assert_eq!((frame.as_ptr(), buffer.used_bytes), (address, 0));
        // This one waits.
        let next = read(&mut buffer, &mut tail, 12_000, 5000);
        assert!(buffer.used_bytes > 17_000 && next.as_ptr() != address);
        assert!(frame.iter().chain(&next).all(|&byte| byte == 1));
    }
}
