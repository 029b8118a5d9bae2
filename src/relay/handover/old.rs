//! The old process: it gives what it has to the new one, and goes on where that fails.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::unbounded_channel;
use tracing::warn;

use crate::input::handing::Offer;
use crate::lifecycle::Scope;
use crate::observability::Ledger;
use crate::relay::FORCE;
use crate::relay::INPUTS_PART;
use crate::relay::LANES_PART;
use crate::relay::Relay;
use crate::relay::dials::RunningDial;
use crate::relay::dials::WayIn;
use crate::relay::handover::ANSWER_TIME;
use crate::relay::handover::BEGIN_TIME;
use crate::relay::handover::HandoverError;
use crate::relay::handover::Successor;
use crate::relay::handover::hear;
use crate::relay::handover::message::ConnectionRecord;
use crate::relay::handover::message::Message;
use crate::relay::handover::say;
use crate::relay::handover::say_with;
use crate::relay::handover::unexpected;
use crate::relay::inputs::RunningInput;
use crate::relay::inputs::RunningListener;
use crate::relay::output_entry::OutputEntry;
use crate::relay::worker::Order;
use crate::transport::Address;
use crate::transport::passing::Passing;

impl Relay {
    /// Hands listeners and connections over to a new process, which has been started. When this returns, the new process reads
    /// every connection that can pass; [`Relay::let_go`] does the rest. Takes 15 s at most.
    ///
    /// # Errors
    /// The new process has not taken over. This one goes on as before, with every connection that the other had not taken.
    pub fn hand_over(&mut self, to: &Successor) -> Result<(), HandoverError> {
        let by = Instant::now() + BEGIN_TIME;
        let left = || by.saturating_duration_since(Instant::now());
        // What a former process hands over is taken first.
        if !self.wait_until_taken_over(self.around.drain_timeout.min(TAKEN_OVER_TIME)) {
            let words =
                "this process is still taking over from the one before it: try again when that has ended";
            return Err(std::io::Error::new(std::io::ErrorKind::ResourceBusy, words).into());
        }
        let heard = hear(&to.passing, left())?;
        if heard.message != Message::Hello {
            return Err(unexpected(&heard.message));
        }
        self.offer(to)?;
        let heard = hear(&to.passing, left())?;
        if heard.message != Message::Accepting {
            return Err(unexpected(&heard.message));
        }
        let given = self.give_connections(to);
        if given.is_err() {
            self.go_on();
        }
        given
    }

    /// Ends what the new process has taken over: gives it each output when its last frame is through, and the ledger. Takes
    /// `drain_timeout` at most. The relay is to be dropped then.
    ///
    /// # Errors
    /// The new process has ended meanwhile. This one serves again: it listens, and its outputs begin anew.
    pub fn let_go(&mut self, to: &Successor) -> Result<Ledger, HandoverError> {
        match self.end_for(to) {
            Ok(ledger) => {
                self.sockets.leave();
                Ok(ledger)
            }
            Err(error) => {
                self.come_back();
                Err(error)
            }
        }
    }

    fn offer(&self, to: &Successor) -> Result<(), HandoverError> {
        let ledger = self.ledger();
        // The new process finds these among those that the service manager has passed.
        let listeners = self.all_listeners();
        let listeners = listeners.filter(|listener| !matches!(listener.configured, Address::Systemd(_)));
        let mut sockets = Vec::new();
        for listener in listeners {
            for socket in listener.sockets(&self.sockets)? {
                sockets.push((listener.record(), socket));
            }
        }
        let offer = Message::Offer {
            connections: ledger.inputs.iter().map(|input| input.connections_open).sum(),
            listeners: (sockets.len() + self.passed.all().len()) as u64,
            generation: self.generation,
            started_at: self.started_at,
            ledger: Box::new(ledger),
        };
        say(&to.passing, &offer)?;
        for group in sockets.chunks(Passing::DESCRIPTORS_MAX) {
            let listeners = group.iter().map(|(record, _)| record.clone()).collect();
            let descriptors: Vec<_> = group.iter().map(|(_, socket)| socket.as_fd()).collect();
            say_with(&to.passing, &Message::Listeners { listeners }, &[], &descriptors)?;
        }
        for group in self.passed.all().chunks(Passing::DESCRIPTORS_MAX) {
            let names = group.iter().map(|(name, _)| name.clone()).collect();
            let descriptors: Vec<_> = group.iter().map(|(_, socket)| socket.as_fd()).collect();
            say_with(&to.passing, &Message::Passed { names }, &[], &descriptors)?;
        }
        say(&to.passing, &Message::Listed)
    }

    /// Stops accepting and dialling, and gives away one connection after the other.
    fn give_connections(&mut self, to: &Successor) -> Result<(), HandoverError> {
        let dials = || self.inputs.iter().flat_map(|input| &input.dials);
        self.all_listeners().for_each(RunningListener::stop_accepting);
        dials().for_each(RunningDial::stop_dialling);
        let by = Instant::now() + ACCEPT_TIME;
        let have_stopped = || {
            self.all_listeners().all(RunningListener::has_stopped_accepting)
                && dials().all(RunningDial::has_stopped_dialling)
        };
        while Instant::now() < by && !have_stopped() {
            thread::sleep(LOOK);
        }
        let (offers, mut offered) = unbounded_channel();
        let all = 0..self.workers.count();
        self.workers.order(all.clone().map(|worker| (worker, Order::Offer(Some(offers.clone())))))?;
        drop(offers);
        let scopes: Vec<_> = self.ways().map(|way| way.scope).collect();
        let given = give_offered(to, &mut offered, &scopes);
        // Before what is offered now is turned down: nobody offers it once more.
        self.workers.order(all.map(|worker| (worker, Order::Offer(None))))?;
        given?;
        say(&to.passing, &Message::AllConnections)
    }

    pub(super) fn ways(&self) -> impl Iterator<Item = WayIn> {
        self.inputs.iter().flat_map(RunningInput::ways)
    }

    /// The new process did not take over: accepts and dials again. Connections go on by themselves.
    fn go_on(&mut self) {
        for output in &mut self.outputs {
            if let Err(error) = output.accept_again(&self.sockets, &self.workers) {
                warn!(output = output.config.name, "the output cannot listen again: {error}");
            }
        }
        for input in &mut self.inputs {
            if let Err(error) = input.accept_again(&self.sockets, &self.workers) {
                warn!(input = input.config.name, "the input cannot listen again: {error}");
            }
            if let Err(error) = input.dial_again(&self.workers) {
                warn!(input = input.config.name, "the input cannot dial again: {error}");
            }
        }
    }

    fn end_for(&mut self, to: &Successor) -> Result<Ledger, HandoverError> {
        let (began, timeout) = (Instant::now(), self.around.drain_timeout);
        let scopes: Vec<_> = self.ways().map(|way| way.scope).collect();
        // Connections that could not pass.
        scopes.iter().for_each(Scope::drain);
        let by = began + timeout.mul_f64(INPUTS_PART);
        for scope in &scopes {
            scope.wait_for_end(by);
        }
        scopes.iter().for_each(Scope::end);
        for output in &self.outputs {
            output.entry.scope.drain();
            output.entry.close();
        }
        // Those that are being removed end by themselves, and count until then.
        let removed =
            |entry: &Arc<OutputEntry>| !self.outputs.iter().any(|own| Arc::ptr_eq(&own.entry, entry));
        let mut left = self.accounts.outputs();
        let (mut lanes_ended, mut over) = (false, false);
        while !left.is_empty() {
            let now = Instant::now();
            if !lanes_ended && now >= began + timeout.mul_f64(LANES_PART) {
                lanes_ended = true;
                left.iter().for_each(|entry| entry.end_lanes());
            }
            if !over && now >= began + timeout {
                over = true;
                left.iter().for_each(|entry| entry.scope.end());
            }
            let given_up = now >= began + timeout + FORCE;
            let there = self.accounts.outputs();
            let has_ended = |entry: &mut Arc<OutputEntry>| {
                given_up
                    || if removed(entry) {
                        !there.iter().any(|other| Arc::ptr_eq(other, entry))
                    } else {
                        entry.scope.has_ended()
                    }
            };
            let ended: Vec<_> = left.extract_if(.., has_ended).collect();
            for entry in ended {
                entry.abandon();
                if left.iter().any(|other| other.name == entry.name) {
                    continue;
                }
                // With what former processes of the chain had counted, and former outputs of this name.
                let ledger = self.ledger().outputs.into_iter().find(|output| output.name == entry.name);
                if let Some(ledger) = ledger.map(Box::new) {
                    say(&to.passing, &Message::OutputFree { ledger })?;
                }
            }
            if !to.passing.is_open() {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            thread::sleep(LOOK);
        }
        let ledger = self.ledger();
        say(&to.passing, &Message::Ended { inputs: ledger.inputs.clone() })?;
        Ok(ledger)
    }

    /// The new process has ended while this one ended: outputs begin again, and every listener.
    fn come_back(&mut self) {
        let ended: Vec<_> = self.outputs.drain(..).collect();
        let configs = ended.iter().map(|output| output.config.clone()).collect();
        for output in &ended {
            output.entry.scope.end();
            output.entry.scope.wait_for_end(Instant::now() + FORCE);
            output.entry.abandon();
            self.accounts.end_output(&output.entry);
        }
        if let Err(error) =
            self.begin_outputs(configs).and_then(|()| self.listen_for_subscribers_again(&ended))
        {
            warn!("the outputs cannot begin again: {error}");
        }
        for input in &mut self.inputs {
            if let Err(error) = input.listen_again(&self.sockets, &self.workers) {
                warn!(input = input.config.name, "the input cannot listen again: {error}");
            }
        }
    }
}

/// Gives away what is offered, in groups, until every connection of these scopes has ended here, or those that are left do not
/// come to a point where they can pass.
fn give_offered(
    to: &Successor,
    offered: &mut UnboundedReceiver<Offer>,
    scopes: &[Scope],
) -> Result<(), HandoverError> {
    let mut last = Instant::now();
    loop {
        let mut group = Vec::new();
        let mut len = 0;
        while group.len() < Passing::DESCRIPTORS_MAX
            && len < GROUP_LEN_MAX
            && let Ok(offer) = offered.try_recv()
        {
            len += offer.connection.received.len();
            group.push(offer);
        }
        if !group.is_empty() {
            give(to, group)?;
            last = Instant::now();
        } else if last.elapsed() >= OFFER_TIME || scopes.iter().all(Scope::has_ended) {
            return Ok(());
        } else {
            thread::sleep(LOOK);
        }
    }
}

fn give(to: &Successor, group: Vec<Offer>) -> Result<(), HandoverError> {
    let connections = group.iter().map(|offer| ConnectionRecord::of(&offer.connection)).collect();
    let behind: Vec<_> = group.iter().map(|offer| offer.connection.received.clone()).collect();
    let descriptors: Vec<_> = group.iter().map(|offer| offer.socket.as_fd()).collect();
    say_with(&to.passing, &Message::Connections { connections }, &behind, &descriptors)?;
    let heard = hear(&to.passing, ANSWER_TIME)?;
    if heard.message != Message::Reading {
        return Err(unexpected(&heard.message));
    }
    for offer in group {
        // A connection that has ended meanwhile has ended for both.
        let _ = offer.verdict.send(true);
    }
    Ok(())
}

/// What the former process of this chain still has is waited for so long.
const TAKEN_OVER_TIME: Duration = Duration::from_secs(5);
/// What waits in backlogs is accepted within this time.
const ACCEPT_TIME: Duration = Duration::from_millis(1500);
/// A connection whose frames an output does not take for so long stays.
const OFFER_TIME: Duration = Duration::from_secs(2);
/// Bytes of one group.
const GROUP_LEN_MAX: usize = 16 << 20;
const LOOK: Duration = Duration::from_micros(500);
