//! How often what happened in a storm: one in which nothing of a kind happens proves nothing about it.

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) frames: u64,
    pub(super) connected: u64,
    pub(super) refused: u64,
    pub(super) broken: u64,
    pub(super) stalled: u64,
    pub(super) finished: u64,
    pub(super) unanswered: u64,
    pub(super) frames_twice: u64,
    pub(super) frames_left: u64,
    pub(super) frames_refused: u64,
    pub(super) frames_too_old: u64,
}

impl Totals {
    pub(super) fn kinds(&self) -> [u64; 11] {
        let Self { frames, connected, refused, broken, stalled, finished, .. } = *self;
        let Self { unanswered, frames_twice, frames_left, frames_refused, frames_too_old, .. } = *self;
        [
            frames,
            connected,
            refused,
            broken,
            stalled,
            finished,
            unanswered,
            frames_twice,
            frames_left,
            50 * frames_refused,
            5 * frames_too_old,
        ]
    }

    pub(super) fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.connected += other.connected;
        self.refused += other.refused;
        self.broken += other.broken;
        self.stalled += other.stalled;
        self.finished += other.finished;
        self.unanswered += other.unanswered;
        self.frames_twice += other.frames_twice;
        self.frames_left += other.frames_left;
        self.frames_refused += other.frames_refused;
        self.frames_too_old += other.frames_too_old;
    }
}
