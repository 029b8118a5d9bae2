//! Programs of others: where they are, what it means that they are not, and how they are run.

use std::env;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tapster::transport::Address;

use super::process::Process;
use super::stream::Transport;
use super::wire::D;
use crate::skips::Cause;
use crate::skips::skip;

/// Turns the absence of a program into a failure.
const REQUIRE: &str = "TAPSTER_REQUIRE_PEERS";

/// The program's path; `None`, said on stderr, where it is not installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found =
        env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|path| path.is_file());
    if found.is_none() {
        absent(program);
    }
    found
}

/// Whether all these programs are installed; says on stderr which are not.
pub(crate) fn all_there(programs: &[&str]) -> bool {
    programs.iter().filter(|program| find(program).is_none()).count() == 0
}

/// Says that a test does nothing here, and fails where that is not allowed.
pub(crate) fn absent(what: &str) {
    let required = env::var_os(REQUIRE).is_some_and(|value| !value.is_empty());
    assert!(!required, "{what} is not installed or not allowed here, and {REQUIRE} is set");
    skip(Cause::Missing, &format!("{what} is not installed or not allowed here"));
}

/// A port that was free a moment ago, for programs that cannot choose one themselves. The kernel gives none of these to those who
/// connect: a port of such a connection is taken for a minute after its end.
pub(crate) fn free_port() -> u16 {
    let is_free = |port: &u16| {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port));
        listener.or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port))).is_ok()
    };
    (0..1000).map(|_| fastrand::u16(16_000..32_000)).find(is_free).expect("a free port")
}

/// An address of this kind that was free a moment ago.
pub(crate) fn free_address(transport: Transport, folder: &Path) -> Address {
    match transport.fresh_address(folder) {
        Address::Tcp { host, port: 0 } => Address::Tcp { host, port: free_port() },
        address => address,
    }
}

fn content_type() -> &'static str {
    std::str::from_utf8(D).expect("ASCII")
}

/// Options of the fstrm programs for an address.
fn fstrm_address(command: &mut Command, address: &Address) {
    match address {
        Address::Unix(path) => command.arg("-u").arg(path),
        Address::Tcp { host, port } => command.args(["-a", host, "-p", &port.to_string()]),
        Address::Tls { .. } => panic!("fstrm has no TLS"),
        Address::Systemd(_) => panic!("{address} is no address of a peer"),
    };
}

/// `fstrm_capture`: the reference reader, writing a file.
#[derive(Debug)]
pub(crate) struct Capture {
    address: Address,
    path: PathBuf,
    process: Process,
}

impl Capture {
    /// Starts one on a fresh address; `None` where it is not installed.
    pub(crate) fn start(transport: Transport, folder: &Path) -> Option<Self> {
        let address = free_address(transport, folder);
        let path = folder.join(format!("capture-{}.fstrm", address.to_string().replace(['/', ':'], "_")));
        Self::start_at(&address, path)
    }

    /// Starts one, perhaps where another was before.
    pub(crate) fn start_at(address: &Address, path: PathBuf) -> Option<Self> {
        let mut command = Command::new(find("fstrm_capture")?);
        command.args(["-t", content_type(), "-w"]).arg(&path);
        fstrm_address(&mut command, address);
        if let Address::Unix(path) = address {
            // It does not remove the file that its predecessor left.
            let _ = std::fs::remove_file(path);
        }
        let mut process = Process::spawn(&mut command);
        process.wait_for_socket(address);
        Some(Self { address: address.clone(), path, process })
    }

    pub(crate) fn address(&self) -> Address {
        self.address.clone()
    }

    /// The file that it writes.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Has it write STOP and end. It drops its writers without FINISH.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait_for_success(Duration::from_secs(10));
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops it as it is, until [`Self::go_on`].
    pub(crate) fn stop(&self) {
        self.process.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.process.signal(Signal::CONT);
    }
}

/// `fstrm_replay`: the reference writer, sending a file.
pub(crate) fn replay(program: &Path, file: &Path, to: &Address) -> Process {
    let mut command = Command::new(program);
    command.args(["-t", content_type(), "-r"]).arg(file);
    fstrm_address(&mut command, to);
    Process::spawn(&mut command)
}

/// Options of the `dnstap` program for an address: as reader `l` or `u`, as writer `T` or `U`.
fn dnstap_address(command: &mut Command, tcp: &str, unix: &str, address: &Address) {
    match address {
        Address::Unix(path) => command.arg(unix).arg(path),
        Address::Tcp { host, port } => command.arg(tcp).arg(format!("{host}:{port}")),
        Address::Tls { .. } => panic!("dnstap has no TLS"),
        Address::Systemd(_) => panic!("{address} is no address of a peer"),
    };
}

/// The `dnstap` program as writer: sends a file and ends.
pub(crate) fn dnstap_sends(file: &Path, to: &Address) -> Option<Process> {
    let mut command = Command::new(find("dnstap")?);
    command.arg("-r").arg(file);
    dnstap_address(&mut command, "-T", "-U", to);
    Some(Process::spawn(&mut command))
}

/// The `dnstap` program as reader, and as writer of what it reads to `to`.
///
/// It could write a file too, but forgets the last 4 KiB of it when it has to end.
pub(crate) fn dnstap_passes_on(from: &Address, to: &Address) -> Option<Process> {
    let mut command = Command::new(find("dnstap")?);
    dnstap_address(&mut command, "-l", "-u", from);
    dnstap_address(&mut command, "-T", "-U", to);
    if let Address::Unix(path) = from {
        // Perhaps its predecessor left the file.
        let _ = std::fs::remove_file(path);
    }
    let mut process = Process::spawn(&mut command);
    process.wait_for_socket(from);
    Some(process)
}
