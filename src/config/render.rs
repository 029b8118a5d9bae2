//! A configuration as TOML, every key filled in, to be fed back.

use std::fmt::Write;

use crate::config::units::format_duration;
use crate::config::units::format_size;
use crate::input::ContentTypes;
use crate::input::InputConfig;
use crate::input::Oversize;
use crate::output::Ack;
use crate::output::Balance;
use crate::output::Checkpoint;
use crate::output::Connections;
use crate::output::GroupConfig;
use crate::output::Mode;
use crate::output::Order;
use crate::output::OutputConfig;
use crate::output::Rotate;
use crate::protocol::ContentType;
use crate::queue::SpoolUse;
use crate::queue::Takes;
use crate::relay::RelayConfig;
use crate::spool::OnFull;
use crate::spool::SpoolConfig;
use crate::spool::SyncPolicy;
use crate::transport::Address;
use crate::transport::BackendChoice;

/// The configuration as a TOML document that resolves to the same configuration.
pub fn to_toml(config: &RelayConfig) -> String {
    let mut document = String::new();
    write_process_keys(&mut document, config);
    for input in &config.inputs {
        write_input(&mut document, input);
    }
    for output in &config.outputs {
        write_output(&mut document, output);
    }
    document
}

fn write_process_keys(document: &mut String, config: &RelayConfig) {
    let backend = match config.backend {
        BackendChoice::Auto => "auto",
        BackendChoice::Uring => "uring",
        BackendChoice::Epoll => "epoll",
    };
    line(document, "workers", &config.workers.to_string());
    line(document, "backend", &quoted(backend));
    line(document, "drain_timeout", &quoted(&format_duration(config.drain_timeout)));
}

fn write_input(document: &mut String, input: &InputConfig) {
    let listen: Vec<String> = input.listen.iter().map(|address| quoted(&address.to_string())).collect();
    let types: Vec<String> = match &input.content_types {
        ContentTypes::Any => vec![quoted("*")],
        ContentTypes::Only(types) => types.iter().map(content_type).collect(),
    };
    let oversize = match input.oversize {
        Oversize::Close => "close",
        Oversize::Skip => "skip",
    };
    document.push_str("\n[[input]]\n");
    line(document, "name", &quoted(&input.name));
    line(document, "listen", &format!("[{}]", listen.join(", ")));
    line(document, "content_types", &format!("[{}]", types.join(", ")));
    line(document, "unidirectional", &input.unidirectional.to_string());
    line(document, "frame_len_max", &quoted(&format_size(input.frame_len_max.into())));
    line(document, "oversize", &quoted(oversize));
    line(document, "handshake_timeout", &quoted(&format_duration(input.handshake_timeout)));
    line(document, "connections_max", &input.connections_max.to_string());
    if let Some(bits) = input.socket_mode {
        line(document, "socket_mode", &quoted(&format!("{bits:04o}")));
    }
}

fn write_output(document: &mut String, output: &OutputConfig) {
    document.push_str("\n[[output]]\n");
    line(document, "name", &quoted(&output.name));
    match &output.group {
        Some(group) => write_group(document, group),
        None => line(document, "to", &quoted(&output.to.to_string())),
    }
    match &output.spool {
        Some(spool) => write_spool(document, spool),
        None => line(document, "when_full", &quoted(&output.when_full.to_string())),
    }
    line(document, "queue", &quoted(&format_size(output.queue as u64)));
    line(document, "content_type", &content_type(&output.content_type));
    line(document, "frame_len_max", &quoted(&format_size(output.frame_len_max.into())));
    if let Address::File(_) = output.to {
        write_rotate(document, output.rotate);
    } else {
        write_connection_keys(document, output);
    }
    let (min, max) = (format_duration(output.reconnect.min), format_duration(output.reconnect.max));
    line(document, "reconnect", &format!("{{ min = {}, max = {} }}", quoted(&min), quoted(&max)));
}

fn write_group(document: &mut String, group: &GroupConfig) {
    let balance = match group.balance {
        Balance::RoundRobin => "round_robin",
        Balance::LeastBacklog => "least_backlog",
        Balance::Failover => "failover",
        Balance::Sticky => "sticky",
    };
    let to: Vec<String> = group.members.iter().map(|member| quoted(&member.address.to_string())).collect();
    line(document, "to", &format!("[{}]", to.join(", ")));
    line(document, "balance", &quoted(balance));
    if group.balance != Balance::Failover {
        let weights: Vec<String> = group.members.iter().map(|member| member.weight.to_string()).collect();
        line(document, "weights", &format!("[{}]", weights.join(", ")));
    }
    line(document, "stall_timeout", &quoted(&format_duration(group.stall_timeout)));
    line(document, "slow_start", &quoted(&format_duration(group.slow_start)));
}

fn write_spool(document: &mut String, spool: &SpoolUse) {
    match spool.takes {
        Takes::All => line(document, "buffer", &quoted("disk")),
        Takes::Overflow => line(document, "when_full", &quoted("spill")),
    }
    let SpoolConfig { max, max_age, min_free, sync, on_full } = &spool.config;
    let sync = match sync {
        SyncPolicy::None => "none".to_owned(),
        SyncPolicy::Interval(interval) => format_duration(*interval),
        SyncPolicy::Batch => "batch".to_owned(),
    };
    let on_full = match on_full {
        OnFull::DropOldest => "drop_oldest",
        OnFull::DropNewest => "drop_newest",
        OnFull::Block => "block",
    };
    let keys = [
        ("dir", spool.folder.to_string_lossy().into_owned()),
        ("max", format_size(*max)),
        ("max_age", format_duration(*max_age)),
        ("min_free", format_size(*min_free)),
        ("sync", sync),
        ("on_full", on_full.to_owned()),
    ];
    let keys: Vec<String> = keys.iter().map(|(key, text)| format!("{key} = {}", quoted(text))).collect();
    line(document, "spool", &format!("{{ {} }}", keys.join(", ")));
}

fn write_connection_keys(document: &mut String, output: &OutputConfig) {
    let connections = match output.connections {
        Connections::One => "1".to_owned(),
        Connections::PerWorker => quoted("per_worker"),
    };
    let mode = match output.mode {
        Mode::Bidirectional => "bidirectional",
        Mode::Unidirectional => "unidirectional",
    };
    line(document, "connections", &connections);
    line(document, "mode", &quoted(mode));
    line(document, "handshake_timeout", &quoted(&format_duration(output.handshake_timeout)));
    line(document, "finish_timeout", &quoted(&format_duration(output.finish_timeout)));
    let ack = match output.ack {
        Ack::Written => "written",
        Ack::Received => "received",
    };
    line(document, "ack", &quoted(ack));
    if output.replay_margin > 0 {
        line(document, "replay_margin", &quoted(&format_size(output.replay_margin as u64)));
    }
    if let Some(checkpoint) = output.checkpoint {
        let checkpoint = match checkpoint {
            Checkpoint::Every(every) => format_duration(every),
            Checkpoint::Bytes(bytes) => format_size(bytes as u64),
        };
        let order = match output.order {
            Order::PerConnection => "per_connection",
            Order::Strict => "strict",
        };
        line(document, "checkpoint", &quoted(&checkpoint));
        line(document, "order", &quoted(order));
    }
}

fn write_rotate(document: &mut String, rotate: Rotate) {
    let size = rotate.size.map(|size| format!("size = {}", quoted(&format_size(size))));
    let every = rotate.every.map(|every| format!("every = {}", quoted(&format_duration(every))));
    let keys: Vec<String> = [size, every].into_iter().flatten().collect();
    if !keys.is_empty() {
        line(document, "rotate", &format!("{{ {} }}", keys.join(", ")));
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
