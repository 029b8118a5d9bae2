//! Removes the oldest of the files that a pattern made.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use rustix::fs::flock;

use crate::output::file_config::FileConfig;
use crate::output::file_config::Keep;
use crate::output::file_name::is_file_made_by;
use crate::output::file_name::is_made_by;

/// A file that the pattern made.
struct Made {
    modified: SystemTime,
    path: PathBuf,
}

/// Removes the files that `keep` does not keep. Never `present`, nor one that another output writes. Returns those that were
/// removed, and the first that could not be.
pub(crate) fn remove_old(
    config: &FileConfig,
    present: &Path,
) -> (Vec<PathBuf>, Option<(PathBuf, io::Error)>) {
    let Some(keep) = config.keep else { return (Vec::new(), None) };
    let mut made = find(config);
    made.retain(|made| made.path != present);
    // The newest first; of the same age: that of the last name.
    made.sort_by(|a, b| (b.modified, &b.path).cmp(&(a.modified, &a.path)));
    let old = match keep {
        Keep::Files(count) => made.split_off(made.len().min(count.saturating_sub(1))),
        Keep::Age(age) => {
            let now = SystemTime::now();
            made.retain(|made| now.duration_since(made.modified).is_ok_and(|since| since > age));
            made
        }
    };
    let (mut removed, mut failed) = (Vec::new(), None);
    for Made { path, .. } in old {
        if is_being_written(&path) {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failed = failed.or(Some((path, error))),
        }
    }
    (removed, failed)
}

/// Whether another output writes this file, in this process or in another one.
fn is_being_written(path: &Path) -> bool {
    let locked = |file: File| flock(&file, FlockOperation::NonBlockingLockExclusive);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .is_ok_and(|file| locked(file) == Err(rustix::io::Errno::WOULDBLOCK))
}

/// Every file that the pattern made.
fn find(config: &FileConfig) -> Vec<Made> {
    let (root, pattern) = match config.pattern.strip_prefix('/') {
        Some(pattern) => (PathBuf::from("/"), pattern),
        None => (PathBuf::new(), config.pattern.as_str()),
    };
    let mut parts = pattern.split('/').filter(|part| !part.is_empty());
    let Some(last) = parts.next_back() else { return Vec::new() };
    let mut folders = vec![root];
    for part in parts {
        folders = folders.iter().flat_map(|folder| folders_within(folder, part)).collect();
    }
    let suffix = config.rotate.partial_suffix.as_deref();
    let made = folders.iter().flat_map(|folder| entries(folder)).filter_map(|entry| {
        let found = entry.path.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
        let made = is_file_made_by(last, &entry.name, suffix);
        made.then_some(Made { modified: found.modified().ok()?, path: entry.path })
    });
    made.collect()
}

/// The folders within `folder` that this part of a pattern made. Links are not followed where the pattern has a choice.
fn folders_within(folder: &Path, part: &str) -> Vec<PathBuf> {
    if !part.contains('%') {
        return vec![folder.join(part)];
    }
    let made = entries(folder).filter(|entry| is_made_by(part, &entry.name));
    made.map(|entry| entry.path)
        .filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir()))
        .collect()
}

struct Entry {
    name: String,
    path: PathBuf,
}

fn entries(folder: &Path) -> impl Iterator<Item = Entry> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = folder.to_owned();
    fs::read_dir(here).into_iter().flatten().filter_map(move |entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        Some(Entry { path: folder.join(&name), name })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::output::file_config::Rotate;

    fn config(folder: &Path, pattern: &str, keep: Keep) -> FileConfig {
        let pattern = format!("{}/{pattern}", folder.display());
        let rotate = Rotate { partial_suffix: Some(".part".to_owned()), ..Rotate::default() };
        FileConfig { keep: Some(keep), rotate, ..FileConfig::new(pattern) }
    }

    /// Makes files of these names, each an hour younger than the one before it; the last one is an hour old.
    fn make(folder: &Path, names: &[&str]) {
        for (index, name) in names.iter().enumerate() {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let hours = (names.len() - index) as u64;
            let file = File::create(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        }
    }

    fn remove(folder: &Path, config: &FileConfig, present: &str) -> Vec<String> {
        let (removed, failed) = remove_old(config, &folder.join(present));
        assert!(failed.is_none());
        let names = removed.iter().map(|path| path.strip_prefix(folder).unwrap().display().to_string());
        names.collect()
    }

    #[test]
    fn the_oldest_files_of_the_pattern_go_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make(
            folder,
            &[
                "2025/01.fstrm",
                "2025/02.fstrm",
                "2025/x.fstrm",
                "2026/01.fstrm",
                "2026/01.fstrm.1",
                "2026/01.fstrm.2.part",
            ],
        );
        std::os::unix::fs::symlink("/etc/passwd", folder.join("2025/03.fstrm")).unwrap();
        let config = |keep| config(folder, "%Y/%m.fstrm", keep);
        assert_eq!(remove(folder, &config(Keep::Files(5)), "2026/01.fstrm.2.part"), [""; 0]);
        assert_eq!(remove(folder, &config(Keep::Files(4)), "2026/01.fstrm.2.part"), ["2025/01.fstrm"]);
        let age = Keep::Age(Duration::from_secs(9000));
        let mut removed = remove(folder, &config(age), "2026/01.fstrm.2.part");
        removed.sort();
        assert_eq!(removed, ["2025/02.fstrm", "2026/01.fstrm"]);
        assert_eq!(remove(folder, &config(Keep::Files(1)), "2026/01.fstrm.2.part"), ["2026/01.fstrm.1"]);
        assert!(folder.join("2025/x.fstrm").exists() && folder.join("2026/01.fstrm.2.part").exists());
        assert!(folder.join("2025/03.fstrm").is_symlink());
    }

    #[test]
    fn a_file_that_another_output_writes_stays() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make(folder, &["01.fstrm", "02.fstrm"]);
        let other = File::open(folder.join("01.fstrm")).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        let config = config(folder, "%m.fstrm", Keep::Files(1));
        assert_eq!(remove(folder, &config, "03.fstrm"), ["02.fstrm"]);
        drop(other);
        assert_eq!(remove(folder, &config, "03.fstrm"), ["01.fstrm"]);
    }
}
