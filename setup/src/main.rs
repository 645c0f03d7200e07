//! Gets MLX for the program in a folder: `moxin-vlm-setup [--backend cpu|cuda] [FOLDER]`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use moxin_vlm_setup::Backend;

/// Gets MLX for a program that uses moxin-vlm, and tells cargo where it is
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The folder of the program, with its Cargo.toml
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// The device that MLX computes on [default: the previous choice, otherwise cpu]
    #[arg(long)]
    backend: Option<Backend>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match moxin_vlm_setup::for_project(&options.folder, options.backend) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
