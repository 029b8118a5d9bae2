//! `tapster inspect`: what is in Frame Streams files, and whether they are whole.

use std::fmt::Write as _;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use tapster::dnstap::Message;
use tapster::observability::printable;
use tapster::observability::printable_json;
use tapster::protocol::ContentType;
use tapster::protocol::FrameBatch;
use tapster::protocol::ReaderEvent;

use crate::cli::InspectArgs;
use crate::commands::CommandError;
use crate::commands::contents::FrameSummary;
use crate::commands::contents::utc;
use crate::commands::count::count_frames;
use crate::commands::count::counted;
use crate::commands::file::FrameFile;
use crate::commands::stdout_failed;
use crate::commands::tell::tell;

/// What `--json` prints for a file.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    /// Of the first stream.
    content_type: Option<String>,
    streams: u64,
    frames: u64,
    bytes: u64,
    status: &'static str,
    detail: Option<String>,
    /// Where the whole frames end, if the file is not clean.
    offset: Option<u64>,
    #[serde(flatten)]
    summary: FrameSummary,
}

/// What `--json --payload` prints for a frame.
#[derive(Debug, Serialize)]
struct FrameReport<'a> {
    file: &'a str,
    frame: u64,
    bytes: usize,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    message_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    payload: String,
}

/// Prints the files one after the other; the exit code tells whether all are clean.
pub(crate) fn inspect(args: &InspectArgs) -> Result<ExitCode, CommandError> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut all_clean = true;
    for path in &args.files {
        match inspect_file(path, args, &mut out) {
            Ok(clean) => all_clean &= clean,
            Err(Fault::Input(error)) => {
                tell(&format_args!("{}: {error}", printable(path)));
                all_clean = false;
            }
            Err(Fault::Output(error)) => return stdout_failed(&error),
        }
    }
    if let Err(error) = out.flush() {
        return stdout_failed(&error);
    }
    Ok(if all_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

enum Fault {
    Input(io::Error),
    Output(io::Error),
}

/// A file being printed.
struct Inspection<'a, W> {
    args: &'a InspectArgs,
    out: &'a mut W,
    report: Report,
    /// Whether the present stream is one of dnstap, and whether it may be.
    is_dnstap: bool,
    may_be_dnstap: bool,
}

fn inspect_file(path: &Path, args: &InspectArgs, out: &mut impl Write) -> Result<bool, Fault> {
    let mut file = FrameFile::open(path, args.frame_len_max).map_err(Fault::Input)?;
    let report = Report {
        file: path.display().to_string(),
        content_type: None,
        streams: 0,
        frames: 0,
        bytes: 0,
        status: "truncated",
        detail: None,
        offset: None,
        summary: FrameSummary::default(),
    };
    let mut inspection = Inspection { args, out, report, is_dnstap: false, may_be_dnstap: false };
    loop {
        while let Some(event) = file.poll_event() {
            inspection.print_event(event).map_err(Fault::Output)?;
        }
        // What has come from a pipe is shown before the next frame comes.
        inspection.out.flush().map_err(Fault::Output)?;
        if !file.read().map_err(Fault::Input)? {
            break;
        }
    }
    let verdict = file.verdict();
    let report = &mut inspection.report;
    report.offset = (!verdict.is_clean()).then_some(verdict.position.offset);
    (report.status, report.detail) = (verdict.status, verdict.detail);
    inspection.print_report(path).map_err(Fault::Output)?;
    Ok(inspection.report.status == "clean")
}

impl<W: Write> Inspection<'_, W> {
    fn print_event(&mut self, event: ReaderEvent) -> io::Result<()> {
        match event {
            ReaderEvent::Started { content_type, .. } => {
                self.report.streams += 1;
                self.is_dnstap = content_type == Some(ContentType::DNSTAP);
                self.may_be_dnstap = self.is_dnstap || content_type.is_none();
                let name = content_type.map(|name| name.to_string());
                if !self.args.json {
                    let stream = match self.report.streams {
                        1 => String::new(),
                        number => format!("stream {number}, "),
                    };
                    let file = printable(&self.report.file);
                    writeln!(self.out, "{file}: {stream}content type {}", name.as_deref().unwrap_or("none"))?;
                }
                if self.report.streams == 1 {
                    self.report.content_type = name;
                }
            }
            ReaderEvent::Data(batch) => {
                self.print_frames(&batch)?;
                for payload in batch.payloads() {
                    match self.may_be_dnstap {
                        true => self.report.summary.add_dnstap(&payload),
                        false => self.report.summary.add(&payload),
                    }
                }
                self.report.frames += u64::from(batch.frames());
                self.report.bytes += batch.byte_len() as u64;
            }
            ReaderEvent::Finished => {}
        }
        Ok(())
    }

    fn print_frames(&mut self, batch: &FrameBatch) -> io::Result<()> {
        let args = self.args;
        let first = self.report.frames + 1;
        if args.json && !args.payload || first > args.frames_shown() {
            return Ok(());
        }
        for (number, payload) in (first..=args.frames_shown()).zip(batch.payloads()) {
            if args.json {
                self.print_frame_object(number, &payload)?;
                continue;
            }
            write!(self.out, "  frame {number}: {} bytes", payload.len())?;
            if self.is_dnstap {
                match Message::parse(&payload) {
                    Ok(message) => {
                        let time = time_of(&message).map(|time| format!(" at {time}"));
                        write!(self.out, ", {}{}", message.message_type, time.unwrap_or_default())?;
                    }
                    Err(error) => write!(self.out, ", not dnstap: {error}")?,
                }
            }
            writeln!(self.out)?;
            if args.payload {
                print_bytes(&payload, self.out)?;
            }
        }
        Ok(())
    }

    fn print_frame_object(&mut self, frame: u64, payload: &[u8]) -> io::Result<()> {
        let message = if self.is_dnstap { Message::parse(payload).ok() } else { None };
        let object = FrameReport {
            file: &self.report.file,
            frame,
            bytes: payload.len(),
            message_type: message.map(|message| message.message_type.to_string()),
            time: message.as_ref().and_then(time_of),
            payload: hexadecimal(payload),
        };
        print_object(&object, self.out)
    }

    fn print_report(&mut self, path: &Path) -> io::Result<()> {
        let report = &self.report;
        if self.args.json {
            return print_object(report, self.out);
        }
        let shown = self.args.frames_shown();
        if report.frames > shown {
            writeln!(self.out, "  and {} more: see --limit", count_frames(report.frames - shown))?;
        }
        let Report { frames, bytes, status, summary, .. } = report;
        write!(self.out, "{}: {status}, {}, {bytes} bytes", printable(path), count_frames(*frames))?;
        if report.streams > 1 {
            write!(self.out, ", {}", counted(report.streams, "stream"))?;
        }
        write!(self.out, "{}", summary.in_words())?;
        match &report.detail {
            Some(detail) => writeln!(self.out, "; {detail}"),
            None => writeln!(self.out),
        }
    }
}

fn print_object(object: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    let json = printable_json(object).expect("a report is plain data");
    writeln!(out, "{json}")
}

/// UTC, if it is a time that a calendar has.
fn time_of(message: &Message) -> Option<String> {
    message.time().and_then(utc).map(|time| format!("{time:.6}"))
}

/// 16 bytes to a line, in hexadecimal and, where printable, as characters.
fn print_bytes(payload: &[u8], out: &mut impl Write) -> io::Result<()> {
    for (index, row) in payload.chunks(16).enumerate() {
        let codes: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let printable =
            |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let text: String = row.iter().map(printable).collect();
        writeln!(out, "    {:06x}  {:<47}  {text}", index * 16, codes.join(" "))?;
    }
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes every character");
    }
    text
}
