//! See `targets::folder`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets.rs"]
#[allow(dead_code, reason = "one of the functions is this target's")]
mod targets;

fuzz_target!(|input: &[u8]| targets::folder(input));
