//! Writes the results of each stage of a model for a conversation to a safetensors file, for
//! comparison with a reference.
//!
//! ```text
//! cargo run --example stages -- models/tiny --image models/demo.png --prompt "What is it?" --out stages.safetensors
//! ```
//!
//! All are float32 or int32: `pixels`, from the model's processor (of several pictures one after
//! or videos one after the other), `grids` `[pictures or tiles, 3]` if they have grids of patches, `image_features`
//! `[features, hidden]`, `input_ids` `[rows]`, -1 in rows without a token, `position_ids`
//! `[3, rows]`, and `logits` `[rows, vocabulary]` of the prefill.

mod frames;

use std::{collections::HashMap, path::PathBuf};

use anyhow::{Context, Result, bail};
use mlx_rs::{Array, Dtype};
use moxin_vlm::{
    Backend, Budget, DecodeOptions, Message, Part, Picture, Role, Video, VideoOptions,
    device::Device,
    generate::{ChatMedium, MediumContent, PromptRequest, PromptWriter},
    image::Medium,
    load_tokenizer,
    models::{MediaKey, ModelFolder},
    nn::{Features, Input, Row, Segment, Want},
    text::Template,
};
use safetensors::tensor::TensorView;

const USAGE: &str = "usage: stages [--cpu] [--max-pixels N] [--max-image-tokens N] [--no-tiles] \
    MODEL (--image FILE | --video FILE [--fps N] | --frames FOLDER [--fps N] | --text TEXT | --system TEXT | --prompt TEXT | --assistant TEXT)... --out FILE";

/// The command line. Pictures are used as stored, without turning them upright, as references do.
#[derive(Default)]
struct Args {
    model: PathBuf,
    messages: Vec<Message>,
    media: Vec<Source>,
    budget: Budget,
    out: PathBuf,
    cpu: bool,
}

/// Where a picture or a video is.
enum Source {
    Image(PathBuf),
    /// A file, and the frames to read per second.
    Video(PathBuf, f64),
    /// A folder with frames, and how many follow each other per second.
    Frames(PathBuf, f64),
}

/// The frames per second without `--fps`.
const FPS: f64 = 2.0;

impl Source {
    fn read(&self) -> Result<Medium> {
        let frame = DecodeOptions {
            apply_orientation: false,
            ..Default::default()
        };
        Ok(match self {
            Source::Image(path) => Picture::open(path, &frame)?.into(),
            Source::Video(path, fps) => {
                let options = VideoOptions {
                    fps: Some(*fps),
                    frame,
                    ..Default::default()
                };
                Video::open(path, &options)?.into()
            }
            Source::Frames(folder, fps) => frames::read(folder, *fps, &frame)?.into(),
        })
    }
}

impl Args {
    /// Parses the options, which keep their order: they are the parts of the conversation.
    fn parse() -> Result<Args> {
        let (mut args, mut all) = (Args::default(), std::env::args().skip(1));
        while let Some(arg) = all.next() {
            let mut value = || {
                all.next()
                    .with_context(|| format!("{arg} needs a value\n{USAGE}"))
            };
            match arg.as_str() {
                "--cpu" => args.cpu = true,
                "--model" => args.model = value()?.into(),
                "--out" => args.out = value()?.into(),
                "--max-pixels" => {
                    args.budget.max_pixels =
                        Some(value()?.parse().context("--max-pixels needs a number")?)
                }
                "--max-image-tokens" => {
                    let tokens = value()?.parse();
                    args.budget.max_tokens =
                        Some(tokens.context("--max-image-tokens needs a number")?)
                }
                "--no-tiles" => args.budget.tiles = false,
                "--image" => {
                    args.media.push(Source::Image(value()?.into()));
                    args.add(Role::User, Part::Image);
                }
                "--video" => {
                    args.media.push(Source::Video(value()?.into(), FPS));
                    args.add(Role::User, Part::Video);
                }
                "--frames" => {
                    args.media.push(Source::Frames(value()?.into(), FPS));
                    args.add(Role::User, Part::Video);
                }
                "--fps" => match args.media.last_mut() {
                    Some(Source::Video(_, fps) | Source::Frames(_, fps)) => {
                        *fps = value()?.parse().context("--fps needs a number")?
                    }
                    _ => bail!("--fps belongs behind a video\n{USAGE}"),
                },
                "--text" | "--prompt" => {
                    let part = Part::Text(value()?);
                    args.add(Role::User, part);
                }
                "--system" => {
                    let part = Part::Text(value()?);
                    args.add(Role::System, part);
                }
                "--assistant" => {
                    let part = Part::Text(value()?);
                    args.add(Role::Assistant, part);
                }
                other if other.starts_with("--") => bail!("{other} is no option\n{USAGE}"),
                other => args.model = other.into(),
            }
        }
        if args.model.as_os_str().is_empty()
            || args.out.as_os_str().is_empty()
            || args.messages.is_empty()
        {
            bail!(USAGE);
        }
        Ok(args)
    }

    fn add(&mut self, role: Role, part: Part) {
        match self.messages.last_mut() {
            Some(last) if last.role == role => last.parts.push(part),
            _ => self.messages.push(Message {
                role,
                parts: vec![part],
            }),
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse()?;
    let device = Device::new(if args.cpu {
        Backend::Cpu
    } else {
        Backend::Auto
    })?;
    device.run(|| write_stages(&args, &device))
}

fn write_stages(args: &Args, device: &Device) -> Result<()> {
    let folder = ModelFolder::open(&args.model)?;
    let (model, _) = folder.load(device, None, &|_, _| None, &|_, _| Ok(()))?;
    let end = folder.blueprint.limits().end_tokens;
    let writer = PromptWriter::new(
        folder.blueprint.clone(),
        &load_tokenizer(&args.model)?,
        Template::from_folder(&args.model, None)?,
        &end,
    )?;
    let (mut images, mut features, mut pixels, mut shape) =
        (Vec::new(), Vec::new(), Vec::new(), vec![0i32]);
    for source in &args.media {
        let medium = source.read()?;
        let plan = folder.plan_medium(&medium, args.budget)?;
        let made = folder.preprocess(&medium, &plan)?;
        features.push(model.vision.encode(&made, &plan, &|_| Ok(()))?);
        // Planes of each picture or tile, or rows of patches of all pictures.
        let (height, width) = (made.height as i32, made.width as i32);
        let tiles = plan.grids.len().max(1);
        shape = match made.channels {
            1 => vec![shape[0] + height, width],
            channels => vec![
                shape[0] + tiles as i32,
                (channels / tiles) as i32,
                height,
                width,
            ],
        };
        pixels.extend(made.data);
        let key = MediaKey::new(medium.hash(), &plan);
        images.push(ChatMedium {
            plan,
            key,
            content: MediumContent::Medium(medium),
        });
    }
    let mut messages = args.messages.clone();
    if !writer.is_marked() {
        messages
            .iter_mut()
            .for_each(|message| message.parts.retain(|part| *part != Part::Image));
    }
    let prompt = writer.write(&PromptRequest::new(&messages, &images, true))?;
    let mut placed = Vec::new();
    for (runs, features) in prompt.media.iter().zip(&features) {
        let mut first = 0;
        for run in runs {
            placed.push((run.clone(), features, first));
            first += run.len();
        }
    }
    let cache = &mut model.decoder.new_cache()[..];
    let segment = Segment {
        input: Input::Ids,
        rows: &prompt.rows,
        features: &placed,
        cache,
        want: Want::All,
    };
    let logits = model
        .decoder
        .forward(&mut [segment], &|_| Ok(()))
        .remove(0)?
        .context("no logits")?;

    let rows = prompt.rows.len() as i32;
    let ids: Vec<i32> = prompt
        .rows
        .iter()
        .map(|row| {
            if row.id == Row::NO_ID {
                -1
            } else {
                row.id as i32
            }
        })
        .collect();
    let positions: Vec<i32> = (0..3)
        .flat_map(|axis| prompt.rows.iter().map(move |row| row.position[axis]))
        .collect();
    let mut stages = HashMap::from([
        ("input_ids", Array::from_slice(&ids, &[rows])),
        ("position_ids", Array::from_slice(&positions, &[3, rows])),
        ("logits", wide(&logits.reshape(&[rows, -1])?)?),
    ]);
    if !images.is_empty() {
        stages.insert("pixels", Array::from_slice(&pixels, &shape));
        let all: Vec<Array> = features
            .iter()
            .map(|features: &Features| wide(&features.rows))
            .collect::<Result<_>>()?;
        stages.insert("image_features", wide(&mlx_rs::ops::concatenate(&all, 0)?)?);
    }
    let grids: Vec<i32> = images
        .iter()
        .flat_map(|image| image.plan.grids.iter().flatten())
        .map(|side| *side as i32)
        .collect();
    if !grids.is_empty() {
        stages.insert(
            "grids",
            Array::from_slice(&grids, &[grids.len() as i32 / 3, 3]),
        );
    }
    let views = stages
        .iter()
        .map(|(name, array)| Ok((*name, TensorView::try_from(array)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &args.out)
        .with_context(|| format!("writing {}", args.out.display()))
}

/// Returns the array as float32, evaluated and contiguous, so that its values can be read.
fn wide(array: &Array) -> Result<Array> {
    let array = array.as_dtype(Dtype::Float32)?.contiguous()?;
    array.eval()?;
    Ok(array)
}
