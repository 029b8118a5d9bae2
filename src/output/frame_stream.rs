//! An output over a connection: connect, shake hands, write batches, begin again when it dies.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tracing::info;
use tracing::warn;

use crate::drain::DrainSignal;
use crate::drain::Over;
use crate::output::Mode;
use crate::output::OutputConfig;
use crate::output::backlog::Backlog;
use crate::output::backoff::Backoff;
use crate::protocol::WriterConfig;
use crate::queue::WhenFull;
use crate::session::write::WriteFault;
use crate::session::write::WriteSession;
use crate::transport::Backend;
use crate::transport::sys::SendList;

/// Runs a lane until its queue is closed and written, or the relay is over. For the worker that owns the lane.
pub(crate) async fn run(
    config: Arc<OutputConfig>,
    mut backlog: Backlog,
    backend: Backend,
    mut drain: DrainSignal,
) {
    let writer = Arc::new(writer_config(&config));
    let mut backoff = Backoff::new(config.reconnect);
    let mut attempts = Attempts::default();
    let mut over = Over::new(drain.clone());
    loop {
        let opened = tokio::select! {
            opened = WriteSession::open(&config.to, Arc::clone(&writer), backend) => opened,
            () = over.reached() => break,
        };
        match opened {
            Ok(session) => {
                attempts.succeeded(&config);
                backlog.metrics.connected();
                let since = Instant::now();
                if relay(&config, &mut backlog, session, &mut over).await {
                    break;
                }
                backoff.session_lasted(since);
            }
            Err(fault) => attempts.failed(&config, &fault),
        }
        // A collector that is away when the relay ends gets one more attempt, under `block` all that time allows.
        let last = drain.requested() && config.when_full != WhenFull::Block;
        if last || backlog.nothing_to_come() {
            break;
        }
        let pause = backoff.pause();
        let pause = if drain.requested() { pause.min(DRAIN_PAUSE_MAX) } else { pause };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = drain.changed() => {}
        }
    }
    backlog.abandon();
}

/// Writes until the connection ends. Returns whether that was the end of the lane.
async fn relay(
    config: &OutputConfig,
    backlog: &mut Backlog,
    mut session: WriteSession,
    over: &mut Over,
) -> bool {
    let mut list = SendList::new();
    let result = loop {
        if list.is_empty() {
            backlog.fill();
            list.extend(backlog.buffers());
        }
        if list.is_empty() {
            if backlog.nothing_to_come() {
                break Ok(());
            }
            tokio::select! {
                biased;
                () = backlog.queue.ready() => {}
                fault = session.closed() => break Err(fault),
            }
            continue;
        }
        let (written, result, back) = session.write(list, over).await;
        list = back;
        list.advance(written);
        backlog.written(written);
        if let Err(fault) = result {
            break Err(fault);
        }
    };
    let finished = match result {
        Ok(()) => session.finish(over).await,
        Err(fault) => Err(fault),
    };
    backlog.connection_lost();
    match &finished {
        Ok(()) => {
            backlog.metrics.finished();
            info!(output = config.name, to = %config.to, "finished");
        }
        Err(fault) => {
            let bytes_unconfirmed = session.unconfirmed_bytes();
            backlog.metrics.unconfirmed(bytes_unconfirmed);
            warn!(output = config.name, to = %config.to, bytes_unconfirmed, "connection ended: {fault}");
        }
    }
    session.close().await;
    finished.is_ok() || backlog.nothing_to_come()
}

fn writer_config(config: &OutputConfig) -> WriterConfig {
    WriterConfig {
        content_types: config.stream_type().into_iter().collect(),
        bidirectional: config.mode == Mode::Bidirectional,
        handshake_timeout: config.handshake_timeout,
        finish_timeout: config.finish_timeout,
    }
}

/// Longest pause between attempts while the relay ends.
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(500);

/// Says once that an output cannot be reached and why, again when the reason changes, and when it can.
#[derive(Default)]
struct Attempts {
    reason: Option<String>,
}

impl Attempts {
    fn failed(&mut self, config: &OutputConfig, fault: &WriteFault) {
        let reason = fault.to_string();
        if self.reason.as_ref() != Some(&reason) {
            warn!(output = config.name, to = %config.to, "{reason}; trying again");
            self.reason = Some(reason);
        }
    }

    fn succeeded(&mut self, config: &OutputConfig) {
        self.reason = None;
        info!(output = config.name, to = %config.to, "connected");
    }
}
