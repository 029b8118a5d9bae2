//! `tapster doctor`: what this host allows, and how to allow more.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::io::Write;
use std::process::ExitCode;
use std::thread::available_parallelism;

use io_uring::IoUring;
use rustix::io::Errno;
use rustix::process::Resource;
use rustix::process::getrlimit;
use rustix::system::uname;
use rustix::thread::sched_getaffinity;
use tapster::config::units::format_size;
use tapster::input::InputConfig;

use crate::commands::CommandError;

/// One thing looked at.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    subject: &'static str,
    found: String,
    /// What to do about it; empty if all is well.
    mend: Vec<String>,
}

/// Looks at this host and prints what it found.
pub(crate) fn doctor() -> Result<ExitCode, CommandError> {
    let findings = [
        io_uring(),
        buffer("send buffers", "net.core.wmem_max"),
        buffer("receive buffers", "net.core.rmem_max"),
        descriptors(),
        memory_lock(),
        processors(),
    ];
    let mut text = format!("kernel {}\n", uname().release().to_string_lossy());
    for Finding { subject, found, mend } in &findings {
        let mark = if mend.is_empty() { "ok  " } else { "low " };
        writeln!(text, "{mark} {subject}: {found}").expect("a String takes every line");
        for line in mend {
            writeln!(text, "       -> {line}").expect("a String takes every line");
        }
    }
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| CommandError::Failed(format!("stdout: {error}")))?;
    Ok(ExitCode::SUCCESS)
}

/// Sets up a ring, as the relay would.
fn probe() -> Result<(), Errno> {
    IoUring::new(2).map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn io_uring() -> Finding {
    let disabled = read_number("/proc/sys/kernel/io_uring_disabled");
    match probe() {
        Ok(()) => Finding {
            subject: "io_uring",
            found: "allowed; `--backend auto` takes uring".to_owned(),
            mend: Vec::new(),
        },
        Err(errno) => explain(errno, disabled, seccomp_mode()),
    }
}

/// Why there is no ring: `disabled` is `kernel.io_uring_disabled`, `seccomp` the mode in `/proc/self/status`.
fn explain(errno: Errno, disabled: Option<u64>, seccomp: Option<u64>) -> Finding {
    let (reason, mend): (&str, &[&str]) = match (errno, disabled, seccomp) {
        (Errno::PERM, Some(2), _) => (
            "switched off for everybody by kernel.io_uring_disabled = 2",
            &["sysctl -w kernel.io_uring_disabled=0 (to stay: a file in /etc/sysctl.d)"],
        ),
        (Errno::PERM, Some(1), _) => (
            "allowed to privileged users only by kernel.io_uring_disabled = 1",
            &[
                "sysctl -w kernel.io_uring_disabled=0 (to stay: a file in /etc/sysctl.d)",
                "or put the group of tapster into kernel.io_uring_group",
            ],
        ),
        (Errno::PERM | Errno::NOSYS | Errno::ACCESS, _, Some(2)) => (
            "blocked by a seccomp filter, as containers have it by default",
            &[
                "docker, podman: --security-opt seccomp=PROFILE.json, the default profile with io_uring_setup, \
                 io_uring_enter and io_uring_register added",
                "Kubernetes: securityContext.seccompProfile of type Localhost with such a profile",
                "systemd: SystemCallFilter=@aio, which has them",
            ],
        ),
        (Errno::PERM | Errno::ACCESS, ..) => (
            "refused, maybe by a security module such as SELinux or AppArmor",
            &["look for a denial in the audit log: ausearch -m avc, or journalctl -k"],
        ),
        (Errno::NOSYS, ..) => ("not in this kernel", &["a kernel of 5.19 or later with CONFIG_IO_URING"]),
        (Errno::NOMEM, ..) => {
            ("out of locked memory", &["systemd: LimitMEMLOCK=infinity; docker: --ulimit memlock=-1"])
        }
        (Errno::MFILE | Errno::NFILE, ..) => ("out of descriptors", &["see below"]),
        _ => ("refused", &["a kernel of 5.19 or later"]),
    };
    Finding {
        subject: "io_uring",
        found: format!("{reason} ({errno}); `--backend auto` takes epoll, which does the same work"),
        mend: mend.iter().map(|line| (*line).to_owned()).collect(),
    }
}

fn seccomp_mode() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim().parse().ok()
}

/// Large socket buffers save wake-ups; the kernel caps what a process may ask for.
fn buffer(subject: &'static str, key: &str) -> Finding {
    let Some(bytes) = read_number(&format!("/proc/sys/{}", key.replace('.', "/"))) else {
        return Finding { subject, found: format!("{key} cannot be read"), mend: Vec::new() };
    };
    let mut mend = Vec::new();
    if bytes < BUFFER_WANTED {
        mend.push(format!("sysctl -w {key}={BUFFER_WANTED} (to stay: a file in /etc/sysctl.d)"));
    }
    Finding { subject, found: format!("{key} allows {}", format_size(bytes)), mend }
}

/// `tapster run` raises the soft limit by itself, so the hard one counts.
fn descriptors() -> Finding {
    let wanted = InputConfig::default().connections_max as u64 + DESCRIPTORS_BESIDE;
    let limit = getrlimit(Resource::Nofile).maximum;
    let mut mend = Vec::new();
    if limit.is_some_and(|limit| limit < wanted) {
        mend.push(format!("systemd: LimitNOFILE={wanted}; docker: --ulimit nofile={wanted}"));
        mend.push("or lower `connections_max` of the inputs".to_owned());
    }
    let limit = limit.map_or("no limit".to_owned(), |limit| format!("at most {limit}"));
    Finding {
        subject: "descriptors",
        found: format!("{limit}; {wanted} serve one input on its defaults"),
        mend,
    }
}

/// Before 5.12 the memory of rings was counted against this limit.
fn memory_lock() -> Finding {
    let limit = getrlimit(Resource::Memlock).maximum;
    let mut mend = Vec::new();
    if limit.is_some_and(|limit| limit < MEMLOCK_WANTED) && kernel_before(5, 12) {
        mend.push("systemd: LimitMEMLOCK=infinity; docker: --ulimit memlock=-1".to_owned());
    }
    let limit = limit.map_or("no limit".to_owned(), format_size);
    Finding { subject: "locked memory", found: limit, mend }
}

fn processors() -> Finding {
    let workers = available_parallelism().map_or(1, usize::from);
    let affinity =
        sched_getaffinity(None).map_or_else(|_| "unknown".to_owned(), |set| set.count().to_string());
    let quota = fs::read_to_string("/sys/fs/cgroup/cpu.max").unwrap_or_default();
    let quota = match quota.split_whitespace().collect::<Vec<_>>()[..] {
        [quota, period] if quota != "max" => format!("{quota} of every {period} µs"),
        _ => "none".to_owned(),
    };
    let found = format!("{affinity} in the affinity mask, CPU quota {quota}: `workers = 0` starts {workers}");
    Finding { subject: "processors", found, mend: Vec::new() }
}

fn kernel_before(major: u32, minor: u32) -> bool {
    let uname = uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (major, minor)
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Unix sockets hold 208 KiB by default: writer and reader wake each other more often than they need to.
const BUFFER_WANTED: u64 = 1 << 20;
/// Rings, listeners, outputs, the log.
const DESCRIPTORS_BESIDE: u64 = 240;
const MEMLOCK_WANTED: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_told_apart_and_mended() {
        for (errno, disabled, seccomp, reason) in [
            (Errno::PERM, Some(2), Some(2), "kernel.io_uring_disabled = 2"),
            (Errno::PERM, Some(1), Some(0), "kernel.io_uring_disabled = 1"),
            (Errno::PERM, Some(0), Some(2), "seccomp"),
            (Errno::NOSYS, None, Some(2), "seccomp"),
            (Errno::NOSYS, None, Some(0), "not in this kernel"),
            (Errno::PERM, None, Some(0), "security module"),
            (Errno::NOMEM, None, None, "locked memory"),
        ] {
            let finding = explain(errno, disabled, seccomp);
            assert!(finding.found.contains(reason) && !finding.mend.is_empty(), "{finding:?}");
        }
    }
}
