//! What was measured, as it stands in the JSON file.

use serde::{Deserialize, Serialize};

use crate::measure::median;

/// Where something ran.
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

/// What processor and memory can do at most, in bytes or operations a second.
#[derive(Serialize, Deserialize)]
pub struct Ceilings {
    pub threads: usize,
    pub read_1: f64,
    pub read_all: f64,
    pub fma_1: f64,
    pub fma_all: f64,
    /// 0 where OpenBLAS is not there.
    pub sgemm: f64,
}

/// One stage of an answer, measured several times.
#[derive(Serialize, Deserialize)]
pub struct Stage {
    /// Pictures, positions or tokens.
    pub count: usize,
    /// Of each run, in seconds.
    pub seconds: Vec<f64>,
    /// What less was really measured, where the rest is reckoned.
    #[serde(default)]
    pub extrapolated: Option<String>,
}

impl Stage {
    pub fn median(&self) -> f64 {
        median(self.seconds.iter().copied())
    }

    /// Positions or tokens a second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.median()
    }
}

/// What one program did with the model in one form.
#[derive(Serialize, Deserialize)]
pub struct Row {
    pub program: String,
    /// The form of the decoder's weights, such as `INT4`, and what is particular.
    pub scheme: String,
    pub device: Device,
    /// To repeat it.
    #[serde(default)]
    pub command: String,
    pub load: Option<f64>,
    /// Bytes a second of the disk, just before.
    #[serde(default)]
    pub disk: Option<f64>,
    #[serde(default)]
    pub weight_bytes: Option<u64>,
    /// Of what ran on the processor: bytes a second at which all threads read memory just before or
    /// just after, whichever was more.
    #[serde(default)]
    pub read: Option<f64>,
    /// The most memory of the process, in bytes.
    pub resident_peak: Option<u64>,
    /// What the library reckoned beforehand.
    #[serde(default)]
    pub reckoned: Option<u64>,
    /// Bytes a second that the device copies.
    #[serde(default)]
    pub copied: Option<f64>,
    pub image: Option<Stage>,
    pub prefill: Option<Stage>,
    pub decode: Option<Stage>,
    #[serde(default)]
    pub first_token: Option<Vec<f64>>,
}

/// One operation of ours on the processor, measured by itself.
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

/// Programs that are this library.
pub const OURS: &str = "moxin-vlm";

impl Row {
    pub fn is_ours(&self) -> bool {
        self.program == OURS
    }

    /// Bits that a weight of the decoder takes, scales and biases included: `4` with groups of 64
    /// takes 4.5, as llama.cpp's Q4_0 does.
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

    /// Bytes of weights that a token reads.
    pub fn bytes_per_token(&self) -> Option<f64> {
        self.bits().map(|bits| DECODER_WEIGHTS as f64 * bits / 8.0)
    }
}

/// Numbers in the decoder's matrices and its head: 36 layers of 4096, with keys and values of 1024,
/// and 14336 in the MLP; 32064 tokens.
pub const DECODER_WEIGHTS: usize =
    36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 32064 * 4096;

#[derive(Serialize, Deserialize)]
pub struct Report {
    pub processor: String,
    pub runs: usize,
    /// Before and after all else.
    pub machine: Vec<Ceilings>,
    pub rows: Vec<Row>,
    pub kernels: Vec<Kernel>,
    /// Peers that are missing, and why.
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

    /// A figure of the machine: the highest measured. Others who use the machine can only lower it.
    pub fn ceiling(&self, figure: fn(&Ceilings) -> f64) -> f64 {
        self.machine.iter().map(figure).fold(0.0, f64::max)
    }

    /// Bytes a second at which a device reads weights at most.
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

    /// The share of the bandwidth that decoding uses: of that of its own minutes, where it was
    /// measured then.
    pub fn share(&self, row: &Row) -> Option<f64> {
        let bandwidth = row.read.or_else(|| self.bandwidth(row.device))?;
        Some(row.decode.as_ref()?.rate() * row.bytes_per_token()? / bandwidth)
    }
}
