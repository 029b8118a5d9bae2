//! HAProxy, which passes connections on and tells for whom.

use std::fs;
use std::path::Path;
use std::process::Command;

use tapster::transport::Address;

use super::peers::find;
use super::process::Process;

/// HAProxy between two addresses, with these words behind those of its `bind` and of its `server`; `None` where it is not
/// installed. It is there when it listens.
pub(crate) fn haproxy(
    folder: &Path,
    (from, bind): (&Address, &str),
    (to, server): (&Address, &str),
) -> Option<Process> {
    let program = find("haproxy")?;
    let config = folder.join("haproxy.cfg");
    let bare = |address: &Address| match address {
        Address::Unix(path) => format!("unix@{}", path.display()),
        address => address.to_string().trim_start_matches("tcp://").to_owned(),
    };
    let text = format!(
        "global\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen between\n  bind {} {bind}\n  server there {} {server}\n",
        bare(from),
        bare(to),
    );
    fs::write(&config, text).expect("a file");
    let mut process = Process::spawn(Command::new(program).arg("-db").arg("-f").arg(&config));
    process.wait_for_socket(from);
    Some(process)
}
