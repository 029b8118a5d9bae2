//! A peer of the relay that sends exactly the bytes of the test, and expects exactly those of the test.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;
use std::time::Instant;

use tapster::transport::Address;

use super::stream::Listener;
use super::stream::Stream;
use super::stream::Transport;
use super::wait::PATIENCE;
use super::wait::eventually_within;
use super::wire;
use super::wire::D;
use super::wire::Frame;

/// Either end of one connection with the relay.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: Stream,
}

impl Peer {
    /// Connects to an input of the relay, to play a writer.
    #[track_caller]
    pub(crate) fn connect(address: &Address) -> Self {
        let stream = Stream::connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Self::over(stream)
    }

    /// Connects and opens a bidirectional session of type dnstap.
    #[track_caller]
    pub(crate) fn writer(address: &Address) -> Self {
        let mut peer = Self::connect(address);
        peer.open_as_writer(D);
        peer
    }

    pub(crate) fn over(stream: Stream) -> Self {
        stream.set_read_timeout(PATIENCE);
        stream.set_write_timeout(PATIENCE);
        Self { stream }
    }

    /// READY, ACCEPT, START: "HS" of the conformance cases.
    #[track_caller]
    pub(crate) fn open_as_writer(&mut self, content_type: &[u8]) {
        self.send(&wire::ready(&[content_type]));
        self.expect(&wire::accept(&[content_type]));
        self.send(&wire::start(&[content_type]));
    }

    /// Expects READY and START of type dnstap, answering the first.
    #[track_caller]
    pub(crate) fn open_as_reader(&mut self) {
        self.expect(&wire::ready(&[D]));
        self.send(&wire::accept(&[D]));
        self.expect(&wire::start(&[D]));
    }

    /// As [`Self::open_as_reader`] of a relay that may have given up by now; returns whether it has not.
    pub(crate) fn try_open_as_reader(&mut self) -> bool {
        let mut control = || matches!(Frame::read(&mut self.stream), Ok(Frame::Control(_)));
        control()
            && self.stream.write_all(&wire::accept(&[D])).is_ok()
            && matches!(Frame::read(&mut self.stream), Ok(Frame::Control(_)))
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            panic!("the relay does not take {} bytes: {error}", bytes.len());
        }
    }

    /// Sends as much as the relay takes; for bytes during which it may close.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends until nothing moves for `pause`; returns how many bytes went.
    pub(crate) fn send_until_stalled(&mut self, bytes: &[u8], pause: Duration) -> usize {
        self.stream.set_write_timeout(pause);
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(len) => sent += len,
                Err(error) if is_timeout(&error) => break,
                Err(error) => panic!("the relay does not take bytes: {error}"),
            }
        }
        self.stream.set_write_timeout(PATIENCE);
        sent
    }

    /// Reads exactly these bytes.
    #[track_caller]
    pub(crate) fn expect(&mut self, expected: &[u8]) {
        let mut got = Vec::new();
        let mut buffer = vec![0; expected.len()];
        while got.len() < expected.len() {
            match self.stream.read(&mut buffer[got.len()..]) {
                Ok(0) => panic!("the relay closed after {got:02x?} instead of {expected:02x?}"),
                Ok(len) => got.extend_from_slice(&buffer[got.len()..][..len]),
                Err(error) => panic!("{error} after {got:02x?} instead of {expected:02x?}"),
            }
        }
        assert_eq!(got, expected, "{got:02x?} instead of {expected:02x?}");
    }

    #[track_caller]
    pub(crate) fn expect_data(&mut self, payload: &[u8]) {
        let frame = self.read_frame();
        assert!(frame == Frame::Data(payload.to_vec()), "another frame than expected: {frame:?}");
    }

    #[track_caller]
    pub(crate) fn read_frame(&mut self) -> Frame {
        match Frame::read(&mut self.stream) {
            Ok(frame) => frame,
            Err(error) => panic!("the relay sends no whole frame: {error}"),
        }
    }

    /// Reads whole data frames until the stream ends, within a frame or between two, and counts them.
    pub(crate) fn count_frames_until_end(mut self) -> u64 {
        let mut frames = 0;
        while let Ok(Frame::Data(_)) = Frame::read(&mut self.stream) {
            frames += 1;
        }
        frames
    }

    /// Reads up to `len` bytes, 0 at the end of the stream.
    pub(crate) fn read_some(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        let len = self.stream.read(&mut buffer)?;
        buffer.truncate(len);
        Ok(buffer)
    }

    /// Expects EOF or RST within a second, and no byte before it.
    #[track_caller]
    pub(crate) fn expect_close(&mut self) {
        self.expect_close_within(Duration::from_secs(1));
    }

    /// Expects EOF or RST within `limit`, and no byte before it; returns how long that took.
    #[track_caller]
    pub(crate) fn expect_close_within(&mut self, limit: Duration) -> Duration {
        let began = Instant::now();
        // A busy machine may be late, a relay that forgot to close never comes.
        self.stream.set_read_timeout(limit.max(Duration::from_secs(5)));
        match self.stream.read(&mut [0]) {
            Ok(0) => (),
            Ok(_) => panic!("a byte came where the relay should have closed"),
            Err(error) if is_timeout(&error) => panic!("the relay did not close within {limit:?}"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (),
            Err(error) => panic!("neither EOF nor RST: {error}"),
        }
        self.stream.set_read_timeout(PATIENCE);
        began.elapsed()
    }

    /// Expects that the connection stays open and silent for as long.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self, duration: Duration) {
        self.stream.set_read_timeout(duration);
        match self.stream.read(&mut [0]) {
            Ok(0) => panic!("the relay closed"),
            Ok(_) => panic!("a byte came where nothing should"),
            Err(error) if is_timeout(&error) => (),
            Err(error) => panic!("the connection broke: {error}"),
        }
        self.stream.set_read_timeout(PATIENCE);
    }

    /// STOP, FINISH, close; returns how long FINISH took.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Duration {
        let began = Instant::now();
        self.send(&wire::stop());
        self.expect(&wire::finish());
        let took = began.elapsed();
        self.expect_close();
        took
    }

    /// Expects STOP, answers FINISH, expects the close.
    #[track_caller]
    pub(crate) fn expect_stop(mut self) {
        self.expect(&wire::stop());
        self.send(&wire::finish());
        self.expect_close();
    }

    pub(crate) fn shutdown_write(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads as a collector does, from wherever the session is, until FINISH or the end of the connection.
    pub(crate) fn serve(mut self) {
        while let Ok(frame) = Frame::read(&mut self.stream) {
            let answer = match frame {
                Frame::Control(ready) if ready == wire::ready(&[D])[8..] => wire::accept(&[D]),
                Frame::Control(stop) if stop == wire::stop()[8..] => wire::finish(),
                _ => continue,
            };
            if self.stream.write_all(&answer).is_err() || answer == wire::finish() {
                return;
            }
        }
    }

    /// Bytes that have arrived and were not read.
    pub(crate) fn unread_bytes(&self) -> u64 {
        self.stream.unread_bytes()
    }

    pub(crate) fn set_receive_buffer(&self, bytes: usize) {
        self.stream.set_receive_buffer(bytes);
    }

    /// A second handle on the same connection, for a second thread.
    pub(crate) fn try_clone(&self) -> Self {
        Self { stream: self.stream.try_clone() }
    }

    /// Closes with RST where the transport has one.
    pub(crate) fn reset(self) {
        self.stream.reset();
    }
}

/// A listener whose connections are played by hand.
#[derive(Debug)]
pub(crate) struct PeerListener {
    listener: Listener,
}

impl PeerListener {
    pub(crate) fn bind(transport: Transport, folder: &std::path::Path) -> Self {
        Self::on(&transport.fresh_address(folder))
    }

    pub(crate) fn tcp() -> Self {
        Self::on(&super::stream::tcp_address("127.0.0.1", 0))
    }

    pub(crate) fn on(address: &Address) -> Self {
        Self { listener: Listener::bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}")) }
    }

    pub(crate) fn address(&self) -> Address {
        self.listener.address()
    }

    /// The relay's next connection.
    #[track_caller]
    pub(crate) fn accept(&self) -> Peer {
        self.accept_within(PATIENCE)
    }

    #[track_caller]
    pub(crate) fn accept_within(&self, limit: Duration) -> Peer {
        let mut accepted = None;
        eventually_within(limit, "the relay connects", || {
            accepted = self.listener.poll_accept();
            accepted.is_some()
        });
        Peer::over(accepted.expect("just seen"))
    }

    /// A connection that waits already, `None` without one.
    pub(crate) fn poll_accept(&self) -> Option<Peer> {
        self.listener.poll_accept().map(Peer::over)
    }

    /// The relay's next connection; `None` if none comes for so long.
    pub(crate) fn accept_unless_silent_for(&self, limit: Duration) -> Option<Peer> {
        let began = Instant::now();
        while began.elapsed() < limit {
            if let Some(peer) = self.poll_accept() {
                return Some(peer);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// The relay's next connection, its handshake done.
    #[track_caller]
    pub(crate) fn accept_session(&self) -> Peer {
        let mut peer = self.accept();
        peer.open_as_reader();
        peer
    }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A short while in which nothing should happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);
