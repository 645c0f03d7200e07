//! Measures the effect of quantization on quality, for every number of bits and every group size:
//! how many answers about unseen pictures the small model gets exactly right, its perplexity on the
//! correct answers, how often its most likely token is the unquantized model's, and the error of a
//! random matrix of Moxin-7B's size. Prints JSON. `cargo xtask quality` writes docs/quantization.md
//! from it.
//!
//!     cargo run --release --example quality -- [--limit N]

#[allow(dead_code)] // some items are only for the score
mod heldout;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use mlx_rs::{Array, Dtype, random};
use moxin_vlm::{
    Backend, LoadOptions, Message, Mode, Model, MoxinVLM, Op, Processor, Quantization,
    QuantizeOptions, Tokenizer,
    device::Device,
    load_model, load_tokenizer,
    models::prismatic::pure_prompt,
    nn::Want,
    nn::{Matrix, QuantizedMatrix},
};
use serde_json::{Value, json};

use heldout::{Seen, ask, begin};

/// Measure the effect of quantization on quality
#[derive(Parser)]
struct Arguments {
    /// Folder of the model
    #[arg(long, default_value = "models/tiny")]
    model: PathBuf,
    /// Folder with heldout.png and heldout.jsonl
    #[arg(long, default_value = "models/tiny-training")]
    heldout: PathBuf,
    /// The number of pictures
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let seen = heldout::read(&arguments.heldout, Some(arguments.limit))?;
    let schemes = [8, 6, 5, 4, 3, 2]
        .into_iter()
        .flat_map(|bits| [32, 64, 128].map(|group_size| Quantization::affine(group_size, bits)));
    let schemes = schemes.chain(Mode::ALL.into_iter().filter_map(Mode::scheme));
    let schemes: Vec<_> = std::iter::once(None).chain(schemes.map(Some)).collect();
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} schemes, {eta} left")?;
    let bar = ProgressBar::new(schemes.len() as u64).with_style(style);
    let forced = Forced::new(&arguments, &seen)?;
    let mut rows = Vec::new();
    let mut reference = Vec::new();
    for scheme in bar.wrap_iter(schemes.into_iter()) {
        let (right, asked) = score(&arguments, &seen, scheme)?;
        let guesses = forced.guesses(scheme)?;
        if scheme.is_none() {
            reference = guesses.top_tokens.clone();
        }
        let same = guesses
            .top_tokens
            .iter()
            .zip(&reference)
            .filter(|(a, b)| a == b)
            .count();
        rows.push(json!({
            "bits": scheme.map(|scheme| scheme.bits), "group_size": scheme.map(|scheme| scheme.group_size),
            "mode": scheme.map(|scheme| scheme.mode.name().to_string_lossy()),
            "right": right, "asked": asked, "perplexity": guesses.perplexity,
            "same_token": same as f64 / reference.len().max(1) as f64, "tokens": reference.len(),
            "weights": weights(&arguments, scheme)?, "matrix": scheme.map(matrix_error).transpose()?,
        }));
    }
    println!(
        "{:#}",
        json!({ "model": arguments.model, "pictures": seen.len(), "rows": rows })
    );
    Ok(())
}

fn options(scheme: Option<Quantization>) -> LoadOptions {
    let quantize = scheme.map(|quantization| QuantizeOptions {
        quantization,
        ..QuantizeOptions::default()
    });
    LoadOptions {
        quantize,
        ..LoadOptions::default()
    }
}

/// Returns the size of the weights in bytes.
fn weights(arguments: &Arguments, scheme: Option<Quantization>) -> Result<u64> {
    Ok(Model::estimate(&arguments.model, &options(scheme), &Default::default())?.weights)
}

/// Returns the number of exactly correct answers, and of questions.
fn score(
    arguments: &Arguments,
    seen: &[Seen],
    scheme: Option<Quantization>,
) -> Result<(usize, usize)> {
    let model = Model::load(&arguments.model, options(scheme), Op::default())?;
    let (mut right, mut asked) = (0, 0);
    for seen in seen {
        let picture = model.encode_image(&seen.picture, Op::default())?;
        for conversation in &seen.conversations {
            let session = begin(&model, &picture)?;
            for turn in conversation {
                asked += 1;
                right += usize::from(ask(&session, &turn.question)? == turn.answer);
            }
        }
    }
    Ok((right, asked))
}

/// The correct answers, as if the model had given them.
struct Forced {
    device: Device,
    dense: MoxinVLM,
    /// The token ids of question and answer, where the answer starts, and the picture's tokens.
    texts: Vec<(Vec<u32>, usize, Array)>,
}

/// The model's predictions for each token of the correct answers.
struct Guesses {
    top_tokens: Vec<usize>,
    perplexity: f64,
}

impl Forced {
    fn new(arguments: &Arguments, seen: &[Seen]) -> Result<Forced> {
        let device = Device::new(Backend::Cpu)?;
        let tokenizer = load_tokenizer(&arguments.model)?;
        let processor = Processor::from_file(&arguments.model.join("preprocessor_config.json"))?;
        let (dense, texts) = device.run(|| -> Result<_> {
            let dense = load_model(&arguments.model)?;
            let mut texts = Vec::new();
            for seen in seen {
                let picture = dense.project(&dense.encode(&processor.process(&seen.picture)?)?)?;
                picture.eval()?;
                for turn in seen.conversations.iter().filter_map(|turns| turns.first()) {
                    let (ids, answer) = forced_ids(&tokenizer, &turn.question, &turn.answer)?;
                    texts.push((ids, answer, picture.clone()));
                }
            }
            Ok((dense, texts))
        })?;
        Ok(Forced {
            device,
            dense,
            texts,
        })
    }

    fn guesses(&self, scheme: Option<Quantization>) -> Result<Guesses> {
        self.device.run(|| {
            let mut model = self.dense.clone();
            if let Some(quantization) = scheme {
                model.quantize_with(&QuantizeOptions {
                    quantization,
                    ..QuantizeOptions::default()
                })?;
            }
            let (mut top_tokens, mut loss) = (Vec::new(), 0.0);
            for (ids, answer, picture) in &self.texts {
                let embeds = model.embed(ids, Some(picture))?;
                let logits = model
                    .forward_embeddings(&embeds, &mut model.new_cache(), Want::All, &|| Ok(()))?
                    .unwrap()
                    .to_vec_cast::<f32>()?;
                let vocabulary = model.decoder.settings().vocab_size;
                for (i, id) in ids.iter().enumerate().skip(*answer) {
                    // A token is predicted by the position before it; the picture follows the first
                    // token.
                    let row = i - 1 + model.image_tokens();
                    let row = &logits[row * vocabulary..(row + 1) * vocabulary];
                    let most = row.iter().copied().fold(f32::MIN, f32::max);
                    let sum: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
                    loss += sum.ln() - f64::from(row[*id as usize] - most);
                    top_tokens.push(
                        row.iter()
                            .position(|logit| *logit == most)
                            .context("a logit is not a number")?,
                    );
                }
            }
            let perplexity = (loss / top_tokens.len().max(1) as f64).exp();
            Ok(Guesses {
                top_tokens,
                perplexity,
            })
        })
    }
}

/// Returns the ids of a question with its answer, and the number of those before the answer.
fn forced_ids(tokenizer: &Tokenizer, question: &str, answer: &str) -> Result<(Vec<u32>, usize)> {
    let asked = tokenizer.encode(&pure_prompt(&[Message::user(question)])?, true)?;
    let answered = tokenizer.encode(
        &pure_prompt(&[Message::user(question), Message::assistant(answer)])?,
        true,
    )?;
    let common = asked
        .iter()
        .zip(&answered)
        .take_while(|(a, b)| a == b)
        .count();
    Ok((answered, common))
}

/// Returns the errors of a random matrix of the size in Moxin-7B's MLP: of its values, and of its
/// product with a random vector, both relative.
fn matrix_error(scheme: Quantization) -> Result<Value> {
    let device = Device::new(Backend::Cpu)?;
    device.run(|| {
        let key = random::key(7)?;
        let weight =
            random::normal::<f32>(&[4096, 14336], None, 0.02, &key)?.as_dtype(Dtype::Bfloat16)?;
        let x = random::normal::<f32>(&[1, 14336], None, None, &random::key(8)?)?;
        let quantized = QuantizedMatrix::quantize(&weight, scheme)?;
        let rows = Array::from_iter(0..4096u32, &[4096]);
        let back = Matrix::Quantized(quantized).rows(&rows, Dtype::Float32)?;
        let weight = weight.as_dtype(Dtype::Float32)?;
        let norm = |array: &Array| -> Result<f64> {
            Ok(f64::from(
                array.square()?.sum(None)?.sqrt()?.try_item_cast::<f32>()?,
            ))
        };
        let numbers = norm(&weight.subtract(&back)?)? / norm(&weight)?;
        let exact = x.matmul(weight.transpose()?)?;
        let product = norm(&exact.subtract(x.matmul(back.transpose()?)?)?)? / norm(&exact)?;
        Ok(json!({ "numbers": numbers, "product": product }))
    })
}
