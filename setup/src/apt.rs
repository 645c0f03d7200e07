//! Fetches packages of this machine's Debian or Ubuntu and unpacks them without installing them,
//! which does not need root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::Steps;

/// apt-get with lists of its own.
pub struct Apt<'a> {
    steps: &'a Steps,
    folder: PathBuf,
}

impl Apt<'_> {
    /// Fetches the lists into a folder below `part`.
    pub fn new<'a>(steps: &'a Steps, part: &Path) -> Result<Apt<'a>> {
        let apt = Apt {
            steps,
            folder: part.join("apt"),
        };
        fs::create_dir_all(apt.folder.join("lists/partial"))?;
        fs::create_dir_all(apt.folder.join("cache/archives/partial"))?;
        steps.expect(
            apt.command(&apt.folder).arg("update"),
            "apt-get cannot get its lists",
        )?;
        Ok(apt)
    }

    /// Fetches a package, and unpacks it below `to`.
    pub fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let folder = self.folder.join(package);
        fs::create_dir(&folder)?;
        self.steps.expect(
            self.command(&folder).args(["download", package]),
            &format!("apt-get cannot get {package}"),
        )?;
        let file = fs::read_dir(&folder)?
            .next()
            .with_context(|| format!("no {package} came"))??;
        self.steps.expect(
            Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(to),
            &format!("cannot unpack {package}"),
        )?;
        Ok(())
    }

    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).arg("-q");
        for (name, folder) in [("State::Lists", "lists"), ("Cache", "cache")] {
            command.arg("-o").arg(format!(
                "Dir::{name}={}",
                self.folder.join(folder).display()
            ));
        }
        command
    }
}
