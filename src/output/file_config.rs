//! Settings of a file output.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

use crate::delivery::config::Reconnect;
use crate::output::config_error::ConfigError;
use crate::output::config_error::PATTERN_EXAMPLE;
use crate::output::file_name;
use crate::output::streams::reconnect_fault;

/// Files, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// The name of each file, a strftime pattern; `-` is stdout. A FIFO or a device that has this name is written in place.
    pub pattern: String,
    /// Permission bits of each file, whatever the umask says.
    pub mode: u32,
    /// When a new file begins.
    pub rotate: Rotate,
    /// Which files stay; `None`: all.
    pub keep: Option<Keep>,
    /// Pause before the next attempt after a file could not be written.
    pub reconnect: Reconnect,
}

/// When a file output begins a new file, and how the files are called until they are complete. Without `size` and `every`: never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotate {
    /// Once the file has this many bytes.
    pub size: Option<u64>,
    /// Once the file is this old.
    pub every: Option<Duration>,
    /// What stands behind the name of a file until STOP is written; `None`: a file has its final name from the start.
    pub partial_suffix: Option<String>,
}

/// Which of the files that a pattern made stay. The oldest of the others are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// So many, with the file that is being written: at least one.
    Files(usize),
    /// Those that were written to within this time.
    Age(Duration),
}

impl FileConfig {
    /// The name where none is configured.
    pub const PATTERN: &str = PATTERN_EXAMPLE;
    /// The permission bits where none are configured.
    pub const MODE: u32 = 0o640;

    /// One file after the other, without a limit.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self {
            pattern: pattern.into(),
            mode: Self::MODE,
            rotate: Rotate::default(),
            keep: None,
            reconnect: Reconnect::default(),
        }
    }

    /// Whether a pattern makes the name of a file.
    pub(crate) fn check_pattern(pattern: &str) -> Result<(), ConfigError> {
        let epoch = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        let name = strtime::format(pattern, &epoch).map_err(|error| ConfigError::Pattern {
            pattern: pattern.to_owned(),
            reason: error.to_string(),
        })?;
        if name.is_empty() || name.ends_with('/') {
            return Err(ConfigError::PatternOfFolder(pattern.to_owned()));
        }
        Ok(())
    }

    /// Everything that the types allow and no file output can be.
    pub(crate) fn faults(&self) -> Vec<ConfigError> {
        let mut faults: Vec<_> = Self::check_pattern(&self.pattern).err().into_iter().collect();
        if self.keep == Some(Keep::Files(0)) {
            faults.push(ConfigError::KeepOfNone);
        }
        if self.keep.is_some() && faults.is_empty() && !file_name::is_recognised(&self.pattern) {
            faults.push(ConfigError::KeepOfUnknown(self.pattern.clone()));
        }
        if self.rotate.partial_suffix.as_ref().is_some_and(|suffix| suffix.is_empty() || suffix.contains('/'))
        {
            faults.push(ConfigError::PartialSuffix);
        }
        faults.extend(reconnect_fault(self.reconnect));
        faults
    }
}

impl fmt::Display for FileConfig {
    /// As it is written in a configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{}", self.pattern)
    }
}
