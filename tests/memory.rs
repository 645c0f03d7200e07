//! What a model takes, as reckoned from the headers alone, beside what is counted. A file of its own, and so a process of its own: the counters
//! are the process's.

use std::path::{Path, PathBuf};

use mlx_rs::Dtype;
use moxin_vlm::{
    Event, GenerationOptions, LoadOptions, Model, Op, Picture, Quantization, QuantizeOptions, Role,
    device::{CpuKernels, memory_stats, reset_peak_memory},
};

fn in_repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The highest count while `f` runs, above that before.
fn peak<T>(f: impl FnOnce() -> T) -> (u64, T) {
    reset_peak_memory().unwrap();
    let before = memory_stats().unwrap().active;
    let result = f();
    (memory_stats().unwrap().peak - before, result)
}

/// Loads a model, encodes a picture, and fills a conversation's context; compares each part and the whole.
fn compare(folder: &str, words: &str, options: LoadOptions, context: usize, chunk: usize) {
    let folder = in_repository(folder);
    let demo = Picture::open(in_repository("models/demo.png"), &Default::default()).unwrap();
    let dtype = options.dtype;
    let generation = GenerationOptions { max_context: Some(context), prefill_chunk: chunk, max_tokens: 20, ..Default::default() };
    let reckoned = Model::estimate(&folder, &options, &generation).unwrap();
    let before = memory_stats().unwrap().active;

    // Reading a tensor takes a buffer that is not counted.
    let (load, model) = peak(|| Model::load(&folder, options, Op::default()).unwrap());
    let weights = memory_stats().unwrap().active - before;
    let (vision, embedding) = peak(|| model.encode_image(&demo, Op::default()).unwrap());
    // Nor are the pixels, of two encoders.
    let vision = vision + 2 * 3 * 4 * (model.info().image_size as u64).pow(2);
    let session = model.session(generation).unwrap();
    session.add_embedding(&embedding).unwrap();
    session.add_text(Role::User, words).unwrap();
    let (conversation, events) = peak(|| session.generate().collect::<moxin_vlm::Result<Vec<Event>>>().unwrap());
    assert!(events.len() > 1);
    let filled = session.stats().prompt_tokens;
    assert!(filled + 40 > context, "{filled} of {context} positions");
    let peak = load.max(weights + vision.max(conversation));

    let close = |name: &str, reckoned: u64, measured: u64, tolerance: f64| {
        let ratio = reckoned as f64 / measured as f64;
        println!("{name:12} {reckoned:>10} reckoned, {measured:>10} measured: {ratio:.3}");
        assert!((ratio - 1.0).abs() <= tolerance, "{name} of {} in {dtype:?}, {context} positions by {chunk}", folder.display());
    };
    close("weights", reckoned.weights, weights, 0.06);
    close("load", reckoned.load_peak, load.max(weights), 0.10);
    close("vision", reckoned.vision_peak, vision, 0.25);
    close("conversation", reckoned.kv_total + reckoned.step_peak, conversation, 0.15);
    close("total", reckoned.total, peak, 0.10);
}

/// One test: the counters would count others.
#[test]
fn what_is_reckoned_is_what_it_takes() {
    let (own, mlx) = (CpuKernels::Own, CpuKernels::Mlx);
    for (dtype, cpu_kernels) in [(None, mlx), (None, own), (Some(Dtype::Bfloat16), own)] {
        for (context, chunk) in [(300, 256), (1000, 256), (1000, 64), (2000, 512)] {
            println!("{dtype:?}, {cpu_kernels:?}, {context} positions by {chunk}");
            let options = LoadOptions { dtype, cpu_kernels, ..Default::default() };
            compare("models/tiny", &"red ".repeat(context - 90), options, context, chunk);
        }
    }
    for (bits, cpu_kernels) in [(8, mlx), (4, mlx), (8, own), (4, own)] {
        println!("quantized to {bits} bits, {cpu_kernels:?}");
        let quantize = Some(QuantizeOptions { quantization: Quantization::affine(64, bits), ..Default::default() });
        let options = LoadOptions { quantize, cpu_kernels, ..Default::default() };
        compare("models/tiny", &"red ".repeat(910), options, 1000, 256);
    }
}
