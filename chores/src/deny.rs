//! cargo-deny (<https://embarkstudios.github.io/cargo-deny/>): licenses, origins and known
//! vulnerabilities of all dependencies.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cargo, setup};

const VERSION: &str = "0.20.2";

/// Returns why `cargo xtask test` cannot run this chore. Installs cargo-deny if it is missing.
pub fn lacks() -> Option<String> {
    program()
        .err()
        .map(|error| format!("cargo-deny, which could not be installed: {error:#}"))
}

/// Runs the checks in deny.toml. Vulnerabilities are checked if their database can be fetched.
pub fn run() -> Result<()> {
    let program = program()?;
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir(setup::repository()).args(arguments);
        command
    };
    cargo::run(&mut deny(&[
        "--workspace",
        "check",
        "licenses",
        "bans",
        "sources",
    ]))?;
    match deny(&["fetch", "db"]).status() {
        Ok(status) if status.success() => {
            cargo::run(&mut deny(&["--workspace", "check", "advisories"]))
        }
        _ => {
            println!(
                "SKIPPED: known vulnerabilities, whose database could not be fetched, see above"
            );
            Ok(())
        }
    }
}

/// Returns the machine's own cargo-deny, or one in the cache folder, which is built the first time.
fn program() -> Result<PathBuf> {
    if cargo::runs(&["cargo-deny", "--version"]) {
        return Ok("cargo-deny".into());
    }
    let folder = setup::cache_folder()?.join(format!("cargo-deny-{VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if !program.is_file() {
        println!("Installing cargo-deny {VERSION} in the cache folder (once; some minutes)");
        let part = PathBuf::from(format!("{}.part", folder.display()));
        fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
        let mut install = cargo::cargo();
        // Outside of the repository, whose configuration is not for it.
        install
            .current_dir(&part)
            .args([
                "install",
                "--quiet",
                "--locked",
                "--debug",
                "cargo-deny",
                "--version",
                VERSION,
                "--root",
            ])
            .arg(&part);
        cargo::run(install.arg("--target-dir").arg(part.join("target")))?;
        fs::remove_dir_all(part.join("target")).ok();
        fs::rename(&part, &folder)
            .with_context(|| format!("cannot move {} to its place", part.display()))?;
    }
    Ok(program)
}
