//! What the models of the Qwen-VL family share: pictures of any size, and Qwen2 with positions in
//! three dimensions.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Blueprint, Budget, ClipSize, DEFAULT_CONTEXT, Files, Grounding, Limits, Marker, MediaPlan,
    MediumSize, PlacedMedium, PromptFormat, Sizes, TextConfig, Vision, mrope,
    names::{decoder_name, is_computed},
    qwen_vision::{QwenVision, encoder_memory},
    squared::{CLIP_MEAN, CLIP_STD},
    text_config::token_id,
};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::{Device, room},
    image::{
        Filter, Normalization, Patches, Picture, Pixels, Video, patchify, planes, resize,
        resize_weights, smart_resize,
    },
    nn::{Activation, DecoderSettings, QwenVitConfig},
    text::ContentStyle,
};

/// The placeholder for a picture.
const MARKER: &str = "<|image_pad|>";

/// The placeholder for a video.
const VIDEO_MARKER: &str = "<|video_pad|>";

/// The published models' template, for folders without one
/// (<https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/blob/main/chat_template.json>): a default
/// system message, and messages between control tokens.
const TEMPLATE: &str = "{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}\
<|im_start|>{{ message['role'] }}\n\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What differs among the models of the family, other than `vision_config`.
#[derive(Debug)]
pub struct Family {
    /// Its `model_type` in config.json.
    pub model_type: &'static str,
    /// The names of its processors in preprocessor_config.json.
    pub processors: &'static [&'static str],
    /// How it writes boxes and points.
    pub grounding: Grounding,
}

/// The fields of `vision_config`.
pub trait EncoderConfig: DeserializeOwned {
    /// Returns the checked settings of the encoder, given the decoder's width. An error is a
    /// message that names the field.
    fn checked(&self, output: usize) -> Result<QwenVitConfig, String>;

    /// Returns the temporal positions per second of a video; `None`: its patches are numbered.
    fn tokens_per_second(&self) -> Option<f64> {
        None
    }
}

/// A blueprint of the family.
#[derive(Debug)]
pub struct QwenVl {
    family: Family,
    text: TextConfig,
    decoder: DecoderSettings,
    vision: QwenVitConfig,
    processor: Processor,
    image_token: u32,
    video_token: u32,
    tokens_per_second: Option<f64>,
}

/// The fields of preprocessor_config.json.
#[derive(Debug)]
struct Processor {
    min_pixels: usize,
    max_pixels: usize,
    filter: Filter,
    normalization: Normalization,
}

/// Checks an encoder's sizes. `names` are the fields of its width and of the size inside its MLPs.
///
/// # Errors
/// A message that names the field.
pub fn check_encoder(
    encoder: &QwenVitConfig,
    names: [&str; 2],
    channels: usize,
) -> Result<(), String> {
    let sizes = [
        ("depth", encoder.depth),
        (names[0], encoder.width),
        (names[1], encoder.inner),
        ("num_heads", encoder.heads),
        ("patch_size", encoder.patch_size),
        ("spatial_merge_size", encoder.merge),
        ("temporal_patch_size", encoder.temporal_patch),
    ];
    if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 16).contains(size)) {
        return Err(format!(
            "vision_config.{name} is or makes {size}; expected 1 to {}",
            1 << 16
        ));
    }
    let QwenVitConfig { width, heads, .. } = encoder;
    if !width.is_multiple_of(4 * heads) {
        return Err(format!(
            "vision_config.{} is {width}; expected {heads} heads, each with a multiple of 4 values",
            names[0]
        ));
    }
    if channels != 3
        || encoder.patch_size > 256
        || encoder.merge > 16
        || encoder.temporal_patch > 16
    {
        return Err(
            "vision_config: only 3 channels, patches of up to 256 pixels and 16 frames, and \
             merging up to 16 are supported"
                .into(),
        );
    }
    Ok(())
}

/// Returns the activation of `vision_config.hidden_act`; `usual` is the published models'.
pub fn activation(name: &str, usual: &str) -> Result<Activation, String> {
    Activation::from_name(name)
        .ok_or_else(|| format!("vision_config.hidden_act is {name:?}; expected {usual}"))
}

impl QwenVl {
    /// Reads and checks everything in a folder except the weights.
    pub fn open<C: EncoderConfig>(files: &Files, family: Family) -> Result<QwenVl> {
        let (path, config) = (&files.config_path, &files.config);
        let text = TextConfig::new(path, config, defaults())?;
        let plain = text.decoder(path, files.ties_head())?;
        let uses_window = |config: &Value| {
            config.get("use_sliding_window").and_then(Value::as_bool) == Some(true)
        };
        if uses_window(config) || config.get("text_config").is_some_and(uses_window) {
            return Err(Error::unsupported(
                path,
                "use_sliding_window is true; only false, as published, is supported",
            ));
        }
        if text.rope_sections().is_none() {
            return Err(Error::unsupported(
                path,
                "mrope_section is missing in rope_scaling or rope_parameters",
            ));
        }
        let decoder = DecoderSettings {
            qkv_bias: true,
            windows: vec![None],
            ..plain
        };
        let vision = config
            .get("vision_config")
            .filter(|value| !value.is_null())
            .cloned()
            .unwrap_or_else(|| serde_json::json!({}));
        let vision: C = serde_json::from_value(vision)
            .map_err(|error| Error::corrupt(path, format!("vision_config: {error}")))?;
        let tokens_per_second = vision.tokens_per_second();
        let vision = vision
            .checked(decoder.hidden_size)
            .map_err(|what| Error::unsupported(path, what))?;
        let processor = Processor::read(files, &vision, &family)?;
        let image_token = token_id(path, config, &["image_token_id"], 151_655)?;
        let video_token = token_id(path, config, &["video_token_id"], 151_656)?;
        Ok(QwenVl {
            family,
            text,
            decoder,
            vision,
            processor,
            image_token,
            video_token,
            tokens_per_second,
        })
    }

    /// Returns the edge in pixels of the square that becomes one feature.
    fn square(&self) -> usize {
        self.vision.patch_size * self.vision.merge
    }

    /// Returns the temporal positions of a video's patches, computed in 32 bits as in transformers:
    /// 0.1 seconds are a little more than a tenth.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if they are so large that 32-bit floats skip some.
    fn temporal_positions(&self, times: usize, fps: f64) -> Result<Vec<u32>> {
        let step = self.tokens_per_second.map_or(1.0, |per_second| {
            let seconds = self.vision.temporal_patch as f64 / fps;
            per_second as f32 * seconds as f32
        });
        let last = times as f32 * step;
        if last.is_nan() || last > (1 << f32::MANTISSA_DIGITS) as f32 {
            return Err(Error::InvalidArgument(format!(
                "a video of {fps} frames per second; its times are too far apart for this model"
            )));
        }
        Ok((0..times).map(|i| (i as f32 * step) as u32).collect())
    }

    /// Makes the patches of frames: of one, for a picture.
    fn preprocess_frames(&self, frames: &[Picture], plan: &MediaPlan) -> Result<Pixels> {
        let [width, height] = plan.pixels;
        let values = frames.len() * 3 * width * height;
        let mut all = room(values, || "the pixels of a picture".into())?;
        for frame in frames {
            let resized = resize(frame, width, height, self.processor.filter)?;
            all.extend(planes(&resized, &self.processor.normalization)?);
        }
        let QwenVitConfig {
            patch_size,
            temporal_patch,
            merge,
            ..
        } = self.vision;
        let patches = Patches {
            size: patch_size,
            frames: temporal_patch,
            merge,
        };
        let data = patchify(&all, height, width, patches)?;
        Ok(Pixels {
            channels: 1,
            height: data.len() / self.vision.patch_numbers(),
            width: self.vision.patch_numbers(),
            data,
        })
    }
}

fn defaults() -> TextConfig {
    TextConfig {
        vocab_size: Some(152_064),
        hidden_size: Some(8192),
        intermediate_size: Some(29_568),
        num_hidden_layers: Some(80),
        num_attention_heads: Some(64),
        num_key_value_heads: Some(8),
        rms_norm_eps: Some(1e-5),
        rope_theta: Some(1_000_000.0),
        max_position_embeddings: Some(32_768),
        ..TextConfig::default()
    }
}

impl Processor {
    /// `min_pixels` and `max_pixels` take precedence over `size`, as in transformers.
    fn read(files: &Files, vision: &QwenVitConfig, family: &Family) -> Result<Processor> {
        let settings = files.processor()?;
        settings.expect(family.model_type, family.processors)?;
        settings.require_steps()?;
        let sizes = [
            ("patch_size", vision.patch_size),
            ("merge_size", vision.merge),
            ("temporal_patch_size", vision.temporal_patch),
        ];
        for (name, expected) in sizes {
            if let Some(found) = settings.count(name)?.filter(|found| *found != expected) {
                let what = format!(
                    "field `{name}` is {found}; vision_config in config.json has {expected}"
                );
                return Err(Error::corrupt(settings.path(), what));
            }
        }
        let bound = |name: &str, side: &str, default: usize| -> Result<usize> {
            Ok(settings
                .count(name)?
                .or(settings.count_in("size", side)?)
                .unwrap_or(default))
        };
        let processor = Processor {
            min_pixels: bound("min_pixels", "shortest_edge", 56 * 56)?,
            max_pixels: bound("max_pixels", "longest_edge", 28 * 28 * 1280)?,
            filter: settings.filter(Filter::Bicubic)?,
            normalization: settings.normalization(CLIP_MEAN, CLIP_STD)?,
        };
        match processor.min_pixels <= processor.max_pixels {
            true => Ok(processor),
            false => Err(Error::corrupt(
                settings.path(),
                "field `min_pixels` is more than `max_pixels`",
            )),
        }
    }
}

impl Blueprint for QwenVl {
    fn limits(&self) -> Limits {
        Limits {
            context: self.text.max_position_embeddings.unwrap_or(32_768),
            default_context: DEFAULT_CONTEXT,
            end_tokens: self.text.end_tokens(),
            images: usize::MAX,
            videos: usize::MAX,
            image_size: 0,
            system: true,
            several_messages: true,
            default_prompt: "Describe this image.",
        }
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        if is_computed(stored) {
            return None;
        }
        if let Some(name) = decoder_name(stored) {
            return Some(name);
        }
        let name = stored.strip_prefix("model.").unwrap_or(stored);
        Some(
            name.strip_prefix("visual.")
                .map_or_else(|| name.to_owned(), |rest| format!("vision_tower.{rest}")),
        )
    }

    fn decoder(&self) -> &DecoderSettings {
        &self.decoder
    }

    fn plan(&self, MediumSize { width, height }: MediumSize, budget: Budget) -> Result<MediaPlan> {
        let min = budget.min_pixels.unwrap_or(self.processor.min_pixels);
        let max = budget.max_pixels.unwrap_or(self.processor.max_pixels);
        // A bound that is given alone may lie beyond the folder's other bound.
        let (min, max) = match budget.min_pixels {
            Some(_) if budget.max_pixels.is_none() => (min, max.max(min)),
            _ => (min.min(max), max),
        };
        let least = self.square().pow(2);
        Budget::check_least(max, least)?;
        let most = budget.max_tokens.unwrap_or(usize::MAX).max(1);
        let max = max.min(most.saturating_mul(least));
        let size = smart_resize(height, width, self.square(), min.min(max), max)?;
        // Rounding up may go beyond `max_tokens`; sides of up to so many squares do not.
        let squares = size.map(|side| side / self.square());
        let side = (most / squares[0].min(squares[1])).max(1);
        let [height, width] = squares.map(|squares| squares.min(side) * self.square());
        let [rows, columns] = [height, width].map(|side| side / self.vision.patch_size);
        let features = rows * columns / self.vision.merge.pow(2);
        let grid = [1, rows as u32, columns as u32];
        Ok(MediaPlan {
            grids: vec![grid],
            pixels: [width, height],
            markup: MARKER.into(),
            runs: vec![features],
            times: Vec::new(),
        })
    }

    fn plan_video(&self, size: ClipSize, budget: Budget) -> Result<MediaPlan> {
        let times = size.times.len().div_ceil(self.vision.temporal_patch);
        let frame = Budget {
            max_tokens: budget.max_tokens.map(|most| most / times.max(1)),
            ..budget
        };
        let plan = self.plan(size.frame, frame)?;
        let [_, rows, columns] = plan.grids[0];
        Ok(MediaPlan {
            grids: vec![[times as u32, rows, columns]],
            markup: VIDEO_MARKER.into(),
            runs: vec![times * plan.features()],
            times: self.temporal_positions(times, size.fps)?,
            ..plan
        })
    }

    fn preprocess(&self, picture: &Picture, plan: &MediaPlan) -> Result<Pixels> {
        self.preprocess_frames(std::slice::from_ref(picture), plan)
    }

    fn preprocess_video(&self, video: &Video, plan: &MediaPlan) -> Result<Pixels> {
        self.preprocess_frames(video.frames(), plan)
    }

    fn video_marker(&self) -> Option<Marker> {
        Some(Marker::new(VIDEO_MARKER, self.video_token))
    }

    fn pixel_bytes(&self, plan: &MediaPlan) -> u64 {
        let pixels = (plan.pixels[0] as u64).saturating_mul(plan.pixels[1] as u64);
        let frames = u64::from(plan.grids[0][0]) * self.vision.temporal_patch as u64;
        pixels.saturating_mul(12).saturating_mul(frames)
    }

    fn preprocess_memory(&self, size: MediumSize, plan: &MediaPlan) -> u64 {
        let [width, height] = plan.pixels;
        // Sums and result of the resize and the planes, of one frame; and the planes of all.
        let frames = match plan.is_video() {
            true => u64::from(plan.grids[0][0]) * self.vision.temporal_patch as u64,
            false => 1,
        };
        let pixels = (width as u64)
            .saturating_mul(height as u64)
            .saturating_mul(12 + 3 + 12 + 12 * frames);
        pixels.saturating_add(resize_weights(&[size.width, size.height, width, height]))
    }

    fn vision_memory(&self, plan: &MediaPlan, sizes: &Sizes) -> u64 {
        encoder_memory(&self.vision, plan, sizes).0
    }

    fn format(&self) -> PromptFormat {
        PromptFormat::Template {
            marker: Some(Marker::new(MARKER, self.image_token)),
            content: ContentStyle::Parts,
            default: Some(TEMPLATE),
        }
    }

    fn positions(&self, rows: usize, media: &[PlacedMedium]) -> Vec<[i32; 3]> {
        mrope::positions(rows, media, self.vision.merge as u32)
    }

    fn grounding(&self) -> Option<Grounding> {
        Some(self.family.grounding)
    }

    fn load_vision(&self, weights: &Weights, device: &Device) -> Result<Box<dyn Vision>> {
        Ok(Box::new(QwenVision::load(
            weights,
            &self.vision,
            device.dtype,
        )?))
    }
}
