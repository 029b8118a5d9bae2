//! The admin addresses of the program: who may ask for what, and what is answered.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tapster::faults;
use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::control::Controlled;
use crate::support::control::run;
use crate::support::flow::Flow;
use crate::support::http::get;
use crate::support::http::send;
use crate::support::process::tapster;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually_within;

fn output(reader: &CollectingReader) -> String {
    format!("[[output]]\nname = \"siem\"\nto = \"{}\"\n", reader.address())
}

/// A free port, and the address on it.
fn tcp_address() -> Address {
    let port = crate::support::peers::free_port();
    Address::Tcp { host: "127.0.0.1".to_owned(), port }
}

fn token_file(path: &Path, token: &str, mode: u32) {
    fs::write(path, token).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

const JSON: &str = "Host: localhost\r\nContent-Type: application/json\r\n";

on_both_backends! {
    fn health_status_and_configuration_are_there_to_read(backend) {
        let reader = CollectingReader::tcp();
        let mut relay = Controlled::start(backend, "", &output(&reader));
        let Address::Unix(path) = &relay.admin else { unreachable!() };
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        let sent = Flow::begin(0, &relay.input).end();
        reader.wait_for_frames(sent as usize);
        assert_eq!(get(&relay.admin, "/livez"), (200, serde_json::json!({ "live": true })));
        assert_eq!(get(&relay.admin, "/readyz").0, 200);
        let status = get(&relay.admin, "/api/v1/status").1;
        assert_eq!((&status["state"], &status["generation"]), (&"healthy".into(), &1.into()));
        assert_eq!((&status["inputs"][0]["frames"], &status["outputs"][0]["name"]), (&sent.into(), &"siem".into()));
        let config = get(&relay.admin, "/api/v1/config").1;
        assert_eq!((&config["admin"][0], &config["input"][0]["name"]), (&relay.admin.to_string().into(), &"in".into()));
        assert_eq!(config["output"][0]["reconnect"]["min"], "100ms");
        relay.tapster.terminate();
        assert!(!path.exists());
    }

    fn strangers_are_refused_and_a_token_opens_tcp(backend) {
        let (reader, folder, tcp) = (CollectingReader::tcp(), folder(), tcp_address());
        let token = folder.path().join("token");
        token_file(&token, "geheim\n", 0o600);
        let admin = format!("admin = [\"unix:admin.sock\", \"{tcp}\"]");
        let mut relay = Controlled::start(backend, &admin, &output(&reader));
        assert_eq!(send(&tcp, "GET /livez", "Host: evil.example\r\n").0, 421);
        // Without a token there is reading alone on TCP.
        assert_eq!((get(&tcp, "/api/v1/status").0, send(&tcp, "POST /api/v1/reload", JSON).0), (200, 403));
        relay.configure(&format!("{admin}\nadmin_token_file = \"{}\"", token.display()), &output(&reader));
        let done = relay.command("reload", &["--admin", "unix:nowhere"]);
        assert_eq!(done.code, Some(64), "two ways to find the process: {done:?}");
        let socket = format!("unix:{}", relay.folder().join("admin.sock").display());
        let done = run(&["reload", "--admin", &socket]);
        assert_eq!(done.code, Some(0), "{done:?}");
        let post = |headers: &str| send(&tcp, "POST /api/v1/reload", &format!("{JSON}{headers}")).0;
        assert_eq!([post(""), post("Authorization: Bearer wrong\r\n"), post("Authorization: Bearer geheim\r\n")], [401, 401, 200]);
        assert_eq!(post("Authorization: Bearer geheim\r\nOrigin: http://evil.example\r\n"), 403);
        assert_eq!(post("Authorization: Bearer geheim\r\nSec-Fetch-Site: cross-site\r\n"), 403);
        assert_eq!(send(&tcp, "POST /api/v1/reload", "Host: localhost\r\nAuthorization: Bearer geheim\r\n").0, 415);
        assert_eq!(get(&tcp, "/readyz").0, 200);
        assert!(!get(&tcp, "/api/v1/config").1.to_string().contains("geheim"));
        // The command, with the token and without it.
        let address = tcp.to_string();
        let done = run(&["reload", "--admin", &address, "--token-file", token.to_str().unwrap()]);
        assert_eq!(done.code, Some(0), "{done:?}");
        let done = run(&["reload", "--admin", &address]);
        assert!(done.code == Some(1) && done.stderr.contains("--token-file"), "{done:?}");
        // Another token in the file takes its place at the next reload.
        token_file(&token, "neu", 0o600);
        let done = run(&["reload", "--admin", &socket]);
        assert!(done.stdout.contains("admin_token_file: holds another token"), "{done:?}");
        assert_eq!([post("Authorization: Bearer geheim\r\n"), post("Authorization: Bearer neu\r\n")], [401, 200]);
        token_file(&token, "neu", 0o644);
        let done = run(&["reload", "--admin", &socket]);
        assert!(done.code == Some(64) && done.stderr.contains("admin_token_file: every user of this host"), "{done:?}");
        relay.tapster.terminate();
    }

    fn a_default_address_that_is_in_use_is_told_and_a_configured_one_ends_the_start(backend) {
        let (reader, folder) = (CollectingReader::tcp(), folder());
        let run_time = folder.path().to_str().unwrap();
        let begin = |name: &str| {
            let address = Transport::Unix.fresh_address(folder.path());
            let command = tapster(backend).env("RUNTIME_DIRECTORY", run_time).listen(&address);
            (command.to(&reader.address(), &format!("name={name}")).start(), address)
        };
        let (mut first, _) = begin("first");
        let socket = Address::Unix(folder.path().join("admin.sock"));
        let (mut second, address) = begin("second");
        second.process.wait_for_output(&format!("another process has the default admin address {socket}"));
        assert!(!second.process.output().contains("WARN"), "{}", second.process.output());
        let sent = Flow::begin(0, &address).end();
        reader.wait_for_frames(sent as usize);
        assert_eq!(get(&socket, "/api/v1/status").1["outputs"][0]["name"], "first");
        second.terminate();
        assert_eq!(get(&socket, "/readyz").0, 200);
        // Whoever needs an address says so.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("tcp://{}", taken.local_addr().unwrap());
        let input = Transport::Unix.fresh_address(folder.path());
        let mut third = tapster(backend)
            .arg("--admin").arg(socket.to_string())
            .arg("--admin").arg(&taken)
            .arg("--listen").arg(input.to_string())
            .spawn();
        assert_eq!(third.wait_within(Duration::from_secs(15)).code(), Some(1));
        for address in [&socket.to_string(), &taken] {
            assert!(third.output().contains(&format!("admin: cannot listen on {address}: ")), "{}", third.output());
        }
        let Address::Unix(input) = input else { unreachable!() };
        assert!(!input.exists());
        first.terminate();
    }

    fn a_process_that_is_silent_has_no_admin_address(backend) {
        let folder = folder();
        let address = Transport::Unix.fresh_address(folder.path());
        let mut program = tapster(backend)
            .env("RUNTIME_DIRECTORY", folder.path().to_str().unwrap())
            .arg("--admin").arg("off")
            .listen(&address)
            .file(&folder.path().join("a.fstrm"))
            .start();
        program.process.wait_for_output("relaying");
        assert!(!folder.path().join("admin.sock").exists());
        program.terminate();
        assert!(!program.process.output().contains("admin"), "{}", program.process.output());
    }

    fn a_worker_that_hangs_is_told(backend) {
        if !faults::ENABLED {
            return;
        }
        let reader = CollectingReader::tcp();
        let env = [("TAPSTER_FAULTS", "worker hangs=in=0")];
        let relay = Controlled::start_with(backend, "workers = 2", &output(&reader), &env);
        eventually_within(Duration::from_secs(40), "the worker is missed", || get(&relay.admin, "/livez").0 == 503);
        assert_eq!(get(&relay.admin, "/livez").1["error"]["code"], "worker");
        // The others go on.
        assert_eq!(get(&relay.admin, "/readyz").0, 200);
    }
}
