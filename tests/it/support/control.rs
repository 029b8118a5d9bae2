//! `tapster run` with a configuration file, and the commands that ask it for something.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use tapster::transport::Address;
use tapster::transport::Backend;
use tempfile::TempDir;

use super::http::get;
use super::process::Process;
use super::process::Tapster;
use super::process::tapster;
use super::stream::folder;

/// A relay of one input, with a file that can change, and an admin socket.
#[derive(Debug)]
pub(crate) struct Controlled {
    pub(crate) tapster: Tapster,
    pub(crate) input: Address,
    pub(crate) admin: Address,
    file: PathBuf,
    folder: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Controlled {
    /// Starts it, with these keys at the top, and these tables beside the input.
    #[track_caller]
    pub(crate) fn start(backend: Backend, top: &str, tables: &str) -> Self {
        Self::start_with(backend, top, tables, &[])
    }

    /// With these variables in its environment.
    #[track_caller]
    pub(crate) fn start_with(backend: Backend, top: &str, tables: &str, env: &[(&str, &str)]) -> Self {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        let (input, admin) = (Address::Unix(path("in.sock")), Address::Unix(path("admin.sock")));
        let file = path("tapster.toml");
        write(&file, &input, &admin, top, tables);
        let command = tapster(backend).arg("--config").arg(&file).summary(path("summary.json"));
        let command = env.iter().fold(command, |command, (name, value)| command.env(name, value));
        let tapster = command.in_folder(folder.path()).start();
        tapster.process.wait_for_output("relaying");
        Self { tapster, input, admin, file, folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes another file in place of the present one.
    pub(crate) fn configure(&self, top: &str, tables: &str) {
        write(&self.file, &self.input, &self.admin, top, tables);
    }

    /// Runs a command, which finds the process by its file.
    pub(crate) fn command(&self, name: &str, args: &[&str]) -> Done {
        let file = self.file.to_str().expect("UTF-8");
        run(&[&[name, "--config", file], args].concat())
    }

    /// The same, and does not wait for its end.
    pub(crate) fn begin_command(&self, name: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tapster"));
        Process::spawn(command.arg(name).arg("--config").arg(&self.file))
    }

    /// The process that answers at the admin socket: another one after an upgrade.
    pub(crate) fn process(&self) -> Option<Pid> {
        Pid::from_raw(get(&self.admin, "/api/v1/status").1["pid"].as_i64()?.try_into().ok()?)
    }

    /// Ends the process that answers at the admin socket, in order, and whoever came before.
    #[track_caller]
    pub(crate) fn end_chain(&mut self) {
        let process = self.process().expect("it answers");
        kill_process(process, Signal::TERM).expect("it runs");
        // The last of them closes the streams that all have inherited.
        self.tapster.process.wait_for_success(Duration::from_secs(30));
    }
}

impl Drop for Controlled {
    /// A process that has taken over is no child of ours.
    fn drop(&mut self) {
        if let Some(process) = self.process() {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

pub(crate) fn run(args: &[&str]) -> Done {
    let output = Command::new(env!("CARGO_BIN_EXE_tapster")).args(args).output().expect("the program");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Done { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn write(file: &Path, input: &Address, admin: &Address, top: &str, tables: &str) {
    let mut text = String::new();
    if !top.contains("admin =") {
        writeln!(text, "admin = \"{admin}\"").expect("a text");
    }
    writeln!(text, "{top}\n[[input]]\nname = \"in\"\nlisten = \"{input}\"\n{tables}").expect("a text");
    fs::write(file, text).expect("a file");
}
