//! Where a relay listens: what is bound before it begins, for inputs and for the subscribers of outputs.

use crate::input::InputConfig;
use crate::output::OutputConfig;
use crate::relay::config::RelayConfig;
use crate::relay::error::StartError;
use crate::relay::handover::Estate;
use crate::relay::inputs;
use crate::relay::inputs::ListenAt;
use crate::relay::inputs::NewListener;
use crate::transport::Address;
use crate::transport::passed::PassedListeners;

/// Listeners that are bound, each for the input or output of this name.
pub(crate) struct AllBound {
    pub(crate) inputs: Vec<(String, NewListener)>,
    pub(crate) outputs: Vec<(String, NewListener)>,
}

/// Where inputs listen.
pub(crate) fn at_inputs(inputs: &[InputConfig]) -> impl Iterator<Item = ListenAt<'_>> {
    inputs.iter().flat_map(|input| input.listen.iter().map(move |address| ListenAt::input(input, address)))
}

/// Where outputs listen.
pub(crate) fn at_outputs(outputs: &[OutputConfig]) -> impl Iterator<Item = ListenAt<'_>> {
    outputs.iter().flat_map(ListenAt::output)
}

/// Every address that is listened at.
pub(crate) fn all_addresses(config: &RelayConfig) -> Vec<&Address> {
    at_inputs(&config.inputs).chain(at_outputs(&config.outputs)).map(|at| at.address).collect()
}

/// Takes the listeners that the old process had, and binds the others.
pub(crate) fn take_and_bind(
    config: &RelayConfig,
    estate: &mut Estate,
    passed: &PassedListeners,
    workers: usize,
) -> Result<AllBound, StartError> {
    let all = all_addresses(config);
    let mut take = |wanted: Vec<ListenAt<'_>>| {
        let (mut taken, mut new) = (Vec::new(), Vec::new());
        for at in wanted {
            let listeners = estate.take_listeners(&at, workers).map_err(|source| at.fault(source))?;
            if listeners.is_empty() {
                new.push(at);
            }
            taken.extend(listeners.into_iter().map(|listener| (at.owner.name().to_owned(), listener)));
        }
        taken.extend(inputs::bind(new.into_iter(), &all, &[], (passed, workers))?);
        Ok(taken)
    };
    Ok(AllBound {
        inputs: take(at_inputs(&config.inputs).collect())?,
        outputs: take(at_outputs(&config.outputs).collect())?,
    })
}
