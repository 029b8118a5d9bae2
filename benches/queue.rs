//! What a batch costs between reading and writing: `cargo bench --bench queue`. `Mitem/s` are million batches per
//! second; a batch has some 400 frames at full rate, so that 400 ns for it are 1 ns for a frame.

use std::future::Future;
use std::thread;
use std::time::Instant;

use divan::Bencher;
use divan::counter::ItemsCount;
use tapster::bench::Lanes;
use tapster::protocol::FrameBatch;
use tokio::runtime;

fn main() {
    divan::main();
}

const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Batches that cross to the other thread, so many that its start is no part of the figure.
const BATCHES: u32 = 20_000;

/// Delivered to every lane, taken out and freed: a reference for each output, no copy.
#[divan::bench(args = [1, 2, 4])]
fn fan_out(bencher: Bencher, outputs: usize) {
    let lanes = Lanes::new(outputs, QUEUE_BYTES_MAX);
    let batch = batch();
    let runtime = runtime();
    bencher.counter(ItemsCount::new(BATCHES)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..BATCHES {
                lanes.deliver(batch.clone()).await;
                for lane in 0..outputs {
                    divan::black_box(lanes.take(lane));
                }
            }
        });
    });
}

/// Pushed and popped by one task that asks whether there is something, as on a relay of one worker.
#[divan::bench]
fn same_thread(bencher: Bencher) {
    let lanes = Lanes::new(1, QUEUE_BYTES_MAX);
    let batch = batch();
    let runtime = runtime();
    bencher.counter(ItemsCount::new(BATCHES)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..BATCHES {
                lanes.deliver(batch.clone()).await;
                lanes.ready(0).await;
                divan::black_box(lanes.take(0));
            }
        });
    });
}

/// Pushed by one worker and popped by another, which sleeps when it finds nothing.
#[divan::bench(sample_count = 20)]
fn cross_thread(bencher: Bencher) {
    let lanes = Lanes::new(1, QUEUE_BYTES_MAX);
    let batch = batch();
    bencher.counter(ItemsCount::new(BATCHES)).bench_local(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                run(async {
                    let mut taken = 0;
                    while taken < BATCHES {
                        lanes.ready(0).await;
                        taken += u32::from(lanes.take(0).is_some());
                    }
                });
            });
            run(async {
                for _ in 0..BATCHES {
                    lanes.deliver(batch.clone()).await;
                }
            });
        });
    });
}

fn batch() -> FrameBatch {
    FrameBatch::from_payloads([[0x5a; 130]], Instant::now()).expect("a payload within the limits")
}

fn run<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread().build().expect("a runtime without drivers")
}
