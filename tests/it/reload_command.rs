//! `tapster reload` and SIGHUP: the program takes another configuration while frames flow.

use std::time::Duration;

use rustix::process::Signal;
use tapster::faults;

use crate::support::collector::CollectingReader;
use crate::support::control::Controlled;
use crate::support::control::run;
use crate::support::files::files_in;
use crate::support::flow::Flow;
use crate::support::http::get;
use crate::support::http::send;
use crate::support::wait::eventually;

fn output(reader: &CollectingReader, more: &str) -> String {
    format!("[[output]]\nname = \"siem\"\nto = \"{}\"\n{more}\n", reader.address())
}

on_both_backends! {
    fn what_changed_is_printed_told_and_shown_and_frames_flow_on(backend) {
        let readers = [CollectingReader::tcp(), CollectingReader::tcp()];
        let mut relay = Controlled::start(backend, "", &output(&readers[0], ""));
        let flow = Flow::begin(0, &relay.input);
        let done = relay.command("reload", &[]);
        assert_eq!((done.code, &done.stdout[..]), (Some(0), "nothing has changed\n"), "{done:?}");
        let more = format!("[[output]]\nname = \"more\"\nto = \"{}\"\n", readers[1].address());
        relay.configure("drain_timeout = \"7s\"", &(output(&readers[0], "queue = \"2MiB\"") + &more));
        let done = relay.command("reload", &[]);
        let changes = ["drain_timeout: \"10s\" -> \"7s\"", "output siem: queue: \"64MiB\" -> \"2MiB\"", "output more: added"];
        assert_eq!((done.code, done.stdout.trim()), (Some(0), &changes.join("\n")[..]), "{done:?}");
        relay.tapster.process.wait_for_output(&format!("tapster reload: the configuration was read again: {}", changes.join("; ")));
        let (status, config) = get(&relay.admin, "/api/v1/config");
        assert_eq!((status, &config["drain_timeout"], &config["output"][1]["name"]), (200, &"7s".into(), &"more".into()));
        flow.wait_for_more(60);
        // Two at once: each has its turn.
        relay.configure("", &output(&readers[0], ""));
        let mut both = [relay.begin_command("reload"), relay.begin_command("reload")];
        for command in &mut both {
            command.wait_for_success(Duration::from_secs(60));
        }
        let printed = both.map(|command| command.output());
        assert!(printed.iter().any(|text| text.contains("output more: removed")), "{printed:?}");
        assert!(printed.iter().any(|text| text == "nothing has changed\n"), "{printed:?}");
        let sent = flow.end();
        relay.tapster.terminate();
        relay.tapster.summary().assert_balanced();
        let [first, _] = readers;
        let collected = first.close();
        assert_eq!((collected.frames(), collected.sessions.len()), (sent, 1), "the first output kept its connection");
    }

    fn a_file_with_faults_changes_nothing_and_each_fault_is_named_with_its_line(backend) {
        let reader = CollectingReader::tcp();
        let mut relay = Controlled::start(backend, "", &output(&reader, ""));
        relay.configure("workers = \"many\"", &output(&reader, "queue = \"2MiB\"\nwhen_ful = \"block\""));
        let done = relay.command("reload", &[]);
        assert_eq!((done.code, &done.stdout[..]), (Some(64), ""), "{done:?}");
        let faults = ["2 faults", "tapster.toml:2: workers: ", "tapster.toml:10: output[0].when_ful (output `siem`): "];
        for fault in faults {
            assert!(done.stderr.contains(fault), "{fault}: {done:?}");
        }
        // What cannot change while tapster runs.
        relay.configure("workers = 7", &output(&reader, "connections = \"per_worker\""));
        let done = relay.command("reload", &[]);
        let faults = ["tapster.toml:2: workers cannot change while tapster runs", "tapster.toml:6: connections of output `siem` cannot"];
        assert!(done.code == Some(64) && faults.iter().all(|fault| done.stderr.contains(fault)), "{done:?}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("[[input]]\nlisten = \"tcp://{}\"\n", taken.local_addr().unwrap());
        relay.configure("", &(listen + &output(&reader, "queue = \"3MiB\"")));
        let done = relay.command("reload", &[]);
        assert!(done.code == Some(64) && done.stderr.contains("tapster.toml:6: input `tcp://"), "{done:?}");
        relay.tapster.process.signal(Signal::HUP);
        relay.tapster.process.wait_for_output("SIGHUP: the configuration has faults, and nothing has changed: ");
        let config = get(&relay.admin, "/api/v1/config").1;
        assert_eq!((&config["output"][0]["queue"], &config["input"][1]), (&"64MiB".into(), &serde_json::Value::Null));
        relay.tapster.terminate();
    }

    fn sighup_reads_the_configuration_again_and_reopens_files(backend) {
        let file = |more: &str| format!("[[output]]\nname = \"file\"\nto = \"file:out-%f.fstrm\"\n{more}");
        let mut relay = Controlled::start(backend, "", &file(""));
        // A file without frames is not closed.
        let flow = Flow::begin(0, &relay.input);
        flow.wait_for_more(60);
        flow.end();
        relay.configure("", &file("queue = \"2MiB\""));
        relay.tapster.process.signal(Signal::HUP);
        relay.tapster.process.wait_for_output("SIGHUP: file outputs begin a new file");
        relay.tapster.process.wait_for_output("SIGHUP: the configuration was read again: output file: queue: \"64MiB\" -> \"2MiB\"");
        eventually("a second file", || files_in(relay.folder(), "fstrm").len() == 2);
        relay.tapster.terminate();
    }

    /// A reader that takes nothing keeps the drain waiting.
    fn a_process_that_drains_says_so_and_reads_no_configuration(backend) {
        let reader = CollectingReader::tcp().stalled();
        let mut relay = Controlled::start(backend, "drain_timeout = \"20s\"", &output(&reader, ""));
        let _flow = Flow::begin(0, &relay.input);
        reader.wait_for_sessions(1);
        assert_eq!(get(&relay.admin, "/readyz").0, 200);
        relay.tapster.process.signal(Signal::TERM);
        relay.tapster.process.wait_for_output("draining");
        let (status, body) = get(&relay.admin, "/readyz");
        assert_eq!((status, &body["error"]["code"]), (503, &"draining".into()));
        assert_eq!(get(&relay.admin, "/livez").0, 200);
        assert_eq!(get(&relay.admin, "/api/v1/status").1["state"], "draining");
        for command in ["reload", "upgrade"] {
            let done = relay.command(command, &[]);
            assert!(done.code == Some(1) && done.stderr.contains("tapster is draining"), "{done:?}");
        }
        reader.resume();
        relay.tapster.process.wait_for_success(Duration::from_secs(30));
    }

    /// Name servers that do not answer hold up whoever listens on a name.
    fn a_lookup_that_hangs_holds_up_the_reload_and_nothing_else(backend) {
        if !faults::ENABLED {
            return;
        }
        let reader = CollectingReader::tcp();
        let env = [("TAPSTER_FAULTS", "start hangs=slow=0")];
        let mut relay = Controlled::start_with(backend, "", &output(&reader, ""), &env);
        let slow = "[[input]]\nname = \"slow\"\nlisten = \"tcp://127.0.0.1:0\"\n";
        relay.configure("", &(slow.to_owned() + &output(&reader, "")));
        let mut waiting = [relay.begin_command("reload"), relay.begin_command("reload")];
        relay.tapster.process.signal(Signal::USR1);
        relay.tapster.process.wait_for_output("SIGUSR1: file outputs");
        assert_eq!(get(&relay.admin, "/readyz").0, 200);
        // Both have asked when their connections are answered no more.
        eventually("both ask", || waiting.iter_mut().all(|command| command.poll_exit().is_none()));
        relay.tapster.terminate();
        for command in &mut waiting {
            assert_eq!(command.wait_within(Duration::from_secs(30)).code(), Some(1), "{}", command.output());
        }
    }

    fn a_process_that_is_not_there_is_not_reached(backend) {
        let reader = CollectingReader::tcp();
        let mut relay = Controlled::start(backend, "", &output(&reader, ""));
        relay.tapster.terminate();
        let done = relay.command("reload", &[]);
        assert!(done.code == Some(1) && done.stderr.contains("tapster is not reached (unix:"), "{done:?}");
        assert_eq!(run(&["reload", "--admin", "nowhere"]).code, Some(64));
        relay.configure("admin = []", &output(&reader, ""));
        let done = relay.command("reload", &[]);
        assert!(done.code == Some(64) && done.stderr.contains("SIGHUP"), "{done:?}");
    }

    /// The addresses of a file that runs may change, too.
    fn admin_addresses_hosts_and_tokens_change_with_the_rest(backend) {
        let reader = CollectingReader::tcp();
        let relay = Controlled::start(backend, "", &output(&reader, ""));
        let other = relay.folder().join("other.sock");
        let top = format!("admin = [\"{}\", \"unix:{}\"]\nadmin_hosts = [\"tap1.example\"]", relay.admin, other.display());
        let asks = || send(&relay.admin, "GET /readyz", "Host: tap1.example\r\n").0;
        assert_eq!(asks(), 421);
        relay.configure(&top, &output(&reader, ""));
        let done = relay.command("reload", &[]);
        assert!(done.code == Some(0) && done.stdout.contains("admin_hosts: (default) -> [\"tap1.example\"]"), "{done:?}");
        assert_eq!((asks(), get(&format!("unix:{}", other.display()).parse().unwrap(), "/readyz").0), (200, 200));
        relay.configure("", &output(&reader, ""));
        assert_eq!(relay.command("reload", &[]).code, Some(0));
        assert!(asks() == 421 && !other.exists());
    }
}
