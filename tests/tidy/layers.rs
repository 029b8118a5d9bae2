//! Which module may import which, that the pure modules do no I/O, and where `unsafe` may stand.

use crate::sources::code_lines;
use crate::sources::contains_word;
use crate::sources::is_test;
use crate::sources::paths_after;
use crate::sources::read_sources;

/// Modules from the ground up. A module imports from lower layers only, never from its own.
const LAYERS: &[&[&str]] = &[
    &["protocol", "dnstap", "lifecycle", "faults", "observability", "transport"],
    &["admission", "batch", "loops"],
    &["queue", "delivery", "session"],
    &["spool"],
    &["route"],
    &["input", "output", "bench"],
    &["config"],
    &["relay"],
    &["admin"],
    &["main", "cli", "commands"],
];

/// Modules of one program rather than of the library: these import each other.
const PROGRAM: &[&str] = &["main", "cli", "commands"];

/// Imports that go against the layers, each for its reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    // Every module owns its configuration; `config` makes the values of all of them, the relay's too.
    ("config", "crate::relay::RelayConfig"),
];

/// Modules that take bytes and time, and give bytes and decisions.
const PURE: &[&str] = &["protocol", "dnstap", "delivery", "route"];

/// What a pure module does not name.
const IMPURE: &[&str] = &[
    "std::io",
    "std::net",
    "std::fs",
    "std::os",
    "std::env",
    "std::process",
    "std::thread",
    "std::sync::mpsc",
    "Instant::now",
    "SystemTime",
    "tokio",
    "tracing",
    "println!",
    "eprintln!",
    "dbg!",
];

/// Modules that are told the time, and the files of them that read a clock for others.
const CLOCKLESS: &[(&str, &[&str])] = &[("spool", &["spool/moment.rs", "spool/stage_loop.rs"])];

/// How a clock is read.
const CLOCKS: &[&str] = &["Instant::now", "SystemTime", "Moment::now", "elapsed"];

/// The only file with `unsafe` code.
const UNSAFE: &str = "transport/sys.rs";

#[test]
fn the_sources_keep_the_rules() {
    let faults: Vec<_> = read_sources("src").iter().flat_map(|(path, text)| check(path, text)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Checks one file, `path` below `src`. Returns a sentence for each fault.
fn check(path: &str, text: &str) -> Vec<String> {
    let module = path.split(['/', '.']).next().unwrap_or_default();
    if module == "lib" || is_test(path) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    if layer(module).is_none() {
        faults.push(format!(
            "{path}: module `{module}` has no place in LAYERS of tests/tidy/layers.rs: give it one"
        ));
    }
    let at_top = path.ends_with("mod.rs") && path.matches('/').count() == 1 || !path.contains('/');
    for (number, line) in code_lines(text) {
        let mut fault = |what: String| faults.push(format!("{path}:{number}: {what}"));
        for import in paths_after(line, "crate::") {
            if let Some(what) = forbidden_import(module, import) {
                fault(what);
            }
        }
        if line.contains("super::super") || at_top && !paths_after(line, "super::").is_empty() {
            fault("`super` leads out of the module: write `crate::` so that the import is seen".to_owned());
        }
        if PURE.contains(&module) {
            for word in IMPURE.iter().filter(|word| contains_word(line, word)) {
                fault(format!("`{module}` is pure and does not use `{word}`"));
            }
        }
        if CLOCKLESS.iter().any(|(told, except)| *told == module && !except.contains(&path)) {
            for word in CLOCKS.iter().filter(|word| contains_word(line, word)) {
                fault(format!("`{module}` gets the time from its caller and does not use `{word}`"));
            }
        }
        if contains_word(line, "unsafe") && path != UNSAFE {
            fault(format!("`unsafe` belongs into src/{UNSAFE}"));
        }
    }
    faults
}

/// Why `module` may not import this path, which begins with `crate::`.
fn forbidden_import(module: &str, import: &str) -> Option<String> {
    let target = import.split("::").nth(1).unwrap_or_default();
    if target.is_empty() {
        return Some("one `use crate::module::Name;` line per import".to_owned());
    }
    if target == module || PROGRAM.contains(&module) && PROGRAM.contains(&target) {
        return None;
    }
    if EXCEPTIONS.contains(&(module, import)) {
        return None;
    }
    match (layer(module), layer(target)) {
        (Some(from), Some(to)) if to < from => None,
        (Some(_), None) if !target.chars().all(|c| c.is_lowercase() || c == '_') => {
            Some(format!("import {target} from the module that defines it"))
        }
        _ => Some(format!("`{module}` may not import `{target}`")),
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

mod the_checker {
    use super::check;

    fn faults(path: &str, text: &str) -> usize {
        check(path, text).len()
    }

    #[test]
    fn lets_good_sources_pass() {
        assert_eq!(
            faults("session/read.rs", "use crate::protocol::Decoder;\nuse crate::session::Read;\n"),
            0
        );
        assert_eq!(faults("relay/worker.rs", "pub use crate::input::InputConfig;\n"), 0);
        assert_eq!(faults("config/resolve.rs", "use crate::relay::RelayConfig;\n"), 0);
        assert_eq!(faults("commands/run.rs", "use crate::cli::Arguments;\n"), 0);
        assert_eq!(faults("transport/uring.rs", "use std::io;\nuse super::Address;\n"), 0);
        assert_eq!(faults("transport/sys.rs", "unsafe { close(fd) }\n"), 0);
    }

    #[test]
    fn finds_imports_that_go_up_or_sideways() {
        for (path, import) in [
            ("protocol/reader.rs", "crate::transport::Address"),
            ("session/read.rs", "crate::queue::WhenFull"),
            ("queue/channel.rs", "crate::route::Filter"),
            ("queue/channel.rs", "crate::spool::Spool"),
            ("delivery/endpoint.rs", "crate::queue::Queue"),
            ("spool/log.rs", "crate::output::OutputConfig"),
            ("spool/log.rs", "crate::route::Fanout"),
            ("spool/log.rs", "crate::output::File"),
            ("input/listener.rs", "crate::output::OutputConfig"),
            ("output/file.rs", "crate::input::InputConfig"),
            ("input/mod.rs", "crate::relay::Relay"),
            ("config/resolve.rs", "crate::relay::Relay"),
            ("relay/mod.rs", "crate::admin::Server"),
        ] {
            assert_eq!(faults(path, &format!("use {import};\n")), 1, "{path} imports {import}");
            assert_eq!(faults(path, &format!("fn f() {{ let x = {import}::new(); }}\n")), 1);
        }
    }

    #[test]
    fn finds_imports_that_hide() {
        assert_eq!(faults("session/read.rs", "use crate::{protocol, output};\n"), 1);
        assert_eq!(faults("session/read.rs", "use super::super::output::File;\n"), 1);
        assert_eq!(faults("session/mod.rs", "use super::output::File;\n"), 1);
        assert_eq!(faults("lifecycle.rs", "use super::output::File;\n"), 1);
        assert_eq!(faults("session/read.rs", "use crate::FrameBatch;\n"), 1);
    }

    #[test]
    fn finds_io_in_pure_modules() {
        for line in
            ["use std::io;", "use std::net::TcpStream;", "let now = Instant::now();", "use tokio::time;"]
        {
            assert_eq!(faults("protocol/reader.rs", line), 1, "{line}");
            assert_eq!(faults("protocol/reader.rs", &format!("/// {line}\n")), 0);
            assert_eq!(faults("protocol/reader.rs", &format!("#[cfg(test)]\nmod tests {{\n{line}\n}}\n")), 0);
            assert_eq!(faults("protocol/reader/tests.rs", line), 0);
            assert_eq!(faults("output/backoff.rs", line), 0);
        }
    }

    #[test]
    fn finds_clocks_where_the_time_is_told() {
        for line in ["let now = Instant::now();", "let now = Moment::now();", "begin.elapsed()"] {
            assert_eq!(faults("spool/log.rs", line), 1, "{line}");
            assert_eq!(faults("spool/moment.rs", line), 0, "{line}");
            assert_eq!(faults("queue/channel.rs", line), 0, "{line}");
        }
    }

    #[test]
    fn finds_unsafe_code() {
        assert_eq!(faults("transport/uring.rs", "let fd = unsafe { dup(fd) };\n"), 1);
        assert_eq!(faults("transport/mod.rs", "#![forbid(unsafe_code)]\n"), 0);
    }

    #[test]
    fn finds_modules_without_a_place() {
        assert_eq!(faults("helpers/mod.rs", "fn f() {}\n"), 1);
        assert_eq!(faults("session/read.rs", "use crate::helpers::f;\n"), 1);
    }
}
