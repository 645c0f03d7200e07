//! Formats C and C++ with clang-format, and Swift with swift-format. rustfmt formats Rust.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{self, cache_folder, executable};
use crate::{cargo, swift};

/// Other versions format differently.
const VERSION: &str = "21.1.8";
const WHEEL: &str = include_str!("clang_format.txt");

#[derive(clap::Args)]
pub struct Options {
    /// Only check
    #[arg(long)]
    check: bool,
}

/// Returns what this chore lacks for `cargo xtask test`.
pub fn lacks() -> Option<String> {
    clang_format().err().map(|error| format!("{error:#}"))
}

pub fn run(options: Options) -> Result<()> {
    let mut command = Command::new(clang_format()?);
    command.current_dir(setup::repository());
    match options.check {
        true => command.args(["--dry-run", "-Werror"]),
        false => command.arg("-i"),
    };
    cargo::run(command.args(c_sources()?))?;
    if let Some(lacking) = swift::format(options.check)? {
        println!("Swift is not formatted here; it needs: {lacking}");
    }
    Ok(())
}

/// Returns the C and C++ files in git, except those in `.clang-format-ignore`.
fn c_sources() -> Result<Vec<String>> {
    let output = Command::new("git")
        .current_dir(setup::repository())
        .args(["ls-files", "*.c", "*.cpp", "*.h", "*.hpp"])
        .output()
        .context("cannot run git")?;
    let files: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    if files.is_empty() {
        bail!("git lists no C sources");
    }
    Ok(files)
}

/// Returns clang-format: its wheel in the cache folder on Linux, the system's elsewhere.
fn clang_format() -> Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        let output = Command::new("clang-format").arg("--version").output();
        return match output {
            Ok(output) if String::from_utf8_lossy(&output.stdout).contains(VERSION) => {
                Ok("clang-format".into())
            }
            _ => bail!("clang-format {VERSION}: python3 -m pip install clang-format=={VERSION}"),
        };
    }
    let home = cache_folder()?.join(format!("clang-format-{VERSION}"));
    let program = home.join("clang_format/data/bin/clang-format");
    if !program.is_file() {
        setup::wheel(&home, WHEEL)?;
        executable(program.clone())?;
    }
    Ok(program)
}
