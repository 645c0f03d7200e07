//! The image processor's settings: `preprocessor_config.json` or, if a folder has none,
//! `processor_config.json`, in which transformers 5 stores the settings of all its processors.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{
    Error, Result,
    checkpoint::parse_file,
    file,
    image::{Filter, Normalization},
};

/// The file that most folders have.
const FILE: &str = "preprocessor_config.json";

/// What the files are for.
const WHAT: &str = "the settings of the image processor";

/// The settings of a folder's image processor, not yet interpreted.
#[derive(Debug, Clone)]
pub struct ProcessorSettings {
    path: PathBuf,
    values: Map<String, Value>,
}

impl ProcessorSettings {
    /// Reads the settings in a folder; `None` if it has neither file.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] if the file is not a JSON object.
    pub fn open(folder: &Path) -> Result<Option<ProcessorSettings>> {
        let path = folder.join(FILE);
        if let Some(values) = read(&path)? {
            return Ok(Some(ProcessorSettings { path, values }));
        }
        let path = folder.join("processor_config.json");
        let Some(mut all) = read(&path)? else {
            return Ok(None);
        };
        let values = match all.remove("image_processor") {
            Some(Value::Object(values)) => values,
            Some(_) => {
                return Err(Error::corrupt(
                    &path,
                    "field `image_processor`: expected an object",
                ));
            }
            // A processor_config.json without image settings does not replace the other file.
            None if !all.contains_key("image_processor_type") => return Ok(None),
            None => all,
        };
        Ok(Some(ProcessorSettings { path, values }))
    }

    /// Returns the error for a folder that has neither file.
    pub fn missing(folder: &Path) -> Error {
        Error::NotFound {
            path: folder.join(FILE),
            what: WHAT.into(),
        }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name of the file.
    pub fn file_name(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    /// Returns all settings.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// Fails if the settings belong to a processor other than `expected`, those that a model of
    /// this type has. transformers appends `Fast` or `Pil` to the names of variants that do the
    /// same.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] with both names.
    pub fn expect(&self, model_type: &str, expected: &[&str]) -> Result<()> {
        let field = |name: &str| {
            self.values
                .get(name)
                .and_then(Value::as_str)
                .map(|kind| (name.to_owned(), kind))
        };
        // `processor_class` names the processor of text and pictures that contains it.
        let Some((name, kind)) = field("image_processor_type").or_else(|| field("processor_class"))
        else {
            return Ok(());
        };
        let bare = kind
            .strip_suffix("Fast")
            .or_else(|| kind.strip_suffix("Pil"))
            .unwrap_or(kind);
        if expected.contains(&bare) {
            return Ok(());
        }
        let what = format!(
            "field `{name}` is {kind:?}; a model of the type {model_type:?} needs {}",
            expected.join(" or ")
        );
        Err(Error::unsupported(&self.path, what))
    }

    /// Returns a number, or `default` if it is missing or null.
    pub fn number(&self, name: &str, default: f64) -> Result<f64> {
        match self.values.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite())
                .ok_or_else(|| self.wrong(name, value, "a number")),
        }
    }

    /// Returns an integer from 1 to 2^31, or `None` if it is missing or null.
    pub fn count(&self, name: &str) -> Result<Option<usize>> {
        match self.values.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self.check_count(name, value).map(Some),
        }
    }

    /// Returns an integer inside an object, such as the `height` of `size`, or `None`.
    pub fn count_in(&self, object: &str, name: &str) -> Result<Option<usize>> {
        match self.values.get(object).and_then(|value| value.get(name)) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self
                .check_count(&format!("{object}.{name}"), value)
                .map(Some),
        }
    }

    /// Returns a switch, or `default` if it is missing or null.
    pub fn switch(&self, name: &str, default: bool) -> Result<bool> {
        match self.values.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.wrong(name, value, "true or false")),
        }
    }

    /// Returns three numbers, one per channel, or `default` if they are missing or null.
    pub fn channels(&self, name: &str, default: [f64; 3]) -> Result<[f64; 3]> {
        let Some(value) = self.values.get(name).filter(|value| !value.is_null()) else {
            return Ok(default);
        };
        let numbers = value
            .as_array()
            .map(|numbers| numbers.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
        let numbers = numbers.and_then(|numbers| <[f64; 3]>::try_from(numbers).ok());
        numbers
            .filter(|numbers| numbers.iter().all(|x| x.is_finite()))
            .ok_or_else(|| self.wrong(name, value, "three numbers"))
    }

    /// Returns mean and standard deviation of the channels, and the factor applied before them.
    pub fn normalization(&self, mean: [f64; 3], std: [f64; 3]) -> Result<Normalization> {
        let factor = self.number("rescale_factor", 1.0 / 255.0)?;
        let (mean, std) = (
            self.channels("image_mean", mean)?,
            self.channels("image_std", std)?,
        );
        if std.iter().any(|std| *std <= 0.0) {
            return Err(Error::corrupt(
                &self.path,
                format!("field `image_std` is {std:?}; expected three numbers above 0"),
            ));
        }
        Ok(Normalization { factor, mean, std })
    }

    /// Fails unless pictures are resized, rescaled and normalized.
    pub fn require_steps(&self) -> Result<()> {
        ["do_resize", "do_rescale", "do_normalize"]
            .into_iter()
            .try_for_each(|step| self.require(step, true))
    }

    /// Fails if a switch differs from the only value that this library supports.
    pub fn require(&self, name: &str, expected: bool) -> Result<()> {
        match self.switch(name, expected)? == expected {
            true => Ok(()),
            false => Err(Error::unsupported(
                &self.path,
                format!(
                    "field `{name}` is {}; only {expected} is supported",
                    !expected
                ),
            )),
        }
    }

    /// Returns the filter for resizing pictures.
    pub fn filter(&self, default: Filter) -> Result<Filter> {
        match self.values.get("resample") {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                let filter = value.as_u64().and_then(Filter::from_pillow);
                filter.ok_or_else(|| {
                    self.wrong(
                        "resample",
                        value,
                        "0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)",
                    )
                })
            }
        }
    }

    fn check_count(&self, name: &str, value: &Value) -> Result<usize> {
        let count = value.as_u64().filter(|count| (1..=1 << 31).contains(count));
        count
            .map(|count| count as usize)
            .ok_or_else(|| self.wrong(name, value, "an integer from 1 to 2147483648"))
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> Error {
        Error::corrupt(
            &self.path,
            format!("field `{name}` is {value}; expected {expected}"),
        )
    }
}

/// Reads a JSON object, if the file exists.
fn read(path: &Path) -> Result<Option<Map<String, Value>>> {
    match file::read_json(path, WHAT, file::MAX_JSON_BYTES) {
        Ok(bytes) => parse_file(path, &bytes).map(Some),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
