//! The image processor of Prismatic checkpoints, which makes the encoders' input from a picture.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    Error, Result,
    device::room,
    file,
    image::{Axis, Canvas, Filter, Picture, Pixels, resize_window},
};

/// The maximum side of an encoder's input; it limits the memory that a configuration can ask for.
const MAX_SIZE: u64 = 4096;

/// Pillow's number for bicubic, as stored in torchvision's settings.
const PIL_BICUBIC: u64 = 3;

/// How a picture of any shape becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// `resize-naive`: both sides are resized to the square's, ignoring the aspect ratio.
    ResizeNaive,
    /// `resize-crop`: the shorter side is resized to the square's, and the center of the longer one
    /// is kept.
    ResizeCrop,
    /// `letterbox`: a border makes the picture square before it is resized.
    Letterbox {
        /// The color of the border, RGB.
        fill: [u8; 3],
    },
}

/// Mean and standard deviation of one encoder's training pictures, for red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Normalization {
    mean: [f32; 3],
    std: [f32; 3],
}

/// The settings in a checkpoint's `preprocessor_config.json`.
///
/// A missing key has the default of the checkpoints' own processor: `image_resize_strategy`
/// "letterbox", `input_sizes` [[3, 224, 224]], `means` and `stds` 0.5, `interpolations` "bicubic"
/// (the only one supported). Keys that start with `tvf_` are the effective settings that the
/// processor saved, and take precedence: in published checkpoints their means are rounded to
/// bfloat16, and the models were used with those.
#[derive(Debug, Clone, PartialEq)]
pub struct Processor {
    strategy: Strategy,
    size: usize,
    normalizations: Vec<Normalization>,
}

impl Processor {
    /// Reads a `preprocessor_config.json`.
    ///
    /// # Errors
    /// The file is missing or cannot be read; it is not JSON, or a value has a wrong type or range
    /// ([`Error::CorruptModel`]); it asks for something that this library does not support
    /// ([`Error::UnsupportedModel`]). The message names the key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = file::read_json(
            path,
            "the settings of the image processor",
            file::MAX_JSON_BYTES,
        )?;
        let json = std::str::from_utf8(&bytes)
            .map_err(|error| Error::corrupt(path, format!("not UTF-8: {error}")))?;
        Self::from_json(json, path)
    }

    /// Reads the text of a `preprocessor_config.json`; `path` is its origin, for error messages.
    ///
    /// # Errors
    /// As [`Processor::from_file`].
    pub fn from_json(json: &str, path: &Path) -> Result<Self> {
        let fields = serde_json::from_str(json)
            .map_err(|error| Error::corrupt(path, format!("not a JSON object: {error}")))?;
        Self::from_settings(&fields, path)
    }

    /// Reads the settings of a `preprocessor_config.json`.
    ///
    /// # Errors
    /// As [`Processor::from_file`].
    pub fn from_settings(fields: &Map<String, Value>, path: &Path) -> Result<Self> {
        Settings {
            fields: fields.clone(),
            path,
        }
        .processor()
    }

    /// Returns how a picture becomes a square.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Returns the width and height of the encoders' input, in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the number of encoders: one, or two in a fused backbone.
    pub fn encoders(&self) -> usize {
        self.normalizations.len()
    }

    /// Resizes and normalizes a picture: `[3 * encoders, size, size]`, one encoder after the other.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no room for the result.
    pub fn process(&self, picture: &Picture) -> Result<Pixels> {
        let square = self.square(picture)?;
        let mut data = room(3 * self.encoders() * self.size * self.size, || {
            "the pixels of a picture".into()
        })?;
        self.normalizations
            .iter()
            .for_each(|n| data.extend(normalized(&square, n.mean, n.std)));
        Ok(Pixels {
            data,
            channels: 3 * self.encoders(),
            height: self.size,
            width: self.size,
        })
    }

    /// Returns the picture as a square of RGB8.
    fn square(&self, picture: &Picture) -> Result<Vec<u8>> {
        let mut canvas = Canvas {
            picture,
            border_x: 0,
            border_y: 0,
            fill: [0; 3],
        };
        if let Strategy::Letterbox { fill } = self.strategy {
            let (width, height) = (canvas.width(), canvas.height());
            let side = width.max(height);
            // An odd difference leaves one side a pixel shorter.
            canvas = Canvas {
                picture,
                border_x: (side - width) / 2,
                border_y: (side - height) / 2,
                fill,
            };
        }
        let (width, height) = (canvas.width(), canvas.height());
        let (scaled_width, scaled_height) = match self.strategy {
            Strategy::ResizeNaive => (self.size, self.size),
            _ if width <= height => (self.size, self.size * height / width),
            _ => (self.size * width / height, self.size),
        };
        resize_window(
            &canvas,
            &self.middle(width, scaled_width),
            &self.middle(height, scaled_height),
            Filter::Bicubic,
        )
    }

    /// Returns the axis that keeps the center of `scaled` samples. A half is rounded to the even
    /// number, as Python's `round` does.
    fn middle(&self, source: usize, scaled: usize) -> Axis {
        let start = ((scaled - self.size) as f64 / 2.0).round_ties_even() as usize;
        Axis {
            source,
            scaled,
            window: start..start + self.size,
        }
    }
}

/// Makes three planes of (value / 255 - mean) / std from RGB8 pixels, rounding each step to `f32`.
pub fn normalize(rgb: &[u8], mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    normalized(rgb, mean, std).collect()
}

fn normalized(rgb: &[u8], mean: [f32; 3], std: [f32; 3]) -> impl Iterator<Item = f32> {
    let plane = move |channel: usize| {
        let table: [f32; 256] =
            std::array::from_fn(|value| (value as f32 / 255.0 - mean[channel]) / std[channel]);
        rgb.chunks_exact(3)
            .map(move |pixel| table[usize::from(pixel[channel])])
    };
    (0..3).flat_map(plane)
}

/// `tvf_resize_params`: the arguments of torchvision's `resize`. A single size is that of the
/// shorter side.
#[derive(Deserialize)]
struct ResizeParams {
    size: OneOrMore,
    interpolation: Value,
    max_size: Option<u64>,
}

#[derive(Deserialize)]
struct CropParams {
    output_size: OneOrMore,
}

#[derive(Deserialize)]
struct NormalizeParams {
    mean: [f64; 3],
    std: [f64; 3],
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u64),
    More(Vec<u64>),
}

/// A `preprocessor_config.json` and its path.
struct Settings<'a> {
    fields: Map<String, Value>,
    path: &'a Path,
}

impl Settings<'_> {
    fn processor(&self) -> Result<Processor> {
        if let Some(kind) = self
            .get::<String>("image_processor_type")?
            .filter(|kind| kind != "PrismaticImageProcessor")
        {
            return Err(self.unsupported(
                "image_processor_type",
                format!("{kind:?}; PrismaticImageProcessor is"),
            ));
        }
        let sizes = self
            .get("input_sizes")?
            .unwrap_or_else(|| vec![[3, 224, 224]]);
        let size = self.size(&sizes)?;
        let naive = self.resizes_both_sides(size, sizes.len())?;
        self.check_interpolations(sizes.len())?;
        self.check_crop(size, sizes.len())?;
        let letterbox = match self.get("tvf_do_letterbox")? {
            Some(letterbox) => letterbox,
            None => self.strategy_name()? == "letterbox",
        };
        let strategy = match (letterbox, naive) {
            (true, false) => Strategy::Letterbox {
                fill: self.letterbox_fill()?,
            },
            (false, true) => Strategy::ResizeNaive,
            (false, false) => Strategy::ResizeCrop,
            (true, true) => {
                return Err(self.corrupt(
                    "tvf_do_letterbox",
                    "true, but tvf_resize_params resizes both sides".into(),
                ));
            }
        };
        Ok(Processor {
            strategy,
            size: size as usize,
            normalizations: self.normalizations(sizes.len())?,
        })
    }

    /// Returns the side of the encoders' input.
    fn size(&self, sizes: &[[u64; 3]]) -> Result<u64> {
        const FIELD: &str = "input_sizes";
        let Some(&[channels, height, width]) = sizes.first().filter(|_| sizes.len() <= 2) else {
            return Err(
                self.unsupported(FIELD, format!("{} encoders; one or two are", sizes.len()))
            );
        };
        if !(1..=MAX_SIZE).contains(&height) {
            return Err(self.corrupt(
                FIELD,
                format!("a side of {height}, expected 1 to {MAX_SIZE}"),
            ));
        }
        if channels != 3 || height != width || sizes.iter().any(|other| other != &sizes[0]) {
            return Err(self.unsupported(
                FIELD,
                format!("{sizes:?}; three channels and the same square for each encoder are"),
            ));
        }
        Ok(height)
    }

    fn strategy_name(&self) -> Result<String> {
        const FIELD: &str = "image_resize_strategy";
        let name = self.get(FIELD)?.unwrap_or_else(|| "letterbox".to_string());
        match name.as_str() {
            "resize-naive" | "resize-crop" | "letterbox" => Ok(name),
            _ => Err(self.unsupported(
                FIELD,
                format!("{name:?}; resize-naive, resize-crop and letterbox are"),
            )),
        }
    }

    /// Returns whether both sides are resized to `size`, or only the shorter one.
    fn resizes_both_sides(&self, size: u64, encoders: usize) -> Result<bool> {
        const FIELD: &str = "tvf_resize_params";
        let Some(params) = self.get::<Vec<ResizeParams>>(FIELD)? else {
            return Ok(self.strategy_name()? == "resize-naive");
        };
        self.check_count(FIELD, params.len(), encoders)?;
        let mut both = Vec::new();
        for ResizeParams {
            size: target,
            interpolation,
            max_size,
        } in &params
        {
            if interpolation != PIL_BICUBIC && interpolation != "bicubic" {
                return Err(self.unsupported(
                    FIELD,
                    format!("interpolation {interpolation}; bicubic ({PIL_BICUBIC}) is"),
                ));
            }
            if max_size.is_some() {
                return Err(self.unsupported(FIELD, "max_size; null is".into()));
            }
            let sides = match target {
                OneOrMore::One(side) => vec![*side],
                OneOrMore::More(sides) => sides.clone(),
            };
            if !matches!(sides.len(), 1 | 2) || sides.iter().any(|&side| side != size) {
                return Err(self.corrupt(
                    FIELD,
                    format!(
                        "size {sides:?}, expected {size} or [{size}, {size}] as in input_sizes"
                    ),
                ));
            }
            both.push(sides.len() == 2);
        }
        if both.iter().any(|other| other != &both[0]) {
            return Err(self.unsupported(
                FIELD,
                "a different way of resizing for each encoder; the same for all is".into(),
            ));
        }
        Ok(both[0])
    }

    fn check_interpolations(&self, encoders: usize) -> Result<()> {
        const FIELD: &str = "interpolations";
        // The saved settings of `resize` are those that were used in the end.
        if self.fields.contains_key("tvf_resize_params") {
            return Ok(());
        }
        let Some(names) = self.get::<Vec<String>>(FIELD)? else {
            return Ok(());
        };
        self.check_count(FIELD, names.len(), encoders)?;
        match names.iter().find(|name| *name != "bicubic") {
            Some(name) => Err(self.unsupported(FIELD, format!("{name:?}; bicubic is"))),
            None => Ok(()),
        }
    }

    fn check_crop(&self, size: u64, encoders: usize) -> Result<()> {
        const FIELD: &str = "tvf_crop_params";
        let Some(params) = self.get::<Vec<CropParams>>(FIELD)? else {
            return Ok(());
        };
        self.check_count(FIELD, params.len(), encoders)?;
        for CropParams { output_size } in params {
            let fits = match &output_size {
                OneOrMore::One(side) => *side == size,
                OneOrMore::More(sides) => {
                    sides.len() <= 2 && !sides.is_empty() && sides.iter().all(|&side| side == size)
                }
            };
            if !fits {
                return Err(self.corrupt(
                    FIELD,
                    format!("output_size differs from input_sizes, expected [{size}, {size}]"),
                ));
            }
        }
        Ok(())
    }

    /// Returns the color of the border: the saved one, or the mean of the last encoder.
    fn letterbox_fill(&self) -> Result<[u8; 3]> {
        if let Some(fill) = self.get("tvf_letterbox_fill")? {
            return Ok(fill);
        }
        match self.get::<Vec<[f64; 3]>>("means")?.as_deref() {
            None => Ok([127; 3]),
            Some([.., last]) if last.iter().all(|mean| (0.0..=1.0).contains(mean)) => {
                Ok(last.map(|mean| (mean * 255.0) as u8))
            }
            Some(means) => Err(self.corrupt(
                "means",
                format!("{means:?}, expected values from 0 to 1 for the color of the letterbox"),
            )),
        }
    }

    fn normalizations(&self, encoders: usize) -> Result<Vec<Normalization>> {
        const SAVED: &str = "tvf_normalize_params";
        if let Some(params) = self.get::<Vec<NormalizeParams>>(SAVED)? {
            self.check_count(SAVED, params.len(), encoders)?;
            return params
                .iter()
                .map(|params| self.normalization([SAVED, SAVED], params.mean, params.std))
                .collect();
        }
        let of_encoders = |field| -> Result<Vec<[f64; 3]>> {
            let values = self.get(field)?.unwrap_or_else(|| vec![[0.5; 3]; encoders]);
            self.check_count(field, values.len(), encoders)?;
            Ok(values)
        };
        let (means, stds) = (of_encoders("means")?, of_encoders("stds")?);
        means
            .into_iter()
            .zip(stds)
            .map(|(mean, std)| self.normalization(["means", "stds"], mean, std))
            .collect()
    }

    fn normalization(
        &self,
        fields: [&str; 2],
        mean: [f64; 3],
        std: [f64; 3],
    ) -> Result<Normalization> {
        let normalization = Normalization {
            mean: mean.map(|value| value as f32),
            std: std.map(|value| value as f32),
        };
        if !normalization.mean.iter().all(|value| value.is_finite()) {
            return Err(self.corrupt(
                fields[0],
                format!("a mean of {mean:?}, expected finite 32-bit numbers"),
            ));
        }
        if !normalization.std.iter().all(|value| value.is_normal()) {
            return Err(self.corrupt(
                fields[1],
                format!(
                    "a standard deviation of {std:?}, expected finite 32-bit numbers other than 0"
                ),
            ));
        }
        let Normalization { mean: m, std: s } = normalization;
        if !normalize(&[0, 0, 0, 255, 255, 255], m, s)
            .iter()
            .all(|value| value.is_finite())
        {
            let what = format!(
                "a standard deviation of {std:?} for a mean of {mean:?} makes infinite pixels"
            );
            return Err(self.corrupt(fields[1], what));
        }
        Ok(normalization)
    }

    /// Returns the value of a key; `None` if it is missing or null.
    fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        let value = self.fields.get(field).unwrap_or(&Value::Null);
        Option::deserialize(value).map_err(|error| self.corrupt(field, error.to_string()))
    }

    fn check_count(&self, field: &str, found: usize, encoders: usize) -> Result<()> {
        if found == encoders {
            return Ok(());
        }
        Err(self.corrupt(
            field,
            format!("{found} entries, expected {encoders}: one for each of input_sizes"),
        ))
    }

    fn corrupt(&self, field: &str, what: String) -> Error {
        Error::corrupt(self.path, format!("`{field}`: {what}"))
    }

    fn unsupported(&self, field: &str, what: String) -> Error {
        Error::unsupported(self.path, format!("`{field}`: not supported: {what}"))
    }
}
