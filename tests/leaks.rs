//! Tests that dropped objects free their memory. In a file, and thus a process, of its own: the
//! counters are per process.

use std::path::Path;

use moxin_vlm::{GenerationOptions, LoadOptions, Model, Op, Picture, Role, device::memory_stats};

/// Returns the bytes in use by arrays once the engine has finished all earlier work.
fn active() -> u64 {
    Model::inspect(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap();
    memory_stats().unwrap().active
}

#[test]
fn models_and_sessions_free_their_memory() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let demo = Picture::open(tiny.with_file_name("demo.png"), &Default::default()).unwrap();
    let before = active();
    for round in 0..3 {
        let model = Model::load(&tiny, LoadOptions::default(), Op::default()).unwrap();
        let weights = active() - before;
        assert!(
            weights > model.info().weight_bytes / 2 && weights < 2 * model.info().weight_bytes,
            "{weights}"
        );

        let session = model
            .session(GenerationOptions {
                max_tokens: 3,
                ..Default::default()
            })
            .unwrap();
        session
            .add_embedding(&model.encode_image(&demo, Op::default()).unwrap())
            .unwrap();
        session
            .add_text(Role::User, "Describe the picture.")
            .unwrap();
        session.generate().for_each(|event| drop(event.unwrap()));
        assert!(active() > before + weights);
        // One session is dropped with its answer complete, one in the middle of it.
        let unfinished = model
            .session(GenerationOptions {
                prefill_chunk: 20,
                ..Default::default()
            })
            .unwrap();
        unfinished.add_image(demo.clone()).unwrap();
        unfinished
            .add_text(Role::User, "Describe the picture.")
            .unwrap();
        (0..=2 * round).for_each(|_| drop(unfinished.step().unwrap()));
        drop(model);
        assert!(active() > before + weights, "sessions keep their model");
        drop((session, unfinished));
        assert_eq!(active(), before, "round {round}");
    }
}
