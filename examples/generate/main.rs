//! Asks a model about pictures and streams the answer.
//!
//! ```text
//! cargo run --example generate -- --model models/tiny --image models/demo.png --prompt "Describe the picture."
//! ```
//!
//! Several `--prompt`s make a conversation, and all `--image`s and `--video`s belong to its first
//! message.

mod boxes;
#[path = "../frames/mod.rs"]
mod frames;

use std::{
    io::{IsTerminal, Write, stdout},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use moxin_vlm::{
    Backend, Budget, Event, FinishReason, GenerationOptions, LoadOptions, Location, Model, Op,
    Picture, Place, Quantization, QuantizeOptions, Role, SamplingParams, Session, Stage, Stats,
    Video, VideoOptions,
};
use serde_json::{Value, json};

/// Asks a vision-language model about a picture.
#[derive(Parser)]
struct Args {
    /// The model: a Hugging Face folder. By default one of the small models: models/video if there
    /// is a video, otherwise models/tiny.
    #[arg(long)]
    model: Option<PathBuf>,
    /// A picture; without one the model answers from the text alone. May be given several times if
    /// the model supports it.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// A video, after the pictures: an animated GIF, WebP or PNG, or a folder with the frames of one,
    /// in the order of their names. May be given several times.
    #[arg(long, value_name = "FILE")]
    video: Vec<PathBuf>,
    /// The number of frames per second that are read of a video.
    #[arg(long, value_name = "N", default_value_t = 2.0)]
    fps: f64,
    /// The maximum number of pixels that reach the encoder, for models whose pictures differ in
    /// size.
    #[arg(long, value_name = "N")]
    max_pixels: Option<usize>,
    /// The maximum number of positions that a picture takes.
    #[arg(long, value_name = "N")]
    max_image_tokens: Option<usize>,
    /// Do not cut pictures into tiles.
    #[arg(long)]
    no_tiles: bool,
    /// Instructions before the conversation, if the model supports them.
    #[arg(long)]
    system: Option<String>,
    /// A file with a Jinja chat template to use instead of the model's.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// A question. May be given several times for a conversation; the default depends on the model.
    #[arg(long)]
    prompt: Vec<String>,
    /// 0 always takes the most likely token; higher values add variety.
    #[arg(long, default_value_t = 0.0)]
    temp: f32,
    /// The maximum number of tokens in an answer.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// The same seed samples the same tokens.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Sample from the most likely tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Sample from this many of the most likely tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// A text that ends an answer. May be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// Quantize the language model to 2, 3, 4, 5, 6 or 8 bits while loading.
    #[arg(long, value_name = "BITS")]
    quantize: Option<usize>,
    /// The group size when quantizing: 32, 64 or 128.
    #[arg(long, value_name = "N", default_value_t = 64)]
    group_size: usize,
    /// Use the CPU even if there is a GPU.
    #[arg(long)]
    cpu: bool,
    /// Print one JSON object with tokens, log-probabilities and times, and nothing else.
    #[arg(long)]
    json: bool,
    /// Write the picture with the boxes and points of the last answer as a PNG file, for models
    /// that write them.
    #[arg(long, value_name = "FILE")]
    draw: Option<PathBuf>,
    /// Show the pictures in the terminal first, and play the videos.
    #[arg(long)]
    show_image: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let pictures = args
        .image
        .iter()
        .map(|path| Picture::open(path, &Default::default()))
        .collect::<Result<Vec<_>, _>>()?;
    let videos = args.video.iter().map(|path| read_video(path, args.fps));
    let videos = videos.collect::<Result<Vec<_>>>()?;
    if args.show_image {
        pictures.iter().for_each(|picture| draw(picture, 56));
        videos.iter().for_each(play);
    }
    let options = load_options(&args)?;
    let model = load(&args, options.clone())?;
    // The answer to be drawn is about this picture.
    let located = pictures.first().filter(|_| pictures.len() == 1).cloned();
    if args.draw.is_some() && (located.is_none() || !model.info().grounding) {
        bail!("--draw needs one --image, and a model that writes boxes or points");
    }
    let session = model.session(GenerationOptions {
        sampling: SamplingParams {
            temperature: args.temp,
            top_p: args.top_p,
            top_k: args.top_k,
            seed: args.seed,
            ..Default::default()
        },
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        image_budget: budget(&args),
        ..Default::default()
    })?;
    if let Some(system) = &args.system {
        session.add_text(Role::System, system)?;
    }
    for picture in pictures {
        session.add_image(picture)?;
    }
    for video in videos {
        session.add_video(video)?;
    }
    let (mut answers, mut locations) = (Vec::new(), Vec::new());
    let prompts = if args.prompt.is_empty() {
        vec![model.info().default_prompt.to_owned()]
    } else {
        args.prompt.clone()
    };
    for prompt in &prompts {
        session.add_text(Role::User, prompt)?;
        if !args.json {
            println!("\n> {prompt}");
        }
        let mut answer = answer(&session, !args.json)?;
        if let Some(picture) = located.as_ref().filter(|_| model.info().grounding) {
            locations = locate(&model, picture, &answer, budget(&args))?;
            match args.json {
                true => answer["locations"] = locations.iter().map(location_json).collect(),
                false => boxes::print(&locations),
            }
        }
        if !args.json {
            print_stats(&session.stats());
        }
        answers.push(answer);
    }
    if let (Some(path), Some(picture)) = (&args.draw, &located) {
        boxes::draw(picture, &locations, path)?;
    }
    if !args.json && !answers.is_empty() {
        print_memory(&args, &options, &session.stats())?;
    }
    if args.json {
        println!(
            "{}",
            json!({ "model": args.model(), "backend": model.info().backend.name(), "answers": answers })
        );
    }
    Ok(())
}

/// Reads a video, or the frames in a folder.
fn read_video(path: &Path, fps: f64) -> Result<Video> {
    if !path.is_dir() {
        let options = VideoOptions {
            fps: Some(fps),
            ..Default::default()
        };
        return Ok(Video::open(path, &options)?);
    }
    frames::read(path, fps, &Default::default())
}

impl Args {
    fn model(&self) -> &Path {
        let small = match self.video.is_empty() {
            true => "models/tiny",
            false => "models/video",
        };
        self.model.as_deref().unwrap_or(Path::new(small))
    }
}

fn budget(args: &Args) -> Budget {
    Budget {
        max_pixels: args.max_pixels,
        max_tokens: args.max_image_tokens,
        tiles: !args.no_tiles,
        ..Default::default()
    }
}

fn load(args: &Args, options: LoadOptions) -> Result<Model> {
    let bar = ProgressBar::new(1000).with_style(ProgressStyle::with_template(
        "loading {bar:40} {percent:>3} % {elapsed}",
    )?);
    if args.json {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut progress = |_: Stage, fraction: f32| {
        bar.set_position((fraction * 1000.0) as u64);
        true
    };
    let model = Model::load(
        args.model(),
        options,
        Op {
            progress: Some(&mut progress),
            ..Default::default()
        },
    )?;
    bar.finish_and_clear();
    if !args.json {
        let info = model.info();
        let gigabytes = info.weight_bytes as f64 / 1e9;
        println!(
            "{}: {:.1} million parameters, {gigabytes:.2} GB, on {}; loaded in {:.2} s",
            args.model().display(),
            info.parameters as f64 / 1e6,
            info.backend.name(),
            bar.elapsed().as_secs_f64()
        );
    }
    Ok(model)
}

/// Runs one turn and prints the text as it is generated; returns the content of `--json`.
fn answer(session: &Session, print: bool) -> Result<Value> {
    let (mut text, mut tokens, mut logprobs) = (String::new(), Vec::new(), Vec::new());
    let mut finish = FinishReason::Cancelled;
    for event in session.generate() {
        let piece = match event? {
            Event::Prefill { .. } => continue,
            Event::Text {
                text,
                token,
                logprob,
                ..
            } => {
                tokens.push(token);
                logprobs.push(logprob);
                text
            }
            Event::Finished { reason, text } => {
                finish = reason;
                text
            }
        };
        if print {
            print!("{piece}");
            stdout().flush()?;
        }
        text.push_str(&piece);
    }
    if print {
        println!();
    }
    let stats = session.stats();
    Ok(json!({
        "text": text, "tokens": tokens, "logprobs": logprobs, "finish": format!("{finish:?}"),
        "prompt_tokens": stats.prompt_tokens, "image_tokens": stats.image_tokens, "reused_tokens": stats.reused_tokens,
        "vision_ms": ms(stats.vision), "prefill_ms": ms(stats.prefill), "first_token_ms": ms(stats.first_token),
        "decode_ms": ms(stats.decode), "peak_bytes": stats.peak_bytes,
    }))
}

/// Returns the boxes and points in an answer.
fn locate(
    model: &Model,
    picture: &Picture,
    answer: &Value,
    budget: Budget,
) -> Result<Vec<Location>> {
    let [width, height] = [picture.width(), picture.height()].map(|side| side as usize);
    let text = answer["text"].as_str().unwrap_or_default();
    Ok(model.locate(text, width, height, budget)?)
}

fn location_json(location: &Location) -> Value {
    match location.place {
        Place::Box {
            left,
            top,
            right,
            bottom,
        } => json!({ "label": location.label, "box": [left, top, right, bottom] }),
        Place::Point { x, y } => json!({ "label": location.label, "point": [x, y] }),
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn load_options(args: &Args) -> Result<LoadOptions> {
    let backend = if args.cpu {
        Backend::Cpu
    } else {
        Backend::Auto
    };
    let quantize = args.quantize.map(|bits| QuantizeOptions {
        quantization: Quantization::affine(args.group_size, bits),
        ..Default::default()
    });
    let template =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    let chat_template = args.chat_template.as_ref().map(template).transpose()?;
    Ok(LoadOptions {
        backend,
        quantize,
        chat_template,
        ..Default::default()
    })
}

/// Prints the peak memory, and the estimate for a conversation of this length.
fn print_memory(args: &Args, options: &LoadOptions, stats: &Stats) -> Result<()> {
    let positions = stats.prompt_tokens + stats.generated_tokens;
    let generation = GenerationOptions {
        max_context: Some(positions),
        image_budget: budget(args),
        ..Default::default()
    };
    let estimated = Model::estimate(args.model(), options, &generation)?.total;
    let (peak, whose) = match process_peak() {
        Some(bytes) => (bytes, "the process"),
        None => (stats.peak_bytes, "this answer"),
    };
    let ratio = estimated as f64 / peak as f64;
    let [peak, estimated] = [peak, estimated].map(|bytes| bytes as f64 / 1e6);
    println!(
        "\nMemory for {positions} tokens: peak of {whose} {peak:.1} MB, estimated {estimated:.1} \
            MB, ratio {ratio:.3}"
    );
    Ok(())
}

/// Returns the peak memory of this process, without files that it maps, as reported by Linux.
fn process_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(kibibytes("VmHWM:")?.checked_sub(kibibytes("RssFile:")?)? << 10)
}

fn print_stats(stats: &Stats) {
    println!(
        "  image {:.0} ms; prefill {} tokens ({} kept) in {:.0} ms, {:.1} tokens/s; {} tokens in \
         {:.0} ms, {:.1} tokens/s",
        ms(stats.vision),
        stats.prompt_tokens,
        stats.reused_tokens,
        ms(stats.prefill),
        stats.prefill_rate(),
        stats.generated_tokens,
        ms(stats.decode),
        stats.decode_rate()
    );
}

/// Plays a video in the terminal once.
fn play(video: &Video) {
    if !stdout().is_terminal() {
        return;
    }
    let pause = Duration::from_secs_f64((1.0 / video.fps()).clamp(0.02, 2.0));
    for (i, frame) in video.frames().iter().enumerate() {
        if i > 0 {
            std::thread::sleep(pause);
            // Back to the first line of the frame before.
            print!("\x1b[{}F", rows(frame, 56) / 2);
        }
        draw(frame, 56);
    }
}

/// Returns the number of rows of pixels in the drawing of a picture.
fn rows(picture: &Picture, columns: usize) -> usize {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    (height * columns.min(width) / width).max(2)
}

/// Draws a picture with half blocks, two pixels per character, if the output is a terminal with
/// 24-bit color.
fn draw(picture: &Picture, columns: usize) {
    if !stdout().is_terminal() {
        return;
    }
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let rows = rows(picture, columns);
    let columns = columns.min(width);
    let pixel = |column: usize, row: usize| {
        let at = (row * height / rows * width + column * width / columns) * 3;
        let rgb = &picture.rgb()[at..at + 3];
        format!("{};{};{}", rgb[0], rgb[1], rgb[2])
    };
    for row in (0..rows - 1).step_by(2) {
        let line: String = (0..columns)
            .map(|column| {
                format!(
                    "\x1b[38;2;{}m\x1b[48;2;{}m▀",
                    pixel(column, row),
                    pixel(column, row + 1)
                )
            })
            .collect();
        println!("{line}\x1b[0m");
    }
}
