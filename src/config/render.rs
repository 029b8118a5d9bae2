//! A configuration as TOML, every key filled in, to be fed back.

use std::fmt::Display;
use std::fmt::Write;
use std::path::Path;

use crate::config::admin::AdminConfig;
use crate::config::raw::Node;
use crate::config::raw::Table;
use crate::config::raw::Value;
use crate::config::raw::from_toml;
use crate::config::units::format_duration;
use crate::config::units::format_size;
use crate::config::words::ANY_TYPE;
use crate::config::words::AckWord;
use crate::config::words::ModeWord;
use crate::config::words::PER_WORKER;
use crate::config::words::SYNC_WORDS;
use crate::config::words::Words;
use crate::config::words::buffer_words;
use crate::input::Access;
use crate::input::ContentTypes;
use crate::input::InputConfig;
use crate::output::Balance;
use crate::output::Buffer;
use crate::output::Checkpoint;
use crate::output::Destination;
use crate::output::Endpoints;
use crate::output::GroupConfig;
use crate::output::Keep;
use crate::output::Lanes;
use crate::output::OutputConfig;
use crate::output::Reconnect;
use crate::output::Rotate;
use crate::output::StreamsConfig;
use crate::output::SubscribersConfig;
use crate::protocol::ContentType;
use crate::relay::RelayConfig;
use crate::spool::SpoolConfig;
use crate::spool::SpoolSettings;
use crate::spool::SyncPolicy;
use crate::transport::Address;
use crate::transport::SocketFileConfig;
use crate::transport::tls::ClientTls;
use crate::transport::tls::ServerTls;

/// The keys of the process.
pub(super) fn process_keys(config: &RelayConfig) -> String {
    let mut document = String::new();
    write_process_keys(&mut document, config);
    document
}

/// The keys of one input.
pub(super) fn input_keys(input: &InputConfig) -> String {
    let mut document = String::new();
    write_input(&mut document, input);
    document
}

/// The keys of one output.
pub(super) fn output_keys(output: &OutputConfig) -> String {
    let mut document = String::new();
    write_output(&mut document, output);
    document
}

/// The configuration as a TOML document that resolves to the same configuration.
pub fn to_toml(config: &RelayConfig) -> String {
    let mut document = String::new();
    write_process_keys(&mut document, config);
    document.extend(config.inputs.iter().map(input_keys));
    document.extend(config.outputs.iter().map(output_keys));
    document
}

/// The keys of the admin addresses as the beginning of a TOML document, without the token. Default addresses are left out: they
/// are those of the user who reads the document.
pub fn admin_to_toml(AdminConfig { listen, token_file, hosts, .. }: &AdminConfig) -> String {
    let mut document = String::new();
    if let Some(listen) = listen {
        let listen: Vec<String> = listen.iter().map(|address| quoted(&address.to_string())).collect();
        line(&mut document, "admin", &format!("[{}]", listen.join(", ")));
    }
    if let Some(path) = token_file {
        line(&mut document, "admin_token_file", &quoted(&path.to_string_lossy()));
    }
    if !hosts.is_empty() {
        let hosts: Vec<String> = hosts.iter().map(|host| quoted(host)).collect();
        line(&mut document, "admin_hosts", &format!("[{}]", hosts.join(", ")));
    }
    document
}

/// The configuration as JSON, with the names of the TOML document. Secrets are in files, of which it has the paths alone.
pub fn to_json(config: &RelayConfig, admin: &AdminConfig) -> serde_json::Value {
    let (table, _) = from_toml(&(admin_to_toml(admin) + &to_toml(config)));
    json_of_table(table)
}

fn json_of_table(table: Table) -> serde_json::Value {
    serde_json::Value::Object(table.into_iter().map(|(key, node)| (key, json_of(node))).collect())
}

fn json_of(node: Node) -> serde_json::Value {
    match node.value {
        Value::Text(text) => text.into(),
        Value::Integer(number) => number.into(),
        Value::Boolean(flag) => flag.into(),
        Value::List(items) => items.into_iter().map(json_of).collect(),
        Value::Table(table) => json_of_table(table),
        Value::Other(kind) => kind.into(),
    }
}

fn write_process_keys(document: &mut String, config: &RelayConfig) {
    line(document, "workers", &config.workers.to_string());
    line(document, "backend", &quoted(config.backend.word()));
    line(document, "drain_timeout", &quoted(&format_duration(config.drain_timeout)));
    line(document, "descriptor_store", &config.descriptor_store.to_string());
}

fn write_input(document: &mut String, input: &InputConfig) {
    let types: Vec<String> = match &input.content_types {
        ContentTypes::Any => vec![quoted(ANY_TYPE)],
        ContentTypes::Only(types) => types.iter().map(content_type).collect(),
    };
    document.push_str("\n[[input]]\n");
    line(document, "name", &quoted(&input.name));
    for (key, addresses) in [("listen", &input.listen), ("dial", &input.dial)] {
        let addresses: Vec<String> = addresses.iter().map(|address| quoted(&address.to_string())).collect();
        if !addresses.is_empty() {
            line(document, key, &format!("[{}]", addresses.join(", ")));
        }
    }
    if !input.dial.is_empty() {
        write_reconnect(document, input.reconnect);
    }
    line(document, "content_types", &format!("[{}]", types.join(", ")));
    line(document, "unidirectional", &input.unidirectional.to_string());
    line(document, "frame_len_max", &quoted(&format_size(input.frame_len_max.into())));
    line(document, "oversize", &quoted(input.oversize.word()));
    line(document, "handshake_timeout", &quoted(&format_duration(input.handshake_timeout)));
    if !input.listen.is_empty() {
        line(document, "connections_max", &input.connections_max.to_string());
    }
    if let Some(age) = input.max_connection_age {
        line(document, "max_connection_age", &quoted(&format_duration(age)));
    }
    write_access(document, &input.access, &input.socket_file);
    if let Some(tls) = &input.tls {
        line(document, "tls", &server_tls(tls));
    }
    if input.listen.iter().any(Address::is_tls) {
        line(document, "tls_handshakes_max", &input.tls_handshakes_max.to_string());
    }
}

fn write_access(document: &mut String, access: &Access, file: &SocketFileConfig) {
    fn list<T: Display>(items: &[T]) -> Option<String> {
        let items: Vec<String> = items.iter().map(|item| quoted(&item.to_string())).collect();
        (!items.is_empty()).then(|| format!("[{}]", items.join(", ")))
    }
    let keys = [
        ("connections_max_per_address", access.connections_max_per_address.map(|max| max.to_string())),
        ("proxy_protocol", access.proxy_from.as_ref().map(|_| "true".to_owned())),
        ("proxy_from", access.proxy_from.as_ref().and_then(|from| list(from))),
        ("allow", list(&access.allow)),
        ("allow_users", list(&access.allow_users)),
        ("allow_groups", list(&access.allow_groups)),
        ("socket_mode", file.mode.map(|bits| quoted(&format!("{bits:04o}")))),
        ("socket_user", file.user.as_ref().map(|user| quoted(&user.to_string()))),
        ("socket_group", file.group.as_ref().map(|group| quoted(&group.to_string()))),
    ];
    for (key, value) in keys {
        if let Some(value) = value {
            line(document, key, &value);
        }
    }
}

fn server_tls(tls: &ServerTls) -> String {
    let ServerTls { identity, client_ca, allow_names, min_version } = tls;
    let names: Vec<String> = allow_names.iter().map(|name| quoted(&name.to_string())).collect();
    let keys = [
        ("cert", Some(file(&identity.cert))),
        ("key", Some(file(&identity.key))),
        ("client_ca", client_ca.as_deref().map(file)),
        ("allow_names", (!names.is_empty()).then(|| format!("[{}]", names.join(", ")))),
        ("min_version", Some(quoted(min_version.word()))),
    ];
    table(&keys)
}

fn client_tls(tls: &ClientTls) -> String {
    let ClientTls { ca, identity, server_name, min_version } = tls;
    let keys = [
        ("ca", ca.as_deref().map(file)),
        ("cert", identity.as_ref().map(|identity| file(&identity.cert))),
        ("key", identity.as_ref().map(|identity| file(&identity.key))),
        ("server_name", server_name.as_deref().map(quoted)),
        ("min_version", Some(quoted(min_version.word()))),
    ];
    table(&keys)
}

fn file(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// The keys that have a value, on one line.
fn table(keys: &[(&str, Option<String>)]) -> String {
    let keys: Vec<String> =
        keys.iter().filter_map(|(key, value)| Some(format!("{key} = {}", value.as_ref()?))).collect();
    format!("{{ {} }}", keys.join(", "))
}

fn write_output(document: &mut String, output: &OutputConfig) {
    document.push_str("\n[[output]]\n");
    line(document, "name", &quoted(&output.name));
    match &output.to {
        Destination::Streams(StreamsConfig { endpoints: Endpoints::Group(group), .. }) => {
            write_group(document, group);
        }
        Destination::Subscribers(subscribers) => {
            let listen: Vec<_> = subscribers.listen.iter().map(|at| quoted(&at.to_string())).collect();
            line(document, "listen", &format!("[{}]", listen.join(", ")));
        }
        to => line(document, "to", &quoted(&to.to_string())),
    }
    write_buffer(document, &output.buffer);
    line(document, "content_type", &content_type(&output.content_type));
    line(document, "frame_len_max", &quoted(&format_size(output.frame_len_max.into())));
    match &output.to {
        Destination::File(file) => {
            line(document, "mode", &quoted(&format!("{:04o}", file.mode)));
            write_rotate(document, &file.rotate);
            write_keep(document, file.keep);
            write_reconnect(document, file.reconnect);
        }
        Destination::Subscribers(subscribers) => write_subscribers(document, subscribers),
        Destination::Streams(streams) => {
            let connections = match output.buffer.lanes() {
                Lanes::One => "1".to_owned(),
                Lanes::PerWorker => quoted(PER_WORKER),
            };
            line(document, "connections", &connections);
            write_streams(document, streams);
            write_reconnect(document, streams.reconnect);
        }
    }
}

fn write_subscribers(document: &mut String, subscribers: &SubscribersConfig) {
    let mode = if subscribers.bidirectional { ModeWord::Bidirectional } else { ModeWord::Unidirectional };
    line(document, "mode", &quoted(mode.word()));
    line(document, "handshake_timeout", &quoted(&format_duration(subscribers.handshake_timeout)));
    line(document, "finish_timeout", &quoted(&format_duration(subscribers.finish_timeout)));
    line(document, "stall_timeout", &quoted(&format_duration(subscribers.stall_timeout)));
    line(document, "subscribers_max", &subscribers.subscribers_max.to_string());
    write_access(document, &subscribers.access, &subscribers.socket_file);
}

fn write_group(document: &mut String, group: &GroupConfig) {
    let to: Vec<String> = group.members.iter().map(|member| quoted(&member.address.to_string())).collect();
    line(document, "to", &format!("[{}]", to.join(", ")));
    line(document, "balance", &quoted(group.balance.word()));
    if group.balance != Balance::Failover {
        let weights: Vec<String> = group.members.iter().map(|member| member.weight.to_string()).collect();
        line(document, "weights", &format!("[{}]", weights.join(", ")));
    }
    line(document, "stall_timeout", &quoted(&format_duration(group.stall_timeout)));
    line(document, "slow_start", &quoted(&format_duration(group.slow_start)));
}

fn write_buffer(document: &mut String, buffer: &Buffer) {
    let (key, word) = buffer_words(buffer);
    line(document, key, &quoted(word));
    if let Some(spool) = buffer.spool() {
        write_spool(document, spool);
    }
    line(document, "queue", &quoted(&format_size(buffer.memory() as u64)));
}

fn write_spool(document: &mut String, spool: &SpoolSettings) {
    let SpoolConfig { max, max_age, min_free, sync, on_full } = &spool.config;
    let word = SYNC_WORDS.iter().find(|(_, value)| value == sync).map(|(word, _)| (*word).to_owned());
    let sync = match (sync, word) {
        (SyncPolicy::Interval(interval), _) => format_duration(*interval),
        (_, word) => word.expect("every value but a time has a word"),
    };
    let keys = [
        ("dir", spool.folder.to_string_lossy().into_owned()),
        ("max", format_size(*max)),
        ("max_age", format_duration(*max_age)),
        ("min_free", format_size(*min_free)),
        ("sync", sync),
        ("on_full", on_full.word().to_owned()),
    ];
    let keys: Vec<String> = keys.iter().map(|(key, text)| format!("{key} = {}", quoted(text))).collect();
    line(document, "spool", &format!("{{ {} }}", keys.join(", ")));
}

fn write_streams(document: &mut String, streams: &StreamsConfig) {
    let mode = streams.mode;
    line(document, "mode", &quoted(ModeWord::of(mode).word()));
    line(document, "handshake_timeout", &quoted(&format_duration(streams.handshake_timeout)));
    if streams.endpoints.addresses().any(|address| address.host_port().is_some()) {
        line(document, "user_timeout", &quoted(&format_duration(streams.user_timeout)));
    }
    if streams.endpoints.addresses().any(Address::is_tls) {
        line(document, "tls", &client_tls(&streams.tls));
    }
    if let Some(version) = streams.send_proxy {
        line(document, "send_proxy", &quoted(version.word()));
    }
    line(document, "finish_timeout", &quoted(&format_duration(mode.finish_timeout())));
    line(document, "ack", &quoted(AckWord::of(mode).word()));
    if let Some(margin) = mode.margin().filter(|margin| *margin > 0) {
        line(document, "replay_margin", &quoted(&format_size(margin as u64)));
    }
    if let Some(checkpoint) = mode.checkpoint() {
        let checkpoint = match checkpoint {
            Checkpoint::Every(every) => format_duration(every),
            Checkpoint::Bytes(bytes) => format_size(bytes as u64),
        };
        line(document, "checkpoint", &quoted(&checkpoint));
        line(document, "order", &quoted(mode.order().word()));
    }
}

fn write_reconnect(document: &mut String, reconnect: Reconnect) {
    let (min, max) = (format_duration(reconnect.min), format_duration(reconnect.max));
    line(document, "reconnect", &format!("{{ min = {}, max = {} }}", quoted(&min), quoted(&max)));
}

fn write_rotate(document: &mut String, rotate: &Rotate) {
    let size = rotate.size.map(|size| format!("size = {}", quoted(&format_size(size))));
    let every = rotate.every.map(|every| format!("every = {}", quoted(&format_duration(every))));
    let suffix = rotate.partial_suffix.as_ref().map(|suffix| format!("partial_suffix = {}", quoted(suffix)));
    let keys: Vec<String> = [size, every, suffix].into_iter().flatten().collect();
    if !keys.is_empty() {
        line(document, "rotate", &format!("{{ {} }}", keys.join(", ")));
    }
}

fn write_keep(document: &mut String, keep: Option<Keep>) {
    match keep {
        None => {}
        Some(Keep::Files(count)) => line(document, "keep", &count.to_string()),
        Some(Keep::Age(age)) => line(document, "keep", &quoted(&format_duration(age))),
    }
}

fn line(document: &mut String, key: &str, value: &str) {
    writeln!(document, "{key} = {value}").expect("a String takes every line");
}

/// Types come from a configuration and are therefore UTF-8.
fn content_type(name: &ContentType) -> String {
    quoted(&String::from_utf8_lossy(name.as_bytes()))
}

/// A basic string of TOML: quotes, backslashes and control characters are escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                write!(quoted, "\\U{:08X}", u32::from(control)).expect("a String takes every character");
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
