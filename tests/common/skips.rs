//! Tests that prove nothing on this machine: they pass, but not in silence.

use std::collections::BTreeSet;
use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::io::stderr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

/// The file to which every skip is added, a line each. `.ci/run` names one, prints it at its end, and fails if too many
/// skips are for [`Cause::Timing`].
const FILE: &str = "TAPSTER_SKIPS";

/// Why a test cannot prove anything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "not every test program measures time")]
pub(crate) enum Cause {
    /// The machine is too busy to measure time.
    Timing,
    /// The machine lacks a program or a right.
    Missing,
}

/// Says on stderr that the test of this thread proves nothing because of `what`, and adds it to the file that
/// `TAPSTER_SKIPS` names. What a test says again is left out.
pub(crate) fn skip(cause: Cause, what: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let line = line(cause, thread::current().name().unwrap_or("a thread"), what);
    if !SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(line.clone()) {
        return;
    }
    // Not `eprintln!`: what that prints is not shown for a test that passes. And one write, as for the file.
    let _ = stderr().write_all(format!("skipped: {line}\n").as_bytes());
    if let Some(file) = env::var_os(FILE).filter(|file| !file.is_empty()) {
        add(Path::new(&file), &line);
    }
}

fn line(cause: Cause, test: &str, what: &str) -> String {
    let cause = match cause {
        Cause::Timing => "timing",
        Cause::Missing => "missing",
    };
    format!("{cause}: {test}: {what}")
}

/// One write for a line: test programs that run at the same time do not mix theirs.
fn add(file: &Path, line: &str) {
    let added = OpenOptions::new().append(true).create(true).open(file);
    let added = added.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    added.unwrap_or_else(|error| panic!("{FILE}={}: {error}", file.display()));
}

#[test]
fn a_skip_is_one_line_that_begins_with_its_cause() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let file = folder.path().join("skips");
    add(&file, &line(Cause::Timing, "latency::epoll", "the machine is too busy"));
    add(&file, &line(Cause::Missing, "peers::uring", "named is not installed"));
    let lines =
        "timing: latency::epoll: the machine is too busy\nmissing: peers::uring: named is not installed\n";
    assert_eq!(std::fs::read_to_string(file).expect("the file"), lines);
}
