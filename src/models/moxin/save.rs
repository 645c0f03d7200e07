//! A model to a folder in the form of MLX's community.

use std::collections::BTreeMap;

use super::{MoxinVLM, Source, load::canonical_name};
use crate::{
    Result,
    checkpoint::{Content, Quantization, QuantizationConfig, SavedTensor, write_model},
    file::Folder,
    nn::{Matrix, QuantizedMatrix},
};

impl Source {
    /// Writes the weights and the configuration of a model that was loaded from here to a new
    /// folder. Matrices that have been quantized since are written so, all else is copied.
    pub fn save(&self, vlm: &mut MoxinVLM, folder: &Folder, progress: &dyn Fn(u64, u64) -> Result<()>) -> Result<()> {
        let matrices = vlm.matrices();
        let quantized: BTreeMap<&str, &QuantizedMatrix> = matrices
            .iter()
            .filter_map(|(path, matrix)| match matrix {
                Matrix::Quantized(matrix) => Some((path.as_str(), matrix)),
                Matrix::Dense(_) => None,
            })
            .collect();
        let (mut tensors, mut schemes) = (Vec::new(), BTreeMap::new());
        for name in self.stored_checkpoint.tensor_names() {
            let Some(info) = self.stored_checkpoint.info(name) else { continue };
            let canonical = canonical_name(name);
            let paths = name.strip_suffix(".weight").zip(canonical.strip_suffix(".weight"));
            match paths.map(|(module, path)| (module, path, quantized.get(path))) {
                // Quantized in the folder already, be it in a block that is never run: copied with its scheme.
                Some((module, path, _)) if info.dtype == safetensors::Dtype::U32 => {
                    schemes.extend(self.stored.of(&[module, path]).map(|scheme| (module.to_owned(), scheme)));
                    tensors.push(SavedTensor { name: name.to_owned(), content: Content::Stored(info) });
                }
                Some((module, _, Some(matrix))) => {
                    schemes.insert(module.to_owned(), matrix.quantization);
                    for (part, array) in matrix.parts() {
                        tensors.push(SavedTensor { name: format!("{module}.{part}"), content: Content::Array(array.clone()) });
                    }
                }
                _ => tensors.push(SavedTensor { name: name.to_owned(), content: Content::Stored(info) }),
            }
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut config = self.config_json.clone();
        if let (Some(quantization), Some(config)) = (config_of(&schemes), config.as_object_mut()) {
            // MLX's community writes it twice: for its own libraries, and for transformers.
            for field in ["quantization", "quantization_config"] {
                config.insert(field.into(), quantization.to_json());
            }
        }
        write_model(folder, &tensors, &config, progress)
    }
}

/// The scheme that most modules have, and the others as exceptions.
fn config_of(schemes: &BTreeMap<String, Quantization>) -> Option<QuantizationConfig> {
    let default = most_common(schemes.values().copied())?;
    let exceptions = schemes.iter().filter(|(_, scheme)| **scheme != default);
    let modules = exceptions.map(|(module, scheme)| (module.clone(), Some(*scheme))).collect();
    Some(QuantizationConfig { default: Some(default), modules })
}

/// The scheme that occurs most often.
pub(crate) fn most_common(schemes: impl Iterator<Item = Quantization>) -> Option<Quantization> {
    let mut counts = BTreeMap::new();
    schemes.for_each(|scheme| *counts.entry(scheme).or_insert(0) += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(scheme, _)| scheme)
}
