//! Counts in words.

/// `1 frame`, `2 frames`.
pub(crate) fn count_frames(count: u64) -> String {
    counted(count, "frame")
}

/// `1 file`, `2 files`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
