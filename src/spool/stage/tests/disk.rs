//! What the disk of a storm does: it fails, fills up, and hangs, and then the stand-in looks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::MutexGuard;
use std::time::Duration;

use crate::spool::stage::tests::Life;
use crate::spool::stage::tests::Storm;
use crate::spool::stage::tests::frames::frames_of;

impl Storm {
    pub(super) fn toss_disk(&mut self) {
        if self.happens(self.weather.disk_fails) {
            self.folder.fail_after(self.random.u64(0..4), self.random.u64(1..12));
        } else if self.happens(30) {
            self.folder.heal();
        }
        if self.happens(self.weather.disk_fills) {
            let bytes = self.folder.bytes() + self.random.u64(0..20_000);
            self.limit_disk(Some(bytes));
            self.totals.count("disk_full", 1);
        } else if self.happens(10) {
            self.limit_disk(None);
        }
    }

    /// Limits the disk, as the disk shows or by a quota.
    pub(super) fn limit_disk(&self, bytes: Option<u64>) {
        if self.weather.quota {
            self.folder.quota(bytes);
        } else {
            self.folder.limit(bytes);
        }
    }

    /// During each operation of the disk the stand-in looks, as if much time had passed.
    pub(super) fn let_disk_hang(&mut self, life: &Life) {
        let hangs = self.happens(self.weather.disk_hangs);
        let (entrance, later) =
            (Arc::clone(&life.stage.entrance), self.now.instant + Duration::from_secs(3600));
        let back = Arc::clone(&life.back);
        let stood_in = Arc::clone(&self.stood_in);
        self.folder.meanwhile(hangs.then_some(Arc::new(move || {
            let (before, arrived) = (back.budget().charged(), frames_of(&entrance.arrived()));
            entrance.stand_in(later, true);
            if back.budget().charged() > before {
                let mut stood_in = stood_in.lock().unwrap();
                stood_in.passed += 1;
                stood_in.copied.extend(arrived);
            }
        })));
    }

    pub(super) fn stood_in(&self) -> MutexGuard<'_, StoodIn> {
        self.stood_in.lock().unwrap()
    }
}

/// What the stand-in has done.
#[derive(Debug, Default)]
pub(super) struct StoodIn {
    /// How often it passed something on.
    pub(super) passed: u64,
    /// Frames that the stage was storing meanwhile. A disk that fails keeps this copy of them, and they are stored once more.
    pub(super) copied: BTreeSet<u64>,
}
