//! What a process answers to those who operate it: HTTP/1 on unix sockets and TCP, on one thread of its own.
//!
//! ```text
//!  doors ──► server ──► guard ──► routes ──► desk ◄──► the thread that controls the relay
//!  listen    deadlines  may it?   answers    view, phase, wishes
//! ```
//!
//! Nothing here runs on a worker, and no request waits for one. Whoever may open the unix socket may do everything; on TCP,
//! without a token, there is only reading, and from this host alone.

mod answer;
mod deadline;
mod desk;
mod doors;
mod guard;
mod routes;
mod server;

pub use desk::Answer;
pub use desk::Desk;
pub use desk::Phase;
pub use desk::Refusal;
pub use desk::Reloaded;
pub use desk::Wish;
pub use doors::Opened;
pub use server::Server;
