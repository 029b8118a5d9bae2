//! The workers of a relay, as the thread that controls it sees them: started together, and told what to do.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::mpsc::unbounded_channel;
use tracing::warn;

use crate::input::connection::Arrival;
use crate::lifecycle::Scope;
use crate::loops::Loops;
use crate::observability::listener_log::ListenerLog;
use crate::queue::block_limit::BlockLimit;
use crate::relay::door::Door;
use crate::relay::error::StartError;
use crate::relay::input_entry::InputId;
use crate::relay::placement;
use crate::relay::placement::Placement;
use crate::relay::serving::Accepted;
use crate::relay::serving::Handover;
use crate::relay::ticks::Ticks;
use crate::relay::worker::Beginning;
use crate::relay::worker::Order;
use crate::relay::worker::Ordered;
use crate::relay::worker::Worker;
use crate::transport::Backend;
use crate::transport::BackendChoice;
use crate::transport::backend;
use crate::transport::descriptors::Reserve;
use crate::transport::detached::Detached;

/// The workers.
#[derive(Debug)]
pub(crate) struct Workers {
    /// What they run on.
    pub(crate) backend: Backend,
    pub(crate) ticks: Ticks,
    orders: Vec<UnboundedSender<Ordered>>,
    mailboxes: Vec<UnboundedSender<Handover>>,
    placement: Placement,
}

impl Workers {
    /// Starts so many workers, which have nothing to do yet, on `backend`, or on epoll where not all of them can have a ring.
    ///
    /// # Errors
    /// A thread or its runtime could not be had.
    pub(crate) fn start(
        count: usize,
        (backend, choice): (Backend, BackendChoice),
        (block_limit, loops): (&Arc<BlockLimit>, &Arc<Loops>),
        reserve: &Reserve,
        (scope, inputs): (&Scope, &Scope),
        first_input: &str,
    ) -> Result<Self, StartError> {
        let processors = placement::processors(count);
        let (placement, ticks) = (Placement::new(count), Ticks::new(count));
        let (mailboxes, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded_channel()).unzip();
        let (ready, readiness) = mpsc::channel();
        let (built, buildings) = mpsc::channel();
        let (mut agreements, mut all_orders) = (Vec::new(), Vec::new());
        for (index, mailbox) in receivers.into_iter().enumerate() {
            let (sender, orders) = unbounded_channel();
            let worker = Worker {
                index,
                cpu: processors.get(index).copied(),
                backend,
                block_limit: Arc::clone(block_limit),
                loops: Arc::clone(loops),
                placement: placement.clone(),
                orders,
                mailbox,
                reserve: reserve.clone(),
                mailboxes: mailboxes.clone(),
                scope: inputs.clone(),
                ticker: ticks.of(index),
                first_input: first_input.to_owned(),
            };
            let (agreement, agreed) = mpsc::channel();
            agreements.push(agreement);
            all_orders.push(sender);
            let beginning = Beginning { built: built.clone(), agreed, ready: ready.clone() };
            let run = move || worker.run(beginning);
            scope.spawn_thread(&format!("tapster-{index}"), "worker", run).map_err(StartError::Worker)?;
        }
        drop((built, ready));
        // A worker that fails before sends nothing.
        let failed = |_| Err(io::Error::other("a worker thread failed at its start"));
        let mut built = (0..count).map(|_| buildings.recv().unwrap_or_else(failed));
        let backend = agree(backend, choice, count, built.find_map(Result::err))?;
        for agreement in agreements {
            // A worker that is gone is noticed next.
            let _ = agreement.send(backend);
        }
        for _ in 0..count {
            readiness.recv().unwrap_or_else(failed).map_err(StartError::Worker)?;
        }
        Ok(Self { backend, ticks, orders: all_orders, mailboxes, placement })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.orders.len()
    }

    /// The worker with the fewest connections; any of these.
    pub(crate) fn least_busy(&self) -> usize {
        self.placement.take(fastrand::usize(..self.count())).worker()
    }

    /// Gives a connection that another process had to the worker with the fewest. Returns whether a worker takes it.
    pub(crate) fn serve(
        &self,
        input: InputId,
        socket: Detached,
        (log, scope): (&Arc<ListenerLog>, &Scope),
        arrival: Arrival,
    ) -> bool {
        let place = self.placement.take(0);
        let mailbox = &self.mailboxes[place.worker()];
        let (log, scope, guard) = (Arc::clone(log), scope.clone(), scope.guard("connection"));
        let door = Door::Input(input);
        mailbox.send(Accepted { door, socket, log, arrival, place, scope, guard }).is_ok()
    }

    /// Gives these orders, each to the worker of this index, and waits until all of them are carried out. A worker that has
    /// failed carries out nothing, and the others go on.
    ///
    /// # Errors
    /// The first order that a worker could not carry out; a worker that does not answer.
    pub(crate) fn order(&self, orders: impl IntoIterator<Item = (usize, Order)>) -> io::Result<()> {
        let (done, results) = mpsc::channel();
        for (worker, order) in orders {
            // A worker that is gone takes no order: its connections have ended with it.
            if let Some(worker) = self.orders.get(worker) {
                let _ = worker.send(Ordered { order, done: done.clone() });
            }
        }
        drop(done);
        let deadline = Instant::now() + ORDER_TIME;
        loop {
            match results.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(result) => result?,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "a worker does not answer"));
                }
            }
        }
    }
}

/// The backend for all workers, where the first of those that could not build their runtime says this.
fn agree(
    backend: Backend,
    choice: BackendChoice,
    workers: usize,
    fault: Option<io::Error>,
) -> Result<Backend, StartError> {
    match (fault, backend, choice) {
        (None, _, _) => Ok(backend),
        (Some(error), Backend::Epoll, _) => Err(StartError::Worker(error)),
        // One ring could be built, and one for each worker could not.
        (Some(error), Backend::Uring, choice) => {
            let reason = format!("{}, for {workers} workers", backend::why_not(&error));
            if choice == BackendChoice::Uring {
                return Err(StartError::Backend(reason));
            }
            tell_epoll(&reason);
            Ok(Backend::Epoll)
        }
    }
}

pub(crate) fn tell_epoll(reason: &str) {
    warn!("{reason}: using epoll; `tapster doctor` tells how to allow it");
}

/// A worker carries out an order in its next turn. One that has not for so long hangs.
const ORDER_TIME: Duration = Duration::from_secs(5);
