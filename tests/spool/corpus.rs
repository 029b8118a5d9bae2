//! Everything that the fuzzers start from, through the functions that they call.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/targets.rs"]
mod targets;

#[test]
fn the_corpora_of_the_fuzzers_pass() {
    replay("cursor", targets::cursor);
    replay("folder", targets::folder);
    replay("segment", targets::segment);
}

fn replay(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for file in fs::read_dir(corpus).expect("a corpus") {
        let path = file.expect("an entry").path();
        println!("{}", path.display());
        target(&fs::read(path).expect("a readable file"));
        count += 1;
    }
    assert!(count >= 3, "{name} has {count} files");
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
        targets::folder(&input);
    }
}
