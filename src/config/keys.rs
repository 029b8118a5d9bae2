//! The keys above all tables and those of an `[[input]]`, with their defaults and bounds.

use std::time::Duration;

use crate::config::access::CONNECTIONS_MAX;
use crate::config::access::take_access;
use crate::config::raw::Value;
use crate::config::section::Origin;
use crate::config::section::Section;
use crate::config::tls::take_server_tls;
use crate::config::value;
use crate::config::words::ANY_TYPE;
use crate::input::ContentTypes;
use crate::input::InputConfig;
use crate::input::Reconnect;
use crate::protocol::ContentType;
use crate::relay::RelayConfig;

/// An input or output, and where it was written.
pub(super) struct Entry<T> {
    pub(super) origin: Origin,
    pub(super) config: T,
}

/// The keys above all tables.
pub(super) fn take_process_keys(top: &mut Section<'_>, config: &mut RelayConfig) {
    top.set("workers", value::integer(0..=WORKERS_MAX), &mut config.workers);
    top.set("backend", value::word, &mut config.backend);
    top.set("descriptor_store", value::integer(0..=STORE_MAX), &mut config.descriptor_store);
    top.set("drain_timeout", value::duration(Duration::ZERO..=DAY), &mut config.drain_timeout);
}

/// The keys of an `[[input]]`.
pub(super) fn take_input(mut section: Section<'_>) -> Entry<InputConfig> {
    let mut input = InputConfig { name: String::new(), listen: Vec::new(), ..InputConfig::default() };
    section.set("name", value::text, &mut input.name);
    if !input.name.is_empty() {
        section.set_label(format!("input `{}`", input.name));
    }
    let (listen, dial) =
        (section.take_list("listen", value::listen_address), section.take_list("dial", value::dial_address));
    if !section.has("listen") && !section.has("dial") {
        let message = "is missing: write listen = [\"tcp://127.0.0.1:6000\"], or `dial` for producers that listen themselves";
        section.fault("listen", message.to_owned());
    }
    (input.listen, input.dial) = (listen.unwrap_or_default(), dial.unwrap_or_default());
    take_reconnect(&mut section, &mut input.reconnect);
    if section.has("reconnect") && !section.has("dial") {
        section.fault("reconnect", "is for inputs with `dial`: leave this key out".to_owned());
    }
    if let Some(types) = take_content_types(&mut section) {
        input.content_types = types;
    }
    section.set("unidirectional", value::boolean, &mut input.unidirectional);
    take_frame_len_max(&mut section, &mut input.frame_len_max);
    section.set("oversize", value::word, &mut input.oversize);
    section.set("handshake_timeout", value::duration(HANDSHAKE_MIN..=HOUR), &mut input.handshake_timeout);
    section.set("connections_max", value::integer(1..=CONNECTIONS_MAX), &mut input.connections_max);
    input.max_connection_age = section.take("max_connection_age", value::duration(AGE_MIN..=YEAR));
    take_access(&mut section, &input.listen, &mut input.access, &mut input.socket_file);
    take_server_tls(&mut section, &mut input);

    if input.frame_len_max < FRAME_LEN_USUAL {
        let message = format!("one DNS message of 64 KiB in dnstap needs up to {FRAME_LEN_USUAL}B");
        section.warn("frame_len_max", message);
    }
    if input.handshake_timeout < HANDSHAKE_USUAL {
        section.warn("handshake_timeout", "writers over slow paths may need 5s and more".to_owned());
    }
    Entry { config: input, origin: section.finish() }
}

fn take_content_types(section: &mut Section<'_>) -> Option<ContentTypes> {
    let any = |value: &Value| matches!(value, Value::Text(text) if text == ANY_TYPE);
    let types = section.take_list("content_types", |value| {
        if any(value) { Ok(None) } else { value::content_type(value).map(Some) }
    })?;
    if types.iter().any(Option::is_none) {
        if types.len() > 1 {
            section.fault("content_types", format!("\"{ANY_TYPE}\" takes every type: leave the others out"));
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

/// Pauses between attempts to connect.
pub(super) fn take_reconnect(section: &mut Section<'_>, reconnect: &mut Reconnect) {
    let Some(mut keys) = section.table("reconnect", "{ min = \"100ms\", max = \"30s\" }") else { return };
    let pause = || value::duration(RECONNECT_MIN..=DAY);
    let (min, max) = (keys.take("min", pause()), keys.take("max", pause()));
    let written = (min.is_some() || !keys.has("min")) && (max.is_some() || !keys.has("max"));
    let given = Reconnect { min: min.unwrap_or(reconnect.min), max: max.unwrap_or(reconnect.max) };
    if given.min <= given.max {
        *reconnect = given;
    } else if written {
        keys.fault("min", "must not be longer than `max`".to_owned());
    }
    keys.finish();
}

/// The longest data frame, payload bytes.
pub(super) fn take_frame_len_max(section: &mut Section<'_>, target: &mut u32) {
    if let Some(len) = section.take("frame_len_max", value::size(FRAME_LEN_MIN..=FRAME_LEN_MAX)) {
        *target = u32::try_from(len).unwrap_or(u32::MAX);
    }
}

const WORKERS_MAX: usize = 1024;
/// More descriptors than a service manager keeps for a unit.
const STORE_MAX: usize = 1 << 20;
/// The least that the reference's `fstrm_reader_options_set_max_frame_size` takes.
const FRAME_LEN_MIN: u64 = 512;
/// Longer lengths are told from broken streams by nobody.
const FRAME_LEN_MAX: u64 = (1 << 31) - 1;
/// 65 535 bytes of DNS message and 1 KiB of dnstap around it.
const FRAME_LEN_USUAL: u32 = 66_560;
pub(super) const HANDSHAKE_MIN: Duration = Duration::from_millis(100);
const HANDSHAKE_USUAL: Duration = Duration::from_secs(5);
/// Shorter pauses happen to readers that are well.
pub(super) const STALL_MIN: Duration = Duration::from_millis(100);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
const RECONNECT_MIN: Duration = Duration::from_millis(1);
/// Ages are looked at once a second.
const AGE_MIN: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
