//! Loads the server on loopback: many connections, some of them broken off, while its memory is
//! watched; then, for comparison, the same work for llama.cpp's server with a decoder of the same
//! size.

mod client;
mod page;
mod peer;

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use self::client::{Body, Load, Outcome};
use super::{MODEL, PICTURE, Running, steps};
use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Options {
    /// The length of the test of the server alone, in minutes
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    minutes: f64,
    /// The number of connections
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Leave llama.cpp's server out
    #[arg(long)]
    alone: bool,
}

/// The resident memory of the server after some time, in seconds and bytes.
type Memory = Vec<(f64, f64)>;

pub fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    let (steps, cache) = steps("load")?;
    steps.say("building");
    cargo::run(cargo::cargo().args([
        "build",
        "--release",
        "--package",
        "moxin-vlm-server",
        "--bin",
        "moxin-server",
    ]))?;
    let metadata = cargo::metadata(&["--no-deps"])?;
    let program = cargo::target_folder(&metadata)?.join("release/moxin-server");
    let connections = options.connections.to_string();
    let arguments = ["--model", MODEL, "--max-waiting", &connections];
    let server = Running::start(&program, &arguments)?;
    wait_until_ready(&server.url)?;

    let picture = fs::read(setup::repository().join(PICTURE))?;
    let mut load = Load {
        url: server.url.clone(),
        connections: options.connections,
        time: Duration::from_secs_f64(60.0 * options.minutes),
        bodies: client::bodies(&picture),
        broken: 3,
    };
    steps.say(&format!(
        "{connections} connections for {} minutes, a third of the answers broken off",
        options.minutes
    ));
    let (outcomes, memory) = watched(&load, server.process.id())?;
    let alone = Outcome::merge(outcomes);
    println!("{alone}");
    let failure = alone.failures.first().map_or("", |text| text);
    ensure!(alone.failures.is_empty(), "answers failed: {failure}");
    ensure!(alone.whole > 0 && alone.broken > 0, "nothing was measured");
    let growth = page::growth(&memory);
    println!("memory after warm-up: {:+.2} %", 100.0 * growth);
    ensure!(growth < 0.05, "resident memory grows");

    let mut turns = Vec::new();
    if !options.alone {
        let peer = peer::Peer::start(&steps, &cache)?;
        load.bodies = vec![Body::text()];
        load.broken = 0;
        load.time = Duration::from_secs(60);
        for round in 1..=3 {
            for (name, url) in [
                ("moxin-server", &server.url),
                (peer.name, &peer.running.url),
            ] {
                steps.say(&format!("{name}, round {round}"));
                load.url = url.clone();
                let outcome = Outcome::merge(load.run());
                println!("{outcome}");
                let failure = outcome.failures.first().map_or("", |text| text);
                ensure!(outcome.failures.is_empty(), "{name} failed: {failure}");
                turns.push((name, outcome));
            }
        }
    }
    page::write(&options, &alone, &memory, &turns)?;
    steps.say("wrote docs/server-load.md and docs/server-load.svg");
    Ok(())
}

/// Runs a load while the memory of a process is watched.
fn watched(load: &Load, pid: u32) -> Result<(Vec<Outcome>, Memory)> {
    let status = PathBuf::from(format!("/proc/{pid}/status"));
    thread::scope(|scope| {
        let running = scope.spawn(|| load.run());
        let (clock, mut memory) = (Instant::now(), Memory::new());
        while !running.is_finished() {
            memory.push((clock.elapsed().as_secs_f64(), resident(&status)?));
            thread::sleep(Duration::from_secs(1));
        }
        let outcomes = running.join().ok().context("the load failed")?;
        Ok((outcomes, memory))
    })
}

fn resident(status: &PathBuf) -> Result<f64> {
    let text = fs::read_to_string(status).context("the server has ended")?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(1024.0 * kib.context("VmRSS")?.parse::<f64>()?)
}

fn wait_until_ready(url: &str) -> Result<()> {
    let clock = Instant::now();
    while !client::is_ready(url) {
        ensure!(
            clock.elapsed() < Duration::from_secs(120),
            "{url} does not become ready"
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
