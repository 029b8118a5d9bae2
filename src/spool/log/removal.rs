//! What goes from a log: segments that tapster removes or sets aside, and those that others have removed.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use crate::batch::position::LogPosition;
use crate::spool::aside::set_aside;
use crate::spool::error::SpoolError;
use crate::spool::log::Log;
use crate::spool::segment::Segment;
use crate::spool::segment::segment_name;
use crate::spool::segment::segment_start;
use crate::spool::storage::Entry;
use crate::spool::storage::Storage;
use crate::spool::summary::Summary;

impl<S: Storage> Log<S> {
    /// The place behind the oldest `count` segments; `None` where so many cannot be removed: the open one cannot.
    pub(in crate::spool) fn end_of(&self, count: usize) -> Option<LogPosition> {
        let segments = &self.files.segments;
        if count == 0 || segments.len() < count + usize::from(self.open.is_some()) {
            return None;
        }
        Some(match segments.get(count) {
            Some(next) => segment_start(next.number, next.frame_seq),
            None => segment_start(self.files.segment_next, self.head()),
        })
    }

    /// Whether the oldest segment is closed, and has no frame from number `frame_seq` on. It may have some that the next one has too.
    pub(in crate::spool) fn front_is_before(&self, frame_seq: u64) -> bool {
        let own_end = self.files.segments.front().map_or(0, |front| front.frame_seq_end);
        self.end_of(1).is_some_and(|end| end.frame_seq.max(own_end) <= frame_seq)
    }

    /// How many of the oldest segments, `count_max` at most, have nothing that was read at `unix` or later, in nanoseconds of Unix
    /// time. The open one counts if it is the first.
    pub(in crate::spool) fn fronts_older(&self, unix: u64, count_max: usize) -> usize {
        let closed = self.files.segments.len() - usize::from(self.open.is_some());
        let older = self.files.segments.iter().take_while(|segment| segment.age() < unix);
        older.count().min(count_max).min(closed.max(1))
    }

    /// Whether the open segment is the only one, and has records.
    pub(in crate::spool) fn front_is_open_with_records(&self) -> bool {
        self.open.is_some()
            && self.files.segments.len() == 1
            && self.files.segments.front().is_some_and(|front| !front.has_no_records())
    }

    /// Removes the oldest segment. If something in it is damaged, sets it aside instead.
    ///
    /// # Errors
    /// [`SpoolError::Io`]: it stays.
    pub(in crate::spool) fn remove_front(&mut self) -> Result<(), SpoolError> {
        let Some(front) = self.files.segments.front() else { return Ok(()) };
        let name = segment_name(front.number);
        let (len, modified) = (front.len, front.age());
        let aside = if front.damaged {
            set_aside(&self.storage, &name).map(Some)
        } else {
            self.storage.unlink(&name).map(|()| None)
        };
        match aside {
            Ok(Some(name)) => self.files.aside.push_back(Entry { name, regular: true, len, modified }),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SpoolError::io("remove", name)(error));
            }
            Ok(None) | Err(_) => self.bytes -= len,
        }
        self.files.segments.pop_front();
        Ok(())
    }

    /// Whether the oldest of the files that were set aside is of a time before `unix`, in nanoseconds of Unix time.
    pub(in crate::spool) fn aside_is_older(&self, unix: u64) -> bool {
        self.files.aside.front().is_some_and(|file| file.modified < unix)
    }

    /// Removes the oldest of the files that were set aside. Returns whether that freed something.
    pub(in crate::spool) fn remove_aside(&mut self) -> bool {
        while let Some(file) = self.files.aside.pop_front() {
            // A file that cannot be removed no longer counts.
            self.bytes -= file.len;
            if self.storage.unlink(&file.name).is_ok() {
                return true;
            }
        }
        false
    }

    // What others have removed.

    /// Whether the file of the open segment is not in the folder any more, or shorter than it was.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::spool) fn open_segment_is_gone(&self) -> io::Result<bool> {
        let (Some(open), Some(segment)) = (&self.open, self.files.segments.back()) else { return Ok(false) };
        Ok(!open.has_name(&self.storage, &segment_name(segment.number), segment.len)?)
    }

    /// Forgets the segments that are not among these files. Returns the numbers of their frames.
    pub(in crate::spool) fn forget_missing(&mut self, files: &HashMap<String, u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        for index in (0..self.files.segments.len()).rev() {
            let Some(segment) = self.files.segments.get(index) else { continue };
            if files.contains_key(&segment_name(segment.number)) {
                continue;
            }
            missing.push(segment.frame_seq..self.frames_end(index));
            self.bytes -= segment.len;
            if index + 1 == self.files.segments.len() {
                self.open = None;
            }
            self.files.segments.remove(index);
        }
        missing
    }

    /// Number of the frame after the last one that the segment of this index alone has.
    fn frames_end(&self, index: usize) -> u64 {
        self.files.segments.get(index + 1).map_or(self.files.head, |next| next.frame_seq)
    }

    /// Shortens the closed segments that are longer than their files: others have cut these. Returns the numbers of the frames that
    /// were cut off. Shortens a few at a call, and none that cannot be read now.
    pub(in crate::spool) fn shorten_cut(&mut self, files: &HashMap<String, u64>) -> Vec<Range<u64>> {
        let closed = self.files.segments.len() - usize::from(self.open.is_some());
        let cut = |(index, segment): (usize, &Segment)| {
            let len = *files.get(&segment_name(segment.number))?;
            (len < segment.len).then_some((index, segment.number, segment.frame_seq, len))
        };
        let segments = self.files.segments.iter().enumerate().take(closed);
        let cut: Vec<_> = segments.filter_map(cut).take(CUT_MAX).collect();
        let mut missing = Vec::new();
        for (index, number, frame_seq, len) in cut {
            let file = self.storage.open(&segment_name(number));
            let Ok(left) = file.and_then(|file| Summary::read(&self.storage, &file, number, len)) else {
                continue;
            };
            missing.push(left.end.max(frame_seq)..self.frames_end(index));
            if let Some(segment) = self.files.segments.get_mut(index) {
                self.bytes -= segment.len - len;
                (segment.len, segment.damaged) = (len, true);
            }
        }
        missing
    }
}

/// Segments that are read anew at once because others have cut them.
const CUT_MAX: usize = 4;
