//! Checks that the library compiles for Apple systems.

use anyhow::{Context, Result};

use super::{Home, TARGETS, add_target};
use crate::cargo;

/// Runs clippy for each target: on macOS with tests and examples, on iOS for the library alone.
pub fn run() -> Result<()> {
    let home = Home::ensure()?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let config = home.cargo_config(folder.path(), None)?;
    for (target, _) in TARGETS {
        add_target(target)?;
        let what = if target.ends_with("darwin") {
            "--all-targets"
        } else {
            "--lib"
        };
        println!("clippy for {target} ({})", what.trim_start_matches('-'));
        let mut clippy = cargo::cargo();
        clippy
            .args([
                "clippy",
                "--quiet",
                "--package",
                "moxin-vlm",
                what,
                "--target",
                target,
                "--config",
            ])
            .arg(&config);
        cargo::run(clippy.args(["--", "-D", "warnings"]))
            .with_context(|| format!("the library does not compile for {target}"))?;
    }
    println!("It compiles for macOS and iOS. Nothing has been run there.");
    Ok(())
}
