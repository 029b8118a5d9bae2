//! Reasons for which a spool loses frames.

/// Why frames were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The spool, or its disk, was full.
    Full,
    /// They were older than [`SpoolConfig::max_age`](crate::spool::SpoolConfig::max_age).
    Age,
    /// They could not be read back: their segment was damaged, or is gone.
    Damaged,
}

impl LossReason {
    /// All reasons.
    pub const ALL: [Self; 3] = [Self::Full, Self::Age, Self::Damaged];

    /// The reason as it stands in a ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "spool_full",
            Self::Age => "spool_age",
            Self::Damaged => "spool_damaged",
        }
    }
}
