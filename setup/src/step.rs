//! The steps of a set-up: their output for the user, and the programs they run.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, anyhow};

pub struct Steps {
    start: Instant,
    log: PathBuf,
    temporary: PathBuf,
}

/// A program that failed, and its output.
pub struct Failure {
    pub text: String,
    pub code: Option<i32>,
}

impl Steps {
    pub fn new(log: PathBuf, temporary: PathBuf) -> Steps {
        std::fs::remove_file(&log).ok(); // it does not exist the first time
        Steps {
            start: Instant::now(),
            log,
            temporary,
        }
    }

    /// Prints what starts now.
    pub fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.start.elapsed().as_secs_f64());
    }

    /// Runs a program with its output in the log only, and returns that output.
    pub fn run(&self, command: &mut Command) -> Result<Result<String, Failure>> {
        let output = command
            .env("TMPDIR", &self.temporary)
            .output()
            .map_err(|error| anyhow!("cannot run {}: {error}", name(command)))?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let text = text.into_owned();
        self.write(command, &text).ok(); // a log that cannot be written is no reason to stop
        if output.status.success() {
            return Ok(Ok(text));
        }
        if text.contains("No space left on device") {
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        Ok(Err(Failure {
            text,
            code: output.status.code(),
        }))
    }

    /// Does the same for a program whose failures need no explanation: `what` says what failed, and
    /// the end of the output follows.
    pub fn expect(&self, command: &mut Command, what: &str) -> Result<String> {
        self.run(command)?
            .map_err(|failure| self.report(what, &failure))
    }

    pub fn report(&self, what: &str, failure: &Failure) -> anyhow::Error {
        let lines: Vec<&str> = failure.text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(20)..];
        anyhow!(
            "{what}; the log is {}\n{}",
            self.log.display(),
            tail.join("\n")
        )
    }

    fn write(&self, command: &Command, text: &str) -> io::Result<()> {
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        writeln!(log, "$ {command:?}\n{text}")
    }
}

/// Returns whether there is such a program.
pub fn runs(program: impl AsRef<OsStr>) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn name(command: &Command) -> std::path::Display<'_> {
    let program: &OsStr = command.get_program();
    std::path::Path::new(program).display()
}
