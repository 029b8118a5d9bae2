//! Who may connect: limits, addresses, processes, and the PROXY header that names a peer. For inputs, and for outputs whose readers
//! connect.

mod access;
mod entrant;
pub(crate) mod gate;

pub use access::Access;
pub(crate) use entrant::Entrant;
pub(crate) use entrant::Limit;
pub(crate) use entrant::NotAdmitted;
pub(crate) use entrant::Refusal;
