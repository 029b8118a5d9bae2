//! Whether a stage can use its spool: it opens the spool, notes that the spool fails, tries again, and tells all of that.

use std::fmt::Display;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use tracing::error;
use tracing::info;
use tracing::warn;

use crate::faults;
use crate::observability::drop_reason::DropReason;
use crate::observability::output_log::OutputEvent;
use crate::protocol::FrameBatch;
use crate::spool::Moment;
use crate::spool::RecoveryReport;
use crate::spool::Spool;
use crate::spool::SpoolError;
use crate::spool::SpoolSettings;
use crate::spool::Storage;
use crate::spool::outgoing::Outgoing;
use crate::spool::stage::Stage;

impl<S: Storage> Stage<S> {
    /// Opens the spool, and tells what was in it.
    pub(in crate::spool) fn open(&mut self, now: Moment) {
        let (open_spool, config) = (self.open_spool, &self.config);
        // Whatever is on disk comes behind what arrives until it can be read.
        let lane_takes = !self.reports.lane_ended();
        let (opened, _) = self.entrance.call(now.instant, lane_takes, || {
            if faults::hit("spool opens late", &config.output) {
                thread::sleep(Duration::from_millis(300));
            }
            open_spool(config, now)
        });
        match opened {
            Ok((mut spool, report)) => {
                spool.begin_segments_at(self.orphans_before);
                self.spool = Some(spool);
                self.tell_recovered(&report, now);
                self.works(now);
            }
            Err(error) => self.fails(&error, now),
        }
    }

    fn tell_recovered(&self, report: &RecoveryReport, now: Moment) {
        let (output, folder) = (&self.config.output, self.config.settings.folder.display());
        self.account.spool_opened(report.frames);
        let account = self.account.spool();
        account.files_set_aside.fetch_add(report.set_aside.len() as u64, Relaxed);
        for remark in &report.remarks {
            warn!(output, "{remark}");
        }
        for set_aside in &report.set_aside {
            if let Some(left_out) = self.account.log.admit(OutputEvent::SetAside, "", now.instant) {
                let (file, reason) = (&set_aside.name, &set_aside.reason);
                warn!(output, file, left_out, "set aside in the spool {folder}: {reason}");
            }
        }
        let RecoveryReport { frames, bytes, segments, torn_bytes, bad_files, foreign, .. } = report;
        info!(output, frames, bytes, segments, torn_bytes, bad_files, foreign, "the spool {folder} is open");
    }

    /// The task of the stage has failed. The next one opens the spool once more; what was on its way there is lost.
    pub(in crate::spool) fn begin_again(&mut self) {
        for batch in self.entrance.begin_again() {
            batch.dropped(DropReason::Internal);
        }
        self.spool = None;
        self.outgoing = Outgoing::default();
        (self.retry_at, self.unusable_since, self.short_of_disk) = (None, None, None);
    }

    /// Does what is due by time. Returns whether it has called the disk.
    pub(super) fn look_after_spool(&mut self, now: Moment) -> bool {
        let retries = self.retry_at.take_if(|at| *at <= now.instant).is_some();
        let lane_takes = self.lane_takes();
        if self.short_of_disk.is_some_and(|(at, _)| at <= now.instant) {
            self.look_for_room_on_disk(now);
        }
        match &mut self.spool {
            None if retries => self.open(now),
            Some(spool) if spool.poll_timeout() <= now.instant => {
                let was_degraded = spool.is_degraded();
                let acknowledged = spool.acknowledged().frame_seq();
                let call = || spool.handle_timeout(now);
                let (result, _) = self.entrance.call(now.instant, lane_takes, call);
                let recovered = was_degraded && !spool.is_degraded();
                self.count_lost(acknowledged, 0);
                match result {
                    Ok(()) if recovered || self.upkeep_failed => {
                        self.upkeep_failed = false;
                        self.works(now);
                    }
                    Ok(()) => {}
                    Err(error) => {
                        self.upkeep_failed = true;
                        self.fails(&error, now);
                        if matches!(error, SpoolError::Gone) {
                            self.leave_folder(now);
                        }
                    }
                }
            }
            _ => return false,
        }
        true
    }

    /// Notes that the spool cannot be used now.
    pub(super) fn fails(&mut self, error: &SpoolError, now: Moment) {
        if self.unusable_since.is_none() {
            self.tell_degraded(error, "tapster tries the spool again every second", now);
        }
        let since = *self.unusable_since.get_or_insert(now.instant);
        // A fault that is over soon is found out soon.
        let lasts = now.instant.saturating_duration_since(since);
        self.retry_at = Some(now.instant + (lasts / RETRY_STEPS).clamp(RETRY_PAUSE_MIN, RETRY_PAUSE));
    }

    /// Notes that the spool can be used.
    pub(super) fn works(&mut self, now: Moment) {
        self.retry_at = None;
        let (unusable, short) = (self.unusable_since.take(), self.short_of_disk.take());
        if (unusable.is_some() || short.is_some())
            && let Some(left_out) = self.account.log.admit(OutputEvent::SpoolWorks, "", now.instant)
        {
            info!(output = self.config.output, left_out, "the spool can be used again");
        }
    }

    fn tell_degraded(&self, error: &dyn Display, what_next: &str, now: Moment) {
        if let Some(left_out) = self.account.log.admit(OutputEvent::SpoolFailed, "", now.instant) {
            let output = &self.config.output;
            error!(output, left_out, "{error}; frames wait in memory alone, and {what_next}");
        }
    }

    /// Notes that a batch was not stored, or not without a loss, if the disk is the reason and not a limit of the spool.
    pub(super) fn look_for_short_disk(&mut self, first: &FrameBatch, now: Moment) {
        let Some(len) = self.spool.as_ref().and_then(|spool| spool.kept_out_by_disk(first)) else {
            return;
        };
        if self.short_of_disk.replace((now.instant + RETRY_PAUSE, len)).is_some() {
            return;
        }
        let SpoolSettings { folder, config } = &self.config.settings;
        let (folder, min_free) = (folder.display(), config.min_free);
        let (words, what_next) = match self.spool.as_ref().and_then(Spool::disk_refusal) {
            Some(error) => (
                format!("the disk of the spool {folder} takes no more, although it shows room: {error}"),
                "tapster asks the disk again every second: free space, or raise the quota",
            ),
            None => (
                format!(
                    "the disk of the spool {folder} has no room: min_free keeps {min_free} bytes of it free"
                ),
                "tapster stores again when it has room: free space, or lower `min_free`",
            ),
        };
        self.tell_degraded(&words, what_next, now);
    }

    /// Looks whether the disk has room again.
    pub(super) fn look_for_room_on_disk(&mut self, now: Moment) {
        let Some((at, len)) = &mut self.short_of_disk else { return };
        *at = now.instant + RETRY_PAUSE;
        let has_room = self.spool.as_ref().is_some_and(|spool| spool.disk_has_room_for(*len));
        // Where the spool has failed in another way, its retry says when it works.
        if has_room && self.retry_at.is_none() {
            self.works(now);
        }
    }

    /// Whether the spool is there and was not found unwritable a moment ago.
    pub(super) fn may_store(&self) -> bool {
        self.spool.is_some() && self.retry_at.is_none()
    }

    pub(super) fn show_degraded(&self) {
        let degraded = self.unusable_since.is_some()
            || self.short_of_disk.is_some()
            || self.outgoing.read_at().is_some();
        self.account.spool().degraded.store(degraded, Relaxed);
    }

    /// Tells if the clock was set.
    pub(super) fn tell_clock_step(&mut self) {
        let step = self.spool.as_mut().map_or(0, Spool::poll_clock_step);
        if step != 0 {
            let (output, by) = (&self.config.output, Duration::from_nanos(step.unsigned_abs()));
            let way = if step > 0 { "forward" } else { "back" };
            warn!(
                output,
                "the clock was set {way} by {by:.0?}; frames in the spool are as old as they were before"
            );
        }
    }
}

/// After the spool could not be opened, or written to.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The same at first: later it is this part of the time for which it has failed.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);
const RETRY_STEPS: u32 = 20;
