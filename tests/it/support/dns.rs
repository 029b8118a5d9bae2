//! DNS servers that write dnstap, without the internet: BIND and Unbound on high ports of the loopback, each
//! answering from data of its own.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Signal;
use tapster::transport::Address;

use super::peers::find;
use super::peers::free_port;
use super::process::Process;
use super::wait::PATIENCE;

/// BIND, answering for `example.test`, its dnstap on a unix socket.
#[derive(Debug)]
pub(crate) struct Named {
    folder: PathBuf,
    port: u16,
    process: Process,
}

impl Named {
    /// Starts it; `None` where it is not installed.
    pub(crate) fn start(folder: &Path, dnstap: &Address) -> Option<Self> {
        let program = find("named")?;
        let Address::Unix(socket) = dnstap else { panic!("named writes to unix sockets only") };
        let (port, control) = (free_port(), free_port());
        let here = folder.display();
        let key = "key \"k\" { algorithm hmac-sha256; secret \"dGFwc3RlciB0ZXN0cyBvbmx5\"; };";
        let config = format!(
            r#"{key}
            options {{
                directory "{here}"; pid-file none; session-keyfile "{here}/session.key";
                listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
                recursion no; dnssec-validation no; empty-zones-enable no; allow-query {{ any; }};
                dnstap {{ client; auth; }}; dnstap-output unix "{}"; dnstap-identity "tests";
            }};
            controls {{ inet 127.0.0.1 port {control} allow {{ 127.0.0.1; }} keys {{ "k"; }}; }};
            zone "example.test" {{ type primary; file "{here}/zone"; }};
            "#,
            socket.display()
        );
        fs::write(folder.join("named.conf"), config).expect("a file");
        let zone = "$TTL 60\n@ SOA ns mail 1 60 60 60 60\n@ NS ns\nns A 192.0.2.1\n* A 192.0.2.2\n";
        fs::write(folder.join("zone"), zone).expect("a file");
        let rndc = format!(
            "{key}\noptions {{ default-key \"k\"; default-server 127.0.0.1; default-port {control}; }};\n"
        );
        fs::write(folder.join("rndc.conf"), rndc).expect("a file");
        let mut command = Command::new(program);
        command.args(["-g", "-n", "2", "-c"]).arg(folder.join("named.conf"));
        let process = Process::spawn(&mut command);
        process.wait_for_output("running");
        Some(Self { folder: folder.to_owned(), port, process })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A command of its control channel; returns how long that took. `None` without `rndc`.
    pub(crate) fn control(&self, arguments: &[&str]) -> Option<Duration> {
        let mut command = Command::new(find("rndc")?);
        command.arg("-c").arg(self.folder.join("rndc.conf")).args(arguments);
        let began = Instant::now();
        Process::spawn(&mut command).wait_for_success(PATIENCE);
        Some(began.elapsed())
    }

    /// Ends it, and returns how long that took.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> Duration {
        let began = Instant::now();
        self.process.signal(Signal::TERM);
        self.process.wait_for_success(PATIENCE);
        began.elapsed()
    }

    /// Waits for its end after `rndc stop`.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self) {
        self.process.wait_for_success(PATIENCE);
    }
}

/// Unbound, answering for `example.test`.
#[derive(Debug)]
pub(crate) struct Unbound {
    port: u16,
    process: Process,
}

impl Unbound {
    /// Starts it; `None` where it is not installed.
    pub(crate) fn start(folder: &Path, dnstap: &Address, bidirectional: bool) -> Option<Self> {
        Self::start_with(folder, dnstap, bidirectional, "")
    }

    /// The same, with further lines about dnstap.
    pub(crate) fn start_with(
        folder: &Path,
        dnstap: &Address,
        bidirectional: bool,
        tls: &str,
    ) -> Option<Self> {
        let program = find("unbound")?;
        let port = free_port();
        let here = folder.display();
        let to = match dnstap {
            Address::Unix(path) => format!("dnstap-socket-path: \"{}\"", path.display()),
            Address::Tcp { host, port } => format!("dnstap-ip: \"{host}@{port}\"\n  dnstap-tls: no"),
            Address::Tls { host, port } => format!("dnstap-ip: \"{host}@{port}\"\n  dnstap-tls: yes\n{tls}"),
            Address::Systemd(_) => panic!("{dnstap} is no address of a peer"),
        };
        let bidirectional = if bidirectional { "yes" } else { "no" };
        let config = format!(
            r#"server:
  interface: 127.0.0.1
  port: {port}
  chroot: ""
  username: ""
  directory: "{here}"
  pidfile: ""
  do-daemonize: no
  use-syslog: no
  do-ip6: no
  num-threads: 2
  module-config: "iterator"
  local-zone: "example.test." redirect
  local-data: "example.test. 60 IN A 192.0.2.2"
remote-control:
  control-enable: no
dnstap:
  dnstap-enable: yes
  dnstap-bidirectional: {bidirectional}
  {to}
  dnstap-log-client-query-messages: yes
  dnstap-log-client-response-messages: yes
"#
        );
        let path = folder.join(format!("unbound-{port}.conf"));
        fs::write(&path, config).expect("a file");
        let mut command = Command::new(program);
        command.args(["-d", "-d", "-v", "-c"]).arg(&path);
        let process = Process::spawn(&mut command);
        process.wait_for_output("start of service");
        Some(Self { port, process })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait_for_success(PATIENCE);
    }
}

/// `dnsperf`, asking one server at a steady rate.
#[derive(Debug)]
pub(crate) struct Queries {
    process: Process,
}

impl Queries {
    /// Starts it; `None` where it is not installed.
    pub(crate) fn start(folder: &Path, port: u16, rate: u32, seconds: u32) -> Option<Self> {
        let path = folder.join("queries");
        let queries: String = (0..500).map(|host| format!("host{host}.example.test A\n")).collect();
        fs::write(&path, queries).expect("a file");
        let mut command = Command::new(find("dnsperf")?);
        command.args(["-s", "127.0.0.1", "-p", &port.to_string(), "-d"]).arg(&path);
        command.args(["-Q", &rate.to_string(), "-l", &seconds.to_string(), "-c", "4"]);
        Some(Self { process: Process::spawn(&mut command) })
    }

    /// Waits for its end; returns how many queries were answered.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> u64 {
        self.process.wait_for_success(Duration::from_secs(60));
        let output = self.process.output();
        let line = output
            .lines()
            .find(|line| line.contains("Queries completed"))
            .unwrap_or_else(|| panic!("{output}"));
        let count = line.split_whitespace().nth(2).and_then(|word| word.parse().ok());
        count.unwrap_or_else(|| panic!("{line}"))
    }
}
