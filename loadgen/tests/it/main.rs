//! The real binary, from outside.

mod delivery;
mod direct;
mod support;
mod tls;
mod whole;
