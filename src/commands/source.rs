//! The bytes of a file or of stdin, taken out of gzip or zstd where they are in it.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Cursor;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::time::SystemTime;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::BlockDecodingStrategy;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::errors::ReadFrameHeaderError;

/// What is read, and what is known of it beside its bytes.
pub(crate) struct Source {
    bytes: Box<dyn Read>,
    pub(crate) facts: Facts,
    /// Bytes that were taken from the file.
    taken: Rc<Cell<u64>>,
}

/// What is known of a file when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `gzip` or `zstd`, if the bytes are taken out of it.
    pub(crate) compression: Option<&'static str>,
    /// Length on disk in bytes; `None` for pipes and their like.
    pub(crate) len: Option<u64>,
    /// When it was last written to; `None` for pipes and their like.
    pub(crate) modified: Option<SystemTime>,
}

impl Source {
    /// Opens `path`; `-` is stdin.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Self::new(io::stdin(), Facts::default());
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let is_file = metadata.is_file();
        let facts = Facts {
            compression: None,
            len: is_file.then_some(metadata.len()),
            modified: metadata.modified().ok().filter(|_| is_file),
        };
        Self::new(file, facts)
    }

    fn new(source: impl Read + 'static, mut facts: Facts) -> io::Result<Self> {
        let taken = Rc::new(Cell::new(0));
        let mut source = Counted { source, taken: Rc::clone(&taken) };
        let head = read_head(&mut source)?;
        let (gzip, zstd) = (head.starts_with(GZIP), head.starts_with(ZSTD));
        let whole = Cursor::new(head).chain(source);
        let bytes: Box<dyn Read> = if gzip {
            facts.compression = Some("gzip");
            Box::new(MultiGzDecoder::new(BufReader::new(whole)))
        } else if zstd {
            facts.compression = Some("zstd");
            Box::new(Zstd::new(whole))
        } else {
            Box::new(whole)
        };
        Ok(Self { bytes, facts, taken })
    }

    /// Bytes that were taken from the file until now. Compressed ones count as such.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.get()
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

/// What is there at first, and no less than what tells the compression, if the source has that.
fn read_head(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD_LEN];
    let mut filled = 0;
    while filled < MAGIC_LEN {
        match source.read(&mut head[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(filled);
    Ok(head)
}

/// Counts what is read.
struct Counted<R> {
    source: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.source.read(buffer)?;
        self.taken.set(self.taken.get() + len as u64);
        Ok(len)
    }
}

/// All zstd frames of a file, one after the other.
struct Zstd<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    /// What is wrong, told when everything that was decoded before it has been read.
    fault: Option<io::Error>,
}

impl<R: Read> Zstd<R> {
    fn new(source: R) -> Self {
        Self { source: BufReader::new(source), decoder: FrameDecoder::new(), fault: None }
    }

    /// Begins the next frame; false at the end of the file.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(self.fault_of(&error)),
            }
        }
    }

    /// Decodes one block, and checks the sum behind the last one.
    fn decode(&mut self) -> io::Result<()> {
        let decoded = self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1));
        match decoded {
            Err(error) => Err(self.fault_of(&error)),
            Ok(_) => Ok(()),
        }
    }

    /// Whether the sum of a frame that was decoded and read is the one that stands behind it.
    fn is_intact(&self) -> bool {
        let written = self.decoder.get_checksum_from_data();
        written.is_none() || written == self.decoder.get_calculated_checksum()
    }

    fn fault_of(&mut self, error: &FrameDecoderError) -> io::Error {
        if matches!(self.source.fill_buf(), Ok([])) {
            return io::ErrorKind::UnexpectedEof.into();
        }
        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
    }

    /// Has the decoder give out what it keeps for blocks that will not come: an empty last block, and a sum.
    fn release(&mut self) {
        let _ = self.decoder.decode_blocks(&b"\x01\0\0\0\0\0\0"[..], BlockDecodingStrategy::All);
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let len = self.decoder.read(buffer)?;
            if len > 0 {
                return Ok(len);
            }
            if let Some(fault) = &self.fault {
                return Err(io::Error::new(fault.kind(), fault.to_string()));
            }
            let result = match self.decoder.is_finished() {
                true if !self.is_intact() => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum is wrong"))
                }
                true => match self.begin() {
                    Ok(false) => return Ok(0),
                    result => result.map(drop),
                },
                false => self.decode(),
            };
            if let Err(fault) = result {
                if !self.decoder.is_finished() {
                    self.release();
                }
                self.fault = Some(fault);
            }
        }
    }
}

const MAGIC_LEN: usize = 4;
const HEAD_LEN: usize = 64 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
