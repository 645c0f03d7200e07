//! The models that this library runs, one folder an architecture.
//!
//! An architecture is a [`Blueprint`]: what its configuration, its image processor's settings and
//! the headers of its weights tell, as plain data; and a [`Vision`], which it loads. The decoder,
//! the memory estimate, quantizing and saving are the same for all.

mod clip_config;
mod folder;
pub mod llava;
mod memory;
mod names;
pub mod paligemma;
pub mod prismatic;
mod processor;
mod quantize;
pub mod qwen2_vl;
mod save;
mod squared;
mod text_config;

use std::{fmt, ops::Range};

pub use folder::{Files, ModelFolder};
pub use memory::{MemoryNeeds, Sizes};
pub use processor::ProcessorSettings;
pub use quantize::LoadedModel;
pub use quantize::QuantizeOptions;
pub(crate) use quantize::{QuantizeFailure, most_common, quantize_matrix};
pub use text_config::{TextConfig, TokenIds};

use crate::{
    Result,
    checkpoint::Weights,
    device::Device,
    image::{Picture, PictureHash, Pixels},
    nn::{DecoderSettings, Features, Matrix},
    text::{ContentStyle, Message, Prompt},
};

/// What this library runs.
pub static ARCHITECTURES: &[Architecture] = &[
    prismatic::ARCHITECTURE,
    paligemma::ARCHITECTURE,
    qwen2_vl::ARCHITECTURE,
    llava::ARCHITECTURE,
];

/// Returns what `model_type` says of each kind of model that this library runs.
pub fn model_types() -> Vec<&'static str> {
    ARCHITECTURES
        .iter()
        .flat_map(|architecture| architecture.model_types)
        .copied()
        .collect()
}

/// A kind of model.
pub struct Architecture {
    /// What `model_type` in config.json says of it.
    pub model_types: &'static [&'static str],
    /// Reads and checks what a folder says of its model, the weights aside.
    pub open: fn(&Files) -> Result<Box<dyn Blueprint>>,
}

/// What is known of a model before its weights are read. Plain data: any thread may use it.
pub trait Blueprint: Send + Sync + fmt::Debug {
    /// What the model can do and how far.
    fn limits(&self) -> Limits;

    /// Returns the name that the modules use for a tensor, or `None` for one that the forward pass
    /// never reads. The decoder's are `language_model.model.*` and `language_model.lm_head.*`, all
    /// others are what a picture's features come from; where mlx-vlm has the architecture its names
    /// are taken.
    fn canonical_name(&self, stored: &str) -> Option<String>;

    /// The decoder's sizes and kinds.
    fn decoder(&self) -> &DecoderSettings;

    /// Returns what becomes of a picture of this size, before a pixel is touched.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a size or a budget that the
    /// model cannot take.
    fn plan(&self, size: MediumSize, budget: Budget) -> Result<MediaPlan>;

    /// Makes pixels of a picture as its plan says.
    fn preprocess(&self, picture: &Picture, plan: &MediaPlan) -> Result<Pixels>;

    /// Returns the bytes of what [`Blueprint::preprocess`] makes.
    fn pixel_bytes(&self, plan: &MediaPlan) -> u64 {
        (plan.pixels[0] as u64)
            .saturating_mul(plan.pixels[1] as u64)
            .saturating_mul(12)
    }

    /// Returns the bytes that [`Blueprint::preprocess`] takes beyond its result.
    fn preprocess_memory(&self, size: MediumSize, plan: &MediaPlan) -> u64;

    /// Returns the bytes that encoding takes beyond weights and pixels.
    fn vision_memory(&self, plan: &MediaPlan, sizes: &Sizes) -> u64;

    /// How a conversation is written down.
    fn format(&self) -> PromptFormat;

    /// Returns the positions of a prompt's rows, of which those of pictures stand where `media`
    /// says. One after the other unless a model says otherwise.
    fn positions(&self, rows: usize, media: &[PlacedMedium]) -> Vec<[i32; 3]> {
        let _ = media;
        (0..rows as i32).map(|i| [i; 3]).collect()
    }

    /// Returns the spans of a prompt whose rows see each other in both directions. None unless a
    /// model says otherwise.
    fn spans(&self, rows: usize, media: &[PlacedMedium]) -> Vec<Range<usize>> {
        let _ = (rows, media);
        Vec::new()
    }

    /// Loads what makes features of pixels. On the engine thread.
    fn load_vision(&self, weights: &Weights, device: &Device) -> Result<Box<dyn Vision>>;
}

/// What makes features of pixels: vision encoders and the projector.
pub trait Vision: Send {
    /// Encodes the pixels of a picture; `progress` is told the part that is done, 0 to 1, after
    /// every block, and ends the work with its error.
    fn encode(
        &self,
        pixels: &Pixels,
        plan: &MediaPlan,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<Features>;

    /// The matrices that can be quantized, by the paths of their modules.
    fn matrices(&mut self) -> Vec<(String, &mut Matrix)>;
}

/// What a model can do and how far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Positions that the decoder was made for.
    pub context: usize,
    /// Positions that a conversation may take where nobody asks for another number.
    pub default_context: usize,
    /// Tokens that end an answer, by config.json; generation_config.json counts before it.
    pub end_tokens: Vec<u32>,
    /// Pictures in a conversation at most.
    pub images: usize,
    /// Edge of the square that a picture is brought to, in pixels; 0 where that depends on the
    /// picture.
    pub image_size: usize,
    /// Whether the model takes system text.
    pub system: bool,
    /// Whether a conversation goes on after an answer.
    pub several_messages: bool,
    /// What to ask about a picture where a user has no question.
    pub default_prompt: &'static str,
}

/// The default of [`Limits::default_context`], enough for a picture or a few and some questions.
pub const DEFAULT_CONTEXT: usize = 4096;

/// Width and height of a medium, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MediumSize {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// How many pixels a picture may have in front of the encoder, where a model takes pictures of any
/// size. `None`: what the folder says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Budget {
    /// A picture of fewer is enlarged.
    pub min_pixels: Option<usize>,
    /// A picture of more is made smaller.
    pub max_pixels: Option<usize>,
}

/// What becomes of a medium, known from its size alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MediaPlan {
    /// Frames, rows and columns of each grid of patches.
    pub grids: Vec<[u32; 3]>,
    /// Width and height in front of the encoder, in pixels.
    pub pixels: [usize; 2],
    /// The text that stands for the medium in a prompt, with a marker for each run.
    pub markup: String,
    /// Features at each marker.
    pub runs: Vec<usize>,
}

impl MediaPlan {
    /// Features of the whole medium, a position each.
    pub fn features(&self) -> usize {
        self.runs.iter().sum()
    }
}

/// Tells media apart by their content and by what the processor makes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MediaKey([u8; 32]);

impl MediaKey {
    /// The key of a picture that is processed so.
    pub fn new(picture: PictureHash, plan: &MediaPlan) -> MediaKey {
        let MediaPlan {
            grids,
            pixels,
            runs,
            ..
        } = plan;
        let text = format!("{picture:?} {grids:?} {pixels:?} {runs:?}");
        MediaKey(*blake3::hash(text.as_bytes()).as_bytes())
    }

    /// The first 64 bits, for a log.
    pub fn short(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Where the features of a medium stand in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedMedium<'a> {
    /// Rows of each run.
    pub runs: Vec<Range<usize>>,
    /// What became of the medium.
    pub plan: &'a MediaPlan,
}

/// How a conversation is written down for a model.
#[derive(Debug, Clone)]
pub enum PromptFormat {
    /// By the folder's chat template, or `default` where it has none.
    Template {
        /// What stands for a picture.
        marker: Marker,
        /// How a message's content is handed to the template.
        content: ContentStyle,
        /// A template for folders that have none.
        default: Option<&'static str>,
    },
    /// By a function, with a marker where pictures stand or, without one, the picture behind the
    /// first token.
    Plain {
        /// What stands for a picture.
        marker: Option<Marker>,
        /// Writes the conversation, with a marker for each picture.
        render: fn(&[Message]) -> Result<Prompt>,
        /// Whether the tokenizer puts its own around the prompt, such as `<s>`.
        framed: bool,
    },
}

impl PromptFormat {
    /// What stands for a picture, where something does.
    pub fn marker(&self) -> Option<&Marker> {
        match self {
            PromptFormat::Template { marker, .. } => Some(marker),
            PromptFormat::Plain { marker, .. } => marker.as_ref(),
        }
    }
}

/// The token that stands for features in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// How it is spelt.
    pub text: String,
    /// Its token.
    pub id: u32,
}

/// Whether a tensor or a module has a part in what a picture's features are.
pub(crate) fn is_vision(name: &str) -> bool {
    !name.starts_with("language_model.")
}
