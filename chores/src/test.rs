//! Runs all checks that a change must pass, in one command.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::{apple, bindings, cargo, deny, format, server, setup, swift};

/// One step: a name, and cargo's arguments.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Returns how to get the program that it needs and that not everyone has, if it is missing.
    lacks: fn() -> Option<String>,
}

impl Step {
    const fn new(name: &'static str, arguments: &'static [&'static str]) -> Step {
        Step {
            name,
            arguments,
            environment: &[],
            lacks: || None,
        }
    }

    fn command(&self) -> Command {
        let mut command = cargo::cargo();
        command
            .args(self.arguments)
            .envs(self.environment.iter().copied());
        command
    }

    /// Returns the command that repeats it.
    fn line(&self) -> String {
        let environment: String = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}='{value}' "))
            .collect();
        format!("{environment}cargo {}", self.arguments.join(" "))
    }
}

/// Quick steps first. So that each dependency is checked once and built once, every step on the
/// library includes the development dependencies (with the examples), and names the same packages:
/// otherwise some crates would have fewer features, which makes them other crates. The chores' own
/// tests use the chores' profile, in which their dependencies are already built.
const STEPS: [Step; 13] = [
    Step::new("format", &["fmt", "--all", "--check"]),
    Step::new(
        "clippy",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    ),
    Step {
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        ..Step::new(
            "documentation",
            &["doc", "--workspace", "--no-deps", "--lib", "--examples"],
        )
    },
    Step::new(
        "tests of the chores",
        &[
            "test",
            "--profile",
            "chores",
            "--package",
            "chores",
            "--package",
            "moxin-vlm-setup",
        ],
    ),
    // The models of the tests are small: two threads of OpenBLAS cost more by waiting for each
    // other than they save.
    Step {
        environment: &[("OPENBLAS_NUM_THREADS", "1")],
        ..Step::new("tests", &["tests"])
    },
    Step {
        environment: &[("OPENBLAS_NUM_THREADS", "1"), ("MOXIN_WATCH", "sanitizers")],
        ..Step::new("sanitizers", &["tests", "--test", "c"])
    },
    Step {
        lacks: format::lacks,
        ..Step::new("format of C", &["xtask", "format", "--check"])
    },
    // The tests that take seconds; without names, all C programs run, which takes many minutes.
    Step {
        environment: &[("MOXIN_WATCH", "valgrind")],
        lacks: || unless_runs(&["valgrind", "--version"], "apt-get install valgrind"),
        ..Step::new(
            "valgrind",
            &[
                "tests",
                "--test",
                "c",
                "--",
                "describe_answers",
                "describe_explains",
                "sanitizers_and_valgrind",
            ],
        )
    },
    Step {
        lacks: server::clients::missing,
        ..Step::new("clients", &["xtask", "clients"])
    },
    Step {
        lacks: server::page::missing,
        ..Step::new("page", &["xtask", "page"])
    },
    Step {
        lacks: server::deploy::missing,
        ..Step::new("deploy", &["xtask", "deploy"])
    },
    Step::new("packaged", &["xtask", "packaged"]),
    Step {
        lacks: swift::lacks,
        ..Step::new("swift", &["xtask", "swift-test"])
    },
];

/// Steps beside those above, in an order of their own: most of them wait for downloads or use one
/// processor, or build in folders of their own.
const BESIDE: [Step; 6] = [
    Step {
        lacks: deny::lacks,
        ..Step::new("licenses", &["xtask", "deny"])
    },
    Step {
        lacks: server::clients::missing,
        ..Step::new("get clients", &["xtask", "clients", "--install"])
    },
    Step {
        lacks: server::page::missing,
        ..Step::new("get page", &["xtask", "page", "--install"])
    },
    Step {
        lacks: bindings::lacks,
        ..Step::new("bindings", &["xtask", "bindings", "--check"])
    },
    Step::new("kernels", &["xtask", "kernels-test"]),
    Step {
        lacks: apple::lacks,
        ..Step::new("apple", &["xtask", "apple-check"])
    },
];

/// Returns how to get a program, unless it runs.
fn unless_runs(program: &[&str], get: &str) -> Option<String> {
    (!cargo::runs(program)).then(|| get.to_owned())
}

/// Tests that passed, and those that were skipped: as marked in their source, or for reasons that
/// they printed.
#[derive(Default, PartialEq, Debug)]
struct Count {
    passed: usize,
    ignored: usize,
    skipped: Vec<String>,
}

pub fn run() -> Result<()> {
    let start = Instant::now();
    setup::ensure()?;
    let mut lines = vec![("set-up", seconds(start.elapsed()))];
    let mut count = Count::default();
    let failed = AtomicBool::new(false);
    let (first, beside) = thread::scope(|scope| {
        let beside = scope.spawn(|| run_lane(&BESIDE, "| ", &failed));
        let first = run_lane(&STEPS, "", &failed);
        if !beside.is_finished() {
            println!("\nWaiting for the steps beside these");
        }
        (first, beside.join())
    });
    for lane in [first, beside.map_err(|_| anyhow!("a panic, see above"))?] {
        let lane = lane?;
        lines.extend(lane.lines);
        count.merge(lane.count);
    }

    println!();
    for (name, outcome) in lines {
        println!("{name:20} {outcome:>7}");
    }
    let Count {
        passed,
        ignored,
        skipped,
    } = count;
    for reason in &skipped {
        println!("SKIPPED in a test: {reason}");
    }
    let parts = format!(
        "{passed} tests passed, {ignored} ignored, {} SKIPPED in part",
        skipped.len()
    );
    println!("\nAll is well: {parts}, in {}.", seconds(start.elapsed()));
    Ok(())
}

/// The results of steps that ran one after the other.
#[derive(Default)]
struct Lane {
    lines: Vec<(&'static str, String)>,
    count: Count,
}

/// Runs steps one after the other, until one of them, or of another lane, fails. Each line of their
/// output starts with `mark`.
fn run_lane(steps: &[Step], mark: &str, failed: &AtomicBool) -> Result<Lane> {
    let mut lane = Lane::default();
    for step in steps {
        if failed.load(Ordering::SeqCst) {
            break;
        }
        let outcome = match (step.lacks)() {
            Some(get) => format!("SKIPPED; it needs: {get}"),
            None => {
                let time = run_step(step, mark, &mut lane.count)
                    .inspect_err(|_| failed.store(true, Ordering::SeqCst))?;
                seconds(time)
            }
        };
        lane.lines.push((step.name, outcome));
    }
    Ok(lane)
}

/// Returns whether the tests may get large tools, such as Swift, which a person may not want.
pub fn may_download() -> bool {
    ["MOXIN_DOWNLOAD", "CI"]
        .iter()
        .any(|name| env::var_os(name).is_some())
}

fn run_step(step: &Step, mark: &str, count: &mut Count) -> Result<Duration> {
    println!("\n{mark}=== {}: {}", step.name, step.line());
    let start = Instant::now();
    let mut child = step
        .command()
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{mark}{line}");
        count.add(&line);
    }
    let status = child.wait()?;
    let time = start.elapsed();
    if !status.success() {
        bail!(
            "{} failed after {}; to repeat it: {}",
            step.name,
            seconds(time),
            step.line()
        );
    }
    println!("{mark}=== {}: {}", step.name, seconds(time));
    Ok(time)
}

impl Count {
    fn merge(&mut self, other: Count) {
        self.passed += other.passed;
        self.ignored += other.ignored;
        self.skipped.extend(other.skipped);
    }

    /// Reads the last line of one test program,
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; …`, or Swift's
    /// `✔ Test run with 3 tests passed …`, and `SKIPPED: …` from a test that lacks a tool.
    fn add(&mut self, line: &str) {
        if let Some(reason) = line.strip_prefix("SKIPPED: ") {
            if !self.skipped.iter().any(|known| known == reason) {
                self.skipped.push(reason.to_owned());
            }
            return;
        }
        if let Some(run) = line.strip_prefix("✔ Test run with ") {
            self.passed += run
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0);
        }
        let Some(result) = line.strip_prefix("test result: ok. ") else {
            return;
        };
        for part in result.split("; ") {
            match part
                .split_once(' ')
                .and_then(|(number, what)| Some((number.parse::<usize>().ok()?, what)))
            {
                Some((number, "passed")) => self.passed += number,
                Some((number, "ignored")) => self.ignored += number,
                _ => {}
            }
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_over_all_programs() {
        let mut count = Count::default();
        count.add("running 3 tests");
        count.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
            finished in 0.00s",
        );
        count.add(
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
            finished in 1.50s",
        );
        count.add("✔ Test run with 5 tests passed after 1.6 seconds.");
        count.add("SKIPPED: no CMake");
        count.add("SKIPPED: no CMake");
        assert_eq!(
            count,
            Count {
                passed: 20,
                ignored: 1,
                skipped: vec!["no CMake".to_owned()]
            }
        );
    }

    /// A name that selects nothing is no error for cargo.
    #[test]
    fn steps_name_tests_that_exist() {
        let names: Vec<&str> = STEPS
            .iter()
            .filter(|step| step.arguments.starts_with(&["tests"]))
            .flat_map(|step| {
                step.arguments
                    .iter()
                    .skip_while(|word| **word != "--")
                    .skip(1)
            })
            .copied()
            .collect();
        assert!(!names.is_empty());
        for name in names {
            let tests = include_str!("../../tests/c.rs");
            assert!(
                tests.contains(&format!("\nfn {name}")),
                "tests/c.rs has no {name}"
            );
        }
    }

    #[test]
    fn a_step_can_be_repeated_by_hand() {
        assert_eq!(
            STEPS[2].line(),
            "RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --lib --examples"
        );
    }
}
