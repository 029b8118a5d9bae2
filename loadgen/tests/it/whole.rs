//! `bench`, `compare` and `demo`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use tempfile::TempDir;

use crate::support::loadgen;
use crate::support::result;

/// A stand-in for the relay, which need not be built for these tests: `floor` behind the relay's arguments.
fn stand_in(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("tapster");
    let script = r#"#!/bin/sh
shift
set -- "$@" end
while [ "$1" != end ]; do
    case $1 in
        --listen) set -- "$@" --listen "$2" ;;
        --to) set -- "$@" --to "${2%%\?*}" ;;
    esac
    shift 2
done
shift
exec LOADGEN floor "$@"
"#;
    let script = script.replace("LOADGEN", env!("CARGO_BIN_EXE_loadgen"));
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn output(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = [stdout, stderr].concat();
    (status.success(), String::from_utf8(text).unwrap())
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn bench_measures_in_pairs_and_writes_what_compare_reads() {
    let folder = TempDir::new().unwrap();
    let relay = stand_in(&folder);
    let file = |name: &str| folder.path().join(name);
    for (name, shape) in
        [("a", ["--transport", "unix", "--outputs", "1"]), ("b", ["--transport", "tcp", "--outputs", "2"])]
    {
        let (json, svg) = (file(&format!("{name}.json")), file(&format!("{name}.svg")));
        let mut bench = loadgen(&["bench", "--relay", path_text(&relay), "--against", "floor"]);
        bench.args(["--rounds", "2", "--duration", "200ms", "--rate", "5k", "--connections", "2"]);
        bench.args(shape).arg("--json").arg(&json).arg("--plot").arg(&svg).arg("--hgrm").arg(file("hgrm"));
        let (right, text) = output(&mut bench);
        assert!(right, "{text}");
        assert!(text.contains("ratio") && text.contains("p99.9"), "{text}");
        assert!(fs::read_to_string(&svg).unwrap().contains("<svg"));
        assert!(fs::read_to_string(file("hgrm/relay.hgrm")).unwrap().contains("Percentile"));
        let result: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        let rounds = result["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 4, "two rounds of two contenders, without the warm-up");
        assert!(rounds.iter().all(|round| round["frames"] == 1000 && round["lost"] == 0), "{result}");
        assert!(rounds.iter().all(|round| round["cpu_ns"].as_u64() > Some(0)), "{result}");
    }
    let (right, text) = output(loadgen(&["compare"]).arg(file("a.json")).arg(file("b.json")));
    assert!(right, "{text}");
    assert!(text.contains("relay, ratio to floor") && text.contains("shape differs"), "{text}");
    for by in ["outputs", "percentile"] {
        let svg = file(&format!("{by}.svg"));
        let mut plot = loadgen(&["plot", "--by", by, "--out", path_text(&svg)]);
        let (right, text) = output(plot.arg(file("a.json")));
        assert!(right, "{text}");
        assert!(fs::read_to_string(&svg).unwrap().contains("</svg>"));
    }
}

#[test]
fn plot_says_what_it_cannot_draw() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("missing.json");
    let mut plot = loadgen(&["plot", "--by", "outputs", path_text(&missing), "--out", "/nowhere/a.svg"]);
    let (right, text) = output(&mut plot);
    assert!(!right && text.contains("cannot read"), "{text}");
}

#[test]
fn variants_and_the_way_without_a_relay_take_part_in_the_same_rounds() {
    let folder = TempDir::new().unwrap();
    let relay = stand_in(&folder);
    let json = folder.path().join("a.json");
    let other = format!("other:path={},queue=1MiB", path_text(&relay));
    let mut bench = loadgen(&["bench", "--relay", path_text(&relay), "--variant", &other]);
    bench.args(["--against", "direct", "--rounds", "2", "--duration", "200ms", "--rate", "1000"]);
    let (right, text) = output(bench.args(["--outputs", "2", "--pin", "0:0", "--json"]).arg(&json));
    assert!(right, "{text}");
    let result: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let rounds = result["rounds"].as_array().unwrap();
    let contenders: Vec<&str> = rounds.iter().map(|round| round["contender"].as_str().unwrap()).collect();
    assert_eq!(contenders, ["relay", "other", "direct", "relay", "other", "direct"]);
    let [relay, other, direct] = [0, 1, 2].map(|index| &result["summary"][index]);
    assert!(relay["added"]["p99_us"]["median"].is_f64() && relay["ratio_to_relay"].is_null(), "{result}");
    assert!(other["added"]["p50_us"]["median"].is_f64(), "{result}");
    assert!(other["ratio_to_relay"]["median"].as_f64() > Some(0.0), "{result}");
    assert!(direct["cpu_ns_per_frame"].is_null() && direct["lost"] == 0, "{result}");
    assert!(text.contains("against relay") && text.contains("added to direct"), "{text}");
}

#[test]
fn a_variant_without_its_binary_is_refused_before_anything_runs() {
    let folder = TempDir::new().unwrap();
    let relay = stand_in(&folder);
    let mut bench = loadgen(&["bench", "--relay", path_text(&relay), "--variant", "old:path=/nowhere/old"]);
    let (right, text) = output(&mut bench);
    assert!(!right && text.contains("/nowhere/old is not there"), "{text}");
}

#[test]
fn idle_tells_what_connections_cost_that_send_nothing() {
    let folder = TempDir::new().unwrap();
    let relay = stand_in(&folder);
    for transport in ["unix", "tcp"] {
        let mut idle = loadgen(&["idle", "--relay", path_text(&relay), "--transport", transport, "--json"]);
        let (right, report) =
            result(&idle.args(["--connections", "50", "--hold", "200ms"]).output().unwrap());
        assert!(right, "{report}");
        assert_eq!((&report["connections"], &report["problems"]), (&50.into(), &serde_json::json!([])));
        // The stand-in has two threads for each connection, whose stacks it touches.
        assert!(report["bytes_per_connection"].as_f64() > Some(4096.0), "{report}");
        assert!(report["resident"].as_u64() > report["resident_before"].as_u64(), "{report}");
    }
}

#[test]
fn bench_without_a_relay_tells_how_to_build_it() {
    let (right, text) = output(&mut loadgen(&["bench", "--relay", "/nowhere/tapster"]));
    assert!(!right);
    assert!(text.contains("cargo build --release"), "{text}");
}

#[test]
fn the_demo_ends_by_itself_with_every_frame_accounted_for() {
    let (right, text) = output(&mut loadgen(&["demo", "--duration", "2s", "--rate", "20k"]));
    assert!(right, "{text}");
    assert!(text.contains("verified: every one of 40 000 frames"), "{text}");
}
