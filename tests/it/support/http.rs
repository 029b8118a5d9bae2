//! A peer of the admin addresses that says exactly what a test wants.

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::Value;
use tapster::transport::Address;

use super::wait::PATIENCE;

/// Sends these bytes on a connection of their own, and returns all that comes back; nothing where nobody listens.
pub(crate) fn exchange(address: &Address, bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    match address {
        Address::Tcp { host, port } => {
            let Ok(mut stream) = TcpStream::connect((host.as_str(), *port)) else { return String::new() };
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let _ = stream.write_all(bytes);
            let _ = stream.read_to_end(&mut answer);
        }
        Address::Unix(path) => {
            let Ok(mut stream) = UnixStream::connect(path) else { return String::new() };
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let _ = stream.write_all(bytes);
            let _ = stream.read_to_end(&mut answer);
        }
        Address::Tls { .. } | Address::Systemd(_) => return String::new(),
    }
    String::from_utf8(answer).expect("text")
}

/// Status and JSON of an answer; 0 where there is none.
pub(crate) fn get(address: &Address, path: &str) -> (u16, Value) {
    send(address, &format!("GET {path}"), "Host: localhost\r\n")
}

/// The same for a request of any method, with headers of the test.
pub(crate) fn send(address: &Address, request: &str, headers: &str) -> (u16, Value) {
    let text = format!("{request} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    let answer = exchange(address, text.as_bytes());
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or_default())
}
