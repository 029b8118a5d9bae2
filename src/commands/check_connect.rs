//! `tapster check --connect`: whether the readers of the outputs are there, and the producers that inputs dial.

use std::time::Instant;

use tapster::input::InputConfig;
use tapster::observability::printable;
use tapster::output::Destination;
use tapster::output::OutputConfig;
use tapster::output::StreamsConfig;
use tapster::protocol::ContentType;
use tapster::transport::Address;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

use crate::commands::CommandError;
use crate::commands::check_producers::milliseconds;
use crate::commands::check_producers::producers;
use crate::commands::connection::Connection;
use crate::commands::tell::tell;

/// One reader of an output.
struct Reader {
    output: String,
    address: Address,
    streams: StreamsConfig,
    content_type: Option<ContentType>,
}

/// Connects to every reader, all of them at the same time, shakes hands, and ends the session with STOP: to the reader it is a
/// session without frames, which no reader complains of, while some do of a connection that ends before START. Connects to every
/// producer, and hears what it offers. Says what it finds, and returns what is wrong.
pub(crate) fn check_peers(
    inputs: &[InputConfig],
    outputs: &[OutputConfig],
) -> Result<Vec<String>, CommandError> {
    let failed = |error: std::io::Error| CommandError::Failed(error.to_string());
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let tasks = LocalSet::new();
    let readers: Vec<_> =
        outputs.iter().flat_map(readers).map(|reader| tasks.spawn_local(reader.check())).collect();
    let producers = inputs.iter().flat_map(producers);
    let producers: Vec<_> = producers.map(|producer| tasks.spawn_local(producer.check())).collect();
    let faults = tasks.block_on(&runtime, async {
        let mut results = Vec::new();
        for producer in producers {
            results.extend(producer.await.unwrap_or_else(|error| vec![Err(error.to_string())]));
        }
        for reader in readers {
            results.push(reader.await.unwrap_or_else(|error| Err(error.to_string())));
        }
        let mut faults = Vec::new();
        for result in results {
            match result {
                Ok(found) => tell(&found),
                Err(fault) => faults.push(fault),
            }
        }
        faults
    });
    // A lookup that hangs must not hold up the end.
    runtime.shutdown_background();
    Ok(faults)
}

/// Nobody reads a file.
fn readers(output: &OutputConfig) -> Vec<Reader> {
    let Destination::Streams(streams) = &output.to else { return Vec::new() };
    let reader = |address: &Address| Reader {
        output: output.name.clone(),
        address: address.clone(),
        streams: streams.clone(),
        content_type: output.stream_type(),
    };
    streams.endpoints.addresses().map(reader).collect()
}

impl Reader {
    /// What is found, in words; or what is wrong.
    async fn check(self) -> Result<String, String> {
        let Self { output, address, streams, content_type } = self;
        let place = format!("output `{}`: {address}", printable(&output));
        let began = Instant::now();
        let connection = Connection::open(&address, &streams, content_type)
            .await
            .map_err(|error| format!("{place}: {error}"))?;
        let opened = milliseconds(began.elapsed());
        let peer = connection.peer().map_or_else(String::new, |peer| format!(" at {peer}"));
        if !streams.mode.is_bidirectional() {
            // It has nothing to say.
            let _ = connection.finish().await;
            return Ok(format!("{place}: a listener{peer} takes connections ({opened})"));
        }
        let takes = connection.content_type().map_or_else(|| "(none)".to_owned(), ToString::to_string);
        let began = Instant::now();
        let finish = match connection.finish().await {
            Ok(()) => format!("FINISH after {}", milliseconds(began.elapsed())),
            Err(error) => format!("no FINISH: {error}"),
        };
        Ok(format!("{place}: a reader{peer} takes content type {takes} (ACCEPT after {opened}, {finish})"))
    }
}
