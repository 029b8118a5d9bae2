//! The keys of an `[[output]]` with `listen`: readers connect to it.

use crate::config::access::CONNECTIONS_MAX;
use crate::config::access::take_access;
use crate::config::buffer::QUEUE_MAX;
use crate::config::buffer::QUEUE_MIN;
use crate::config::keys::Entry;
use crate::config::keys::HANDSHAKE_MIN;
use crate::config::keys::HOUR;
use crate::config::keys::STALL_MIN;
use crate::config::keys::take_frame_len_max;
use crate::config::section::Section;
use crate::config::value;
use crate::config::words::BufferWord;
use crate::config::words::ModeWord;
use crate::config::words::when_full_words;
use crate::output::Buffer;
use crate::output::ConfigError;
use crate::output::Destination;
use crate::output::Lanes;
use crate::output::OutputConfig;
use crate::output::SubscribersConfig;

/// The keys of an output with `listen`. Its name is taken.
pub(super) fn take_subscribers(mut section: Section<'_>, mut output: OutputConfig) -> Entry<OutputConfig> {
    refuse_other_keys(&mut section);
    let listen = section.take_list("listen", value::listen_address).unwrap_or_default();
    let mut subscribers = SubscribersConfig::new(listen);
    output.buffer = take_queue(&mut section);
    let mode = section.take("mode", value::word::<ModeWord>).unwrap_or_default();
    subscribers.bidirectional = mode == ModeWord::Bidirectional;
    section.set("content_type", value::content_type, &mut output.content_type);
    take_frame_len_max(&mut section, &mut output.frame_len_max);
    let SubscribersConfig { handshake_timeout, finish_timeout, stall_timeout, .. } = &mut subscribers;
    section.set("handshake_timeout", value::duration(HANDSHAKE_MIN..=HOUR), handshake_timeout);
    section.set("finish_timeout", value::duration(Default::default()..=HOUR), finish_timeout);
    section.set("stall_timeout", value::duration(STALL_MIN..=HOUR), stall_timeout);
    section.set("subscribers_max", value::integer(1..=CONNECTIONS_MAX), &mut subscribers.subscribers_max);
    let SubscribersConfig { listen, access, socket_file, .. } = &mut subscribers;
    take_access(&mut section, listen, access, socket_file);
    // An address that is wrong has its fault already.
    let listens = !subscribers.listen.is_empty();
    output.to = Destination::Subscribers(subscribers);
    for error in output.faults() {
        if listens || error != ConfigError::ListenNowhere {
            section.fault(error.key(), error.to_string());
        }
    }
    Entry { config: output, origin: section.finish() }
}

/// Where the frames of each subscriber wait: in memory.
fn take_queue(section: &mut Section<'_>) -> Buffer {
    let when_full = section.take("when_full", value::choice(&when_full_words()));
    let on_disk = section.take("buffer", value::word::<BufferWord>) == Some(BufferWord::Disk);
    section.take("spool", |_| Ok(()));
    for (key, is_wrong) in
        [("when_full", when_full == Some(None)), ("buffer", on_disk), ("spool", section.has("spool"))]
    {
        if is_wrong {
            section.fault(key, ConfigError::SpoolOfSubscribers.to_string());
        }
    }
    section.take("connections", |_| Ok(()));
    if section.has("connections") {
        section.fault("connections", ConfigError::LanesOfSubscribers.to_string());
    }
    let queue = section.take("queue", value::size(QUEUE_MIN..=QUEUE_MAX));
    let max = queue.map_or(SubscribersConfig::QUEUE, |queue| usize::try_from(queue).unwrap_or(usize::MAX));
    Buffer::Memory { max, when_full: when_full.flatten().unwrap_or_default(), lanes: Lanes::One }
}

/// Keys that mean nothing for subscribers would be obeyed in vain.
fn refuse_other_keys(section: &mut Section<'_>) {
    let refusals: [(&str, &[&str]); 5] = [
        (
            "an output has `to` and connects, or has `listen` and is connected to: leave one of the two out",
            &["to"],
        ),
        (
            "is for outputs that connect to their readers: leave this key out",
            &["reconnect", "user_timeout", "send_proxy", "balance", "weights", "slow_start"],
        ),
        (
            "is for readers that are connected to again, and get what they have not acknowledged: leave this key out",
            &["ack", "replay_margin", "checkpoint", "order"],
        ),
        ("is for tls:// addresses, and subscribers have none yet: leave this key out", &["tls"]),
        ("is for file outputs: leave this key out", &["rotate", "keep"]),
    ];
    for (why, keys) in refusals {
        for key in keys {
            section.take(key, |_| Ok(()));
            if section.has(key) {
                section.fault(key, why.to_owned());
            }
        }
    }
}

/// Keys that these outputs alone have.
pub(super) const SUBSCRIBER_KEYS: [&str; 10] = [
    "subscribers_max",
    "allow",
    "allow_users",
    "allow_groups",
    "proxy_protocol",
    "proxy_from",
    "connections_max_per_address",
    "socket_mode",
    "socket_user",
    "socket_group",
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::resolve_toml;
    use crate::config::to_toml;

    fn resolved(keys: &str) -> OutputConfig {
        let text = format!("[[output]]\nname = \"analysts\"\n{keys}\n");
        let config = resolve_toml(&text).unwrap_or_else(|faults| panic!("{faults}")).config;
        assert_eq!(resolve_toml(&to_toml(&config)).unwrap().config, config, "as it is printed");
        config.outputs.into_iter().next().unwrap()
    }

    fn faults(keys: &str) -> Vec<String> {
        let text = format!("[[output]]\n{keys}\n");
        resolve_toml(&text).unwrap_err().0.into_iter().map(|fault| fault.key).collect()
    }

    fn subscribers(output: &OutputConfig) -> &SubscribersConfig {
        let Destination::Subscribers(subscribers) = &output.to else { panic!("{output:?}") };
        subscribers
    }

    #[test]
    fn an_output_with_listen_has_defaults_of_its_own() {
        let output = resolved("listen = \"tcp://127.0.0.1:6010\"");
        assert_eq!(output.buffer.memory(), SubscribersConfig::QUEUE);
        let listen = vec!["tcp://127.0.0.1:6010".parse().unwrap()];
        assert_eq!(*subscribers(&output), SubscribersConfig::new(listen));
    }

    #[test]
    fn every_key_is_taken_and_printed() {
        let output = resolved(
            "listen = [\"tcp://127.0.0.1:6010\", \"unix:/run/live.sock\"]\nsubscribers_max = 7\nqueue = \"2MiB\"\n\
             when_full = \"sample\"\nmode = \"unidirectional\"\nhandshake_timeout = \"2s\"\nfinish_timeout = \"3s\"\n\
             stall_timeout = \"4s\"\nallow = [\"10.0.0.0/8\"]\nallow_users = [0]\nsocket_mode = \"0660\"\n\
             connections_max_per_address = 3\nproxy_protocol = true\nproxy_from = [\"10.0.0.1\"]\ncontent_type = \"a\"",
        );
        let subscribers = subscribers(&output);
        assert_eq!((subscribers.listen.len(), subscribers.subscribers_max), (2, 7));
        assert!(!subscribers.bidirectional && subscribers.socket_file.mode == Some(0o660));
        let times = [subscribers.handshake_timeout, subscribers.finish_timeout, subscribers.stall_timeout];
        assert_eq!(times, [2, 3, 4].map(Duration::from_secs));
        assert_eq!(
            (subscribers.access.allow.len(), subscribers.access.connections_max_per_address),
            (1, Some(3))
        );
    }

    #[test]
    fn what_subscribers_cannot_have_is_named() {
        let listen = "listen = \"tcp://127.0.0.1:6010\"\n";
        for key in [
            "to = \"tcp://a:1\"",
            "when_full = \"block\"",
            "when_full = \"spill\"",
            "buffer = \"disk\"",
            "spool = { dir = \"/s\" }",
            "connections = \"per_worker\"",
            "connections = 1",
            "reconnect = { min = \"1s\" }",
            "user_timeout = \"10s\"",
            "send_proxy = true",
            "ack = \"received\"",
            "checkpoint = \"10s\"",
            "balance = \"sticky\"",
            "rotate = { every = \"1h\" }",
            "tls = { ca = \"/ca.pem\" }",
            "subscribers_max = 0",
            "stall_timeout = \"0s\"",
            "socket_mode = \"0660\"",
        ] {
            let name = key.split(' ').next().unwrap();
            assert_eq!(faults(&format!("{listen}{key}")), [format!("output[0].{name}")], "{key}");
        }
        assert_eq!(faults("listen = []"), ["output[0].listen"]);
        assert_eq!(faults("listen = [\"unix:/a\", \"unix:/a\"]"), ["output[0].listen"]);
        assert_eq!(faults("listen = \"file:/a\""), ["output[0].listen"]);
        assert_eq!(faults("listen = \"tls://127.0.0.1:6010\""), ["output[0].listen"]);
        for key in ["subscribers_max = 5", "allow = [\"10.0.0.0/8\"]", "socket_mode = \"0660\""] {
            let name = key.split(' ').next().unwrap();
            assert_eq!(faults(&format!("to = \"tcp://a:1\"\n{key}")), [format!("output[0].{name}")]);
        }
    }

    #[test]
    fn an_address_is_listened_on_once_and_no_output_connects_to_subscribers_of_its_own() {
        let all = |listen: &str, to: &str| {
            let text = format!(
                "[[input]]\nname = \"a\"\nlisten = \"tcp://127.0.0.1:6000\"\n[[output]]\nname = \"b\"\nlisten = \"{listen}\"\n\
                 [[output]]\nname = \"c\"\n{to}\n"
            );
            resolve_toml(&text).map(drop).map_err(|faults| faults.to_string())
        };
        assert_eq!(all("tcp://127.0.0.1:6010", "to = \"tcp://127.0.0.1:6011\""), Ok(()));
        let fault = all("tcp://127.0.0.1:6000", "to = \"tcp://127.0.0.1:6011\"").unwrap_err();
        assert!(fault.contains("listened on twice, here and by input `a`"), "{fault}");
        let fault = all("tls://127.0.0.1:6000", "to = \"tcp://127.0.0.1:6011\"").unwrap_err();
        assert!(fault.contains("listened on twice") && fault.contains("over TLS yet"), "{fault}");
        let fault = all("tcp://127.0.0.1:6010", "listen = \"tcp://127.0.0.1:6010\"").unwrap_err();
        assert!(fault.contains("listened on twice, here and by output `b`"), "{fault}");
        let fault = all("tcp://127.0.0.1:6010", "to = \"tcp://localhost:6010\"").unwrap_err();
        assert!(fault.contains("is where output `b` waits for readers"), "{fault}");
        let dials = "to = \"tcp://127.0.0.1:6011\"\n[[input]]\ndial = \"tcp://127.0.0.1:6010\"";
        let fault = all("tcp://127.0.0.1:6010", dials).unwrap_err();
        assert!(fault.contains("is where output `b` of this same tapster waits for readers"), "{fault}");
    }
}
