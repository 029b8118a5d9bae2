//! One connection as TLS sees it: bytes in, bytes out, and no socket.

use std::io;
use std::io::BufRead;
use std::io::IoSlice;
use std::io::Write;

use bytes::BytesMut;
use rustls::ProtocolVersion;

use crate::transport::tls::explain::explain;
use crate::transport::tls::records::Records;

/// Offsets of ciphertext and of plaintext count from the beginning of the stream.
pub(super) struct Channel {
    tls: rustls::Connection,
    records: Records,
    // reported <= records.plain_within(sent) <= encrypted
    reported: u64,
    encrypted: u64,
    sent: u64,
    // So many records are kept before it is asked which of them are acknowledged.
    records_max: usize,
    // With TLS 1.2: how many more may be encrypted with the keys of this connection.
    records_left: Option<u64>,
    // The peer has ended its direction, or the connection.
    ended: bool,
    fault: Option<rustls::Error>,
    closed: bool,
}

impl Channel {
    /// A connection whose handshake is done. It has nothing to send.
    pub(super) fn new(mut tls: rustls::Connection) -> Self {
        // What is encrypted at once is bounded by the caller.
        tls.set_buffer_limit(None);
        let is_1_2 = tls.protocol_version() == Some(ProtocolVersion::TLSv1_2);
        let mut channel = Self {
            tls,
            records: Records::default(),
            reported: 0,
            encrypted: 0,
            sent: 0,
            records_max: RECORDS_MIN,
            records_left: is_1_2.then_some(RECORDS_OF_1_2),
            ended: false,
            fault: None,
            closed: false,
        };
        // What came behind the handshake.
        channel.process();
        channel
    }

    /// Whether a read would not wait.
    pub(super) fn has_news(&mut self) -> bool {
        self.ended
            || self.fault.is_some()
            || self.tls.reader().fill_buf().is_ok_and(|plain| !plain.is_empty())
    }

    /// Whether nothing more can come.
    pub(super) fn has_ended(&self) -> bool {
        self.ended || self.fault.is_some()
    }

    /// How it has ended; `None`: it has not.
    pub(super) fn fault(&self) -> Option<io::Result<()>> {
        match &self.fault {
            Some(fault) => Some(Err(io::Error::new(io::ErrorKind::InvalidData, explain(fault)))),
            None => self.ended.then_some(Ok(())),
        }
    }

    /// The connection below has ended. A peer need not say so with an alert: a stream has its own end.
    pub(super) fn end(&mut self) -> usize {
        self.ended = true;
        0
    }

    /// Moves what is decrypted behind `buffer`, at most `room` bytes, which it has room for. Returns how many.
    pub(super) fn take(&mut self, buffer: &mut BytesMut, room: usize) -> usize {
        let mut taken = 0;
        let mut reader = self.tls.reader();
        while let Ok(plain) = reader.fill_buf()
            && !plain.is_empty()
            && taken < room
        {
            let count = plain.len().min(room - taken);
            buffer.extend_from_slice(plain.get(..count).unwrap_or_default());
            reader.consume(count);
            taken += count;
        }
        taken
    }

    /// Decrypts what has come, no more than `room` bytes, and moves it behind `buffer`. What a record had before stays for the next
    /// time where there is no room: it is less than one record. Returns how many bytes were moved.
    pub(super) fn decrypt(
        &mut self,
        mut ciphertext: &[u8],
        buffer: &mut BytesMut,
        room: usize,
    ) -> io::Result<usize> {
        let mut taken = 0;
        while !ciphertext.is_empty() && !self.has_ended() {
            if self.tls.read_tls(&mut ciphertext)? == 0 {
                self.ended = true;
            }
            self.process();
            taken += self.take(buffer, room - taken);
        }
        match self.fault() {
            Some(Err(fault)) if taken == 0 => Err(fault),
            _ => Ok(taken),
        }
    }

    fn process(&mut self) {
        match self.tls.process_new_packets() {
            Ok(state) => self.ended |= state.peer_has_closed(),
            Err(fault) => self.fault = Some(fault),
        }
    }

    /// Whether TLS itself has something to say.
    pub(super) fn has_to_answer(&self) -> bool {
        self.tls.wants_write()
    }

    /// Bytes that are encrypted and do not count as written.
    pub(super) fn unreported(&self) -> usize {
        // No more than the caller has brought.
        usize::try_from(self.encrypted - self.reported).unwrap_or(usize::MAX)
    }

    /// Encrypts the first bytes of `slices`, as many as TLS takes. Everything that was encrypted before has been sent.
    pub(super) fn encrypt(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        if let Some(left) = &mut self.records_left {
            let count = slices.iter().map(|slice| slice.len()).sum::<usize>().div_ceil(RECORD_LEN) as u64;
            *left = left.checked_sub(count).ok_or_else(|| io::Error::other(KEYS_USED_UP))?;
        }
        let mut count = self.tls.writer().write_vectored(slices)?;
        let mut chunks = ChunkLens::default();
        self.tls.write_tls(&mut chunks)?;
        // Data comes last, behind what TLS itself has to say.
        let records = count.div_ceil(RECORD_LEN);
        let Some(others) = chunks.0.len().checked_sub(records).filter(|_| count > 0) else {
            return Err(io::Error::other("TLS does not encrypt any more on this connection"));
        };
        let mut cipher = self.sent;
        for (index, len) in chunks.0.into_iter().enumerate() {
            cipher += len as u64;
            if index >= others {
                let plain = count.min(RECORD_LEN);
                count -= plain;
                self.encrypted += plain as u64;
                self.records.add(cipher, self.encrypted);
            }
        }
        Ok(())
    }

    /// Sends what is encrypted.
    pub(super) fn flush(&mut self, to: &mut impl Write) -> io::Result<()> {
        while self.tls.wants_write() {
            self.sent += self.tls.write_tls(to)? as u64;
        }
        Ok(())
    }

    /// Bytes that count as written since the last call.
    pub(super) fn take_written(&mut self) -> usize {
        let written = self.records.plain_within(self.sent);
        let news = written.saturating_sub(self.reported);
        self.reported += news;
        usize::try_from(news).unwrap_or(usize::MAX)
    }

    /// The peer has these bytes of ciphertext. Returns how many of the stream it has.
    pub(super) fn acknowledge(&mut self, cipher: u64) -> u64 {
        // What does not count as written cannot be acknowledged: the end of the connection counts as a byte.
        let cipher = cipher.min(self.sent);
        if self.records.plain_within(cipher) > self.reported {
            return self.reported;
        }
        self.records.acknowledge(cipher)
    }

    /// Whether it should be asked which records are acknowledged.
    pub(super) fn has_many_records(&self) -> bool {
        self.records.len() >= self.records_max
    }

    /// It was asked.
    pub(super) fn note_records(&mut self) {
        self.records_max = (2 * self.records.len()).max(RECORDS_MIN);
    }

    /// Nothing more is sent.
    pub(super) fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.tls.send_close_notify();
        }
    }
}

/// Takes nothing, and tells how long the pieces are: rustls has a piece for each record.
#[derive(Default)]
struct ChunkLens(Vec<usize>);

impl Write for ChunkLens {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes.len());
        Ok(0)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.extend(slices.iter().map(|slice| slice.len()));
        Ok(0)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of the stream in a full record.
///
/// Source: RFC 8446, 5.1.
const RECORD_LEN: usize = 16 << 10;
/// Records that are always kept: 16 KB for each connection at most, most of them have a few.
const RECORDS_MIN: usize = 1024;
/// AES-GCM may encrypt 2^24 records with one key. TLS 1.3 has new keys then; with 1.2 the connection has to end.
///
/// Source: RFC 8446, 5.5; rustls, `confidentiality_limit`.
const RECORDS_OF_1_2: u64 = (1 << 24) - 64;
const KEYS_USED_UP: &str = "the keys of this TLS 1.2 connection are used up; TLS 1.3 renews them by itself";

#[cfg(test)]
mod tests;
