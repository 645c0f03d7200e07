//! Watched processes: one that exceeds its limits is killed, and the test fails.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::programs::{
    C99, LIBRARY_PATH, compiler, in_repository, library_folder, library_path, succeed,
};

/// Set in a child: the test that it runs, and which part of it.
const CASE: &str = "MOXIN_ADVERSARY_CASE";
const PART: &str = "MOXIN_ADVERSARY_PART";

/// How often a child is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The limits of a child. Memory is resident memory in bytes; memory and threads are watched if
/// there is /proc. The address space is limited for the child itself, whose allocations then fail.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub time: Duration,
    pub memory: u64,
    pub threads: u64,
    pub files: u64,
    pub address_space: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        // Some libraries start a thread per CPU for any work.
        let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        Limits {
            time: Duration::from_secs(60),
            memory: 1 << 30,
            threads: 32 + 2 * cpus,
            files: 256,
            address_space: None,
        }
    }
}

impl Limits {
    /// Returns the usual limits with another one for memory, in MiB.
    pub fn mebibytes(memory: u64) -> Limits {
        Limits {
            memory: memory << 20,
            ..Limits::default()
        }
    }

    /// Returns the same limits with another one for time.
    pub fn seconds(self, seconds: u64) -> Limits {
        Limits {
            time: Duration::from_secs(seconds),
            ..self
        }
    }
}

/// How a child ended, and its peak use.
#[derive(Debug)]
#[allow(dead_code)] // printed on failure even if a test does not read it
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub memory: u64,
    pub threads: u64,
    pub time: Duration,
}

/// Runs `body` in a child: this test program again, which only runs the test called `name`. `name`
/// is the test's path, such as `folder::a_pipe_is_refused`. Everything the test does belongs in
/// `body`.
pub fn in_child(name: &str, limits: Limits, body: impl FnOnce()) {
    in_children(name, limits, 1, |_| body());
}

/// Runs `body` in so many children, one after the other, with the number of each.
pub fn in_children(name: &str, limits: Limits, count: usize, body: impl FnOnce(usize)) {
    if std::env::var_os(CASE).is_some_and(|case| case == name) {
        let part = std::env::var(PART).unwrap_or_default();
        return body(part.parse().unwrap_or(0));
    }
    for part in 0..count {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(CASE, name)
            .env(PART, part.to_string());
        let outcome = watch(command, limits);
        assert!(
            outcome.status.success() && outcome.stdout.contains("1 passed"),
            "{name}, part {part}: {outcome:#?}"
        );
        let told = |line: &&str| line.starts_with("NOTE: ") || line.starts_with("SKIPPED: ");
        outcome
            .stdout
            .lines()
            .filter(told)
            .for_each(|line| println!("{line}"));
    }
}

/// Returns the memory of this process in bytes: a line of /proc/self/status, such as `VmHWM:` for
/// peak resident memory.
pub fn memory(field: &str) -> Option<u64> {
    Some(proc_status(std::process::id(), field)? << 10)
}

/// A C or C++ program from this folder, built with the library that cargo built for these tests.
pub struct Program {
    path: PathBuf,
    _folder: TempDir,
}

impl Program {
    /// Compiles a source such as `exit.c`.
    pub fn build(source: &str) -> Program {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("program");
        let libraries = library_folder();
        let mut command = match source.ends_with(".cpp") {
            true => compiler("CXX", "c++"),
            false => compiler("CC", "cc"),
        };
        match source.ends_with(".cpp") {
            true => command.arg("-std=c++17").args(&C99[1..]),
            false => command.args(C99),
        };
        command
            .args(["-g", "-I"])
            .arg(in_repository("include"))
            .arg("-I")
            .arg(in_repository("tests/c"));
        command
            .arg(in_repository("tests/adversary").join(source))
            .arg("-o")
            .arg(&path);
        command
            .arg("-L")
            .arg(&libraries)
            .arg(format!("-Wl,-rpath,{}", libraries.display()))
            .args(["-lmoxin_vlm", "-lm", "-pthread"]);
        succeed(&mut command);
        Program {
            path,
            _folder: folder,
        }
    }

    /// Runs it within limits; it must end by itself with status 0.
    pub fn run(&self, arguments: &[&OsStr], limits: Limits) -> Outcome {
        let outcome = watch(self.command(arguments), limits);
        assert!(outcome.status.success(), "{arguments:?}: {outcome:#?}");
        outcome
    }

    /// Returns the command that runs it.
    pub fn command(&self, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments).env(LIBRARY_PATH, library_path());
        command
    }
}

/// Runs a command to its end. Panics if it exceeds its limits.
pub fn watch(command: Command, limits: Limits) -> Outcome {
    watched(command, limits).unwrap_or_else(|what| panic!("{what}"))
}

/// Runs a command to its end; kills it if it exceeds its limits, and returns its use.
fn watched(command: Command, limits: Limits) -> Result<Outcome, String> {
    let folder = TempDir::new().unwrap();
    let (out, err) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let text =
        |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let mut command = with_limits(&command, limits);
    command
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap());
    let begin = Instant::now();
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (mut memory, mut threads) = (0, 0);
    loop {
        memory = memory.max(proc_status(child.id(), "VmHWM:").unwrap_or(0) << 10);
        threads = threads.max(proc_status(child.id(), "Threads:").unwrap_or(0));
        let time = begin.elapsed();
        if let Some(status) = child.try_wait().unwrap() {
            return Ok(Outcome {
                status,
                stdout: text(&out),
                stderr: text(&err),
                memory,
                threads,
                time,
            });
        }
        if time > limits.time || memory > limits.memory || threads > limits.threads {
            child.kill().unwrap();
            child.wait().unwrap();
            let (out, err) = (text(&out), text(&err));
            return Err(format!(
                "{command:?} took {time:?}, {memory} bytes, {threads} threads; allowed: \
                 {limits:?}\n{out}\n{err}"
            ));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Returns the command, run by a shell that first limits the number of open files and optionally
/// the address space, and leaves new files accessible to others.
fn with_limits(command: &Command, limits: Limits) -> Command {
    let mut shell = Command::new("sh");
    let address_space = limits.address_space.map_or(String::new(), |bytes| {
        format!("ulimit -v {}; ", bytes >> 10)
    });
    let set = format!("umask 0; ulimit -n {}; {address_space}", limits.files);
    shell.args(["-c", &format!("{set}exec \"$0\" \"$@\"")]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
}

/// Returns a number from /proc/PID/status.
fn proc_status(process: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[test]
fn a_child_that_takes_too_much_is_killed() {
    let limits = Limits::default();
    let mut too_low = vec![limits.seconds(0)];
    if cfg!(target_os = "linux") {
        too_low.extend([
            Limits::mebibytes(0),
            Limits {
                threads: 0,
                ..limits
            },
        ]);
    }
    for limits in too_low {
        let mut command = Command::new("sleep");
        command.arg("60");
        watched(command, limits).unwrap_err();
    }
}

#[test]
fn a_child_has_a_limit_on_files() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n"]);
    assert_eq!(
        watch(
            command,
            Limits {
                files: 17,
                ..Limits::default()
            }
        )
        .stdout,
        "17\n"
    );
}

#[test]
fn a_test_in_a_child_runs_and_fails_there() {
    let name = "child::a_test_in_a_child_runs_and_fails_there";
    in_child(name, Limits::default(), || {
        assert!(std::env::var_os(CASE).is_some())
    });
    let in_vain =
        std::panic::catch_unwind(|| in_child("child::no_such_test", Limits::default(), || ()));
    assert!(std::env::var_os(CASE).is_some() || in_vain.is_err());
}
