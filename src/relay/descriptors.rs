//! Descriptors that are kept for outputs.
//!
//! A writer more is a writer that waits; an output that cannot reconnect, or a file that cannot be rotated, loses frames. So
//! connections of writers leave the last descriptors alone.

use crate::input::InputConfig;
use crate::output::Destination;
use crate::output::Lanes;
use crate::output::OutputConfig;

/// How many descriptors these outputs need at most, with what the listeners of these inputs hold back, and what they dial.
pub(crate) fn reserve<'a>(
    inputs: impl Iterator<Item = &'a InputConfig>,
    outputs: impl Iterator<Item = &'a OutputConfig>,
    workers: usize,
) -> usize {
    let outputs = outputs.map(|output| {
        let lanes = match output.buffer.lanes() {
            Lanes::One => 1,
            Lanes::PerWorker => workers,
        };
        let destination = match &output.to {
            Destination::File(_) => FILE,
            Destination::Streams(streams) => STREAM * streams.endpoints.addresses().count(),
        };
        lanes * destination + output.buffer.spool().map_or(0, |_| SPOOL)
    });
    // A listener that finds none but these has one connection in hand.
    let inputs = inputs.map(|input| input.listen.len() * workers + input.dial.len() * STREAM);
    outputs.sum::<usize>() + inputs.sum::<usize>() + BESIDE
}

/// A connection and the one that takes its place, each watched for writing with a descriptor of its own on epoll.
const STREAM: usize = 4;
/// A file and the one after it.
const FILE: usize = 2;
/// The folder, its cursor, the segments that are written, read and removed.
const SPOOL: usize = 6;
/// Looking up a name, the summary, binding a path again.
const BESIDE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Endpoints;
    use crate::output::StreamsConfig;

    #[test]
    fn every_output_has_its_part() {
        let inputs = [InputConfig::default()];
        assert_eq!(reserve(inputs.iter(), [OutputConfig::default()].iter(), 4), 2 + 4 + 8);
        let collector = StreamsConfig::new(Endpoints::One("tcp://127.0.0.1:1".parse().unwrap()));
        let output = OutputConfig { to: Destination::Streams(collector), ..OutputConfig::default() };
        assert_eq!(reserve(inputs.iter(), [output, OutputConfig::default()].iter(), 1), 4 + 2 + 1 + 8);
    }
}
