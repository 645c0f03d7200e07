//! The project's chores: `cargo xtask CHORE`, and `cargo xtask help` lists them.

mod setup;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The project's chores")]
enum Chore {
    /// Get MLX and tell cargo where it is; on Linux once, on macOS never needed
    Setup(setup::Options),
    /// Write the Rust bindings of mlx-c; a step of `setup`, in a process of its own
    #[command(hide = true)]
    Bindings(setup::bindings::Options),
}

fn main() -> ExitCode {
    let outcome = match Chore::parse() {
        Chore::Setup(options) => setup::run(options),
        Chore::Bindings(options) => setup::bindings::run(options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
