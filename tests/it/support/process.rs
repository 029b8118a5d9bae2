//! Programs as children: the real `tapster`, and the peers that it will meet.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Pid;
use rustix::process::Resource;
use rustix::process::Signal;
use rustix::process::getrlimit;
use rustix::process::kill_process;
use rustix::process::prlimit;
use tapster::transport::Address;
use tapster::transport::Backend;

use super::stream::Stream;
use super::wait::eventually;
use super::wait::eventually_within;

/// A child that never outlives its test, and whose output is kept.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    pumps: Vec<JoinHandle<()>>,
    exited: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let name =
            Path::new(command.get_program()).file_name().expect("a file").to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let mut process = Self::without_output(name, child);
        process.pumps = vec![pump(stdout, process.output.clone()), pump(stderr, process.output.clone())];
        process
    }

    /// A child whose output nobody reads.
    pub(crate) fn without_output(name: String, child: Child) -> Self {
        Self { name, child, output: Arc::default(), pumps: Vec::new(), exited: None }
    }

    /// What it printed so far, on either stream.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("no pump has panicked")).into_owned()
    }

    #[track_caller]
    pub(crate) fn wait_for_output(&self, text: &str) {
        eventually(&format!("{} prints {text:?}; it printed: {}", self.name, self.output()), || {
            self.output().contains(text)
        });
    }

    /// Waits until a socket listens where the process should.
    #[track_caller]
    pub(crate) fn wait_for_socket(&mut self, address: &Address) {
        eventually(&format!("{} listens on {address}", self.name), || {
            if let Some(status) = self.poll_exit() {
                panic!("{} ended with {status} instead of listening: {}", self.name, self.output());
            }
            Stream::connect(address).is_ok()
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.exited.is_none() {
            kill_process(Pid::from_child(&self.child), signal)
                .expect("the child exists until it is waited for");
        }
    }

    /// How it ended, `None` while it runs.
    pub(crate) fn poll_exit(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().expect("a child of ours");
        }
        self.exited
    }

    /// Waits for its end; fails after `limit`.
    #[track_caller]
    pub(crate) fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        if self.poll_exit().is_none() {
            let mut running = true;
            let began = std::time::Instant::now();
            while running && began.elapsed() < limit {
                thread::sleep(Duration::from_millis(2));
                running = self.poll_exit().is_none();
            }
            assert!(!running, "within {limit:?}: {what}; it printed: {}", self.output());
        }
        for pump in self.pumps.drain(..) {
            pump.join().expect("no pump panics");
        }
        self.exited.expect("just seen")
    }

    /// Waits for its end, and fails unless it ended well.
    #[track_caller]
    pub(crate) fn wait_for_success(&mut self, limit: Duration) {
        let status = self.wait_within(limit);
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.output());
    }

    pub(crate) fn kill(&mut self) {
        if self.poll_exit().is_none() {
            let _ = self.child.kill();
            self.exited = self.child.wait().ok();
        }
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a running child").count()
    }

    /// Allows it no more descriptors than these.
    pub(crate) fn limit_descriptors(&self, limit: u64) {
        self.limit(Resource::Nofile, limit);
    }

    /// Allows it no file larger than this, in bytes.
    pub(crate) fn limit_file_size(&self, limit: u64) {
        self.limit(Resource::Fsize, limit);
    }

    /// The soft limit: a later call may raise it.
    fn limit(&self, resource: Resource, limit: u64) {
        let process = Some(Pid::from_child(&self.child));
        let mut limits = getrlimit(resource);
        limits.current = Some(limit);
        prlimit(process, resource, limits).expect("a child of ours");
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status_kib("VmRSS:") << 10
    }

    /// The most resident memory that it ever had, in bytes.
    pub(crate) fn memory_peak(&self) -> u64 {
        self.status_kib("VmHWM:") << 10
    }

    /// User and system time used so far, in clock ticks (1/100 s).
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a running child");
        let after_name = stat.rsplit_once(')').expect("proc(5)").1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    }

    fn status_kib(&self, key: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running child");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("proc(5)");
        line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- {} printed ---\n{}", self.name, self.output());
        }
    }
}

fn pump(mut from: impl Read + Send + 'static, to: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            to.lock().expect("no pump has panicked").extend_from_slice(&buffer[..len]);
        }
    })
}

/// The command `tapster run`.
#[derive(Debug)]
pub(crate) struct TapsterCommand {
    command: Command,
    listen: Vec<Address>,
    summary: Option<PathBuf>,
}

/// `tapster run` on this backend.
pub(crate) fn tapster(backend: Backend) -> TapsterCommand {
    let command = TapsterCommand::new();
    command.arg("--backend").arg(super::backend::word(backend))
}

impl TapsterCommand {
    pub(crate) fn new() -> Self {
        Self::of("run")
    }

    /// `tapster check`.
    pub(crate) fn check() -> Self {
        Self::of("check")
    }

    fn of(word: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tapster"));
        command.arg(word).env("NO_COLOR", "1");
        Self { command, listen: Vec::new(), summary: None }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn listen(mut self, address: &Address) -> Self {
        self.listen.push(address.clone());
        self.arg("--listen").arg(address.to_string())
    }

    /// An output, with keys of its configuration as in `when_full=block&queue=1MiB`.
    pub(crate) fn to(self, address: &Address, keys: &str) -> Self {
        let separator = if keys.is_empty() { "" } else { "?" };
        self.arg("--to").arg(format!("{address}{separator}{keys}"))
    }

    /// An output into a file.
    pub(crate) fn file(self, path: &Path) -> Self {
        self.arg("--to").arg(format!("file:{}", path.display()))
    }

    /// Writes the ledger at exit, to be read with [`Tapster::summary`].
    pub(crate) fn summary(mut self, path: PathBuf) -> Self {
        self.command.arg("--summary").arg(&path);
        self.summary = Some(path);
        self
    }

    /// Relative paths start here.
    pub(crate) fn in_folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it as a user who may do nothing special, with a copy of the program in `folder`, which every user can reach.
    pub(crate) fn run_by_nobody(mut self, folder: &Path) -> Self {
        if !rustix::process::geteuid().is_root() {
            return self;
        }
        let program = folder.join("tapster");
        // Not by this process: a child that another test begins meanwhile would hold the copy open to write, and the kernel
        // runs no such file.
        let copied = Command::new("cp").arg(self.command.get_program()).arg(&program).status();
        assert!(copied.expect("cp").success());
        let mut command = Command::new(program);
        command.args(self.command.get_args()).uid(NOBODY).gid(NOBODY);
        for (name, value) in self.command.get_envs() {
            command.env(name, value.expect("none is taken away"));
        }
        self.command = command;
        self
    }

    /// As a user who may have so many threads; with a copy of the program in `folder`.
    pub(crate) fn with_threads(mut self, user: u32, threads: usize, folder: &Path) -> Self {
        self = self.run_by_nobody(folder);
        let mut command = Command::new("prlimit");
        command.arg(format!("--nproc={threads}:{threads}")).arg(self.command.get_program());
        command.args(self.command.get_args()).uid(user).gid(NOBODY);
        self.command = command;
        self
    }

    /// With these descriptors from 3 on, which are for it and not for its children.
    pub(crate) fn with_descriptors<'a>(mut self, descriptors: impl Iterator<Item = BorrowedFd<'a>>) -> Self {
        // Above all those that they become.
        let high = |descriptor| rustix::io::fcntl_dupfd_cloexec(descriptor, HIGH).expect("a descriptor");
        let high: Vec<OwnedFd> = descriptors.map(high).collect();
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(MANAGED)
            .arg("sh")
            .arg(self.command.get_program())
            .args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            command.env(name, value.expect("none is taken away"));
        }
        let pass = move || {
            for (descriptor, number) in high.iter().zip(3..) {
                // SAFETY: both are numbers; nobody in this child owns descriptors from 3 on below HIGH, except std, for the pipe
                // that tells the parent of a failure: it is closed at exec, and a failure is seen by the exit status then.
                if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: `pass` allocates nothing, and calls nothing but dup2, which may be called between fork and exec.
        unsafe { command.pre_exec(pass) };
        self.command = command;
        self
    }

    /// Starts it and waits until it has said where it listens.
    #[track_caller]
    pub(crate) fn start(mut self) -> Tapster {
        let process = Process::spawn(&mut self.command);
        let mut tapster = Tapster { process, summary: self.summary };
        for address in &self.listen {
            tapster.wait_until_listening(address);
        }
        tapster
    }

    /// Starts it, whatever becomes of it.
    pub(crate) fn spawn(mut self) -> Process {
        Process::spawn(&mut self.command)
    }
}

const NOBODY: u32 = 65534;
/// More than the descriptors of any test.
const HIGH: i32 = 600;
/// As systemd sets what depends on the process that it starts.
const MANAGED: &str = "JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr) LISTEN_PID=$$ && export JOURNAL_STREAM LISTEN_PID && exec \"$@\"";

/// The real program, running.
#[derive(Debug)]
pub(crate) struct Tapster {
    pub(crate) process: Process,
    summary: Option<PathBuf>,
}

impl Tapster {
    #[track_caller]
    fn wait_until_listening(&mut self, address: &Address) {
        let text = address.to_string();
        let began = std::time::Instant::now();
        while !self.process.output().contains(&text) {
            if let Some(status) = self.process.poll_exit() {
                panic!("tapster ended with {status} instead of listening: {}", self.process.output());
            }
            assert!(
                began.elapsed() < super::wait::PATIENCE,
                "tapster does not say that it listens on {text}: {}",
                self.process.output()
            );
            thread::sleep(Duration::from_millis(5));
        }
        if let Address::Unix(path) = address {
            eventually_within(super::wait::PATIENCE, &format!("{text} exists"), || path.exists());
        }
    }

    /// SIGTERM, and its end with exit status 0.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait_for_success(Duration::from_secs(15));
    }

    /// The ledger, once all of it is written.
    pub(crate) fn try_summary(&self) -> Option<Summary> {
        let text = fs::read_to_string(self.summary.as_ref()?).ok()?;
        serde_json::from_str(&text).ok().map(Summary)
    }

    /// The ledger that it wrote at exit.
    #[track_caller]
    pub(crate) fn summary(&self) -> Summary {
        let path = self.summary.as_ref().expect("started with --summary");
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Summary(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}")))
    }
}

/// The ledger as `--summary` writes it.
#[derive(Clone, Debug)]
pub(crate) struct Summary(pub(crate) serde_json::Value);

impl Summary {
    pub(crate) fn input(&self, index: usize, key: &str) -> u64 {
        self.number("inputs", index, key)
    }

    pub(crate) fn output(&self, index: usize, key: &str) -> u64 {
        self.number("outputs", index, key)
    }

    pub(crate) fn dropped(&self, index: usize, reason: &str) -> u64 {
        self.0["outputs"][index]["frames_dropped"][reason].as_u64().unwrap_or_default()
    }

    /// Fails unless every frame of every output is accounted for.
    #[track_caller]
    pub(crate) fn assert_balanced(&self) {
        for (index, output) in self.0["outputs"].as_array().expect("outputs").iter().enumerate() {
            let dropped = output["frames_dropped"].as_object().expect("an object by reason");
            let dropped: u64 = dropped.values().map(|count| count.as_u64().expect("a count")).sum();
            let kept = ["frames_sent", "frames_filtered", "frames_queued", "frames_spooled"];
            let kept: u64 = kept.iter().map(|key| self.output(index, key)).sum();
            assert_eq!(self.output(index, "frames_received"), kept + dropped, "{output}");
        }
    }

    #[track_caller]
    fn number(&self, side: &str, index: usize, key: &str) -> u64 {
        self.0[side][index][key].as_u64().unwrap_or_else(|| panic!("no {side}[{index}].{key} in {}", self.0))
    }
}
