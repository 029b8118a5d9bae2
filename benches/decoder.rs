//! What a frame costs before anything is done with it: `cargo bench --bench decoder`. `Mitem/s` are million frames
//! per second. `scan_block` at 130 bytes should stay above 200 (5 ns per frame): each length word is on another
//! cache line, and where the next one is depends on it, so that this is little more than waiting for the cache.

use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use divan::Bencher;
use divan::counter::ItemsCount;
use tapster::protocol::ContentType;
use tapster::protocol::ControlFrame;
use tapster::protocol::Decoder;
use tapster::protocol::FRAME_LEN_MAX_DEFAULT;
use tapster::protocol::FrameBatch;
use tapster::protocol::ReaderConfig;
use tapster::protocol::ReaderSession;
use tapster::protocol::scan;

fn main() {
    divan::main();
}

/// Lengths of payloads: a short one, the usual one, a long answer.
const PAYLOAD_LENS: [usize; 3] = [60, 130, 1400];

/// What one read of the relay takes, in bytes.
const READ_LEN: usize = 64 * 1024;

#[divan::bench(args = PAYLOAD_LENS)]
fn scan_block(bencher: Bencher, payload_len: usize) {
    let block = block(payload_len);
    let frames = scan(&block, FRAME_LEN_MAX_DEFAULT).frames;
    bencher.counter(ItemsCount::new(frames)).bench(|| scan(divan::black_box(&block), FRAME_LEN_MAX_DEFAULT));
}

#[divan::bench(args = PAYLOAD_LENS)]
fn reader_session(bencher: Bencher, payload_len: usize) {
    let now = Instant::now();
    let block = block(payload_len);
    let frames = scan(&block, FRAME_LEN_MAX_DEFAULT).frames;
    bencher
        .counter(ItemsCount::new(frames))
        .with_inputs(|| (started_session(now), BytesMut::from(&block[..])))
        .bench_refs(|(session, bytes)| {
            session.handle_bytes(now, bytes).expect("a valid stream");
            session.poll_event()
        });
}

/// A read ends somewhere within a frame, as it does on a busy connection, and the next one brings the rest.
#[divan::bench(args = PAYLOAD_LENS)]
fn reader_session_partial_tail(bencher: Bencher, payload_len: usize) {
    let now = Instant::now();
    let block = block(payload_len);
    let frames = scan(&block, FRAME_LEN_MAX_DEFAULT).frames;
    let (read, rest) = block.split_at(block.len() - payload_len / 2);
    bencher
        .counter(ItemsCount::new(frames))
        .with_inputs(|| (started_session(now), BytesMut::from(read)))
        .bench_refs(|(session, bytes)| {
            session.handle_bytes(now, bytes).expect("a valid stream");
            let batch = session.poll_event();
            bytes.extend_from_slice(rest);
            session.handle_bytes(now, bytes).expect("a valid stream");
            (batch, session.poll_event())
        });
}

#[divan::bench(args = PAYLOAD_LENS)]
fn decoder_frame_by_frame(bencher: Bencher, payload_len: usize) {
    let block = block(payload_len);
    let frames = scan(&block, FRAME_LEN_MAX_DEFAULT).frames;
    bencher.counter(ItemsCount::new(frames)).with_inputs(|| block.clone()).bench_values(|block| {
        let mut decoder = Decoder::new(FRAME_LEN_MAX_DEFAULT);
        decoder.feed(block);
        while let Some(frame) = decoder.next_frame().expect("a valid stream") {
            divan::black_box(frame);
        }
    });
}

/// As many frames as fit into one read.
fn block(payload_len: usize) -> Bytes {
    let payloads = vec![vec![0x5a; payload_len]; READ_LEN / (4 + payload_len)];
    FrameBatch::from_payloads(payloads, Instant::now()).expect("payloads within the limits").into_bytes()
}

/// A session after START, its first event taken.
fn started_session(now: Instant) -> ReaderSession {
    let mut session = ReaderSession::new(ReaderConfig::default(), now);
    let start = ControlFrame::start(Some(&ContentType::DNSTAP)).encode().expect("one type fits");
    session.handle_bytes(now, &mut BytesMut::from(&start[..])).expect("a valid START");
    session.poll_event();
    session
}
