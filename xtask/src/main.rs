//! The project's chores: `cargo xtask CHORE`, and `cargo xtask help` lists them.

mod cargo;
mod demo;
mod full_size;
mod header;
mod reference;
mod score;
mod setup;
mod test;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The project's chores")]
enum Chore {
    /// Show the small model describing a picture
    Demo,
    /// Check everything: format, lints, documentation, all tests, licences
    Test,
    /// Get MLX and tell cargo where it is; on Linux once, on macOS never needed
    Setup(setup::Options),
    /// Ask the small model about 500 pictures that it has never seen, and count the right answers
    Score(score::Options),
    /// Copy the C header that the build writes to include/, and write its reference
    Header,
    /// Write docs/c-api.md, the reference of the C API, from the header
    Reference,
    /// Run a random checkpoint of the real size: 17 GB on disk, about as much memory
    FullSize(full_size::Options),
    /// Write the Rust bindings of mlx-c; a step of `setup`, in a process of its own
    #[command(hide = true)]
    Bindings(setup::bindings::Options),
}

fn main() -> ExitCode {
    let outcome = match Chore::parse() {
        Chore::Demo => demo::run(),
        Chore::Test => test::run(),
        Chore::Setup(options) => setup::run(options),
        Chore::Score(options) => score::run(options),
        Chore::Header => header::run().and_then(|()| reference::run()),
        Chore::Reference => reference::run(),
        Chore::FullSize(options) => full_size::run(options),
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
