//! Names of output files: what a strftime pattern makes of a moment, numbers behind names that are taken, and which names a
//! pattern can have made.

use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::Zoned;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// The name that a pattern makes now.
pub(crate) fn of_now(pattern: &str) -> Result<PathBuf, jiff::Error> {
    strtime::format(pattern, &Zoned::now()).map(PathBuf::from)
}

/// `name`, or `name.1`, `name.2` …
pub(crate) fn numbered(name: &Path, number: u32) -> PathBuf {
    if number == 0 { name.to_owned() } else { with_suffix(name, &format!(".{number}")) }
}

/// The name with something behind it.
pub(crate) fn with_suffix(name: &Path, suffix: &str) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether the names that this pattern makes can be told from others.
pub(crate) fn is_recognised(pattern: &str) -> bool {
    let moment = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    let Ok(name) = strtime::format(pattern, &moment) else { return false };
    let (patterns, names) = (pattern.split('/'), name.split('/'));
    patterns.clone().count() == names.clone().count()
        && patterns.zip(names).all(|(pattern, name)| is_made_by(pattern, name))
}

/// Whether one part of a pattern can have made this part of a path.
pub(crate) fn is_made_by(pattern: &str, name: &str) -> bool {
    let time = strtime::parse(pattern, name);
    time.and_then(|time| time.to_string(pattern)).is_ok_and(|again| again == name)
}

/// Whether the last part of a pattern can have made this file name, with a number behind it where the name was taken, and with
/// `suffix` behind that.
pub(crate) fn is_file_made_by(pattern: &str, name: &str, suffix: Option<&str>) -> bool {
    let name = suffix.and_then(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    let numbered = name.rsplit_once('.').filter(|(_, number)| {
        !number.is_empty() && number.len() <= 6 && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    is_made_by(pattern, name) || numbered.is_some_and(|(name, _)| is_made_by(pattern, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_knows_the_names_that_it_made_and_no_others() {
        let pattern = "dns-%Y%m%dT%H%M%S.fstrm";
        for name in
            ["dns-20260102T030405.fstrm", "dns-20260102T030405.fstrm.1", "dns-20260102T030405.fstrm.12"]
        {
            assert!(is_file_made_by(pattern, name, None), "{name}");
            assert!(is_file_made_by(pattern, &format!("{name}.part"), Some(".part")), "{name}");
            assert!(!is_file_made_by(pattern, &format!("{name}.part"), None), "{name}");
        }
        for name in [
            "dns-20260102T030405.fstrm.gz",
            "dns-20260102T030405.fstrm.",
            "dns-2026012T030405.fstrm",
            "dns-20261302T030405.fstrm",
            "dns-now.fstrm",
            "other-20260102T030405.fstrm",
            "dns-20260102T030405.fstrm.1.2",
        ] {
            assert!(!is_file_made_by(pattern, name, None), "{name}");
        }
        assert!(is_file_made_by("dns.fstrm", "dns.fstrm.3", None));
        assert!(!is_file_made_by("dns.fstrm", "dns.fstrm-20260102", None));
    }

    #[test]
    fn patterns_whose_names_cannot_be_told_from_others_are_known() {
        for pattern in
            ["a.fstrm", "/var/%Y/%m/%d/%H-100%%.fstrm", "%Y%m%dT%H%M%S.fstrm", "%F.fstrm", "%s.fstrm", "%j"]
        {
            assert!(is_recognised(pattern), "{pattern}");
        }
        for pattern in ["%Z.fstrm", "%D.fstrm"] {
            assert!(!is_recognised(pattern), "{pattern}");
        }
    }
}
