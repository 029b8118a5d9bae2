//! `tapster doctor`: what this host allows, and how to allow more.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::io::Write;
use std::process::ExitCode;
use std::thread::available_parallelism;

use rustix::process::Resource;
use rustix::process::getrlimit;
use rustix::system::uname;
use rustix::thread::sched_getaffinity;
use tapster::config::units::format_size;
use tapster::input::InputConfig;
use tapster::transport::backend::probe;

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

fn io_uring() -> Finding {
    match probe() {
        Ok(()) => Finding {
            subject: "io_uring",
            found: "allowed; `--backend auto` takes io_uring".to_owned(),
            mend: Vec::new(),
        },
        Err(reason) => {
            let disabled = read_number("/proc/sys/kernel/io_uring_disabled");
            let mend = allow_io_uring(disabled, seccomp_mode(), &reason);
            let reason = reason.strip_prefix("io_uring ").unwrap_or(&reason);
            let found = format!("{reason}; `--backend auto` takes epoll, which does the same work");
            Finding { subject: "io_uring", found, mend: mend.iter().map(|line| (*line).to_owned()).collect() }
        }
    }
}

/// How to get a ring: `disabled` is `kernel.io_uring_disabled`, `seccomp` the mode in `/proc/self/status`.
fn allow_io_uring(disabled: Option<u64>, seccomp: Option<u64>, reason: &str) -> &'static [&'static str] {
    match (disabled, seccomp) {
        (Some(2), _) => &["sysctl -w kernel.io_uring_disabled=0 (to stay: a file in /etc/sysctl.d)"],
        (Some(1), _) => &[
            "sysctl -w kernel.io_uring_disabled=0 (to stay: a file in /etc/sysctl.d)",
            "or put the group of tapster into kernel.io_uring_group",
        ],
        _ if reason.contains("ENOMEM") => &["systemd: LimitMEMLOCK=infinity; docker: --ulimit memlock=-1"],
        _ if reason.contains("EINVAL") => &["a kernel of 6.0 or later"],
        (_, Some(2)) => &[
            "docker, podman: --security-opt seccomp=PROFILE.json, which is the default profile with \
             io_uring_setup, io_uring_enter and io_uring_register added",
            "Kubernetes: securityContext.seccompProfile of type Localhost with such a profile",
            "systemd: SystemCallFilter=@aio, which has them",
        ],
        _ if reason.contains("ENOSYS") => &["a kernel of 6.0 or later with CONFIG_IO_URING"],
        _ => &["look for a denial by a security module: ausearch -m avc, or journalctl -k"],
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
    fn what_blocks_io_uring_decides_what_mends_it() {
        for (disabled, seccomp, reason, mend) in [
            (Some(2), Some(2), "EPERM", "kernel.io_uring_disabled=0"),
            (Some(1), Some(0), "EPERM", "kernel.io_uring_group"),
            (Some(0), Some(2), "EPERM", "seccomp=PROFILE.json"),
            (None, Some(2), "ENOSYS", "seccomp=PROFILE.json"),
            (None, Some(0), "ENOSYS", "CONFIG_IO_URING"),
            (None, None, "ENOMEM", "LimitMEMLOCK"),
            (Some(0), Some(2), "EINVAL", "6.0"),
            (Some(0), Some(0), "EPERM", "security module"),
        ] {
            let lines = allow_io_uring(disabled, seccomp, reason);
            assert!(lines.iter().any(|line| line.contains(mend)), "{lines:?}");
        }
    }
}
