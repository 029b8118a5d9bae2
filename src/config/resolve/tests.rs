use std::io::Write;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::*;
use crate::config::to_toml;
use crate::input::ContentTypes;
use crate::output::Ack;
use crate::output::Balance;
use crate::output::Buffer;
use crate::output::Checkpoint;
use crate::output::Delivery;
use crate::output::Destination;
use crate::output::Endpoints;
use crate::output::FileConfig;
use crate::output::GroupConfig;
use crate::output::Keep;
use crate::output::Lanes;
use crate::output::Mode;
use crate::output::Order;
use crate::output::Reconnect;
use crate::output::Rotate;
use crate::output::StreamsConfig;
use crate::queue::WhenFull;
use crate::spool::OnFull;
use crate::spool::SpoolConfig;
use crate::spool::SpoolSettings;
use crate::spool::SyncPolicy;
use crate::transport::ProxyVersion;
use crate::transport::tls::ClientTls;

fn from_file(text: &str) -> Result<Resolved, Faults> {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    resolve(&Options { config: vec![file.path().to_owned()], ..Options::default() })
}

fn from_options(listen: &[&str], to: &[&str]) -> Result<Resolved, Faults> {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    resolve(&Options { listen: owned(listen), to: owned(to), ..Options::default() })
}

/// Keys of the faults, in their order.
fn keys(result: Result<Resolved, Faults>) -> Vec<String> {
    result.unwrap_err().0.into_iter().map(|fault| fault.key).collect()
}

fn to(address: &str) -> Result<Resolved, Faults> {
    from_options(&[], &[address])
}

fn streams(output: &OutputConfig) -> &StreamsConfig {
    match &output.to {
        Destination::Streams(streams) => streams,
        other => panic!("{other} does not connect"),
    }
}

fn file(output: &OutputConfig) -> &FileConfig {
    match &output.to {
        Destination::File(file) => file,
        other => panic!("{other} is no file"),
    }
}

fn memory(max: usize, when_full: WhenFull, lanes: Lanes) -> Buffer {
    Buffer::Memory { max, when_full, lanes }
}

#[test]
fn without_anything_the_defaults_of_the_contract_hold() {
    let Resolved { config, warnings, .. } = resolve(&Options::default()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.inputs[0].listen, ["tcp://127.0.0.1:6000".parse().unwrap()]);
    assert_eq!(config.inputs[0].name, "tcp://127.0.0.1:6000");
    assert_eq!(config.outputs[0].to, Destination::File(FileConfig::new("tapster-%Y%m%dT%H%M%S.fstrm")));
    assert_eq!(config.drain_timeout, Duration::from_secs(10));
}

#[test]
fn every_key_of_a_file_is_read_and_printed_so_that_it_can_be_fed_back() {
    let Resolved { config, expired, warnings, .. } = from_file(EVERY_KEY).unwrap();
    assert_eq!(warnings, []);
    assert_eq!((config.workers, config.drain_timeout), (2, Duration::from_secs(90)));
    let [resolvers, any] = &config.inputs[..] else { panic!("{config:?}") };
    assert_eq!((resolvers.name.as_str(), resolvers.listen.len()), ("resolvers", 2));
    assert_eq!((resolvers.socket_file.mode, resolvers.connections_max), (Some(0o660), 50));
    assert_eq!((resolvers.access.allow.len(), resolvers.access.allow_users.len()), (2, 2));
    assert_eq!(any.content_types, ContentTypes::Any);
    let [siem, archive] = &config.outputs[..] else { panic!("{config:?}") };
    assert_eq!(siem.buffer, memory(256 << 20, WhenFull::Block, Lanes::PerWorker));
    let (min, max) = (Duration::from_secs(1), Duration::from_secs(60));
    assert_eq!(
        *streams(siem),
        StreamsConfig {
            endpoints: Endpoints::One("tcp://siem.example:6000".parse().unwrap()),
            mode: Mode::Unidirectional { finish_timeout: max, ack: Ack::Written },
            handshake_timeout: Duration::from_secs(10),
            user_timeout: Duration::from_secs(20),
            tls: ClientTls::default(),
            send_proxy: Some(ProxyVersion::V1),
            reconnect: Reconnect { min, max },
        }
    );
    assert_eq!(archive.buffer, memory(64 << 20, WhenFull::Sample, Lanes::One));
    let rotate = Rotate {
        size: Some(1 << 30),
        every: Some(Duration::from_secs(3600)),
        partial_suffix: Some(".part".to_owned()),
    };
    let reconnect = Reconnect { min, max: Duration::from_secs(30) };
    let pattern = "/var/lib/tapster/%Y/%m-%d \"x\".fstrm".to_owned();
    let keep = Some(Keep::Age(Duration::from_secs(7 * 24 * 3600)));
    assert_eq!(archive.to, Destination::File(FileConfig { pattern, mode: 0o600, rotate, keep, reconnect }));

    let again = from_file(&to_toml(&config)).unwrap();
    assert_eq!((again.config, again.admin), (config, AdminConfig::default()));
    assert_eq!((again.expired, again.warnings), (expired, warnings));
}

#[test]
fn a_query_carries_the_keys_of_a_file() {
    let Resolved { config, .. } = from_options(
        &["unix:/run/a.sock?name=a%20b&content_types=x&content_types=y&socket_mode=0600&unidirectional=false"],
        &["tcp://10.0.0.5:6000?when_full=block&queue=256MiB&reconnect.min=1s&connections=per_worker&content_type=x",
          "file:%Y.fstrm?rotate.every=1h&content_type=y"],
    ).unwrap();
    let ContentTypes::Only(types) = &config.inputs[0].content_types else { panic!("{config:?}") };
    assert_eq!((config.inputs[0].name.as_str(), types.len()), ("a b", 2));
    assert_eq!((config.inputs[0].unidirectional, config.inputs[0].socket_file.mode), (false, Some(0o600)));
    let [siem, hourly] = &config.outputs[..] else { panic!("{config:?}") };
    assert_eq!(siem.name, "tcp://10.0.0.5:6000");
    assert_eq!(siem.buffer, memory(256 << 20, WhenFull::Block, Lanes::PerWorker));
    assert_eq!(streams(siem).reconnect.min, Duration::from_secs(1));
    assert_eq!(
        (file(hourly).pattern.as_str(), file(hourly).mode, file(hourly).keep),
        ("%Y.fstrm", 0o640, None)
    );
    let kept = to("file:a.fstrm?keep=3&mode=unidirectional").unwrap().config;
    assert_eq!((file(&kept.outputs[0]).keep, file(&kept.outputs[0]).mode), (Some(Keep::Files(3)), 0o640));
    assert_eq!(from_file(&to_toml(&kept)).unwrap().config, kept);
    assert_eq!(file(hourly).rotate.every, Some(Duration::from_secs(3600)));
}

#[test]
fn a_checkpoint_implies_that_frames_are_held_and_that_finish_may_take_long() {
    let mode = |query: &str| streams(&to(&format!("tcp://a:1?{query}")).unwrap().config.outputs[0]).mode;
    let every = Checkpoint::Every(Duration::from_secs(60));
    assert_eq!(
        mode("checkpoint=60s"),
        Mode::Bidirectional {
            finish_timeout: Duration::from_secs(30),
            delivery: Delivery::Finish { every, order: Order::PerConnection },
        }
    );
    assert_eq!(mode("checkpoint=16MiB&finish_timeout=1s").finish_timeout(), Duration::from_secs(1));
    for query in ["checkpoint=60s&order=strict", "checkpoint=16MiB", "ack=received&replay_margin=1MiB"] {
        let resolved = to(&format!("tcp://a:1?{query}")).unwrap();
        assert_eq!(from_file(&to_toml(&resolved.config)).unwrap().config, resolved.config, "{query}");
    }
    let fault = to("tcp://a:1?checkpoint=32MiB").unwrap_err().to_string();
    assert!(fault.contains("32MiB for the next one and 1048580B for the longest"), "{fault}");
    assert!(fault.contains("make 68157444B, and `queue` has 64MiB"), "{fault}");
    assert_eq!(
        mode("ack=received&replay_margin=256KiB"),
        Mode::Bidirectional {
            finish_timeout: Duration::from_secs(5),
            delivery: Delivery::Acked(Ack::Received { margin: 256 << 10 }),
        }
    );
}

#[test]
fn every_fault_is_named_in_one_go_with_its_line_key_and_name() {
    let faults = from_file(MANY_FAULTS).unwrap_err();
    let shown: Vec<String> = faults.0.iter().map(|fault| format!("{}: {}", fault.place, fault.key)).collect();
    let places: Vec<&str> =
        shown.iter().map(|place| place.rsplit_once(".tmp").map_or(&**place, |_| place)).collect();
    let ends = |end: &str| places.iter().filter(|place| place.ends_with(end)).count();
    for end in [
        ":2: worker",
        ":3: backend",
        ":7: input[0].listen[1] (input `in`)",
        ":8: input[0].frame_len_max (input `in`)",
        ":11: input[1].listen",
        ":15: output[0].to (output `siem`)",
        ":16: output[0].when_full (output `siem`)",
        ":17: output[0].queue (output `siem`)",
        ":18: output[0].reconnect.min (output `siem`)",
        ":19: output[0].rotate.evry (output `siem`)",
    ] {
        assert_eq!(ends(end), 1, "{end} in {places:#?}");
    }
    assert_eq!(places.len(), 10, "{faults}");
    assert!(faults.to_string().contains("is not a key; did you mean `workers`?"), "{faults}");
    assert!(faults.to_string().contains("did you mean `every`?"), "{faults}");
}

#[test]
fn syntax_errors_and_faults_of_the_command_line_come_together() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(b"workers = \ndrain_timeout = 10\n").unwrap();
    let faults = resolve(&Options {
        config: vec![file.path().to_owned()],
        to: vec!["tcp://a".to_owned(), "tcp://a:1?queue".to_owned()],
        backend: Some("kqueue".to_owned()),
        ..Options::default()
    })
    .unwrap_err();
    let text = faults.to_string();
    for part in [
        ":1: ",
        ":2: drain_timeout: ",
        "--to tcp://a: to: ",
        "--to tcp://a:1?queue: ",
        "command line: backend",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    for path in ["/nonexistent/tapster.toml", "/dev/zero"] {
        let faults = resolve(&Options { config: vec![path.into()], ..Options::default() }).unwrap_err();
        assert!(faults.to_string().contains(&format!("{path}: the configuration file")), "{faults}");
    }
}

#[test]
fn the_command_line_goes_over_the_file() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(b"workers = 2\n[[output]]\nto = \"tcp://a:1\"\n").unwrap();
    let config = vec![file.path().to_owned()];
    let options = Options {
        config,
        to: vec!["tcp://b:1".to_owned()],
        workers: Some("3".to_owned()),
        ..Options::default()
    };
    let config = resolve(&options).unwrap().config;
    assert_eq!((config.workers, config.outputs.len()), (3, 2));
}

#[test]
fn names_that_were_written_must_differ_and_others_are_made_to() {
    assert_eq!(keys(from_options(&[], &["tcp://a:1?name=x", "tcp://b:1?name=x"])), ["name (output `x`)"]);
    let config =
        from_options(&["tcp://[::1]:0", "tcp://[::1]:0"], &["tcp://a:1", "tcp://a:1"]).unwrap().config;
    assert_eq!(config.outputs[1].name, "tcp://a:1#2");
    assert_eq!(config.inputs[1].name, "tcp://[::1]:0#2");
}

#[test]
fn addresses_must_not_be_listened_on_twice_nor_feed_back() {
    assert_eq!(keys(from_options(&["tcp://a:1", "tcp://a:1"], &[])), ["listen"]);
    assert_eq!(keys(from_options(&["tcp://0.0.0.0:1"], &["tls://localhost:1"])), ["to"]);
    assert_eq!(keys(from_options(&["unix:/a/b", "unix:/a//b"], &[])), ["listen"]);
    assert_eq!(keys(from_options(&["tcp://0.0.0.0:1"], &["tcp://localhost:1"])), ["to"]);
    assert_eq!(keys(from_options(&["unix:/a"], &["unix:/a"])), ["to"]);
}

#[test]
fn an_input_listens_or_dials_or_does_both() {
    let input = |keys: &str| from_file(&format!("[[input]]\n{keys}\n"));
    let resolved =
        input("dial = [\"tcp://coredns.example:6000\", \"unix:/a\"]\nreconnect = { max = \"5s\" }").unwrap();
    let dialling = &resolved.config.inputs[0];
    assert_eq!((dialling.name.as_str(), dialling.listen.len()), ("tcp://coredns.example:6000", 0));
    let reconnect = Reconnect { min: Duration::from_millis(100), max: Duration::from_secs(5) };
    assert_eq!((dialling.dial.len(), dialling.reconnect), (2, reconnect));
    assert_eq!(from_file(&to_toml(&resolved.config)).unwrap().config, resolved.config);
    let both = input("listen = \"unix:/b\"\ndial = \"unix:/a\"\nconnections_max = 7").unwrap();
    assert_eq!(from_file(&to_toml(&both.config)).unwrap().config, both.config);
    for (keys, at) in [
        ("name = \"a\"", "listen (input `a`)"),
        ("listen = \"unix:/a\"\nreconnect = { min = \"1s\" }", "reconnect"),
        ("dial = \"unix:/a\"\nreconnect = { min = \"1h\" }", "reconnect.min"),
        ("dial = []", "dial"),
        ("dial = \"tls://a:1\"", "dial"),
        ("dial = \"file:a.fstrm\"", "dial"),
        ("dial = \"tcp://a:0\"", "dial"),
        ("dial = [\"tcp://a:1\", \"tcp://a:1\"]\nname = \"a\"", "dial (input `a`)"),
        ("dial = \"tcp://localhost:1\"\nlisten = \"tcp://0.0.0.0:1\"", "dial"),
        ("dial = \"tcp://a:1\"\nconnections_max = 7", "connections_max"),
    ] {
        let faults = input(keys).unwrap_err();
        let places: Vec<_> = faults.0.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(places, [format!("input[0].{at}").as_str()], "{keys}: {faults}");
    }
}

#[test]
fn a_spool_has_its_keys_and_its_limits() {
    let buffer = |query: &str| to(&format!("tcp://a:1?{query}")).unwrap().config.outputs.remove(0).buffer;
    let spool = SpoolSettings { folder: "/s".into(), config: SpoolConfig::default() };
    assert_eq!(buffer("when_full=spill&spool.dir=/s"), Buffer::Spill { memory: 64 << 20, spool });
    let query = "buffer=disk&spool.dir=/s&spool.max=1GiB&spool.max_age=7d&spool.min_free=0B&spool.sync=batch\
                 &spool.on_full=block";
    let config = SpoolConfig {
        max: 1 << 30,
        max_age: Duration::from_secs(7 * 24 * 3600),
        min_free: 0,
        sync: SyncPolicy::Batch,
        on_full: OnFull::Block,
    };
    let spool = SpoolSettings { folder: "/s".into(), config };
    assert_eq!(buffer(query), Buffer::Disk { memory: 64 << 20, spool });
    for query in
        [query, "when_full=spill&spool.dir=/s&spool.sync=250ms", "buffer=disk&spool.dir=/s&spool.sync=none"]
    {
        let resolved = to(&format!("tcp://a:1?{query}")).unwrap();
        assert_eq!(from_file(&to_toml(&resolved.config)).unwrap().config, resolved.config, "{query}");
    }
    for (query, key) in [
        ("when_full=spill", "when_full"),
        ("buffer=disk", "buffer"),
        ("spool.dir=/s", "spool"),
        ("buffer=disk&spool.max=1GiB", "spool.dir"),
        ("buffer=disk&when_full=block&spool.dir=/s", "when_full"),
        ("buffer=disk&spool.dir=/s&spool.max=1MiB", "spool"),
        ("buffer=disk&spool.dir=/s&spool.sync=often", "spool.sync"),
        ("buffer=disk&spool.dir=/s&spool.dri=/s", "spool.dri"),
        ("buffer=disk&spool.dir=/s&connections=per_worker", "connections"),
        ("buffer=disk&spool.dir=/s&checkpoint=16MiB", "checkpoint"),
    ] {
        assert_eq!(keys(to(&format!("tcp://a:1?{query}"))), [key], "{query}");
    }
    assert_eq!(keys(to("file:a.fstrm?buffer=disk&spool.dir=/s")), ["spool"]);
    let twice = ["tcp://a:1?buffer=disk&spool.dir=/s", "tcp://b:1?when_full=spill&spool.dir=/s"];
    assert_eq!(keys(from_options(&[], &twice)), ["spool.dir"]);
    let small = to("tcp://a:1?buffer=disk&spool.dir=/s&spool.max=1MiB").unwrap_err().to_string();
    assert!(small.contains("it needs 4210864 = 4 segments of 1052716 bytes"), "{small}");
}

#[test]
fn two_outputs_do_not_write_into_one_stdout_or_fifo() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    let [fifo, link] = [fifo, link].map(|path| format!("file:{}", path.display()));
    for twice in [["file:-", "file:/dev/stdout"], [&fifo, &fifo], [&fifo, &link]] {
        assert_eq!(keys(from_options(&[], &twice)), ["to"], "{twice:?}");
    }
    for apart in [["file:-", fifo.as_str()], ["file:/dev/null", "file:/dev/null"], ["file:a", "file:b"]] {
        assert!(from_options(&[], &apart).is_ok(), "{apart:?}");
    }
}

#[test]
fn keys_that_mean_nothing_for_an_address_are_refused() {
    for (address, key) in [
        ("tcp://a:1?rotate.size=1GiB", "rotate"),
        ("file:a.fstrm?connections=per_worker", "connections"),
        ("file:a.fstrm?mode=bidirectional", "mode"),
        ("file:a.fstrm?mode=0999", "mode"),
        ("tcp://a:1?mode=0640", "mode"),
        ("tcp://a:1?keep=3", "keep"),
        ("file:a.fstrm?keep=0", "keep"),
        ("file:a.fstrm?keep=soon", "keep"),
        ("file:%Z.fstrm?keep=3", "keep"),
        ("file:a.fstrm?rotate.partial_suffix=/x", "rotate.partial_suffix"),
        ("file:a.fstrm?finish_timeout=1s", "finish_timeout"),
        ("file:a.fstrm?user_timeout=10s", "user_timeout"),
        ("file:a.fstrm?send_proxy=v2", "send_proxy"),
        ("tcp://a:1?send_proxy=v3", "send_proxy"),
        ("unix:/a?user_timeout=10s", "user_timeout"),
        ("unix:/a?to=unix:/b&user_timeout=10s", "user_timeout"),
        ("file:a.fstrm?ack=received", "ack"),
        ("file:a.fstrm?checkpoint=60s", "checkpoint"),
        ("tcp://a:1?checkpoint=60s&mode=unidirectional", "checkpoint"),
        ("tcp://a:1?checkpoint=60", "checkpoint"),
        ("tcp://a:1?checkpoint=64MiB", "checkpoint"),
        ("tcp://a:1?checkpoint=60s&ack=written", "ack"),
        ("tcp://a:1?order=strict", "order"),
        ("tcp://a:1?replay_margin=1MiB", "replay_margin"),
        ("tcp://a:1?ack=received&replay_margin=32MiB", "replay_margin"),
        ("tcp://a:1?checkpoint=60s&replay_margin=1MiB", "replay_margin"),
        ("unix:/a?ack=received&replay_margin=1MiB", "replay_margin"),
        ("unix:/a?ack=received&mode=unidirectional&replay_margin=1MiB", "replay_margin"),
    ] {
        assert_eq!(keys(to(address)), [key], "{address}");
    }
    assert_eq!(keys(from_options(&["tcp://a:1?socket_mode=0660"], &[])), ["socket_mode"]);
}

#[test]
fn a_list_of_addresses_is_a_group() {
    let to_list = |query: &str| to(&format!("tcp://a:1?to=unix:/b&{query}"));
    let group_of = |output: &OutputConfig| -> GroupConfig {
        match &streams(output).endpoints {
            Endpoints::Group(group) => group.clone(),
            Endpoints::One(address) => panic!("{address} is no group"),
        }
    };
    let group = |query: &str| group_of(&to_list(query).unwrap().config.outputs[0]);
    let plain = group("");
    assert_eq!(plain.balance, Balance::RoundRobin);
    let weighted = group("balance=sticky&weights=2&weights=1&stall_timeout=2s&slow_start=0s");
    let weights: Vec<_> = weighted.members.iter().map(|member| member.weight).collect();
    assert_eq!((weighted.balance, weights), (Balance::Sticky, vec![2, 1]));
    assert_eq!((weighted.stall_timeout, weighted.slow_start), (Duration::from_secs(2), Duration::ZERO));
    for query in ["", "balance=failover", "balance=least_backlog&weights=2&weights=1&ack=received"] {
        let resolved = to_list(query).unwrap();
        assert_eq!(resolved.config.outputs[0].name, "tcp://a:1,unix:/b");
        assert_eq!(from_file(&to_toml(&resolved.config)).unwrap().config, resolved.config, "{query}");
    }
    let file =
        from_file("[[input]]\nlisten = \"tcp://c:1\"\n[[output]]\nto = [\"tcp://a:1\", \"unix:/b\"]\n");
    assert_eq!(group_of(&file.unwrap().config.outputs[0]), plain);
}

#[test]
fn groups_that_cannot_be_are_refused() {
    for (address, key) in [
        ("tcp://a:1?to=file:a.fstrm", "to"),
        ("tcp://a:1?to=tcp://a:1", "to"),
        ("tcp://a:1?to=tls://a", "to[1]"),
        ("tcp://a:1?balance=sticky", "balance"),
        ("tcp://a:1?weights=2", "weights"),
        ("tcp://a:1?stall_timeout=1s", "stall_timeout"),
        ("tcp://a:1?slow_start=1s", "slow_start"),
        ("tcp://a:1?to=tcp://b:1&weights=2", "weights"),
        ("tcp://a:1?to=tcp://b:1&weights=2&weights=0", "weights[1]"),
        ("tcp://a:1?to=tcp://b:1&weights=2&weights=1&balance=failover", "weights"),
        ("tcp://a:1?to=tcp://b:1&connections=per_worker", "connections"),
        ("tcp://a:1?to=tcp://b:1&rotate.size=1GiB", "rotate"),
        ("tcp://a:1?to=unix:/b&ack=received&replay_margin=1MiB", "replay_margin"),
        ("tcp://a:1?to=tcp://b:1&ack=received&replay_margin=16MiB", "replay_margin"),
        ("tcp://a:1?to=tcp://b:1&checkpoint=16MiB", "checkpoint"),
    ] {
        assert_eq!(keys(to(address)), [key], "{address}");
    }
    let one = from_file("[[output]]\nto = [\"tcp://a:1\"]\n").unwrap_err().to_string();
    assert!(one.contains("write to = \"tcp://a:1\""), "{one}");
}

#[test]
fn bounds_are_held() {
    for query in [
        "queue=1000B",
        "queue=64",
        "frame_len_max=511B&queue=1GiB",
        "frame_len_max=2GiB&queue=4GiB",
        "reconnect.min=2s&reconnect.max=1s",
        "reconnect.min=0s",
        "handshake_timeout=99ms",
        "user_timeout=999ms",
        "connections=2",
        "content_type=*",
    ] {
        assert_eq!(to(&format!("tcp://a:1?{query}")).unwrap_err().0.len(), 1, "{query}");
    }
    assert!(to("tcp://a:1?queue=1KiB&frame_len_max=1MiB").is_ok());
}

#[test]
fn what_is_odd_is_warned_of() {
    let listen = "tcp://a:1?frame_len_max=64KiB&handshake_timeout=1s&content_types=x";
    let warnings = from_options(&[listen], &["tcp://b:1"]).unwrap().warnings;
    let keys: Vec<_> = warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(keys, ["frame_len_max", "handshake_timeout", "content_type", "content_types"]);
}

const EVERY_KEY: &str = r#"
        workers = 2
        backend = "epoll"
        drain_timeout = "90s"

        [[input]]
        name = "resolvers"
        listen = ["unix:/run/tapster/dnstap.sock", "tcp://0.0.0.0:6000"]
        content_types = ["protobuf:dnstap.Dnstap", "\"ö\\"]
        unidirectional = false
        frame_len_max = "132KiB"
        oversize = "skip"
        handshake_timeout = "5s"
        connections_max = 50
        connections_max_per_address = 5
        max_connection_age = "12h"
        proxy_protocol = true
        proxy_from = ["192.0.2.0/24", "::1"]
        allow = ["10.0.0.0/8", "2001:db8::1"]
        allow_users = ["root", 53]
        allow_groups = "root"
        socket_mode = "0660"
        socket_user = "root"
        socket_group = 53

        [[input]]
        listen = "tcp://[::1]:6001"
        content_types = "*"

        [[output]]
        name = "siem"
        to = "tcp://siem.example:6000"
        when_full = "block"
        queue = "256MiB"
        connections = "per_worker"
        mode = "unidirectional"
        content_type = "\"ö\\"
        frame_len_max = "98304B"
        handshake_timeout = "10s"
        finish_timeout = "1m"
        user_timeout = "20s"
        send_proxy = "v1"
        reconnect = { min = "1s", max = "60s" }

        [[output]]
        name = "archive"
        when_full = "sample"
        to = "file:/var/lib/tapster/%Y/%m-%d \"x\".fstrm"
        mode = "0600"
        rotate = { size = "1GiB", every = "1h", partial_suffix = ".part" }
        keep = "7d"
        reconnect = { min = "1s" }
"#;

const MANY_FAULTS: &str = r#"
        worker = 2
        backend = "uringg"

        [[input]]
        name = "in"
        listen = ["tcp://a:1", "tcp://a"]
        frame_len_max = "1 megabyte"

        [[input]]
        listen = []

        [[output]]
        name = "siem"
        to = "tls://siem.example"
        when_full = "drop_old"
        queue = 64
        reconnect = { min = "1h" }
        rotate = { evry = "1h" }
"#;
