//! Why a peer cannot be reached, as far as the log has it: each reason once, until the peer is there.

/// The reasons that were told since the peer was there.
#[derive(Debug, Default)]
pub(crate) struct ToldReasons(Vec<String>);

impl ToldReasons {
    /// Whether the log does not have this reason yet. It has it from now on.
    pub(crate) fn is_new(&mut self, reason: &str) -> bool {
        if self.0.iter().any(|told| told == reason) {
            return false;
        }
        if self.0.len() < REASONS_MAX {
            self.0.push(reason.to_owned());
        }
        true
    }

    /// The peer is there: what keeps it away from now on is told again.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Reasons that are known as told. Others are told as often as the log has room for them.
const REASONS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_new_once_until_the_peer_was_there() {
        let mut told = ToldReasons::default();
        let mut is_new = |reason: &str| told.is_new(reason);
        assert!(is_new("refused") && is_new("timed out") && !is_new("refused") && !is_new("timed out"));
        told.clear();
        assert!(told.is_new("refused"));
        for number in 0..100 {
            told.is_new(&number.to_string());
        }
        assert_eq!(told.0.len(), REASONS_MAX);
    }
}
