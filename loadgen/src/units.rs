//! Sizes as users write them; times and units are tapster's own.

use tapster::config::units::UnitError;
use tapster::config::units::parse_size;

/// Parses a size in bytes: `64KiB`, `1MB`, and, where bytes are what one counts, a bare `512`.
pub(crate) fn size(text: &str) -> Result<usize, UnitError> {
    let bare = text.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = if bare { parse_size(&format!("{text}B")) } else { parse_size(text) }?;
    usize::try_from(bytes).map_err(|_| UnitError::TooLarge { text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_counts_bytes() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("64KiB"), Ok(64 << 10));
        for text in ["", "KiB", "1kib", "-1", "99999999999999999999"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
