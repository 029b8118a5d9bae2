//! From what was written to values that cannot be wrong.
//!
//! The file comes first, the command line is laid over it, and then everything is looked at together: names,
//! addresses and content types must fit each other. Every fault is found in one go.

use std::io;
use std::path::PathBuf;

use crate::config::admin::AdminConfig;
use crate::config::admin::AdminKeys;
use crate::config::conflicts::check_addresses;
use crate::config::conflicts::check_content_types;
use crate::config::conflicts::check_files;
use crate::config::conflicts::check_names;
use crate::config::conflicts::check_passed;
use crate::config::conflicts::check_spools;
use crate::config::fault::Fault;
use crate::config::fault::Faults;
use crate::config::files::Document;
use crate::config::files::SeenKeys;
use crate::config::files::read_files;
use crate::config::keys::Entry;
use crate::config::keys::take_input;
use crate::config::keys::take_process_keys;
use crate::config::output::take_output;
use crate::config::places::Places;
use crate::config::raw::Node;
use crate::config::raw::Table;
use crate::config::raw::Value;
use crate::config::raw::add;
use crate::config::raw::from_query;
use crate::config::raw::from_toml;
use crate::config::section::Findings;
use crate::config::section::Origin;
use crate::config::section::Section;
use crate::input::InputConfig;
use crate::output::OutputConfig;
use crate::relay::RelayConfig;
use crate::transport::PassedSocket;

/// What was given on the command line, as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `--config`, each a TOML file, or a folder of them.
    pub config: Vec<PathBuf>,
    /// `--listen`, each an input of its own: `ADDR` or `ADDR?key=value&key=value`.
    pub listen: Vec<String>,
    /// `--to`, each an output of its own: `ADDR` or `ADDR?key=value&key=value`.
    pub to: Vec<String>,
    /// `--workers`; replaces the key of the file.
    pub workers: Option<String>,
    /// `--backend`; replaces the key of the file.
    pub backend: Option<String>,
    /// `--drain-timeout`; replaces the key of the file.
    pub drain_timeout: Option<String>,
    /// What the service manager passes; `None` where nobody knows it: listeners of its are not looked for then.
    pub passed: Option<Vec<PassedSocket>>,
    /// `--admin`, each an address; replaces the key of the file. `off` alone: none.
    pub admin: Vec<String>,
}

/// A configuration that is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Every key filled in.
    pub config: RelayConfig,
    /// Where the process answers those who operate it.
    pub admin: AdminConfig,
    /// Certificates that have expired. What does not need them works: a relay starts with them, and a check fails.
    pub expired: Vec<Fault>,
    /// What is allowed and yet unlikely to be meant.
    pub warnings: Vec<Fault>,
    /// Where its parts were written.
    pub places: Places,
}

/// Reads the files, if there are any, and lays the command line over them.
///
/// Without any input it listens on `tcp://127.0.0.1:6000`; without any output it writes
/// `file:tapster-%Y%m%dT%H%M%S.fstrm`. An input or output without a name is called after its address.
///
/// # Errors
/// [`Faults`]: all of them, each with its key and what to do.
pub fn resolve(options: &Options) -> Result<Resolved, Faults> {
    resolve_all(read_files(&options.config), options)
}

/// The configuration of a TOML document that is not in a file.
///
/// # Errors
/// [`Faults`], as if the document had been given to `--config`.
pub fn resolve_toml(document: &str) -> Result<Resolved, Faults> {
    let origin = Origin { source: "configuration".to_owned(), ..Origin::default() };
    resolve_all(vec![Document { origin, text: Ok(document.to_owned()) }], &Options::default())
}

fn resolve_all(documents: Vec<Document>, options: &Options) -> Result<Resolved, Faults> {
    let mut findings = Findings::default();
    let mut config = RelayConfig { inputs: Vec::new(), outputs: Vec::new(), ..RelayConfig::default() };
    let mut inputs = Vec::new();
    let mut outputs = Vec::new();
    let mut admin = AdminKeys::default();
    let mut places = Places::default();

    let mut seen = SeenKeys::default();
    for Document { origin, text } in documents {
        let table = read_document(text, &origin, &mut findings);
        seen.add(&origin, &table, &mut findings);
        let mut top = Section::new(origin, table, &mut findings);
        take_process_keys(&mut top, &mut config);
        admin.take(&mut top);
        places.note_keys(&top);
        let (input_tables, output_tables) = (top.tables("input"), top.tables("output"));
        top.finish();
        for (origin, table) in input_tables {
            inputs.push(take_input(Section::new(origin, table, &mut findings)));
        }
        for (origin, table) in output_tables {
            outputs.push(take_output(Section::new(origin, table, &mut findings)));
        }
    }

    let mut overlay = Section::new(command_line("command line"), overlay_table(options), &mut findings);
    take_process_keys(&mut overlay, &mut config);
    admin.take(&mut overlay);
    places.note_keys(&overlay);
    for text in &options.listen {
        let (origin, table) = read_address("--listen", "listen", text, &mut findings);
        inputs.push(take_input(Section::new(origin, table, &mut findings)));
    }
    for text in &options.to {
        let (origin, table) = read_address("--to", "to", text, &mut findings);
        outputs.push(take_output(Section::new(origin, table, &mut findings)));
    }

    if inputs.is_empty() {
        let config = InputConfig { name: String::new(), ..InputConfig::default() };
        inputs.push(Entry { origin: command_line("default input"), config });
    }
    if outputs.is_empty() {
        let config = OutputConfig { name: String::new(), ..OutputConfig::default() };
        outputs.push(Entry { origin: command_line("default output"), config });
    }
    check_names(&mut inputs, "input", |input| &mut input.name, first_address, &mut findings);
    check_names(
        &mut outputs,
        "output",
        |output| &mut output.name,
        |output| output.to.to_string(),
        &mut findings,
    );
    check_addresses(&inputs, &outputs, &mut findings);
    check_content_types(&inputs, &outputs, &mut findings);
    check_spools(&outputs, &mut findings);
    check_files(&outputs, &mut findings);
    if let Some(passed) = &options.passed {
        check_passed(&inputs, passed, &mut findings);
    }
    let listening: Vec<_> = inputs.iter().map(|entry| &entry.config).collect();
    let admin = admin.finish(&listening, &mut findings);

    inputs.iter().for_each(|entry| places.note_input(&entry.config.name, &entry.origin));
    outputs.iter().for_each(|entry| places.note_output(&entry.config.name, &entry.origin));
    config.inputs = inputs.into_iter().map(|entry| entry.config).collect();
    config.outputs = outputs.into_iter().map(|entry| entry.config).collect();
    let (faults, expired, warnings) = findings.into_sorted();
    if faults.is_empty() {
        Ok(Resolved { config, admin, expired, warnings, places })
    } else {
        Err(Faults(faults))
    }
}

/// The output of an address, and what cannot be seen in its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedOutput {
    /// Every key filled in.
    pub config: OutputConfig,
    /// Whether `content_type` was written, and not filled in.
    pub names_content_type: bool,
}

/// The output that an address with its keys stands for: `tcp://10.0.0.5:6000?finish_timeout=30s`.
///
/// # Errors
/// [`Faults`], as if it had been given to `--to`.
pub fn resolve_output(text: &str) -> Result<ResolvedOutput, Faults> {
    let mut findings = Findings::default();
    let (origin, table) = read_address("--to", "to", text, &mut findings);
    let names_content_type = table.iter().any(|(key, _)| key == "content_type");
    let mut outputs = [take_output(Section::new(origin, table, &mut findings))];
    check_names(
        &mut outputs,
        "output",
        |output| &mut output.name,
        |output| output.to.to_string(),
        &mut findings,
    );
    let (faults, _, _) = findings.into_sorted();
    let [Entry { config, .. }] = outputs;
    if faults.is_empty() { Ok(ResolvedOutput { config, names_content_type }) } else { Err(Faults(faults)) }
}

fn read_document(text: io::Result<String>, origin: &Origin, findings: &mut Findings) -> Table {
    match text {
        Ok(text) => {
            let (table, errors) = from_toml(&text);
            findings.syntax(origin, errors);
            table
        }
        Err(error) => {
            findings.fault(origin, "", format!("the configuration file cannot be read: {error}"));
            Table::new()
        }
    }
}

/// `ADDR?key=value` as the table that a file would hold.
fn read_address(option: &str, key: &str, text: &str, findings: &mut Findings) -> (Origin, Table) {
    let origin = command_line(&format!("{option} {text}"));
    let (address, query) = text.split_once('?').unwrap_or((text, ""));
    let (keys, errors) = from_query(query);
    findings.syntax(&origin, errors);
    let mut table = vec![(key.to_owned(), Node::text(address))];
    for (name, node) in keys {
        match node.value {
            // More addresses, behind the first.
            Value::List(items) if name == key => {
                items.into_iter().for_each(|item| add(&mut table, key, item));
            }
            _ => add(&mut table, &name, node),
        }
    }
    (origin, table)
}

fn overlay_table(options: &Options) -> Table {
    let given_admin = &options.admin;
    let options = [
        ("workers", &options.workers),
        ("backend", &options.backend),
        ("drain_timeout", &options.drain_timeout),
    ];
    let given = options.into_iter().filter_map(|(key, text)| Some((key, Node::text(text.as_ref()?))));
    let admin = match &given_admin[..] {
        [] => None,
        [off] if off == OFF => Some(Vec::new()),
        addresses => Some(addresses.iter().map(|address| Node::text(address)).collect()),
    };
    let admin = admin.map(|addresses| ("admin", Node { line: None, value: Value::List(addresses) }));
    given.chain(admin).map(|(key, node)| (key.to_owned(), node)).collect()
}

/// In place of an address: none.
const OFF: &str = "off";

fn first_address(input: &InputConfig) -> String {
    input.listen.first().or(input.dial.first()).map(ToString::to_string).unwrap_or_default()
}

fn command_line(source: &str) -> Origin {
    Origin { source: source.to_owned(), ..Origin::default() }
}

#[cfg(test)]
mod tests;
