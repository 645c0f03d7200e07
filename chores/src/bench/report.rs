//! The measurements, as stored in the JSON file.

use serde::{Deserialize, Serialize};

use crate::measure::median;

/// The device that a program ran on.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    Cpu,
    Gpu,
}

impl Device {
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu => "gpu",
        }
    }
}

/// The limits of CPU and memory, in bytes or operations per second.
#[derive(Serialize, Deserialize)]
pub struct Ceilings {
    pub threads: usize,
    pub read_1: f64,
    pub read_all: f64,
    pub fma_1: f64,
    pub fma_all: f64,
    /// 0 without OpenBLAS.
    pub sgemm: f64,
}

/// One stage of an answer, measured several times.
#[derive(Serialize, Deserialize)]
pub struct Stage {
    /// Pictures, positions or tokens.
    pub count: usize,
    /// The seconds of each run.
    pub seconds: Vec<f64>,
    /// The smaller work that was measured, if the rest is extrapolated.
    #[serde(default)]
    pub extrapolated: Option<String>,
}

impl Stage {
    pub fn median(&self) -> f64 {
        median(self.seconds.iter().copied())
    }

    /// Returns positions or tokens per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.median()
    }
}

/// The results of one program with one form of the model.
#[derive(Serialize, Deserialize)]
pub struct Row {
    pub program: String,
    /// The form of the decoder's weights, such as `INT4`, with special settings.
    pub scheme: String,
    pub device: Device,
    /// The command that repeats it.
    #[serde(default)]
    pub command: String,
    pub load: Option<f64>,
    /// The disk's bytes per second, just before.
    #[serde(default)]
    pub disk: Option<f64>,
    #[serde(default)]
    pub weight_bytes: Option<u64>,
    /// For the CPU: bytes per second at which all threads read memory just before or just after,
    /// whichever is more.
    #[serde(default)]
    pub read: Option<f64>,
    /// The peak memory of the process, in bytes.
    pub resident_peak: Option<u64>,
    /// The library's estimate.
    #[serde(default)]
    pub estimated: Option<u64>,
    /// The device's copying speed in bytes per second.
    #[serde(default)]
    pub copied: Option<f64>,
    pub image: Option<Stage>,
    pub prefill: Option<Stage>,
    pub decode: Option<Stage>,
    #[serde(default)]
    pub first_token: Option<Vec<f64>>,
}

/// One of our CPU operations, measured on its own.
#[derive(Serialize, Deserialize)]
pub struct Kernel {
    pub op: String,
    /// How its weights are stored.
    pub scheme: String,
    pub rows: usize,
    #[serde(rename = "in")]
    pub input: usize,
    #[serde(rename = "out")]
    pub output: usize,
    pub seconds_median: f64,
    pub bytes_read: f64,
    pub flop: f64,
}

/// The name of this library's rows.
pub const OURS: &str = "moxin-vlm";

impl Row {
    pub fn is_ours(&self) -> bool {
        self.program == OURS
    }

    /// Returns the bits per weight of the decoder, including scales and biases: `4` with a group
    /// size of 64 takes 4.5, like llama.cpp's Q4_0.
    pub fn bits(&self) -> Option<f64> {
        let all = [
            ("BF16", 16.0),
            ("INT8", 8.5),
            ("Q8_0", 8.5),
            ("INT4", 4.5),
            ("Q4_0", 4.5),
        ];
        all.iter()
            .find(|(name, _)| self.scheme.starts_with(name))
            .map(|(_, bits)| *bits)
    }

    /// Returns the bytes of weights that a token reads.
    pub fn bytes_per_token(&self) -> Option<f64> {
        self.bits().map(|bits| DECODER_WEIGHTS as f64 * bits / 8.0)
    }
}

/// The number of values in the decoder's matrices and its head: 36 layers of 4096, with keys and
/// values of 1024, and 14336 in the MLP; 32064 tokens.
pub const DECODER_WEIGHTS: usize =
    36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 32064 * 4096;

#[derive(Serialize, Deserialize)]
pub struct Report {
    pub processor: String,
    pub runs: usize,
    /// Measured before and after everything else.
    pub machine: Vec<Ceilings>,
    pub rows: Vec<Row>,
    pub kernels: Vec<Kernel>,
    /// Programs that were not measured, and why.
    pub missing: Vec<String>,
}

impl Report {
    pub fn new(runs: usize) -> Report {
        Report {
            processor: crate::processor::name(),
            runs,
            machine: Vec::new(),
            rows: Vec::new(),
            kernels: Vec::new(),
            missing: Vec::new(),
        }
    }

    pub fn threads(&self) -> usize {
        self.machine.first().map_or(1, |machine| machine.threads)
    }

    /// Returns a figure of the machine: the highest measurement, because other programs can only
    /// lower it.
    pub fn ceiling(&self, figure: fn(&Ceilings) -> f64) -> f64 {
        self.machine.iter().map(figure).fold(0.0, f64::max)
    }

    /// Returns the maximum bytes per second at which a device reads weights.
    pub fn bandwidth(&self, device: Device) -> Option<f64> {
        match device {
            Device::Cpu => Some(self.ceiling(|machine| machine.read_all)),
            Device::Gpu => self
                .rows
                .iter()
                .filter(|row| row.device == device)
                .find_map(|row| row.copied),
        }
    }

    /// Returns the share of the bandwidth that decoding uses, relative to that measured next to it,
    /// if there is one.
    pub fn share(&self, row: &Row) -> Option<f64> {
        let bandwidth = row.read.or_else(|| self.bandwidth(row.device))?;
        Some(row.decode.as_ref()?.rate() * row.bytes_per_token()? / bandwidth)
    }
}
