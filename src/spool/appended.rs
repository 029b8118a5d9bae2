//! What becomes of batches that are appended.

use crate::batch::position::LogPosition;

/// What became of the batches given to [`Spool::append`](crate::spool::Spool::append).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where each batch that was taken begins, from the first on.
    pub positions: Vec<LogPosition>,
    /// How many of the batches behind those are lost; [`Spool::poll_loss`](crate::spool::Spool::poll_loss) reports their frames.
    pub dropped: usize,
}

impl Appended {
    /// How many batches are settled. Those behind them have not been looked at: they are to be appended again, at once
    /// if this is not 0, otherwise when there is room.
    pub fn settled(&self) -> usize {
        self.positions.len() + self.dropped
    }
}
