//! The project's chores: `cargo xtask CHORE`, and `cargo xtask help` lists them.

mod apple;
mod bench;
mod bindings;
mod cargo;
mod deny;
mod dist;
mod format;
mod full_size;
mod fuzz;
mod header;
mod kernels;
mod measure;
mod packaged;
mod processor;
mod python;
mod quality;
mod reference;
mod score;
mod server;
mod setup;
mod swift;
mod test;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The project's chores")]
enum Chore {
    /// Check everything: format, lints, documentation, all tests, licenses
    Test,
    /// Check licenses, origins and known vulnerabilities of all dependencies, with cargo-deny
    Deny,
    /// Ask the small model about 500 unseen pictures, and count the correct answers
    Score(score::Options),
    /// Format C, C++ and Swift
    Format(format::Options),
    /// Package the crates, unpack them elsewhere, and build the README's Rust program from them
    Packaged,
    /// Write the C header from src/ffi, and its reference
    Header,
    /// Write docs/c-api.md, the reference of the C API, from the header
    Reference,
    /// Package the library for C and C++ programs: a folder that can be moved anywhere, and an
    /// archive of it
    Dist(dist::Options),
    /// Test the CPU kernels under AddressSanitizer, and with NEON on an emulated Arm CPU
    KernelsTest,
    /// Build and test the Swift package, with this machine's Swift or, as root, with that of a
    /// Debian in the cache folder
    SwiftTest(swift::Options),
    /// Measure what quantization costs in quality, and write docs/quantization.md
    Quality(quality::Options),
    /// Run 10,000 conversations through the C ABI, and plot their memory
    Soak(measure::SoakOptions),
    /// Measure what a call of the C ABI costs relative to a step of the small model
    CallCost(measure::CallCostOptions),
    /// Measure the real size next to the machine's limits and other programs, and write
    /// docs/performance.md
    Bench(bench::Options),
    /// Run a random checkpoint of a real size: up to 17 GB on disk, and about as much memory
    FullSize(full_size::Options),
    /// Type-check the library for macOS and iOS, from Linux
    AppleCheck,
    /// Link the library for macOS from Linux, against MLX's own, and check the result
    AppleLink(apple::link::Options),
    /// Make the xcframework that Swift packages and apps embed: complete on a Mac, partial on Linux
    Xcframework(apple::xcframework::Options),
    /// Test the server with the clients that others wrote, and against its own description
    Clients(server::clients::Options),
    /// Lint or build the server's container, and rate its systemd unit
    Deploy,
    /// Load the server for ten minutes, compare it with llama.cpp's, and write docs/server-load.md
    Load(server::load::Options),
    /// Drive the server's page in Chromium
    Page(server::page::Options),
    /// Fuzz everything that reads untrusted bytes, under libFuzzer and AddressSanitizer
    Fuzz(fuzz::Options),
    /// Write the Rust bindings of mlx-c for the set-up
    Bindings(bindings::Options),
    /// Run bindgen, in a process of its own
    #[command(hide = true)]
    GenerateBindings(bindings::Generate),
    /// Print the path of a CMake, after getting one if the system has none; for the tests
    #[command(hide = true)]
    Cmake,
}

fn main() -> ExitCode {
    let outcome = match Chore::parse() {
        Chore::Test => test::run(),
        Chore::Deny => deny::run(),
        Chore::Score(options) => score::run(options),
        Chore::Format(options) => format::run(options),
        Chore::Packaged => packaged::run(),
        Chore::Header => header::run().and_then(|()| reference::run()),
        Chore::Reference => reference::run(),
        Chore::Dist(options) => dist::run(options),
        Chore::KernelsTest => kernels::run(),
        Chore::SwiftTest(options) => swift::run(options),
        Chore::Quality(options) => quality::run(options),
        Chore::Soak(options) => measure::soak(options),
        Chore::CallCost(options) => measure::call_cost(options),
        Chore::AppleCheck => apple::check::run(),
        Chore::AppleLink(options) => apple::link::run(options),
        Chore::Xcframework(options) => apple::xcframework::run(options),
        Chore::Bench(options) => bench::run(options),
        Chore::FullSize(options) => full_size::run(options),
        Chore::Clients(options) => server::clients::run(options),
        Chore::Deploy => server::deploy::run(),
        Chore::Load(options) => server::load::run(options),
        Chore::Page(options) => server::page::run(options),
        Chore::Fuzz(options) => fuzz::run(options),
        Chore::Bindings(options) => bindings::run(options),
        Chore::GenerateBindings(options) => bindings::run_bindgen(options),
        Chore::Cmake => setup::cmake::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
