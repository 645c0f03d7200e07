//! Quantization of a model: which matrices, and how.

use std::collections::BTreeMap;

use super::{ModelFolder, Vision};
use crate::{
    Error, Result,
    checkpoint::Quantization,
    device::inject,
    device::{Device, require, settle},
    error::guarded,
    nn::{Decoder, Matrix, QuantizedMatrix},
};

/// Which matrices are quantized, and how. The defaults are those of mlx-community: the language
/// model with its embedding and output head, with 4 bits and a group size of 64; vision encoders
/// and projector stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// The scheme of all modules that are not in `modules`.
    pub quantization: Quantization,
    /// Whether the token embedding is quantized.
    pub embedding: bool,
    /// Whether the output head is quantized.
    pub head: bool,
    /// Whether vision encoders and projector are quantized, if the group size divides their widths.
    /// SigLIP's MLP has a width of 4304, which no group size divides.
    pub vision: bool,
    /// Exceptions: the path of a module, or a prefix of several that ends before a dot, with its
    /// scheme, or `None` if it stays as it is. If several match, the longest applies. Paths are
    /// those of the checkpoint, such as `language_model.model.layers.0`.
    pub modules: Vec<(String, Option<Quantization>)>,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        QuantizeOptions {
            quantization: Quantization::affine(64, 4),
            embedding: true,
            head: true,
            vision: false,
            modules: Vec::new(),
        }
    }
}

impl QuantizeOptions {
    /// Fails if a scheme does not exist.
    pub fn check(&self) -> Result<()> {
        let named = self.modules.iter().filter_map(|(_, scheme)| *scheme);
        named
            .chain([self.quantization])
            .try_for_each(Quantization::check)
            .map_err(Error::InvalidArgument)
    }

    /// Returns the scheme of a module with rows of so many values.
    pub fn scheme(&self, path: &str, columns: usize) -> Option<Quantization> {
        let fits = |name: &str| {
            path.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let named = self
            .modules
            .iter()
            .filter(|(name, _)| fits(name))
            .max_by_key(|(name, _)| name.len());
        let scheme = match named {
            Some((_, scheme)) => *scheme,
            None => self.is_meant(path).then_some(self.quantization),
        };
        scheme.filter(|scheme| scheme.divides(columns))
    }

    fn is_meant(&self, path: &str) -> bool {
        match path.strip_prefix("language_model.") {
            Some("model.embed_tokens") => self.embedding,
            Some("lm_head") => self.head,
            Some(_) => true,
            None => self.vision,
        }
    }
}

/// The weights of a model. On the engine thread only.
pub struct LoadedModel {
    /// Encodes pixels as features.
    pub vision: Box<dyn Vision>,
    /// The language model.
    pub decoder: Decoder,
}

/// The outcome of a failed quantization.
pub(crate) enum QuantizeFailure {
    /// The model is as it was.
    Undone(Error),
    /// The model could not be restored and is unusable.
    Lost(Error),
}

impl LoadedModel {
    /// Returns every matrix that can be quantized, by the path of its module.
    pub(crate) fn matrices(&mut self) -> Vec<(String, &mut Matrix)> {
        let mut all = self.vision.matrices();
        self.decoder.matrices("language_model", &mut all);
        all
    }

    /// Returns the schemes of the quantized matrices, by the paths of their modules.
    pub(crate) fn schemes(&mut self) -> BTreeMap<String, Quantization> {
        let scheme = |(path, matrix): (String, &mut Matrix)| match matrix {
            Matrix::Quantized(matrix) => Some((path, matrix.quantization)),
            Matrix::Dense(_) => None,
        };
        self.matrices().into_iter().filter_map(scheme).collect()
    }

    /// Quantizes what the options select of a model that was loaded from `folder`, one matrix at a
    /// time. `progress` receives the fraction that is complete; an error from it ends the work, and
    /// the model is as it was.
    pub(crate) fn quantize(
        &mut self,
        folder: &ModelFolder,
        options: &QuantizeOptions,
        device: &Device,
        progress: &dyn Fn(f32) -> Result<()>,
    ) -> Result<(), QuantizeFailure> {
        let undone = QuantizeFailure::Undone;
        let mut planned: Vec<_> = self
            .matrices()
            .into_iter()
            .filter(|(path, matrix)| wants(path, matrix, options))
            .collect();
        if planned.is_empty() {
            return Err(undone(Error::InvalidState(
                "there is nothing left to quantize with these options".into(),
            )));
        }
        // A replaced matrix can be read again if the files have not changed; otherwise it stays in
        // memory.
        let keep = !folder.checkpoint.is_unchanged();
        if keep {
            let needed = planned.iter().map(|(_, matrix)| matrix.bytes()).sum();
            let what = format!(
                "{} has changed since it was loaded; keeping the old matrices while quantizing",
                folder.path().display()
            );
            require(&what, needed).map_err(undone)?;
        }
        let mut kept = Vec::new();
        let count = planned.len();
        for i in 0..count {
            let (path, matrix) = &mut planned[i];
            let old = keep.then(|| matrix.clone());
            let done = guarded(|| {
                inject(&format!("quantize{i}"))?;
                progress(i as f32 / count as f32)?;
                quantize_matrix(path, matrix, options)
            });
            if let Err(error) = done {
                settle();
                for (j, (path, matrix)) in planned.iter_mut().take(i).enumerate() {
                    let restored = match kept.get_mut(j).and_then(Option::take) {
                        Some(old) => Ok(old),
                        None => folder.matrix(path, matrix.row_count(), matrix.columns(), device),
                    };
                    **matrix = restored.map_err(QuantizeFailure::Lost)?;
                }
                return Err(undone(error));
            }
            kept.push(old);
        }
        // Whether the caller still waits no longer matters.
        let _ = progress(1.0);
        Ok(())
    }
}

/// Returns the most frequent scheme.
pub(crate) fn most_common(schemes: impl Iterator<Item = Quantization>) -> Option<Quantization> {
    let mut counts = BTreeMap::new();
    schemes.for_each(|scheme| *counts.entry(scheme).or_insert(0) += 1);
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map(|(scheme, _)| scheme)
}

fn wants(path: &str, matrix: &Matrix, options: &QuantizeOptions) -> bool {
    matches!(matrix, Matrix::Dense(_)) && options.scheme(path, matrix.columns()).is_some()
}

/// Quantizes a matrix if the options select it.
pub(crate) fn quantize_matrix(
    path: &str,
    matrix: &mut Matrix,
    options: &QuantizeOptions,
) -> Result<()> {
    if let (Some(scheme), Matrix::Dense(dense)) = (options.scheme(path, matrix.columns()), &*matrix)
    {
        *matrix = Matrix::Quantized(QuantizedMatrix::quantize(dense, scheme)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_counts() {
        let eight = Quantization::affine(64, 8);
        let modules = vec![
            ("language_model.model.layers.1".to_owned(), Some(eight)),
            ("language_model.model.layers.1.mlp".to_owned(), None),
            ("projector.fc1".to_owned(), Some(eight)),
        ];
        let options = QuantizeOptions {
            modules,
            ..QuantizeOptions::default()
        };
        let four = Some(options.quantization);
        for (path, columns, scheme) in [
            ("language_model.model.layers.0.mlp.up_proj", 128, four),
            ("language_model.model.layers.10.mlp.up_proj", 128, four),
            (
                "language_model.model.layers.1.self_attn.q_proj",
                128,
                Some(eight),
            ),
            ("language_model.model.layers.1.mlp.up_proj", 128, None),
            ("language_model.lm_head", 128, four),
            ("language_model.lm_head", 96, None),
            ("vision_backbone.featurizer.blocks.0.mlp.fc1", 128, None),
            ("projector.fc1", 128, Some(eight)),
            ("projector.fc2", 128, None),
        ] {
            assert_eq!(options.scheme(path, columns), scheme, "{path}");
        }
        let bare = QuantizeOptions {
            embedding: false,
            head: false,
            vision: true,
            ..QuantizeOptions::default()
        };
        assert_eq!(bare.scheme("language_model.model.embed_tokens", 128), None);
        assert_eq!(bare.scheme("language_model.lm_head", 128), None);
        assert_eq!(
            bare.scheme("vision_backbone.fused_featurizer.blocks.0.mlp.fc2", 4304),
            None
        );
        assert_eq!(
            bare.scheme("vision_backbone.fused_featurizer.blocks.0.mlp.fc1", 1152),
            four
        );
    }
}
