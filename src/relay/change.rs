//! Inputs and outputs that come and go while frames flow.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::input::InputConfig;
use crate::output::OutputConfig;
use crate::relay::Relay;
use crate::relay::descriptors;
use crate::relay::dials::WayIn;
use crate::relay::error::ChangeError;
use crate::relay::input_entry::InputId;
use crate::relay::inputs;
use crate::relay::inputs::Doors;
use crate::relay::inputs::ListenAt;
use crate::relay::inputs::NewListener;
use crate::relay::inputs::RunningInput;
use crate::relay::inputs::RunningListener;
use crate::relay::outputs;
use crate::relay::outputs::NewOutput;
use crate::relay::outputs::OutputParts;
use crate::relay::outputs::RunningOutput;
use crate::relay::removal;
use crate::relay::sockets::Owner;
use crate::relay::worker::Order;
use crate::transport::Address;

impl Relay {
    /// Adds an output: it gets every frame of its content type that arrives from now on.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed then, unless the system has no thread.
    pub fn add_output(&mut self, config: OutputConfig) -> Result<(), ChangeError> {
        config.validate().map_err(|error| ChangeError::Output { output: config.name.clone(), error })?;
        let _read = self.around.certificates.read_output(&config)?;
        if self.outputs.iter().any(|output| output.config.name == config.name) {
            return Err(ChangeError::NameTaken(config.name));
        }
        let others = self.listened_at(&config);
        let bound =
            inputs::bind(ListenAt::output(&config), &others, &[], (&self.passed, self.workers.count()))
                .map_err(ChangeError::Listen)?;
        self.begin_outputs(vec![config])?;
        self.begin_output_listeners(bound)?;
        Ok(())
    }

    /// Every address that is listened at, those of an output that comes included.
    fn listened_at<'a>(&'a self, new: &'a OutputConfig) -> Vec<&'a Address> {
        let inputs = self.inputs.iter().flat_map(|input| &input.config.listen);
        let outputs = self.outputs.iter().flat_map(|output| output.config.listen());
        inputs.chain(outputs).chain(new.listen()).collect()
    }

    /// Removes an output. It gets no frame that arrives from now on, and ends by itself: it writes what waits, STOP, and waits
    /// for FINISH, within `drain_timeout`. What is left then is dropped, reason `removed`; its spool stays on disk. Does not wait
    /// for that. The output stays in the ledger.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn remove_output(&mut self, name: &str) -> Result<(), ChangeError> {
        let place = self.outputs.iter().position(|output| output.config.name == name);
        let place = place.ok_or_else(|| ChangeError::Unknown(name.to_owned()))?;
        let output = self.outputs.remove(place);
        self.publish()?;
        self.end_output(output, &[])?;
        self.list_listeners();
        Ok(())
    }

    /// Adds an input, listens, and dials.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed then, unless the system has no thread.
    pub fn add_input(&mut self, config: InputConfig) -> Result<(), ChangeError> {
        if self.inputs.iter().any(|input| input.config.name == config.name) {
            return Err(ChangeError::NameTaken(config.name));
        }
        let _read = self.around.certificates.read_input(&config)?;
        let others = self.inputs.iter().flat_map(|input| &input.config.listen).chain(&config.listen);
        let others = others.chain(self.outputs.iter().flat_map(|output| output.config.listen()));
        let others = others.collect::<Vec<_>>();
        let addresses = config.listen.iter().map(|address| ListenAt::input(&config, address));
        let bound = inputs::bind(addresses, &others, &[], (&self.passed, self.workers.count()));
        let bound = bound.map_err(ChangeError::Listen)?;
        self.begin_input(config)?;
        for (input, listener) in &bound {
            self.around.own.add(input, listener.bound());
        }
        self.begin_listeners(bound)?;
        self.begin_dials()?;
        Ok(())
    }

    /// Removes an input: it listens and dials no more. Its connections have `drain_timeout` for their end, and are closed then. Does
    /// not wait for that. The input stays in the ledger.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn remove_input(&mut self, name: &str) -> Result<(), ChangeError> {
        let place = self.inputs.iter().position(|input| input.config.name == name);
        let place = place.ok_or_else(|| ChangeError::Unknown(name.to_owned()))?;
        let input = self.inputs.remove(place);
        self.end_input(input, &[])?;
        self.list_listeners();
        Ok(())
    }

    /// Lets an output end that no worker feeds any more. Another one listens at the addresses that have `moved`.
    pub(super) fn end_output(
        &mut self,
        mut output: RunningOutput,
        moved: &[Address],
    ) -> Result<(), ChangeError> {
        let own = Arc::clone(&self.around.own);
        let mut doors = Doors { workers: &self.workers, own: &own, sockets: &mut self.sockets };
        let listeners = output.close_listeners(None, moved, &mut doors);
        removal::of_output(&output.entry, &self.accounts, self.around.drain_timeout)?;
        listeners.iter().for_each(|listener| listener.log.end());
        Ok(())
    }

    /// Lets an input end. Another one listens at the addresses that have `moved`.
    pub(super) fn end_input(
        &mut self,
        mut input: RunningInput,
        moved: &[Address],
    ) -> Result<(), ChangeError> {
        let mut doors = Doors { workers: &self.workers, own: &self.around.own, sockets: &mut self.sockets };
        input.close(moved, &mut doors);
        let scopes = vec![input.entry.scope.clone()];
        let (workers, accounts) = (Arc::clone(&self.workers), Arc::clone(&self.accounts));
        let then = move || {
            input.ways().for_each(|way| way.log.end());
            // A worker that does not answer keeps what it has of the input.
            let _ = input.forget(&workers);
            accounts.end_input(&input.entry);
        };
        removal::of_scopes(scopes, self.around.drain_timeout, then)?;
        Ok(())
    }

    /// Lets the connections end that came in on these ways.
    pub(super) fn end_ways(&self, ways: Vec<WayIn>) -> Result<(), ChangeError> {
        if ways.is_empty() {
            return Ok(());
        }
        let scopes = ways.iter().map(|way| way.scope.clone()).collect();
        let then = move || ways.iter().for_each(|way| way.log.end());
        removal::of_scopes(scopes, self.around.drain_timeout, then)?;
        Ok(())
    }

    /// Makes the input known to the workers and to the ledger.
    pub(super) fn begin_input(&mut self, config: InputConfig) -> io::Result<()> {
        let id = InputId(self.inputs_begun);
        self.inputs_begun += 1;
        // They were read before, and are in use.
        let tls = self.around.certificates.read_input(&config).map_err(io::Error::other)?;
        let input = RunningInput::new(id, config, tls, self.workers.count(), &self.scopes.inputs);
        input.tell(&self.workers)?;
        self.accounts.add_input(Arc::clone(&input.entry));
        self.inputs.push(input);
        Ok(())
    }

    /// Starts these listeners, each for the input of this name.
    pub(super) fn begin_listeners(&mut self, bound: Vec<(String, NewListener)>) -> io::Result<()> {
        self.keep_descriptors();
        let mut doors = Doors { workers: &self.workers, own: &self.around.own, sockets: &mut self.sockets };
        for (name, listener) in bound {
            if let Some(input) = self.inputs.iter_mut().find(|input| input.config.name == name) {
                input.listen(listener, &mut doors)?;
            }
        }
        self.list_listeners();
        Ok(())
    }

    /// Starts these listeners, each for the output of this name.
    pub(super) fn begin_output_listeners(&mut self, bound: Vec<(String, NewListener)>) -> io::Result<()> {
        self.keep_descriptors();
        let own = Arc::clone(&self.around.own);
        let mut doors = Doors { workers: &self.workers, own: &own, sockets: &mut self.sockets };
        for (name, listener) in bound {
            if let Some(output) = self.outputs.iter_mut().find(|output| output.config.name == name) {
                own.add_output(&name, listener.bound());
                output.listen(listener, &mut doors)?;
            }
        }
        self.list_listeners();
        Ok(())
    }

    /// Listens for subscribers where these outputs did, which have ended: others of the same names have taken their place.
    pub(super) fn listen_for_subscribers_again(&mut self, ended: &[RunningOutput]) -> io::Result<()> {
        let mut listeners = Vec::new();
        for output in ended {
            let name = &output.config.name;
            for listener in &output.listeners {
                let moved = listener.move_to(Owner::Output(name), &self.sockets, self.workers.count())?;
                listeners.push((name.clone(), moved));
            }
        }
        self.begin_output_listeners(listeners)
    }

    /// The listeners of inputs, and those of outputs.
    pub(super) fn all_listeners(&self) -> impl Iterator<Item = &RunningListener> {
        let inputs = self.inputs.iter().flat_map(|input| &input.listeners);
        inputs.chain(self.outputs.iter().flat_map(|output| &output.listeners))
    }

    /// Lets workers dial what inputs are configured to dial, and nobody dials yet.
    pub(super) fn begin_dials(&mut self) -> io::Result<()> {
        let (own, workers) = (&self.around.own, &self.workers);
        let mut new = self.inputs.iter_mut().flat_map(|input| input.take_new_dials(own));
        new.try_for_each(|dial| dial.begin(workers))
    }

    /// Starts these outputs, and lets workers feed them.
    pub(super) fn begin_outputs(&mut self, configs: Vec<OutputConfig>) -> io::Result<()> {
        let new = self.make_outputs(configs).into_iter();
        let (new, parts): (Vec<_>, Vec<_>) = new.map(|new| (new.output, new.parts)).unzip();
        outputs::start(parts.into_iter(), &self.workers)?;
        self.outputs.extend(new);
        self.publish()
    }

    /// Lets workers feed these outputs, whose frames wait until they are started.
    pub(super) fn hold_outputs(
        &mut self,
        configs: Vec<OutputConfig>,
    ) -> io::Result<BTreeMap<String, OutputParts>> {
        let mut held = BTreeMap::new();
        for new in self.make_outputs(configs) {
            held.insert(new.output.config.name.clone(), new.parts);
            self.outputs.push(new.output);
        }
        self.publish()?;
        Ok(held)
    }

    fn make_outputs(&self, configs: Vec<OutputConfig>) -> Vec<NewOutput> {
        let mut new: Vec<NewOutput> = Vec::new();
        for config in configs {
            let owner = self.next_owner(&new);
            new.push(NewOutput::new(config, owner, &self.around));
        }
        // The ledger has an output before its first frame, and before its spool has told of an earlier run.
        new.iter().for_each(|new| self.accounts.add_output(Arc::clone(&new.output.entry)));
        new
    }

    /// Tells every worker which lanes it feeds from now on.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        self.keep_descriptors();
        let budgets = self.outputs.iter().flat_map(|output| &output.budgets).cloned().collect();
        let takers = self.outputs.iter().filter_map(|output| output.entry.subscribers.as_ref());
        let takers = takers.map(|(takers, _)| Arc::clone(takers)).collect();
        self.block_limit.set_queues(budgets, takers);
        let routes = |worker| self.outputs.iter().map(|output| output.inlets_of(worker).clone()).collect();
        self.workers.order((0..self.workers.count()).map(|worker| (worker, Order::Routes(routes(worker)))))
    }

    /// The worker that has the fewest outputs.
    fn next_owner(&self, new: &[NewOutput]) -> usize {
        let mut outputs = vec![0; self.workers.count()];
        let running = self.outputs.iter().map(RunningOutput::owner);
        running.chain(new.iter().map(|new| new.output.owner())).for_each(|owner| outputs[owner] += 1);
        (0..outputs.len()).min_by_key(|&worker| outputs[worker]).unwrap_or(0)
    }

    fn keep_descriptors(&self) {
        let inputs = self.inputs.iter().map(|input| &input.config);
        let outputs = self.outputs.iter().map(|output| &output.config);
        self.reserve.set(descriptors::reserve(inputs, outputs, self.workers.count()));
    }

    fn list_listeners(&mut self) {
        let listeners = self.inputs.iter().flat_map(|input| {
            input.listeners.iter().map(|listener| (input.config.name.clone(), listener.address().clone()))
        });
        self.listeners = listeners.collect();
        let listeners = self.outputs.iter().flat_map(|output| {
            output.listeners.iter().map(|listener| (output.config.name.clone(), listener.address().clone()))
        });
        self.output_listeners = listeners.collect();
    }
}
