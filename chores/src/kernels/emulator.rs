//! QEMU, which runs programs for another CPU: the system's, or that of its Debian package, in the
//! cache folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::setup::apt::Apt;
use crate::setup::step::{Steps, runs};
use crate::setup::{cache_folder, make};

/// The names of the program. The first needs no libraries.
const PROGRAMS: [&str; 2] = ["qemu-aarch64-static", "qemu-aarch64"];

/// The Debian packages with the first program: up to Debian 12 in the first, since then in both.
const PACKAGES: [&str; 2] = ["qemu-user-static", "qemu-user"];

/// Returns the program's path, after getting it if it is missing.
pub fn find() -> Result<PathBuf> {
    if !cfg!(target_os = "linux") {
        bail!("only Linux can run programs for other CPUs");
    }
    if let Some(system) = PROGRAMS.into_iter().find(|program| runs(program)) {
        return Ok(system.into());
    }
    let home = cache_folder()?.join("qemu");
    let program = home.join(PROGRAMS[0]);
    if !runs(&program) {
        make(&home, || runs(&program), build)?;
    }
    Ok(program)
}

/// Unpacks the packages, and keeps only the program, because they are large.
fn build(part: &Path) -> Result<PathBuf> {
    let steps = Steps::new(part.with_file_name("qemu.log"), part.to_owned());
    let (unpacked, made) = (part.join("unpacked"), part.join("made"));
    fs::create_dir(&made)?;
    steps.say(
        "no qemu-aarch64 here: getting Debian's (60 MB, in the cache folder; or install \
        qemu-user-static)",
    );
    let apt = Apt::new(&steps, part)?;
    for package in PACKAGES {
        apt.unpack(package, &unpacked)?;
        let program = unpacked.join("usr/bin").join(PROGRAMS[0]);
        if runs(&program) {
            fs::copy(program, made.join(PROGRAMS[0]))?;
            return Ok(made);
        }
    }
    bail!("Debian's packages have no {} that runs here", PROGRAMS[0]);
}
