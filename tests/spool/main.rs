//! The spool as its driver sees it: what it keeps, what it says that it lost, and what it makes of failures, crashes and
//! damage.

mod behaviour;
mod contents;
mod corruption;
mod faults;
mod folder;
mod model;
mod one_reading;
#[path = "../common/skips.rs"]
mod skips;
mod support;
mod upkeep;
