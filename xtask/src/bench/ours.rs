//! The library itself, through `examples/bench.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::machine::read_from_disk;
use super::report::{Device, OURS, Report, Row};
use super::{POSITIONS, TOKENS};
use crate::cargo;
use crate::setup::step::Steps;

/// The model in one form.
pub struct Checkpoint {
    scheme: &'static str,
    folder: PathBuf,
}

/// The dense checkpoint and, beside it, the quantized ones, which are made where they are not there yet.
pub fn checkpoints(steps: &Steps, dense: &Path) -> Result<Vec<Checkpoint>> {
    let mut all = vec![Checkpoint { scheme: "BF16", folder: dense.to_owned() }];
    for (scheme, bits) in [("INT8", "8"), ("INT4", "4")] {
        let folder = PathBuf::from(format!("{}-{bits}bit", dense.display()));
        if !folder.join("config.json").is_file() {
            steps.say(&format!("quantizing to {bits} bits (a minute or two)"));
            let mut command = example("save_quantized");
            command.arg("--model").arg(dense).arg("--output").arg(&folder).args(["--bits", bits]);
            steps.expect(&mut command, "the checkpoint could not be quantized")?;
        }
        all.push(Checkpoint { scheme, folder });
    }
    Ok(all)
}

/// Whether the library would compute on a GPU here.
pub fn has_gpu(steps: &Steps) -> Result<bool> {
    let report = run(steps, example("bench").args(["--model", "models/tiny", "--runs", "1"]))?;
    Ok(report["backend"] != "cpu")
}

/// Loads a form from a cold disk, and answers.
pub fn measure(steps: &Steps, checkpoint: &Checkpoint, device: Device, runs: usize, report: &mut Report) -> Result<()> {
    steps.say(&format!("{}, {}", checkpoint.scheme, device.name()));
    let (positions, tokens, runs) = (POSITIONS.to_string(), (TOKENS + 1).to_string(), runs.to_string());
    let mut arguments = vec!["--positions", &positions, "--tokens", &tokens, "--runs", &runs];
    if device == Device::Cpu {
        arguments.push("--cpu");
    }
    let disk = read_from_disk(&checkpoint.folder)?;
    let found = run(steps, example("bench").arg("--model").arg(&checkpoint.folder).args(&arguments))?;
    let name = checkpoint.folder.file_name().unwrap_or_default().to_string_lossy();
    let command = format!("cargo run --release --example bench -- --model {name} {}", arguments.join(" "));
    report.rows.push(row(found, checkpoint.scheme, device, command, Some(disk))?);
    Ok(())
}

/// What the example printed, as a row.
fn row(mut found: Value, scheme: &str, device: Device, command: String, disk: Option<f64>) -> Result<Row> {
    found["program"] = OURS.into();
    found["scheme"] = scheme.into();
    found["device"] = device.name().into();
    found["command"] = command.into();
    found["disk"] = disk.into();
    serde_json::from_value(found).context("what the example bench printed")
}

fn example(name: &str) -> Command {
    let mut command = cargo::cargo();
    command.args(["run", "--quiet", "--release", "--example", name, "--"]);
    command
}

fn run(steps: &Steps, command: &mut Command) -> Result<Value> {
    let text = steps.expect(command, "the example bench failed")?;
    let line = text.lines().rfind(|line| line.starts_with('{')).context("the example bench printed no result")?;
    serde_json::from_str(line).context("what the example bench printed")
}
