//! Any bytes at any time in any state from either side, beside a session that must not notice.
//!
//! The seed is printed; `TAPSTER_GARBAGE_SEED` repeats a run.

use std::env;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use fastrand::Rng;
use tapster::queue::WhenFull;
use tapster::transport::Address;

use crate::support::collector::CollectingReader;
use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::peer::PeerListener;
use crate::support::relay::assert_sent;
use crate::support::relay::dropped;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::to;
use crate::support::relay::to_peer;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::millis;
use crate::support::wire;
use crate::support::wire::D;
use crate::support::wire::O;

/// Hostile connections from each side.
const CONNECTIONS: usize = 250;

fn seed() -> u64 {
    let seed = match env::var("TAPSTER_GARBAGE_SEED") {
        Ok(seed) => seed.parse().expect("TAPSTER_GARBAGE_SEED is a number"),
        Err(_) => Rng::new().u64(..),
    };
    println!("repeat with TAPSTER_GARBAGE_SEED={seed}");
    seed
}

/// Bytes that are nothing, or nearly something.
fn garbage(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = match rng.u8(0..10) {
        0 => (0..rng.usize(1..2000)).map(|_| rng.u8(..)).collect(),
        1 => vec![0; rng.usize(1..600)],
        2 => wire::word(rng.u32(..)).to_vec(),
        3 => wire::control(rng.u32(0..8), &[D, O][..rng.usize(0..3)], &vec![rng.u8(..); rng.usize(0..9)]),
        4 => [wire::word(0), wire::word(rng.u32(0..700))].concat(),
        5 => wire::session_z(),
        6 => wire::data(&vec![rng.u8(..); rng.usize(1..5000)]),
        7 => wire::ready(&[&vec![rng.u8(..); rng.usize(0..300)]]),
        8 => [wire::accept(&[D]), wire::finish()].concat(),
        _ => (0..rng.usize(1..50)).flat_map(|_| wire::data(&[rng.u8(..)])).collect(),
    };
    // Some of it is damaged once more: a bit, a cut, a repetition.
    match rng.u8(0..6) {
        0 => {
            let at = rng.usize(0..bytes.len());
            bytes[at] ^= 1 << rng.u8(0..8);
        }
        1 => bytes.truncate(rng.usize(0..bytes.len()) + 1),
        2 => bytes = bytes.repeat(2),
        _ => (),
    }
    bytes
}

/// Sends garbage in one state or another, in pieces, and leaves in one way or another.
fn misbehave(mut peer: Peer, rng: &mut Rng) {
    for _ in 0..rng.usize(0..5) {
        let bytes = garbage(rng);
        let piece = rng.usize(1..bytes.len().max(2) + 1);
        for piece in bytes.chunks(piece.max(bytes.len() / 20 + 1)) {
            if peer.try_send(piece).is_err() {
                return;
            }
            if rng.u8(0..8) == 0 {
                thread::yield_now();
            }
        }
    }
    match rng.u8(0..4) {
        0 => peer.reset(),
        1 => peer.shutdown_write(),
        2 => thread::sleep(millis(rng.u64(0..10))),
        _ => (),
    }
}

/// A writer that is none.
fn hostile_writer(address: &Address, rng: &mut Rng) {
    let mut peer = Peer::connect(address);
    match rng.u8(0..4) {
        0 => (),
        1 => {
            if peer.try_send(&wire::ready(&[D])).is_ok() && rng.bool() {
                let _ = peer.read_some(42);
            }
        }
        2 => {
            let _ = peer.try_send(&wire::start(&[D]));
        }
        _ => {
            let _ = peer.try_send(&wire::ready(&[D]));
            let _ = peer.read_some(42);
            let _ = peer.try_send(&wire::start(&[D]));
        }
    }
    misbehave(peer, rng);
}

/// A reader that is none.
fn hostile_reader(mut peer: Peer, rng: &mut Rng) {
    if rng.bool() {
        let _ = peer.read_some(42);
    }
    match rng.u8(0..3) {
        0 => (),
        1 => {
            let _ = peer.try_send(&wire::accept(&[D]));
        }
        _ => {
            let _ = peer.try_send(&wire::accept(&[D]));
            let _ = peer.read_some(100_000);
        }
    }
    misbehave(peer, rng);
}

on_both_backends! {
    fn garbage_from_either_side_disturbs_nobody_else(backend) {
        let seed = seed();
        let folder = folder();
        let unused = std::path::Path::new("unused");
        let witness = CollectingReader::of_type(O, Transport::Tcp, unused);
        let collector = CollectingReader::tcp();
        let hostile = [Transport::Tcp, Transport::Unix].map(|kind| PeerListener::bind(kind, folder.path()));
        let addresses = Transport::BOTH.map(|kind| kind.fresh_address(folder.path()));
        let relay = relay(backend)
            .drain_timeout(millis(1500))
            .input(listening_on(addresses.into()).content_types(&[D, O]).handshake_timeout(millis(500)))
            .output(to(&witness).when_full(WhenFull::Block))
            .output(to(&collector))
            .output(to_peer(&hostile[0]).reconnect(millis(1), millis(5)).queue(1 << 20))
            .output(to_peer(&hostile[1]).reconnect(millis(1), millis(5)).queue(1 << 20))
            .start();
        let ended = Arc::new(AtomicBool::new(false));
        let readers = hostile.into_iter().zip(1..).map(|(listener, stream)| {
            let ended = ended.clone();
            thread::spawn(move || {
                let mut rng = Rng::with_seed(seed ^ stream);
                while !ended.load(Ordering::Relaxed) {
                    match listener.poll_accept() {
                        Some(peer) => hostile_reader(peer, &mut rng),
                        None => thread::sleep(millis(1)),
                    }
                }
            })
        });
        let readers: Vec<_> = readers.collect();
        let mut honest = Peer::connect(&relay.address());
        honest.open_as_writer(O);
        thread::scope(|scope| {
            let address = &relay.listeners()[1].1;
            scope.spawn(move || {
                let mut rng = Rng::with_seed(seed ^ 99);
                (0..CONNECTIONS).for_each(|_| hostile_writer(address, &mut rng));
            });
            let mut rng = Rng::with_seed(seed);
            for round in 0..CONNECTIONS as u64 {
                honest.send(&numbered::frames(1, round * 20..round * 20 + 20));
                hostile_writer(&relay.address(), &mut rng);
            }
        });
        honest.finish();
        relay.wait_until_idle();
        ended.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().expect("the hostile reader ends well"));
        let ledger = relay.drain();
        let witness = witness.close();
        assert_sent(&ledger.outputs[0], &witness);
        numbered::assert_complete(witness.payloads(), &[(1, 0..CONNECTIONS as u64 * 20)]);
        let collected = collector.close();
        assert_sent(&ledger.outputs[1], &collected);
        assert_eq!(dropped(&ledger.outputs[1]), 0);
        assert_eq!(ledger.inputs[0].frames, witness.frames() + collected.frames());
        assert_eq!(ledger.inputs[0].connections, 2 * CONNECTIONS as u64 + 1);
    }
}
