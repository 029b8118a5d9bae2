//! `tapster replay`: files and spools to a reader, or into one file.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use jiff::Zoned;
use jiff::fmt::strtime;
use tapster::config::Fault;
use tapster::config::Faults;
use tapster::config::resolve_output;
use tapster::observability::printable;
use tapster::output::Destination;
use tapster::output::Endpoints;
use tapster::output::OutputConfig;
use tapster::output::Rotate;
use tapster::output::StreamsConfig;
use tapster::protocol::ContentType;
use tapster::protocol::ReaderEvent;
use tapster::transport::Address;
use tokio::runtime;
use tokio::runtime::Runtime;

use crate::cli::Rate;
use crate::cli::ReplayArgs;
use crate::commands::CommandError;
use crate::commands::check_range;
use crate::commands::connection::Connection;
use crate::commands::count::count_frames;
use crate::commands::file::FrameFile;
use crate::commands::file_sink::FileSink;
use crate::commands::pace::Pace;
use crate::commands::pace::Pacer;
use crate::commands::select::Selection;
use crate::commands::sink::Sink;
use crate::commands::sink::SinkError;
use crate::commands::sink::Way;
use crate::commands::spool::frames::SpoolFrames;
use crate::commands::spool::look::LookError;
use crate::commands::spool::look::look;
use crate::commands::tell::Progress;
use crate::commands::tell::tell;

/// Why a file or spool was not sent to its end.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("the file cannot be read: {0}")]
    File(io::Error),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Spool(#[from] LookError),
    #[error(
        "--speed, --from and --until need the times of dnstap, and the content type of this file is {0}; if its frames \
         are dnstap all the same, say so with ?content_type=protobuf:dnstap.Dnstap behind the address of --to"
    )]
    NoTimes(String),
    #[error(
        "its content type is {0}, and the file that is written has {1}: a file has one type; name it with \
         ?content_type=TYPE behind the address of --to"
    )]
    OtherType(String, String),
}

/// Sends files and spools one after the other, each in a session of its own, or writes them into one file.
pub(crate) fn replay(args: &ReplayArgs) -> Result<ExitCode, CommandError> {
    check_range(&args.range)?;
    let output = resolve_output(&args.to)?;
    let to = target(&output.config).map_err(|message| {
        let place = format!("--to {}", args.to);
        Faults(vec![Fault { place, key: "to".to_owned(), message }])
    })?;
    let pace = match (args.speed, args.rate) {
        (Some(speed), _) => Pace::Speed(speed),
        (None, Rate::PerSecond(rate)) => Pace::Rate(rate),
        (None, Rate::Max) => Pace::Max,
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Failed(error.to_string()))?;
    let replay = Replay {
        args,
        to,
        content_type: output.names_content_type.then(|| output.config.content_type.clone()),
        len_max: output.config.frame_len_max,
        pacer: Pacer::new(pace, args.pause_max, Instant::now()),
        sink: None,
        frames: 0,
    };
    let result = send_all(&runtime, replay);
    // Not joined: a name lookup may still hang there.
    runtime.shutdown_background();
    result.map(|all_whole| if all_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns whether every file is whole. One that is not, or that cannot be read, does not keep others from being sent.
fn send_all(runtime: &Runtime, mut replay: Replay<'_>) -> Result<bool, CommandError> {
    let mut all_whole = true;
    let to = replay.to.to_string();
    for path in &replay.args.files {
        let result = runtime.block_on(replay.send(path));
        let frames = count_frames(std::mem::take(&mut replay.frames));
        let sent = format!("{}: {frames} sent to {to}", printable(path));
        match result {
            Ok(Remark { whole, words }) => {
                all_whole &= whole;
                match words {
                    None => tell(&sent),
                    Some(words) => tell(&format_args!("{sent}; {words}")),
                }
            }
            Err(ReplayError::Sink(error)) if error.is_final() => {
                return Err(CommandError::Failed(format!("{sent}; {error}")));
            }
            Err(error) => {
                all_whole = false;
                tell(&format_args!("{sent}; {error}"));
            }
        }
    }
    if let Some(sink) = replay.sink.take() {
        runtime.block_on(sink.finish()).map_err(|error| CommandError::Failed(error.to_string()))?;
    }
    Ok(all_whole)
}

/// Where the frames go.
enum Target<'a> {
    Reader(&'a Address, &'a StreamsConfig),
    File(PathBuf),
}

impl std::fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reader(address, _) => address.fmt(f),
            Self::File(path) if path == Path::new("-") => f.write_str("stdout"),
            Self::File(path) => write!(f, "{}", printable(path)),
        }
    }
}

/// The only reader of an output, or its file; else a sentence that says what to do.
fn target(output: &OutputConfig) -> Result<Target<'_>, String> {
    match &output.to {
        Destination::File(file) if file.rotate != Rotate::default() => {
            Err("a replay writes one file: leave `rotate` out".to_owned())
        }
        Destination::File(file) => {
            let name = strtime::format(&file.pattern, &Zoned::now()).map_err(|error| error.to_string())?;
            Ok(Target::File(name.into()))
        }
        Destination::Streams(streams) => match &streams.endpoints {
            Endpoints::One(to) => Ok(Target::Reader(to, streams)),
            Endpoints::Group(_) => {
                Err("a replay goes to one reader: start a relay to have it dealt out".to_owned())
            }
        },
        Destination::Subscribers(_) => {
            Err("a replay goes to one reader: start a relay, and replay to its input".to_owned())
        }
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
    to: Target<'a>,
    /// The type that is sent, whatever the files say; `None`: that of each file.
    content_type: Option<ContentType>,
    /// Longest frame that is sent, payload bytes.
    len_max: u32,
    pacer: Pacer,
    /// What the present stream goes to.
    sink: Option<Sink>,
    /// Sent of the file or spool that is sent now.
    frames: u64,
}

impl Replay<'_> {
    async fn send(&mut self, path: &Path) -> Result<Remark, ReplayError> {
        let result = if path.is_dir() { self.send_spool(path).await } else { self.send_file(path).await };
        // A session that failed is over. A file goes on.
        self.sink.take_if(|sink| !sink.is_file());
        result
    }

    async fn send_file(&mut self, path: &Path) -> Result<Remark, ReplayError> {
        let mut file = FrameFile::open(path, self.len_max).map_err(ReplayError::File)?;
        let progress = Progress::new(file.progress().1);
        let mut selection = Selection::new(self.args.range);
        let mut words = None;
        while let Some(event) = file.next().map_err(ReplayError::File)? {
            match event {
                ReaderEvent::Started { content_type, .. } => {
                    let sent = self.content_type.clone().or(content_type.clone());
                    if content_type.is_some() && sent != content_type {
                        words =
                            Some(format!("sent as {}, the file says {}", name(&sent), name(&content_type)));
                    }
                    self.check_content_type(sent.as_ref())?;
                    self.begin(sent).await?;
                }
                ReaderEvent::Data(batch) => {
                    let Some(sink) = &mut self.sink else { continue };
                    for run in selection.of(batch) {
                        sink.send(&run, None, &mut self.pacer, &mut self.frames).await?;
                    }
                    progress.show(file.progress().0, self.frames);
                }
                ReaderEvent::Finished => {}
            }
        }
        drop(progress);
        self.end_session().await?;
        let verdict = file.verdict();
        let whole = verdict.is_clean();
        let detail = verdict.detail.map(|words| format!("the file {words}"));
        let words: Vec<String> = words.into_iter().chain(detail).collect();
        Ok(Remark { whole, words: (!words.is_empty()).then(|| words.join("; ")) })
    }

    async fn send_spool(&mut self, path: &Path) -> Result<Remark, ReplayError> {
        let spool = look(path)?;
        let mut frames = SpoolFrames::new(path, &spool, self.args.all, self.args.range);
        let progress = Progress::new(None);
        self.begin(self.content_type.clone().or(frames.content_type())).await?;
        let mut too_long = 0;
        let Some(sink) = &mut self.sink else { unreachable!("a stream has begun") };
        for (received, batch) in &mut frames {
            let (short, left_out) = batch.copy_without_longer_than(self.len_max);
            too_long += u64::from(left_out);
            if let Some(short) = short {
                sink.send(&short, Some(received), &mut self.pacer, &mut self.frames).await?;
                progress.show(0, self.frames);
            }
        }
        drop(progress);
        self.end_session().await?;
        let words = format!("{} longer than frame_len_max left out", count_frames(too_long));
        Ok(Remark { whole: frames.is_whole() && too_long == 0, words: (too_long > 0).then_some(words) })
    }

    /// Begins a stream of a type. One of the same type that is open goes on.
    async fn begin(&mut self, content_type: Option<ContentType>) -> Result<(), ReplayError> {
        match &self.sink {
            Some(sink) if sink.content_type == content_type => return Ok(()),
            Some(sink) if sink.is_file() => {
                return Err(ReplayError::OtherType(name(&content_type), name(&sink.content_type)));
            }
            _ => self.end_session().await?,
        }
        let way = match &self.to {
            Target::Reader(to, streams) => {
                let connection = Connection::open(to, streams, content_type.clone()).await;
                Way::Reader(Box::new(connection.map_err(SinkError::Send)?))
            }
            Target::File(path) => {
                let file = FileSink::create(path, content_type.clone());
                let file = file.map_err(|source| SinkError::Write { path: path.clone(), source })?;
                Way::File(path.clone(), file)
            }
        };
        self.sink = Some(Sink::new(content_type, way));
        Ok(())
    }

    /// STOP, and FINISH, of what was sent to a reader.
    async fn end_session(&mut self) -> Result<(), ReplayError> {
        if let Some(sink) = self.sink.take_if(|sink| !sink.is_file()) {
            sink.finish().await?;
        }
        Ok(())
    }

    fn check_content_type(&self, content_type: Option<&ContentType>) -> Result<(), ReplayError> {
        let has_times = content_type.is_some_and(|name| *name == ContentType::DNSTAP);
        // A file of no type may be one of dnstap, and is paced if it is; but nothing is left out on suspicion.
        let must_have_times =
            !self.args.range.is_everything() || self.pacer.needs_times() && content_type.is_some();
        if must_have_times && !has_times {
            return Err(ReplayError::NoTimes(name(&content_type.cloned())));
        }
        Ok(())
    }
}

fn name(content_type: &Option<ContentType>) -> String {
    content_type.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
}
