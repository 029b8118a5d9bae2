//! The frames of a storm: each tells its number and its connection.

use std::collections::VecDeque;
use std::pin::pin;
use std::task::Context;
use std::task::Waker;

use crate::batch::Batch;
use crate::batch::connection::ConnectionId;
use crate::protocol::FrameBatch;
use crate::spool::stage::tests::Life;
use crate::spool::stage::tests::Storm;

impl Storm {
    pub(super) fn arrive(&mut self, life: &mut Life) {
        if life.blocked.is_none() && !life.front.is_closed() && self.happens(self.weather.arrives) {
            let connection = self.random.u64(0..CONNECTIONS);
            let frames = self.frames(connection, life.frame_len_max as usize);
            let connection = ConnectionId::new(u32::try_from(connection).unwrap());
            life.blocked = Some((frames, connection));
        }
        if let Some((frames, connection)) = life.blocked.take() {
            let push = pin!(life.front.push(frames.clone(), connection));
            if push.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.totals.count("blocked", 1);
                life.blocked = Some((frames, connection));
            }
        }
    }

    pub(super) fn frames(&mut self, connection: u64, payload_len_max: usize) -> FrameBatch {
        let count = self.random.usize(1..=FRAMES_MAX);
        let payloads: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let mut payload = [self.next, connection].map(u64::to_be_bytes).concat();
                self.next += 1;
                let len = self.random.usize(NUMBER_LEN..=payload_len_max);
                payload.extend_from_slice(&PADDING[..len - NUMBER_LEN]);
                payload
            })
            .collect();
        FrameBatch::from_payloads(payloads, self.now.instant).unwrap()
    }
}

pub(super) fn frames_of(batches: &VecDeque<Batch>) -> Vec<u64> {
    batches.iter().flat_map(|batch| numbers(batch.frames())).map(|(frame, _)| frame).collect()
}

/// The frames of a batch: number and connection.
pub(super) fn numbers(frames: &FrameBatch) -> Vec<(u64, u64)> {
    let number = |payload: bytes::Bytes| {
        let (number, rest) = payload.split_first_chunk().unwrap();
        (u64::from_be_bytes(*number), u64::from_be_bytes(*rest.first_chunk().unwrap()))
    };
    frames.payloads().map(number).collect()
}

/// Connections: a frame tells which it came from.
pub(super) const CONNECTIONS: u64 = 3;
/// Frames of a batch, at most.
pub(super) const FRAMES_MAX: usize = 4;
/// Bytes of a payload that tell its number and connection.
pub(super) const NUMBER_LEN: usize = 16;
/// Bytes of a payload, at most.
pub(super) const PAYLOAD_MAX: usize = 8000;
const PADDING: [u8; PAYLOAD_MAX] = [0; PAYLOAD_MAX];
