//! The life of the relay, its inputs and outputs, and their tasks: phases, deadlines, guards, supervised tasks.
//!
//! ```text
//! relay ─┬─ input "resolvers" ── one guard for each connection
//!        ├─ output "siem" ────── its lane, its spool
//!        └─ output "archive" ─── the thread that writes its files
//! ```
//!
//! A scope is one part of that tree. Its phase only goes forward: frames flow, then the scope drains, then it is over. The relay
//! sets the deadline between the two. What happens to a scope happens to the scopes below it. A task of a scope holds a [`Guard`]; the scope has ended
//! when every guard is gone, however its task ended: counters that a guard lowers cannot be forgotten.

use std::any::Any;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tokio::task::JoinHandle;
use tokio::task::spawn_local;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::error;

/// How far the end of a scope has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Frames flow.
    Running,
    /// The scope brings its work to an end, by its deadline.
    Draining,
    /// The scope stops. What it still has is lost, and counted.
    Over,
}

/// One part of the relay. A clone is the same scope.
#[derive(Clone)]
pub(crate) struct Scope(Arc<Node>);

struct Node {
    name: String,
    children: Mutex<Vec<Weak<Node>>>,
    draining: CancellationToken,
    over: CancellationToken,
    tasks: TaskTracker,
    // How many tasks of each kind are alive, for the end: who is left behind.
    alive: Mutex<BTreeMap<&'static str, usize>>,
    panics: AtomicU64,
}

impl Scope {
    /// The root of a tree.
    pub(crate) fn root(name: &str) -> Self {
        Self::new(name, CancellationToken::new(), CancellationToken::new())
    }

    /// A scope below this one.
    pub(crate) fn child(&self, name: &str) -> Self {
        let (draining, over) = (self.0.draining.child_token(), self.0.over.child_token());
        let child = Self::new(name, draining, over);
        let mut children = self.0.children.lock().expect(UNPOISONED);
        // Scopes come and go for as long as the relay runs.
        children.retain(|child| child.strong_count() > 0);
        children.push(Arc::downgrade(&child.0));
        drop(children);
        child
    }

    fn new(name: &str, draining: CancellationToken, over: CancellationToken) -> Self {
        let tasks = TaskTracker::new();
        // Closed, the tracker tells whenever the last guard is gone. New guards may come all the same.
        tasks.close();
        Self(Arc::new(Node {
            name: name.to_owned(),
            children: Mutex::default(),
            draining,
            over,
            tasks,
            alive: Mutex::default(),
            panics: AtomicU64::new(0),
        }))
    }

    /// The name of the scope, for the log.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the two are the same scope.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The phase now.
    pub(crate) fn phase(&self) -> Phase {
        if self.0.over.is_cancelled() {
            Phase::Over
        } else if self.0.draining.is_cancelled() {
            Phase::Draining
        } else {
            Phase::Running
        }
    }

    /// Asks the scope, and every scope below it, to bring its work to an end. Whoever asks ends the scope at a deadline.
    pub(crate) fn drain(&self) {
        self.0.draining.cancel();
    }

    /// Stops the scope, and every scope below it, now.
    pub(crate) fn end(&self) {
        self.0.draining.cancel();
        self.0.over.cancel();
    }

    /// Sees the phases of this scope.
    pub(crate) fn phases(&self) -> Phases {
        Phases { scope: self.clone(), seen: Phase::Running, next: None }
    }

    /// Counts as a task of this scope for as long as it lives. `task` says what kind of task: "connection", "lane".
    pub(crate) fn guard(&self, task: &'static str) -> Guard {
        *self.0.alive.lock().expect(UNPOISONED).entry(task).or_default() += 1;
        Guard { scope: self.clone(), task, _token: self.0.tasks.token() }
    }

    /// Runs a task of this scope on the calling thread's runtime. See [`Guard::supervise`].
    pub(crate) fn spawn_local<T: 'static>(
        &self,
        task: &'static str,
        future: impl Future<Output = T> + 'static,
    ) -> JoinHandle<Option<T>> {
        spawn_local(self.guard(task).supervise(future))
    }

    /// Runs a task of this scope on a thread of its own, which nobody joins: it may sit in the kernel without end.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(crate) fn spawn_thread(
        &self,
        thread_name: &str,
        task: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let guard = self.guard(task);
        let run = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                guard.panicked(panic.as_ref());
            }
        };
        thread::Builder::new().name(thread_name.to_owned()).spawn(run).map(drop)
    }

    /// Whether every task of this scope has ended, those of scopes below not counted.
    fn has_no_task(&self) -> bool {
        self.0.tasks.is_empty()
    }

    /// Whether every task of this scope, and of the scopes below it, has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let children = self.0.children.lock().expect(UNPOISONED);
        self.has_no_task() && children.iter().filter_map(Weak::upgrade).all(|node| Self(node).has_ended())
    }

    /// Waits for that, until `deadline` at most. Blocks the calling thread, and looks every few milliseconds: for the thread
    /// that controls the relay. Returns whether it has ended.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        while !self.has_ended() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(END_LOOK);
        }
        true
    }

    /// The kinds of tasks that have not ended, in this scope and the scopes below it.
    pub(crate) fn alive(&self) -> BTreeSet<&'static str> {
        let mut alive: BTreeSet<_> = self.0.alive.lock().expect(UNPOISONED).keys().copied().collect();
        let children = self.0.children.lock().expect(UNPOISONED);
        children.iter().filter_map(Weak::upgrade).for_each(|node| alive.extend(Self(node).alive()));
        alive
    }

    /// Tasks that have panicked, in this scope and the scopes below it.
    pub(crate) fn panics(&self) -> u64 {
        let children = self.0.children.lock().expect(UNPOISONED);
        let below: u64 = children.iter().filter_map(Weak::upgrade).map(|node| Self(node).panics()).sum();
        self.0.panics.load(Relaxed) + below
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("name", &self.0.name)
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

/// A task of a scope, alive. Dropped when the task ends, in whatever way.
#[derive(Debug)]
pub(crate) struct Guard {
    scope: Scope,
    task: &'static str,
    _token: TaskTrackerToken,
}

impl Guard {
    /// Runs the task and contains its panic: one is counted, logged at ERROR, and answered with `None`.
    pub(crate) async fn supervise<T>(self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let result =
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
                Err(panic) => Poll::Ready(Err(panic)),
            });
        result.await.map_err(|panic| self.panicked(panic.as_ref())).ok()
    }

    fn panicked(&self, panic: &(dyn Any + Send)) {
        self.scope.0.panics.fetch_add(1, Relaxed);
        let (scope, task, reason) = (self.scope.name(), self.task, panic_text(panic));
        error!(scope, task, "{task} of {scope} ended with a panic: {reason}; please report this as a bug");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut alive = self.scope.0.alive.lock().expect(UNPOISONED);
        if let Some(count) = alive.get_mut(self.task) {
            *count -= 1;
            if *count == 0 {
                alive.remove(self.task);
            }
        }
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The phases of a scope as one task sees them, one after the other. Cheap to ask again and again.
pub(crate) struct Phases {
    scope: Scope,
    seen: Phase,
    next: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Phases {
    /// The phase that the task saw last.
    pub(crate) fn seen(&self) -> Phase {
        self.seen
    }

    /// Waits for the next phase; without end after the last. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Phase {
        let wanted = match self.seen {
            Phase::Running => &self.scope.0.draining,
            Phase::Draining => &self.scope.0.over,
            Phase::Over => return std::future::pending().await,
        };
        self.next.get_or_insert_with(|| Box::pin(wanted.clone().cancelled_owned())).await;
        self.next = None;
        self.seen = self.scope.phase();
        self.seen
    }

    /// Waits until the scope is in this phase, or a later one. Cancel-safe.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        while self.seen < phase {
            self.next().await;
        }
    }
}

/// How often the end of tasks is looked at.
const END_LOOK: Duration = Duration::from_millis(2);

const UNPOISONED: &str = "no panic while it is held";

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        LocalSet::new().block_on(&runtime, test)
    }

    #[test]
    fn a_phase_reaches_every_scope_below_and_none_beside() {
        let root = Scope::root("relay");
        let (siem, archive) = (root.child("siem"), root.child("archive"));
        siem.drain();
        assert_eq!(
            [&root, &siem, &archive].map(Scope::phase),
            [Phase::Running, Phase::Draining, Phase::Running]
        );
        root.drain();
        assert_eq!([&root, &siem, &archive].map(Scope::phase), [Phase::Draining; 3]);
        root.end();
        assert_eq!([&root, &siem, &archive].map(Scope::phase), [Phase::Over; 3]);
    }

    #[test]
    fn a_task_sees_each_phase_once_and_in_order() {
        run(async {
            let scope = Scope::root("relay");
            let mut phases = scope.phases();
            assert!(futures_pending(phases.next()).await);
            scope.drain();
            assert_eq!(phases.next().await, Phase::Draining);
            assert!(futures_pending(phases.next()).await);
            scope.end();
            assert_eq!(phases.next().await, Phase::Over);
            assert!(futures_pending(phases.next()).await);
            // One that looks late sees the last phase at once.
            assert_eq!(scope.phases().next().await, Phase::Over);
        });
    }

    async fn futures_pending(future: impl Future) -> bool {
        tokio::time::timeout(Duration::from_millis(1), future).await.is_err()
    }

    #[test]
    fn a_scope_has_ended_when_its_last_task_has_however_that_ended() {
        run(async {
            let scope = Scope::root("output");
            assert!(scope.has_ended());
            let guard = scope.guard("a thread");
            let fine = scope.spawn_local("a lane", async { 7 });
            let panics = scope.spawn_local("a lane", async { panic!("on purpose") });
            assert!(!scope.has_ended());
            assert_eq!((fine.await.unwrap(), panics.await.unwrap()), (Some(7), None::<()>));
            let below = scope.child("lanes").guard("a lane");
            assert_eq!((scope.panics(), scope.alive()), (1, BTreeSet::from(["a lane", "a thread"])));
            drop(below);
            drop(guard);
            assert!(scope.has_ended());
            assert!(scope.alive().is_empty());
        });
    }

    #[test]
    fn a_panic_of_a_thread_is_contained() {
        let scope = Scope::root("output");
        scope.spawn_thread("t", "a thread", || panic!("on purpose")).unwrap();
        assert!(scope.wait_for_end(Instant::now() + Duration::from_secs(10)));
        assert_eq!(scope.panics(), 1);
    }
}
