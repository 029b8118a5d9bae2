//! `floor`: read once, write to every output, nothing else. What a relay is to be compared with.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use rustix::event::epoll::EventFlags;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use socket2::Socket;
use tapster::transport::Address;

use crate::poller::Poller;
use crate::socket::Listener;
use crate::socket::connect;

/// Copies every connection to all outputs, without end; each has a set of output connections of its own.
///
/// `together` connections share a thread, as they are accepted: what costs least, one that blocks on its own reads
/// for a single connection, one that waits for all of them for many.
///
/// The first output's answers go back to the writer, so that ACCEPT and FINISH reach it; those of the others are
/// thrown away.
pub(crate) fn run(listen: &Address, to: &[Address], read_size: Option<usize>, together: usize) -> Result<()> {
    let listener = Listener::bind(listen)?;
    eprintln!("listening on {}", listener.address());
    let read_size = read_size.unwrap_or(match listen {
        Address::Unix(_) => READ_SIZE_UNIX,
        _ => READ_SIZE_TCP,
    });
    let mut copies = Vec::new();
    loop {
        let input = listener.accept().context("cannot accept")?;
        match to.iter().map(open_output).collect::<Result<Vec<_>>>() {
            Ok(outputs) => copies.push(Copy::begin(input, outputs)),
            // The writer sees its connection closed.
            Err(error) => eprintln!("{error:#}"),
        }
        if copies.len() >= together {
            let copies = std::mem::take(&mut copies);
            thread::spawn(move || relay(&copies, read_size));
        }
    }
}

fn open_output(address: &Address) -> Result<Socket> {
    let socket = connect(address, CONNECT_PATIENCE)?;
    if matches!(address, Address::Unix(_))
        && set_socket_send_buffer_size_force(&socket, SEND_BUFFER_UNIX).is_err()
    {
        // Without the privilege, as much as the system allows.
        set_socket_send_buffer_size(&socket, SEND_BUFFER_UNIX)?;
    }
    Ok(socket)
}

/// One connection and where it goes.
struct Copy {
    input: Arc<Socket>,
    outputs: Vec<Arc<Socket>>,
}

impl Copy {
    fn begin(input: Socket, outputs: Vec<Socket>) -> Self {
        let copy = Self { input: Arc::new(input), outputs: outputs.into_iter().map(Arc::new).collect() };
        for (index, output) in copy.outputs.iter().enumerate() {
            let output = Arc::clone(output);
            let writer = (index == 0).then(|| Arc::clone(&copy.input));
            thread::spawn(move || answer(&output, writer.as_deref()));
        }
        copy
    }

    /// Reads once and writes to every output; `false` at the end of the stream, or when an end went away: the other
    /// ends see their connections closed.
    fn step(&self, buffer: &mut [u8]) -> bool {
        let copied = (&mut &*self.input).read(buffer).and_then(|len| {
            self.outputs.iter().try_for_each(|output| (&mut &**output).write_all(&buffer[..len]))?;
            Ok(len)
        });
        let goes_on = copied.is_ok_and(|len| len > 0);
        if !goes_on {
            for output in &self.outputs {
                let _ = output.shutdown(Shutdown::Write);
            }
        }
        goes_on
    }
}

fn relay(copies: &[Copy], read_size: usize) {
    let mut buffer = vec![0; read_size];
    if let [copy] = copies {
        while copy.step(&mut buffer) {}
    } else if let Err(error) = relay_together(copies, &mut buffer) {
        eprintln!("{error:#}");
    }
}

fn relay_together(copies: &[Copy], buffer: &mut [u8]) -> Result<()> {
    let mut poller = Poller::new()?;
    for (copy, token) in copies.iter().zip(0..) {
        poller.add(&*copy.input, token, EventFlags::IN)?;
    }
    let mut open = copies.len();
    while open > 0 {
        poller.wait(None)?;
        for event in 0..poller.len() {
            let (token, _) = poller.event(event);
            let copy = &copies[usize::try_from(token)?];
            if !copy.step(buffer) {
                poller.remove(&*copy.input)?;
                open -= 1;
            }
        }
    }
    Ok(())
}

/// Passes what an output answers to the writer, or throws it away.
fn answer(output: &Socket, writer: Option<&Socket>) {
    let mut buffer = [0; 1024];
    while let Ok(len) = (&mut &*output).read(&mut buffer) {
        if len == 0 {
            break;
        }
        if let Some(mut writer) = writer
            && writer.write_all(&buffer[..len]).is_err()
        {
            break;
        }
    }
    if let Some(writer) = writer {
        let _ = writer.shutdown(Shutdown::Write);
    }
}

/// Most bytes of one read: no ratio to the floor means anything without it. A unix read is capped near the sender's
/// buffer; TCP gathers more.
pub(crate) const READ_SIZE_UNIX: usize = 256 << 10;
/// See [`READ_SIZE_UNIX`].
pub(crate) const READ_SIZE_TCP: usize = 1 << 20;
const SEND_BUFFER_UNIX: usize = 1 << 20;
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
