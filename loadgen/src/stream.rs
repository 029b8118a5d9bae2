//! A connected socket, with or without TLS over it.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;

use rustls::Connection;
use socket2::Socket;

/// Reads and writes as the socket does: with TLS, a socket that does not block makes `WouldBlock`.
pub(crate) struct Stream {
    socket: Socket,
    tls: Option<Box<Connection>>,
}

impl Stream {
    /// With TLS the handshake happens with the first bytes that are read or written.
    pub(crate) fn new(socket: Socket, tls: Option<Connection>) -> Self {
        let tls = tls.map(|mut tls| {
            // A write is as long as the caller chooses.
            tls.set_buffer_limit(None);
            Box::new(tls)
        });
        Self { socket, tls }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    /// Ends our direction.
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        self.flush()?;
        self.socket.shutdown(Shutdown::Write)
    }

    /// Whether something is there to be read that no event tells of.
    pub(crate) fn has_decrypted(&mut self) -> bool {
        let state = self.tls.as_mut().and_then(|tls| tls.process_new_packets().ok());
        state.is_some_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    /// Whether something was taken that the socket has no room for yet.
    pub(crate) fn has_encrypted(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.flush_quietly();
        let Some(tls) = &mut self.tls else { return self.socket.read(buffer) };
        let mut taken = 0;
        while taken < buffer.len() {
            match tls.reader().read(&mut buffer[taken..]) {
                Ok(0) => break,
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A socket that blocks has been waited for if there is something already.
                    if taken > 0 && !self.socket.nonblocking()? {
                        break;
                    }
                    match tls.read_tls(&mut self.socket) {
                        Ok(_) => {}
                        Err(error) if taken > 0 && error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                    let processed = tls.process_new_packets();
                    while tls.wants_write() && tls.write_tls(&mut self.socket).is_ok() {}
                    processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }
}

impl Stream {
    fn flush_quietly(&mut self) {
        if self.has_encrypted() {
            let _ = self.flush();
        }
    }

    /// Before the first byte of ours goes out, hands are shaken; the socket blocks then.
    fn shake_hands(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls
            && tls.is_handshaking()
        {
            while tls.is_handshaking() {
                tls.complete_io(&mut self.socket)?;
            }
        }
        Ok(())
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.shake_hands()?;
        self.flush()?;
        let Some(tls) = &mut self.tls else { return self.socket.write(bytes) };
        let taken = tls.writer().write(bytes)?;
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.socket)?;
            }
        }
        Ok(())
    }
}
