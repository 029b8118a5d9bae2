//! What connections and readers do in a storm: they come, refuse, take, break, stall, and answer STOP or do not.

use crate::delivery::action::Action;
use crate::delivery::action::CloseReason;
use crate::delivery::action::StreamId;
use crate::delivery::storm::Event;
use crate::delivery::storm::FRAME_LEN;
use crate::delivery::storm::Storm;

impl Storm {
    pub(super) fn open(&mut self, stream: StreamId) {
        let stalls_at =
            if self.happens(self.weather.stalls) { self.random.usize(0..300) } else { usize::MAX };
        self.streams.insert(stream, Stream { stalls_at, ..Stream::default() });
        if self.happens(self.weather.breaks) {
            let at = self.random.u64(0..400);
            self.plan(at, Event::Lost(stream));
        }
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Connect(stream) => {
                assert!(!self.over, "connects when all is over");
                assert!(self.connecting.insert(stream) && !self.streams.contains_key(&stream));
                let after = self.random.u64(0..30);
                if self.happens(self.weather.refuses) {
                    self.plan(after, Event::Refused(stream));
                } else if !self.happens(self.weather.never_connects) {
                    self.plan(after, Event::Connected(stream));
                }
            }
            Action::Write(stream) => self.begin_write(stream),
            Action::Interrupt(stream) => {
                let state = &self.streams[&stream];
                assert!(!state.closed);
                if state.writing {
                    self.interrupt(stream);
                }
            }
            Action::Probe(stream) => {
                let fair = self.weather.is_fair();
                let state = self.streams.get_mut(&stream).unwrap();
                assert!(!state.closed);
                let taken_min = if fair { state.written } else { state.taken };
                state.taken = self.random.usize(taken_min..=state.written);
                let arrived = (self.random.u32(0..10) > 0 || fair).then_some(state.taken as u64);
                self.delivery.handle_progress(stream, arrived, self.now);
            }
            Action::Stop(stream) => {
                let state = self.streams.get_mut(&stream).unwrap();
                assert!(!state.closed && !state.writing && !state.stopped, "STOP in the middle of a write");
                assert_eq!(state.written % FRAME_LEN, 0, "STOP in the middle of a frame");
                state.stopped = true;
                if self.config.answers && self.happens(self.weather.no_finish) {
                    self.totals.unanswered += 1;
                } else {
                    let after = self.random.u64(0..if self.weather.is_fair() { 450 } else { 700 });
                    self.plan(if self.config.answers { after } else { 0 }, Event::Finished(stream));
                }
            }
            Action::Close(stream, reason) => {
                if self.connecting.remove(&stream) {
                    return;
                }
                let state = self.streams.get_mut(&stream).unwrap();
                assert!(!std::mem::replace(&mut state.closed, true), "closed twice");
                state.broke = true;
                self.totals.stalled += u64::from(reason == CloseReason::Stalled);
            }
        }
    }

    fn begin_write(&mut self, stream: StreamId) {
        let state = self.streams.get_mut(&stream).unwrap();
        assert!(!state.closed && !state.writing && !state.stopped, "a write too many");
        if state.given.len() == state.written {
            self.delivery.buffers(stream).for_each(|buffer| state.given.extend_from_slice(&buffer));
            let begun = state.given.get(state.written..).unwrap_or_default().to_vec();
            self.check_ages(&begun);
        }
        let state = self.streams.get_mut(&stream).unwrap();
        assert!(state.given.len() > state.written, "a write of nothing");
        state.writing = true;
        if state.written < state.stalls_at {
            let after = self.random.u64(0..20);
            self.plan(after, Event::Written(stream));
        }
    }

    pub(super) fn write_on(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream).filter(|state| !state.closed && state.writing) else {
            return;
        };
        let rest = state.given.len().min(state.stalls_at) - state.written;
        let count = self.random.usize(0..=rest);
        let count = if self.random.bool() { rest } else { count };
        self.has_written(stream, count);
    }

    fn interrupt(&mut self, stream: StreamId) {
        let state = &self.streams[&stream];
        let rest = state.given.len().min(state.stalls_at).saturating_sub(state.written);
        let count = self.random.usize(0..=rest);
        self.has_written(stream, count);
    }

    fn has_written(&mut self, stream: StreamId, count: usize) {
        let state = self.streams.get_mut(&stream).unwrap();
        state.writing = false;
        let before = state.written / FRAME_LEN;
        state.written += count;
        let frames: Vec<u64> = (before..state.written / FRAME_LEN)
            .map(|index| {
                let digits = &state.given[index * FRAME_LEN + 4..(index + 1) * FRAME_LEN];
                std::str::from_utf8(digits).unwrap().parse().unwrap()
            })
            .collect();
        for frame in frames {
            self.arrives(stream, frame);
        }
        self.delivery.handle_written(stream, count, self.now);
        if self.refuses(stream) {
            self.lose(stream);
        }
    }

    /// Whether the reader of this stream ends it at the frame that it got last, or gets now.
    pub(super) fn refuses(&self, stream: StreamId) -> bool {
        let Some(refused) = self.weather.refuses_frame else { return false };
        let state = &self.streams[&stream];
        let begun = state.given.chunks(FRAME_LEN).take(state.written.div_ceil(FRAME_LEN));
        begun.into_iter().any(|frame| frame[4..] == *format!("{refused:08}").as_bytes())
    }

    /// Where the frame begins in a stream that its reader does not take.
    fn refused_at(&self, stream: StreamId) -> usize {
        let Some(refused) = self.weather.refuses_frame else { return usize::MAX };
        let mut frames = self.streams[&stream].given.chunks(FRAME_LEN);
        let index = frames.position(|frame| frame.get(4..) == Some(format!("{refused:08}").as_bytes()));
        index.map_or(usize::MAX, |index| index * FRAME_LEN)
    }

    pub(super) fn lose(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream).filter(|state| !state.closed) else { return };
        if state.writing {
            // The write comes back first, with what it had written.
            state.writing = false;
            let rest = state.given.len().min(state.stalls_at).saturating_sub(state.written);
            let count = self.random.usize(0..=rest);
            self.has_written(stream, count);
        }
        let refused_at = self.refused_at(stream);
        let state = self.streams.get_mut(&stream).unwrap();
        if !state.closed {
            state.taken = state.taken.max(self.random.usize(0..=state.written).min(refused_at));
            let arrived = (self.random.u32(0..4) > 0).then_some(state.taken as u64);
            self.delivery.handle_progress(stream, arrived, self.now);
        }
        let state = self.streams.get_mut(&stream).unwrap();
        if !state.closed {
            state.broke = true;
            self.totals.broken += 1;
            self.delivery.handle_lost(stream, self.now);
        }
    }
}

/// What a stream has got, and how its reader is.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// All that was given, of which `written` bytes have gone.
    pub(super) given: Vec<u8>,
    pub(super) written: usize,
    /// What the reader has taken.
    pub(super) taken: usize,
    pub(super) writing: bool,
    /// No byte goes through from here on.
    pub(super) stalls_at: usize,
    pub(super) closed: bool,
    /// Nobody knows whether what it got has arrived.
    pub(super) broke: bool,
    pub(super) stopped: bool,
}
