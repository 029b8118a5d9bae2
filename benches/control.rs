//! What control frames cost: `cargo bench --bench control`. There are a handful on each connection; what counts is that
//! a name server that reconnects again and again is no load.

use std::time::Instant;

use bytes::BytesMut;
use divan::Bencher;
use tapster::protocol::ContentType;
use tapster::protocol::ControlFrame;
use tapster::protocol::ReaderConfig;
use tapster::protocol::ReaderSession;

fn main() {
    divan::main();
}

#[divan::bench]
fn encode_accept(bencher: Bencher) {
    let accept = ControlFrame::accept(&[ContentType::DNSTAP]);
    bencher.bench(|| divan::black_box(&accept).encode());
}

#[divan::bench]
fn decode_ready(bencher: Bencher) {
    let encoded = ControlFrame::ready(&[ContentType::DNSTAP]).encode().expect("one type fits");
    // Behind the escape and the length word.
    let payload = encoded.slice(8..);
    bencher.bench(|| ControlFrame::decode(divan::black_box(&payload)).expect("a valid READY"));
}

/// READY, ACCEPT, START, STOP, FINISH, as the relay sees them.
#[divan::bench]
fn whole_session(bencher: Bencher) {
    let now = Instant::now();
    let types = [ContentType::DNSTAP];
    let sent =
        [ControlFrame::ready(&types), ControlFrame::start(Some(&ContentType::DNSTAP)), ControlFrame::stop()];
    let sent = sent.map(|frame| frame.encode().expect("one type fits"));
    bencher.bench(|| {
        let mut session = ReaderSession::new(ReaderConfig::default(), now);
        for frame in &sent {
            session.handle_bytes(now, &mut BytesMut::from(&frame[..])).expect("a valid session");
            while let Some(event) = session.poll_event() {
                divan::black_box(event);
            }
            while let Some(answer) = session.poll_transmit() {
                divan::black_box(answer);
            }
        }
    });
}
