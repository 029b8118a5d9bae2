//! Why frames are lost.

/// Why a frame was lost on its way to an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The queue was full, and its policy is to drop.
    QueueFull,
    /// The queue was filling up, and its policy is to keep one batch in so many.
    Sampled,
    /// The frame is longer than the output takes.
    FrameTooLong,
    /// The reader ended every connection at this frame.
    Refused,
    /// The relay ended before the frame could be written.
    Shutdown,
    /// The spool, or its disk, was full.
    SpoolFull,
    /// The frame was in the spool for too long.
    SpoolAge,
    /// The frame could not be read back from the spool.
    SpoolDamaged,
    /// A task of tapster failed while it had the frame: a bug.
    Internal,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub(crate) const ALL: [Self; 9] = [
        Self::QueueFull,
        Self::Sampled,
        Self::FrameTooLong,
        Self::Refused,
        Self::Shutdown,
        Self::SpoolFull,
        Self::SpoolAge,
        Self::SpoolDamaged,
        Self::Internal,
    ];

    /// Whether the operator chose the rule by which the frame was lost.
    pub(crate) fn is_operators_rule(self) -> bool {
        !matches!(self, Self::SpoolDamaged | Self::Internal)
    }

    /// The reason as it stands in the ledger.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Sampled => "sampled",
            Self::FrameTooLong => "frame_too_long",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
            Self::SpoolFull => "spool_full",
            Self::SpoolAge => "spool_age",
            Self::SpoolDamaged => "spool_damaged",
            Self::Internal => "internal",
        }
    }
}
