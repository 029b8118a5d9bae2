//! What one `dial` of an input is connected to, on all workers.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use tokio::sync::Notify;

use crate::transport::Address;
use crate::transport::dial::Site;

/// The connections of one address that an input dials. They outlive whoever opened them: another process may have done so.
#[derive(Debug)]
pub(crate) struct Dialled {
    to: Address,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<Site>,
    // Since the last look, each with its beginning.
    ended: Vec<(Site, Instant)>,
}

/// A connection to one site. Dropped, it has ended, in whatever way.
#[derive(Debug)]
pub(crate) struct DialledConnection {
    dialled: Arc<Dialled>,
    site: Site,
    since: Instant,
}

impl Dialled {
    /// No connection yet to this address.
    pub(crate) fn new(to: Address) -> Self {
        Self { to, state: Mutex::default(), news: Notify::new() }
    }

    /// The address as it was configured.
    pub(crate) fn to(&self) -> &Address {
        &self.to
    }

    /// A connection to this site is open.
    pub(crate) fn opened(self: &Arc<Self>, site: Site) -> DialledConnection {
        self.state.lock().expect(UNPOISONED).open.push(site.clone());
        DialledConnection { dialled: Arc::clone(self), site, since: Instant::now() }
    }

    /// The sites with a connection. What ended before is forgotten.
    pub(super) fn open_sites(&self) -> Vec<Site> {
        let mut state = self.state.lock().expect(UNPOISONED);
        state.ended.clear();
        state.open.clone()
    }

    /// The connections that have ended since the last look: where to, and when they began.
    pub(super) fn take_ended(&self) -> Vec<(Site, Instant)> {
        std::mem::take(&mut self.state.lock().expect(UNPOISONED).ended)
    }

    /// Whoever dials looks at everything again.
    pub(crate) fn look_again(&self) {
        self.news.notify_one();
    }

    /// Waits until a connection has ended, or [`look_again`](Self::look_again) is called. For one caller. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.news.notified().await;
    }
}

impl DialledConnection {
    /// The address that was dialled, as it was configured.
    pub(crate) fn to(&self) -> &Address {
        &self.dialled.to
    }
}

impl Drop for DialledConnection {
    fn drop(&mut self) {
        let mut state = self.dialled.state.lock().expect(UNPOISONED);
        if let Some(place) = state.open.iter().position(|open| *open == self.site) {
            let site = state.open.swap_remove(place);
            state.ended.push((site, self.since));
        }
        drop(state);
        self.dialled.look_again();
    }
}

/// No panic is possible while the lock is held.
const UNPOISONED: &str = "no panic while it is held";
