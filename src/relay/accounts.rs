//! Who counts for which input and output, those that have ended included.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::RwLock;
use std::time::Instant;

use crate::observability::InputLedger;
use crate::observability::Ledger;
use crate::observability::OutputLedger;
use crate::observability::Standing;
use crate::observability::wait_log::InputWait;
use crate::relay::input_entry::InputEntry;
use crate::relay::output_entry::OutputEntry;

/// Everything that the ledger is made of. Inputs and outputs come and go.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    // Of the process that this one has taken over from.
    former: RwLock<Ledger>,
    inputs: RwLock<Vec<Slot<InputEntry, InputLedger>>>,
    outputs: RwLock<Vec<Slot<OutputEntry, EndedOutput>>>,
}

/// What is left of an output.
#[derive(Debug)]
struct EndedOutput {
    ledger: OutputLedger,
    // Its spool stays on disk.
    spool: Option<PathBuf>,
}

/// One input or output.
#[derive(Debug)]
enum Slot<E, L> {
    /// It counts, although it may be about to end.
    There(Arc<E>),
    /// It was removed, with these counts.
    Ended(L),
}

impl<E, L> Slot<E, L> {
    fn there(&self) -> Option<&Arc<E>> {
        match self {
            Self::There(entry) => Some(entry),
            Self::Ended(_) => None,
        }
    }
}

impl Accounts {
    /// An input begins.
    pub(crate) fn add_input(&self, entry: Arc<InputEntry>) {
        self.inputs.write().expect(UNPOISONED).push(Slot::There(entry));
    }

    /// An output begins.
    pub(crate) fn add_output(&self, entry: Arc<OutputEntry>) {
        let mut outputs = self.outputs.write().expect(UNPOISONED);
        for slot in outputs.iter_mut() {
            if let Slot::Ended(ended) = slot
                && ended.spool.is_some()
                && ended.spool == entry.spool
            {
                ended.ledger.leave_spooled();
            }
        }
        outputs.push(Slot::There(entry));
    }

    /// An input has ended: its counts stay.
    pub(crate) fn end_input(&self, entry: &Arc<InputEntry>) {
        entry.tell_end();
        end(&mut self.inputs.write().expect(UNPOISONED), entry, entry.ledger());
    }

    /// An output has ended: its counts stay.
    pub(crate) fn end_output(&self, entry: &Arc<OutputEntry>) {
        entry.tell_end();
        let mut ledger = OutputLedger { removed: true, ..entry.ledger(Instant::now()) };
        let mut outputs = self.outputs.write().expect(UNPOISONED);
        let others = outputs.iter().filter_map(Slot::there).filter(|other| !Arc::ptr_eq(other, entry));
        if entry.spool.is_some() && others.into_iter().any(|other| other.spool == entry.spool) {
            ledger.leave_spooled();
        }
        end(&mut outputs, entry, EndedOutput { ledger, spool: entry.spool.clone() });
    }

    /// The process that this one takes over from has these counts, its inputs in all and its outputs so far.
    pub(crate) fn set_former(&self, ledger: Ledger) {
        *self.former.write().expect(UNPOISONED) = ledger;
    }

    /// An output of the process that this one takes over from has ended, with these counts. What it has left on disk, the output
    /// of this process finds there.
    pub(crate) fn set_former_output(&self, mut output: OutputLedger) {
        if !output.removed {
            output.leave_spooled();
        }
        let mut former = self.former.write().expect(UNPOISONED);
        match former.outputs.iter_mut().find(|former| former.name == output.name) {
            Some(place) => *place = output,
            None => former.outputs.push(output),
        }
    }

    /// And its inputs have ended.
    pub(crate) fn set_former_inputs(&self, inputs: Vec<InputLedger>) {
        self.former.write().expect(UNPOISONED).inputs = inputs;
    }

    /// The inputs that are there.
    pub(crate) fn inputs(&self) -> Vec<Arc<InputEntry>> {
        self.inputs.read().expect(UNPOISONED).iter().filter_map(Slot::there).cloned().collect()
    }

    /// The outputs that are there.
    pub(crate) fn outputs(&self) -> Vec<Arc<OutputEntry>> {
        self.outputs.read().expect(UNPOISONED).iter().filter_map(Slot::there).cloned().collect()
    }

    /// The ledger as it stands. What had the same name before counts with it.
    pub(crate) fn ledger(&self) -> Ledger {
        let now = Instant::now();
        let mut ledger = self.former.read().expect(UNPOISONED).clone();
        for slot in self.inputs.read().expect(UNPOISONED).iter() {
            let input = match slot {
                Slot::There(entry) => entry.ledger(),
                Slot::Ended(ledger) => ledger.clone(),
            };
            match ledger.inputs.iter_mut().find(|former| former.name == input.name) {
                Some(former) => former.go_on_as(input),
                None => ledger.inputs.push(input),
            }
        }
        for slot in self.outputs.read().expect(UNPOISONED).iter() {
            let output = match slot {
                Slot::There(entry) => entry.ledger(now),
                Slot::Ended(ended) => ended.ledger.clone(),
            };
            match ledger.outputs.iter_mut().find(|former| former.name == output.name) {
                Some(former) => former.go_on_as(output),
                None => ledger.outputs.push(output),
            }
        }
        ledger
    }

    /// How the inputs and outputs stand that are there, in short.
    pub(crate) fn standing(&self) -> Standing {
        let inputs: Vec<_> = self.inputs().iter().map(|input| input.ledger()).collect();
        let outputs = self.outputs();
        Standing {
            writers: inputs.iter().map(|input| input.connections_open).sum(),
            frames: inputs.iter().map(|input| input.frames).sum(),
            outputs: outputs.iter().map(|output| output.standing()).collect(),
        }
    }

    /// Writes the lines that are due.
    pub(crate) fn tell(&self, now: Instant) {
        let outputs = self.outputs();
        outputs.iter().for_each(|output| output.tell(now));
        for input in self.inputs() {
            let oldest = input.held(now);
            let blocks = |output: &&Arc<OutputEntry>| oldest.is_some() && output.blocks();
            let blocked_by = outputs.iter().filter(blocks).map(|output| output.name.clone()).collect();
            input.tell(&InputWait { oldest, blocked_by }, now);
        }
    }

    /// Tells the rest, after the end of everything else.
    pub(crate) fn tell_end(&self) {
        self.outputs().iter().for_each(|output| output.tell_end());
        self.inputs().iter().for_each(|input| input.tell_end());
    }
}

/// Keeps the counts of an entry in its place, and nothing else of it.
fn end<E, L>(slots: &mut [Slot<E, L>], entry: &Arc<E>, ledger: L) {
    let slot = slots.iter_mut().find(|slot| slot.there().is_some_and(|there| Arc::ptr_eq(there, entry)));
    if let Some(slot) = slot {
        *slot = Slot::Ended(ledger);
    }
}

/// No panic is possible while a lock is held.
const UNPOISONED: &str = "no panic while it is held";
