//! The whole relay, seen from outside: one module per behaviour, on both backends.
//!
//! Letters and numbers in the names of tests (`h01`, `w10`) are those of the conformance cases: H handshake,
//! D data, L limits, S splits, X ends, T timeouts, W the relay as writer, P real peers.
//!
//! Tests that need a program which is not installed, or io_uring where it is forbidden, say so on stderr and
//! pass; with `TAPSTER_REQUIRE_PEERS` set they fail. Tests that measure time on a busy machine say so and pass too.
//! `TAPSTER_SKIPS` names a file to which all these are added. `TAPSTER_GARBAGE_SEED` repeats a run of `garbage`.

#[macro_use]
mod support;
#[path = "../common/skips.rs"]
mod skips;

mod access;
mod admin;
mod age;
mod changes;
mod changes_storm;
mod checkpoint;
mod data;
mod delivery;
mod dial;
mod dial_changes;
mod drain;
mod dump;
mod endurance;
mod fairness;
mod fanout;
mod files;
mod files_gone;
mod full_queue;
mod garbage;
mod groups;
mod handshake;
mod harness;
mod in_place;
mod isolation;
mod kills;
mod latency;
mod ledger;
mod limits;
mod log;
mod loops;
mod many_connections;
mod memory;
mod panics;
mod peers;
mod proxy;
mod reconnect;
mod refused;
mod reload;
mod reload_command;
mod restart;
mod retirement;
mod sample;
mod scarce;
mod seccomp;
mod signals;
mod small_queue;
mod splits;
mod spool;
mod spool_disk;
mod spool_end;
mod stop;
mod subscribers;
mod subscribers_change;
mod subscribers_many;
mod systemd;
mod ticks;
mod timeouts;
mod tls;
mod tls_peers;
mod tls_refused;
mod unix_sockets;
mod upgrade;
mod upgrade_command;
mod vanished;
mod writer_side;
