//! Quantizes a model and saves it in the format of mlx-community: a folder that this library loads
//! like any other.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use moxin_vlm::{LoadOptions, Mode, Model, Op, Quantization, QuantizeOptions, Stage};

#[derive(Parser)]
#[command(about = "Quantizes a model and saves it")]
struct Args {
    /// The model's folder.
    #[arg(long)]
    model: PathBuf,
    /// The folder for the quantized model.
    #[arg(long)]
    output: PathBuf,
    /// Bits per value: 2, 3, 4, 5, 6 or 8.
    #[arg(long, default_value_t = 4)]
    bits: usize,
    /// The group size: 32, 64 or 128.
    #[arg(long, default_value_t = 64)]
    group_size: usize,
    /// affine, or mxfp4, mxfp8 or nvfp4, which have fixed bits and group size.
    #[arg(long, default_value = "affine", value_parser = mode)]
    mode: Mode,
    /// Other bits for some modules, such as language_model.lm_head=8; 0 leaves them as they are.
    /// May be given several times.
    #[arg(long, value_name = "PATH=BITS", value_parser = module)]
    module: Vec<(String, usize)>,
    /// Leave the token embedding as it is.
    #[arg(long)]
    keep_embedding: bool,
    /// Quantize vision encoders and projector too.
    #[arg(long)]
    vision: bool,
    /// Replace the output folder if it exists.
    #[arg(long)]
    overwrite: bool,
}

fn mode(text: &str) -> Result<Mode, String> {
    Mode::from_name(text).ok_or_else(|| "affine, mxfp4, mxfp8 or nvfp4 is expected".into())
}

fn module(text: &str) -> Result<(String, usize), String> {
    let (path, bits) = text.split_once('=').ok_or("PATH=BITS is expected")?;
    Ok((
        path.to_owned(),
        bits.parse().map_err(|error| format!("{bits}: {error}"))?,
    ))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let scheme = |bits| Quantization::affine(args.group_size, bits);
    let modules = args
        .module
        .iter()
        .map(|(path, bits)| (path.clone(), (*bits > 0).then(|| scheme(*bits))));
    let quantize = QuantizeOptions {
        quantization: args.mode.scheme().unwrap_or(scheme(args.bits)),
        embedding: !args.keep_embedding,
        vision: args.vision,
        modules: modules.collect(),
        ..QuantizeOptions::default()
    };
    let bar = ProgressBar::new(1000).with_style(ProgressStyle::with_template(
        "{msg:24} {bar:40} {percent:>3} % {elapsed}",
    )?);
    let mut progress = |stage: Stage, fraction: f32| {
        bar.set_message(if stage == Stage::Save {
            "saving"
        } else {
            "loading and quantizing"
        });
        bar.set_position((fraction * 1000.0) as u64);
        true
    };
    // If quantized while loading, the model is never in memory as a whole.
    let options = LoadOptions {
        quantize: Some(quantize),
        ..LoadOptions::default()
    };
    let model = Model::load(
        &args.model,
        options,
        Op {
            progress: Some(&mut progress),
            ..Op::default()
        },
    )?;
    model.save(
        &args.output,
        args.overwrite,
        Op {
            progress: Some(&mut progress),
            ..Op::default()
        },
    )?;
    bar.finish_and_clear();
    let (before, after) = (
        model.info().weight_bytes as f64 / 1e6,
        Model::inspect(&args.output)?.weight_bytes as f64 / 1e6,
    );
    println!(
        "{}: {after:.1} MB, {:.1} % of {before:.1} MB",
        args.output.display(),
        after / before * 100.0
    );
    Ok(())
}
