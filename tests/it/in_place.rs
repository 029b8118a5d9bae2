//! FIFOs, devices and stdout: written in place, without ever holding up the thread.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::thread::JoinHandle;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

use crate::support::backend::word;
use crate::support::collector::CollectingReader;
use crate::support::files::files_in;
use crate::support::files::fstrm_file;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::relay::dropped_for;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_file;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;

fn make_fifo(path: &Path) {
    let status = Command::new("mkfifo").arg(path).status().expect("coreutils");
    assert!(status.success());
}

/// Opens the FIFO at once, and reads until every writer has gone.
fn read_to_end(path: &Path) -> JoinHandle<Vec<u8>> {
    let mut fifo = File::open(path).expect("a FIFO with a writer");
    thread::spawn(move || {
        let mut bytes = Vec::new();
        fifo.read_to_end(&mut bytes).expect("what is written");
        bytes
    })
}

/// How often this process has the file open.
fn times_open_here(path: &Path) -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").expect("proc(5)").flatten();
    descriptors.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path)).count()
}

on_both_backends! {
    fn a_fifo_gets_a_stream_and_nothing_takes_its_place(backend) {
        let folder = folder();
        let path = folder.path().join("fifo");
        make_fifo(&path);
        let relay = relay(backend).output(to_file(&path)).start();
        let reader = {
            let path = path.clone();
            thread::spawn(move || read_to_end(&path))
        };
        let mut writer = relay.writer();
        let frames = numbered::frames(0, 0..20_000);
        writer.send(&frames);
        writer.finish();
        let ledger = relay.drain();
        let written = reader.join().expect("opened").join().expect("read");
        assert!(written == fstrm_file(D, &frames), "{} bytes", written.len());
        assert_eq!((ledger.outputs[0].frames_sent, ledger.outputs[0].sessions_finished), (20_000, 1));
        assert_eq!(files_in(folder.path(), ""), [path]);
    }

    fn a_fifo_without_a_reader_is_waited_for_and_holds_nothing_up(backend) {
        let folder = folder();
        let path = folder.path().join("fifo");
        make_fifo(&path);
        let reader = CollectingReader::tcp();
        let relay = relay(backend).drain_timeout(millis(800)).output(to(&reader)).output(to_file(&path)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..1000));
        writer.finish();
        reader.wait_for_frames(1000);
        assert_eq!(relay.output(1).frames_sent, 0);
        let (ledger, _) = relay.drain_into(reader);
        assert_eq!(dropped_for(&ledger.outputs[1], "shutdown"), 1000);
        // No thread was left behind that waits for a reader: the kernel would count it as a writer.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut fifo = OpenOptions::new().read(true).custom_flags(nonblocking).open(&path).expect("our FIFO");
        assert_eq!(fifo.read(&mut [0]).expect("no writer"), 0);
    }

    fn a_reader_of_a_fifo_that_goes_is_noticed_and_the_next_one_gets_a_stream_of_its_own(backend) {
        let folder = folder();
        let path = folder.path().join("fifo");
        make_fifo(&path);
        let relay = relay(backend).output(to_file(&path)).start();
        let mut writer = relay.writer();
        let frames = numbered::frames(0, 0..10);
        writer.send(&frames);
        let mut first = File::open(&path).expect("our FIFO");
        let expected = [wire::start(&[D]), frames].concat();
        let mut got = vec![0; expected.len()];
        first.read_exact(&mut got).expect("the first frames");
        assert!(got == expected);
        drop(first);
        // Without any write: the FIFO tells it. The next reader does not find itself in the middle of a stream.
        eventually("closed", || times_open_here(&path) == 0);
        let second = {
            let path = path.clone();
            thread::spawn(move || read_to_end(&path))
        };
        eventually("a second stream", || relay.output(0).connections == 2);
        let frames = numbered::frames(0, 10..30);
        writer.send(&frames);
        writer.finish();
        relay.drain();
        let written = second.join().expect("opened").join().expect("read");
        assert!(written == fstrm_file(D, &frames));
    }

    fn a_reader_of_a_fifo_that_stalls_holds_nothing_up(backend) {
        let folder = folder();
        let path = folder.path().join("fifo");
        make_fifo(&path);
        // Open for both: it is there, and reads nothing.
        let stalled = OpenOptions::new().read(true).write(true).open(&path).expect("our FIFO");
        let reader = CollectingReader::tcp();
        let relay = relay(backend).drain_timeout(millis(800)).output(to(&reader)).output(to_file(&path)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..10));
        eventually("the FIFO has the first", || relay.output(1).frames_sent == 10);
        writer.send(&numbered::frames_of_len(0, 10..1010, 1000));
        writer.finish();
        reader.wait_for_frames(1010);
        let (ledger, _) = relay.drain_into(reader);
        let output = &ledger.outputs[1];
        assert!(dropped_for(output, "shutdown") > 900, "{output:?}");
        assert_eq!(dropped_for(output, "internal"), 0, "{output:?}");
        assert_eq!(times_open_here(&path), 1, "the thread of the FIFO was left behind");
        drop(stalled);
    }

    fn a_device_is_written_in_place(backend) {
        let relay = relay(backend).output(to_file("/dev/null")).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..100));
        writer.finish();
        let ledger = relay.drain();
        assert_eq!(ledger.outputs[0].frames_sent, 100);
        assert!(!Path::new("/dev/null.1").exists());
    }

    /// Whoever can write to a folder could lead our frames elsewhere.
    fn a_link_in_a_folder_of_others_is_not_followed(backend) {
        let folder = folder();
        let (fifo, shared) = (folder.path().join("fifo"), folder.path().join("shared"));
        make_fifo(&fifo);
        fs::create_dir(&shared).expect("a folder");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("our folder");
        let link = shared.join("link");
        std::os::unix::fs::symlink(&fifo, &link).expect("a link");
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut reader = OpenOptions::new().read(true).custom_flags(nonblocking).open(&fifo).expect("our FIFO");
        let relay = relay(backend).drain_timeout(millis(500)).output(to_file(&link)).start();
        let mut writer = relay.writer();
        writer.send(&numbered::frames(0, 0..10));
        writer.finish();
        let ledger = relay.drain();
        assert_eq!(dropped_for(&ledger.outputs[0], "shutdown"), 10);
        assert_eq!(reader.read(&mut [0; 10]).expect("no writer"), 0);
        // Where nobody else can write, the operator has made it.
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).expect("our folder");
        let relay = crate::support::relay::relay(backend).output(to_file(&link)).start();
        eventually("opened", || relay.output(0).connections == 1);
        drop(reader);
        relay.drain();
    }

    fn stdout_gets_the_stream_and_stderr_the_log(backend) {
        let folder = folder();
        for (to, piped) in [("file:-", true), ("file:/dev/stdout", true), ("file:-", false)] {
            let listen = folder.path().join("in");
            let file = folder.path().join("out");
            let mut command = Command::new(env!("CARGO_BIN_EXE_tapster"));
            command.args(["run", "--workers", "1", "--backend", word(backend), "-t", to, "-l"]);
            command.arg(format!("unix:{}", listen.display())).stderr(Stdio::piped());
            if piped {
                command.stdout(Stdio::piped());
            } else {
                let mut file = File::create(&file).expect("a file");
                file.write_all(b"before").expect("our file");
                command.stdout(file);
            }
            let mut child = command.spawn().expect("our program");
            let address = format!("unix:{}", listen.display()).parse().expect("an address");
            eventually("it listens", || crate::support::stream::Stream::connect(&address).is_ok());
            let mut writer = Peer::writer(&address);
            let frames = numbered::frames(0, 0..100);
            writer.send(&frames);
            writer.finish();
            kill_process(Pid::from_child(&child), Signal::TERM).expect("our child");
            let mut log = String::new();
            let mut written = Vec::new();
            child.stderr.take().expect("piped").read_to_string(&mut log).expect("a log");
            match child.stdout.take() {
                Some(mut stdout) => stdout.read_to_end(&mut written).map(drop).expect("a stream"),
                None => written = fs::read(&file).expect("our file").split_off(6),
            }
            assert!(child.wait().expect("our child").success());
            assert!(log.contains("relaying") && log.contains("opened"), "{log}");
            assert!(written == fstrm_file(D, &frames), "{to}: {} bytes", written.len());
        }
    }

    /// A file that reaches the limit of its size is followed by another, and nothing is lost.
    fn a_file_that_reaches_the_limit_of_its_size_is_followed_by_another(backend) {
        let folder = folder();
        let listen = folder.path().join("in");
        let to = format!("file:{}", folder.path().join("out.fstrm").display());
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tapster"), "run"])
            .args(["--workers", "1", "--backend", word(backend), "-t", &to, "-l"])
            .arg(format!("unix:{}", listen.display()))
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh");
        let address = format!("unix:{}", listen.display()).parse().expect("an address");
        eventually("it listens", || crate::support::stream::Stream::connect(&address).is_ok());
        let mut writer = Peer::writer(&address);
        writer.send(&numbered::frames_of_len(0, 0..1000, 1000));
        writer.finish();
        kill_process(Pid::from_child(&child), Signal::TERM).expect("our child");
        let mut log = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut log).expect("a log");
        assert!(child.wait().expect("our child").success(), "{log}");
        let files: Vec<_> = files_in(folder.path(), "")
            .into_iter()
            .filter(|path| *path != listen)
            .map(|path| crate::support::files::FstrmFile::read(&path).expect("START"))
            .collect();
        assert!(files.len() >= 4 && files.iter().all(|file| file.clean), "{} files: {log}", files.len());
        let payloads = files.iter().flat_map(crate::support::files::FstrmFile::payloads);
        numbered::assert_complete(payloads, &[(0, 0..1000)]);
        assert_eq!(log.matches("File too large").count(), 1, "{log}");
    }
}
