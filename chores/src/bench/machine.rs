//! The limits of the CPU, its memory and the disk.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};

use super::report::Ceilings;
use crate::setup::step::Steps;
use crate::{cargo, setup};

/// The program that measures CPU and memory.
pub struct Program {
    path: PathBuf,
    openblas: PathBuf,
}

impl Program {
    /// Compiles it for this machine. `home` is the set-up of MLX, which contains OpenBLAS.
    pub fn build(folder: &Path, home: Option<&Path>) -> Result<Program> {
        let (source, path) = (folder.join("machine.c"), folder.join("machine"));
        fs::write(&source, include_str!("machine.c"))?;
        let mut compile = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
        compile
            .args(["-std=gnu11", "-O3", "-march=native", "-o"])
            .arg(&path)
            .arg(&source)
            .args(["-pthread", "-ldl"]);
        cargo::run(&mut compile)?;
        let openblas = home.map(setup::openblas).unwrap_or_default();
        Ok(Program { path, openblas })
    }

    /// Returns the bytes per second at which all threads read memory now.
    pub fn read(&self, steps: &Steps) -> Result<f64> {
        let text = steps.expect(
            &mut Command::new(&self.path),
            "the machine could not be measured",
        )?;
        text.trim()
            .parse()
            .context("what the machine's program printed")
    }

    pub fn measure(&self, steps: &Steps) -> Result<Ceilings> {
        let text = steps.expect(
            Command::new(&self.path).arg(&self.openblas),
            "the machine could not be measured",
        )?;
        serde_json::from_str(&text).context("what the machine's program printed")
    }
}

/// Returns the bytes per second at which a folder's weights are read from the disk, from start to
/// end. Afterwards they are not cached.
pub fn read_from_disk(folder: &Path) -> Result<f64> {
    let files = weights(folder)?;
    forget(&files)?;
    let mut buffer = vec![0; 8 << 20];
    let (start, mut bytes) = (Instant::now(), 0);
    for path in &files {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => bytes += read,
            }
        }
    }
    let rate = bytes as f64 / start.elapsed().as_secs_f64();
    forget(&files)?;
    Ok(rate)
}

fn weights(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Makes the system drop its cache of these files.
fn forget(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let file = File::open(path)?;
        file.sync_all().ok(); // pages that are not yet on the disk stay; a read-only file may refuse
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}
