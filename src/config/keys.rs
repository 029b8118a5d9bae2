//! Every key there is, with its default and its bounds.

use std::time::Duration;

use crate::config::raw::Value;
use crate::config::section::Origin;
use crate::config::section::Section;
use crate::config::spool::check_spool;
use crate::config::spool::take_spool;
use crate::config::units::format_size;
use crate::config::value;
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
use crate::output::Reconnect;
use crate::output::Rotate;
use crate::protocol::ContentType;
use crate::queue::WhenFull;
use crate::relay::RelayConfig;
use crate::transport::Address;
use crate::transport::BackendChoice;

/// An input or output, and where it was written.
pub(super) struct Entry<T> {
    pub(super) origin: Origin,
    pub(super) config: T,
}

/// The keys above all tables.
pub(super) fn take_process_keys(top: &mut Section<'_>, config: &mut RelayConfig) {
    let backends =
        [("auto", BackendChoice::Auto), ("uring", BackendChoice::Uring), ("epoll", BackendChoice::Epoll)];
    top.set("workers", value::integer(0..=WORKERS_MAX), &mut config.workers);
    top.set("backend", value::choice(&backends), &mut config.backend);
    top.set("drain_timeout", value::duration(Duration::ZERO..=DAY), &mut config.drain_timeout);
}

/// The keys of an `[[input]]`.
pub(super) fn take_input(mut section: Section<'_>) -> Entry<InputConfig> {
    let mut input = InputConfig { name: String::new(), listen: Vec::new(), ..InputConfig::default() };
    section.set("name", value::text, &mut input.name);
    if !input.name.is_empty() {
        section.set_label(format!("input `{}`", input.name));
    }
    match section.take_list("listen", value::listen_address) {
        Some(listen) => input.listen = listen,
        None if section.has("listen") => {}
        None => section.fault("listen", "is missing: write listen = [\"tcp://127.0.0.1:6000\"]".to_owned()),
    }
    if let Some(types) = take_content_types(&mut section) {
        input.content_types = types;
    }
    section.set("unidirectional", value::boolean, &mut input.unidirectional);
    take_frame_len_max(&mut section, &mut input.frame_len_max);
    let oversize = [("close", Oversize::Close), ("skip", Oversize::Skip)];
    section.set("oversize", value::choice(&oversize), &mut input.oversize);
    section.set("handshake_timeout", value::duration(HANDSHAKE_MIN..=HOUR), &mut input.handshake_timeout);
    section.set("connections_max", value::integer(1..=CONNECTIONS_MAX), &mut input.connections_max);
    input.socket_mode = section.take("socket_mode", value::permission_bits);

    if input.frame_len_max < FRAME_LEN_USUAL {
        let message = format!("one DNS message of 64 KiB in dnstap needs up to {FRAME_LEN_USUAL}B");
        section.warn("frame_len_max", message);
    }
    if input.handshake_timeout < HANDSHAKE_USUAL {
        section.warn("handshake_timeout", "writers over slow paths may need 5s and more".to_owned());
    }
    let unix = input.listen.iter().any(|address| matches!(address, Address::Unix(_)));
    if input.socket_mode.is_some() && !unix && !input.listen.is_empty() {
        section.fault("socket_mode", "is for unix sockets, and this input listens on none".to_owned());
    }
    Entry { config: input, origin: section.finish() }
}

/// The keys of an `[[output]]`.
pub(super) fn take_output(mut section: Section<'_>) -> Entry<OutputConfig> {
    let mut output = OutputConfig { name: String::new(), ..OutputConfig::default() };
    section.set("name", value::text, &mut output.name);
    if !output.name.is_empty() {
        section.set_label(format!("output `{}`", output.name));
    }
    let is_group = section.is_list("to");
    let to = section.take_list("to", value::output_address);
    if !section.has("to") {
        section.fault("to", "is missing: write to = \"tcp://HOST:PORT\"".to_owned());
    }
    let policies = [
        ("drop_oldest", Some(WhenFull::DropOldest)),
        ("drop_newest", Some(WhenFull::DropNewest)),
        ("block", Some(WhenFull::Block)),
        ("sample", Some(WhenFull::Sample)),
        ("spill", None),
    ];
    let when_full = section.take("when_full", value::choice(&policies));
    output.when_full = when_full.flatten().unwrap_or_default();
    output.spool = take_spool(&mut section, when_full == Some(None));
    if let Some(queue) = section.take("queue", value::size(QUEUE_MIN..=QUEUE_MAX)) {
        output.queue = usize::try_from(queue).unwrap_or(usize::MAX);
    }
    section.set("connections", connections, &mut output.connections);
    let modes = [("bidirectional", Mode::Bidirectional), ("unidirectional", Mode::Unidirectional)];
    section.set("mode", value::choice(&modes), &mut output.mode);
    section.set("content_type", value::content_type, &mut output.content_type);
    take_frame_len_max(&mut section, &mut output.frame_len_max);
    section.set("handshake_timeout", value::duration(HANDSHAKE_MIN..=HOUR), &mut output.handshake_timeout);
    section.set("finish_timeout", value::duration(Duration::ZERO..=HOUR), &mut output.finish_timeout);
    take_delivery(&mut section, &mut output);
    take_reconnect(&mut section, &mut output.reconnect);
    take_rotate(&mut section, &mut output.rotate);

    let longest = u64::from(output.frame_len_max) + LENGTH_WORD;
    if output.lane_queue() as u64 <= longest {
        let part = if output.spool.is_some() { ", in each half of it" } else { "" };
        let message = format!(
            "must be larger than `frame_len_max` and 4 bytes more{part}: the longest frame must find room"
        );
        section.fault("queue", message);
    }
    check_spool(&mut section, &output, longest);
    // Where a fault has been noted: a placeholder that does not meet an input's address.
    let to = to.unwrap_or_else(|| vec![Address::File(String::new())]);
    if is_group {
        output.group = take_group(&mut section, &output, &to);
    } else {
        refuse_group_keys(&mut section);
    }
    check_delivery(&mut section, &output);
    let unset = |to: &&Address| **to != Address::File(String::new());
    if let Some(first) = to.first() {
        // Members of a group are sockets all: one fault for each key.
        let example = to.iter().find(|to| matches!(to, Address::Unix(_))).unwrap_or(first);
        if let Some(example) = Some(example).filter(unset) {
            check_keys_of_kind(&mut section, &output, example);
        }
        output.to = first.clone();
    }
    Entry { config: output, origin: section.finish() }
}

/// The keys of a group, whose members are at `to`; `None` where that is none.
fn take_group(section: &mut Section<'_>, output: &OutputConfig, to: &[Address]) -> Option<GroupConfig> {
    let mut group = GroupConfig::new(to.iter().cloned());
    let balances = [
        ("round_robin", Balance::RoundRobin),
        ("least_backlog", Balance::LeastBacklog),
        ("failover", Balance::Failover),
        ("sticky", Balance::Sticky),
    ];
    section.set("balance", value::choice(&balances), &mut group.balance);
    section.set("stall_timeout", value::duration(STALL_MIN..=HOUR), &mut group.stall_timeout);
    section.set("slow_start", value::duration(Duration::ZERO..=HOUR), &mut group.slow_start);
    let weights = section.take_list("weights", value::integer(1..=WEIGHT_MAX));
    match &weights {
        Some(_) if group.balance == Balance::Failover => {
            section.fault(
                "weights",
                "means nothing under `failover`, where the order of `to` counts".to_owned(),
            );
        }
        Some(weights) if weights.len() != to.len() => {
            let (weights, members) = (weights.len(), to.len());
            section.fault("weights", format!("has {weights} numbers for {members} members: one for each"));
        }
        _ => {}
    }
    for (member, weight) in group.members.iter_mut().zip(weights.unwrap_or_default()) {
        member.weight = u32::try_from(weight).unwrap_or(u32::MAX);
    }
    match to {
        [] => return None,
        // A placeholder.
        [Address::File(pattern)] if pattern.is_empty() => return None,
        [one] => {
            section.fault("to", format!("a group has two members or more: write to = \"{one}\""));
            return None;
        }
        _ => {}
    }
    if to.len() > MEMBERS_MAX {
        section.fault("to", format!("a group has at most {MEMBERS_MAX} members, not {}", to.len()));
    }
    if let Some(file) = to.iter().find(|to| matches!(to, Address::File(_))) {
        let message =
            format!("{file} cannot be in a group: a file never stalls; give it an output of its own");
        section.fault("to", message);
        return None;
    }
    if let Some((_, twice)) = to.iter().enumerate().find(|(index, address)| to[..*index].contains(address)) {
        section.fault("to", format!("has {twice} twice: a larger share is given by `weights`"));
    }
    if output.connections == Connections::PerWorker {
        section
            .fault("connections", "each member of a group has one connection: leave this key out".to_owned());
    }
    Some(group)
}

fn refuse_group_keys(section: &mut Section<'_>) {
    for key in ["balance", "weights", "stall_timeout", "slow_start"] {
        section.take(key, |_| Ok(()));
        if section.has(key) {
            section.fault(key, "is for groups: outputs whose `to` is a list".to_owned());
        }
    }
}

/// Keys that mean nothing for this kind of address would be obeyed in vain.
fn check_keys_of_kind(section: &mut Section<'_>, output: &OutputConfig, to: &Address) {
    if !matches!(to, Address::File(_)) {
        if section.has("rotate") {
            section.fault("rotate", format!("is for file outputs, and this one writes to {to}"));
        }
        if output.replay_margin > 0 && matches!(to, Address::Unix(_)) {
            let message = "is for TCP: a unix socket tells what its reader has read; leave this key out";
            section.fault("replay_margin", message.to_owned());
        }
        return;
    }
    if output.spool.is_some() {
        section.fault("spool", "what goes into a file is on disk: leave this key out".to_owned());
    }
    if output.connections == Connections::PerWorker {
        section.fault("connections", "a file has one writer: leave this key out".to_owned());
    }
    if section.has("mode") && output.mode == Mode::Bidirectional {
        section.fault("mode", "nobody answers in a file: leave this key out".to_owned());
    }
    let answers = ["handshake_timeout", "finish_timeout", "ack", "replay_margin", "checkpoint", "order"];
    for key in answers {
        if section.has(key) {
            section.fault(key, "nobody answers in a file: leave this key out".to_owned());
        }
    }
}

fn take_content_types(section: &mut Section<'_>) -> Option<ContentTypes> {
    let any = |value: &Value| matches!(value, Value::Text(text) if text == "*");
    let types = section.take_list("content_types", |value| {
        if any(value) { Ok(None) } else { value::content_type(value).map(Some) }
    })?;
    if types.iter().any(Option::is_none) {
        if types.len() > 1 {
            section.fault("content_types", "\"*\" takes every type: leave the others out".to_owned());
        }
        return Some(ContentTypes::Any);
    }
    let types: Vec<ContentType> = types.into_iter().flatten().collect();
    let repeated =
        types.iter().enumerate().any(|(index, name)| types.iter().take(index).any(|seen| seen == name));
    if repeated {
        section.fault("content_types", "has the same type twice".to_owned());
    }
    Some(ContentTypes::Only(types))
}

fn take_frame_len_max(section: &mut Section<'_>, target: &mut u32) {
    if let Some(len) = section.take("frame_len_max", value::size(FRAME_LEN_MIN..=FRAME_LEN_MAX)) {
        *target = u32::try_from(len).unwrap_or(u32::MAX);
    }
}

/// The keys that say when a frame has been delivered.
fn take_delivery(section: &mut Section<'_>, output: &mut OutputConfig) {
    let acks = [("written", Ack::Written), ("received", Ack::Received)];
    section.set("ack", value::choice(&acks), &mut output.ack);
    if let Some(margin) = section.take("replay_margin", value::size(0..=QUEUE_MAX)) {
        output.replay_margin = usize::try_from(margin).unwrap_or(usize::MAX);
    }
    output.checkpoint = section.take("checkpoint", checkpoint);
    let orders = [("per_connection", Order::PerConnection), ("strict", Order::Strict)];
    section.set("order", value::choice(&orders), &mut output.order);
    if output.checkpoint.is_some() {
        if section.has("ack") && output.ack == Ack::Written {
            let message = "`checkpoint` holds frames until FINISH: write \"received\", or leave this key out";
            section.fault("ack", message.to_owned());
        }
        output.ack = Ack::Received;
        if !section.has("finish_timeout") {
            output.finish_timeout = CHECKPOINT_FINISH_TIMEOUT;
        }
    }
}

/// What cannot be had together, and what the queue cannot hold.
fn check_delivery(section: &mut Section<'_>, output: &OutputConfig) {
    let queue = output.lane_queue() as u64;
    let half = if output.spool.is_some() { "the half of `queue` behind the spool" } else { "`queue`" };
    let longest = u64::from(output.frame_len_max) + LENGTH_WORD;
    let members = output.group.as_ref().map_or(1, |group| group.members.len()) as u64;
    let each = if members > 1 { format!(", for {members} members") } else { String::new() };
    if output.checkpoint.is_some() && output.mode == Mode::Unidirectional {
        let message =
            "waits for FINISH, which a unidirectional output does not get: leave one of the two out";
        section.fault("checkpoint", message.to_owned());
    }
    if section.has("order") && output.checkpoint.is_none() {
        section.fault(
            "order",
            "is for outputs with a `checkpoint`: without one order is always kept".to_owned(),
        );
    }
    if let Some(Checkpoint::Bytes(bytes)) = output.checkpoint {
        let needed = members * 2 * bytes as u64 + longest;
        if needed > queue {
            let message = format!(
                "{bytes} for the stream that waits for FINISH, {bytes} for the next one and {longest} for the longest \
                 frame make {needed}{each}, and {half} has {queue}: give it room, or have checkpoints sooner",
                bytes = format_size(bytes as u64),
                longest = format_size(longest),
                needed = format_size(needed),
                queue = format_size(queue),
            );
            section.fault("checkpoint", message);
        }
    }
    if output.replay_margin == 0 {
        return;
    }
    if output.checkpoint.is_some() {
        let message =
            "with a `checkpoint` everything since the last FINISH is sent again: leave one of the two out";
        section.fault("replay_margin", message.to_owned());
    } else if output.ack == Ack::Written {
        section
            .fault("replay_margin", "needs ack = \"received\": without it nothing is sent again".to_owned());
    }
    // As much again is on its way to the reader before it is acknowledged.
    let margin = output.replay_margin as u64;
    let needed = members * 2 * margin + longest;
    if needed > queue {
        let message = format!(
            "{margin} that is kept, {margin} on its way and {longest} for the longest frame make {needed}{each}, and {half} \
             has {queue}",
            margin = format_size(margin),
            longest = format_size(longest),
            needed = format_size(needed),
            queue = format_size(queue),
        );
        section.fault("replay_margin", message);
    }
}

/// A time or a size.
fn checkpoint(written: &Value) -> Result<Checkpoint, String> {
    let bytes = value::size(CHECKPOINT_BYTES_MIN..=QUEUE_MAX);
    let every = value::duration(CHECKPOINT_EVERY_MIN..=DAY);
    let is_size = matches!(written, Value::Text(text) if text.trim_end().ends_with('B'));
    if is_size {
        return bytes(written).map(|bytes| Checkpoint::Bytes(usize::try_from(bytes).unwrap_or(usize::MAX)));
    }
    every(written).map(Checkpoint::Every).map_err(|error| format!("{error}; or a size as in \"16MiB\""))
}

fn take_reconnect(section: &mut Section<'_>, reconnect: &mut Reconnect) {
    let Some(mut keys) = section.table("reconnect", "{ min = \"100ms\", max = \"30s\" }") else { return };
    let pause = || value::duration(RECONNECT_MIN..=DAY);
    let (min, max) = (keys.take("min", pause()), keys.take("max", pause()));
    let written = (min.is_some() || !keys.has("min")) && (max.is_some() || !keys.has("max"));
    *reconnect = Reconnect { min: min.unwrap_or(reconnect.min), max: max.unwrap_or(reconnect.max) };
    if written && reconnect.min > reconnect.max {
        keys.fault("min", "must not be longer than `max`".to_owned());
    }
    keys.finish();
}

fn take_rotate(section: &mut Section<'_>, rotate: &mut Rotate) {
    let Some(mut keys) = section.table("rotate", "{ size = \"1GiB\", every = \"1h\" }") else { return };
    rotate.size = keys.take("size", value::size(ROTATE_SIZE_MIN..=ROTATE_SIZE_MAX));
    rotate.every = keys.take("every", value::duration(Duration::from_secs(1)..=YEAR));
    keys.finish();
}

fn connections(written: &Value) -> Result<Connections, String> {
    match written {
        Value::Integer(1) => Ok(Connections::One),
        Value::Text(text) if text == "1" => Ok(Connections::One),
        Value::Text(text) if text == "per_worker" => Ok(Connections::PerWorker),
        _ => Err("must be 1 or \"per_worker\"".to_owned()),
    }
}

const WORKERS_MAX: usize = 1024;
/// More descriptors than this no kernel gives to a process by default (`fs.nr_open`).
const CONNECTIONS_MAX: usize = 1 << 20;
/// The least that the reference's `fstrm_reader_options_set_max_frame_size` takes.
const FRAME_LEN_MIN: u64 = 512;
/// Longer lengths are told from broken streams by nobody.
const FRAME_LEN_MAX: u64 = (1 << 31) - 1;
/// 65 535 bytes of DNS message and 1 KiB of dnstap around it.
const FRAME_LEN_USUAL: u32 = 66_560;
/// The length word before every data frame.
const LENGTH_WORD: u64 = 4;
/// So that each has a part of the queue worth speaking of.
const MEMBERS_MAX: usize = 64;
const WEIGHT_MAX: usize = 1000;
/// Shorter pauses happen to readers that are well.
const STALL_MIN: Duration = Duration::from_millis(100);
const QUEUE_MIN: u64 = 1 << 10;
const QUEUE_MAX: u64 = 1 << 40;
const ROTATE_SIZE_MIN: u64 = 4 << 10;
const ROTATE_SIZE_MAX: u64 = 1 << 50;
const CHECKPOINT_EVERY_MIN: Duration = Duration::from_millis(100);
const CHECKPOINT_BYTES_MIN: u64 = 64 << 10;
/// A reader that is slow at FINISH is a slow reader, not a broken one.
const CHECKPOINT_FINISH_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_MIN: Duration = Duration::from_millis(100);
const HANDSHAKE_USUAL: Duration = Duration::from_secs(5);
const RECONNECT_MIN: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
