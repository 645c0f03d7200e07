//! Cargo, as the chores call it.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::repository;

/// Cargo in the root of the repository.
pub fn cargo() -> Command {
    // Cargo tells the programs it runs where it lies.
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(repository());
    command
}

/// Runs a program whose output goes to the user.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("{} failed ({status})", program.display());
    }
    Ok(())
}

/// Builds an example, with cargo's progress on the terminal.
pub fn build_example(name: &str) -> Result<()> {
    run(cargo().args(["build", "--example", name]))
}

/// Runs an example that is built.
pub fn run_example(name: &str, arguments: &[&str]) -> Result<()> {
    run(cargo().args(["run", "--quiet", "--example", name, "--"]).args(arguments)).with_context(|| format!("the example {name}"))
}
