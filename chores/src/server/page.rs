//! Drives the server's page in Chromium, with the program in server/tests/page.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use super::{MODEL, PICTURE, Running, build, checks, lacks, node_folder, report, steps};
use crate::{
    cargo,
    setup::{self, step::Steps},
};

const FOLDER: &str = "server/tests/page";

/// Where the README finds the picture of the page.
const SCREENSHOT: &str = "docs/page.png";

#[derive(clap::Args)]
pub struct Options {
    /// Also write docs/page.png, the picture in the README
    #[arg(long)]
    screenshot: bool,
    /// Only install Chromium and the packages
    #[arg(long)]
    install: bool,
}

/// Returns what this chore lacks for `cargo xtask test`.
pub fn missing() -> Option<String> {
    if browser().is_none() && !can_install() {
        return Some("Chromium: apt-get install chromium".to_owned());
    }
    lacks(&["page-node"], &[("npm", "Node.js with npm")])
}

pub fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    let (steps, cache) = steps("page")?;
    let chromium = match browser() {
        Some(browser) => browser,
        None => install(&steps)?,
    };
    let source = setup::repository().join(FOLDER);
    let node = node_folder(&steps, &cache, "page-node", &source)?;
    if options.install {
        return Ok(());
    }
    steps.say("building");
    let program = build()?;
    let server = Running::start(&program, &["--model", MODEL])?;
    let mut command = Command::new("node");
    command
        .arg(node.join("page.mjs"))
        .args([&server.url, PICTURE])
        .env("CHROMIUM", chromium);
    if options.screenshot {
        command.arg(SCREENSHOT);
    }
    steps.say("the page in Chromium");
    let (text, passed) = checks(&steps, &mut command, "page.mjs")?;
    print!("{text}");
    report(passed);
    Ok(())
}

/// Returns the browser of this machine.
fn browser() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let known = ["chromium", "chromium-browser", "google-chrome"];
    named.or_else(|| {
        let found = known
            .iter()
            .find(|name| cargo::runs(&[name, "--version"]))?;
        let output = Command::new("which").arg(found).output().ok()?;
        Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
    })
}

/// Returns whether the chore may install Chromium by itself: on a Debian, as root, on request.
fn can_install() -> bool {
    crate::test::may_download()
        && cargo::runs(&["apt-get", "--version"])
        && rustix::process::geteuid().is_root()
}

fn install(steps: &Steps) -> Result<PathBuf> {
    if !can_install() {
        bail!("Chromium is needed: apt-get install chromium");
    }
    steps.say("installing Chromium (a minute)");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        steps.expect(&mut command, "apt-get could not install Chromium")
    };
    apt(&["update"])?;
    apt(&["install", "--yes", "--no-install-recommends", "chromium"])?;
    browser().context("Chromium was installed, and is not there")
}
