//! Chores about the server: its API with the clients that others wrote, its page in a browser, and
//! its load.

pub mod clients;
pub mod deploy;
pub mod load;

pub mod page;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cargo, python,
    setup::{self, step::Steps},
};

const MODEL: &str = "models/tiny";
const PICTURE: &str = "models/demo.png";

/// Builds the server as the tests do, so that nothing is compiled twice.
fn build() -> Result<PathBuf> {
    cargo::run(cargo::cargo().args([
        "build",
        "--package",
        "moxin-vlm",
        "--package",
        "moxin-vlm-fuzz",
        "--package",
        "moxin-vlm-server",
        "--package",
        "moxin-vlm-threads",
        "--lib",
        "--bin",
        "moxin-server",
        "--example",
        "server",
    ]))?;
    let metadata = cargo::metadata(&["--no-deps"])?;
    Ok(cargo::target_folder(&metadata)?.join("debug/moxin-server"))
}

/// A running server, which is killed when it is dropped.
struct Running {
    process: Child,
    url: String,
}

impl Running {
    /// Starts a server on a free port.
    fn start(program: &Path, arguments: &[&str]) -> Result<Running> {
        let mut process = Command::new(program)
            .args(["--port", "0"])
            .args(arguments)
            .current_dir(setup::repository())
            .env("RUST_LOG", "warn")
            .env_remove("MOXIN_API_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut url = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut url)?;
        let running = Running {
            process,
            url: url.trim().to_owned(),
        };
        if running.url.is_empty() {
            bail!("the server did not start, see above");
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the steps of a chore, with their log in the cache folder.
fn steps(name: &str) -> Result<(Steps, PathBuf)> {
    let cache = setup::cache_folder()?;
    fs::create_dir_all(&cache)?;
    let log = cache.join(format!("{name}.log"));
    Ok((Steps::new(log, cache.clone()), cache))
}

/// Returns a folder of the cache with the npm packages that `source` names in its package.json, and
/// with copies of the programs in `source`, which find their packages there.
fn node_folder(steps: &Steps, cache: &Path, name: &str, source: &Path) -> Result<PathBuf> {
    let list = fs::read_to_string(source.join("package.json"))?;
    let home = cache.join(format!("{name}-{}", python::hash(&list)));
    fs::create_dir_all(&home)?;
    let complete = home.join("complete");
    if !complete.is_file() {
        steps.say(&format!("installing {name}"));
        fs::write(home.join("package.json"), &list)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-fund", "--no-audit", "--ignore-scripts"])
            .current_dir(&home);
        steps.expect(&mut npm, "npm could not install it")?;
        fs::write(complete, "")?;
    }
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "mjs") {
            fs::copy(&path, home.join(path.file_name().context("a name")?))?;
        }
    }
    Ok(home)
}

/// Runs a program that prints its checks, a line each; returns what it printed, and how many passed.
fn checks(steps: &Steps, command: &mut Command, name: &str) -> Result<(String, usize)> {
    command.current_dir(setup::repository());
    let text = steps.expect(command, &format!("{name} found a fault"))?;
    let passed = text.lines().filter(|line| line.starts_with("ok: ")).count();
    ensure!(passed > 0, "{name} checked nothing");
    Ok((text, passed))
}

/// Reports checks that passed, in the form in which the tests of cargo are counted.
fn report(passed: usize) {
    println!("test result: ok. {passed} passed; 0 failed; 0 ignored");
}

/// Returns what is missing, of these programs, for `cargo xtask test`. The packages are large, so
/// they are only got on request.
fn lacks(cached: &[&str], programs: &[(&str, &str)]) -> Option<String> {
    for (program, get) in programs {
        if !cargo::runs(&[program, "--version"]) {
            return Some((*get).to_owned());
        }
    }
    let is_cached = |name: &&str| {
        let entries = setup::cache_folder().and_then(|cache| Ok(fs::read_dir(cache)?));
        entries.is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with(*name))
        })
    };
    if crate::test::may_download() || cached.iter().all(is_cached) {
        return None;
    }
    Some("`cargo xtask clients` or `page` once, or MOXIN_DOWNLOAD=1".to_owned())
}
