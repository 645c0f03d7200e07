//! Calls cargo.

use std::env::{self, consts::ARCH};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::setup::repository;

/// Returns cargo in the root of the repository.
pub fn cargo() -> Command {
    // Cargo sets this for the programs it runs.
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(repository());
    command
}

/// Returns the output of `cargo metadata`.
pub fn metadata(arguments: &[&str]) -> Result<Value> {
    let mut command = cargo();
    command
        .args(["metadata", "--quiet", "--format-version=1"])
        .args(arguments);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("`cargo metadata` fails, see above");
    }
    serde_json::from_slice(&output.stdout).context("what `cargo metadata` printed")
}

/// Returns cargo's target folder.
pub fn target_folder(metadata: &Value) -> Result<PathBuf> {
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo's target folder")
}

/// Runs a program whose output goes to the user.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("{} failed ({status})", program.display());
    }
    Ok(())
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
    run(cargo().args(["build", "--example", name]))
}

/// Runs an example that was built.
pub fn run_example(name: &str, arguments: &[&str]) -> Result<()> {
    run(cargo()
        .args(["run", "--quiet", "--example", name, "--"])
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
