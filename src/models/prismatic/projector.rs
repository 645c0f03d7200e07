//! The projector: from vision features to the decoder's space.

use crate::{
    Result,
    checkpoint::Weights,
    device::{Dtype, Tensor, inject_into, ops::activate},
    nn::{Activation, Linear, Matrix},
};

/// Linear layers with exact GELUs between them: three for two encoders, two for one
/// (<https://github.com/TRI-ML/prismatic-vlms/blob/main/prismatic/util/nn_utils.py>).
#[derive(Debug, Clone)]
pub struct FusedMLPProjector {
    layers: Vec<Linear>,
}

/// Reads `fc1`, `fc2` and so on below `weights`, from `vision_width` to `hidden_size`.
pub fn load_projector(
    weights: &Weights,
    vision_width: usize,
    hidden_size: usize,
    dtype: Dtype,
) -> Result<FusedMLPProjector> {
    let names: &[&str] = if weights.has("fc3.weight") {
        &["fc1", "fc2", "fc3"]
    } else {
        &["fc1", "fc2"]
    };
    let mut input = vision_width;
    let mut layers = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let weights = weights.at(name);
        let output = if i == 0 && names.len() == 3 {
            weights.shape("weight")?.first().copied().unwrap_or(0)
        } else {
            hidden_size
        };
        layers.push(Linear::load(&weights, output, input, dtype)?);
        input = output;
    }
    Ok(FusedMLPProjector { layers })
}

impl FusedMLPProjector {
    /// Adds the matrices, by the paths of their modules.
    pub(super) fn matrices<'a>(&'a mut self, path: &str, all: &mut Vec<(String, &'a mut Matrix)>) {
        all.extend(
            self.layers
                .iter_mut()
                .enumerate()
                .map(|(i, layer)| (format!("{path}.fc{}", i + 1), &mut layer.weight)),
        );
    }

    /// Projects `[batch, patches, vision width]` to `[batch, patches, hidden]`.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.forward_by_layers(features, &|| Ok(()))
    }

    /// Projects as [`FusedMLPProjector::forward`] does and calls `poll` before every layer. An
    /// error from it ends the work.
    pub fn forward_by_layers(
        &self,
        features: &Tensor,
        poll: &dyn Fn() -> Result<()>,
    ) -> Result<Tensor> {
        let mut x = features.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            poll()?;
            if i > 0 {
                x = activate(&x, Activation::Gelu)?;
            }
            x = inject_into("projector", layer.forward(&x)?)?;
        }
        Ok(x)
    }
}
