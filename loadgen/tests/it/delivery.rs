//! A sink behind the relay, between whose checkpoints it is killed.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use tapster::input::InputConfig;
use tapster::observability::OutputLedger;
use tapster::output::Checkpoint;
use tapster::output::Delivery;
use tapster::output::Destination;
use tapster::output::Endpoints;
use tapster::output::Mode;
use tapster::output::Order;
use tapster::output::OutputConfig;
use tapster::output::Reconnect;
use tapster::output::StreamsConfig;
use tapster::relay::Relay;
use tapster::relay::RelayConfig;
use tempfile::TempDir;

use crate::support::Process;
use crate::support::loadgen;
use crate::support::result;

fn output(relay: &Relay) -> OutputLedger {
    relay.ledger().outputs.remove(0)
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_sink_killed_between_checkpoints_gets_everything_since_the_last_finish_again() {
    let folder = TempDir::new().unwrap();
    let unix = |name: &str| format!("unix:{}", folder.path().join(name).display());
    let listen = vec![unix("in.sock").parse().unwrap()];
    let streams = StreamsConfig {
        mode: Mode::Bidirectional {
            finish_timeout: Duration::from_secs(5),
            delivery: Delivery::Finish { every: Checkpoint::Bytes(1 << 20), order: Order::PerConnection },
        },
        reconnect: Reconnect { min: Duration::from_millis(10), max: Duration::from_millis(200) },
        ..StreamsConfig::new(Endpoints::One(unix("sink.sock").parse().unwrap()))
    };
    let output_config = OutputConfig { to: Destination::Streams(streams), ..OutputConfig::default() };
    let config = RelayConfig {
        inputs: vec![InputConfig { listen, ..InputConfig::default() }],
        outputs: vec![output_config],
        ..RelayConfig::default()
    };
    let sink = |args: &[&str]| {
        let mut sink = Process::start(&[&["sink", "--json", "--listen", &unix("sink.sock")], args].concat());
        sink.address();
        sink
    };
    let send = |frames: &str| {
        let args = ["send", "--json", "--to", &unix("in.sock"), "--sizes", "130", "--frames", frames];
        let (sent, report) = result(&loadgen(&args).output().unwrap());
        assert!(sent, "{report}");
    };

    let killed = sink(&[]);
    let relay = Relay::start(config).unwrap();
    // More than a checkpoint, then a part of one: no other FINISH is to come.
    send("10000");
    eventually("a checkpoint", || output(&relay).frames_acknowledged > 0);
    send("2000");
    eventually("all is written", || output(&relay).frames_sent == 12_000);
    let acknowledged = output(&relay).frames_acknowledged;
    drop(killed);

    let expect = (14_000 - acknowledged).to_string();
    let last = sink(&["--expect", &expect]);
    send("2000");
    let ledger = relay.drain().outputs.remove(0);
    assert_eq!((ledger.frames_acknowledged, ledger.frames_resent), (14_000, 12_000 - acknowledged));
    let (_, report) = last.finish();
    let consumer = &report["consumers"][0];
    assert_eq!(report["frames"], 14_000 - acknowledged, "{report}");
    assert_eq!(consumer["duplicate"], 0, "{report}");
    // A generator of which all was acknowledged is not there at all.
    assert_eq!(consumer["missing"], acknowledged % 10_000, "{report}");
}
