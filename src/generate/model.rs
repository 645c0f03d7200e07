//! A model in memory, with everything needed for a conversation.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc, time::Instant};

use super::{GenerationOptions, ImageCache, PrefixPool, PromptWriter};
use crate::{
    Error, Result,
    checkpoint::Quantization,
    device::{Arithmetic, clear_cache, require},
    image::Medium,
    models::{
        Limits, LoadedModel, MediaKey, MediaPlan, MediumSize, MemoryNeeds, ModelFolder, Sizes,
        medium_size,
    },
    nn::Features,
    text::Tokenizer,
};

/// A model with everything needed for a conversation. On the engine thread only.
pub struct ChatModel {
    /// The weights.
    pub weights: LoadedModel,
    /// The folder it was loaded from.
    pub folder: Arc<ModelFolder>,
    /// Turns tokens into text.
    pub tokenizer: Tokenizer,
    /// Turns conversations into rows.
    pub writer: PromptWriter,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// The memory that its work needs.
    pub memory: MemoryNeeds,
    /// The backend, dtype and kernels it computes with.
    pub arithmetic: Arithmetic,
    /// The schemes of the quantized matrices.
    pub schemes: BTreeMap<String, Quantization>,
    /// The features of encoded pictures.
    pub images: RefCell<ImageCache>,
    /// Ended conversations, which others may continue.
    pub prefixes: RefCell<PrefixPool>,
    /// Counts changes of the weights, after which earlier keys and values are not continued.
    pub revision: u64,
}

impl ChatModel {
    /// Returns the model's limits.
    pub fn limits(&self) -> Limits {
        self.folder.blueprint.limits()
    }

    /// Returns the features of a picture or a video, and whether they were cached. `progress` receives the
    /// fraction that is complete, 0 to 1; an error from it ends the work.
    pub fn encode(
        &self,
        medium: &Medium,
        plan: &MediaPlan,
        key: MediaKey,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<(Features, bool)> {
        if let Some(features) = self.images.borrow_mut().get(key) {
            log::debug!("picture {:016x}: cached", key.short());
            return Ok((features, true));
        }
        let needed = self.vision_memory(medium_size(medium), plan);
        self.require("encoding a picture", needed)?;
        let clock = Instant::now();
        let pixels = self.folder.preprocess(medium, plan)?;
        let features = self.weights.vision.encode(&pixels, plan, progress)?;
        log::debug!(
            "picture {:016x}: encoded in {:?}",
            key.short(),
            clock.elapsed()
        );
        self.images.borrow_mut().insert(key, features.clone());
        Ok((features, false))
    }

    /// Fails with [`Error::OutOfMemory`] if `needed` bytes for `what` are not available, even without
    /// the pool of ended conversations.
    pub fn require(&self, what: &str, needed: u64) -> Result<()> {
        loop {
            match require(what, needed) {
                Err(Error::OutOfMemory { .. }) if self.prefixes.borrow_mut().evict() => {
                    clear_cache()?
                }
                result => return result,
            }
        }
    }

    /// Returns the bytes that encoding a picture needs in addition to the weights.
    fn vision_memory(&self, size: MediumSize, plan: &MediaPlan) -> u64 {
        let scheme = |path: &str, _| self.schemes.get(path).copied();
        let sizes = Sizes::new(&self.folder.checkpoint, self.arithmetic, &scheme);
        sizes.vision(self.folder.blueprint.as_ref(), size, plan)
    }

    /// Returns the number of positions that a conversation may have; an error if options are out of
    /// range or the memory is too small for it.
    pub fn permitted_context(&self, options: &GenerationOptions) -> Result<usize> {
        options.validate()?;
        let max_context = options.context(&self.limits());
        let needed = self.memory.conversation(max_context, options.prefill_chunk);
        self.require(&format!("a conversation of {max_context} tokens"), needed)?;
        Ok(max_context)
    }
}
