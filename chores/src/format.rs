//! Formats C and C++ with clang-format, and Swift with swift-format; checks all text files against
//! `.editorconfig`. rustfmt formats Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use ec4rs::property::{EndOfLine, FinalNewline, IndentStyle, TrimTrailingWs};

use crate::setup::{self, cache_folder, executable};
use crate::{cargo, swift};

/// Other versions format differently.
const VERSION: &str = "21.1.8";
const WHEEL: &str = include_str!("clang_format.txt");

#[derive(clap::Args)]
pub struct Options {
    /// Only check
    #[arg(long)]
    check: bool,
}

/// Returns what this chore lacks for `cargo xtask test`.
pub fn lacks() -> Option<String> {
    clang_format().err().map(|error| format!("{error:#}"))
}

pub fn run(options: Options) -> Result<()> {
    let mut command = Command::new(clang_format()?);
    command.current_dir(setup::repository());
    match options.check {
        true => command.args(["--dry-run", "-Werror"]),
        false => command.arg("-i"),
    };
    cargo::run(command.args(files(&["*.c", "*.cpp", "*.h", "*.hpp"])?))?;
    if let Some(lacking) = swift::format(options.check)? {
        println!("Swift is not formatted here; it needs: {lacking}");
    }
    check_editorconfig()
}

/// Returns the files in git that match one of the patterns.
fn files(patterns: &[&str]) -> Result<Vec<String>> {
    let output = Command::new("git")
        .current_dir(setup::repository())
        .args(["ls-files", "-z"])
        .args(patterns)
        .output()
        .context("cannot run git")?;
    let names = String::from_utf8(output.stdout)?;
    let files: Vec<String> = names
        .split_terminator('\0')
        .filter(|name| setup::repository().join(name).is_file())
        .map(str::to_owned)
        .collect();
    if files.is_empty() {
        bail!("git lists no files");
    }
    Ok(files)
}

/// Fails with a list of what differs from `.editorconfig`.
fn check_editorconfig() -> Result<()> {
    let mut wrong = Vec::new();
    for name in files(&[])? {
        let path = setup::repository().join(&name);
        // What is not text has no lines.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        wrong.extend(differences(&path, &text)?.map(|what| format!("{name}: {what}")));
    }
    if !wrong.is_empty() {
        bail!("not as .editorconfig says:\n{}", wrong.join("\n"));
    }
    Ok(())
}

fn differences(path: &Path, text: &str) -> Result<impl Iterator<Item = &'static str>> {
    let rules = ec4rs::properties_of(path)?;
    let any = |is_wrong: fn(&str) -> bool| text.split('\n').any(is_wrong);
    let found = [
        (
            rules.get() == Ok(FinalNewline::Value(true))
                && !text.is_empty()
                && !text.ends_with('\n'),
            "no newline at the end",
        ),
        (
            rules.get() == Ok(TrimTrailingWs::Value(true))
                && any(|line| line.ends_with([' ', '\t'])),
            "spaces at the end of a line",
        ),
        (
            rules.get() == Ok(EndOfLine::Lf) && text.contains('\r'),
            "a carriage return",
        ),
        (
            rules.get() == Ok(IndentStyle::Spaces) && any(|line| line.starts_with('\t')),
            "a line indented with a tab",
        ),
    ];
    Ok(found
        .into_iter()
        .filter_map(|(wrong, what)| wrong.then_some(what)))
}

/// Returns clang-format: its wheel in the cache folder on Linux, the system's elsewhere.
fn clang_format() -> Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        let output = Command::new("clang-format").arg("--version").output();
        return match output {
            Ok(output) if String::from_utf8_lossy(&output.stdout).contains(VERSION) => {
                Ok("clang-format".into())
            }
            _ => bail!("clang-format {VERSION}: python3 -m pip install clang-format=={VERSION}"),
        };
    }
    let home = cache_folder()?.join(format!("clang-format-{VERSION}"));
    setup::wheel(&home, WHEEL)?;
    executable(home.join("clang_format/data/bin/clang-format"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_from_editorconfig_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let rules = "root = true\n[*]\nend_of_line = lf\ninsert_final_newline = true\n\
            indent_style = space\ntrim_trailing_whitespace = true\n\
            [*.md]\ntrim_trailing_whitespace = false\n";
        fs::write(folder.path().join(".editorconfig"), rules).unwrap();
        let found = |name: &str, text: &str| -> Vec<_> {
            let path = folder.path().join(name);
            differences(&path, text).unwrap().collect()
        };
        assert!(found("a.txt", "").is_empty() && found("a.txt", "a b\n  c\n").is_empty());
        assert_eq!(found("a.txt", "a"), ["no newline at the end"]);
        assert_eq!(found("a.txt", "a \n"), ["spaces at the end of a line"]);
        assert!(found("a.md", "a  \n").is_empty());
        assert_eq!(found("a.txt", "a\r\n"), ["a carriage return"]);
        assert_eq!(found("a.txt", "a\n\tb\n"), ["a line indented with a tab"]);
    }
}
