//! Measures the speed of the full size, next to the machine's limits and other programs with the
//! same work: docs/performance.md, with a plot and all numbers as JSON. Everything is measured in
//! one run, so that ratios are meaningful on a shared machine too.

mod machine;
mod ours;
mod page;
mod peers;
mod plot;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::setup::step::Steps;
use crate::{cargo, full_size, setup};
use peers::Peer;
use report::{Device, Report};

/// The positions of the prompt: a picture and a question.
const POSITIONS: usize = 290;

/// The tokens that are decoded after it.
const TOKENS: usize = 16;

#[derive(clap::Args)]
pub struct Options {
    /// Skip the GPU, if there is one
    #[arg(long)]
    cpu: bool,
    /// Other programs to measure; each is installed into the cache folder the first time:
    /// gigabytes, and minutes of compiling
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// Measure no other programs
    #[arg(long, conflicts_with = "peers")]
    alone: bool,
    /// How often each stage is measured; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// The random checkpoint of 17.8 GB, written if missing [default: one in the user's cache;
    /// quantized ones are next to it]
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Measure nothing; write page and plot again from the numbers of the last run
    #[arg(long)]
    page: bool,
    /// The output files: FILE.md, FILE.svg and FILE.json
    #[arg(long, value_name = "FILE", default_value = "docs/performance")]
    output: PathBuf,
}

pub fn run(options: Options) -> Result<()> {
    if options.page {
        let numbers = setup::repository()
            .join(&options.output)
            .with_extension("json");
        let numbers = fs::read_to_string(&numbers)
            .with_context(|| format!("cannot read {}", numbers.display()))?;
        return write(&serde_json::from_str(&numbers)?, &options.output);
    }
    let home = setup::ensure()?;
    let cache = setup::cache_folder()?;
    fs::create_dir_all(&cache)?;
    let scratch = tempfile::tempdir_in(&cache).context("cannot make a folder in the cache")?;
    let steps = Steps::new(cache.join("bench.log"), scratch.path().to_owned());
    let peers = if options.alone {
        Vec::new()
    } else {
        options.peers.clone()
    };

    steps.say("building");
    for example in ["bench", "generate", "kernels", "save_quantized"] {
        let release = ["build", "--quiet", "--release", "--package", "moxin-vlm"];
        cargo::run(cargo::cargo().args(release).args(["--example", example]))?;
    }
    let checkpoints = ours::checkpoints(
        &steps,
        &full_size::ensure(full_size::Model::Moxin7b, options.checkpoint)?,
    )?;
    let gpu = !options.cpu && ours::has_gpu(&steps)?;
    let devices: &[Device] = if gpu {
        &[Device::Cpu, Device::Gpu]
    } else {
        &[Device::Cpu]
    };
    let environments = peers::install(&steps, &cache, &peers, gpu)?;

    let ceilings = machine::Program::build(scratch.path(), home.as_deref())?;
    let mut report = Report::new(options.runs);
    steps.say("the machine");
    report.machine.push(ceilings.measure(&steps)?);
    report.kernels = ours::kernels(&steps)?;
    for device in devices {
        for checkpoint in &checkpoints {
            beside_reading(&steps, &ceilings, &mut report, |report| {
                ours::measure(&steps, checkpoint, *device, options.runs, report)
            })?;
        }
        report.machine.push(ceilings.measure(&steps)?);
        write(&report, &options.output)?; // the following steps may take long, and be interrupted
        for environment in &environments {
            let threads = report.threads();
            let measure = |report: &mut Report| {
                peers::measure(&steps, environment, *device, threads, &scratch, report)
            };
            beside_reading(&steps, &ceilings, &mut report, measure)?;
            write(&report, &options.output)?;
        }
        if let (Device::Cpu, Some(smallest)) = (device, checkpoints.last()) {
            ours::measure_mlx(&steps, smallest, &mut report)?;
        }
    }
    steps.say("the machine again");
    report.machine.push(ceilings.measure(&steps)?);
    write(&report, &options.output)?;
    steps.say(&format!(
        "wrote {0}.md, {0}.svg and {0}.json",
        options.output.display()
    ));
    Ok(())
}

/// Runs a step that adds rows to the report, and measures before and after it how fast memory is
/// read: on a shared machine this changes from minute to minute.
fn beside_reading(
    steps: &Steps,
    ceilings: &machine::Program,
    report: &mut Report,
    measure: impl FnOnce(&mut Report) -> Result<()>,
) -> Result<()> {
    let (before, first) = (ceilings.read(steps)?, report.rows.len());
    measure(report)?;
    let read = before.max(ceilings.read(steps)?);
    report.rows[first..]
        .iter_mut()
        .filter(|row| row.device == Device::Cpu)
        .for_each(|row| row.read = Some(read));
    Ok(())
}

/// Writes page, plot and numbers.
fn write(report: &Report, to: &Path) -> Result<()> {
    let output = setup::repository().join(to);
    let numbers = serde_json::to_string_pretty(report)? + "\n";
    for (extension, text) in [("json", numbers), ("md", page::page(report, to)?)] {
        let path = output.with_extension(extension);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    plot::draw(&output.with_extension("svg"), report)
}
