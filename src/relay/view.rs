//! What others than the owner of a relay may see of it.

use std::sync::Arc;

use crate::observability::Ledger;
use crate::observability::Standing;
use crate::relay::accounts::Accounts;
use crate::relay::ticks::Ticks;

/// A view of a relay, for any thread: it waits for nobody, and stays when the relay has ended.
#[derive(Clone, Debug)]
pub struct View {
    accounts: Arc<Accounts>,
    ticks: Ticks,
    generation: u64,
}

impl View {
    pub(crate) fn new(accounts: Arc<Accounts>, ticks: Ticks, generation: u64) -> Self {
        Self { accounts, ticks, generation }
    }

    /// The ledger as it stands.
    pub fn ledger(&self) -> Ledger {
        self.accounts.ledger()
    }

    /// How the relay stands, in short.
    pub fn standing(&self) -> Standing {
        self.accounts.standing()
    }

    /// When each worker ticked last.
    pub fn ticks(&self) -> &Ticks {
        &self.ticks
    }

    /// How many processes there were in the chain of upgrades, this one included.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}
