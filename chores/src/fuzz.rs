//! Runs the targets in fuzz/ under libFuzzer and AddressSanitizer. Stable Rust is enough: its
//! compiler supports everything needed, although two of the flags are unstable.

use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, cargo};
use crate::setup;

const PACKAGE: &str = "moxin-vlm-fuzz";

/// Coverage for libFuzzer, with cargo-fuzz's flags, and every check of a development build.
const FLAGS: [&str; 8] = [
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// No input may take more seconds, or the library more megabytes (of which AddressSanitizer uses a
/// quarter of a gigabyte).
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=1024"];

/// Longer inputs take time and reach no more code.
const MAX_LENGTH: &str = "-max_len=8192";

#[derive(clap::Args)]
pub struct Options {
    /// Only this target [default: all, one after the other]
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// How many seconds each target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Instead of running, add to fuzz/corpus the inputs found so far that reach new code
    #[arg(long)]
    keep: bool,
}

pub fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    let host = cargo::host();
    let folder = setup::repository().join("target/fuzz");
    let targets = targets(options.target.as_deref())?;
    println!(
        "Building {} (with all dependencies, the first time: some minutes)",
        targets.join(", ")
    );
    build(&host, &folder)?;
    let programs = folder.join(&host).join("release");
    for target in &targets {
        println!("\n=== {target}");
        run_target(target, &programs.join(target), &folder, &options)?;
    }
    println!("\nNothing was found in {}.", targets.join(", "));
    Ok(())
}

/// Returns the names of the targets: those of the corpora.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir(setup::repository().join("fuzz/corpus")).context("cannot read fuzz/corpus")?
    {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    match only {
        None => Ok(names),
        Some(only) if names.iter().any(|name| name == only) => Ok(vec![only.into()]),
        Some(only) => bail!("there is no target {only}; there are {}", names.join(", ")),
    }
}

fn build(host: &str, folder: &Path) -> Result<()> {
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--package",
        PACKAGE,
        "--features",
        "libfuzzer",
        "--bins",
        "--target",
        host,
        "--target-dir",
    ]);
    // In this form the flags are added to those in .cargo/mlx.toml; the variable RUSTFLAGS would
    // replace them.
    build
        .arg(folder)
        .arg("--config")
        .arg(format!("target.{host}.rustflags={FLAGS:?}"));
    // Makes the stable compiler accept flags that start with -Z.
    cargo::run(build.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS"))
}

/// Runs one target, from the corpus in the repository and earlier findings. Stops at the first
/// fault.
fn run_target(name: &str, program: &Path, folder: &Path, options: &Options) -> Result<()> {
    let kept = setup::repository().join("fuzz/corpus").join(name);
    let (found, faults) = (
        folder.join("corpus").join(name),
        folder.join("faults").join(name),
    );
    let scratch = scratch();
    for folder in [&found, &faults, &scratch] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut command = Command::new(program);
    command
        .args(LIMITS)
        .args([MAX_LENGTH, "-verbosity=0", "-print_final_stats=1"]);
    command.arg(format!("-artifact_prefix={}/", faults.display()));
    if options.keep {
        command
            .args(["-merge=1", "-use_counters=0"])
            .args([&kept, &found]);
    } else {
        command
            .arg(format!("-max_total_time={}", options.seconds))
            .args([&found, &kept]);
    }
    // Caught panics are reported too, without their stacks. A small model is faster on one thread.
    command
        .envs([("RUST_BACKTRACE", "0"), ("OPENBLAS_NUM_THREADS", "1")])
        .env("TMPDIR", &scratch);
    let outcome = cargo::run(&mut command);
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    outcome.with_context(|| {
        let (program, faults) = (program.display(), faults.display());
        format!(
            "{name} found a fault; the input is in {faults}. To repeat: {program} INPUT. To \
            minimize: {program} -minimize_crash=1 INPUT. After the fix, the input belongs in \
            fuzz/corpus/{name}"
        )
    })
}

/// Returns a folder for the files that targets write for each input: in memory, if possible.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        env::temp_dir()
    };
    parent.join(format!("moxin-vlm-fuzz-{}", process::id()))
}
