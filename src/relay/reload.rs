//! From the present configuration to another one, while frames flow.
//!
//! Inputs and outputs are told apart by their names. What is the same is not touched. Everything that can fail comes before
//! anything changes, so a configuration with one fault changes nothing.

use std::mem::discriminant;
use std::sync::Arc;

use crate::input::InputConfig;
use crate::output::Buffer;
use crate::output::OutputConfig;
use crate::relay::Relay;
use crate::relay::RelayConfig;
use crate::relay::binding::all_addresses;
use crate::relay::binding::at_inputs;
use crate::relay::binding::at_outputs;
use crate::relay::certificates::CertificateOwner;
use crate::relay::certificates::Certificates;
use crate::relay::error::ChangeError;
use crate::relay::inputs;
use crate::relay::inputs::Doors;
use crate::relay::inputs::NewListener;
use crate::relay::inputs::RunningListener;
use crate::relay::sockets::Owner;
use crate::spool::Folder;
use crate::transport::Address;
use crate::transport::passed::PassedListeners;
use crate::transport::tls::ReloadableClient;
use crate::transport::tls::ReloadableServer;
use crate::transport::tls::TlsFaults;

/// What a reload does to one output of the configuration.
#[derive(Debug)]
enum Step {
    Keep,
    /// At once, or by a new connection.
    Reconfigure,
    /// The former one drains, the new one begins.
    Replace,
    Begin,
}

/// A change to another configuration, when nothing can fail any more: see [`Planner::plan`].
#[derive(Debug)]
pub struct Plan {
    present: RelayConfig,
    new: RelayConfig,
    outputs: Vec<(OutputConfig, Step)>,
    listeners: Vec<(String, NewListener)>,
    output_listeners: Vec<(String, NewListener)>,
    // Whether certificates were read again, whose files have changed.
    was_read: bool,
    // In use until the inputs and outputs have them.
    _servers: Vec<Option<Arc<ReloadableServer>>>,
    _clients: Vec<Option<Arc<ReloadableClient>>>,
}

impl Plan {
    /// Whether the configuration is the present one.
    pub fn is_empty(&self) -> bool {
        self.present == self.new
    }

    /// Whether certificates were read again, because their files have changed: they are in use already.
    pub fn has_read_certificates(&self) -> bool {
        self.was_read
    }
}

/// Makes a [`Plan`], on any thread: to look up a name to listen on may take long, and the relay is needed meanwhile.
#[derive(Debug)]
pub struct Planner {
    present: RelayConfig,
    // Where each input listens, as it was configured.
    listening: Vec<(String, Address)>,
    // Where each output listens, likewise.
    serving: Vec<(String, Address)>,
    workers: usize,
    passed: Arc<PassedListeners>,
    certificates: Arc<Certificates>,
}

impl Planner {
    /// The configuration that the relay runs with.
    pub fn present(&self) -> &RelayConfig {
        &self.present
    }

    /// Does whatever can fail: checks, reads certificates (again, too, where their files have changed), looks up names, binds.
    ///
    /// # Errors
    /// Everything that keeps the configuration from being taken. Nothing has changed then, except certificates that could be read.
    pub fn plan(self, new: RelayConfig) -> Result<Plan, Vec<ChangeError>> {
        let present = &self.present;
        let fault = |(owner, faults): (CertificateOwner, TlsFaults)| ChangeError::Tls {
            owner: owner.to_string(),
            faults,
        };
        let was_read =
            self.certificates.look().map_err(|faults| faults.into_iter().map(fault).collect::<Vec<_>>())?;
        let mut faults = Vec::new();
        let mut fixed = |key: &str| faults.push(ChangeError::Fixed { key: key.to_owned(), output: None });
        if present.workers != new.workers {
            fixed("workers");
        }
        if present.backend != new.backend {
            fixed("backend");
        }
        let mut outputs = Vec::new();
        for output in &new.outputs {
            if let Err(error) = output.validate() {
                faults.push(ChangeError::Output { output: output.name.clone(), error });
            }
            let step = match present.outputs.iter().find(|present| present.name == output.name) {
                Some(present) => step(present, output),
                None => spool_is_free(output, &present.outputs).map(|()| Step::Begin),
            };
            match step {
                Ok(step) => outputs.push((output.clone(), step)),
                Err(fault) => faults.push(fault),
            }
        }
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        for input in &new.inputs {
            self.certificates
                .read_input(input)
                .map_or_else(|fault| faults.push(fault), |server| servers.push(server));
        }
        for output in &new.outputs {
            self.certificates
                .read_output(output)
                .map_or_else(|fault| faults.push(fault), |client| clients.push(client));
        }
        // Listening is free of consequences until somebody accepts, but it cannot be undone unseen: last.
        if !faults.is_empty() {
            return Err(faults);
        }
        let going = self.going(&new.inputs, &outputs).collect::<Vec<_>>();
        let all = all_addresses(&new);
        let at_inputs = at_inputs(&new.inputs).filter(|at| !self.listens_on(at.owner.name(), at.address));
        let at_outputs =
            at_outputs(&new.outputs).filter(|at| !self.serves_at(at.owner.name(), at.address, &outputs));
        let from = (&*self.passed, self.workers);
        let bound = inputs::bind(at_inputs, &all, &going, from)
            .and_then(|inputs| Ok((inputs, inputs::bind(at_outputs, &all, &going, from)?)));
        match bound {
            Ok((listeners, output_listeners)) => Ok(Plan {
                present: self.present,
                new,
                outputs,
                listeners,
                output_listeners,
                was_read,
                _servers: servers,
                _clients: clients,
            }),
            Err(error) => Err(vec![ChangeError::Listen(error)]),
        }
    }

    /// Where inputs and outputs listen no more, or others do.
    fn going<'a>(
        &'a self,
        inputs: &'a [InputConfig],
        outputs: &'a [(OutputConfig, Step)],
    ) -> impl Iterator<Item = &'a Address> {
        let of_inputs = self.listening.iter().filter(|(input, address)| goes(inputs, input, address));
        let of_outputs =
            self.serving.iter().filter(|(output, address)| stops_serving(outputs, output, address));
        of_inputs.chain(of_outputs).map(|(_, address)| address)
    }

    /// Whether this input listens there, or another one does that leaves the address to it. Each port that the kernel chooses is
    /// another one.
    fn listens_on(&self, input: &str, address: &Address) -> bool {
        let own = |other: &str| other == input || !address.has_any_port();
        self.listening.iter().any(|(other, configured)| own(other) && configured == address)
    }

    /// Whether this output listens there, or another one does that leaves the address to it.
    fn serves_at(&self, output: &str, address: &Address, steps: &[(OutputConfig, Step)]) -> bool {
        let mut there = self.serving.iter().filter(|(_, configured)| configured == address);
        there.any(|(other, _)| {
            let goes = stops_serving(steps, other, address);
            other == output && !goes || !address.has_any_port() && goes
        })
    }
}

/// Whether this input does not listen there any more, in a configuration with these inputs.
fn goes(new: &[InputConfig], input: &str, configured: &Address) -> bool {
    new.iter().find(|new| new.name == input).is_none_or(|new| !new.listen.contains(configured))
}

/// Whether this output goes, is replaced, or listens there no more.
fn stops_serving(steps: &[(OutputConfig, Step)], output: &str, configured: &Address) -> bool {
    let stays = |(new, step): &&(OutputConfig, Step)| {
        new.name == output && matches!(step, Step::Keep | Step::Reconfigure)
    };
    steps.iter().find(stays).is_none_or(|(new, _)| !new.listen().contains(configured))
}

impl Relay {
    /// Goes on with another configuration. Certificates whose files have changed are read again, too. Returns whether anything is
    /// other than before. Blocks while names are looked up: a program that has to answer meanwhile uses [`Relay::planner`] and
    /// [`Relay::carry_out`].
    ///
    /// # Errors
    /// Everything that keeps the configuration from being taken. Nothing has changed then, except certificates that could be read.
    pub fn reload(&mut self, config: RelayConfig) -> Result<bool, Vec<ChangeError>> {
        let plan = self.planner().plan(config)?;
        let changes = !plan.is_empty() || plan.has_read_certificates();
        self.carry_out(plan).map_err(|error| vec![error])?;
        Ok(changes)
    }

    /// What a plan for another configuration begins with.
    pub fn planner(&self) -> Planner {
        fn addresses(name: &str, listeners: &[RunningListener]) -> Vec<(String, Address)> {
            listeners.iter().map(|listener| (name.to_owned(), listener.configured.clone())).collect()
        }
        let of_inputs = self.inputs.iter().flat_map(|input| addresses(&input.config.name, &input.listeners));
        let of_outputs =
            self.outputs.iter().flat_map(|output| addresses(&output.config.name, &output.listeners));
        Planner {
            present: self.config(),
            listening: of_inputs.collect(),
            serving: of_outputs.collect(),
            workers: self.workers.count(),
            passed: Arc::clone(&self.passed),
            certificates: Arc::clone(&self.around.certificates),
        }
    }

    /// Goes on with the configuration of the plan.
    ///
    /// # Errors
    /// [`ChangeError::Outdated`]: the relay has changed since the plan was begun, and stays as it is. The system has no thread, or a
    /// worker does not answer.
    pub fn carry_out(&mut self, plan: Plan) -> Result<(), ChangeError> {
        if plan.is_empty() {
            return Ok(());
        }
        if plan.present != self.config() {
            return Err(ChangeError::Outdated);
        }
        self.around.drain_timeout = plan.new.drain_timeout;
        self.set_store(plan.new.descriptor_store);
        self.change_outputs(plan.outputs, plan.output_listeners)?;
        self.change_inputs(plan.new.inputs, plan.listeners)?;
        self.keep_listeners();
        Ok(())
    }

    /// The configuration that the relay runs with.
    pub fn config(&self) -> RelayConfig {
        RelayConfig {
            workers: self.asked_workers,
            backend: self.asked_backend,
            descriptor_store: self.asked_store,
            drain_timeout: self.around.drain_timeout,
            inputs: self.inputs.iter().map(|input| input.config.clone()).collect(),
            outputs: self.outputs.iter().map(|output| output.config.clone()).collect(),
        }
    }

    /// The listeners that this configuration does not have, or has at another input.
    fn going<'a>(&'a self, new: &'a [InputConfig]) -> impl Iterator<Item = (&'a str, &'a RunningListener)> {
        self.inputs.iter().flat_map(move |input| {
            let name = &input.config.name[..];
            let goes = move |listener: &&RunningListener| goes(new, name, &listener.configured);
            input.listeners.iter().filter(goes).map(move |listener| (name, listener))
        })
    }

    /// The listeners of outputs that go, or that listen there no more.
    fn going_for_subscribers<'a>(
        &'a self,
        steps: &'a [(OutputConfig, Step)],
    ) -> impl Iterator<Item = &'a RunningListener> {
        self.outputs.iter().flat_map(move |output| {
            let name = &output.config.name;
            output.listeners.iter().filter(move |listener| stops_serving(steps, name, &listener.configured))
        })
    }

    fn change_outputs(
        &mut self,
        outputs: Vec<(OutputConfig, Step)>,
        mut listeners: Vec<(String, NewListener)>,
    ) -> Result<(), ChangeError> {
        // A listener that moves to another output, or to one that replaces its own, is not bound again.
        for listener in self.going_for_subscribers(&outputs).filter(|going| !going.configured.has_any_port())
        {
            let to = outputs.iter().find(|(output, _)| output.listen().contains(&listener.configured));
            if let Some((to, _)) = to {
                let moved = listener.move_to(Owner::Output(&to.name), &self.sockets, self.workers.count())?;
                listeners.push((to.name.clone(), moved));
            }
        }
        let moved: Vec<_> = listeners.iter().map(|(_, new)| new.address().clone()).collect();
        let goes = |name: &str| {
            let step = outputs.iter().find(|(output, _)| output.name == name).map(|(_, step)| step);
            matches!(step, None | Some(Step::Replace | Step::Begin))
        };
        let gone: Vec<_> = self.outputs.extract_if(.., |output| goes(&output.config.name)).collect();
        let order: Vec<_> = outputs.iter().map(|(output, _)| output.name.clone()).collect();
        let (mut new, mut closed) = (Vec::new(), Vec::new());
        for (config, step) in outputs {
            match step {
                Step::Keep => {}
                Step::Reconfigure => {
                    let output = self.outputs.iter_mut().find(|output| output.config.name == config.name);
                    if let Some(output) = output {
                        let (sockets, own) = (&mut self.sockets, &self.around.own);
                        let mut doors = Doors { workers: &self.workers, own, sockets };
                        closed.extend(output.close_listeners(Some(&config), &moved, &mut doors));
                        output.set_socket_files(&config, doors.sockets)?;
                        output.reconfigure(config, &self.around);
                    }
                }
                Step::Replace | Step::Begin => new.push(config),
            }
        }
        self.begin_outputs(new)?;
        self.outputs.sort_by_key(|output| order.iter().position(|name| *name == output.config.name));
        self.end_ways(closed.iter().map(RunningListener::way).collect())?;
        gone.into_iter().try_for_each(|output| self.end_output(output, &moved))?;
        Ok(self.begin_output_listeners(listeners)?)
    }

    fn change_inputs(
        &mut self,
        inputs: Vec<InputConfig>,
        mut listeners: Vec<(String, NewListener)>,
    ) -> Result<(), ChangeError> {
        // A listener that moves to another input is not bound again.
        for (_, listener) in self.going(&inputs).filter(|(_, listener)| !listener.configured.has_any_port()) {
            let to = inputs.iter().find(|input| input.listen.contains(&listener.configured));
            if let Some(to) = to {
                let moved = listener.move_to(Owner::Input(&to.name), &self.sockets, self.workers.count())?;
                listeners.push((to.name.clone(), moved));
            }
        }
        let order: Vec<_> = inputs.iter().map(|input| input.name.clone()).collect();
        let gone: Vec<_> = self.inputs.extract_if(.., |input| !order.contains(&input.config.name)).collect();
        for config in inputs {
            let tls = self.around.certificates.read_input(&config)?;
            match self.inputs.iter_mut().find(|input| input.config.name == config.name) {
                Some(input) if input.config == config => {}
                Some(input) => {
                    let mut doors =
                        Doors { workers: &self.workers, own: &self.around.own, sockets: &mut self.sockets };
                    let moved: Vec<_> = listeners.iter().map(|(_, new)| new.address().clone()).collect();
                    let closed = input.reconfigure(config, tls, &moved, &mut doors)?;
                    self.end_ways(closed)?;
                }
                None => self.begin_input(config)?,
            }
        }
        for input in gone {
            let moved: Vec<_> = listeners.iter().map(|(_, new)| new.address().clone()).collect();
            self.end_input(input, &moved)?;
        }
        self.inputs.sort_by_key(|input| order.iter().position(|name| *name == input.config.name));
        for (input, listener) in &listeners {
            self.around.own.add(input, listener.bound());
        }
        self.begin_listeners(listeners)?;
        self.begin_dials()?;
        Ok(())
    }
}

/// What is to be done to an output that is there.
fn step(present: &OutputConfig, new: &OutputConfig) -> Result<Step, ChangeError> {
    if present == new {
        return Ok(Step::Keep);
    }
    let fixed = |key: &str| Err(ChangeError::Fixed { key: key.to_owned(), output: Some(new.name.clone()) });
    let (old_buffer, new_buffer) = (&present.buffer, &new.buffer);
    if discriminant(old_buffer) != discriminant(new_buffer) {
        return fixed("buffer");
    }
    if old_buffer.lanes() != new_buffer.lanes() {
        return fixed("connections");
    }
    if let (Some(old), Some(new)) = (old_buffer.spool(), new_buffer.spool()) {
        if old.folder != new.folder {
            return fixed("spool.dir");
        }
        if old.config != new.config {
            return fixed("spool");
        }
    }
    // What waits is of the former type.
    let other_type = present.content_type != new.content_type;
    if !other_type && discriminant(&present.to) == discriminant(&new.to) {
        return Ok(Step::Reconfigure);
    }
    match new_buffer {
        Buffer::Memory { .. } => Ok(Step::Replace),
        _ if other_type => fixed("content_type"),
        _ => fixed("to"),
    }
}

/// Whether the spool of a new output can be had. One that an output of ours has, or had, is waited for.
fn spool_is_free(output: &OutputConfig, present: &[OutputConfig]) -> Result<(), ChangeError> {
    let Some(spool) = output.buffer.spool() else { return Ok(()) };
    let ours = |output: &OutputConfig| {
        output
            .buffer
            .spool()
            .is_some_and(|ours| Folder::place_of(&ours.folder) == Folder::place_of(&spool.folder))
    };
    if present.iter().any(ours) {
        return Ok(());
    }
    Folder::probe(&spool.folder)
        .map(drop)
        .map_err(|error| ChangeError::Spool { output: output.name.clone(), error })
}
