//! `moxin-server`: vision-language models over HTTP, with the APIs of OpenAI and Anthropic.
//!
//! A request passes the checks of `router` and is read by its module in `api`, which turns it into
//! a `question`. `answer` waits for a place in the `queue`, starts a session of the library, and
//! passes its events on; the module writes them in its API's form.
#![forbid(unsafe_code)]

mod access;
mod answer;
mod api;
mod app;
mod args;
mod error;
mod healthcheck;
mod json;
mod metrics;
mod models;
mod options;
mod page;
mod question;
mod queue;
mod remote;
mod router;
mod serve;
mod sse;

use std::{
    io::IsTerminal,
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use clap::Parser;
use moxin_vlm::device::set_memory_limits;
use tracing_subscriber::EnvFilter;

use self::args::{Args, Command};

/// Reads the command line and serves until a signal ends the process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moxin-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    if let Some(Command::Healthcheck { port }) = args.command {
        return healthcheck::check(port);
    }
    let level = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    if let Some(mib) = args.limits.max_memory {
        set_memory_limits(mib << 20, u64::MAX)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve::serve(args, |address| {
        // Programs that start the server read this line.
        println!("http://{address}");
    }));
    // Work on other threads ends with the process.
    runtime.shutdown_background();
    served
}

/// Locks a value that is only read or replaced as a whole, so that it is valid even after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
