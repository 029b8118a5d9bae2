//! `tapster inspect`: what is in Frame Streams files, and whether they are whole.

use std::fmt::Write as _;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Serialize;
use tapster::dnstap::Message;
use tapster::protocol::ContentType;
use tapster::protocol::FileStatus;
use tapster::protocol::FrameBatch;
use tapster::protocol::ReaderEvent;

use crate::cli::InspectArgs;
use crate::commands::CommandError;
use crate::commands::file::FrameFile;
use crate::commands::file::count_frames;
use crate::commands::file::end_in_words;
use crate::commands::stdout_failed;

/// What `--json` prints for a file.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    content_type: Option<String>,
    frames: u64,
    bytes: u64,
    status: &'static str,
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payloads: Option<Vec<String>>,
}

/// Prints the files one after the other; the exit code tells whether all are clean.
pub(crate) fn inspect(args: &InspectArgs) -> Result<ExitCode, CommandError> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut all_clean = true;
    for path in &args.files {
        match inspect_file(path, args, &mut out) {
            Ok(clean) => all_clean &= clean,
            Err(Fault::Input(error)) => {
                eprintln!("tapster: {}: {error}", path.display());
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

fn inspect_file(path: &Path, args: &InspectArgs, out: &mut impl Write) -> Result<bool, Fault> {
    let mut file = FrameFile::open(path, args.frame_len_max).map_err(Fault::Input)?;
    let mut report = Report {
        file: path.display().to_string(),
        content_type: None,
        frames: 0,
        bytes: 0,
        status: "truncated",
        detail: None,
        payloads: (args.json && args.payload).then(Vec::new),
    };
    let mut started = false;
    let mut dnstap = false;
    while let Some(event) = file.next().map_err(Fault::Input)? {
        match event {
            ReaderEvent::Started { content_type, .. } => {
                started = true;
                dnstap = content_type == Some(ContentType::DNSTAP);
                report.content_type = content_type.map(|name| name.to_string());
                if !args.json {
                    let name = report.content_type.as_deref().unwrap_or("none");
                    writeln!(out, "{}: content type {name}", report.file).map_err(Fault::Output)?;
                }
            }
            ReaderEvent::Data(batch) => {
                if args.json {
                    keep_payloads(&mut report, &batch, args.limit);
                } else if report.frames < args.limit {
                    print_frames(&batch, report.frames, args, dnstap, out).map_err(Fault::Output)?;
                }
                report.frames += u64::from(batch.frames());
                report.bytes += batch.byte_len() as u64;
            }
            ReaderEvent::Finished => {}
        }
    }
    if let Some(end) = file.end() {
        report.status = match end {
            FileStatus::Clean { .. } => "clean",
            FileStatus::Truncated { .. } => "truncated",
            FileStatus::Damaged(_) => "damaged",
        };
        report.detail = end_in_words(end, started, file.is_empty());
    }
    print_report(&report, args, out).map_err(Fault::Output)?;
    Ok(report.status == "clean")
}

fn print_report(report: &Report, args: &InspectArgs, out: &mut impl Write) -> io::Result<()> {
    if args.json {
        let json = serde_json::to_string(report).expect("a report is plain data");
        return writeln!(out, "{json}");
    }
    if report.frames > args.limit {
        writeln!(out, "  and {} more: see --limit", count_frames(report.frames - args.limit))?;
    }
    let Report { file, frames, bytes, status, .. } = report;
    write!(out, "{file}: {status}, {}, {bytes} bytes", count_frames(*frames))?;
    match &report.detail {
        Some(detail) => writeln!(out, "; {detail}"),
        None => writeln!(out),
    }
}

fn keep_payloads(report: &mut Report, batch: &FrameBatch, limit: u64) {
    let Some(payloads) = &mut report.payloads else { return };
    let room = limit.saturating_sub(payloads.len() as u64);
    for payload in batch.payloads().take(usize::try_from(room).unwrap_or(usize::MAX)) {
        payloads.push(hexadecimal(&payload));
    }
}

fn print_frames(
    batch: &FrameBatch,
    frames_before: u64,
    args: &InspectArgs,
    dnstap: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    for (number, payload) in (frames_before + 1..=args.limit).zip(batch.payloads()) {
        write!(out, "  frame {number}: {} bytes", payload.len())?;
        if dnstap {
            match Message::parse(&payload) {
                Ok(message) => write!(out, ", {}{}", message.message_type, time_in_words(&message))?,
                Err(error) => write!(out, ", not dnstap: {error}")?,
            }
        }
        writeln!(out)?;
        if args.payload {
            print_bytes(&payload, out)?;
        }
    }
    Ok(())
}

/// UTC, if it is a time that a calendar has.
fn time_in_words(message: &Message) -> String {
    let since_epoch = message.time().and_then(|time| SignedDuration::try_from(time).ok());
    let timestamp = since_epoch.and_then(|since| Timestamp::from_duration(since).ok());
    timestamp.map(|timestamp| format!(" at {timestamp:.6}")).unwrap_or_default()
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
