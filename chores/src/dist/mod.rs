//! Packages the library for C and C++ programs: a folder that can be moved anywhere, and an archive
//! of it.
//!
//! ```text
//! moxin-vlm-<version>-<target>/
//!   include/                    moxin_vlm.h, moxin_vlm.hpp, module.modulemap
//!   lib/                        libmoxin_vlm, shared and static
//!   lib/moxin_vlm/              MLX and OpenBLAS, in the folders of their wheels, by which they find each other
//!   lib/pkgconfig/              moxin_vlm.pc, moxin_vlm-static.pc, moxin_vlm-swift.pc
//!   lib/cmake/moxin_vlm/        for find_package
//!   licenses/
//! ```
//!
//! Everything is written in a folder next to the final one and renamed when complete.

mod archive;
mod libraries;
mod licenses;
mod package;

pub use archive::write_checksum;
pub use libraries::metallib;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::{self, cargo};
use crate::setup::{self, step::Steps};

/// The prefix of the folders in which a package is written.
const PART: &str = ".moxin-vlm-part-";

#[derive(clap::Args)]
pub struct Options {
    /// Output folder for the package and its archive [default: dist in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The cargo profile to build with
    #[arg(long, default_value = "release")]
    profile: String,
    /// Use this static library, which cargo has built, instead of building one; for the tests
    #[arg(long, value_name = "FILE", hide = true)]
    library: Option<PathBuf>,
}

/// The name and contents of a package.
pub struct Release {
    pub version: String,
    pub abi: u32,
    pub target: String,
    /// The names of all functions in the header.
    pub functions: Vec<String>,
}

impl Release {
    fn name(&self) -> String {
        format!("moxin-vlm-{}-{}", self.version, self.target)
    }
}

pub fn run(options: Options) -> Result<()> {
    package(options).map(|_| ())
}

/// Makes a package in a folder and returns its path; also used by other chores.
pub fn prefix(output: &Path, profile: &str) -> Result<PathBuf> {
    package(Options {
        output: Some(output.to_owned()),
        profile: profile.to_owned(),
        library: None,
    })
}

fn package(options: Options) -> Result<PathBuf> {
    let mlx = setup::ensure()?;
    let metadata = cargo::metadata(&["--filter-platform", &target()?])?;
    let output = match options.output {
        Some(output) => output,
        None => cargo::target_folder(&metadata)?.join("dist"),
    };
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let output = output.canonicalize()?;

    let lock = File::create(output.join(".moxin-vlm-lock"))
        .with_context(|| format!("cannot write to {}", output.display()))?;
    lock.lock()?;
    remove_parts(&output)?;
    let part = output.join(format!("{PART}{}", std::process::id()));
    fs::create_dir(&part)?;
    let steps = Steps::new(output.join("dist.log"), part.clone());
    let outcome = make(
        &steps,
        &metadata,
        &part,
        mlx.as_deref(),
        options.library,
        &options.profile,
    )
    .and_then(|release| publish(&release, &part, &output));
    fs::remove_dir_all(&part).ok(); // otherwise the next run removes it
    outcome
}

/// Writes everything into `part`.
fn make(
    steps: &Steps,
    metadata: &Value,
    part: &Path,
    mlx: Option<&Path>,
    library: Option<PathBuf>,
    profile: &str,
) -> Result<Release> {
    let header = header()?;
    let release = Release {
        version: cargo::version(metadata)?,
        abi: abi(&header)?,
        target: target()?,
        functions: functions(&header),
    };
    let prefix = part.join(release.name());

    let library = match library {
        Some(library) => library,
        None => {
            steps.say(&format!(
                "building the library ({profile}; the first time takes minutes)"
            ));
            static_library(&["--profile", profile])?
        }
    };
    steps.say("linking");
    libraries::write(steps, &library, &release, mlx, part, &prefix.join("lib"))?;
    package::write(&release, &prefix)?;
    licenses::write(metadata, mlx, &prefix.join("licenses"))?;
    steps.say("compressing");
    archive::write(part, &release.name())?;
    Ok(release)
}

/// Replaces the results of an earlier run with the complete new ones.
fn publish(release: &Release, part: &Path, output: &Path) -> Result<PathBuf> {
    let name = release.name();
    let prefix = output.join(&name);
    if prefix.exists() {
        fs::rename(&prefix, part.join("old"))?;
    }
    for name in [
        name.clone(),
        format!("{name}.tar.gz"),
        format!("{name}.tar.gz.sha256"),
    ] {
        fs::rename(part.join(&name), output.join(&name))?;
    }
    println!("{} ({})", prefix.display(), megabytes(size(&prefix)?));
    let archive = output.join(format!("{name}.tar.gz"));
    println!(
        "{} ({})",
        archive.display(),
        megabytes(archive.metadata()?.len())
    );
    Ok(prefix)
}

/// Removes what interrupted runs have left.
fn remove_parts(output: &Path) -> Result<()> {
    for entry in fs::read_dir(output)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PART) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Returns the target that cargo builds for, such as `x86_64-unknown-linux-gnu`.
fn target() -> Result<String> {
    let output = cargo().arg("-vV").output().context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`cargo -vV` names no host")?.to_owned())
}

/// Builds the static library, with cargo's progress on the terminal.
pub fn static_library(arguments: &[&str]) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args([
            "rustc",
            "--package",
            "moxin-vlm",
            "--lib",
            "--crate-type",
            "staticlib",
        ])
        .args(arguments);
    command.arg("--message-format=json-render-diagnostics");
    let output = cargo::output(&mut command, "the library does not build")?;
    let messages = String::from_utf8_lossy(&output);
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let files =
        messages.flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default());
    let mut files = files.filter_map(|file| file.as_str().map(PathBuf::from));
    files
        .find(|file| {
            file.file_name()
                .is_some_and(|name| name == "libmoxin_vlm.a")
        })
        .context("cargo built no libmoxin_vlm.a")
}

/// Reads the C header.
pub fn header() -> Result<String> {
    fs::read_to_string(setup::repository().join("include/moxin_vlm.h"))
        .context("cannot read include/moxin_vlm.h")
}

/// Returns the names of all functions in the header.
pub fn header_functions() -> Result<Vec<String>> {
    Ok(functions(&header()?))
}

fn abi(header: &str) -> Result<u32> {
    let number = header
        .lines()
        .find_map(|line| line.strip_prefix("#define MOXIN_ABI_VERSION "));
    number
        .context("include/moxin_vlm.h has no MOXIN_ABI_VERSION")?
        .trim()
        .parse()
        .context("MOXIN_ABI_VERSION")
}

/// Returns the functions that a header declares: names before a parenthesis, outside of comments.
fn functions(header: &str) -> Vec<String> {
    let code: String = header
        .split("/*")
        .map(|part| part.split_once("*/").map_or(part, |(_, code)| code))
        .collect();
    let names = code.split('(').map(|part| {
        part.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()
            .unwrap_or("")
    });
    names
        .filter(|name| name.starts_with("moxin_"))
        .map(str::to_owned)
        .collect()
}

fn size(path: &Path) -> Result<u64> {
    let metadata = path.symlink_metadata()?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Runs a program whose output goes to the log.
fn tool(steps: &Steps, command: &mut Command, what: &str) -> Result<()> {
    steps.expect(command, what).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_what_is_exported() {
        let header = "/* moxin_no(x) */\n#define MOXIN_ABI_VERSION 3\ntypedef bool (*moxin_fn)(void);\n/** Calls moxin_b(). */\n\
                      enum moxin_status moxin_a(const struct moxin_model *model);\nvoid moxin_b(void);\n";
        assert_eq!(functions(header), ["moxin_a", "moxin_b"]);
        assert_eq!(abi(header).unwrap(), 3);
    }

    #[test]
    fn only_what_killed_runs_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".moxin-vlm-part-7", "moxin-vlm-0.1.0-x", "part-7"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        remove_parts(folder.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["moxin-vlm-0.1.0-x", "part-7"]);
    }
}
