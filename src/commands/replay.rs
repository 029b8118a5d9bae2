//! `tapster replay`: files and spools to a reader.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use tapster::config::Fault;
use tapster::config::Faults;
use tapster::config::resolve_output;
use tapster::output::Destination;
use tapster::output::Endpoints;
use tapster::output::OutputConfig;
use tapster::output::StreamsConfig;
use tapster::protocol::ContentType;
use tapster::protocol::FileStatus;
use tapster::protocol::ReaderEvent;
use tapster::transport::Address;
use tokio::runtime;
use tokio::runtime::Runtime;

use crate::cli::Rate;
use crate::cli::ReplayArgs;
use crate::commands::CommandError;
use crate::commands::check_range;
use crate::commands::connection::Connection;
use crate::commands::connection::SendError;
use crate::commands::file::FrameFile;
use crate::commands::file::count_frames;
use crate::commands::file::end_in_words;
use crate::commands::pace::Pace;
use crate::commands::pace::Pacer;
use crate::commands::select::Selection;
use crate::commands::spool::frames::SpoolFrames;
use crate::commands::spool::look::LookError;
use crate::commands::spool::look::look;

/// Why a file or spool was not sent to its end.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("the file cannot be read: {0}")]
    File(io::Error),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Spool(#[from] LookError),
    #[error("--speed, --from and --until need the times of dnstap, and the content type of this file is {0}")]
    NoTimes(String),
}

/// Sends files and spools one after the other, each in a session of its own.
pub(crate) fn replay(args: &ReplayArgs) -> Result<ExitCode, CommandError> {
    check_range(&args.range)?;
    let output = resolve_output(&args.to)?;
    let (to, streams) = one_reader(&output).map_err(|message| {
        let place = format!("--to {}", args.to);
        Faults(vec![Fault { place, key: "to".to_owned(), message: message.to_owned() }])
    })?;
    let pace = match (args.speed, args.rate) {
        (Some(speed), _) => Pace::Speed(speed),
        (None, Rate::PerSecond(rate)) => Pace::Rate(rate),
        (None, Rate::Max) => Pace::Max,
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Failed(error.to_string()))?;
    let len_max = output.frame_len_max;
    let replay = Replay { args, to, streams, len_max, pacer: Pacer::new(pace, Instant::now()), frames: 0 };
    let result = send_all(&runtime, replay);
    // Not joined: a name lookup may still hang there.
    runtime.shutdown_background();
    result.map(|all_whole| if all_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns whether every file is whole.
fn send_all(runtime: &Runtime, mut replay: Replay<'_>) -> Result<bool, CommandError> {
    let mut all_whole = true;
    for path in &replay.args.files {
        let result = runtime.block_on(replay.send(path));
        let frames = count_frames(std::mem::take(&mut replay.frames));
        let sent = format!("{}: {frames} sent to {}", path.display(), replay.to);
        match result {
            Ok(Remark { whole, words: None }) => {
                all_whole &= whole;
                eprintln!("tapster: {sent}");
            }
            Ok(Remark { whole, words: Some(words) }) => {
                all_whole &= whole;
                eprintln!("tapster: {sent}; {words}");
            }
            Err(error) => return Err(CommandError::Failed(format!("{sent}; {error}"))),
        }
    }
    Ok(all_whole)
}

/// The only reader of an output; else a sentence that says what to do.
fn one_reader(output: &OutputConfig) -> Result<(&Address, &StreamsConfig), &'static str> {
    match &output.to {
        Destination::File(_) => {
            Err("a replay goes to tcp://HOST:PORT or unix:PATH; files are copied with `cp`")
        }
        Destination::Streams(streams) => match &streams.endpoints {
            Endpoints::One(to) => Ok((to, streams)),
            Endpoints::Group(_) => Err("a replay goes to one reader: start a relay to have it dealt out"),
        },
    }
}

/// What is to be said about what was sent.
struct Remark {
    /// Whether a file ends with STOP, and nothing of a spool is damaged.
    whole: bool,
    words: Option<String>,
}

/// A replay under way.
struct Replay<'a> {
    args: &'a ReplayArgs,
    to: &'a Address,
    streams: &'a StreamsConfig,
    /// Longest frame that is sent, payload bytes.
    len_max: u32,
    pacer: Pacer,
    /// Sent of the file or spool that is sent now.
    frames: u64,
}

impl Replay<'_> {
    async fn send(&mut self, path: &Path) -> Result<Remark, ReplayError> {
        if path.is_dir() { self.send_spool(path).await } else { self.send_file(path).await }
    }

    async fn send_file(&mut self, path: &Path) -> Result<Remark, ReplayError> {
        let mut file = FrameFile::open(path, self.len_max).map_err(ReplayError::File)?;
        let mut selection = Selection::new(self.args.range);
        let mut connection = None;
        while let Some(event) = file.next().map_err(ReplayError::File)? {
            match (event, &mut connection) {
                (ReaderEvent::Started { content_type, .. }, None) => {
                    self.check_content_type(content_type.as_ref())?;
                    connection = Some(Connection::open(self.to, self.streams, content_type).await?);
                }
                (ReaderEvent::Data(batch), Some(connection)) => {
                    for run in selection.of(batch) {
                        connection.send(&run, None, &mut self.pacer, &mut self.frames).await?;
                    }
                }
                _ => {}
            }
        }
        let started = connection.is_some();
        if let Some(connection) = connection {
            connection.finish().await?;
        }
        let end = file.end();
        let words = end.and_then(|end| end_in_words(end, started, file.is_empty()));
        Ok(Remark {
            whole: matches!(end, Some(FileStatus::Clean { .. })),
            words: words.map(|words| format!("the file {words}")),
        })
    }

    async fn send_spool(&mut self, path: &Path) -> Result<Remark, ReplayError> {
        let spool = look(path)?;
        let mut frames = SpoolFrames::new(path, &spool, self.args.all, self.args.range);
        let mut connection = Connection::open(self.to, self.streams, frames.content_type()).await?;
        let mut too_long = 0;
        for (received, batch) in &mut frames {
            let (short, left_out) = batch.copy_without_longer_than(self.len_max);
            too_long += u64::from(left_out);
            if let Some(short) = short {
                connection.send(&short, Some(received), &mut self.pacer, &mut self.frames).await?;
            }
        }
        connection.finish().await?;
        let words = format!("{} longer than frame_len_max left out", count_frames(too_long));
        Ok(Remark { whole: frames.is_whole() && too_long == 0, words: (too_long > 0).then_some(words) })
    }

    fn check_content_type(&self, content_type: Option<&ContentType>) -> Result<(), ReplayError> {
        let has_times = content_type.is_some_and(|name| *name == ContentType::DNSTAP);
        // A file of no type may be one of dnstap, and is paced if it is; but nothing is left out on suspicion.
        let must_have_times =
            !self.args.range.is_everything() || self.pacer.needs_times() && content_type.is_some();
        if must_have_times && !has_times {
            let name = content_type.map_or_else(|| "none".to_owned(), ToString::to_string);
            return Err(ReplayError::NoTimes(name));
        }
        Ok(())
    }
}
