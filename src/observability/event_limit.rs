//! How many lines the log gets about what peers do.
//!
//! Peers connect, close and break the protocol as often as they like. So each kind of event at each listener and output has a
//! window of a minute, which begins with the first event: a number of lines, of which one peer gets a part. What finds no
//! room is counted. The next line of that kind carries the count; where none comes until the minute is over, a line of its
//! own does. So the log is bounded, and nothing is left out without a word. The ledger counts all of it.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;
use std::time::Instant;

/// The lines about one listener, or one output. Events have numbers; peers have names of type `P`.
#[derive(Debug)]
pub(crate) struct EventLimit<P> {
    windows: Vec<Window<P>>,
}

/// A minute of one kind of event.
#[derive(Debug)]
struct Window<P> {
    lines_max: u32,
    lines_per_peer_max: u32,
    began: Option<Instant>,
    lines: u32,
    // Lines of each peer, of the first PEERS_MAX. Others have the lines of the window alone.
    peers: HashMap<P, u32>,
    // Events without a line since the last line.
    left_out: u64,
}

impl<P: Eq + Hash> EventLimit<P> {
    /// A limit of so many lines in a minute for each kind of event.
    pub(crate) fn new(lines_max: &[u32]) -> Self {
        Self { windows: lines_max.iter().map(|lines_max| Window::new(*lines_max)).collect() }
    }

    /// Gives each peer so many lines in a minute for this kind of event.
    pub(crate) fn with_lines_per_peer(mut self, event: usize, lines_max: u32) -> Self {
        if let Some(window) = self.windows.get_mut(event) {
            window.lines_per_peer_max = lines_max;
        }
        self
    }

    /// Whether an event gets a line: `Some` with the number of events that got none since the last line. Without a `peer`, an
    /// event has the lines of its kind.
    pub(crate) fn admit(&mut self, event: usize, peer: Option<P>, now: Instant) -> Option<u64> {
        self.windows.get_mut(event)?.admit(peer, now)
    }

    /// The events of minutes that are over by `now`, and how many of them got no line: each gets its line now, with the first one
    /// of the next minute. `None`: of all minutes, and no line is gained by it.
    pub(crate) fn take_left_out(&mut self, now: Option<Instant>) -> Vec<(usize, u64)> {
        let mut left_out = Vec::new();
        for (event, window) in self.windows.iter_mut().enumerate() {
            if window.left_out > 0 && now.is_none_or(|now| window.is_over(now)) {
                left_out.push((event, std::mem::take(&mut window.left_out)));
                if now.is_some() {
                    *window = Window { began: now, lines: 1, ..window.anew() };
                }
            }
        }
        left_out
    }
}

impl<P: Eq + Hash> Window<P> {
    fn new(lines_max: u32) -> Self {
        let lines_per_peer_max = LINES_PER_PEER_MAX;
        Self { lines_max, lines_per_peer_max, began: None, lines: 0, peers: HashMap::new(), left_out: 0 }
    }

    /// The next minute of the same kind.
    fn anew(&self) -> Self {
        Self { lines_per_peer_max: self.lines_per_peer_max, ..Self::new(self.lines_max) }
    }

    fn admit(&mut self, peer: Option<P>, now: Instant) -> Option<u64> {
        if self.is_over(now) {
            *self = Self { began: Some(now), left_out: self.left_out, ..self.anew() };
        }
        if self.lines >= self.lines_max || peer.is_some_and(|peer| !self.has_line_for(peer)) {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }

    /// Takes one of the lines of this peer.
    fn has_line_for(&mut self, peer: P) -> bool {
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            return true;
        }
        let lines = self.peers.entry(peer).or_default();
        *lines += 1;
        *lines <= self.lines_per_peer_max
    }

    fn is_over(&self, now: Instant) -> bool {
        self.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW)
    }
}

const WINDOW: Duration = Duration::from_secs(60);
/// Lines of one kind of event in a minute for one peer, unless the kind has a number of its own.
const LINES_PER_PEER_MAX: u32 = 5;
/// Peers that are remembered for a minute.
const PEERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: usize = 0;
    const ENDED: usize = 1;
    const CANNOT_ACCEPT: usize = 2;
    const LINES_MAX: [u32; 3] = [20, 20, 1];

    fn limit() -> EventLimit<u32> {
        EventLimit::new(&LINES_MAX)
    }

    #[test]
    fn a_peer_gets_five_lines_a_minute_and_its_listener_twenty() {
        let (mut limit, now) = (limit(), Instant::now());
        let lines = |peer| (0..1000).filter(|_| limit.admit(FAILED, Some(peer), now).is_some()).count();
        assert_eq!([1, 1, 2, 3, 4, 5].map(lines), [5, 0, 5, 5, 5, 0]);
        let local = (0..1000).filter(|_| limit.admit(ENDED, None, now).is_some()).count();
        assert_eq!(local, 20, "another kind of event, over a unix socket");
    }

    #[test]
    fn a_kind_of_event_may_have_one_line_a_minute_for_each_peer() {
        let (limit, now) = (limit(), Instant::now());
        let mut limit = limit.with_lines_per_peer(FAILED, 1);
        for now in [now, now + WINDOW, now + 2 * WINDOW] {
            let lines = |peer| (0..10).filter(|_| limit.admit(FAILED, Some(peer), now).is_some()).count();
            assert_eq!([1, 1, 2, 3].map(lines), [1, 0, 1, 1]);
        }
        limit.take_left_out(Some(now + 3 * WINDOW));
        assert_eq!(limit.windows[FAILED].lines_per_peer_max, 1);
    }

    #[test]
    fn the_next_line_says_how_many_were_left_out() {
        let (mut limit, now) = (limit(), Instant::now());
        for number in 0..8 {
            assert_eq!(limit.admit(ENDED, Some(1), now), (number < 5).then_some(0));
        }
        assert_eq!(limit.admit(ENDED, Some(2), now), Some(3));
        for _ in 0..100 {
            limit.admit(ENDED, None, now);
        }
        assert_eq!(limit.admit(ENDED, None, now + WINDOW), Some(86));
        assert_eq!(limit.admit(ENDED, None, now + WINDOW), Some(0));
    }

    #[test]
    fn a_minute_that_ends_in_silence_is_told_once() {
        let (mut limit, now) = (limit(), Instant::now());
        for _ in 0..25 {
            limit.admit(FAILED, None, now);
            limit.admit(ENDED, None, now + WINDOW / 2);
        }
        assert_eq!(limit.take_left_out(Some(now + WINDOW / 2)), []);
        assert_eq!(limit.take_left_out(Some(now + WINDOW)), [(FAILED, 5)]);
        assert_eq!(limit.take_left_out(Some(now + WINDOW)), []);
        assert_eq!(limit.take_left_out(None), [(ENDED, 5)]);
        assert_eq!(
            limit.admit(ENDED, None, now + WINDOW),
            None,
            "the end of one worker is not that of others"
        );
        assert_eq!(limit.take_left_out(None), [(ENDED, 1)]);
    }

    /// A host without descriptors: an attempt every 100 ms for an hour.
    #[test]
    fn an_event_of_one_line_a_minute_has_no_more_where_its_minutes_end_in_silence() {
        let (mut limit, begin) = (limit(), Instant::now());
        let mut lines = 0;
        for tick in 0..36_000 {
            let now = begin + tick * Duration::from_millis(100);
            lines += usize::from(limit.admit(CANNOT_ACCEPT, None, now).is_some());
            lines += limit.take_left_out(Some(now)).len();
        }
        assert!((59..=61).contains(&lines), "{lines}");
    }

    /// An hour of a thousand peers that all do everything, ten times a second.
    #[test]
    fn lines_and_memory_are_bounded_whatever_peers_do_and_every_event_counts() {
        let (mut limit, begin) = (limit(), Instant::now());
        let (mut events, mut lines, mut told) = (0, 0, 0);
        for tick in 0..36_000 {
            let now = begin + tick * Duration::from_millis(100);
            for event in [FAILED, ENDED, CANNOT_ACCEPT] {
                events += 1;
                if let Some(left_out) = limit.admit(event, Some(tick % 1000), now) {
                    lines += 1;
                    told += 1 + left_out;
                }
            }
            assert!(limit.windows.iter().all(|window| window.peers.len() <= PEERS_MAX));
        }
        told += limit.take_left_out(None).iter().map(|(_, left_out)| left_out).sum::<u64>();
        assert_eq!(told, events);
        assert!(lines <= 60 * (2 * 20 + 1), "{lines}");
    }
}
