//! Child processes of a benchmark: pinned, timed, and ended.

use std::ffi::OsStr;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::process::Child;
use std::process::ChildStderr;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::str::FromStr;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::ValueEnum;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use rustix::thread::CpuSet;
use rustix::thread::sched_getaffinity;
use rustix::thread::sched_setaffinity;
use tapster::transport::Address;

/// Which CPUs the measured process and the load run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) relay: Vec<usize>,
    pub(crate) load: Vec<usize>,
}

impl Pin {
    /// One CPU for the relay and one for the load, where there are two.
    pub(crate) fn default_of_machine() -> Option<Self> {
        let allowed = sched_getaffinity(None).ok()?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        Some(Self { relay: vec![cpus.next()?], load: vec![cpus.next()?] })
    }
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(relay, load)| Some((cpu_list(relay)?, cpu_list(load)?)));
        let (relay, load) =
            parsed.ok_or_else(|| format!("`{text}`: write RELAYCPUS:LOADCPUS, as in 0:1 or 0-1:2,3"))?;
        Ok(Self { relay, load })
    }
}

/// How the scheduler treats the processes of a benchmark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Class {
    /// As any other process
    #[default]
    Normal,
    /// SCHED_FIFO, ahead of everything else on its CPUs; asks for the privilege, and for `chrt`
    Fifo,
}

impl Class {
    /// A command that runs in this class.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Normal => Command::new(program),
            Self::Fifo => {
                let mut command = Command::new("chrt");
                // It becomes the program: the process that is measured has its id.
                command.args(["--fifo", FIFO_PRIORITY]).arg(program);
                command
            }
        }
    }
}

/// `0,2-4` as numbers.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CpuSet::MAX_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// A child process, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Option<Child>,
    /// Kept open: a process that cannot write its errors fails for that reason.
    stderr: Option<BufReader<ChildStderr>>,
}

impl Process {
    /// Starts a command on the given CPUs, or on any.
    pub(crate) fn start(command: &mut Command, cpus: Option<&[usize]>) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null());
        // A child inherits the affinity of the thread that starts it, and its threads that of the child.
        let before = sched_getaffinity(None)?;
        if let Some(cpus) = cpus {
            let mut set = CpuSet::new();
            cpus.iter().for_each(|&cpu| set.set(cpu));
            sched_setaffinity(None, &set).with_context(|| format!("cannot run on CPUs {cpus:?}"))?;
        }
        let child = command.spawn();
        sched_setaffinity(None, &before)?;
        let mut child = child.with_context(|| format!("cannot start {name}"))?;
        let stderr = child.stderr.take().map(BufReader::new);
        Ok(Self { name, child: Some(child), stderr })
    }

    /// The addresses that a sink says it listens on.
    pub(crate) fn addresses(&mut self, count: usize) -> Result<Vec<Address>> {
        let stderr = self.stderr.as_mut().context("standard error is piped")?;
        let mut addresses = Vec::with_capacity(count);
        for _ in 0..count {
            let mut line = String::new();
            stderr.read_line(&mut line)?;
            let address = line.trim().strip_prefix("listening on ");
            addresses.push(address.with_context(|| format!("the sink says: {line}"))?.parse()?);
        }
        Ok(addresses)
    }

    /// CPU time so far, user and system, of all its threads, those that have ended included; also after its end.
    pub(crate) fn cpu_time(&mut self) -> Result<Duration> {
        let pid = i32::try_from(self.child().id())?;
        let clock = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid))?;
        let now: TimeSpec = clock.now().with_context(|| format!("CPU time of {}", self.name))?;
        Ok(now.into())
    }

    /// Most memory that it had resident at a time, in bytes; `None` if it has ended already.
    pub(crate) fn memory_peak(&mut self) -> Option<u64> {
        self.memory("VmHWM:")
    }

    /// Memory that it has resident now, in bytes; `None` if it has ended already.
    pub(crate) fn memory_resident(&mut self) -> Option<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&mut self, field: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child().id())).ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?;
        Some(kib.parse::<u64>().ok()? << 10)
    }

    /// Waits until it listens.
    pub(crate) fn await_listening(&mut self, address: &Address) -> Result<()> {
        let give_up_at = Instant::now() + START_PATIENCE;
        while !is_listening(address)? {
            if let Some(status) = self.child().try_wait()? {
                bail!("{} ended before it listened on {address}: {status}", self.name);
            }
            if Instant::now() > give_up_at {
                bail!("{} does not listen on {address} after {START_PATIENCE:?}", self.name);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits for its end, and takes what it wrote.
    pub(crate) fn output(mut self) -> Result<Output> {
        let mut child = self.child.take().expect("waited for once");
        child.stderr = self.stderr.take().map(BufReader::into_inner);
        child.wait_with_output().with_context(|| format!("waiting for {}", self.name))
    }

    /// Ends it with SIGTERM; kills it if that takes too long.
    pub(crate) fn terminate(mut self) -> Result<()> {
        kill_process(Pid::from_child(self.child()), Signal::TERM)?;
        let give_up_at = Instant::now() + END_PATIENCE;
        while self.child().try_wait()?.is_none() && Instant::now() < give_up_at {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("not waited for yet")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asks the kernel, not the process: a connection to try would be one more connection to serve.
fn is_listening(address: &Address) -> Result<bool> {
    match address {
        Address::Unix(path) => {
            let bound = path.to_string_lossy();
            let table = fs::read_to_string("/proc/net/unix")?;
            let listens = |line: &str| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                // HAProxy binds to another name beside it, and renames.
                let same = fields.get(7).is_some_and(|name| name.starts_with(&*bound));
                fields.get(3) == Some(&UNIX_LISTENING) && same
            };
            Ok(path.exists() && table.lines().any(listens))
        }
        Address::Tcp { port, .. } | Address::Tls { port, .. } => {
            let port = format!(":{port:04X}");
            let listens = |line: &str| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                fields.get(1).is_some_and(|local| local.ends_with(&port))
                    && fields.get(3) == Some(&TCP_LISTENING)
            };
            let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
            Ok(tables
                .iter()
                .filter_map(|table| fs::read_to_string(table).ok())
                .any(|table| table.lines().any(listens)))
        }
        Address::Systemd(_) => Ok(false),
    }
}

/// `__SO_ACCEPTCON` in the flags.
const UNIX_LISTENING: &str = "00010000";
/// `TCP_LISTEN` as a state.
const TCP_LISTENING: &str = "0A";
const FIFO_PRIORITY: &str = "10";
const START_PATIENCE: Duration = Duration::from_secs(10);
const END_PATIENCE: Duration = Duration::from_secs(12);

#[cfg(test)]
mod tests {
    use super::*;

    use crate::socket::Listener;

    #[test]
    fn pins_take_lists_and_ranges() {
        let pin: Pin = "0,2-4:1".parse().unwrap();
        assert_eq!((pin.relay, pin.load), (vec![0, 2, 3, 4], vec![1]));
        for text in ["", "0", "0:", ":1", "a:b", "2-1:0", "99999:0"] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
    }

    #[test]
    fn listening_sockets_are_seen_without_connecting() {
        let folder = tempfile::tempdir().unwrap();
        let unix = Address::Unix(folder.path().join("a.sock"));
        assert!(!is_listening(&unix).unwrap());
        let _unix = Listener::bind(&unix).unwrap();
        assert!(is_listening(&unix).unwrap());
        let tcp = Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(is_listening(tcp.address()).unwrap());
    }

    #[test]
    fn a_process_tells_its_cpu_time_and_memory_and_ends() {
        let mut process = Process::start(Command::new("sleep").arg("60"), None).unwrap();
        assert!(process.cpu_time().unwrap() < Duration::from_secs(1));
        let resident = process.memory_resident().unwrap();
        assert!(resident > 0 && process.memory_peak().unwrap() >= resident);
        process.terminate().unwrap();

        let mut ended = Process::start(&mut Command::new("true"), None).unwrap();
        while ended.memory_peak().is_some() {
            thread::yield_now();
        }
        assert!(ended.cpu_time().unwrap() > Duration::ZERO);
    }
}
