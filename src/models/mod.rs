//! The models that this library supports, one folder per architecture.
//!
//! An architecture is a [`Blueprint`] (plain data from its configuration, its image processor's
//! settings and its weight headers) and the [`Vision`] that it loads. The decoder, the memory
//! estimate, quantization and saving are shared by all.

mod clip_config;
mod folder;
mod gemma;
pub mod gemma3;
pub mod llava;
mod locations;
mod memory;
mod mrope;
mod names;
pub mod paligemma;
pub mod prismatic;
mod processor;
mod quantize;
pub mod qwen2_5_vl;
pub mod qwen2_vl;
mod qwen_vision;
mod qwen_vl;
mod save;
pub mod smolvlm;
mod squared;
mod text_config;
mod text_only;

use std::{fmt, ops::Range};

pub(crate) use folder::medium_size;
pub use folder::{Files, ModelFolder};
pub use locations::{Grounding, Location, Place};
pub use memory::{MemoryNeeds, Sizes};
pub use processor::ProcessorSettings;
pub use quantize::LoadedModel;
pub use quantize::QuantizeOptions;
pub(crate) use quantize::{QuantizeFailure, most_common, quantize_matrix};
pub use text_config::{TextConfig, TokenIds};

use self::text_only::NoVision;
pub(crate) use self::text_only::text_only;
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::Device,
    image::{Picture, PictureHash, Pixels, Video},
    nn::{DecoderSettings, Features, Matrix},
    text::{ContentStyle, Message, Prompt},
};

/// The supported architectures.
pub static ARCHITECTURES: &[Architecture] = &[
    prismatic::ARCHITECTURE,
    paligemma::ARCHITECTURE,
    qwen2_vl::ARCHITECTURE,
    qwen2_5_vl::ARCHITECTURE,
    llava::ARCHITECTURE,
    gemma3::ARCHITECTURE,
    smolvlm::ARCHITECTURE,
];

/// Returns the `model_type` values of all supported architectures.
pub fn model_types() -> Vec<&'static str> {
    ARCHITECTURES
        .iter()
        .flat_map(|architecture| architecture.model_types)
        .copied()
        .collect()
}

/// An architecture.
pub struct Architecture {
    /// Its `model_type` values in config.json.
    pub model_types: &'static [&'static str],
    /// Reads and checks everything in a folder except the weights.
    pub open: fn(&Files) -> Result<Box<dyn Blueprint>>,
}

/// Everything known about a model before its weights are read. Plain data: any thread may use it.
///
/// Without the methods for pictures, it is that of a model that reads text only.
pub trait Blueprint: Send + Sync + fmt::Debug {
    /// Returns what the model supports, and its limits.
    fn limits(&self) -> Limits;

    /// Returns the name that the modules use for a tensor, or `None` if the forward pass never
    /// reads it. Names of the decoder are `language_model.model.*` and `language_model.lm_head.*`;
    /// all other tensors encode pictures. The names are those of mlx-vlm if it has the
    /// architecture.
    fn canonical_name(&self, stored: &str) -> Option<String>;

    /// Returns the decoder's settings.
    fn decoder(&self) -> &DecoderSettings;

    /// Plans how a picture of this size is resized and how many positions it takes, before any
    /// pixel is read. [`ModelFolder::plan`] also enforces `max_tokens`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the model cannot take the size
    /// or the budget, or reads text only.
    fn plan(&self, size: MediumSize, budget: Budget) -> Result<MediaPlan> {
        let _ = (size, budget);
        Err(text_only())
    }

    /// Plans a video of this size, as [`Blueprint::plan`] does a picture. The budget's pixels are
    /// those of each frame, and its `max_tokens` those of the whole video.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] also if the model reads no videos.
    fn plan_video(&self, size: ClipSize, budget: Budget) -> Result<MediaPlan> {
        let _ = (size, budget);
        Err(no_videos())
    }

    /// Makes the pixels of a video according to its plan.
    fn preprocess_video(&self, video: &Video, plan: &MediaPlan) -> Result<Pixels> {
        let _ = (video, plan);
        Err(no_videos())
    }

    /// Returns the marker of videos, if the model reads them.
    fn video_marker(&self) -> Option<Marker> {
        None
    }

    /// Makes the pixels of a picture according to its plan.
    fn preprocess(&self, picture: &Picture, plan: &MediaPlan) -> Result<Pixels> {
        let _ = (picture, plan);
        Err(text_only())
    }

    /// Returns the bytes of the result of [`Blueprint::preprocess`].
    fn pixel_bytes(&self, plan: &MediaPlan) -> u64 {
        (plan.pixels[0] as u64)
            .saturating_mul(plan.pixels[1] as u64)
            .saturating_mul(12)
    }

    /// Returns the temporary memory in bytes of [`Blueprint::preprocess`].
    fn preprocess_memory(&self, size: MediumSize, plan: &MediaPlan) -> u64 {
        let _ = (size, plan);
        0
    }

    /// Returns the bytes that encoding needs in addition to weights and pixels.
    fn vision_memory(&self, plan: &MediaPlan, sizes: &Sizes) -> u64 {
        let _ = (plan, sizes);
        0
    }

    /// Returns how conversations are turned into prompts.
    fn format(&self) -> PromptFormat;

    /// Returns the positions of a prompt's rows; `media` gives the rows of pictures. Consecutive by
    /// default.
    fn positions(&self, rows: usize, media: &[PlacedMedium]) -> Vec<[i32; 3]> {
        let _ = media;
        (0..rows as i32).map(|i| [i; 3]).collect()
    }

    /// Returns the spans of a prompt whose rows attend to each other in both directions. None by
    /// default.
    fn spans(&self, rows: usize, media: &[PlacedMedium]) -> Vec<Range<usize>> {
        let _ = (rows, media);
        Vec::new()
    }

    /// Returns how the model writes boxes and points, if it was trained to. `None` by default.
    fn grounding(&self) -> Option<Grounding> {
        None
    }

    /// Returns whether the rows of a span attend to each other even beyond a layer's window.
    fn spans_exceed_windows(&self) -> bool {
        false
    }

    /// Loads the vision part. On the engine thread only.
    fn load_vision(&self, weights: &Weights, device: &Device) -> Result<Box<dyn Vision>> {
        let _ = (weights, device);
        Ok(Box::new(NoVision))
    }
}

/// Encodes pixels as features: vision encoders and the projector.
pub trait Vision: Send {
    /// Encodes the pixels of a picture. `progress` receives the fraction that is complete, 0 to 1,
    /// after every block; its error ends the work.
    fn encode(
        &self,
        pixels: &Pixels,
        plan: &MediaPlan,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Features>;

    /// Returns the matrices that can be quantized, by the paths of their modules.
    fn matrices(&mut self) -> Vec<(String, &mut Matrix)>;
}

/// What a model supports, and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The number of positions that the decoder was made for.
    pub context: usize,
    /// The default number of positions in a conversation.
    pub default_context: usize,
    /// The end-of-sequence tokens in config.json; generation_config.json takes precedence.
    pub end_tokens: Vec<u32>,
    /// The maximum number of pictures in a conversation; 0 if the model reads text only.
    pub images: usize,
    /// The maximum number of videos in a conversation; 0 if the model reads none.
    pub videos: usize,
    /// The edge in pixels of the square that pictures are resized to; 0 if the size depends on the
    /// picture, or if there are no pictures.
    pub image_size: usize,
    /// Whether the model supports system text.
    pub system: bool,
    /// Whether a conversation can continue after an answer.
    pub several_messages: bool,
    /// The prompt to use when the user asks nothing.
    pub default_prompt: &'static str,
}

/// The default of [`Limits::default_context`], enough for some pictures and questions.
pub const DEFAULT_CONTEXT: usize = 4096;

/// The width and height of a medium, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MediumSize {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// The size of a video: that of its frames, the time of each in seconds, and their number per
/// second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipSize<'a> {
    /// The size of every frame.
    pub frame: MediumSize,
    /// The time of each frame, in seconds.
    pub times: &'a [f64],
    /// The number of frames per second.
    pub fps: f64,
}

/// How large a picture may be when it reaches the encoder. `None`: the value from the folder. Models
/// whose pictures all have one size ignore everything but `max_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Smaller pictures are enlarged to at least this many pixels, by models that take any size.
    pub min_pixels: Option<usize>,
    /// Larger pictures are reduced to at most this many pixels, in all their tiles together.
    pub max_pixels: Option<usize>,
    /// The maximum number of features of a picture. A larger picture is reduced, or cut into fewer
    /// tiles; a model that cannot do this refuses it.
    pub max_tokens: Option<usize>,
    /// Whether a picture is cut into tiles, by models that do this.
    pub tiles: bool,
}

impl Budget {
    /// Fails if `max_pixels` is less than the `least` that a picture of the model has.
    fn check_least(max_pixels: usize, least: usize) -> Result<()> {
        match max_pixels < least {
            true => Err(Error::InvalidArgument(format!(
                "max_pixels is {max_pixels}; this model's smallest picture has {least}"
            ))),
            false => Ok(()),
        }
    }
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            min_pixels: None,
            max_pixels: None,
            max_tokens: None,
            tiles: true,
        }
    }
}

/// How a medium is processed, known from its size alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MediaPlan {
    /// The frames, rows and columns of each grid of patches.
    pub grids: Vec<[u32; 3]>,
    /// The width and height that reach the encoder, in pixels.
    pub pixels: [usize; 2],
    /// The prompt text for the medium, with a marker for each run.
    pub markup: String,
    /// The number of features at each marker.
    pub runs: Vec<usize>,
    /// The temporal positions of a video's patches, counted from its first; none for a picture.
    pub times: Vec<u32>,
}

impl MediaPlan {
    /// Returns whether it is the plan of a video.
    pub fn is_video(&self) -> bool {
        !self.times.is_empty()
    }

    /// Returns the number of features in the whole medium, one per position.
    pub fn features(&self) -> usize {
        self.runs.iter().sum()
    }
}

/// Identifies a medium by its content and its processing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MediaKey([u8; 32]);

impl MediaKey {
    /// Returns the key of a picture or a video with this hash and plan.
    pub fn new(content: PictureHash, plan: &MediaPlan) -> MediaKey {
        let MediaPlan {
            grids,
            pixels,
            runs,
            ..
        } = plan;
        let text = format!("{content:?} {grids:?} {pixels:?} {runs:?}");
        MediaKey(*blake3::hash(text.as_bytes()).as_bytes())
    }

    /// Returns the first 64 bits, for logs.
    pub fn short(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

/// The place of a medium's features in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedMedium<'a> {
    /// The rows of each run.
    pub runs: Vec<Range<usize>>,
    /// The plan of the medium.
    pub plan: &'a MediaPlan,
}

/// How conversations of a model are turned into prompts.
#[derive(Debug, Clone)]
pub enum PromptFormat {
    /// With the folder's chat template, or `default` if it has none.
    Template {
        /// The marker of pictures; `None` if the model reads text only.
        marker: Option<Marker>,
        /// The form in which the template gets a message's content.
        content: ContentStyle,
        /// The template for folders that have none.
        default: Option<&'static str>,
    },
    /// With a function, and a marker in place of pictures or, without one, the picture after the
    /// first token.
    Plain {
        /// The marker of pictures.
        marker: Option<Marker>,
        /// Renders the conversation, with a marker for each picture.
        render: fn(&[Message]) -> Result<Prompt>,
        /// Whether the tokenizer adds its tokens around the prompt, such as `<s>`.
        framed: bool,
    },
}

impl PromptFormat {
    /// Returns the marker of pictures, if there is one.
    pub fn marker(&self) -> Option<&Marker> {
        match self {
            PromptFormat::Template { marker, .. } | PromptFormat::Plain { marker, .. } => {
                marker.as_ref()
            }
        }
    }
}

/// The token that stands for features in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Its spelling.
    pub text: String,
    /// Its id.
    pub id: u32,
    /// The text that stands for a picture in what a template writes, and in raw prompts; the plan's
    /// markup takes its place.
    pub placeholder: String,
}

impl Marker {
    /// Creates a marker that is its own placeholder.
    pub fn new(text: &str, id: u32) -> Marker {
        Marker {
            text: text.into(),
            id,
            placeholder: text.into(),
        }
    }
}

/// The error of a model that reads no videos.
fn no_videos() -> Error {
    Error::InvalidArgument("this model reads no videos; add frames as images instead".into())
}

/// Returns whether a tensor or a module affects the features of a picture.
pub(crate) fn is_vision(name: &str) -> bool {
    !name.starts_with("language_model.")
}
