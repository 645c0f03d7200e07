//! Calls cargo.

use std::env::consts::ARCH;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::setup::repository;

pub use moxin_vlm_setup::run;

/// Returns cargo in the root of the repository.
pub fn cargo() -> Command {
    moxin_vlm_setup::cargo(repository())
}

/// Returns the output of `cargo metadata`.
pub fn metadata(arguments: &[&str]) -> Result<Value> {
    let mut command = cargo();
    command
        .args(["metadata", "--quiet", "--format-version=1"])
        .args(arguments);
    let output = output(&mut command, "`cargo metadata` fails")?;
    serde_json::from_slice(&output).context("what `cargo metadata` printed")
}

/// Runs cargo with its progress on the terminal, and returns what it printed. `failure` says what
/// it means if it fails.
pub fn output(command: &mut Command, failure: &str) -> Result<Vec<u8>> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{failure}, see above");
    }
    Ok(output.stdout)
}

/// Returns the library's version.
pub fn version(metadata: &Value) -> Result<String> {
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let package = packages
        .find(|package| package["name"] == "moxin-vlm")
        .context("cargo knows no moxin-vlm")?;
    Ok(package["version"]
        .as_str()
        .context("the version of moxin-vlm")?
        .to_owned())
}

/// Returns cargo's target folder.
pub fn target_folder(metadata: &Value) -> Result<PathBuf> {
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo's target folder")
}

/// Returns whether a program, with these arguments, runs and succeeds.
pub fn runs(program: &[&str]) -> bool {
    Command::new(program[0])
        .args(&program[1..])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Builds an example, with cargo's progress on the terminal.
pub fn build_example(name: &str) -> Result<()> {
    run(cargo().args(["build", "--package", "moxin-vlm", "--example", name]))
}

/// Runs an example that was built.
pub fn run_example(name: &str, arguments: &[&str]) -> Result<()> {
    run(cargo()
        .args(["run", "--quiet", "--package", "moxin-vlm"])
        .args(["--example", name, "--"])
        .args(arguments))
    .with_context(|| format!("the example {name}"))
}

/// Returns the target triple of this machine. If cargo gets it explicitly, flags do not apply to
/// build scripts and macros.
pub fn host() -> String {
    if cfg!(target_os = "macos") {
        format!("{ARCH}-apple-darwin")
    } else {
        format!("{ARCH}-unknown-linux-gnu")
    }
}

/// Installs Rust's standard library for a target with rustup, if it is missing.
pub fn add_target(target: &str) -> Result<()> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .context("cannot run rustc")?;
    if Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir() {
        return Ok(());
    }
    let status = Command::new("rustup")
        .args(["target", "add", target])
        .status();
    if !status.is_ok_and(|status| status.success()) {
        bail!(
            "Rust's standard library for {target} is missing, and `rustup target add {target}` \
             cannot get it"
        );
    }
    Ok(())
}
