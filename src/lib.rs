//! tapster: a relay for Frame Streams, the transport of dnstap.
//!
//! Many writers in, every frame out to every consumer. Someone who wants a Frame Streams reader or writer of their own
//! needs [`protocol`] alone (`default-features = false`); the rest of this page is about the relay.
//!
//! # What flows, and where
//!
//! ```text
//!  DNS servers ─► input ─► session/read ─► route ─► queue ─► delivery ─► output ─► collectors
//!  (writers)      accept   READY…START     fan-out  one per  in flight,  connect   (readers)
//!                          frames→batches           lane     again,      bytes out
//!                                                     │      checkpoint
//!                                                     └──► spool ──┘
//!
//!  beside it: main ─ cli ─ commands ─ config ─ relay ─ admin      everywhere: observability, lifecycle
//! ```
//!
//! The unit is the [`FrameBatch`](protocol::FrameBatch): whole, still encoded data frames, in the memory they were read
//! into, with their count. An encoded data frame is the same on both hops, so a batch is forwarded as it came. Fan-out
//! is a reference count, and nothing is done per frame but reading its length. For one output, a `Batch` carries these frames
//! together with what is owed for them: a permit for the memory, and the custody of frames that have not ended.
//!
//! # The modules, in the order in which data flows
//!
//! | module | what it is |
//! |---|---|
//! | [`protocol`] | Frame Streams as pure functions of bytes and time: no I/O, no clock. Also the public library. |
//! | `lifecycle` | The tree of scopes: phases, the end, and tasks that are counted and whose panics are contained. |
//! | [`transport`] | Byte streams and listeners, on io_uring or on epoll; blocks to read into. A stream tells by itself how far its peer is. The one file with `unsafe` code is here. |
//! | `admission` | Who may connect: limits, addresses, processes, PROXY headers. |
//! | `loops` | Loops that lead through other relays: suspicion, the question on every way, and the proof. |
//! | [`input`] | Ways in: connections that run reader sessions, accepted or dialled. |
//! | `session` | A protocol session driven over a byte stream: `read` takes batches, `write` gives them. |
//! | `route` | From one connection to every lane that takes its content type. |
//! | `batch` | A batch for one output: frames, custody, permit. |
//! | [`queue`] | Where batches wait: a lock-free channel, a budget of bytes, and a policy for when it is spent. |
//! | [`spool`] | Batches on disk, and the stage between two queues that puts them there and takes them out. |
//! | `delivery` | What an output has in flight, sends again, has acknowledged; checkpoints, stalls, pauses, groups: a state machine. |
//! | [`output`] | Ways out: one loop each that runs a delivery, over connections or into files. |
//! | [`relay`] | Assembly and life cycle: workers, placement, the end. |
//! | [`config`] | From text to values that cannot be wrong. |
//! | [`admin`] | What a process answers to those who operate it: HTTP on a thread of its own, never on a worker. |
//! | [`observability`] | Accounts, ages, the ledger, the log, the status line. |
//! | [`dnstap`] | Just enough of dnstap to know when a message was seen. |
//! | `faults` | Debug builds only: faults that a test asks for. |
//!
//! Imports point one way: `protocol dnstap lifecycle faults observability transport` ← `admission batch loops` ← `queue delivery session` ←
//! `spool` ← `route` ← `input output` ← `config` ← `relay` ← `admin` ← the binary. `tests/tidy` holds it; nor do files import each
//! other in a circle.
//!
//! # What stays true
//!
//! - **A worker is one pinned thread** with its own runtime, listeners, connections, blocks and counters. A connection
//!   lives and dies on one worker, and a worker never blocks: files and spools have threads of their own.
//! - **A lane is one queue and one loop** that runs its delivery: to one reader, to the members of a group, or into files. A
//!   connection from a DNS server always uses the same lane of an output, so its order is kept.
//! - **A batch stays charged to its queue** until the lane has settled it. When a connection dies or stalls, what it had goes to
//!   the next one, or to another member of the group.
//! - **Every frame ends in exactly one account**: sent, filtered, dropped for a reason, or stored. A batch that is forgotten counts as
//!   dropped, reason `internal`, and a debug build panics.
//! - **A subscriber is a lane that comes and goes.** Its connection is accepted and not opened; its delivery and its loop are
//!   those of every lane. Workers feed all subscribers of an output by one table (`queue/takers`), which is renewed in one go
//!   when a reader comes or leaves: no worker is told.
//! - **The producer comes first.** Accepting, ACCEPT and FINISH wait for no output that is stalled or away; reading waits
//!   for those that an operator set to [`Block`](queue::WhenFull::Block), and for others 5 ms, up to 20 ms while they
//!   move, each time that what waits for them has doubled.
//! - **An operation of the ring is polled to its end**, never dropped: a dropped read swallows what arrives next.
//!   `Stream::cancel` ends it in order.
//! - **A disk that hangs costs an output its disk, no more.** After a second another thread gives the lane what arrives
//!   (`spool/entrance`).
//! - **The end comes by its deadline.** Each loop has the end as an arm of its one `select!`. A thread that sits in the kernel at
//!   the deadline is left behind, counted and named.
//! - **The ledger balances**, per output, in frames, and can fail to:
//!   `received == sent + filtered + Σ dropped{reason} + queued + spooled`.
//! - **Memory is bounded by configuration**: queues in bytes, connections, frame lengths. A length that a peer
//!   announces allocates nothing. What waits costs at most twice what queues are charged: batches that keep much more
//!   than themselves are copied (`queue/block_limit`).
//!
//! # What happened to the frame?
//!
//! Malformed: [`protocol`]. Late: `session`, [`queue`]. Sent twice or never: `delivery`. Lost: [`queue::WhenFull`],
//! [`spool::LossReason`], `route` (too long for the output), `delivery` (refused by its reader), `output/lane` (left at the
//! end). At the wrong place: `route`, `relay/placement`, `delivery/balance`.

#![deny(unsafe_code)]
// The links of this page into the relay.
#![cfg_attr(not(feature = "relay"), allow(rustdoc::broken_intra_doc_links))]

pub mod protocol;

#[cfg(feature = "relay")]
pub mod admin;
#[cfg(feature = "relay")]
mod admission;
#[cfg(feature = "relay")]
mod batch;
#[cfg(feature = "relay")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "relay")]
pub mod config;
#[cfg(feature = "relay")]
mod delivery;
#[cfg(feature = "relay")]
pub mod dnstap;
#[cfg(feature = "relay")]
#[doc(hidden)]
pub mod faults;
#[cfg(feature = "relay")]
pub mod input;
#[cfg(feature = "relay")]
mod lifecycle;
#[cfg(feature = "relay")]
mod loops;
#[cfg(feature = "relay")]
pub mod observability;
#[cfg(feature = "relay")]
pub mod output;
#[cfg(feature = "relay")]
pub mod queue;
#[cfg(feature = "relay")]
pub mod relay;
#[cfg(feature = "relay")]
mod route;
#[cfg(feature = "relay")]
mod session;
#[cfg(feature = "relay")]
pub mod spool;
#[cfg(feature = "relay")]
pub mod transport;
