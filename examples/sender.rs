//! A writer: sends its arguments as data frames, then STOP, and waits for FINISH.
//!
//! ```text
//! cargo run --example sender -- tcp://127.0.0.1:6000 hello world        (or unix:/tmp/dnstap.sock)
//! ```

use std::env;
use std::error::Error;
use std::time::Instant;

use bytes::BytesMut;
use tapster::protocol::{FrameBatch, WriterConfig, WriterEvent, WriterSession};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout_at;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "tcp://127.0.0.1:6000".to_owned());
    let batch = FrameBatch::from_payloads(arguments, Instant::now())?;
    match address.strip_prefix("unix:") {
        Some(path) => send(UnixStream::connect(path).await?, &batch).await,
        None => send(TcpStream::connect(address.trim_start_matches("tcp://")).await?, &batch).await,
    }
}

async fn send(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    batch: &FrameBatch,
) -> Result<(), Box<dyn Error>> {
    let mut session = WriterSession::new(WriterConfig::default(), Instant::now())?;
    let mut bytes = BytesMut::new();
    loop {
        while let Some(request) = session.poll_transmit() {
            stream.write_all(&request).await?; // READY, START, STOP
        }
        match session.poll_event() {
            Some(WriterEvent::Started { .. }) => {
                stream.write_all(batch.bytes()).await?;
                session.stop(Instant::now());
                continue;
            }
            Some(WriterEvent::Finished) => {
                println!("{} frames sent and acknowledged", batch.frames());
                return Ok(());
            }
            None => {}
        }
        // Something is awaited here, ACCEPT or FINISH, and so there is a deadline.
        let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
        match timeout_at(deadline.into(), stream.read_buf(&mut bytes)).await {
            Ok(Ok(0)) => session.handle_eof()?,
            Ok(Ok(_)) => session.handle_bytes(Instant::now(), &mut bytes)?,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => session.handle_timeout(Instant::now())?,
        }
    }
}
