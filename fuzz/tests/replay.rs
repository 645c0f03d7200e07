//! Runs every target on its corpus, and on random changes of it: faults found by the fuzzer are
//! tested without it.
//!
//! `MOXIN_FUZZ_SEED` selects other changes, `MOXIN_FUZZ_TARGET` a single target.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fs, panic, process, ptr, thread};

use moxin_vlm_fuzz::TARGETS;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The maximum time per input.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// After this time an input is considered to hang.
const HANG: Duration = Duration::from_secs(60);

/// An allocator that refuses more than half a gigabyte at once, which ends the test: no input is
/// large enough to need that.
struct Frugal;

#[global_allocator]
static ALLOCATOR: Frugal = Frugal;

// SAFETY: the system's allocator does the work; an allocator may refuse.
unsafe impl GlobalAlloc for Frugal {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds this function's contract.
        if layout.size() > 512 << 20 {
            ptr::null_mut()
        } else {
            unsafe { System.alloc(layout) }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds this function's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

/// One test for all targets, which names the failing one, so that no new target can be forgotten
/// here.
#[test]
fn targets_stand_their_corpus_and_changes_to_it() {
    // The library catches panics of the `tokenizers` crate. Panics that count are reported below.
    panic::set_hook(Box::new(|_| ()));
    let seed = env::var("MOXIN_FUZZ_SEED")
        .map_or(0, |seed| seed.parse().expect("MOXIN_FUZZ_SEED is a number"));
    let only = env::var("MOXIN_FUZZ_TARGET").ok();
    for (name, target, changes) in TARGETS
        .into_iter()
        .filter(|(name, ..)| only.as_deref().is_none_or(|only| only == *name))
    {
        let start = Instant::now();
        let corpus = corpus(name);
        corpus.iter().for_each(|input| run(name, target, input));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..changes {
            run(name, target, &changed(&corpus, &mut random));
        }
        println!(
            "{name}: {} inputs and {changes} changes in {:.1?}",
            corpus.len(),
            start.elapsed()
        );
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .expect("a corpus")
        .map(|entry| entry.expect("a file").path())
        .collect();
    assert!(!paths.is_empty(), "no input in {}", folder.display());
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("a file"))
        .collect()
}

/// Runs a target on an input, and prints the input on failure.
fn run(name: &str, target: fn(&[u8]), input: &[u8]) {
    let start = Instant::now();
    let (done, is_done) = mpsc::channel::<()>();
    let outcome = thread::scope(|scope| {
        // A hang can only be ended together with the process.
        scope.spawn(move || {
            if is_done.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{name} hangs on b\"{}\"", input.escape_ascii());
                process::abort();
            }
        });
        let outcome = panic::catch_unwind(|| target(input));
        drop(done);
        outcome
    });
    let time = start.elapsed();
    let fault = match &outcome {
        Ok(()) if time < TIME_LIMIT => return,
        Ok(()) => format!("took {time:.1?}"),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_else(|| "panicked".into()),
    };
    drop(panic::take_hook());
    panic!("{name}: {fault}, on b\"{}\"", input.escape_ascii());
}

/// Returns an input of the corpus after one to four changes.
fn changed(corpus: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    const ODD: [&[u8]; 12] = [
        b"null",
        b"-1",
        b"0",
        b"1e999",
        b"18446744073709551615",
        b"\"\"",
        b"[]",
        b"{}",
        b"\xff\xff\xff\xff",
        b"\x80",
        b"\0\0\0\0",
        b"\\ud800",
    ];
    let mut input = corpus.choose(random).expect("a corpus").clone();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=input.len());
        let end = (at + random.random_range(0..16)).min(input.len());
        match random.random_range(0..6) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => drop(input.splice(at..end, ODD.choose(random).expect("twelve").iter().copied())),
            3 => {
                let other = corpus.choose(random).expect("a corpus");
                input.splice(at.., other[at.min(other.len())..].iter().copied());
            }
            4 => {
                let piece = input[at..end].to_vec();
                let to = random.random_range(0..=input.len());
                input.splice(to..to, piece);
            }
            _ => input[at..end]
                .iter_mut()
                .for_each(|byte| *byte ^= 1 << random.random_range(0..8)),
        }
    }
    input
}
