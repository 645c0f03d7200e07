//! Other programs with the same work: each in its own Python environment in the cache folder, with
//! a script from peers/.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tempfile::TempDir;

use super::report::{Device, Report, Row};
use super::{POSITIONS, TOKENS};
use crate::{
    python::environment,
    setup::{self, step::Steps},
};

#[derive(Clone, Copy, PartialEq, Debug, ValueEnum)]
pub enum Peer {
    MlxLm,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Transformers,
}

impl Peer {
    pub const ALL: [Peer; 3] = [Peer::LlamaCpp, Peer::MlxLm, Peer::Transformers];

    /// Returns the first part of the names of its script and its list of packages.
    fn stem(self) -> &'static str {
        match self {
            Peer::MlxLm => "mlx_lm",
            Peer::LlamaCpp => "llama_cpp",
            Peer::Transformers => "transformers",
        }
    }

    fn runs_on(self, device: Device) -> bool {
        // The packaged llama.cpp is built without CUDA.
        device == Device::Cpu || self != Peer::LlamaCpp
    }
}

/// An installed program, or why it is missing.
pub struct Environment {
    peer: Peer,
    python: Result<PathBuf>,
}

/// Installs what is missing. A program that cannot be installed does not prevent the others from
/// being measured.
pub fn install(steps: &Steps, cache: &Path, peers: &[Peer], gpu: bool) -> Result<Vec<Environment>> {
    let mut all = Vec::new();
    for peer in peers {
        let list = match peer {
            Peer::MlxLm if gpu => "mlx_lm_cuda.txt".to_owned(),
            peer => format!("{}.txt", peer.stem()),
        };
        let python = environment(
            steps,
            cache,
            &format!("peer-{}", peer.stem()),
            &fs::read_to_string(folder().join(list))?,
        );
        if let Err(error) = &python {
            steps.say(&format!("WITHOUT {}: {error:#}", peer.stem()));
        }
        all.push(Environment {
            peer: *peer,
            python,
        });
    }
    Ok(all)
}

fn folder() -> PathBuf {
    setup::repository().join("chores/src/bench/peers")
}

/// Runs a program's script; each line that it prints is a row.
pub fn measure(
    steps: &Steps,
    environment: &Environment,
    device: Device,
    threads: usize,
    scratch: &TempDir,
    report: &mut Report,
) -> Result<()> {
    let name = environment.peer.stem();
    if !environment.peer.runs_on(device) {
        return Ok(());
    }
    let python = match &environment.python {
        Ok(python) => python,
        Err(error) => {
            report.missing.push(format!(
                "{name}: {}",
                error.to_string().lines().next().unwrap_or_default()
            ));
            return Ok(());
        }
    };
    steps.say(&format!("{name}, {}", device.name()));
    let (positions, tokens, runs, threads) = (
        POSITIONS.to_string(),
        TOKENS.to_string(),
        report.runs.to_string(),
        threads.to_string(),
    );
    let arguments = [
        "--device",
        device.name(),
        "--positions",
        &positions,
        "--tokens",
        &tokens,
        "--runs",
        &runs,
        "--threads",
        &threads,
    ];
    let script = format!("{name}_peer.py");
    let mut command = Command::new(python);
    command
        .arg(folder().join(&script))
        .args(arguments)
        .arg("--folder")
        .arg(scratch.path())
        .env("OMP_NUM_THREADS", &threads);
    let text = match steps.run(&mut command)? {
        Ok(text) => text,
        Err(failure) => {
            let last = failure
                .text
                .lines()
                .rfind(|line| !line.trim().is_empty())
                .unwrap_or_default();
            steps.say(&format!("{name} FAILED: {last}"));
            report.missing.push(format!(
                "{name} on the {}: it failed with `{last}`",
                device.name()
            ));
            failure.text
        }
    };
    let command = format!("python {script} {}", arguments.join(" "));
    for line in text.lines().filter(|line| line.starts_with("{\"program\"")) {
        let row: Row =
            serde_json::from_str(line).with_context(|| format!("what {script} printed: {line}"))?;
        report.rows.push(Row {
            command: command.clone(),
            ..row
        });
    }
    Ok(())
}
