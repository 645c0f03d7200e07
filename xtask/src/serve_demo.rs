//! Serves the small checkpoint, and opens the page to ask it about a picture.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{cargo, repository};

pub fn run(port: u16) -> Result<()> {
    moxin_vlm_setup::ensure(repository())?;
    let server = [
        "--profile",
        "demo",
        "--package",
        "moxin-vlm-server",
        "--bin",
        "moxin-server",
    ];
    moxin_vlm_setup::run(cargo().arg("build").args(server))?;
    println!("This build compiles fast and runs slowly.");
    let mut process = cargo()
        .args(["run", "--quiet"])
        .args(server)
        .args(["--", "--model", "models/tiny"])
        .args(["--example-image", "models/demo.png"])
        .args(["--port", &port.to_string()])
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let mut url = String::new();
    BufReader::new(process.stdout.take().context("no output")?).read_line(&mut url)?;
    let url = url.trim();
    if url.is_empty() {
        bail!("the server did not start, see above");
    }
    println!("Ask the small model about its picture: {url}  (Ctrl-C ends the server)");
    open(url);
    // Ctrl-C reaches the server too, which completes its answers first.
    process.wait().context("cannot wait for the server")?;
    Ok(())
}

/// Opens an address in the browser, where there is a desktop.
fn open(url: &str) {
    let program = if cfg!(target_os = "macos") {
        "open"
    } else if env::var_os("DISPLAY").is_some() || env::var_os("WAYLAND_DISPLAY").is_some() {
        "xdg-open"
    } else {
        return;
    };
    // The address was printed; a desktop without a browser is no failure.
    let _ = Command::new(program)
        .arg(url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}
