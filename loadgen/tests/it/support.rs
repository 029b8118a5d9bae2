//! Running the real binary.

use std::io::BufRead;
use std::io::BufReader;
use std::process::Child;
use std::process::ChildStderr;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use serde_json::Value;

/// A child that is killed when its test ends.
pub(crate) struct Process {
    child: Option<Child>,
    stderr: BufReader<ChildStderr>,
}

impl Process {
    /// Starts the binary.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut child = loadgen(args).spawn().expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        Self { child: Some(child), stderr }
    }

    /// The next address that it says it listens on.
    pub(crate) fn address(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ");
        address.unwrap_or_else(|| panic!("not an address: {line}")).to_owned()
    }

    /// Waits for its end; whether it exited with 0, and its report.
    pub(crate) fn finish(mut self) -> (bool, Value) {
        result(&self.child.take().expect("not finished yet").wait_with_output().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The binary with these arguments.
pub(crate) fn loadgen(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Whether it exited with 0, and its report.
pub(crate) fn result(output: &Output) -> (bool, Value) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    (output.status.success(), report)
}
