//! Sizes, times and rates as users write them.

use std::time::Duration;

/// Parses a size in bytes: `512`, `64KiB`, `1MB`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let (number, unit) = split(text);
    let scale = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => {
            return Err(format!("`{text}` is not a size: write a number and B, KiB, MiB, GiB, kB, MB or GB"));
        }
    };
    let number: usize = number.parse().map_err(|_| format!("`{text}` is not a size: write it like 64KiB"))?;
    number.checked_mul(scale).ok_or_else(|| format!("`{text}` is more than this machine can address"))
}

/// Parses a duration: `250ms`, `10s`, `5m`, `1h`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{text}` is not a time: write a number and ms, s, m or h, as in 10s")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a time: write it like 10s"))?;
    let millis = number.checked_mul(millis).ok_or_else(|| format!("`{text}` is too long a time"))?;
    Ok(Duration::from_millis(millis))
}

fn split(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_take_the_units_of_the_relay() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("64KiB"), Ok(64 << 10));
        assert_eq!(size("1MB"), Ok(1_000_000));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
    }

    #[test]
    fn anything_else_is_refused_with_the_units_named() {
        for text in ["", "KiB", "1kib", "-1", "1.5MiB", "99999999999999999999"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["", "10", "10 s", "1d", "s"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
