//! What a model without an encoder of pictures has in place of it.

use super::{MediaPlan, Vision};
use crate::{
    Error, Result,
    image::Pixels,
    nn::{Features, Matrix},
};

/// Returns the error for a picture.
pub fn text_only() -> Error {
    Error::InvalidArgument("this model reads text only; it takes no pictures".into())
}

/// The vision of a model that reads text only.
pub struct NoVision;

impl Vision for NoVision {
    fn encode(&self, _: &Pixels, _: &MediaPlan, _: &dyn Fn(f32) -> Result<()>) -> Result<Features> {
        Err(text_only())
    }

    fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        Vec::new()
    }
}
