//! Saves a model to a folder in the format of mlx-community.

use std::collections::BTreeMap;

use super::{LoadedModel, ModelFolder, most_common};
use crate::{
    Result,
    checkpoint::{Content, Quantization, QuantizationConfig, SavedTensor, write_model},
    file::Folder,
    nn::{Matrix, QuantizedMatrix},
};

impl ModelFolder {
    /// Writes the weights and the configuration of a model that was loaded from here to a new
    /// folder. Matrices that were quantized since are written in that form; everything else is
    /// copied.
    pub fn save(
        &self,
        model: &mut LoadedModel,
        folder: &Folder,
        progress: &dyn Fn(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let matrices = model.matrices();
        let quantized: BTreeMap<&str, &QuantizedMatrix> = matrices
            .iter()
            .filter_map(|(path, matrix)| match matrix {
                Matrix::Quantized(matrix) => Some((path.as_str(), matrix)),
                Matrix::Dense(_) => None,
            })
            .collect();
        let (mut tensors, mut schemes) = (Vec::new(), BTreeMap::new());
        let stored = &self.files.checkpoint;
        for name in stored.tensor_names() {
            let Some(info) = stored.info(name) else {
                continue;
            };
            // Tensors that are never used keep their names.
            let canonical = self
                .blueprint
                .canonical_name(name)
                .unwrap_or_else(|| name.to_owned());
            let paths = name
                .strip_suffix(".weight")
                .zip(canonical.strip_suffix(".weight"));
            match paths.map(|(module, path)| (module, path, quantized.get(path))) {
                // Already quantized in the folder, even in a block that is never used: copied with
                // its scheme.
                Some((module, path, _)) if info.dtype == safetensors::Dtype::U32 => {
                    schemes.extend(
                        self.stored
                            .of(&[module, path])
                            .map(|scheme| ((module.to_owned(), path.to_owned()), scheme)),
                    );
                    tensors.push(SavedTensor {
                        name: name.to_owned(),
                        content: Content::Stored(info),
                    });
                }
                Some((module, path, Some(matrix))) => {
                    schemes.insert((module.to_owned(), path.to_owned()), matrix.quantization);
                    for (part, array) in matrix.parts() {
                        tensors.push(SavedTensor {
                            name: format!("{module}.{part}"),
                            content: Content::Array(array.clone()),
                        });
                    }
                }
                _ => tensors.push(SavedTensor {
                    name: name.to_owned(),
                    content: Content::Stored(info),
                }),
            }
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut config = self.files.config.clone();
        if let (Some(quantization), Some(config)) = (config_of(&schemes), config.as_object_mut()) {
            // mlx-community writes it twice: for its own libraries, and for transformers.
            for field in ["quantization", "quantization_config"] {
                config.insert(field.into(), quantization.to_json());
            }
        }
        write_model(
            folder,
            &tensors,
            &config,
            self.files.checkpoint.format(),
            progress,
        )
    }
}

/// Returns the scheme of most modules, and the others as exceptions: both under their stored names
/// and under mlx-vlm's, which looks for its own.
fn config_of(schemes: &BTreeMap<(String, String), Quantization>) -> Option<QuantizationConfig> {
    let default = most_common(schemes.values().copied())?;
    let exceptions = schemes.iter().filter(|(_, scheme)| **scheme != default);
    let named = |((module, path), scheme): (&(String, String), &Quantization)| {
        [
            (module.clone(), Some(*scheme)),
            (path.clone(), Some(*scheme)),
        ]
    };
    Some(QuantizationConfig {
        default: Some(default),
        modules: exceptions.flat_map(named).collect(),
    })
}
