//! Sizes and times as users write them: `64MiB`, `100ms`.
//!
//! A value is one whole number and one unit. There is no default unit: `queue = 64` would be read by one
//! operator as bytes and by the next as MiB.

use std::time::Duration;

/// Units of a size, in bytes; the first that divides a value is the one it is printed in.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Units of a time, in milliseconds; the first that divides a value is the one it is printed in.
const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Why a text is not a size or a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// It does not begin with a whole number.
    #[error("`{text}` does not begin with a whole number: write one with its unit, as in {example}")]
    Number {
        /// What was written.
        text: String,
        /// A value that would do.
        example: &'static str,
    },
    /// The number has no unit.
    #[error("`{text}` has no unit: write {units} behind it, as in {example}")]
    NoUnit {
        /// What was written.
        text: String,
        /// The units there are.
        units: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// The unit is not one of ours.
    #[error("`{unit}` in `{text}` is not a unit: write {units}, as in {example}")]
    UnknownUnit {
        /// What was written.
        text: String,
        /// The part of it that should have been a unit.
        unit: String,
        /// The units there are.
        units: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// The value does not fit.
    #[error("`{text}` is too much to count")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// A size in bytes from `512B`, `64KiB`, `1MiB`, `2GiB`, `1kB`, `1MB`, `1GB`.
///
/// A space may stand between number and unit. Case counts: `kB` is 1000 bytes, `KiB` is 1024.
///
/// # Errors
/// [`UnitError`], with the units there are and an example.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse(text, &SIZE_UNITS, "B, KiB, MiB, GiB, kB, MB or GB", "64MiB")
}

/// A time from `100ms`, `10s`, `5m`, `1h`.
///
/// # Errors
/// [`UnitError`], with the units there are and an example.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, &TIME_UNITS, "ms, s, m or h", "10s").map(Duration::from_millis)
}

/// `bytes` in the largest unit that divides it; [`parse_size`] reads it back.
pub fn format_size(bytes: u64) -> String {
    format(bytes, &SIZE_UNITS, "B")
}

/// `duration` in the largest unit that divides it; [`parse_duration`] reads it back.
///
/// Parts of a millisecond are cut off.
pub fn format_duration(duration: Duration) -> String {
    format(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &TIME_UNITS, "s")
}

fn parse(
    text: &str,
    table: &[(&str, u64)],
    units: &'static str,
    example: &'static str,
) -> Result<u64, UnitError> {
    let written = text.to_owned();
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    if number.is_empty() || unit.starts_with(['.', ',', '_']) {
        return Err(UnitError::Number { text: written, example });
    }
    let unit = unit.trim_start();
    if unit.is_empty() {
        return Err(UnitError::NoUnit { text: written, units, example });
    }
    let Some((_, factor)) = table.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError::UnknownUnit { text: written, unit: unit.to_owned(), units, example });
    };
    let value = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
    value.ok_or(UnitError::TooLarge { text: written })
}

fn format(value: u64, table: &[(&str, u64)], unit_of_zero: &str) -> String {
    let dividing = table.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    match dividing {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => format!("0{unit_of_zero}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_unit_of_the_contract_is_read() {
        for (text, bytes) in [
            ("0B", 0),
            ("512B", 512),
            ("64KiB", 64 << 10),
            ("64 MiB", 64 << 20),
            ("2GiB", 2 << 30),
            ("1kB", 1_000),
            ("1MB", 1_000_000),
            ("3GB", 3_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, millis) in [("0s", 0), ("100ms", 100), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_fault_tells_what_to_write() {
        for text in ["", "MiB", "-1MiB", "1.5GiB", "1_000B", "ten"] {
            assert!(matches!(parse_size(text), Err(UnitError::Number { .. })), "{text}");
        }
        assert!(matches!(parse_size("64"), Err(UnitError::NoUnit { .. })));
        for text in ["64M", "64mib", "64 MiB/s", "1h"] {
            assert!(matches!(parse_size(text), Err(UnitError::UnknownUnit { .. })), "{text}");
        }
        for text in ["99999999999999999999B", "18446744073709551615GiB"] {
            assert!(matches!(parse_size(text), Err(UnitError::TooLarge { .. })), "{text}");
        }
        assert_eq!(
            parse_duration("5 min").unwrap_err().to_string(),
            "`min` in `5 min` is not a unit: write ms, s, m or h, as in 10s"
        );
    }

    #[test]
    fn the_largest_unit_that_divides_is_printed() {
        for (bytes, text) in [(0, "0B"), (1 << 20, "1MiB"), (65_537, "65537B"), (262_140, "262140B")] {
            assert_eq!(format_size(bytes), text);
        }
        for (millis, text) in [(0, "0s"), (90_000, "90s"), (3_600_000, "1h"), (1_500, "1500ms")] {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(value in any::<u64>()) {
            prop_assert_eq!(parse_size(&format_size(value)), Ok(value));
            let duration = Duration::from_millis(value);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
