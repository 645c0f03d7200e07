//! Compares the estimated memory of a model with the counted one. In a file, and thus a process, of
//! its own: the counters are per process.

use std::fs;
use std::path::{Path, PathBuf};

use mlx_rs::Dtype;
use moxin_vlm::{
    Event, GenerationOptions, LoadOptions, Model, Op, Picture, Quantization, QuantizeOptions, Role,
    device::{CpuKernels, memory_stats, reset_peak_memory},
};
use tempfile::TempDir;

fn in_repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Returns the peak count while `f` runs, minus that before.
fn peak<T>(f: impl FnOnce() -> T) -> (u64, T) {
    reset_peak_memory().unwrap();
    let before = memory_stats().unwrap().active;
    let result = f();
    (memory_stats().unwrap().peak.saturating_sub(before), result)
}

/// Loads a model, encodes a picture, and fills a conversation's context; compares each part and the
/// total.
fn compare(folder: &str, options: LoadOptions, context: usize, chunk: usize) {
    let folder = in_repository(folder);
    let demo = Picture::open(in_repository("models/demo.png"), &Default::default()).unwrap();
    let dtype = options.dtype;
    let generation = GenerationOptions {
        max_context: Some(context),
        prefill_chunk: chunk,
        max_tokens: 20,
        ..Default::default()
    };
    let estimated = Model::estimate(&folder, &options, &generation).unwrap();
    let before = memory_stats().unwrap().active;

    // Reading a tensor uses a buffer that is not counted.
    let (load, model) = peak(|| Model::load(&folder, options, Op::default()).unwrap());
    let weights = memory_stats().unwrap().active - before;
    let encode = || match model.info().max_images {
        0 => None,
        _ => Some(model.encode_image(&demo, Op::default()).unwrap()),
    };
    // How many threads' buffers are in use at once depends on the machine's load: the most counts.
    let (vision, embedding) = (0..3)
        .map(|_| peak(encode))
        .max_by_key(|run| run.0)
        .unwrap();
    // Pixels are not counted either: of one encoder, of two, or of patches of two frames.
    let square = 3 * model.info().image_size.pow(2);
    let pixels = match model.info().model_type.as_str() {
        "prismatic" => 2 * square,
        "qwen2_vl" | "qwen2_5_vl" => {
            2 * 3 * 28 * 28 * model.image_tokens(448, 448, Default::default()).unwrap()
        }
        // Tiles of 28 pixels with four features each.
        "smolvlm" => 3 * 28 * 28 / 4 * model.image_tokens(448, 448, Default::default()).unwrap(),
        _ => square,
    };
    let vision = vision + 4 * pixels as u64;
    let begin = |words: usize| {
        let session = model.session(generation.clone()).unwrap();
        if let Some(embedding) = &embedding {
            session.add_embedding(embedding).unwrap();
        }
        session.add_text(Role::User, &"red ".repeat(words)).unwrap();
        session
    };
    let positions = |words: usize| {
        let session = begin(words);
        session.prefill(Op::default()).unwrap();
        session.stats().prompt_tokens
    };
    let [one, eleven] = [1, 11].map(positions);
    let session = begin((context - 10 - one) * 10 / (eleven - one));
    let (conversation, events) = peak(|| {
        session
            .generate()
            .collect::<moxin_vlm::Result<Vec<Event>>>()
            .unwrap()
    });
    assert!(events.len() > 1);
    let filled = session.stats().prompt_tokens;
    assert!(filled + 40 > context, "{filled} of {context} positions");
    let peak = load.max(weights + vision.max(conversation));

    // Small arrays take more than their bytes, which matters if all weights are small.
    let slack = if estimated.weights < 1_000_000 {
        80_000.0
    } else {
        0.0
    };
    let close = |name: &str, estimated: u64, measured: u64, tolerance: f64| {
        let ratio = estimated as f64 / measured as f64;
        println!("{name:12} {estimated:>10} estimated, {measured:>10} measured: {ratio:.3}");
        assert!(
            estimated.abs_diff(measured) as f64 <= tolerance * measured as f64 + slack,
            "{name} of {} in {dtype:?}, {context} positions by {chunk}",
            folder.display()
        );
    };
    close("weights", estimated.weights, weights, 0.06);
    close("load", estimated.load_peak, load.max(weights), 0.10);
    close("vision", estimated.vision_peak, vision, 0.25);
    close(
        "conversation",
        estimated.kv_total + estimated.step_peak,
        conversation,
        0.15,
    );
    close("total", estimated.total, peak, 0.05);
}

/// One test only, because others would change the counters.
#[test]
fn estimates_match_measured_memory() {
    let (own, mlx) = (CpuKernels::Own, CpuKernels::Mlx);
    for (dtype, cpu_kernels) in [(None, mlx), (None, own), (Some(Dtype::Bfloat16), own)] {
        for (context, chunk) in [(300, 256), (1000, 256), (1000, 64), (2000, 512)] {
            println!("{dtype:?}, {cpu_kernels:?}, {context} positions by {chunk}");
            let options = LoadOptions {
                dtype,
                cpu_kernels,
                ..Default::default()
            };
            compare("models/tiny", options, context, chunk);
        }
    }
    for (name, cpu_kernels) in [
        ("qwen2_vl", own),
        ("qwen2_5_vl", own),
        ("paligemma", own),
        ("llava", own),
        ("gemma3", own),
        ("gemma3_text", own),
        ("gemma3_text", mlx),
        ("smolvlm", own),
    ] {
        println!("{name}, {cpu_kernels:?}");
        let options = LoadOptions {
            cpu_kernels,
            ..Default::default()
        };
        let folder = TempDir::new().unwrap();
        for entry in fs::read_dir(in_repository("tests/models").join(name).join("model")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        // Qwen2-VL's pictures are as large as the demo's.
        let path = folder.path().join("preprocessor_config.json");
        if let Ok(settings) = fs::read_to_string(&path) {
            fs::write(&path, settings.replace("12544", "200704")).unwrap();
        }
        compare(folder.path().to_str().unwrap(), options, 500, 64);
    }
    for (bits, cpu_kernels) in [(8, mlx), (4, mlx), (8, own), (4, own)] {
        println!("quantized to {bits} bits, {cpu_kernels:?}");
        let quantize = Some(QuantizeOptions {
            quantization: Quantization::affine(64, bits),
            ..Default::default()
        });
        let options = LoadOptions {
            quantize,
            cpu_kernels,
            ..Default::default()
        };
        compare("models/tiny", options, 1000, 256);
    }
}
