//! What is right by itself and wrong together: names, addresses and content types.

use std::collections::HashMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::Path;
use std::path::PathBuf;

use crate::config::keys::Entry;
use crate::config::section::Findings;
use crate::input::ContentTypes;
use crate::input::InputConfig;
use crate::output::Destination;
use crate::output::OutputConfig;
use crate::output::place::is_one_stream;
use crate::transport::Address;
use crate::transport::PassedSocket;
use crate::transport::passed_fault;

/// Names that were written must differ; the others are made from the address, and made to differ.
pub(super) fn check_names<T>(
    entries: &mut [Entry<T>],
    kind: &str,
    name_of: impl Fn(&mut T) -> &mut String,
    default_name: impl Fn(&T) -> String,
    findings: &mut Findings,
) {
    let mut names: HashSet<String> = HashSet::new();
    for entry in &mut *entries {
        let name = name_of(&mut entry.config);
        if name.is_empty() {
            continue;
        }
        if !names.insert(name.clone()) {
            findings.fault(
                &entry.origin,
                "name",
                format!("another {kind} is called `{name}` too: names must differ"),
            );
        }
    }
    let mut numbers: HashMap<String, u64> = HashMap::new();
    for entry in entries {
        if !name_of(&mut entry.config).is_empty() {
            continue;
        }
        let address = default_name(&entry.config);
        let number = numbers.entry(address.clone()).or_default();
        let name = loop {
            *number += 1;
            let name = if *number == 1 { address.clone() } else { format!("{address}#{number}") };
            if names.insert(name.clone()) {
                break name;
            }
        };
        *name_of(&mut entry.config) = name;
    }
}

/// Nobody shares an address to listen at, and neither an output nor a `dial` may lead to an input of the same relay.
pub(super) fn check_addresses(
    inputs: &[Entry<InputConfig>],
    outputs: &[Entry<OutputConfig>],
    findings: &mut Findings,
) {
    let mut listened: Vec<(&Address, &str)> = Vec::new();
    for Entry { origin, config } in inputs {
        for address in &config.listen {
            let chosen_by_kernel = address.has_any_port();
            if let Some((_, other)) = listened.iter().find(|(seen, _)| same_place(seen, address))
                && !chosen_by_kernel
            {
                let message = format!("{address} is listened on twice, here and by input `{other}`");
                findings.fault(origin, "listen", message);
            }
            listened.push((address, &config.name));
        }
    }
    let mut served: Vec<(&Address, &str)> = Vec::new();
    for Entry { origin, config } in outputs {
        for address in config.listen().iter().filter(|address| !address.has_any_port()) {
            let by_input = listened
                .iter()
                .find(|(seen, _)| same_place(seen, address))
                .map(|(_, input)| ("input", *input));
            // Twice in one list is a fault of the list.
            let by_output = served.iter().find(|(seen, name)| *seen == address && *name != config.name);
            if let Some((kind, other)) = by_input.or(by_output.map(|(_, output)| ("output", *output))) {
                let message = format!("{address} is listened on twice, here and by {kind} `{other}`");
                findings.fault(origin, "listen", message);
            }
            served.push((address, &config.name));
        }
    }
    check_dials(inputs, &listened, &served, findings);
    for Entry { origin, config } in outputs {
        for to in config.addresses() {
            if let Some((_, input)) = listened.iter().find(|(address, _)| reaches(to, address)) {
                let message =
                    format!("{to} is where input `{input}` listens: every frame would go round without end");
                findings.fault(origin, "to", message);
            }
            if let Some((_, output)) = served.iter().find(|(address, _)| reaches(to, address)) {
                let message =
                    format!("{to} is where output `{output}` waits for readers: nobody reads there");
                findings.fault(origin, "to", message);
            }
        }
    }
}

/// What inputs take from the service manager, it has to pass.
pub(super) fn check_passed(inputs: &[Entry<InputConfig>], passed: &[PassedSocket], findings: &mut Findings) {
    for Entry { origin, config } in inputs {
        for address in &config.listen {
            if let Address::Systemd(name) = address
                && let Some(fault) = passed_fault(passed, name.as_deref())
            {
                findings.fault(origin, "listen", format!("{address}: {fault}"));
            }
        }
    }
}

/// A producer that is dialled twice sends every frame twice.
fn check_dials(
    inputs: &[Entry<InputConfig>],
    listened: &[(&Address, &str)],
    served: &[(&Address, &str)],
    findings: &mut Findings,
) {
    let mut dialled: Vec<(&Address, &str)> = Vec::new();
    for Entry { origin, config } in inputs {
        for to in &config.dial {
            if let Some((_, other)) = dialled.iter().find(|(seen, _)| *seen == to) {
                let message = format!(
                    "{to} is dialled twice, here and by input `{other}`: every frame of it would come twice"
                );
                findings.fault(origin, "dial", message);
            }
            if let Some((_, input)) = listened.iter().find(|(address, _)| reaches(to, address)) {
                let message = format!(
                    "{to} is where input `{input}` of this same tapster listens, which sends no frames"
                );
                findings.fault(origin, "dial", message);
            }
            if let Some((_, output)) = served.iter().find(|(address, _)| reaches(to, address)) {
                let message = format!(
                    "{to} is where output `{output}` of this same tapster waits for readers: every frame would go round without end"
                );
                findings.fault(origin, "dial", message);
            }
            dialled.push((to, &config.name));
        }
    }
}

/// A spool has one writer.
pub(super) fn check_spools(outputs: &[Entry<OutputConfig>], findings: &mut Findings) {
    let mut seen: Vec<(&Path, &str)> = Vec::new();
    for Entry { origin, config } in outputs {
        let Some(spool) = config.buffer.spool() else { continue };
        if let Some((_, other)) = seen.iter().find(|(folder, _)| *folder == spool.folder) {
            let message = format!("is that of output `{other}` too: give each a folder of its own");
            findings.fault(origin, "spool.dir", message);
        }
        seen.push((&spool.folder, &config.name));
    }
}

/// Two outputs that write into one stdout or FIFO would mix their streams.
pub(super) fn check_files(outputs: &[Entry<OutputConfig>], findings: &mut Findings) {
    let mut seen: Vec<(&Path, &str)> = Vec::new();
    for Entry { origin, config } in outputs {
        let Destination::File(file) = &config.to else { continue };
        let path = Path::new(&file.pattern);
        if let Some((_, other)) = seen.iter().find(|(seen, _)| is_one_stream(seen, path)) {
            let message = format!(
                "output `{other}` writes there too, and the two streams would mix: give each its own"
            );
            findings.fault(origin, "to", message);
        }
        seen.push((path, &config.name));
    }
}

/// Whether a connection to `to` ends up at `listen`, as far as can be told without asking name servers.
fn reaches(to: &Address, listen: &Address) -> bool {
    if let (Address::Unix(to), Address::Unix(listen)) = (to, listen) {
        return to == listen || without_links(to) == without_links(listen);
    }
    match (to.host_port(), listen.host_port()) {
        (Some((host, port)), Some((bound, bound_port))) => {
            port == bound_port && port != 0 && host_reaches(host, bound)
        }
        _ => false,
    }
}

/// Whether two addresses are one port of one host, or one path, as they are written.
fn same_place(one: &Address, other: &Address) -> bool {
    one == other || one.host_port().is_some_and(|place| other.host_port() == Some(place))
}

fn host_reaches(to: &str, bound: &str) -> bool {
    let (to_ips, bound_ips) = (known_ips(to), known_ips(bound));
    let same_name = to.trim_end_matches('.').eq_ignore_ascii_case(bound.trim_end_matches('.'));
    // A connection to a wildcard goes to the loopback address of its family.
    let arrives_at = |to: &IpAddr| match to {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => *ip,
    };
    let takes = |bound: &IpAddr, to: IpAddr| match bound {
        IpAddr::V4(ip) if ip.is_unspecified() => to.is_ipv4() && to.is_loopback(),
        IpAddr::V6(ip) if ip.is_unspecified() => to.is_loopback(),
        ip => *ip == to,
    };
    same_name || to_ips.iter().any(|to| bound_ips.iter().any(|bound| takes(bound, arrives_at(to))))
}

/// The addresses of a host, where they are written down or fixed.
fn known_ips(host: &str) -> Vec<IpAddr> {
    if host.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    host.parse().map(|ip: IpAddr| vec![ip.to_canonical()]).unwrap_or_default()
}

/// Where a path leads, although nothing may be there yet.
fn without_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let (Ok(folder), Some(name)) = (folder.canonicalize(), path.file_name()) {
            path = folder.join(name);
        }
        match path.read_link() {
            // One that is absolute takes the place of the folder.
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => break,
        }
    }
    path
}

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// Types that go in and do not come out, or should come out and never go in.
pub(super) fn check_content_types(
    inputs: &[Entry<InputConfig>],
    outputs: &[Entry<OutputConfig>],
    findings: &mut Findings,
) {
    for Entry { origin, config } in outputs {
        let taken = inputs.iter().any(|input| match &input.config.content_types {
            ContentTypes::Any => true,
            ContentTypes::Only(types) => types.contains(&config.content_type),
        });
        if !taken {
            let message = format!("no input takes {}: nothing will ever be written", config.content_type);
            findings.warn(origin, "content_type", message);
        }
    }
    for Entry { origin, config } in inputs {
        let ContentTypes::Only(types) = &config.content_types else { continue };
        for name in types {
            if !outputs.iter().any(|output| output.config.content_type == *name) {
                let message = format!("no output takes {name}: its frames are counted as unrouted");
                findings.warn(origin, "content_types", message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_address_that_leads_to_a_listener_is_seen_however_it_is_written() {
        let leads = |to: &str, listen: &str| {
            let [to, listen] = [to, listen].map(|text| format!("tcp://{text}").parse().unwrap());
            reaches(&to, &listen)
        };
        for (to, listen) in [
            ("127.0.0.1:6000", "127.0.0.1:6000"),
            ("localhost:6000", "127.0.0.1:6000"),
            ("LOCALHOST.:6000", "127.0.0.1:6000"),
            ("localhost:6000", "[::1]:6000"),
            ("127.0.0.1:6000", "localhost:6000"),
            ("0.0.0.0:6000", "127.0.0.1:6000"),
            ("0.0.0.0:6000", "0.0.0.0:6000"),
            ("[::]:6000", "[::1]:6000"),
            ("127.0.0.2:6000", "0.0.0.0:6000"),
            ("127.0.0.2:6000", "[::]:6000"),
            ("[::ffff:127.0.0.1]:6000", "127.0.0.1:6000"),
            ("[0:0:0:0:0:0:0:1]:6000", "[::1]:6000"),
            ("siem.example:6000", "SIEM.example:6000"),
        ] {
            assert!(leads(to, listen), "{to} leads to {listen}");
        }
        for (to, listen) in [
            ("127.0.0.1:6001", "127.0.0.1:6000"),
            ("127.0.0.2:6000", "127.0.0.1:6000"),
            ("192.0.2.1:6000", "0.0.0.0:6000"),
            ("[::1]:6000", "0.0.0.0:6000"),
            ("siem.example:6000", "0.0.0.0:6000"),
            ("siem.example:6000", "collector.example:6000"),
        ] {
            assert!(!leads(to, listen), "{to} does not lead to {listen}");
        }
    }

    #[test]
    fn links_of_unix_paths_are_followed_also_where_nothing_listens_yet() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("run")).unwrap();
        symlink("run", at("folder")).unwrap();
        symlink("folder/in.sock", at("relative")).unwrap();
        symlink(at("relative"), at("absolute")).unwrap();
        symlink("ring", at("ring")).unwrap();
        let leads = |to: &str| reaches(&Address::Unix(at(to)), &Address::Unix(at("run/in.sock")));
        for to in ["run/in.sock", "run/../run/in.sock", "folder/in.sock", "relative", "absolute"] {
            assert!(leads(to), "{to}");
        }
        for to in ["run/other.sock", "ring", "nowhere/in.sock"] {
            assert!(!leads(to), "{to}");
        }
    }
}
