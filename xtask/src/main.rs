//! `cargo xtask CHORE`. The demo and the set-up are here, so that they compile little; every other
//! chore is in the package `chores`, which is compiled when it is first needed.

mod demo;
mod serve_demo;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use moxin_vlm_setup::Backend;

/// The project's chores
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    allow_external_subcommands = true,
    after_help = "`cargo xtask chores` lists all other chores."
)]
enum Chore {
    /// Show the small model describing a picture
    Demo {
        /// Ask the small video model about a clip instead
        #[arg(long)]
        video: bool,
    },
    /// Serve the small model, and open a page to ask it about a picture
    ServeDemo {
        /// The port to listen on; 0 for any free one
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Get MLX and tell cargo where it is; needed once on Linux, never on macOS
    Setup {
        /// The device that MLX computes on [default: the previous choice, otherwise cpu]
        #[arg(long)]
        backend: Option<Backend>,
        /// Also write the cargo configuration for another project that depends on this crate
        #[arg(long, value_name = "DIR")]
        project: Option<PathBuf>,
    },
    /// Check everything: format, lints, documentation, all tests, licenses
    Test,
    /// List all other chores
    Chores,
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

fn main() -> ExitCode {
    let outcome = match Chore::parse() {
        Chore::Demo { video } => demo::run(video),
        Chore::ServeDemo { port } => serve_demo::run(port),
        Chore::Setup { backend, project } => setup(backend, project.as_deref()),
        Chore::Test => chore(&["test".into()]),
        Chore::Chores => chore(&["--help".into()]),
        Chore::Other(arguments) => chore(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn setup(backend: Option<Backend>, project: Option<&Path>) -> Result<()> {
    moxin_vlm_setup::for_project(repository(), backend)?;
    match project {
        Some(project) => moxin_vlm_setup::for_project(project, backend),
        None => Ok(()),
    }
}

/// Runs a chore of the package `chores`.
fn chore(arguments: &[OsString]) -> Result<()> {
    let mut command = cargo();
    command
        .args(["run", "--profile", "chores", "--package", "chores"])
        .arg("--manifest-path")
        .arg(repository().join("Cargo.toml"))
        .arg("--")
        .args(arguments)
        // The arguments may name files relative to the user's folder.
        .current_dir(env::current_dir()?);
    let status = command.status().context("cannot run cargo")?;
    // The chore has said what failed.
    if !status.success() {
        process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

/// Returns the root of the repository.
fn repository() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Returns cargo in the root of the repository.
fn cargo() -> Command {
    moxin_vlm_setup::cargo(repository())
}
