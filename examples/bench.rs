//! Measures a model: loading, memory, and the stages of an answer. Prints one JSON object.
//! `cargo xtask bench` calls it, and compares the results with the machine's limits.
//!
//! ```text
//! cargo run --release --example bench -- --model models/tiny
//! ```

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use mlx_rs::{Array, ops};
use moxin_vlm::{
    Backend, Event, GenerationOptions, LoadOptions, Model, Op, Picture, PixelFormat, Role, Stats,
    device, load_tokenizer, models::prismatic::pure_prompt, text::Message,
};
use serde_json::{Value, json};

/// Measures a model and prints one JSON object.
#[derive(Parser)]
struct Args {
    /// The model: a Hugging Face folder.
    #[arg(long)]
    model: PathBuf,
    /// The picture.
    #[arg(long, default_value = "models/demo.png")]
    image: PathBuf,
    /// Use no picture: the prompt is only text.
    #[arg(long)]
    text_only: bool,
    /// Positions of the prompt, including the picture's.
    #[arg(long, value_name = "N", default_value_t = 290)]
    positions: usize,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 16)]
    tokens: usize,
    /// How often an answer is measured.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Use the CPU even if there is a GPU.
    #[arg(long)]
    cpu: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let options = LoadOptions {
        backend: if args.cpu {
            Backend::Cpu
        } else {
            Backend::Auto
        },
        ..LoadOptions::default()
    };
    let generation = GenerationOptions {
        max_tokens: args.tokens,
        ..GenerationOptions::default()
    };
    let context = GenerationOptions {
        max_context: Some(args.positions + args.tokens),
        ..generation.clone()
    };
    let estimated = Model::estimate(&args.model, &options, &context)?;

    let start = Instant::now();
    let model = Model::load(&args.model, options, Op::default())?;
    let load = start.elapsed().as_secs_f64();
    let loaded = resident_peak();

    let mut runs = Vec::new();
    for run in 0..args.runs {
        runs.push(answer(&model, &args, &generation, run)?);
    }
    let info = model.info();
    let first = runs.first().context("--runs is 0")?;
    let stage = |seconds: fn(&Stats) -> f64| runs.iter().map(seconds).collect::<Vec<_>>();
    let decoded = first.generated_tokens - 1;
    let report = json!({
        "backend": info.backend.name(),
        "weight_bytes": info.weight_bytes,
        "load": load,
        "resident_loaded": loaded,
        "resident_peak": resident_peak(),
        "mlx_peak": device::memory_stats()?.peak,
        "estimated": estimated.total,
        "copied": if info.backend == Backend::Cpu { None } else { Some(copied()?) },
        "image": if args.text_only { Value::Null } else { json!({ "count": 1, "seconds": stage(|run| run.vision.as_secs_f64()) }) },
        "prefill": { "count": first.prompt_tokens, "seconds": stage(|run| run.prefill.as_secs_f64()) },
        "decode": { "count": decoded, "seconds": stage(|run| run.decode.as_secs_f64()) },
        "first_token": stage(|run| run.first_token.as_secs_f64()),
    });
    println!("{report}");
    Ok(())
}

/// Generates one answer in a conversation of its own. Its picture differs from the others', so that
/// it is encoded again.
fn answer(model: &Model, args: &Args, generation: &GenerationOptions, run: usize) -> Result<Stats> {
    let session = model.session(generation.clone())?;
    let image_tokens = if args.text_only {
        0
    } else {
        model.info().image_tokens
    };
    if !args.text_only {
        let picture = Picture::open(&args.image, &Default::default())?;
        let mut pixels = picture.rgb().to_vec();
        pixels[0] = run as u8;
        let (width, height) = (picture.width(), picture.height());
        session.add_image(Picture::from_pixels(
            &pixels,
            width,
            height,
            width as usize * 3,
            PixelFormat::Rgb8,
        )?)?;
    }
    session.add_text(
        Role::User,
        &question(&args.model, args.positions.saturating_sub(image_tokens))?,
    )?;
    for event in session.generate() {
        if let Event::Finished { .. } = event? {}
    }
    let stats = session.stats();
    ensure!(
        stats.generated_tokens > 1,
        "the answer ended after {} tokens: nothing to measure",
        stats.generated_tokens
    );
    Ok(stats)
}

/// Returns the bytes per second that the GPU reads and writes when it adds one to an array: the
/// median of five gigabytes.
fn copied() -> Result<f64> {
    const BYTES: i32 = 1 << 30;
    let device = device::Device::new(Backend::Auto)?;
    let mut seconds = device.run(|| -> Result<Vec<f64>> {
        let from = ops::zeros::<f32>(&[BYTES / 4])?;
        let one = Array::from_f32(1.0);
        from.eval()?;
        let run = |_| {
            let start = Instant::now();
            from.add(&one)?.eval()?;
            Ok(start.elapsed().as_secs_f64())
        };
        run(0)?;
        (0..5).map(run).collect()
    })?;
    seconds.sort_by(f64::total_cmp);
    Ok(2.0 * f64::from(BYTES) / seconds[2])
}

/// Returns the shortest question whose prompt has so many tokens.
fn question(folder: &Path, tokens: usize) -> Result<String> {
    let tokenizer = load_tokenizer(folder)?;
    let mut text = "What".to_owned();
    while tokenizer
        .encode(&pure_prompt(&[Message::user(&text)])?, true)?
        .len()
        < tokens
    {
        text += " is";
    }
    Ok(text)
}

/// Returns the peak memory of this process in bytes; `None` if the system does not report it.
fn resident_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .ok()
        .map(|kilobytes| kilobytes * 1024)
}
