//! Running compilers and other programs, for the tests that do.

use std::{env, process::Command};

/// `$CC` or `$CXX`, which may have flags, or the system's.
pub fn compiler(variable: &str, usual: &str) -> Command {
    let choice = env::var(variable).unwrap_or_else(|_| usual.into());
    let mut words = choice.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(usual));
    command.args(words);
    command
}

/// What a program prints, which must end well.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
