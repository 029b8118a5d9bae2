//! From one input connection to its outputs.

pub(crate) mod fanout;

pub(crate) use fanout::Fanout;
pub(crate) use fanout::Inlet;
