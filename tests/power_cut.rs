//! The spool on a file system that loses its power: an ext4 image, mounted over a loop device, is shut down without
//! flushing its log, 200 times and more. What a sync has promised is there; what is not is what was not synced yet.
//!
//! Needs root and loop devices, and says so where they are missing.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use tapster::protocol::FrameBatch;
use tapster::spool::Moment;
use tapster::spool::Spool;
use tapster::spool::SpoolConfig;
use tapster::spool::SyncPolicy;

#[path = "common/skips.rs"]
mod skips;

use skips::Cause;
use skips::skip;

/// For each policy.
const CUTS: u32 = 110;

const INTERVAL: Duration = Duration::from_millis(100);

#[test]
fn a_power_cut_loses_nothing_that_was_appended_with_sync_batch() {
    cut_power_many_times(SyncPolicy::Batch);
}

#[test]
fn a_power_cut_loses_no_more_than_the_interval() {
    cut_power_many_times(SyncPolicy::Interval(INTERVAL));
}

fn cut_power_many_times(sync: SyncPolicy) {
    let Some(image) = Image::new() else { return };
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut clock = Moment::now();
    let mut life = Life::default();
    let mut lost_in_all = 0;
    for cut in 0..CUTS {
        let disk = image.mount();
        let config = SpoolConfig { max: 16 << 20, min_free: 0, sync, ..SpoolConfig::default() };
        let (mut spool, _) = Spool::open(&disk.path.join("spool"), config, None, clock).expect("it opens");
        let missing = life.read_back(&mut spool, clock);
        if sync == SyncPolicy::Batch {
            assert_eq!(missing, 0, "lost by cut {cut}");
        }
        lost_in_all += missing;
        life.go_on(&mut spool, &mut clock, &mut random);
        disk.cut_power(spool);
    }
    println!("{CUTS} cuts with {sync:?}: {} frames appended, {lost_in_all} lost", life.next);
    if sync != SyncPolicy::Batch {
        assert!(lost_in_all > 0, "the cuts did not cut anything");
    }
}

/// What was done with the spool, over all cuts. Frames are numbered.
#[derive(Default)]
struct Life {
    next: u64,
    /// Frames from this number on were not acknowledged.
    acknowledged: u64,
    /// Number and moment of the frames that were appended before the last cut, oldest first.
    appended: Vec<(u64, Instant)>,
    /// When the power was cut.
    cut_at: Option<Instant>,
}

impl Life {
    /// Reads everything after a cut. Returns how many frames are gone: those of the last interval at most.
    fn read_back(&mut self, spool: &mut Spool, now: Moment) -> u64 {
        let mut read = Vec::new();
        while let Some((batch, position)) = spool.next(now).expect("a sound disk") {
            for payload in batch.payloads() {
                let (number, rest) = payload.split_first_chunk().expect("a numbered frame");
                assert!(rest.iter().all(|byte| *byte == number[7]), "a frame is as it was");
                read.push(u64::from_be_bytes(*number));
            }
            spool.acknowledge(position.after(batch.frames()), now);
        }
        assert!(read.is_sorted_by(|a, b| a < b), "in order, and once");
        assert_eq!(spool.poll_loss(), None, "a cut is no damage");
        let mut missing = 0;
        for (number, at) in self.appended.drain(..).filter(|(number, _)| *number >= self.acknowledged) {
            if read.binary_search(&number).is_err() {
                missing += 1;
                let age = self.cut_at.expect("there was a cut").duration_since(at);
                assert!(age <= INTERVAL, "frame {number} is gone, {age:?} after it was appended");
            }
        }
        self.acknowledged = self.next;
        missing
    }

    /// Appends for up to half a second of the test's clock, and acknowledges some of it.
    fn go_on(&mut self, spool: &mut Spool, clock: &mut Moment, random: &mut fastrand::Rng) {
        for _ in 0..random.u32(1..50) {
            let frames = random.u64(1..40);
            let payloads = (self.next..self.next + frames).map(|number| {
                let mut payload = number.to_be_bytes().to_vec();
                payload.resize(random.usize(8..1000), number as u8);
                payload
            });
            let batch = FrameBatch::from_payloads(payloads, clock.instant).expect("short payloads");
            let appended = spool.append(&[batch], *clock).expect("a sound disk");
            assert_eq!(appended.positions.len(), 1);
            self.appended.extend((self.next..self.next + frames).map(|number| (number, clock.instant)));
            self.next += frames;
            if random.u8(..8) == 0
                && let Some((batch, position)) = spool.next(*clock).expect("a sound disk")
            {
                let last = batch.payloads().last().expect("a frame");
                let last = u64::from_be_bytes(*last.first_chunk().expect("a numbered frame"));
                spool.acknowledge(position.after(batch.frames()), *clock);
                self.acknowledged = self.acknowledged.max(last + 1);
            }
            let step = Duration::from_millis(random.u64(..20));
            clock.instant += step;
            clock.unix += step.as_nanos() as u64;
            if spool.poll_timeout() <= clock.instant {
                spool.handle_timeout(*clock).expect("a sound disk");
            }
        }
        self.cut_at = Some(clock.instant);
    }
}

/// An ext4 file system in a file.
struct Image {
    folder: tempfile::TempDir,
}

/// The file system, mounted until this is dropped.
struct Mounted {
    path: PathBuf,
}

impl Image {
    /// `None`, and a line that says why, where this host has no such file system.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            skip(Cause::Missing, "a power cut needs root and loop devices");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let image = folder.path().join("image");
        File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("a file of 64 MiB");
        fs::create_dir(folder.path().join("mounted")).expect("a folder");
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        Some(Self { folder })
    }

    fn mount(&self) -> Mounted {
        let path = self.folder.path().join("mounted");
        // The loop device is detached with the last mount.
        run(Command::new("mount").args(["-o", "loop"]).arg(self.folder.path().join("image")).arg(&path));
        Mounted { path }
    }
}

impl Mounted {
    fn cut_power(self, spool: Spool) {
        shut_down(&File::open(&self.path).expect("the mounted folder"));
        drop(spool);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a spool that a failed test has left open does not keep the mount.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.path.display());
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The file system stops at once: nothing in memory, its log neither, comes to the disk any more.
#[allow(unsafe_code)]
fn shut_down(folder: &File) {
    const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    const NOLOGFLUSH: u32 = 2;
    // SAFETY: the kernel reads one u32 through the pointer, and writes nothing there.
    let result = unsafe {
        rustix::ioctl::ioctl(folder, rustix::ioctl::Setter::<EXT4_IOC_SHUTDOWN, u32>::new(NOLOGFLUSH))
    };
    result.expect("ext4 shuts down");
}
