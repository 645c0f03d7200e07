//! Writes what each stage of the model makes of a picture and a prompt to a safetensors file, to be compared with a reference:
//! `pixels` `[1, channels, height, width]`, `dino_features` and `siglip_features` `[1, patches, width]`, `projected` `[1, patches, hidden]`,
//! `logits` `[tokens, vocabulary]` of the prefill, `ids` `[text tokens]`. All are float32, ids int32.
//!
//! ```text
//! cargo run --example stages -- --model models/tiny --image models/demo.png --prompt "What is it?" --out stages.safetensors
//! ```

use std::{collections::HashMap, path::PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use mlx_rs::{Array, Dtype};
use moxin_vlm::{
    Backend, DecodeOptions, Picture, Processor,
    device::Device,
    load_tokenizer,
    models::moxin::{Rows, load_model_on},
    text::{Turn, pure_prompt},
};
use safetensors::tensor::TensorView;

/// Writes the model's intermediate results to a file.
#[derive(Parser)]
struct Args {
    /// The model: a Hugging Face folder.
    #[arg(long)]
    model: PathBuf,
    /// The picture; taken as stored, without turning it upright, as the reference does.
    #[arg(long)]
    image: PathBuf,
    /// Questions and answers in turn, beginning and ending with a question.
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Compute on the processor even where there is a GPU.
    #[arg(long)]
    cpu: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = Device::new(if args.cpu { Backend::Cpu } else { Backend::Auto })?;
    device.run(|| write_stages(&args, &device))
}

fn write_stages(args: &Args, device: &Device) -> Result<()> {
    let model = load_model_on(&args.model, device, None, &|_, _| Ok(()))?;
    let processor = Processor::from_file(&args.model.join("preprocessor_config.json"))?;
    let picture = Picture::open(&args.image, &DecodeOptions { apply_orientation: false, ..Default::default() })?;
    let pixels = processor.process(&picture)?;
    let turns: Vec<Turn> =
        args.prompt.iter().enumerate().map(|(i, text)| if i % 2 == 0 { Turn::user(text) } else { Turn::assistant(text) }).collect();
    let ids = load_tokenizer(&args.model)?.encode(&pure_prompt(&turns)?, true)?;

    let features = model.encode(&pixels)?;
    let projected = model.project(&features)?;
    let embeds = model.embed(&ids, Some(&projected))?;
    let logits = model.decoder.forward(&embeds, &mut model.new_cache(), Rows::All)?;

    let shape = [1, pixels.channels as i32, pixels.height as i32, pixels.width as i32];
    let signed: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let mut stages = HashMap::from([
        ("pixels", Array::from_slice(&pixels.data, &shape)),
        ("projected", wide(&projected)?),
        ("logits", wide(&logits.reshape(&[logits.dim(1), logits.dim(2)])?)?),
        ("ids", Array::from_slice(&signed, &[signed.len() as i32])),
    ]);
    let names: &[&str] = if features.len() == 2 { &["dino_features", "siglip_features"] } else { &["features"] };
    for (name, features) in names.iter().zip(&features) {
        stages.insert(name, wide(features)?);
    }
    let views = stages.iter().map(|(name, array)| Ok((*name, TensorView::try_from(array)?))).collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &args.out).with_context(|| format!("writing {}", args.out.display()))
}

/// As float32, evaluated and laid out row by row, so that its numbers can be read.
fn wide(array: &Array) -> Result<Array> {
    let array = array.as_dtype(Dtype::Float32)?.contiguous()?;
    array.eval()?;
    Ok(array)
}
