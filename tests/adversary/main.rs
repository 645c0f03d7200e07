//! Attacks on the library, each in a process of its own with limits on time, memory, threads and
//! files. SECURITY.md states the promises, and which test here shows each.
#![cfg(unix)]

mod answers;
#[allow(dead_code)] // each platform uses some of it
mod child;
mod failures;
mod folder;
mod memory;
mod mlx;
mod pictures;
mod process;
#[path = "../programs/mod.rs"]
mod programs;
mod saving;
mod text;

/// SECURITY.md names every test of this folder, and no other.
#[test]
fn security_md_names_every_test() {
    let read = |name: &str| std::fs::read_to_string(programs::in_repository(name)).unwrap();
    let page = read("SECURITY.md");
    let mut promised: Vec<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.contains("::"))
        .collect();
    let classes = [
        "answers", "failures", "folder", "memory", "mlx", "pictures", "process", "saving", "text",
    ];
    let sources = classes.map(|class| (class, read(&format!("tests/adversary/{class}.rs"))));
    let tests = sources.iter().flat_map(|(class, source)| {
        let after = source.split("#[test]").skip(1);
        after.filter_map(move |rest| {
            Some(format!(
                "{class}::{}",
                rest.split("fn ").nth(1)?.split('(').next()?
            ))
        })
    });
    let mut tests: Vec<String> = tests.collect();
    promised.sort();
    promised.dedup();
    tests.sort();
    assert_eq!(promised, tests);
}
