//! What is measured: tapster, the raw copy, and what users would pick instead.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use tapster::transport::Address;

use crate::bench::args::BenchArgs;
use crate::bench::peer::Peer;
use crate::bench::relay::RelayArgs;
use crate::bench::transport::Transport;

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
            Self::Peer(peer) => peer_command(*peer, args, input, outputs, folder),
        }
    }
}

/// Why a peer cannot take part; `None` if it can.
pub(crate) fn hindrance(peer: Peer, args: &BenchArgs) -> Option<&'static str> {
    match peer {
        Peer::Floor | Peer::Direct => None,
        Peer::Haproxy | Peer::Socat if args.outputs > 1 => Some("it cannot fan out"),
        Peer::Socat if args.load.connections > 1 => Some("it serves one connection"),
        _ if find_program(peer.name()).is_none() => Some("it is not installed"),
        _ => None,
    }
}

/// The command of a peer; `None` for [`Peer::Direct`].
fn peer_command(
    peer: Peer,
    args: &BenchArgs,
    input: &Address,
    outputs: &[Address],
    folder: &Path,
) -> Result<Option<Command>> {
    let mut command = args.class.command(match peer {
        Peer::Direct => return Ok(None),
        Peer::Floor => env::current_exe()?,
        _ => find_program(peer.name()).context("it was there a moment ago")?,
    });
    match peer {
        Peer::Direct => {}
        Peer::Floor => {
            command.args(["floor", "--listen", &input.to_string()]);
            command.args(["--together", &args.load.connections.to_string()]);
            for output in outputs {
                command.args(["--to", &output.to_string()]);
            }
        }
        Peer::Dnstap => {
            let (listen, to) = match args.transport {
                Transport::Unix => ("-u", "-U"),
                Transport::Tcp => ("-l", "-T"),
            };
            command.args([listen, &bare(input)]);
            for output in outputs {
                command.args([to, &bare(output)]);
            }
        }
        Peer::Haproxy => {
            let config = folder.join("haproxy.cfg");
            fs::write(&config, haproxy_config(input, only(outputs)?))?;
            command.arg("-db").arg("-f").arg(config);
        }
        Peer::Socat => {
            let (listen, to) = match args.transport {
                Transport::Unix => ("UNIX-LISTEN:", "UNIX-CONNECT:"),
                Transport::Tcp => ("TCP-LISTEN:", "TCP:"),
            };
            // It is to be looked at after the end of the stream, and not to end with it.
            let listen = match input {
                Address::Tcp { host, port } => format!("{listen}{port},bind={host},reuseaddr,ignoreeof"),
                _ => format!("{listen}{},ignoreeof", bare(input)),
            };
            command.args(["-t", "60", "-b", SOCAT_BUFFER, &listen, &format!("{to}{}", bare(only(outputs)?))]);
        }
    }
    Ok(Some(command))
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
