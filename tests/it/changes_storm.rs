//! Reloads and upgrades at random moments, while frames flow and collectors die and stall: what is not touched notices nothing,
//! and what is lost is counted.
//!
//! `TAPSTER_CHANGES` is how many changes a run makes, one in ten of them an upgrade; `TAPSTER_CHANGES_SEED` repeats a run, as far
//! as threads can be made to repeat.

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::thread;

use tapster::observability::OutputLedger;
use tapster::queue::WhenFull;
use tapster::transport::Backend;

use crate::support::collector::Collected;
use crate::support::collector::CollectingReader;
use crate::support::flow::Flow;
use crate::support::numbered;
use crate::support::numbered::Number;
use crate::support::relay::TestRelay;
use crate::support::relay::dropped;
use crate::support::relay::listening;
use crate::support::relay::listening_on;
use crate::support::relay::relay;
use crate::support::relay::tcp;
use crate::support::relay::to;
use crate::support::stream::Transport;
use crate::support::stream::folder;
use crate::support::stream::tcp_address;
use crate::support::wait::eventually;
use crate::support::wait::millis;

/// Changes of a run where nobody asks for others.
const CHANGES: u64 = 40;
/// One change in so many is an upgrade.
const UPGRADES: u64 = 10;
const WRITERS: u32 = 4;

on_both_backends! {
    fn writers_and_outputs_that_are_not_touched_notice_nothing_of_a_storm_of_changes(backend) {
        let number = |name: &str| env::var(name).ok().and_then(|value| value.parse().ok());
        let seed = number("TAPSTER_CHANGES_SEED").unwrap_or_else(|| fastrand::u64(..));
        eprintln!("TAPSTER_CHANGES_SEED={seed}");
        let folder = folder();
        let mut site = Site::new(backend, folder.path(), seed);
        let writers: Vec<_> = {
            let addresses: Vec<_> = site.relay().listeners().iter().map(|(_, address)| address.clone()).collect();
            (0..WRITERS).map(|writer| Flow::begin(writer, &addresses[writer as usize % 2])).collect()
        };
        for change in 1..=number("TAPSTER_CHANGES").unwrap_or(CHANGES) {
            site.toss_collector();
            if change % UPGRADES == 0 { site.upgrade() } else { site.reload() }
            // At another moment each time, and never while nothing flows.
            writers.iter().for_each(|writer| writer.wait_for_more(1));
            thread::sleep(millis(site.random.u64(..20)));
        }
        site.end(&writers.into_iter().map(Flow::end).collect::<Vec<_>>());
    }
}

/// A relay, and what stands around it.
struct Site {
    random: fastrand::Rng,
    // `None` during an upgrade.
    relay: Option<TestRelay>,
    /// Of the output that no change touches.
    steady: CollectingReader,
    /// Of the output with a small spool. It dies and stalls.
    shaky: CollectingReader,
    is_alive: bool,
    /// Of the output that comes and goes.
    visited: CollectingReader,
    deaths: u64,
    upgrades: u64,
}

impl Site {
    fn new(backend: Backend, folder: &Path, seed: u64) -> Self {
        let [steady, shaky, visited] = [(); 3].map(|()| CollectingReader::start(Transport::Unix, folder));
        let spooled = to(&shaky)
            .queue(256 << 10)
            .ack_received()
            .reconnect(millis(5), millis(50))
            .on_disk(&folder.join("spool"))
            .spool_config(|spool| spool.max = 8 << 20);
        let relay = relay(backend)
            .input(tcp())
            .input(listening(Transport::Unix, folder))
            .output(to(&steady))
            .output(spooled)
            .drain_timeout(millis(2000));
        Self {
            random: fastrand::Rng::with_seed(seed),
            relay: Some(relay.start()),
            steady,
            shaky,
            is_alive: true,
            visited,
            deaths: 0,
            upgrades: 0,
        }
    }

    fn relay(&mut self) -> &mut TestRelay {
        self.relay.as_mut().expect("no upgrade is under way")
    }

    fn toss_collector(&mut self) {
        match (self.random.u8(..6), self.is_alive) {
            (0, true) => {
                self.shaky.die();
                self.deaths += 1;
                self.is_alive = false;
            }
            (0 | 1, false) => {
                self.shaky.revive();
                self.is_alive = true;
            }
            (1, _) => self.shaky.stall(),
            (2 | 3, _) => self.shaky.resume(),
            _ => {}
        }
    }

    /// Changes one thing: an output that comes or goes, an input likewise, or a setting of the output with the spool.
    fn reload(&mut self) {
        let mut config = self.relay().config();
        match self.random.u8(..4) {
            0 | 1 => match config.outputs.iter().position(|output| output.name == "visitor") {
                Some(place) => drop(config.outputs.remove(place)),
                None => config.outputs.push(to(&self.visited).when_full(WhenFull::Block).config("visitor")),
            },
            2 => match config.inputs.iter().position(|input| input.name == "visitor") {
                Some(place) => drop(config.inputs.remove(place)),
                None => {
                    let listen = vec![tcp_address("127.0.0.1", 0)];
                    config.inputs.push(listening_on(listen).config("visitor"));
                }
            },
            _ => config.outputs[1].frame_len_max += 1,
        }
        assert_eq!(self.relay().try_reload(config), Ok(true), "something has changed");
    }

    fn upgrade(&mut self) {
        let old = self.relay.take().expect("no upgrade is under way");
        let config = old.config();
        self.relay = Some(old.upgrade(config));
        self.upgrades += 1;
    }

    /// Everything is delivered, or counted.
    fn end(mut self, sent: &[u64]) {
        if !self.is_alive {
            self.shaky.revive();
        }
        self.shaky.resume();
        let mut relay = self.relay.take().expect("no upgrade is under way");
        eventually("what waits on disk is delivered", || {
            let spooled = relay.output(1);
            spooled.frames_spooled == 0 && spooled.frames_queued == 0
        });
        assert_eq!(relay.inner().generation(), self.upgrades + 1);
        let ledger = relay.drain();
        let all: u64 = sent.iter().sum();
        for input in &ledger.inputs[..2] {
            // The first handshakes are all that there were.
            assert_eq!(input.connections, u64::from(WRITERS) / 2, "{input:?}");
        }
        assert_eq!(ledger.inputs.iter().map(|input| input.frames).sum::<u64>(), all);
        assert!(ledger.outputs.iter().all(OutputLedger::balances), "{ledger:?}");
        let [steady, spooled] = [0, 1].map(|index| &ledger.outputs[index]);
        assert_eq!((steady.frames_received, steady.frames_sent, dropped(steady)), (all, all, 0));
        assert_eq!(steady.sessions_finished, self.upgrades + 1, "one connection for each process");
        let expected: Vec<_> = (0..).zip(sent).map(|(writer, &frames)| (writer, 0..frames)).collect();
        numbered::assert_complete(self.steady.close().payloads(), &expected);

        let arrived = self.shaky.close();
        let (distinct, doubled) = distinct(&arrived);
        let missing = all - distinct;
        // Written, and neither acknowledged nor on disk any more when a process ended.
        let in_doubt = spooled.frames_unacknowledged - (spooled.frames_received - all);
        eprintln!(
            "{all} frames, {} deaths, {} upgrades: {missing} missing, {} dropped, {in_doubt} in doubt, {doubled} doubled",
            self.deaths,
            self.upgrades,
            dropped(spooled)
        );
        assert!(missing <= dropped(spooled) + in_doubt, "{missing} are missing: {spooled:?}");
        assert!(doubled <= TWICE_MAX * (self.deaths + self.upgrades), "{doubled} frames came twice");
        self.visited.close();
    }
}

/// Frames that came, each counted once, and how many came again.
fn distinct(arrived: &Collected) -> (u64, u64) {
    let ids = arrived.payloads().into_iter().map(Number::of).map(|number| (number.writer, number.sequence));
    let distinct = ids.collect::<BTreeSet<_>>().len() as u64;
    (distinct, arrived.frames() - distinct)
}

/// Frames that come once more for each death and each upgrade, on average.
const TWICE_MAX: u64 = 2_000;
