//! Frames encoded ahead: a wheel of templates of which only the marks change.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use bytes::BytesMut;
use clap::ValueEnum;
use fastrand::Rng;
use tapster::protocol::FRAME_LEN_MAX_DEFAULT;
use tapster::protocol::FileReader;
use tapster::protocol::ReaderEvent;

use crate::dnstap;
use crate::mark::MARK_LEN;
use crate::mark::Mark;
use crate::units;

/// What payloads hold besides the mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PayloadKind {
    /// Valid dnstap messages
    #[default]
    Dnstap,
    /// A mark and arbitrary bytes
    Opaque,
}

/// How long payloads are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// The mix of a busy resolver: 60 to 1400 bytes, half of them under 130.
    #[default]
    Dnstap,
    /// All alike.
    Fixed(usize),
    /// Those of the data frames of a Frame Streams file, in its order.
    File(PathBuf),
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match units::size(text) {
            _ if text == "dnstap" => Ok(Self::Dnstap),
            Ok(size) => Ok(Self::Fixed(size)),
            Err(_) if Path::new(text).is_file() => Ok(Self::File(text.into())),
            Err(error) => Err(format!("neither `dnstap` nor a file, and {error}")),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dnstap => f.write_str("dnstap"),
            Self::Fixed(size) => write!(f, "{size}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// A frame in a wheel.
#[derive(Clone, Copy, Debug)]
struct Template {
    /// Where its length word begins.
    start: usize,
    /// Where the next frame begins.
    end: usize,
    mark_at: usize,
    checksum_around: u32,
}

/// Encoded data frames one behind the other, to be marked in place and written from where they lie.
#[derive(Clone, Debug)]
pub(crate) struct Wheel {
    bytes: Vec<u8>,
    templates: Vec<Template>,
}

impl Wheel {
    /// Builds the frames; the same seed gives the same frames.
    ///
    /// # Errors
    /// A fixed size with no room for a mark, or a file that cannot be read.
    pub(crate) fn new(kind: PayloadKind, sizes: &Sizes, seed: u64) -> Result<Self> {
        let mut rng = Rng::with_seed(seed);
        let size_min = match kind {
            PayloadKind::Dnstap => dnstap::SIZE_MIN,
            PayloadKind::Opaque => MARK_LEN,
        };
        let sizes = match sizes {
            Sizes::Dnstap => (0..WHEEL_FRAMES).map(|_| resolver_size(&mut rng)).collect(),
            Sizes::Fixed(size) if *size < size_min => {
                bail!("--sizes {size}: a {kind:?} payload with its mark needs at least {size_min} bytes")
            }
            Sizes::Fixed(size) => vec![*size; WHEEL_FRAMES.min(WHEEL_BYTES / size).max(1)],
            Sizes::File(path) => sizes_of(path).with_context(|| format!("--sizes {}", path.display()))?,
        };
        let mut wheel = Self { bytes: Vec::new(), templates: Vec::with_capacity(sizes.len()) };
        for size in sizes {
            // A file may hold shorter payloads than a mark needs.
            let size = size.max(size_min);
            let (payload, mark_at) = match kind {
                PayloadKind::Dnstap => dnstap::payload(size, &mut rng),
                PayloadKind::Opaque => ((0..size).map(|_| rng.u8(..)).collect(), 0),
            };
            wheel.push(&payload, mark_at);
        }
        Ok(wheel)
    }

    fn push(&mut self, payload: &[u8], mark_at: usize) {
        let start = self.bytes.len();
        let len = u32::try_from(payload.len()).expect("sizes are limited");
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(payload);
        self.templates.push(Template {
            start,
            end: self.bytes.len(),
            mark_at: start + 4 + mark_at,
            checksum_around: Mark::checksum_around(payload, mark_at),
        });
    }

    /// How many frames there are.
    pub(crate) fn frames(&self) -> usize {
        self.templates.len()
    }

    /// How many frames from `index` on make up a write of at most `bytes_max`, though at least one and at most
    /// `frames_max`, and the bytes' beginning and end. A run does not pass the end of the wheel.
    pub(crate) fn run(&self, index: usize, frames_max: u64, bytes_max: usize) -> (usize, usize, usize) {
        let upcoming = &self.templates[index..];
        let start = upcoming[0].start;
        let frames_max = usize::try_from(frames_max).unwrap_or(usize::MAX).min(upcoming.len());
        let fits = |template: &&Template| template.end - start <= bytes_max;
        let frames = upcoming[..frames_max].iter().take_while(fits).count().max(1);
        (frames, start, upcoming[frames - 1].end)
    }

    /// Writes a mark into frame `index`.
    pub(crate) fn mark(&mut self, index: usize, mark: &Mark) {
        let template = self.templates[index];
        let place =
            self.bytes[template.mark_at..].first_chunk_mut().expect("every template has room for a mark");
        mark.write(place, template.checksum_around);
    }

    /// The bytes from the beginning of one frame to the end of another.
    pub(crate) fn bytes(&self, start: usize, end: usize) -> &[u8] {
        &self.bytes[start..end]
    }
}

/// Many short queries around 130 bytes, and some long responses.
fn resolver_size(rng: &mut Rng) -> usize {
    if rng.u8(..32) == 0 {
        return rng.usize(400..=1400);
    }
    // The sum of twelve uniform numbers is all but normal.
    let normal = (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
    ((127.0 * (0.35 * normal).exp()) as usize).clamp(dnstap::SIZE_MIN, 1400)
}

/// Payload lengths of a Frame Streams file, of its first 8 MiB.
fn sizes_of(path: &Path) -> Result<Vec<usize>> {
    let now = Instant::now();
    let mut reader = FileReader::new(FRAME_LEN_MAX_DEFAULT, now);
    let mut bytes = BytesMut::zeroed(FILE_BYTES_MAX);
    let len = File::open(path)?.read(&mut bytes)?;
    bytes.truncate(len);
    reader.handle_bytes(now, &mut bytes)?;
    let mut sizes = Vec::new();
    while let Some(event) = reader.poll_event() {
        if let ReaderEvent::Data(batch) = event {
            sizes.extend(batch.payloads().map(|payload| payload.len()));
        }
    }
    if sizes.is_empty() {
        bail!("no data frame in it: is it a Frame Streams file?");
    }
    Ok(sizes)
}

/// Few enough to stay in a cache, many enough to be a mix.
const WHEEL_FRAMES: usize = 2048;
const WHEEL_BYTES: usize = 384 << 10;
const FILE_BYTES_MAX: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    use crate::mark::Found;

    fn payloads(wheel: &Wheel) -> Vec<&[u8]> {
        wheel.templates.iter().map(|template| wheel.bytes(template.start + 4, template.end)).collect()
    }

    #[test]
    fn the_mix_has_its_median_near_130_and_stays_within_60_and_1400() {
        let wheel = Wheel::new(PayloadKind::Dnstap, &Sizes::Dnstap, 1).unwrap();
        let mut lens: Vec<usize> = payloads(&wheel).iter().map(|payload| payload.len()).collect();
        lens.sort_unstable();
        let median = lens[lens.len() / 2];
        assert!((120..=140).contains(&median), "median {median}");
        assert!(lens[0] >= 60 && *lens.last().unwrap() <= 1400);
        assert!(*lens.last().unwrap() > 1000);
    }

    #[test]
    fn a_marked_frame_is_intact_and_can_be_marked_again() {
        for kind in [PayloadKind::Dnstap, PayloadKind::Opaque] {
            let mut wheel = Wheel::new(kind, &Sizes::Dnstap, 2).unwrap();
            for round in 0..2 {
                for index in 0..wheel.frames() {
                    let sequence = index as u64 + round;
                    let mark = Mark { run: 1, connection: 2, sequence, last: round == 1, intended_ns: 9 };
                    wheel.mark(index, &mark);
                    assert_eq!(Mark::find(payloads(&wheel)[index]), Found::Intact(mark));
                }
            }
        }
    }

    #[test]
    fn a_run_takes_whole_frames_up_to_the_size_of_a_write_but_at_least_one() {
        let wheel = Wheel::new(PayloadKind::Opaque, &Sizes::Fixed(96), 1).unwrap();
        assert_eq!(wheel.run(0, 10, 350), (3, 0, 300));
        assert_eq!(wheel.run(2, 10, 1), (1, 200, 300));
        assert_eq!(wheel.run(0, 2, 350), (2, 0, 200));
        assert_eq!(wheel.run(wheel.frames() - 1, 10, 350).0, 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_frames() {
        let wheel = |seed| Wheel::new(PayloadKind::Dnstap, &Sizes::Dnstap, seed).unwrap().bytes;
        assert!(wheel(5) == wheel(5));
        assert!(wheel(5) != wheel(6));
    }

    #[test]
    fn a_size_without_room_for_the_mark_is_refused() {
        let error = Wheel::new(PayloadKind::Opaque, &Sizes::Fixed(27), 1).unwrap_err();
        assert!(error.to_string().contains("at least 28"), "{error}");
        assert!(Wheel::new(PayloadKind::Opaque, &Sizes::Fixed(28), 1).is_ok());
        assert!(Wheel::new(PayloadKind::Dnstap, &Sizes::Fixed(60), 1).is_ok());
    }

    #[test]
    fn sizes_come_from_the_data_frames_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let start = [0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2];
        let frames =
            [&start[..], &[0, 0, 0, 70], &[1; 70], &[0, 0, 0, 3], &[1; 3], &[0, 0, 0, 9, 1]].concat();
        std::fs::write(file.path(), frames).unwrap();
        let wheel = Wheel::new(PayloadKind::Opaque, &Sizes::File(file.path().into()), 1).unwrap();
        let lens: Vec<usize> = payloads(&wheel).iter().map(|payload| payload.len()).collect();
        assert_eq!(lens, [70, MARK_LEN], "a payload shorter than a mark grows to its length");
    }
}
