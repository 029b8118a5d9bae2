//! Many subscribers at once, slow ones among them, and many that come and go.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use crate::support::numbered;
use crate::support::peer::Peer;
use crate::support::relay::dropped;
use crate::support::relay::dropped_for;
use crate::support::relay::for_subscribers;
use crate::support::relay::relay;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::wait::eventually;
use crate::support::wire;

const SUBSCRIBERS: usize = 100;
const SLOW: usize = 20;
const QUEUE: usize = 256 << 10;

on_both_backends! {
    fn of_a_hundred_the_slow_ones_lose_their_own_frames_and_memory_stays_within_the_queues(backend) {
        let folder = folder();
        let relay = relay(backend).output(for_subscribers(Transport::Unix, folder.path()).queue(QUEUE)).start();
        let slow: Vec<_> = (0..SLOW).map(|_| relay.subscriber()).collect();
        let read: Arc<[AtomicU64]> = (0..SUBSCRIBERS - SLOW).map(|_| AtomicU64::new(0)).collect();
        let fast: Vec<_> = (0..SUBSCRIBERS - SLOW)
            .map(|index| {
                let (mut peer, read) = (relay.subscriber(), Arc::clone(&read));
                thread::spawn(move || {
                    // In order, and each of them.
                    let mut next = 0;
                    while let wire::Frame::Data(payload) = peer.read_frame() {
                        assert_eq!(numbered::Number::of(&payload).sequence, next);
                        next += 1;
                        read[index].store(next, Relaxed);
                    }
                    peer.send(&wire::finish());
                    peer.expect_close();
                    next
                })
            })
            .collect();
        let mut writer = relay.writer();
        let mut sent = 0;
        // Until each of the slow ones has lost something; a fast one never has more to take than its queue has room for.
        eventually("every slow one loses frames", || {
            writer.send(&numbered::frames_of_len(0, sent..sent + 100, 1000));
            sent += 100;
            eventually("the fast ones have it", || read.iter().all(|read| read.load(Relaxed) == sent));
            let output = relay.output(0);
            assert!(output.balances(), "{output:?}");
            let queued = output.subscribers.iter().map(|there| there.frames_queued).max().unwrap();
            assert!(queued * 1004 <= QUEUE as u64, "{queued} frames wait for one of them");
            let losing = output.subscribers.iter().filter(|there| there.frames_dropped.contains_key("queue_full"));
            losing.count() == SLOW
        });
        writer.finish();
        let output = relay.output(0);
        assert_eq!((output.frames_received, output.subscribers.len()), (sent * SUBSCRIBERS as u64, SUBSCRIBERS));
        for there in &output.subscribers {
            assert!(there.frames_sent == sent || !there.frames_dropped.is_empty(), "{there:?}");
        }
        slow.into_iter().for_each(Peer::reset);
        eventually("the slow ones have left", || {
            relay.output(0).subscribers.len() == SUBSCRIBERS - SLOW
        });
        let ledger = relay.drain();
        assert!(fast.into_iter().all(|reader| reader.join().unwrap() == sent));
        let output = &ledger.outputs[0];
        assert_eq!(output.sessions_finished as usize, SUBSCRIBERS - SLOW);
        assert_eq!(dropped(output), dropped_for(output, "queue_full") + dropped_for(output, "unsubscribed"));
    }

    fn those_that_come_and_go_without_pause_hold_up_nobody_and_leave_nothing_behind(backend) {
        let folder = folder();
        let relay = relay(backend).output(for_subscribers(Transport::Tcp, folder.path())).start();
        let mut stays = relay.subscriber();
        let stop = Arc::<AtomicBool>::default();
        let come_and_go: Vec<_> = (0..4)
            .map(|number| {
                let (address, stop) = (relay.subscribe_at(), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut sessions = 0;
                    while !stop.load(Relaxed) {
                        let mut peer = Peer::connect(&address);
                        // Some leave before they have begun.
                        if (sessions + number) % 3 > 0 {
                            peer.open_as_reader();
                        }
                        sessions += 1;
                        match sessions % 2 {
                            0 => peer.reset(),
                            _ => drop(peer),
                        }
                    }
                    sessions
                })
            })
            .collect();
        let mut writer = relay.writer();
        let mut sent = 0;
        eventually("many have come and gone", || {
            let frames = numbered::frames(0, sent..sent + 100);
            sent += 100;
            writer.send(&frames);
            stays.expect(&frames);
            relay.output(0).connections > 300
        });
        stop.store(true, Relaxed);
        let sessions: usize = come_and_go.into_iter().map(|task| task.join().unwrap()).sum();
        eventually("one is left", || relay.output(0).subscribers.len() == 1);
        writer.finish();
        let output = relay.output(0);
        assert!(output.balances() && output.frames_queued == 0, "{output:?}");
        assert!(output.connections as usize <= sessions + 1);
        assert_eq!(output.subscribers[0].frames_sent, sent);
        let drain = thread::spawn(move || relay.drain());
        stays.expect_stop();
        drain.join().unwrap();
    }
}
