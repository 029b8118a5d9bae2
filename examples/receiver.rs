//! A collector: prints the length of every payload, and answers STOP with FINISH.
//!
//! ```text
//! cargo run --example receiver -- tcp://127.0.0.1:6000        (or unix:/tmp/dnstap.sock)
//! ```

use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tapster::protocol::{ReaderConfig, ReaderEvent, ReaderSession};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout_at;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:6000".to_owned());
    if let Some(path) = address.strip_prefix("unix:") {
        let listener = UnixListener::bind(path)?;
        loop {
            tokio::spawn(serve(listener.accept().await?.0));
        }
    }
    let listener = TcpListener::bind(address.trim_start_matches("tcp://")).await?;
    loop {
        tokio::spawn(serve(listener.accept().await?.0));
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin) {
    match receive(stream).await {
        Ok(end) => println!("{end}"),
        Err(error) => println!("error: {error}"),
    }
}

async fn receive(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<String, Box<dyn Error>> {
    let mut session = ReaderSession::new(ReaderConfig::default(), Instant::now());
    let mut bytes = BytesMut::new();
    loop {
        bytes.reserve(64 * 1024);
        let deadline = session.poll_timeout().unwrap_or_else(|| Instant::now() + NO_DEADLINE);
        match timeout_at(deadline.into(), stream.read_buf(&mut bytes)).await {
            Ok(Ok(0)) => return Ok(format!("{:?}", session.handle_eof(&bytes))),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => session.handle_timeout(Instant::now())?,
        }
        let result = session.handle_bytes(Instant::now(), &mut bytes);
        let mut finished = false;
        while let Some(event) = session.poll_event() {
            match event {
                ReaderEvent::Started { .. } => println!("{event:?}"),
                ReaderEvent::Data(batch) => {
                    batch.payloads().for_each(|payload| println!("{}", payload.len()));
                }
                ReaderEvent::Finished => finished = true,
            }
        }
        while let Some(answer) = session.poll_transmit() {
            stream.write_all(&answer).await?; // ACCEPT, FINISH
        }
        result?;
        if finished {
            return Ok("Finished".to_owned());
        }
    }
}

/// How long a read may wait where the session sets no deadline.
const NO_DEADLINE: Duration = Duration::from_secs(3600);
