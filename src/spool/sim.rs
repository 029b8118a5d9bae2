//! A folder in memory that forgets, fails and tears on request: for tests of what runs a spool.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use rustix::io::Errno;

use crate::spool::storage::Entry;
use crate::spool::storage::Standing;
use crate::spool::storage::Storage;

/// A folder in memory. Clones are the same folder: a test keeps one while a thread runs the spool in another.
///
/// It keeps apart what was written and what is durable. [`SimFolder::cut_power`] forgets the difference, in whole or in
/// part, as a real disk does: blocks of 512 bytes that were written may or may not be there, names likewise.
#[derive(Clone, Debug, Default)]
pub struct SimFolder(Arc<Mutex<Sim>>);

/// An open file of a [`SimFolder`]: its number, which stays when its name is changed or removed.
pub type SimFile = usize;

#[derive(Debug, Default)]
struct Sim {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    names_durable: BTreeMap<String, usize>,
    /// Operations so far.
    operations: u64,
    /// The operations behind number `.0` fail, `.1` of them.
    fail: Option<(u64, u64)>,
    /// The operations behind this number fail and do nothing.
    dead_after: Option<u64>,
    /// Bytes that all files together may have.
    capacity: Option<u64>,
    /// The same, and nobody sees it before it is reached.
    quota: Option<u64>,
    failures: u64,
    time: u64,
    meanwhile: Meanwhile,
    standing: Option<Standing>,
}

/// What is done during each operation.
#[derive(Clone, Default)]
struct Meanwhile(Option<Arc<dyn Fn() + Send + Sync>>);

impl fmt::Debug for Meanwhile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Meanwhile").field(&self.0.is_some()).finish()
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    modified: u64,
}

impl SimFolder {
    /// An empty folder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `count` operations fail with `EIO` after the next `after` have passed. A write that fails has written half of
    /// its bytes; a sync that fails leaves nothing that a later sync would write, as with a real disk.
    pub fn fail_after(&self, after: u64, count: u64) {
        let mut sim = self.sim();
        sim.fail = Some((sim.operations + after, count));
    }

    /// Lets all operations fail and do nothing after the next `after` have passed: the power is gone, and
    /// [`SimFolder::cut_power`] tells what is left.
    pub fn die_after(&self, after: u64) {
        let mut sim = self.sim();
        sim.dead_after = Some(sim.operations + after);
    }

    /// Nothing fails any more. Returns how many operations have failed until now.
    pub fn heal(&self) -> u64 {
        let mut sim = self.sim();
        (sim.fail, sim.dead_after) = (None, None);
        sim.failures
    }

    /// Calls this during each operation from now on: what others do while a disk takes its time.
    pub fn meanwhile(&self, act: Option<Arc<dyn Fn() + Send + Sync>>) {
        self.sim().meanwhile = Meanwhile(act);
    }

    /// Lets the folder be away or gone.
    pub fn stand(&self, standing: Standing) {
        self.sim().standing = Some(standing);
    }

    /// How many operations have failed until now.
    pub fn failures(&self) -> u64 {
        self.sim().failures
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.sim().operations
    }

    /// Limits the bytes of all files together; writes beyond fail with `ENOSPC`.
    pub fn limit(&self, bytes: Option<u64>) {
        self.sim().capacity = bytes;
    }

    /// Limits the bytes of all files together as a quota does: writes beyond fail with `EDQUOT`, and the disk shows room.
    pub fn quota(&self, bytes: Option<u64>) {
        self.sim().quota = bytes;
    }

    /// The folder as a power cut leaves it: another folder, all of it durable. What was written and not synced is there
    /// or not, by block, as `random` says.
    #[must_use]
    pub fn cut_power(&self, random: &mut fastrand::Rng) -> Self {
        let sim = self.sim();
        // A change of names that was not synced has come to the disk, or has not.
        let names = if random.bool() { &sim.names } else { &sim.names_durable };
        let mut cut = Sim { time: sim.time, ..Sim::default() };
        for (name, &number) in names {
            let Some(content) = sim.files.get(number) else { continue };
            let mut durable = content.durable.clone();
            if random.bool() {
                let len = random.usize(durable.len().min(content.bytes.len())..=content.bytes.len());
                let kept = durable.len();
                durable.resize(len.max(kept), 0);
                for (index, block) in durable.chunks_mut(512).enumerate() {
                    let written = content.bytes.get(index * 512..).unwrap_or_default();
                    let written = written.get(..block.len()).unwrap_or(written);
                    if random.bool() && !written.is_empty() {
                        block.get_mut(..written.len()).unwrap_or_default().copy_from_slice(written);
                    }
                }
            }
            cut.names.insert(name.clone(), cut.files.len());
            cut.files.push(Content { bytes: durable.clone(), durable, modified: content.modified });
        }
        cut.names_durable = cut.names.clone();
        Self(Arc::new(Mutex::new(cut)))
    }

    /// The names in the folder.
    pub fn names(&self) -> Vec<String> {
        self.sim().names.keys().cloned().collect()
    }

    /// What is in a file; `None` where there is none.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let sim = self.sim();
        let content = sim.files.get(*sim.names.get(name)?)?;
        Some(content.bytes.clone())
    }

    /// Puts a durable file into the folder, in place of one of that name.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut sim = self.sim();
        let number = sim.files.len();
        sim.files.push(Content { durable: bytes.clone(), bytes, modified: 0 });
        sim.names.insert(name.to_owned(), number);
        sim.names_durable = sim.names.clone();
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.sim().bytes()
    }

    fn sim(&self) -> MutexGuard<'_, Sim> {
        // A test that failed with the lock held has said so.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation. `Err` where it does nothing, otherwise whether it is to succeed.
    fn begin(&self) -> io::Result<io::Result<()>> {
        let Meanwhile(meanwhile) = self.sim().meanwhile.clone();
        if let Some(act) = meanwhile {
            act();
        }
        let mut sim = self.sim();
        sim.operations += 1;
        let number = sim.operations;
        let dead = sim.dead_after.is_some_and(|after| number > after);
        let fails = sim.fail.is_some_and(|(after, count)| number > after && number - after <= count);
        sim.failures += u64::from(dead || fails);
        let failure = || io::Error::from(Errno::IO);
        if dead { Err(failure()) } else { Ok(if fails { Err(failure()) } else { Ok(()) }) }
    }

    /// Counts an operation that does nothing where it fails.
    fn operate(&self) -> io::Result<()> {
        self.begin()?
    }
}

impl Sim {
    fn bytes(&self) -> u64 {
        self.names
            .values()
            .filter_map(|&number| self.files.get(number))
            .map(|file| file.bytes.len() as u64)
            .sum()
    }

    fn file(&mut self, file: SimFile) -> io::Result<&mut Content> {
        self.files.get_mut(file).ok_or_else(|| Errno::BADF.into())
    }
}

impl Storage for SimFolder {
    type File = SimFile;

    fn standing(&self) -> io::Result<Standing> {
        self.operate()?;
        Ok(self.sim().standing.unwrap_or(Standing::InPlace))
    }

    fn has_name(&self, file: &SimFile, name: &str) -> io::Result<bool> {
        self.operate()?;
        Ok(self.sim().names.get(name) == Some(file))
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.operate()?;
        let sim = self.sim();
        let entries = sim.names.iter().filter_map(|(name, &number)| {
            let content = sim.files.get(number)?;
            let len = content.bytes.len() as u64;
            Some(Entry { name: name.clone(), regular: true, len, modified: content.modified })
        });
        Ok(entries.collect())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        self.operate()?;
        let mut sim = self.sim();
        if sim.names.contains_key(name) {
            return Err(Errno::EXIST.into());
        }
        let number = sim.files.len();
        sim.files.push(Content::default());
        sim.names.insert(name.to_owned(), number);
        Ok(number)
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        self.operate()?;
        self.sim().names.get(name).copied().ok_or_else(|| Errno::NOENT.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operate()?;
        let mut sim = self.sim();
        if sim.names.contains_key(to) {
            return Err(Errno::EXIST.into());
        }
        let number = sim.names.remove(from).ok_or(Errno::NOENT)?;
        sim.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.operate()?;
        self.sim().names.remove(name).map(drop).ok_or_else(|| Errno::NOENT.into())
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.operate()?;
        let mut sim = self.sim();
        sim.names_durable = sim.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let sim = self.sim();
        Ok(sim.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(sim.bytes())))
    }

    fn len(&self, file: &SimFile) -> io::Result<u64> {
        self.operate()?;
        Ok(self.sim().file(*file)?.bytes.len() as u64)
    }

    fn read_at(&self, file: &SimFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.operate()?;
        let mut sim = self.sim();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = sim.file(*file)?.bytes.get(offset..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn write_at(&self, file: &SimFile, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let fate = self.begin()?;
        let mut bytes = Vec::new();
        buffers.iter().for_each(|buffer| bytes.extend_from_slice(buffer));
        if fate.is_err() {
            bytes.truncate(bytes.len() / 2);
        }
        let mut sim = self.sim();
        sim.time += 1;
        let (time, used) = (sim.time, sim.bytes());
        let (capacity, quota) = (sim.capacity.unwrap_or(u64::MAX), sim.quota.unwrap_or(u64::MAX));
        let content = sim.file(*file)?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let growth = (offset + bytes.len()).saturating_sub(content.bytes.len());
        let room = usize::try_from(capacity.min(quota).saturating_sub(used)).unwrap_or(usize::MAX);
        let lacking = growth.saturating_sub(room);
        bytes.truncate(bytes.len().saturating_sub(lacking));
        if bytes.is_empty() && lacking > 0 {
            let errno = if quota < capacity { Errno::DQUOT } else { Errno::NOSPC };
            return fate.and(Err(errno.into()));
        }
        let end = offset + bytes.len();
        if content.bytes.len() == offset {
            content.bytes.extend_from_slice(&bytes);
        } else if content.bytes.len() < end {
            content.bytes.resize(end, 0);
        }
        content.bytes.get_mut(offset..end).unwrap_or_default().copy_from_slice(&bytes);
        content.modified = time;
        fate.map(|()| bytes.len())
    }

    fn reserve(&self, file: &SimFile, len: u64) -> io::Result<()> {
        let mut sim = self.sim();
        let (used, quota) = (sim.bytes(), sim.quota.unwrap_or(u64::MAX));
        let growth = len.saturating_sub(sim.file(*file)?.bytes.len() as u64);
        if used.saturating_add(growth) > quota { Err(Errno::DQUOT.into()) } else { Ok(()) }
    }

    fn truncate(&self, file: &SimFile, len: u64) -> io::Result<()> {
        self.operate()?;
        let mut sim = self.sim();
        sim.file(*file)?.bytes.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        Ok(())
    }

    fn sync(&self, file: &SimFile) -> io::Result<()> {
        let fate = self.begin()?;
        let mut sim = self.sim();
        let content = sim.file(*file)?;
        match fate {
            Ok(()) => content.durable = content.bytes.clone(),
            // The pages are marked clean and lost: what is read is what the disk has.
            Err(_) => content.bytes = content.durable.clone(),
        }
        fate
    }
}
