//! Hostile text: prompts that are too long, control tokens in a user's words, stop texts that slow every token down.

use std::time::{Duration, Instant};

use moxin_vlm::{
    Error, GenerationOptions, LoadOptions, Model, Op,
    generate::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopStrings},
};

use crate::{
    child::{Limits, in_child},
    programs::in_repository,
};

fn tiny() -> Model {
    Model::load(in_repository("models/tiny"), LoadOptions::default(), Op::default()).unwrap()
}

/// Stop texts of a megabyte made every token a hundred times slower.
#[test]
fn stop_texts_are_limited_and_cost_no_more_than_the_text() {
    in_child("text::stop_texts_are_limited_and_cost_no_more_than_the_text", Limits::default(), || {
        let model = tiny();
        for stop in [vec!["x".repeat(1 << 20); MAX_STOP_STRINGS], vec!["x".into(); MAX_STOP_STRINGS + 1]] {
            let refused = model.session(GenerationOptions { stop, ..GenerationOptions::default() });
            assert!(matches!(refused, Err(Error::InvalidArgument(_))));
        }
        // Each character makes all of them possible: "aaaa…a", a number, "b".
        let stop = |i: usize| format!("{}{i:02}b", "a".repeat(MAX_STOP_BYTES - 3));
        let mut stops = StopStrings::new((0..MAX_STOP_STRINGS).map(stop).collect()).unwrap();
        let begin = Instant::now();
        let passed: usize = (0..100_000).map(|_| stops.push("aaaa").text.len()).sum();
        assert_eq!(passed, 400_000 - (MAX_STOP_BYTES - 3));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert!(stops.push("63b").stopped);
    });
}
