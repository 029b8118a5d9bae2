//! The ledger: where every frame went, exactly.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

/// Where every frame went, per input and per output, in frames.
///
/// Per output, at every moment and exactly at exit:
/// `frames_received == frames_sent + frames_filtered + Σ frames_dropped + frames_queued + frames_spooled`.
/// Where the output waits for acknowledgements, once nothing moves:
/// `frames_sent == frames_acknowledged + frames_unacknowledged`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// In the order of the configuration.
    pub inputs: Vec<InputLedger>,
    /// In the order of the configuration.
    pub outputs: Vec<OutputLedger>,
}

/// What one input took in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputLedger {
    /// Name from the configuration.
    pub name: String,
    /// Connections accepted, and opened by `dial`, since the start.
    pub connections: u64,
    /// Attempts of `dial` that came to no connection: nobody listens, a lookup failed, the address led back to this same tapster.
    #[serde(default)]
    pub dials_failed: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Connections that were closed without an answer, by reason: `limit`, `limit_address`, `not_allowed`, `peer`,
    /// `proxy_header`. They are a part of `connections` too, and together `sessions_ended` has them as `refused`.
    pub connections_rejected: BTreeMap<String, u64>,
    /// Whole data frames taken.
    pub frames: u64,
    /// Their bytes, length words included.
    pub bytes: u64,
    /// Frames of a content type that no output takes (part of `frames`).
    pub frames_unrouted: u64,
    /// Frames over `frame_len_max` that were skipped or closed on (not part of `frames`).
    pub frames_oversize: u64,
    /// Control frames of unknown type that were ignored.
    pub control_frames_ignored: u64,
    /// Bytes that came after STOP and were not taken.
    pub bytes_after_stop: u64,
    /// How connections ended: `finished`, `unclean`, `finish_from_writer`, `truncated`, `no_stream`, `loop_probe`,
    /// `protocol_error`, `handshake_timeout`, `max_age`, `refused`, …
    pub sessions_ended: BTreeMap<String, u64>,
    /// Tasks of this input that ended with a panic: a bug, told at ERROR.
    pub panics: u64,
}

/// What became of the frames for one output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLedger {
    /// Name from the configuration.
    pub name: String,
    /// Frames that inputs had for this output, and those that its spool had from an earlier run.
    pub frames_received: u64,
    /// Frames wholly written to a connection or file, each counted once.
    pub frames_sent: u64,
    /// Frames (part of `frames_sent`) that were acknowledged. Zero, like the next, where the output waits for no
    /// acknowledgement.
    pub frames_acknowledged: u64,
    /// Frames (part of `frames_sent`) that were not acknowledged: kept, to be sent again if their connection breaks. At
    /// exit: those of which nobody knows whether they arrived.
    pub frames_unacknowledged: u64,
    /// Frames wholly written once more, after a connection broke: as often as they were.
    pub frames_resent: u64,
    /// Frames that a filter kept back.
    pub frames_filtered: u64,
    /// Frames waiting in memory.
    pub frames_queued: u64,
    /// Frames waiting on disk, and not in memory. At exit: those that were never sent and that the next run will send.
    pub frames_spooled: u64,
    /// Frames lost, by reason: `queue_full`, `sampled`, `frame_too_long`, `refused`, `shutdown`, `spool_full`, `spool_age`,
    /// `spool_damaged`, `internal`.
    pub frames_dropped: BTreeMap<String, u64>,
    /// Bytes of `frames_sent`.
    pub bytes_sent: u64,
    /// Bytes (part of `bytes_sent`) on their way to readers whose connections died before FINISH: what the reader's
    /// kernel had not acknowledged (TCP), at most what the socket buffer holds (unix). What a kernel had acknowledged
    /// and its reader had not read is in neither: nobody can see it from here. Zero where the output waits for
    /// acknowledgements: such bytes are sent again.
    pub bytes_unconfirmed: u64,
    /// Sessions begun: connections that reached START, or files opened.
    pub connections: u64,
    /// Sessions ended with FINISH after our STOP, or files closed with STOP.
    pub sessions_finished: u64,
    /// Connections that led back to an input of this relay, and attempts to connect while they did: told at ERROR. Before a frame is
    /// written where they lead there straight, once frames have come back where they lead through other relays.
    pub connections_to_own_input: u64,
    /// Tasks of this output that ended with a panic, and began again: a bug, told at ERROR.
    pub panics: u64,
    /// Whether the output was removed while the relay ran. What had the same name counts together.
    #[serde(
        rename = "state",
        default,
        skip_serializing_if = "is_there",
        serialize_with = "as_state",
        deserialize_with = "of_state"
    )]
    pub removed: bool,
    /// Microseconds since the oldest frame was read that is not delivered: not written or, where the output waits for
    /// acknowledgements, not acknowledged. To 10 ms, or 2 % of a long wait. `None` where nothing waits. At exit: of what is
    /// left on disk.
    pub oldest_age_us: Option<u64>,
    /// How long batches stayed that were delivered.
    pub residence: Residence,
    /// How the spool stands, where the output has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<SpoolLedger>,
    /// The members of a group, in the order of the configuration; the other fields are for all of them together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberLedger>,
}

/// How a spool stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolLedger {
    /// Whether it cannot be opened, or not be written to, or its disk has no more room than `min_free`: frames wait in memory
    /// alone. Tried again every second.
    pub degraded: bool,
    /// Frames (part of `frames_received`) that an earlier run had left, or a task that panicked: some of them are sent twice.
    pub frames_recovered: u64,
    /// Bytes on disk, set aside and not yet removed ones included.
    pub bytes: u64,
    /// Bytes (part of `bytes`) that a power cut would lose now.
    pub bytes_unsynced: u64,
    /// Files that were set aside since the start because something in them was damaged.
    pub files_set_aside: u64,
}

/// What one member of a group did. Fields as in [`OutputLedger`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of the output")]
pub struct MemberLedger {
    /// Where it is.
    pub to: String,
    /// How it stands.
    pub state: MemberState,
    /// Frames that nobody had got before.
    pub frames_sent: u64,
    pub bytes_sent: u64,
    pub frames_acknowledged: u64,
    pub frames_unacknowledged: u64,
    /// Frames that this or another member had got before.
    pub frames_resent: u64,
    /// Frames that it had when it died or stalled, and that went to others: as often as they did.
    pub frames_given_back: u64,
    pub connections: u64,
    pub sessions_finished: u64,
    /// Of what was written to it, or is to be.
    pub oldest_age_us: Option<u64>,
    pub residence: Residence,
}

/// Times from the read that brought a batch to its delivery, in microseconds: percentiles over batches, to 1 %. All zero
/// where none was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "percentiles")]
pub struct Residence {
    /// Batches delivered: what was read at once, from a single frame to some hundred.
    pub batches: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p99_9_us: u64,
    pub max_us: u64,
}

/// How a member of a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum MemberState {
    /// Not connected yet, or between two streams.
    Connecting,
    /// It gets frames.
    Up,
    /// It died, or does not answer.
    Down,
    /// It took nothing for `stall_timeout`; tried again.
    Stalled,
    /// It got STOP after everything, and answered.
    Finished,
}

impl MemberState {
    /// By number.
    pub(crate) const ALL: [Self; 5] = [Self::Connecting, Self::Up, Self::Down, Self::Stalled, Self::Finished];
}

impl InputLedger {
    /// Adds what has the same name now to what had it before.
    pub(crate) fn go_on_as(&mut self, now: Self) {
        self.connections += now.connections;
        self.connections_open += now.connections_open;
        self.dials_failed += now.dials_failed;
        self.frames += now.frames;
        self.bytes += now.bytes;
        self.frames_unrouted += now.frames_unrouted;
        self.frames_oversize += now.frames_oversize;
        self.control_frames_ignored += now.control_frames_ignored;
        self.bytes_after_stop += now.bytes_after_stop;
        for (reason, sessions) in now.sessions_ended {
            *self.sessions_ended.entry(reason).or_default() += sessions;
        }
        for (reason, connections) in now.connections_rejected {
            *self.connections_rejected.entry(reason).or_default() += connections;
        }
        self.panics += now.panics;
    }
}

fn is_there(removed: &bool) -> bool {
    !removed
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn as_state<S: Serializer>(_: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("removed")
}

fn of_state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(String::deserialize(deserializer)? == "removed")
}

impl OutputLedger {
    /// Adds what has the same name now to what had it before. Of its state, what is now counts.
    pub(crate) fn go_on_as(&mut self, now: Self) {
        let mut sum = now;
        sum.add(self);
        sum.panics += self.panics;
        *self = sum;
    }

    /// Another output has found on disk what this one has left there, and counts it.
    pub(crate) fn leave_spooled(&mut self) {
        self.frames_received -= self.frames_spooled;
        self.frames_spooled = 0;
    }

    /// Whether every frame received is accounted for. Each term is counted where its frames come and go, so this can fail.
    pub fn balances(&self) -> bool {
        let dropped: u64 = self.frames_dropped.values().sum();
        self.frames_received
            == self.frames_sent + self.frames_filtered + dropped + self.frames_queued + self.frames_spooled
    }

    /// Adds the counts of one lane.
    pub(crate) fn add(&mut self, lane: &Self) {
        self.frames_received += lane.frames_received;
        self.frames_sent += lane.frames_sent;
        self.frames_acknowledged += lane.frames_acknowledged;
        self.frames_unacknowledged += lane.frames_unacknowledged;
        self.frames_resent += lane.frames_resent;
        self.frames_filtered += lane.frames_filtered;
        self.frames_queued += lane.frames_queued;
        self.frames_spooled += lane.frames_spooled;
        for (reason, frames) in &lane.frames_dropped {
            *self.frames_dropped.entry(reason.clone()).or_default() += frames;
        }
        self.bytes_sent += lane.bytes_sent;
        self.bytes_unconfirmed += lane.bytes_unconfirmed;
        self.connections += lane.connections;
        self.sessions_finished += lane.sessions_finished;
        self.connections_to_own_input += lane.connections_to_own_input;
    }
}
