//! Paths of sockets that pass no link of a stranger.
//!
//! A link in a folder that others can write may have been put there by anybody, to have frames delivered to another socket,
//! or a socket bound in another folder. The kernel refuses such links in sticky folders alone, and only where
//! `fs.protected_symlinks` is set.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

/// Looks at every part of a path. Where a part cannot be looked at, whoever uses the path learns why.
///
/// # Errors
/// A part is a link in a folder that everybody can write, or a link of another user in a folder that a group can write.
pub(super) fn refuse_foreign_links(path: &Path) -> io::Result<()> {
    let mut folder = PathBuf::new();
    let mut parts: VecDeque<OsString> = path.components().map(part).collect();
    let mut links = 0;
    while let Some(part) = parts.pop_front() {
        let here = folder.join(&part);
        let Ok(metadata) = fs::symlink_metadata(&here) else { return Ok(()) };
        if !metadata.is_symlink() {
            folder = here;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            // The kernel follows no more of them either.
            return Ok(());
        }
        let around = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
        let Ok(around) = fs::metadata(around) else { return Ok(()) };
        let ours = [0, rustix::process::geteuid().as_raw(), around.uid()].contains(&metadata.uid());
        if around.mode() & 0o002 != 0 || around.mode() & 0o020 != 0 && !ours {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} is a link in a folder that others can write, and tapster does not follow it: write the path that the \
                     link leads to, or use a folder that nobody else can write",
                    here.display()
                ),
            ));
        }
        let Ok(target) = fs::read_link(&here) else { return Ok(()) };
        for component in target.components().rev() {
            parts.push_front(self::part(component));
        }
    }
    Ok(())
}

/// Joined to a folder, `/` takes the place of the folder.
fn part(component: Component<'_>) -> OsString {
    component.as_os_str().to_owned()
}

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_is_followed_unless_others_can_write_the_folder_that_it_is_in() {
        let folder = tempfile::tempdir().unwrap();
        let (open, own) = (folder.path().join("open"), folder.path().join("own"));
        fs::create_dir(&open).unwrap();
        fs::create_dir(&own).unwrap();
        symlink(&own, open.join("link")).unwrap();
        symlink(open.join("link"), own.join("there")).unwrap();
        symlink("../own", own.join("itself")).unwrap();
        symlink("loop", own.join("loop")).unwrap();
        let allowed = |path: PathBuf| refuse_foreign_links(&path).is_ok();
        for (mode, followed) in [(0o755, true), (0o777, false), (0o1777, false)] {
            fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
            for path in [
                open.join("link"),
                open.join("link/socket"),
                own.join("there/socket"),
                own.join("itself/there"),
            ] {
                assert_eq!(allowed(path.clone()), followed, "{mode:o}: {}", path.display());
            }
            // No link is on these paths, or none in that folder.
            for path in [
                open.join("socket"),
                own.join("itself/socket"),
                own.join("none/socket"),
                own.join("loop/socket"),
            ] {
                assert!(allowed(path.clone()), "{mode:o}: {}", path.display());
            }
        }
        assert!(allowed("relative.sock".into()) && allowed("/".into()));
    }
}
