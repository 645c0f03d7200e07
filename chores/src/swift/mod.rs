//! Checks everything about the Swift package that needs no Mac: it builds without a warning, its
//! tests pass, its examples run, another package can depend on it by a tag, and its documentation
//! converts. Sources that only Apple systems can compile are parsed.

mod debian;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::dist;
use crate::setup;
use crate::test;
use debian::Debian;

#[derive(clap::Args)]
pub struct Options {
    /// The cargo profile that the library is built with
    #[arg(long, default_value = "dev")]
    profile: String,
}

/// Returns what this chore lacks for `cargo xtask test`. Large downloads happen only on request.
pub fn lacks() -> Option<String> {
    if system_version().is_some() {
        return None;
    }
    match Debian::obstacle() {
        Some(obstacle) => Some(obstacle.to_owned()),
        None if Debian::is_there() => None,
        // An unreachable mirror is not a fault of the package.
        None if test::may_download() => Debian::open()
            .err()
            .map(|error| format!("a Debian with Swift, and none could be made: {error:#}")),
        None => {
            Some("`cargo xtask swift-test` once, which gets 3 GB, or MOXIN_DOWNLOAD=1".to_owned())
        }
    }
}

/// Formats the Swift sources, or checks them. Returns what it lacks.
pub fn format(check: bool) -> Result<Option<String>> {
    let repository = setup::repository().canonicalize()?;
    let mut command = match (system_version(), Debian::is_there()) {
        (Some(_), _) => Command::new("swift"),
        (None, true) => Debian::open()?.command("swift", &repository, &[&repository]),
        (None, false) => return Ok(Some("Swift 6; `cargo xtask swift-test` gets it".to_owned())),
    };
    command.current_dir(&repository).arg("format");
    match check {
        true => command.args(["lint", "--strict"]),
        false => command.args(["format", "--in-place"]),
    };
    visible(command.args(["--recursive", "swift", "Package.swift"]))?;
    Ok(None)
}

pub fn run(options: Options) -> Result<()> {
    let workshop = Workshop::open(&options.profile)?;
    format(true)?;
    workshop.package()?;
    workshop.example()?;
    workshop.app()?;
    workshop.apple_sources()?;
    workshop.dependent()?;
    workshop.documentation()
}

/// Swift, and the folders that it uses.
struct Workshop {
    debian: Option<Debian>,
    repository: PathBuf,
    /// Cargo's target folder.
    target: PathBuf,
    /// The folder for everything that this chore makes.
    folder: PathBuf,
    prefix: PathBuf,
}

impl Workshop {
    fn open(profile: &str) -> Result<Workshop> {
        let debian = match system_version() {
            Some(version) => {
                println!("Swift {}.{} of this machine", version.0, version.1);
                None
            }
            None => Some(Debian::open()?),
        };
        let target = cargo::target_folder(&cargo::metadata(&["--no-deps"])?)?;
        fs::create_dir_all(&target)?;
        let target = target.canonicalize()?;
        let folder = target.join("swift");
        fs::create_dir_all(folder.join("home"))?;
        let prefix = dist::prefix(&folder.join("dist"), profile)?;
        Ok(Workshop {
            debian,
            repository: setup::repository().canonicalize()?,
            target,
            folder,
            prefix,
        })
    }

    /// Returns a program of the toolchain, in a folder below the repository or the target folder.
    fn command(&self, program: &str, folder: &Path) -> Command {
        let mut command = match &self.debian {
            Some(debian) => debian.command(program, folder, &[&self.repository, &self.target]),
            None => {
                let mut command = Command::new(program);
                command.current_dir(folder);
                command
            }
        };
        command
            .env("PKG_CONFIG_PATH", self.prefix.join("lib/pkgconfig"))
            .env("LD_LIBRARY_PATH", self.prefix.join("lib"));
        command
            .env("HOME", self.folder.join("home"))
            .env("TMPDIR", &self.folder)
            .env("LC_ALL", "C.UTF-8");
        // The models of the tests are small: two threads of OpenBLAS cost more by waiting for each
        // other than they save.
        command.env("OPENBLAS_NUM_THREADS", "1");
        command
    }

    /// Returns `swift build`, `swift test` or the like for a package.
    fn swift(&self, verb: &str, package: &Path) -> Command {
        let mut command = self.command("swift", package);
        command
            .arg(verb)
            .arg("--scratch-path")
            .arg(self.products(package));
        command
    }

    /// Returns the folder for a package's build products.
    fn products(&self, package: &Path) -> PathBuf {
        let name = if package == self.repository {
            "package".as_ref()
        } else {
            package.file_name().unwrap_or_default()
        };
        self.folder.join("build").join(name)
    }
}

/// Runs a program whose output goes to the user.
fn visible(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("$ {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot run {line}"))?;
    if !status.success() {
        bail!("{line} failed ({status})");
    }
    Ok(())
}

/// Runs a program, and also fails if it warns: SwiftPM's own warnings are not the compiler's, which
/// could be made errors.
fn without_warnings(command: &mut Command) -> Result<String> {
    let line = line(command);
    println!("$ {line}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {line}"))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || text.contains("warning:") {
        bail!("{line} failed or warned ({}):\n{text}", output.status);
    }
    Ok(text.into_owned())
}

/// Returns the command line inside its wrappers.
fn line(command: &Command) -> String {
    let words: Vec<_> = command
        .get_args()
        .map(|word| word.to_string_lossy())
        .collect();
    let inner = words
        .iter()
        .position(|word| word == "-C")
        .map_or(0, |place| place + 2);
    let program = if inner == 0 {
        command.get_program().to_string_lossy().into_owned() + " "
    } else {
        String::new()
    };
    program + &words[inner..].join(" ")
}

/// Returns the version of the machine's own Swift, if it is new enough.
fn system_version() -> Option<(u32, u32)> {
    let output = Command::new("swift").arg("--version").output().ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout)).filter(|version| *version >= (6, 0))
}

fn version_in(text: &str) -> Option<(u32, u32)> {
    let number = text
        .split("Swift version ")
        .nth(1)?
        .split_whitespace()
        .next()?;
    let mut parts = number.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        let linux = "Swift version 6.0.3 (swift-6.0.3-RELEASE)\nTarget: x86_64-pc-linux-gnu\n";
        let apple = "swift-driver version: 1.127.14 Apple Swift version 6.2 (swiftlang-6.2.0.1 \
            clang-1700.0)\nTarget: arm64-apple-macosx\n";
        assert_eq!(version_in(linux), Some((6, 0)));
        assert_eq!(version_in(apple), Some((6, 2)));
        assert_eq!(version_in("command not found"), None);
    }
}
