use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::thread;

use super::*;
use crate::protocol::ContentType;
use crate::protocol::ControlFrame;
use crate::transport::backend::Runtime;

/// What a listener does with a connection.
fn serving(serve: impl Fn(std::net::TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || serve(listener.accept().unwrap().0));
    address
}

/// A load balancer before a dead host accepts, and resets.
#[test]
fn an_address_that_ends_the_handshake_is_followed_by_the_next_one() {
    let reset = serving(|stream| socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap());
    let closed = serving(drop);
    let silent = serving(|_stream| thread::sleep(Duration::from_secs(60)));
    let there = serving(|mut stream| {
        stream.write_all(&ControlFrame::accept(&[ContentType::DNSTAP]).encode().unwrap()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let config = Arc::new(WriterConfig {
        content_types: vec![ContentType::DNSTAP],
        bidirectional: true,
        handshake_timeout: Duration::from_millis(300),
        finish_timeout: Duration::from_secs(1),
    });
    let own = OwnListeners::default();
    Runtime::new(Backend::Epoll).unwrap().block_on(async {
        let open = async |addresses: &[SocketAddr]| {
            let options = ConnectOptions {
                timeout: Duration::from_secs(10),
                user_timeout: Duration::from_secs(10),
                send_proxy: None,
            };
            let dial = Dial::to(addresses, options);
            WriteStream::open_one_of(dial, None, &own, Arc::clone(&config), Backend::Epoll).await
        };
        let stream = open(&[reset, closed, silent, there]).await.unwrap();
        assert_eq!(stream.brief_peer(Instant::now()), Some(there));
        for address in [reset, closed, silent] {
            assert!(stream.remark().contains(&address.to_string()), "{}", stream.remark());
        }
    });
}
