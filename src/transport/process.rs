//! Who connected to a listener: an address, or a process of this host.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::LazyLock;

use tokio::net::unix::UCred;

use crate::transport::local_id::entries;

/// The peer of an accepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AcceptedPeer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a unix socket; `None` where the kernel does not say who.
    Unix(Option<Process>),
}

/// A process that has connected to a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number; `None` for a process outside of our PID namespace.
    pub(crate) pid: Option<i32>,
    /// The number of its user.
    pub(crate) uid: u32,
    /// The number of its primary group.
    pub(crate) gid: u32,
    /// The name of its user, where `/etc/passwd` has it.
    pub(crate) user: Option<String>,
    /// The name of its program: any bytes, at most 15.
    pub(crate) program: Option<Vec<u8>>,
}

impl Process {
    pub(super) fn of(credentials: UCred) -> Self {
        Self::new(credentials.pid(), credentials.uid(), credentials.gid())
    }

    pub(super) fn of_credentials(credentials: &rustix::net::UCred) -> Self {
        Self::new(Some(credentials.pid.as_raw_pid()), credentials.uid.as_raw(), credentials.gid.as_raw())
    }

    fn new(pid: Option<i32>, uid: u32, gid: u32) -> Self {
        let pid = pid.filter(|pid| *pid > 0);
        Self { pid, uid, gid, user: USERS.get(&uid).cloned(), program: pid.and_then(program) }
    }
}

/// The name that a process has now. `/proc` is memory: this waits for no disk.
fn program(pid: i32) -> Option<Vec<u8>> {
    let mut name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.pop_if(|last| *last == b'\n');
    Some(name)
}

/// Reads the names of users, so that no worker has to wait for the disk later.
pub(super) fn read_users() {
    LazyLock::force(&USERS);
}

/// Names of users by their number, as `/etc/passwd` had them at first.
static USERS: LazyLock<HashMap<u32, String>> = LazyLock::new(|| {
    let text = fs::read("/etc/passwd").unwrap_or_default();
    users(&String::from_utf8_lossy(&text))
});

fn users(passwd: &str) -> HashMap<u32, String> {
    // The first name of a number is its name.
    entries(passwd).rev().map(|(name, uid)| (uid, name.escape_debug().to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_their_first_name_and_lines_that_are_none_are_passed_over() {
        let users =
            users("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\n\n# bind:x:\nbind:x:53:53::/:/bin/false\n");
        assert_eq!(users, HashMap::from([(0, "root".to_owned()), (53, "bind".to_owned())]));
    }

    #[test]
    fn a_process_has_the_name_that_proc_says() {
        let name = program(std::process::id().cast_signed()).unwrap();
        assert!(!name.is_empty() && name.len() <= 15 && !name.contains(&b'\n'), "{name:?}");
        assert_eq!(program(-1), None);
    }
}
