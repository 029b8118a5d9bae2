//! How many lines the log gets about what peers do.
//!
//! Peers connect, close and break the protocol as often as they like. So each kind of event at each listener has a window
//! of a minute, which begins with the first event: a number of lines, of which one peer address gets a part. What finds no
//! room is counted. The next line of that kind carries the count; where none comes until the minute is over, a line of its
//! own does. So the log is bounded, and nothing is left out without a word. The ledger counts all of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

/// What can happen at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A writer has begun its stream.
    Began,
    /// A connection ended as it ought to.
    Ended,
    /// A connection ended in another way.
    Failed,
    /// A connection was closed before its peer sent a byte.
    Probed,
    /// There were as many connections as there may be.
    Refused,
    /// The system had no descriptor or memory for a connection.
    CannotAccept,
    /// A connection was lost between two workers.
    LostBetweenWorkers,
    /// No output takes the content type of a stream.
    Unrouted,
    /// Frames over the limit were skipped.
    Skipped,
}

impl Event {
    /// All events, in the order of their numbers.
    pub(crate) const ALL: [Self; 9] = [
        Self::Began,
        Self::Ended,
        Self::Failed,
        Self::Probed,
        Self::Refused,
        Self::CannotAccept,
        Self::LostBetweenWorkers,
        Self::Unrouted,
        Self::Skipped,
    ];

    /// Lines in a minute. What has one cause for all peers needs few.
    fn lines_max(self) -> u32 {
        match self {
            Self::CannotAccept | Self::LostBetweenWorkers => 2,
            _ => LINES_MAX,
        }
    }
}

/// The lines about one listener.
#[derive(Debug, Default)]
pub(crate) struct EventLimit {
    windows: [Window; Event::ALL.len()],
}

/// A minute of one kind of event.
#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    lines: u32,
    // Lines of each peer, of the first PEERS_MAX. Others have the lines of the window alone.
    peers: HashMap<IpAddr, u32>,
    // Events without a line since the last line.
    left_out: u64,
}

impl EventLimit {
    /// Whether an event gets a line: `Some` with the number of events that got none since the last line. Writers on a unix
    /// socket (`peer` is `None`) are no strangers, and have the lines of the listener.
    pub(crate) fn admit(&mut self, event: Event, peer: Option<IpAddr>, now: Instant) -> Option<u64> {
        self.windows[event as usize].admit(event.lines_max(), peer, now)
    }

    /// The events of minutes that are over by `now`, and how many of them got no line. `None`: of all minutes.
    pub(crate) fn take_left_out(&mut self, now: Option<Instant>) -> Vec<(Event, u64)> {
        let mut left_out = Vec::new();
        for event in Event::ALL {
            let window = &mut self.windows[event as usize];
            if window.left_out > 0 && now.is_none_or(|now| window.is_over(now)) {
                left_out.push((event, window.left_out));
                *window = Window::default();
            }
        }
        left_out
    }
}

impl Window {
    fn admit(&mut self, lines_max: u32, peer: Option<IpAddr>, now: Instant) -> Option<u64> {
        if self.is_over(now) {
            *self = Self { began: Some(now), left_out: self.left_out, ..Self::default() };
        }
        if self.lines >= lines_max || peer.is_some_and(|peer| !self.has_line_for(peer)) {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }

    /// Takes one of the lines of this peer.
    fn has_line_for(&mut self, peer: IpAddr) -> bool {
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            return true;
        }
        let lines = self.peers.entry(peer).or_default();
        *lines += 1;
        *lines <= LINES_PER_PEER_MAX
    }

    fn is_over(&self, now: Instant) -> bool {
        self.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW)
    }
}

const WINDOW: Duration = Duration::from_secs(60);
/// Lines of one kind of event in a minute.
const LINES_MAX: u32 = 20;
/// Lines of them for one address.
const LINES_PER_PEER_MAX: u32 = 5;
/// Addresses that are remembered for a minute.
const PEERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Option<IpAddr> {
        Some(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn a_peer_gets_five_lines_a_minute_and_its_listener_twenty() {
        let (mut limit, now) = (EventLimit::default(), Instant::now());
        let mut lines = |peer| (0..1000).filter(|_| limit.admit(Event::Failed, peer, now).is_some()).count();
        assert_eq!([1, 1, 2, 3, 4, 5].map(|number| lines(address(number))), [5, 0, 5, 5, 5, 0]);
        let local = (0..1000).filter(|_| limit.admit(Event::Began, None, now).is_some()).count();
        assert_eq!(local, 20, "another kind of event, over a unix socket");
    }

    #[test]
    fn the_next_line_says_how_many_were_left_out() {
        let (mut limit, now) = (EventLimit::default(), Instant::now());
        for number in 0..8 {
            assert_eq!(limit.admit(Event::Ended, address(1), now), (number < 5).then_some(0));
        }
        assert_eq!(limit.admit(Event::Ended, address(2), now), Some(3));
        for _ in 0..100 {
            limit.admit(Event::Ended, None, now);
        }
        assert_eq!(limit.admit(Event::Ended, None, now + WINDOW), Some(86));
        assert_eq!(limit.admit(Event::Ended, None, now + WINDOW), Some(0));
    }

    #[test]
    fn a_minute_that_ends_in_silence_is_told_once() {
        let (mut limit, now) = (EventLimit::default(), Instant::now());
        for _ in 0..25 {
            limit.admit(Event::Refused, None, now);
            limit.admit(Event::Unrouted, None, now + WINDOW / 2);
        }
        assert_eq!(limit.take_left_out(Some(now + WINDOW / 2)), []);
        assert_eq!(limit.take_left_out(Some(now + WINDOW)), [(Event::Refused, 5)]);
        assert_eq!(limit.take_left_out(Some(now + WINDOW)), []);
        assert_eq!(limit.take_left_out(None), [(Event::Unrouted, 5)]);
    }

    /// An hour of a thousand peers that all do everything, ten times a second.
    #[test]
    fn lines_and_memory_are_bounded_whatever_peers_do_and_every_event_counts() {
        let (mut limit, begin) = (EventLimit::default(), Instant::now());
        let (mut events, mut lines, mut told) = (0, 0, 0);
        for tick in 0..36_000 {
            let now = begin + tick * Duration::from_millis(100);
            for event in Event::ALL {
                events += 1;
                if let Some(left_out) = limit.admit(event, address(tick % 1000), now) {
                    lines += 1;
                    told += 1 + left_out;
                }
            }
            assert!(limit.windows.iter().all(|window| window.peers.len() <= PEERS_MAX));
        }
        told += limit.take_left_out(None).iter().map(|(_, left_out)| left_out).sum::<u64>();
        assert_eq!(told, events);
        assert!(lines <= 60 * (7 * 20 + 2 * 2), "{lines}");
    }
}
