//! TLS by rustls alone, over a blocking socket.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;

use rustls::Connection;

/// The handshake happens with the first bytes that are read or written.
#[derive(Debug)]
pub(crate) struct TlsStream {
    tls: Connection,
    pub(crate) socket: TcpStream,
}

impl TlsStream {
    pub(crate) fn new(tls: impl Into<Connection>, socket: TcpStream) -> Self {
        Self { tls: tls.into(), socket }
    }

    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        self.tls.read_tls(&mut self.socket)?;
        if let Err(error) = self.tls.process_new_packets() {
            let _ = self.send();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(())
    }
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.send()?;
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive()?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.tls.is_handshaking() {
            self.send()?;
            if self.tls.is_handshaking() {
                self.receive()?;
            }
        }
        let sent = self.send();
        let len = self.tls.writer().write(bytes)?;
        match sent.and_then(|()| self.send()) {
            // The rest of it goes later.
            Err(error) if len == 0 || error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(len),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        self.tls.send_close_notify();
        let _ = self.send();
    }
}
