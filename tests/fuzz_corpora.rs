//! Everything that the fuzzers start from, through the functions that they call.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use targets::config::config;
use targets::dnstap::dnstap;
use targets::file::file;
use targets::frames::control;
use targets::frames::decoder;
use targets::handover::handover;
use targets::memory::no_more_than_given;
use targets::proxy::proxy;
use targets::sessions::reader;
use targets::sessions::writer;
use targets::spool::any_folder;
use targets::spool::cursor;
use targets::spool::folder;
use targets::spool::segment;

#[test]
fn the_corpora_of_the_fuzzers_pass() {
    replay("any_folder", any_folder);
    replay("config", config);
    replay("control", control);
    replay("cursor", cursor);
    replay("decoder", decoder);
    replay("dnstap", dnstap);
    replay("file", file);
    replay("folder", folder);
    replay("handover", handover);
    replay("proxy", proxy);
    replay("reader", reader);
    replay("segment", segment);
    replay("writer", writer);
    let corpora = fs::read_dir(corpora()).expect("a folder of corpora").count();
    assert_eq!(corpora, 13, "every corpus has its target");
}

fn replay(name: &str, target: fn(&[u8])) {
    let mut count = 0;
    for file in fs::read_dir(corpora().join(name)).expect("a corpus") {
        let path = file.expect("an entry").path();
        println!("{}", path.display());
        target(&fs::read(path).expect("a readable file"));
        count += 1;
    }
    assert!(count >= 3, "{name} has {count} files");
}

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Some random inputs: what a fuzzer would do in its first second.
#[test]
fn random_edits_of_a_folder_pass() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..300 {
        let input: Vec<u8> = (0..random.usize(..60)).map(|_| random.u8(..)).collect();
        println!("{input:?}");
        folder(&input);
    }
}

/// Headers that are nearly right, which a fuzzer finds late.
#[test]
fn random_edits_of_proxy_headers_pass() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let files = fs::read_dir(corpora().join("proxy")).expect("a corpus");
    let headers: Vec<Vec<u8>> =
        files.map(|file| fs::read(file.expect("an entry").path()).expect("a readable file")).collect();
    for _ in 0..20_000 {
        let mut header = headers[random.usize(..headers.len())].clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..header.len());
            match random.u8(..4) {
                0 => header[at] = random.u8(..),
                1 => header[at] ^= 1 << random.u8(..8),
                2 => header.insert(at, random.u8(..)),
                _ => header.truncate(at + 1),
            }
        }
        proxy(&header);
    }
}

/// The rule that the targets of the network rely on.
#[test]
#[should_panic(expected = "a block of 1048576 bytes was allocated for 4 bytes of the peer")]
fn memory_for_a_length_that_was_only_announced_is_noticed() {
    no_more_than_given(4, || drop(Vec::<u8>::with_capacity(1 << 20)));
}
