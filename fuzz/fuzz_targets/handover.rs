//! See `targets::handover::handover`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/mod.rs"]
#[allow(dead_code, reason = "one of the functions is this target's")]
mod targets;

fuzz_target!(|input: &[u8]| targets::handover::handover(input));
