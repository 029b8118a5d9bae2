//! The keys that put frames on disk: `when_full = "spill"`, `buffer = "disk"`, and the table `spool`.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::raw::Value;
use crate::config::section::Section;
use crate::config::value;
use crate::output::Connections;
use crate::output::OutputConfig;
use crate::queue::SpoolUse;
use crate::queue::Takes;
use crate::spool::OnFull;
use crate::spool::SpoolConfig;
use crate::spool::SyncPolicy;

/// Takes `buffer` and `spool` of an output, whose `when_full` is `spill` or not.
pub(super) fn take_spool(section: &mut Section<'_>, spills: bool) -> Option<SpoolUse> {
    let buffers = [("memory", false), ("disk", true)];
    let on_disk = section.take("buffer", value::choice(&buffers)).unwrap_or(false);
    if on_disk && section.has("when_full") && !spills {
        let message =
            "with buffer = \"disk\" it is `on_full` of the spool that says what happens: leave this key out";
        section.fault("when_full", message.to_owned());
    }
    let takes = if on_disk { Takes::All } else { Takes::Overflow };
    let wanted = match (on_disk, spills) {
        (true, _) => Some("buffer"),
        (false, true) => Some("when_full"),
        (false, false) => None,
    };
    match (wanted, section.has("spool")) {
        (Some(key), false) => {
            let message = format!("needs a folder: write spool = {EXAMPLE}");
            section.fault(key, message);
            section.table("spool", EXAMPLE);
            None
        }
        (None, true) => {
            let message = "is for outputs with when_full = \"spill\" or buffer = \"disk\": add one of them";
            section.fault("spool", message.to_owned());
            section.table("spool", EXAMPLE);
            None
        }
        _ => take_table(section, takes),
    }
}

fn take_table(section: &mut Section<'_>, takes: Takes) -> Option<SpoolUse> {
    let mut keys = section.table("spool", EXAMPLE)?;
    let mut config = SpoolConfig::default();
    if !keys.has("dir") {
        keys.fault("dir", format!("is missing: write spool = {EXAMPLE}"));
    }
    let folder = keys.take("dir", value::text);
    keys.set("max", value::size(MAX_MIN..=SIZE_MAX), &mut config.max);
    keys.set("max_age", value::duration(Duration::from_secs(1)..=TEN_YEARS), &mut config.max_age);
    keys.set("min_free", value::size(0..=SIZE_MAX), &mut config.min_free);
    keys.set("sync", sync, &mut config.sync);
    let policies =
        [("drop_oldest", OnFull::DropOldest), ("drop_newest", OnFull::DropNewest), ("block", OnFull::Block)];
    keys.set("on_full", value::choice(&policies), &mut config.on_full);
    keys.finish();
    Some(SpoolUse { folder: PathBuf::from(folder?), takes, config })
}

/// What the limits of a spool do not go with.
pub(super) fn check_spool(section: &mut Section<'_>, output: &OutputConfig, frame_len: u64) {
    let Some(spool) = &output.spool else { return };
    let batch_len_max = (output.queue as u64 / 8).min(BATCH_LEN_MAX).max(frame_len);
    if let Err(error) = spool.config.validate(batch_len_max) {
        section.fault("spool", format!("{error}: raise `max`, or lower `frame_len_max`"));
    }
    if output.connections == Connections::PerWorker {
        let message = "a spool has one writer, and its frames one connection: leave this key out";
        section.fault("connections", message.to_owned());
    }
}

/// `none`, `batch` or a time.
fn sync(written: &Value) -> Result<SyncPolicy, String> {
    let words = [("none", SyncPolicy::None), ("batch", SyncPolicy::Batch)];
    let is_time =
        matches!(written, Value::Text(text) if text.starts_with(|first: char| first.is_ascii_digit()));
    if is_time {
        return value::duration(SYNC_MIN..=SYNC_MAX)(written).map(SyncPolicy::Interval);
    }
    value::choice(&words)(written).map_err(|error| format!("{error}; or a time as in \"100ms\""))
}

const EXAMPLE: &str = "{ dir = \"/var/lib/tapster/NAME\", max = \"10GiB\" }";

/// No spool is smaller: four segments of the smallest size.
const MAX_MIN: u64 = 256 << 10;
const SIZE_MAX: u64 = 1 << 60;
/// As long as batches are, unless one frame is longer: the share of the queue that one write may have.
const BATCH_LEN_MAX: u64 = 1 << 20;
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Disks take about as long for one.
const SYNC_MIN: Duration = Duration::from_millis(1);
const SYNC_MAX: Duration = Duration::from_secs(3600);
