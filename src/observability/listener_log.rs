//! The lines about one listener, or one address that an input dials, from every worker.

use std::sync::Mutex;
use std::time::Instant;

use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::observability::event_limit::EventLimit;
use crate::observability::peer_name::PeerKey;
use crate::observability::peer_name::PeerName;
use crate::observability::rejection::Rejection;

/// What can happen at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A writer has begun its stream.
    Began,
    /// A connection ended between two frames: as it ought to, or without STOP.
    Ended,
    /// A connection was as old as it may become.
    Retired,
    /// A connection ended in another way.
    Failed,
    /// A connection was closed before its peer sent a byte.
    Probed,
    /// Another relay asked whether its frames come back to it.
    Asked,
    /// A connection was closed without an answer.
    Refused(Rejection),
    /// The system had no descriptor or memory for a connection.
    CannotAccept,
    /// A connection was lost between two workers.
    LostBetweenWorkers,
    /// No output takes the content type of a stream.
    Unrouted,
    /// No connection could be opened to where the input dials.
    Unreachable,
    /// Where the input dials, this same tapster listens.
    OwnListener,
}

impl Event {
    /// All events, in the order of their numbers.
    const ALL: [Self; 11 + Rejection::ALL.len()] = [
        Self::Began,
        Self::Ended,
        Self::Retired,
        Self::Failed,
        Self::Probed,
        Self::Asked,
        Self::CannotAccept,
        Self::LostBetweenWorkers,
        Self::Unrouted,
        Self::Unreachable,
        Self::OwnListener,
        Self::Refused(Rejection::Limit),
        Self::Refused(Rejection::LimitAddress),
        Self::Refused(Rejection::NotAllowed),
        Self::Refused(Rejection::Peer),
        Self::Refused(Rejection::ProxyHeader),
    ];

    fn number(self) -> usize {
        Self::ALL.iter().position(|event| *event == self).expect("ALL has every event")
    }

    /// Lines in a minute. What has one cause for all peers needs one.
    fn lines_max(self) -> u32 {
        match self {
            Self::CannotAccept | Self::LostBetweenWorkers | Self::Retired => 1,
            _ => LINES_MAX,
        }
    }
}

/// Writes lines about one listener, as many as [`EventLimit`] has room for.
#[derive(Debug)]
pub(crate) struct ListenerLog {
    input: String,
    // One of the two.
    listener: Option<String>,
    dial: Option<String>,
    limit: Mutex<EventLimit<PeerKey>>,
}

impl ListenerLog {
    /// The log of the listener at this address, of this input.
    pub(crate) fn new(input: &str, listener: &str) -> Self {
        Self::of(input, Some(listener), None)
    }

    /// The log of an address that this input dials.
    pub(crate) fn of_dial(input: &str, dial: &str) -> Self {
        Self::of(input, None, Some(dial))
    }

    fn of(input: &str, listener: Option<&str>, dial: Option<&str>) -> Self {
        let mut limit = EventLimit::new(&Event::ALL.map(Event::lines_max));
        for reason in Rejection::ALL {
            // A peer that is refused tries again and again, and hears nothing.
            limit = limit.with_lines_per_peer(Event::Refused(reason).number(), 1);
        }
        let (listener, dial) = (listener.map(str::to_owned), dial.map(str::to_owned));
        Self { input: input.to_owned(), listener, dial, limit: Mutex::new(limit) }
    }

    /// Tells of an event, if there is room for a line. The text may hold what a peer sent, escaped: it is cut where it is long.
    pub(crate) fn tell(&self, event: Event, peer: Option<&PeerName>, text: impl FnOnce() -> String) {
        let peer_key = peer.and_then(|peer| match event {
            Event::Refused(_) => peer.key(),
            _ => peer.ip().map(PeerKey::Address),
        });
        let admitted = self.limit.lock().expect(UNPOISONED).admit(event.number(), peer_key, Instant::now());
        if let Some(left_out) = admitted {
            self.write(event, peer, left_out, &shortened(text()));
        }
    }

    /// Tells what was left out in minutes that are over. Called at regular intervals.
    pub(crate) fn tell_left_out(&self) {
        self.write_left_out(Some(Instant::now()));
    }

    /// Tells what was left out until now, at the end.
    pub(crate) fn end(&self) {
        self.write_left_out(None);
    }

    fn write_left_out(&self, now: Option<Instant>) {
        let left_out = self.limit.lock().expect(UNPOISONED).take_left_out(now);
        for (event, left_out) in left_out {
            let event = Event::ALL[event];
            self.write(event, None, left_out, summary(event));
        }
    }

    fn write(&self, event: Event, peer: Option<&PeerName>, left_out: u64, text: &str) {
        let (input, listener, dial) = (&self.input, self.listener.as_deref(), self.dial.as_deref());
        let process = peer.and_then(PeerName::process);
        let (pid, uid) = (process.and_then(|process| process.pid), process.map(|process| process.uid));
        let user = process.and_then(|process| process.user.as_deref());
        let program = process.and_then(|process| process.program.as_deref());
        let peer = peer.map(tracing::field::display);
        let left_out = (left_out > 0).then_some(left_out);
        match event {
            Event::Probed | Event::Asked => {
                debug!(input, listener, dial, peer, pid, uid, user, program, left_out, "{text}");
            }
            Event::Began | Event::Ended | Event::Retired => {
                info!(input, listener, dial, peer, pid, uid, user, program, left_out, "{text}");
            }
            Event::OwnListener => error!(input, listener, dial, left_out, "{text}"),
            _ => warn!(input, listener, dial, peer, pid, uid, user, program, left_out, "{text}"),
        }
    }
}

/// What is said of events that got no line of their own.
fn summary(event: Event) -> &'static str {
    match event {
        Event::Began => "more connections, without a line for each",
        Event::Ended => "more connections ended, without a line for each",
        Event::Retired => "more connections were as old as they may become, without a line for each",
        Event::Failed => "more connections ended irregularly, without a line for each",
        Event::Probed => "more connections were closed before a byte was sent, without a line for each",
        Event::Asked => "more questions about loops, without a line for each",
        Event::Refused(_) => "more connections were refused, without a line for each",
        Event::CannotAccept => "connections could not be accepted many times more, without a line for each",
        Event::LostBetweenWorkers => {
            "more connections were lost between two workers, without a line for each"
        }
        Event::Unrouted => "more streams that no output takes, without a line for each",
        Event::Unreachable => "more attempts to connect failed, without a line for each",
        Event::OwnListener => {
            "more attempts to connect led back to this same tapster, without a line for each"
        }
    }
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// Lines of one kind of event in a minute.
const LINES_MAX: u32 = 20;

/// Characters of a line, beside names and addresses.
const TEXT_MAX: usize = 300;

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observability::peer_name::LocalPeer;

    #[test]
    fn a_text_that_a_peer_made_long_is_cut() {
        assert_eq!(shortened("short".to_owned()), "short");
        let long = shortened("\\x00".repeat(1000));
        assert!(long.len() == TEXT_MAX + 3 && long.ends_with("..."), "{long}");
    }

    #[test]
    fn a_peer_is_known_by_its_address_whatever_its_port() {
        let log = ListenerLog::new("in", "tcp://[::]:1");
        let mut lines = 0;
        for port in 0..100 {
            log.tell(Event::Failed, Some(&PeerName::Tcp(([0; 16], port).into())), || {
                lines += 1;
                String::new()
            });
        }
        assert_eq!(lines, 5);
    }

    #[test]
    fn a_peer_that_is_refused_has_one_line_for_each_reason() {
        let log = ListenerLog::new("in", "tcp://[::]:1");
        let local =
            |uid| PeerName::Unix(Some(LocalPeer { pid: None, uid, gid: 0, user: None, program: None }));
        let peers = |number: u16| {
            [PeerName::Tcp(([127, 0, 0, 1], number).into()), local(1), local(2 + u32::from(number / 500))]
        };
        for reason in Rejection::ALL {
            let mut lines = 0;
            for peer in (0..1000).flat_map(peers) {
                log.tell(Event::Refused(reason), Some(&peer), || {
                    lines += 1;
                    String::new()
                });
            }
            assert_eq!(lines, 4, "one address and three users");
        }
    }
}
