//! How many TLS handshakes of an input are under way, of those that one worker has accepted.
//!
//! A handshake costs memory and processor time before it is known who asks for it. Connections beyond the limit wait in the
//! backlog, in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Notify;

/// The handshakes of one input that one worker has accepted. Any worker may serve them.
#[derive(Debug, Default)]
pub(crate) struct HandshakeLimit {
    running: AtomicUsize,
    ended: Notify,
}

/// One of them. Dropped, it has ended.
#[derive(Debug)]
pub(crate) struct Handshake(Arc<HandshakeLimit>);

impl HandshakeLimit {
    /// Waits until fewer than `max` are under way. Cancel-safe. Only the worker of this limit may call it.
    pub(crate) async fn begin(self: &Arc<Self>, max: usize) -> Handshake {
        loop {
            let ended = self.ended.notified();
            if self.running.load(Relaxed) < max {
                self.running.fetch_add(1, Relaxed);
                return Handshake(Arc::clone(self));
            }
            ended.await;
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn the_next_begins_when_one_has_ended() {
        let limit = Arc::<HandshakeLimit>::default();
        let first = limit.begin(2).await;
        let _second = limit.begin(2).await;
        let mut third = pin!(limit.begin(2));
        tokio::select! {
            biased;
            _ = &mut third => panic!("one too many"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        drop(third.await);
        drop(limit.begin(2).await);
    }
}
