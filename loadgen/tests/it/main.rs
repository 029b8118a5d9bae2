//! The real binary, from outside.

mod direct;
mod support;
mod whole;
