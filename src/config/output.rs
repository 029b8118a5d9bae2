//! The keys of an `[[output]]`, with their defaults and bounds.

use std::time::Duration;

use crate::config::buffer::take_buffer;
use crate::config::delivery::DeliveryKeys;
use crate::config::delivery::LENGTH_WORD;
use crate::config::delivery::Room;
use crate::config::file::FileKeys;
use crate::config::keys::Entry;
use crate::config::keys::HANDSHAKE_MIN;
use crate::config::keys::HOUR;
use crate::config::keys::STALL_MIN;
use crate::config::keys::take_frame_len_max;
use crate::config::keys::take_reconnect;
use crate::config::raw::Value;
use crate::config::section::Section;
use crate::config::subscribers::SUBSCRIBER_KEYS;
use crate::config::subscribers::take_subscribers;
use crate::config::tls::take_client_tls;
use crate::config::value;
use crate::config::value::OutputAddress;
use crate::config::words::ModeWord;
use crate::config::words::Words;
use crate::output::Balance;
use crate::output::ConfigError;
use crate::output::Destination;
use crate::output::Endpoints;
use crate::output::FileConfig;
use crate::output::GroupConfig;
use crate::output::OutputConfig;
use crate::output::StreamsConfig;
use crate::transport::Address;
use crate::transport::ProxyVersion;

/// The keys of an `[[output]]`.
pub(super) fn take_output(mut section: Section<'_>) -> Entry<OutputConfig> {
    let mut output = OutputConfig { name: String::new(), ..OutputConfig::default() };
    section.set("name", value::text, &mut output.name);
    if !output.name.is_empty() {
        section.set_label(format!("output `{}`", output.name));
    }
    if section.has("listen") {
        return take_subscribers(section, output);
    }
    for key in SUBSCRIBER_KEYS {
        section.take(key, |_| Ok(()));
        if section.has(key) {
            section.fault(key, "is for outputs with `listen`, which readers connect to".to_owned());
        }
    }
    let is_group = section.is_list("to");
    let to = section.take_list("to", value::output_address);
    if !section.has("to") {
        section.fault(
            "to",
            "is missing: write to = \"tcp://HOST:PORT\", or `listen` for readers that connect".to_owned(),
        );
    }
    output.buffer = take_buffer(&mut section);
    let into_file = to.as_ref().is_some_and(|to| matches!(to[..], [OutputAddress::File(_)]));
    let file_keys = FileKeys::take(&mut section, into_file);
    let mode =
        if into_file { None } else { section.take("mode", value::word::<ModeWord>) }.unwrap_or_default();
    section.set("content_type", value::content_type, &mut output.content_type);
    take_frame_len_max(&mut section, &mut output.frame_len_max);
    // Where a fault has been noted: a placeholder that does not meet an input's address.
    let placeholder = Endpoints::One(Address::Tcp { host: String::new(), port: 0 });
    let mut streams = StreamsConfig::new(placeholder);
    section.set("handshake_timeout", value::duration(HANDSHAKE_MIN..=HOUR), &mut streams.handshake_timeout);
    section.set("user_timeout", value::duration(USER_TIMEOUT_MIN..=HOUR), &mut streams.user_timeout);
    streams.send_proxy = section.take("send_proxy", send_proxy).flatten();
    let sockets: Vec<_> = to.iter().flatten().filter_map(OutputAddress::socket).collect();
    take_client_tls(&mut section, &mut streams, &sockets);
    let delivery = DeliveryKeys::take(&mut section, mode);
    streams.mode = delivery.mode();
    take_reconnect(&mut section, &mut streams.reconnect);
    let group = take_group_keys(&mut section, is_group, to.as_deref());

    let longest = u64::from(output.frame_len_max) + LENGTH_WORD;
    let room = Room {
        queue: output.buffer.lane_queue() as u64,
        behind_spool: output.buffer.spool().is_some(),
        longest,
        members: group.as_ref().map_or(1, |group| group.members.len().max(1)) as u64,
    };
    delivery.check(&mut section, &room);
    let first = to.and_then(|to| to.into_iter().next());
    output.to = match (group, first) {
        (_, Some(OutputAddress::File(pattern))) => {
            refuse_keys_of_streams(&mut section);
            let FileKeys { mode, rotate, keep } = file_keys;
            Destination::File(FileConfig { pattern, mode, rotate, keep, reconnect: streams.reconnect })
        }
        (group, Some(OutputAddress::Socket(address))) => {
            streams.endpoints = group.map_or(Endpoints::One(address), Endpoints::Group);
            check_keys_of_sockets(&mut section, &streams.endpoints, &delivery);
            Destination::Streams(streams)
        }
        (_, None) => Destination::Streams(streams),
    };
    for error in output.faults() {
        section.fault(error.key(), error.to_string());
    }
    Entry { config: output, origin: section.finish() }
}

/// The keys of a group; `None` where `to` is not a list, or not one of sockets.
fn take_group_keys(
    section: &mut Section<'_>,
    is_group: bool,
    to: Option<&[OutputAddress]>,
) -> Option<GroupConfig> {
    if !is_group {
        for key in ["balance", "weights", "stall_timeout", "slow_start"] {
            section.take(key, |_| Ok(()));
            if section.has(key) {
                section.fault(key, "is for groups: outputs whose `to` is a list".to_owned());
            }
        }
        return None;
    }
    let addresses = to.unwrap_or_default().iter().filter_map(OutputAddress::socket);
    let mut group = GroupConfig::new(addresses.cloned());
    section.set("balance", value::word, &mut group.balance);
    section.set("stall_timeout", value::duration(STALL_MIN..=HOUR), &mut group.stall_timeout);
    section.set("slow_start", value::duration(Duration::ZERO..=HOUR), &mut group.slow_start);
    let weights = section.take_list("weights", value::integer(1..=WEIGHT_MAX));
    match (&weights, to) {
        (Some(_), _) if group.balance == Balance::Failover => {
            let failover = Balance::Failover.word();
            let message = format!("means nothing under `{failover}`, where the order of `to` counts");
            section.fault("weights", message);
        }
        (Some(weights), Some(to)) if weights.len() != to.len() => {
            let (weights, members) = (weights.len(), to.len());
            section.fault("weights", format!("has {weights} numbers for {members} members: one for each"));
        }
        _ => {}
    }
    let to = to?;
    for (member, weight) in group.members.iter_mut().zip(weights.unwrap_or_default()) {
        member.weight = u32::try_from(weight).unwrap_or(u32::MAX);
    }
    let file = to.iter().find(|to| matches!(to, OutputAddress::File(_)));
    match (to, file) {
        (_, None) => return Some(group),
        ([_], Some(file)) => {
            let error = ConfigError::GroupOfOne { to: file.to_string() };
            section.fault(error.key(), error.to_string());
        }
        (_, Some(file)) => {
            let message =
                format!("{file} cannot be in a group: a file never stalls; give it an output of its own");
            section.fault("to", message);
        }
    }
    None
}

/// Keys that mean nothing for sockets, or not for these, would be obeyed in vain.
fn check_keys_of_sockets(section: &mut Section<'_>, endpoints: &Endpoints, delivery: &DeliveryKeys) {
    let unix = endpoints.addresses().find(|address| matches!(address, Address::Unix(_)));
    for key in ["rotate", "keep"] {
        if let Some(to) = unix.or_else(|| endpoints.addresses().next())
            && section.has(key)
        {
            section.fault(key, format!("is for file outputs, and this one writes to {to}"));
        }
    }
    if unix.is_some() {
        delivery.check_unix(section);
    }
    if endpoints.addresses().all(|address| matches!(address, Address::Unix(_))) && section.has("user_timeout")
    {
        let message = "is for TCP: what is written to a unix socket is with the reader's host at once; leave this \
                       key out";
        section.fault("user_timeout", message.to_owned());
    }
}

/// Keys that mean nothing for files would be obeyed in vain.
fn refuse_keys_of_streams(section: &mut Section<'_>) {
    let answers = [
        "handshake_timeout",
        "finish_timeout",
        "user_timeout",
        "send_proxy",
        "tls",
        "ack",
        "replay_margin",
        "checkpoint",
        "order",
    ];
    for key in answers {
        if section.has(key) {
            section.fault(key, "nobody answers in a file: leave this key out".to_owned());
        }
    }
}

/// A version, or whether there is a header.
fn send_proxy(value: &Value) -> Result<Option<ProxyVersion>, String> {
    match value::boolean(value) {
        Ok(is_sent) => Ok(is_sent.then_some(ProxyVersion::V2)),
        Err(_) => value::word(value).map(Some),
    }
}

const WEIGHT_MAX: usize = 1000;
/// Shorter waits end healthy connections: TCP waits 200 ms and more before it sends a lost segment again.
const USER_TIMEOUT_MIN: Duration = Duration::from_secs(1);
