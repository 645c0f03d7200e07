//! Features of pictures that belong to the program.

use std::sync::{Arc, Mutex};

use super::{Op, engine, lock};
use crate::{
    Error, Result,
    device::{Backend, floats},
    image::PictureHash,
    models::{MediaKey, MediaPlan},
    nn::Features,
};

/// The features of a picture in the space of the model that encoded it. Clones share them. An
/// embedding does not keep the model alive.
#[derive(Clone)]
pub struct Embedding {
    pub(super) model: u64,
    picture: PictureHash,
    pub(super) key: MediaKey,
    pub(super) plan: MediaPlan,
    width: usize,
    features: Arc<Disposed>,
}

/// Features that are dropped on the engine thread.
struct Disposed(Mutex<Option<Features>>);

impl Drop for Disposed {
    fn drop(&mut self) {
        engine::dispose(
            self.0
                .get_mut()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .take(),
        );
    }
}

impl Embedding {
    pub(super) fn new(
        model: u64,
        picture: PictureHash,
        key: MediaKey,
        plan: MediaPlan,
        features: Features,
    ) -> Embedding {
        let width = features.rows.dim(-1) as usize;
        Embedding {
            model,
            picture,
            key,
            plan,
            width,
            features: Arc::new(Disposed(Mutex::new(Some(features)))),
        }
    }

    /// Returns the number of positions it takes in a prompt.
    pub fn tokens(&self) -> usize {
        self.plan.features()
    }

    /// Returns the number of values per position.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the [`ModelInfo::fingerprint`](crate::ModelInfo::fingerprint) of the model that made
    /// it.
    pub fn model(&self) -> u64 {
        self.model
    }

    /// Returns the hash of the picture.
    pub fn picture(&self) -> PictureHash {
        self.picture
    }

    /// Returns the features. On the engine thread only.
    pub(super) fn features(&self) -> Result<Features> {
        let features = lock(&self.features.0).clone();
        features.ok_or_else(|| Error::InvalidState("the embedding was freed".into()))
    }

    /// Copies the values, position by position.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let features = self.features()?;
        engine::run(Op::default(), move |_| {
            // The features have the device's dtype; converting them to float32 is an operation of
            // its own.
            engine::on_device(Backend::Cpu, |_| floats(&features.rows, "an embedding"))
        })
    }
}
