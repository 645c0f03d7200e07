//! Random checkpoints of real sizes, to check that a machine can hold and run them: the published
//! tensors with random values. Their answers are meaningless.

mod models;
mod tensors;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{cargo, setup};
pub use models::Model;
use tensors::{MOXIN_7B, Tensor};

const GIGABYTE: usize = 1_000_000_000;

/// The shard size of the real checkpoint.
const SHARD_BYTES: usize = 7 * GIGABYTE;

#[derive(clap::Args)]
pub struct Options {
    /// The model whose sizes it has
    #[arg(long, value_enum, default_value_t = Model::Moxin7b)]
    model: Model,
    /// The folder for the checkpoint, which may already exist [default: one in the user's cache]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 4)]
    tokens: usize,
}

pub fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    let folder = ensure(options.model, options.out)?;
    let folder = folder.to_str().context("the folder's path is not UTF-8")?;
    let tokens = options.tokens.to_string();
    cargo::build_example("generate")?;
    cargo::run_example(
        "generate",
        &[
            "--model",
            folder,
            "--image",
            "models/demo.png",
            "--prompt",
            "Describe the picture.",
            "--max-tokens",
            &tokens,
        ],
    )
}

/// Writes the checkpoint if it is missing; returns its folder.
pub fn ensure(model: Model, out: Option<PathBuf>) -> Result<PathBuf> {
    let folder = match out {
        Some(out) => std::path::absolute(out)?,
        None => setup::cache_folder()?.join(model.folder()),
    };
    if folder.join("config.json").is_file() {
        println!("The checkpoint is in {}", folder.display());
    } else {
        write(model, &folder)?;
    }
    Ok(folder)
}

/// Writes the checkpoint next to its final path, and moves it there.
fn write(model: Model, folder: &Path) -> Result<()> {
    let tensors = model.tensors();
    let bytes: usize = tensors.iter().map(Tensor::bytes).sum();
    if folder.exists() {
        bail!(
            "{} already exists and has no checkpoint: choose another folder with --out",
            folder.display()
        );
    }
    let parent = folder
        .parent()
        .context("--out is the root folder: choose a folder below it")?;
    let part = PathBuf::from(format!("{}.part", folder.display()));
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    if part.exists() {
        fs::remove_dir_all(&part)
            .with_context(|| format!("cannot remove {}, left by an earlier run", part.display()))?;
    }
    check_space(parent, bytes)?;
    println!(
        "Writing {:.1} GB of random weights to {}",
        gigabytes(bytes),
        folder.display()
    );
    let outcome = fill(model, &part, &tensors, bytes).and_then(|()| Ok(fs::rename(&part, folder)?));
    if outcome.is_err() {
        fs::remove_dir_all(&part).ok(); // the first error is the one to report
    }
    outcome.with_context(|| format!("cannot write {}", folder.display()))
}

fn check_space(folder: &Path, bytes: usize) -> Result<()> {
    let free = fs4::available_space(folder)
        .with_context(|| format!("cannot tell how much space {} has", folder.display()))?;
    if free < bytes as u64 + GIGABYTE as u64 {
        bail!(
            "the checkpoint needs {:.1} GB and the disk of {} has {:.1} GB free: free some space, \
                or choose another disk with --out",
            gigabytes(bytes),
            folder.display(),
            gigabytes(free as usize)
        );
    }
    Ok(())
}

fn fill(model: Model, folder: &Path, tensors: &[Tensor], bytes: usize) -> Result<()> {
    fs::create_dir(folder)?;
    let start = Instant::now();
    let mut told = 0;
    writer::write(folder, tensors, SHARD_BYTES, &mut |written| {
        if written / GIGABYTE > told || written == bytes {
            told = written / GIGABYTE;
            println!(
                "[{:5.1} s] {:.1} of {:.1} GB",
                start.elapsed().as_secs_f64(),
                gigabytes(written),
                gigabytes(bytes)
            );
        }
    })?;
    for (name, text) in model.files()? {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// Returns the settings of Moxin-7B VLM.
fn moxin() -> Vec<(&'static str, Value)> {
    let generation = json!({ "_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000 });
    vec![
        ("config.json", config()),
        ("generation_config.json", generation),
        ("preprocessor_config.json", preprocessor_config()),
    ]
}

/// As written by Moxin's converter: `text_config` has only the differences from transformers'
/// defaults.
fn config() -> Value {
    json!({
        "arch_specifier": "no-align+fused-gelu-mlp",
        "architectures": ["PrismaticForConditionalGeneration"],
        "hf_llm_id": "moxin-org/Moxin-7B-LLM",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [224, 224],
        "llm_backbone_id": "moxin-7b-pure",
        "llm_max_length": 2048,
        "model_type": "prismatic",
        "output_projector_states": false,
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {
            "model_type": "mistral",
            "num_hidden_layers": MOXIN_7B.decoder.layers,
            "pad_token_id": 32000,
            "torch_dtype": "bfloat16",
            "vocab_size": MOXIN_7B.decoder.vocabulary,
        },
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [null, null],
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": true,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    })
}

/// The numbers of the real file: `tvf_normalize_params` are `means` and `stds` rounded to bfloat16.
fn preprocessor_config() -> Value {
    let resize =
        json!({ "antialias": true, "interpolation": 3, "max_size": null, "size": [224, 224] });
    let crop = json!({ "output_size": [224, 224] });
    let dino = json!({ "inplace": false, "mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375] });
    let siglip = json!({ "inplace": false, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5] });
    json!({
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, 224, 224], [3, 224, 224]],
        "interpolations": ["bicubic", "bicubic"],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "processor_class": "PrismaticProcessor",
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
        "tvf_crop_params": [crop, crop],
        "tvf_do_letterbox": false,
        "tvf_letterbox_fill": null,
        "tvf_normalize_params": [dino, siglip],
        "tvf_resize_params": [resize, resize],
        "use_fused_vision_backbone": true,
    })
}

fn gigabytes(bytes: usize) -> f64 {
    bytes as f64 / GIGABYTE as f64
}
