//! From one input connection to its outputs.

pub(crate) mod fanout;
pub(crate) mod routes;

pub(crate) use fanout::Fanout;
pub(crate) use fanout::Inlet;
pub(crate) use fanout::Queues;
pub(crate) use routes::Route;
pub(crate) use routes::Routes;
