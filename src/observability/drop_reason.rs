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
    /// The output was removed before the frame could be written.
    Removed,
    /// The subscriber left before the frame could be written.
    Unsubscribed,
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
    pub(crate) const ALL: [Self; 11] = [
        Self::QueueFull,
        Self::Sampled,
        Self::FrameTooLong,
        Self::Refused,
        Self::Shutdown,
        Self::Removed,
        Self::Unsubscribed,
        Self::SpoolFull,
        Self::SpoolAge,
        Self::SpoolDamaged,
        Self::Internal,
    ];

    /// The reason as it stands in the ledger.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Sampled => "sampled",
            Self::FrameTooLong => "frame_too_long",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
            Self::Removed => "removed",
            Self::Unsubscribed => "unsubscribed",
            Self::SpoolFull => "spool_full",
            Self::SpoolAge => "spool_age",
            Self::SpoolDamaged => "spool_damaged",
            Self::Internal => "internal",
        }
    }

    /// Why frames are lost, and what to do, for the log.
    pub(crate) fn help(self) -> &'static str {
        match self {
            Self::QueueFull => {
                "the queue is full, because the collector reads less than arrives; raise `queue`, or set when_full = \"spill\""
            }
            Self::Sampled => {
                "the collector reads less than arrives and gets a sample of the batches, as when_full = \"sample\" says; for all frames make the collector faster, or set when_full = \"spill\""
            }
            Self::FrameTooLong => {
                "they are longer than the `frame_len_max` of this output; raise it if the collector takes longer frames"
            }
            Self::Refused => {
                "the collector ended every connection at the same frame, and tapster left the frame out; compare the limits of the collector with `frame_len_max`"
            }
            Self::Shutdown => {
                "tapster ended before the collector took them; raise `drain_timeout`, or give this output a spool"
            }
            Self::Removed => {
                "the output was removed from the configuration, and its collector did not take them within `drain_timeout`"
            }
            Self::Unsubscribed => {
                "they waited for subscribers that left, or that took nothing for `stall_timeout` and were closed"
            }
            Self::SpoolFull => {
                "the spool is full; raise `spool.max`, or free space on its disk, of which `spool.min_free` stays free"
            }
            Self::SpoolAge => {
                "they were in the spool for longer than `spool.max_age`; raise it, or find out why the collector does not take them"
            }
            Self::SpoolDamaged => {
                "they cannot be read back from the spool; `tapster spool check` says what is damaged"
            }
            Self::Internal => "a task of tapster failed while it had them; please report this as a bug",
        }
    }
}
