//! Every single failure of an allocation, a file operation or a thread start while a model is
//! loaded, asked, quantized and saved: each is a typed error, nothing is lost, and the next attempt
//! works. See whole.c and failing.h.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

use tempfile::TempDir;

use crate::{
    child::{Limits, Outcome, Program, watch},
    programs::{copy_tiny, demo},
};

/// The maximum number of failures of a kind in each part: `MOXIN_FAILURES=all` runs every one.
const MOST: &str = "40";

/// The smallest allocation that fails, in bytes. The small model needs little memory: this
/// represents a megabyte of a large one.
const SMALLEST: &str = "65536";

/// The program, a model and a path for saving: in memory, if possible.
struct Whole {
    program: Program,
    folder: TempDir,
}

impl Whole {
    fn new() -> Whole {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            TempDir::new_in(memory)
        } else {
            TempDir::new()
        }
        .unwrap();
        copy_tiny(&folder.path().join("source"));
        fs::create_dir(folder.path().join("place")).unwrap();
        let whole = Whole {
            program: Program::build("whole.c"),
            folder,
        };
        whole.run("save", "memory", &[]);
        whole
    }

    /// Runs it to its end, whatever that is.
    fn outcome(&self, mode: &str, kind: &str, more: &[&str]) -> Outcome {
        let (source, place) = (
            self.folder.path().join("source"),
            self.folder.path().join("place"),
        );
        let arguments: Vec<OsString> = [
            mode.into(),
            source.into(),
            demo().into(),
            place.into(),
            kind.into(),
        ]
        .into();
        let arguments: Vec<_> = arguments
            .iter()
            .map(OsString::as_os_str)
            .chain(more.iter().map(AsRef::as_ref))
            .collect();
        let mut command = self.program.command(&arguments);
        command.env("MOXIN_FAILURES_BYTES", SMALLEST);
        watch(
            command,
            Limits {
                time: std::time::Duration::from_secs(600),
                ..Limits::default()
            },
        )
    }

    /// Runs it; it must find no fault, and leave the source unchanged. Returns its counts: failures
    /// tried and possible, per part.
    fn run(&self, mode: &str, kind: &str, more: &[&str]) -> BTreeMap<String, (u64, u64)> {
        let outcome = self.outcome(mode, kind, more);
        assert!(
            outcome.status.success(),
            "{mode} {kind} {more:?}: {}\n{}\n{}",
            outcome.status,
            outcome.stdout,
            outcome.stderr
        );
        if let Some(skipped) = outcome
            .stdout
            .lines()
            .find(|line| line.starts_with("SKIPPED"))
        {
            println!("{skipped}");
        }
        for entry in fs::read_dir(self.folder.path().join("source")).unwrap() {
            let path = entry.unwrap().path();
            let original = crate::programs::tiny().join(path.file_name().unwrap());
            assert!(
                fs::read(&path).unwrap() == fs::read(original).unwrap(),
                "{path:?} has changed"
            );
        }
        let count = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
            [part, _, tried, "of", all] => Some((
                part.to_owned(),
                (tried.parse().unwrap(), all.parse().unwrap()),
            )),
            _ => None,
        };
        outcome.stdout.lines().filter_map(count).collect()
    }

    /// Fails each part in every way, and all parts in a process of their own if much is done for
    /// the first time.
    fn fail(&self, kind: &str, parts: &[&str], first: u64) {
        let most = match std::env::var("MOXIN_FAILURES").as_deref() {
            Ok("all") => "1000000",
            _ => MOST,
        };
        let counts = self.run("each", kind, &[most]);
        for part in parts {
            assert!(
                counts[*part].0 > 0,
                "{kind}: nothing could fail in {part}: {counts:?}"
            );
        }
        let all = self.run("first", kind, &["0"])["first"].1;
        assert!(all > 0, "{kind}");
        for i in 0..all.min(first) {
            self.run(
                "first",
                kind,
                &[&(1 + i * all / all.min(first)).to_string()],
            );
        }
        println!(
            "{kind}: {counts:?}; {} of {all} in processes of their own",
            all.min(first)
        );
    }
}

#[test]
fn every_allocation_may_fail() {
    Whole::new().fail(
        "memory",
        &["load", "encode", "pull", "stream", "save", "overwrite"],
        10,
    );
}

#[test]
fn every_file_operation_may_fail() {
    let parts = [
        "load",
        "picture",
        "encode",
        "session",
        "pull",
        "stream",
        "quantize",
        "save",
        "overwrite",
    ];
    Whole::new().fail("files", &parts, 20);
}

#[test]
fn every_thread_may_fail_to_start() {
    Whole::new().fail("threads", &["stream"], 10);
}

/// Failures that cannot become errors: if one does, it must be removed from the list.
#[test]
fn known_fatal_failures_still_end_the_process() {
    let whole = Whole::new();
    // On a CPU MLX 0.32.2 does not check whether its allocation succeeded
    // (`CommonAllocator::malloc`): only the library's estimates protect there.
    for part in ["load", "encode", "pull"] {
        let outcome = whole.outcome("one", "mlx", &[part, "1"]);
        assert!(
            !outcome.status.success() && outcome.stderr.contains("Segmentation fault"),
            "{part}: {outcome:#?}"
        );
    }
    for i in 0.. {
        let outcome = whole.outcome("known", "known", &[&i.to_string()]);
        if outcome.status.code() == Some(4) {
            break;
        }
        assert_eq!(
            outcome.status.code(),
            Some(3),
            "entry {i} of KNOWN in whole.c is no longer needed: {outcome:#?}"
        );
    }
}

#[test]
fn a_program_that_ignores_failures_is_caught() {
    let outcome = Whole::new().outcome("careless", "memory", &[]);
    assert!(
        outcome.status.code() == Some(3) && outcome.stderr.contains("careless, memory 1"),
        "{outcome:#?}"
    );
}
