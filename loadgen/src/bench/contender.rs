//! What is measured: tapster, the raw copy, and what users would pick instead.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::ValueEnum;
use tapster::transport::Address;

use crate::bench::BenchArgs;
use crate::bench::Transport;
use crate::bench::relay::RelayArgs;

/// The name of the relay that variants are compared with.
pub(crate) const RELAY: &str = "relay";

/// Something that takes frames from the generator and passes them to the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// tapster, under a name for each way in which it is set.
    Relay {
        name: String,
        args: RelayArgs,
    },
    Peer(Peer),
}

/// What the relay is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// loadgen floor: the raw copy
    Floor,
    /// Nothing: the generator writes to the first sink; others add their latency to this one
    Direct,
    /// The dnstap command
    Dnstap,
    /// HAProxy in TCP mode; one output
    Haproxy,
    /// socat; one connection, one output
    Socat,
}

impl Contender {
    /// Its name in tables, results and file names.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Relay { name, .. } => name,
            Self::Peer(peer) => peer.name(),
        }
    }

    /// The command that takes from `input` and passes to every one of `outputs`; `None` for [`Peer::Direct`].
    pub(crate) fn command(
        &self,
        args: &BenchArgs,
        input: &Address,
        outputs: &[Address],
        folder: &Path,
    ) -> Result<Option<Command>> {
        match self {
            Self::Relay { args: relay, .. } => relay.command(args.class, input, outputs).map(Some),
            Self::Peer(peer) => peer.command(args, input, outputs, folder),
        }
    }
}

impl Peer {
    /// Its name in tables, results and file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Direct => "direct",
            Self::Dnstap => "dnstap",
            Self::Haproxy => "haproxy",
            Self::Socat => "socat",
        }
    }

    /// Why it cannot take part; `None` if it can.
    pub(crate) fn hindrance(self, args: &BenchArgs) -> Option<&'static str> {
        match self {
            Self::Floor | Self::Direct => None,
            Self::Haproxy | Self::Socat if args.outputs > 1 => Some("it cannot fan out"),
            Self::Socat if args.load.connections > 1 => Some("it serves one connection"),
            _ if find_program(self.name()).is_none() => Some("it is not installed"),
            _ => None,
        }
    }

    fn command(
        self,
        args: &BenchArgs,
        input: &Address,
        outputs: &[Address],
        folder: &Path,
    ) -> Result<Option<Command>> {
        let mut command = args.class.command(match self {
            Self::Direct => return Ok(None),
            Self::Floor => env::current_exe()?,
            _ => find_program(self.name()).context("it was there a moment ago")?,
        });
        match self {
            Self::Direct => {}
            Self::Floor => {
                command.args(["floor", "--listen", &input.to_string()]);
                command.args(["--together", &args.load.connections.to_string()]);
                for output in outputs {
                    command.args(["--to", &output.to_string()]);
                }
            }
            Self::Dnstap => {
                let (listen, to) = match args.transport {
                    Transport::Unix => ("-u", "-U"),
                    Transport::Tcp => ("-l", "-T"),
                };
                command.args([listen, &bare(input)]);
                for output in outputs {
                    command.args([to, &bare(output)]);
                }
            }
            Self::Haproxy => {
                let config = folder.join("haproxy.cfg");
                fs::write(&config, haproxy_config(input, only(outputs)?))?;
                command.arg("-db").arg("-f").arg(config);
            }
            Self::Socat => {
                let (listen, to) = match args.transport {
                    Transport::Unix => ("UNIX-LISTEN:", "UNIX-CONNECT:"),
                    Transport::Tcp => ("TCP-LISTEN:", "TCP:"),
                };
                // It is to be looked at after the end of the stream, and not to end with it.
                let listen = match input {
                    Address::Tcp { host, port } => format!("{listen}{port},bind={host},reuseaddr,ignoreeof"),
                    _ => format!("{listen}{},ignoreeof", bare(input)),
                };
                command.args([
                    "-t",
                    "60",
                    "-b",
                    SOCAT_BUFFER,
                    &listen,
                    &format!("{to}{}", bare(only(outputs)?)),
                ]);
            }
        }
        Ok(Some(command))
    }
}

/// An address on which nobody listens yet.
pub(crate) fn free_address(transport: Transport, folder: &Path) -> Result<Address> {
    Ok(match transport {
        Transport::Unix => Address::Unix(folder.join("in.sock")),
        Transport::Tcp => {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            Address::Tcp { host: "127.0.0.1".to_owned(), port }
        }
    })
}

/// Finds a program in `PATH`, and where the system keeps its daemons.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders.map(|folder| folder.join(OsStr::new(name))).find(|candidate| candidate.is_file())
}

/// An address as other programs write it.
fn bare(address: &Address) -> String {
    match address {
        Address::Unix(path) => path.display().to_string(),
        address => address.to_string().trim_start_matches("tcp://").to_owned(),
    }
}

fn only(outputs: &[Address]) -> Result<&Address> {
    match outputs {
        [output] => Ok(output),
        _ => bail!("{} outputs where there can be one", outputs.len()),
    }
}

fn haproxy_config(input: &Address, output: &Address) -> String {
    let address = |address: &Address| match address {
        Address::Unix(path) => format!("unix@{}", path.display()),
        address => bare(address),
    };
    format!(
        "global\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  \
         timeout server 1h\nlisten copy\n  bind {}\n  server sink {}\n",
        address(input),
        address(output),
    )
}

/// As much as `floor` reads on a unix socket.
const SOCAT_BUFFER: &str = "262144";
