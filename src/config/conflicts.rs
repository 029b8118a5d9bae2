//! What is right by itself and wrong together: names, addresses and content types.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;

use crate::config::keys::Entry;
use crate::config::section::Findings;
use crate::input::ContentTypes;
use crate::input::InputConfig;
use crate::output::OutputConfig;
use crate::transport::Address;

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

/// Two inputs cannot share an address, and an output must not feed an input of the same relay.
pub(super) fn check_addresses(
    inputs: &[Entry<InputConfig>],
    outputs: &[Entry<OutputConfig>],
    findings: &mut Findings,
) {
    let mut listened: Vec<(&Address, &str)> = Vec::new();
    for Entry { origin, config } in inputs {
        for address in &config.listen {
            let chosen_by_kernel = matches!(address, Address::Tcp { port: 0, .. });
            if let Some((_, other)) = listened.iter().find(|(seen, _)| *seen == address)
                && !chosen_by_kernel
            {
                let message = format!("{address} is listened on twice, here and by input `{other}`");
                findings.fault(origin, "listen", message);
            }
            listened.push((address, &config.name));
        }
    }
    for Entry { origin, config } in outputs {
        for to in config.addresses() {
            if let Some((_, input)) = listened.iter().find(|(address, _)| reaches(to, address)) {
                let message =
                    format!("{to} is where input `{input}` listens: every frame would go round without end");
                findings.fault(origin, "to", message);
            }
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

/// Whether a connection to `to` ends up at `listen`, as far as can be told without resolving names.
fn reaches(to: &Address, listen: &Address) -> bool {
    match (to, listen) {
        (Address::Tcp { host, port }, Address::Tcp { host: bound, port: bound_port }) => {
            let wildcard = matches!(bound.as_str(), "0.0.0.0" | "::");
            let here =
                host == bound || (wildcard && matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1"));
            port == bound_port && here
        }
        _ => to == listen,
    }
}

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
