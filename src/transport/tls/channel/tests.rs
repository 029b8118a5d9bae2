use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::CertificateParams;
use rcgen::KeyPair;

use super::*;
use crate::transport::Address;
use crate::transport::tls::ClientTls;
use crate::transport::tls::Identity;
use crate::transport::tls::ServerTls;
use crate::transport::tls::TlsVersion;

/// Both ends of a connection past its handshake, client first.
fn pair() -> [Channel; 2] {
    let min_version = TlsVersion::V1_3;
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let identity = Identity { cert: folder.path().join("cert"), key: folder.path().join("key") };
    fs::write(&identity.cert, certificate.pem()).unwrap();
    fs::write(&identity.key, key.serialize_pem()).unwrap();
    fs::set_permissions(&identity.key, fs::Permissions::from_mode(0o600)).unwrap();
    let ca = Some(identity.cert.clone());
    let server = ServerTls { identity, client_ca: None, allow_names: Vec::new(), min_version };
    let client = ClientTls { ca, min_version, ..ClientTls::default() }.load().unwrap();
    let address = Address::Tls { host: "a.example".to_owned(), port: 1 };
    let name = client.server_name(&address).unwrap();
    let mut client: rustls::Connection = rustls::ClientConnection::new(client.config(), name).unwrap().into();
    let mut server: rustls::Connection =
        rustls::ServerConnection::new(server.load().unwrap().config()).unwrap().into();
    while client.is_handshaking() || server.is_handshaking() {
        hand_over(&mut client, &mut server);
        hand_over(&mut server, &mut client);
    }
    [client, server].map(Channel::new)
}

fn hand_over(from: &mut rustls::Connection, to: &mut rustls::Connection) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut bytes = &bytes[..];
    while !bytes.is_empty() {
        to.read_tls(&mut bytes).unwrap();
        to.process_new_packets().unwrap();
    }
}

/// A socket that has room for so many bytes, and keeps them.
struct Narrow {
    room: usize,
    taken: Vec<u8>,
}

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= count;
        self.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}

#[test]
fn bytes_count_when_the_socket_has_their_whole_record_and_arrive_at_any_splitting() {
    let [mut client, mut server] = pair();
    let bytes = pattern(40_000);
    client.encrypt(&[IoSlice::new(&bytes[..10_000]), IoSlice::new(&bytes[10_000..])]).unwrap();
    assert_eq!((client.unreported(), client.take_written()), (40_000, 0));
    let mut socket = Narrow { room: 0, taken: Vec::new() };
    let (mut written, mut acknowledged) = (0, 0);
    let mut received = BytesMut::with_capacity(60_000);
    for room in [1, 16_404, 1, 3, 16_000, 100_000] {
        socket.room = room;
        let _ = client.flush(&mut socket);
        written += client.take_written();
        // 16 384 bytes and 22 of TLS 1.3 for each record.
        let expected = match socket.taken.len() {
            0..16_406 => 0,
            16_406..32_812 => 16_384,
            _ if client.has_to_answer() => 32_768,
            _ => 40_000,
        };
        assert_eq!((written, client.unreported()), (expected, 40_000 - expected), "{}", socket.taken.len());
        acknowledged = client.acknowledge(socket.taken.len() as u64 - 1);
        assert!(acknowledged <= written as u64);
    }
    assert_eq!((written, acknowledged), (40_000, 32_768), "the last byte is not acknowledged");
    assert_eq!(client.acknowledge(u64::MAX), 40_000);
    for piece in socket.taken.chunks(997) {
        let room = received.capacity() - received.len();
        server.decrypt(piece, &mut received, room).unwrap();
    }
    assert_eq!(received, bytes);
    assert!(!server.has_news() && !server.has_ended());
    client.close();
    let mut socket = Narrow { room: 100, taken: Vec::new() };
    client.flush(&mut socket).unwrap();
    server.decrypt(&socket.taken, &mut received, 0).unwrap();
    assert!(server.has_ended() && matches!(server.fault(), Some(Ok(()))));
}

#[test]
fn what_finds_no_room_stays_for_the_next_time() {
    let [mut client, mut server] = pair();
    let bytes = pattern(16_384);
    client.encrypt(&[IoSlice::new(&bytes)]).unwrap();
    let mut socket = Narrow { room: 1 << 20, taken: Vec::new() };
    client.flush(&mut socket).unwrap();
    let mut received = BytesMut::with_capacity(20_000);
    let (first, last) = socket.taken.split_at(16_000);
    assert_eq!(server.decrypt(first, &mut received, 10).unwrap(), 0);
    assert_eq!(server.decrypt(last, &mut received, 10).unwrap(), 10);
    assert!(server.has_news());
    assert_eq!(server.take(&mut received, 20_000), 16_374);
    assert!(!server.has_news());
    assert_eq!(received, bytes);
}

#[test]
fn what_was_forged_on_its_way_is_a_fault() {
    let [mut client, mut server] = pair();
    client.encrypt(&[IoSlice::new(b"abc")]).unwrap();
    let mut socket = Narrow { room: 1 << 20, taken: Vec::new() };
    client.flush(&mut socket).unwrap();
    *socket.taken.last_mut().unwrap() ^= 1;
    let mut received = BytesMut::with_capacity(100);
    let error = server.decrypt(&socket.taken, &mut received, 100).unwrap_err();
    assert!(error.to_string().contains("damaged or forged"), "{error}");
    assert!(server.has_to_answer() && received.is_empty());
}

#[test]
fn with_version_1_2_the_keys_are_used_up_before_rustls_refuses() {
    let [mut client, _] = pair();
    client.records_left = Some(2);
    client.encrypt(&[IoSlice::new(&pattern(20_000))]).unwrap();
    let error = client.encrypt(&[IoSlice::new(b"a")]).unwrap_err();
    assert_eq!(error.to_string(), KEYS_USED_UP);
}
