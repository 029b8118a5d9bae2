//! Two hosts, joined by a cable that can be pulled out: network namespaces and a pair of virtual interfaces.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;

use rustix::thread::LinkNameSpaceType;
use rustix::thread::move_into_link_name_space;

use super::peer::PeerListener;
use super::stream::tcp_address;

/// Removed with its interfaces when dropped.
#[derive(Debug)]
pub(crate) struct Hosts {
    relay: String,
    collector: String,
}

impl Hosts {
    /// `None`, and a word on stderr, where namespaces are not permitted or `ip` is not installed.
    pub(crate) fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tapster-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let hosts = Self { relay: format!("{name}-r"), collector: format!("{name}-c") };
        let (relay, collector) = (&hosts.relay, &hosts.collector);
        let commands = [
            format!("netns add {relay}"),
            format!("netns add {collector}"),
            format!("-n {relay} link add cable type veth peer name cable netns {collector}"),
            format!("-n {relay} addr add 192.0.2.1/24 dev cable"),
            format!("-n {collector} addr add {COLLECTOR}/24 dev cable"),
            format!("-n {relay} link set lo up"),
            format!("-n {relay} link set cable up"),
            format!("-n {collector} link set cable up"),
        ];
        for command in &commands {
            if let Err(fault) = ip(command) {
                eprintln!("skipped: no network namespaces here ({fault})");
                return None;
            }
        }
        Some(hosts)
    }

    /// Runs `scenario` on the host of the relay, on a thread of its own: what it starts stays there.
    pub(crate) fn on_relay_host(&self, scenario: impl FnOnce() + Send) {
        on_host(&self.relay, scenario);
    }

    /// Gives an interface of the relay's host one more address of IPv6. It can be used at once: nobody looks whether another host
    /// has it.
    pub(crate) fn add_relay_address(&self, address: &str, interface: &str) {
        ip(&format!("-n {} addr add {address} dev {interface} nodad", self.relay)).expect("it worked before");
    }

    /// Listens on the host of the collector.
    pub(crate) fn listen(&self) -> PeerListener {
        on_host(&self.collector, || PeerListener::on(&tcp_address(COLLECTOR, 0)))
    }

    /// From now on every packet is lost, and nobody learns of it.
    pub(crate) fn pull_the_cable(&self) {
        self.set_cable("down");
    }

    pub(crate) fn plug_the_cable(&self) {
        self.set_cable("up");
    }

    fn set_cable(&self, state: &str) {
        ip(&format!("-n {} link set cable {state}", self.collector)).expect("it worked before");
    }
}

/// Connections to the collector that stand, as the kernel of the relay's host knows them. For a thread on that host.
pub(crate) fn connections_to_collector() -> usize {
    const ESTABLISHED: &str = "01";
    let address: Ipv4Addr = COLLECTOR.parse().expect("an address");
    let collector = format!("{:08X}:", u32::from(address).swap_bytes());
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("the table of connections");
    let stands = |line: &&str| {
        let mut columns = line.split_whitespace().skip(2);
        let (to, state) = (columns.next(), columns.next());
        to.is_some_and(|to| to.starts_with(&collector)) && state == Some(ESTABLISHED)
    };
    table.lines().filter(stands).count()
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [&self.relay, &self.collector] {
            let _ = ip(&format!("netns del {host}"));
        }
    }
}

/// From the range for documentation.
const COLLECTOR: &str = "192.0.2.2";

fn on_host<T: Send>(host: &str, scenario: impl FnOnce() -> T + Send) -> T {
    let on_its_thread = || {
        let namespace = File::open(format!("/run/netns/{host}")).expect("a namespace");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("permission");
        scenario()
    };
    let result = thread::scope(|scope| scope.spawn(on_its_thread).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}
