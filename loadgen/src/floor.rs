//! `floor`: read once, write to every output, nothing else. What a relay is to be compared with.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use socket2::Socket;
use tapster::transport::Address;

use crate::socket::Listener;
use crate::socket::connect;

/// Copies every connection to all outputs, for ever: a thread and a set of output connections for each.
///
/// The first output's answers go back to the writer, so that ACCEPT and FINISH reach it; those of the others are
/// thrown away.
pub(crate) fn run(listen: &Address, to: &[Address], read_size: Option<usize>) -> Result<()> {
    let listener = Listener::bind(listen)?;
    eprintln!("listening on {}", listener.address());
    let read_size = read_size.unwrap_or(match listen {
        Address::Unix(_) => READ_SIZE_UNIX,
        _ => READ_SIZE_TCP,
    });
    loop {
        let input = listener.accept().context("cannot accept")?;
        let outputs = to.iter().map(open_output).collect::<Result<Vec<_>>>();
        match outputs {
            Ok(outputs) => {
                thread::spawn(move || relay(input, outputs, read_size));
            }
            // The writer sees its connection closed.
            Err(error) => eprintln!("{error:#}"),
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

fn relay(input: Socket, outputs: Vec<Socket>, read_size: usize) {
    let input = Arc::new(input);
    let outputs: Vec<Arc<Socket>> = outputs.into_iter().map(Arc::new).collect();
    for (index, output) in outputs.iter().enumerate() {
        let output = Arc::clone(output);
        let writer = (index == 0).then(|| Arc::clone(&input));
        thread::spawn(move || answer(&output, writer.as_deref()));
    }
    // An end that went away ends the copy; the other ends see their connections closed.
    let _ = copy(&input, &outputs, read_size);
    for output in &outputs {
        let _ = output.shutdown(Shutdown::Write);
    }
}

fn copy(input: &Socket, outputs: &[Arc<Socket>], read_size: usize) -> io::Result<()> {
    let mut buffer = vec![0; read_size];
    loop {
        let len = (&mut &*input).read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        for output in outputs {
            (&mut &**output).write_all(&buffer[..len])?;
        }
    }
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
