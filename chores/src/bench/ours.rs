//! This library, measured with `examples/bench.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::machine::read_from_disk;
use super::report::{Device, Kernel, OURS, Report, Row};
use super::{POSITIONS, TOKENS};
use crate::cargo;
use crate::setup::step::Steps;

/// The model with one form of weights.
pub struct Checkpoint {
    scheme: &'static str,
    folder: PathBuf,
}

/// Returns the dense checkpoint and the quantized ones next to it, which are made if missing.
pub fn checkpoints(steps: &Steps, dense: &Path) -> Result<Vec<Checkpoint>> {
    let mut all = vec![Checkpoint {
        scheme: "BF16",
        folder: dense.to_owned(),
    }];
    for (scheme, bits) in [("INT8", "8"), ("INT4", "4")] {
        let folder = PathBuf::from(format!("{}-{bits}bit", dense.display()));
        if !folder.join("config.json").is_file() {
            steps.say(&format!("quantizing to {bits} bits (a minute or two)"));
            let mut command = example("save_quantized");
            command
                .arg("--model")
                .arg(dense)
                .arg("--output")
                .arg(&folder)
                .args(["--bits", bits]);
            steps.expect(&mut command, "the checkpoint could not be quantized")?;
        }
        all.push(Checkpoint { scheme, folder });
    }
    Ok(all)
}

/// Returns whether the library would use a GPU here: the small model reports where it ran.
pub fn has_gpu(steps: &Steps) -> Result<bool> {
    let report = run(
        steps,
        example("generate").args([
            "--model",
            "models/tiny",
            "--prompt",
            "What is it?",
            "--json",
        ]),
    )?;
    Ok(report["backend"] != "cpu")
}

/// Loads a checkpoint from a cold disk, and answers.
pub fn measure(
    steps: &Steps,
    checkpoint: &Checkpoint,
    device: Device,
    runs: usize,
    report: &mut Report,
) -> Result<()> {
    steps.say(&format!("{}, {}", checkpoint.scheme, device.name()));
    let (positions, tokens, runs) = (
        POSITIONS.to_string(),
        (TOKENS + 1).to_string(),
        runs.to_string(),
    );
    let mut arguments = vec![
        "--positions",
        &positions,
        "--tokens",
        &tokens,
        "--runs",
        &runs,
    ];
    if device == Device::Cpu {
        arguments.push("--cpu");
    }
    let disk = read_from_disk(&checkpoint.folder)?;
    let found = run(
        steps,
        example("bench")
            .arg("--model")
            .arg(&checkpoint.folder)
            .args(&arguments),
    )?;
    let name = checkpoint
        .folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let command = format!(
        "cargo run --release --example bench -- --model {name} {}",
        arguments.join(" ")
    );
    report
        .rows
        .push(row(found, checkpoint.scheme, device, command, Some(disk))?);
    Ok(())
}

/// Measures the CPU with MLX's kernels instead of ours. The whole work would take an hour: only a
/// few positions of text and a few tokens.
pub fn measure_mlx(steps: &Steps, checkpoint: &Checkpoint, report: &mut Report) -> Result<()> {
    steps.say(&format!("{}, cpu, with MLX's kernels", checkpoint.scheme));
    let arguments = [
        "--text-only",
        "--positions",
        "16",
        "--tokens",
        "4",
        "--runs",
        "1",
        "--cpu",
    ];
    let found = run(
        steps,
        example("bench")
            .arg("--model")
            .arg(&checkpoint.folder)
            .args(arguments)
            .env("MOXIN_CPU_KERNELS", "mlx"),
    )?;
    let name = checkpoint
        .folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let command = format!(
        "MOXIN_CPU_KERNELS=mlx cargo run --release --example bench -- --model {name} {}",
        arguments.join(" ")
    );
    let mut row = row(found, checkpoint.scheme, Device::Cpu, command, None)?;
    row.program = format!("{OURS} with MLX's kernels");
    (row.load, row.resident_peak, row.first_token) = (None, None, None);
    if let Some(prefill) = &mut row.prefill {
        prefill
            .seconds
            .iter_mut()
            .for_each(|seconds| *seconds *= POSITIONS as f64 / prefill.count as f64);
        prefill.extrapolated = Some(format!("from {} of {POSITIONS} positions", prefill.count));
        prefill.count = POSITIONS;
    }
    report.rows.push(row);
    Ok(())
}

/// Measures our CPU kernels on their own.
pub fn kernels(steps: &Steps) -> Result<Vec<Kernel>> {
    steps.say("single operations, cpu");
    let text = steps.expect(
        example("kernels").args(["--json"]),
        "the example kernels failed",
    )?;
    let from = text
        .find('[')
        .context("the example kernels printed no result")?;
    serde_json::from_str(&text[from..]).context("what the example kernels printed")
}

/// Converts the example's output into a row.
fn row(
    mut found: Value,
    scheme: &str,
    device: Device,
    command: String,
    disk: Option<f64>,
) -> Result<Row> {
    found["program"] = OURS.into();
    found["scheme"] = scheme.into();
    found["device"] = device.name().into();
    found["command"] = command.into();
    found["disk"] = disk.into();
    serde_json::from_value(found).context("what the example bench printed")
}

fn example(name: &str) -> Command {
    let mut command = cargo::cargo();
    command
        .args(["run", "--quiet", "--release", "--package", "moxin-vlm"])
        .args(["--example", name, "--"]);
    command
}

fn run(steps: &Steps, command: &mut Command) -> Result<Value> {
    let text = steps.expect(command, "the example failed")?;
    let line = text
        .lines()
        .rfind(|line| line.starts_with('{'))
        .context("the example printed no result")?;
    serde_json::from_str(line).context("what the example printed")
}
