//! Quantization schemes, and their description in `config.json`.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// How a group encodes its values
/// (<https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Mode {
    /// `scale · q + bias`, where q is an integer of so many bits.
    #[default]
    Affine,
    /// 4-bit floats (E2M1) times a power of two per 32 values
    /// (<https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf>).
    Mxfp4,
    /// 8-bit floats (E4M3) times a power of two per 32 values.
    Mxfp8,
    /// 4-bit floats (E2M1) times an 8-bit float (E4M3) per 16 values.
    Nvfp4,
}

impl Mode {
    /// All modes.
    pub const ALL: [Mode; 4] = [Mode::Affine, Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4];

    /// Returns the name in MLX and `config.json`.
    pub fn name(self) -> &'static CStr {
        match self {
            Mode::Affine => c"affine",
            Mode::Mxfp4 => c"mxfp4",
            Mode::Mxfp8 => c"mxfp8",
            Mode::Nvfp4 => c"nvfp4",
        }
    }

    /// Returns the mode with this name.
    pub fn from_name(name: &str) -> Option<Mode> {
        Mode::ALL
            .into_iter()
            .find(|mode| mode.name().to_bytes() == name.as_bytes())
    }

    /// Returns the scheme of a mode that has only one; affine schemes differ in bits and group
    /// size.
    pub fn scheme(self) -> Option<Quantization> {
        let (group_size, bits) = match self {
            Mode::Affine => return None,
            Mode::Mxfp4 => (32, 4),
            Mode::Mxfp8 => (32, 8),
            Mode::Nvfp4 => (16, 4),
        };
        Some(Quantization {
            group_size,
            bits,
            mode: self,
        })
    }
}

/// How a matrix is quantized: `group_size` neighbors in a row share a scale, and each value has
/// `bits` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Quantization {
    /// 32, 64 or 128; fixed in the other modes.
    pub group_size: usize,
    /// 2, 3, 4, 5, 6 or 8; fixed in the other modes.
    pub bits: usize,
    /// How a group encodes its values.
    pub mode: Mode,
}

impl Quantization {
    /// Returns MLX's usual scheme.
    pub const fn affine(group_size: usize, bits: usize) -> Quantization {
        Quantization {
            group_size,
            bits,
            mode: Mode::Affine,
        }
    }

    /// Fails with an explanation if MLX has no such scheme.
    pub fn check(self) -> Result<(), String> {
        if let Some(only) = self.mode.scheme() {
            let Quantization {
                group_size,
                bits,
                mode,
            } = only;
            let mode = mode.name().to_string_lossy();
            return if self == only {
                Ok(())
            } else {
                Err(format!(
                    "{mode} always has {bits} bits and a group size of {group_size}"
                ))
            };
        }
        if ![2, 3, 4, 5, 6, 8].contains(&self.bits) {
            return Err(format!("{} bits; expected 2, 3, 4, 5, 6 or 8", self.bits));
        }
        if ![32, 64, 128].contains(&self.group_size) {
            return Err(format!(
                "a group size of {}; expected 32, 64 or 128",
                self.group_size
            ));
        }
        Ok(())
    }

    /// Returns whether rows of so many values can be quantized with this scheme.
    pub fn divides(self, columns: usize) -> bool {
        columns > 0 && columns.is_multiple_of(self.group_size)
    }

    /// Returns the bytes of a quantized matrix whose scales and biases, in the affine mode, have
    /// `item` bytes each; in the other modes a scale has one byte. Returns `u64::MAX` on overflow.
    pub fn bytes(self, elements: u64, item: u64) -> u64 {
        let group = if self.mode == Mode::Affine {
            item.saturating_mul(2)
        } else {
            1
        };
        let packed = elements.saturating_mul(self.bits as u64) / 8;
        packed.saturating_add(
            group.saturating_mul(elements.checked_div(self.group_size as u64).unwrap_or(0)),
        )
    }

    fn to_json(self) -> Value {
        json!({ "group_size": self.group_size, "bits": self.bits, "mode": self.mode.name().to_string_lossy() })
    }
}

/// The `quantization` of a `config.json`, as mlx-community writes it: one scheme for all modules
/// that have scales, and exceptions by the module's path, `false` for modules that are not
/// quantized.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuantizationConfig {
    /// The scheme of modules that are not listed.
    pub default: Option<Quantization>,
    /// The listed modules.
    pub modules: BTreeMap<String, Option<Quantization>>,
}

#[derive(Deserialize)]
struct Scheme {
    group_size: usize,
    bits: usize,
    mode: Option<String>,
}

impl QuantizationConfig {
    /// Reads `quantization` in a `config.json`, or `quantization_config` if it has the same form.
    /// Refuses that of other libraries, which has a `quant_method`.
    pub fn from_config(path: &Path, config: &Value) -> Result<QuantizationConfig> {
        let field = ["quantization", "quantization_config"]
            .into_iter()
            .find(|field| config.get(field).is_some_and(|value| !value.is_null()));
        let Some(field) = field else {
            return Ok(QuantizationConfig::default());
        };
        let unsupported =
            |what: String| Error::unsupported(path, format!("field `{field}`: {what}"));
        let Value::Object(map) = &config[field] else {
            return Err(unsupported("expected an object".into()));
        };
        if let Some(method) = map.get("quant_method") {
            return Err(unsupported(format!(
                "quant_method is {method}; only MLX's own quantization is supported"
            )));
        }
        let scheme = |value: &Value| -> Result<Quantization, String> {
            let scheme = Scheme::deserialize(value).map_err(|error| error.to_string())?;
            let mode = scheme.mode.as_deref().map_or(Ok(Mode::Affine), |name| {
                Mode::from_name(name).ok_or_else(|| {
                    format!("mode is {name:?}; expected affine, mxfp4, mxfp8 or nvfp4")
                })
            })?;
            let quantization = Quantization {
                group_size: scheme.group_size,
                bits: scheme.bits,
                mode,
            };
            quantization.check().map(|()| quantization)
        };
        let default = Some(scheme(&config[field]).map_err(unsupported)?);
        let mut modules = BTreeMap::new();
        for (name, value) in map {
            let exception = match value {
                Value::Bool(false) => None,
                Value::Object(_) => {
                    Some(scheme(value).map_err(|what| unsupported(format!("`{name}`: {what}")))?)
                }
                _ => continue,
            };
            modules.insert(name.clone(), exception);
        }
        Ok(QuantizationConfig { default, modules })
    }

    /// Returns the scheme of the module called `path`, by any of its names.
    pub fn of(&self, paths: &[&str]) -> Option<Quantization> {
        paths
            .iter()
            .find_map(|path| self.modules.get(*path))
            .copied()
            .unwrap_or(self.default)
    }

    /// Returns the form for a `config.json`.
    pub fn to_json(&self) -> Value {
        let mut map = match self.default.map(Quantization::to_json) {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        };
        for (name, exception) in &self.modules {
            map.insert(
                name.clone(),
                exception.map_or(Value::Bool(false), Quantization::to_json),
            );
        }
        Value::Object(map)
    }
}
