//! A model in memory, with what it takes to talk to it.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc, time::Instant};

use super::{GenerationOptions, ImageCache, PromptWriter};
use crate::{
    Result,
    checkpoint::Quantization,
    device::{Arithmetic, require},
    image::Picture,
    models::{
        Limits, LoadedModel, MediaKey, MediaPlan, MediumSize, MemoryNeeds, ModelFolder, Sizes,
    },
    nn::Features,
    text::Tokenizer,
};

/// A model with what it takes to talk to it. On the engine thread.
pub struct ChatModel {
    /// The weights.
    pub weights: LoadedModel,
    /// The folder that it comes from.
    pub folder: Arc<ModelFolder>,
    /// Tokens to text.
    pub tokenizer: Tokenizer,
    /// Conversations to rows.
    pub writer: PromptWriter,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// What its work takes.
    pub memory: MemoryNeeds,
    /// How it computes.
    pub arithmetic: Arithmetic,
    /// The schemes of the matrices that are quantized.
    pub schemes: BTreeMap<String, Quantization>,
    /// Features of pictures encoded before.
    pub images: RefCell<ImageCache>,
}

impl ChatModel {
    /// What the model can do and how far.
    pub fn limits(&self) -> Limits {
        self.folder.blueprint.limits()
    }

    /// Returns the features of a picture, and whether they were at hand from an earlier encoding.
    /// `progress` is told the part that is done, 0 to 1; an error from it ends the work.
    pub fn encode(
        &self,
        picture: &Picture,
        plan: &MediaPlan,
        key: MediaKey,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<(Features, bool)> {
        if let Some(features) = self.images.borrow_mut().get(key) {
            log::debug!("picture {:016x}: encoded before", key.short());
            return Ok((features, true));
        }
        let size = MediumSize {
            width: picture.width() as usize,
            height: picture.height() as usize,
        };
        require("encoding a picture", self.vision_memory(size, plan))?;
        let clock = Instant::now();
        let pixels = self.folder.blueprint.preprocess(picture, plan)?;
        let features = self.weights.vision.encode(&pixels, plan, progress)?;
        log::debug!(
            "picture {:016x}: encoded in {:?}",
            key.short(),
            clock.elapsed()
        );
        self.images.borrow_mut().insert(key, features.clone());
        Ok((features, false))
    }

    /// Bytes that encoding a picture takes beyond the weights.
    fn vision_memory(&self, size: MediumSize, plan: &MediaPlan) -> u64 {
        let scheme = |path: &str, _| self.schemes.get(path).copied();
        let sizes = Sizes::new(&self.folder.checkpoint, self.arithmetic, &scheme);
        sizes.vision(self.folder.blueprint.as_ref(), size, plan)
    }

    /// The positions that a conversation may have; an error where options are out of their range or
    /// there is no room for so many.
    pub fn permitted_context(&self, options: &GenerationOptions) -> Result<usize> {
        options.validate()?;
        let max_context = options.context(&self.limits());
        let needed = self.memory.conversation(max_context, options.prefill_chunk);
        require(&format!("a conversation of {max_context} tokens"), needed)?;
        Ok(max_context)
    }
}
