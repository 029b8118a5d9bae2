//! `tapster replay`: files to a reader.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use tapster::config::Fault;
use tapster::config::Faults;
use tapster::config::resolve_output;
use tapster::output::OutputConfig;
use tapster::protocol::ContentType;
use tapster::protocol::FileStatus;
use tapster::protocol::ReaderEvent;
use tapster::transport::Address;
use tokio::runtime;

use crate::cli::Rate;
use crate::cli::ReplayArgs;
use crate::commands::CommandError;
use crate::commands::connection::Connection;
use crate::commands::connection::SendError;
use crate::commands::file::FrameFile;
use crate::commands::file::count_frames;
use crate::commands::file::end_in_words;
use crate::commands::pace::Pace;
use crate::commands::pace::Pacer;

/// Why a file was not sent to its end.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("the file cannot be read: {0}")]
    File(io::Error),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("--speed needs the times of dnstap, and the content type of this file is {0}")]
    NoTimes(String),
}

/// Sends the files one after the other, each in a session of its own.
pub(crate) fn replay(args: &ReplayArgs) -> Result<ExitCode, CommandError> {
    let output = resolve_output(&args.to)?;
    if let Address::File(_) = output.to {
        let message = "a replay goes to tcp://HOST:PORT or unix:PATH; files are copied with `cp`".to_owned();
        let place = format!("--to {}", args.to);
        return Err(Faults(vec![Fault { place, key: "to".to_owned(), message }]).into());
    }
    if output.group.is_some() {
        let message = "a replay goes to one reader: start a relay to have it dealt out".to_owned();
        let place = format!("--to {}", args.to);
        return Err(Faults(vec![Fault { place, key: "to".to_owned(), message }]).into());
    }
    let pace = match (args.speed, args.rate) {
        (Some(speed), _) => Pace::Speed(speed),
        (None, Rate::PerSecond(rate)) => Pace::Rate(rate),
        (None, Rate::Max) => Pace::Max,
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Failed(error.to_string()))?;
    let mut pacer = Pacer::new(pace, Instant::now());
    let mut all_whole = true;
    for path in &args.files {
        let mut frames = 0;
        let result = runtime.block_on(replay_file(path, &output, &mut pacer, &mut frames));
        let sent = format!("{}: {} sent to {}", path.display(), count_frames(frames), output.to);
        match result {
            Ok(Remark { whole, words: None }) => {
                all_whole &= whole;
                eprintln!("tapster: {sent}");
            }
            Ok(Remark { whole, words: Some(words) }) => {
                all_whole &= whole;
                eprintln!("tapster: {sent}; the file {words}");
            }
            Err(error) => return Err(CommandError::Failed(format!("{sent}; {error}"))),
        }
    }
    Ok(if all_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is to be said about a file that was sent.
struct Remark {
    /// Whether it ends with STOP.
    whole: bool,
    words: Option<String>,
}

/// Sends a file and counts its frames.
async fn replay_file(
    path: &Path,
    output: &OutputConfig,
    pacer: &mut Pacer,
    frames: &mut u64,
) -> Result<Remark, ReplayError> {
    let mut file = FrameFile::open(path, output.frame_len_max).map_err(ReplayError::File)?;
    let mut connection = None;
    while let Some(event) = file.next().map_err(ReplayError::File)? {
        match (event, &mut connection) {
            (ReaderEvent::Started { content_type, .. }, None) => {
                pacer.check_content_type(content_type.as_ref())?;
                connection = Some(Connection::open(output, content_type).await?);
            }
            (ReaderEvent::Data(batch), Some(connection)) => connection.send(&batch, pacer, frames).await?,
            _ => {}
        }
    }
    let started = connection.is_some();
    if let Some(connection) = connection {
        connection.finish().await?;
    }
    let end = file.end();
    Ok(Remark {
        whole: matches!(end, Some(FileStatus::Clean { .. })),
        words: end.and_then(|end| end_in_words(end, started, file.is_empty())),
    })
}

impl Pacer {
    fn check_content_type(&self, content_type: Option<&ContentType>) -> Result<(), ReplayError> {
        match content_type {
            Some(name) if self.needs_times() && *name != ContentType::DNSTAP => {
                Err(ReplayError::NoTimes(name.to_string()))
            }
            _ => Ok(()),
        }
    }
}
