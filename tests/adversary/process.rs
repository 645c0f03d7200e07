//! A process ends whatever the library is doing, a forked child lives, and what runs short for a moment is not kept for ever.

use std::ffi::OsStr;

use crate::{
    child::{Limits, Outcome, Program},
    programs::tiny,
};

/// Runs a program with its mode and the small model.
fn run(program: &Program, mode: &str, limits: Limits) -> Outcome {
    let tiny = tiny();
    program.run(&[OsStr::new(mode), tiny.as_os_str()], limits)
}

/// Frees, and whatever else is asked, in exit handlers before and after the library's own.
#[test]
fn exit_handlers_may_free_what_streams() {
    let program = Program::build("exit.c");
    let modes =
        ["before", "after", "suspended", "callback", "log", "slow-log", "operation", "progress", "inside", "freeing"];
    for mode in modes {
        println!("{mode}");
        run(&program, mode, Limits::default().seconds(10));
    }
}

#[test]
fn globals_may_own_what_streams() {
    let program = Program::build("exit.cpp");
    let tiny = tiny();
    for _ in 0..5 {
        program.run(&[tiny.as_os_str()], Limits::default().seconds(10));
    }
}
