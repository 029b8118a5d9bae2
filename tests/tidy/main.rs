//! Rules that the compiler does not know.
//!
//! Only what is compiled into the programs is looked at: not comments, and not tests.

mod circles;
mod layers;
mod sources;
