//! A process ends whatever the library is doing, a forked child lives, and what runs short for a moment is not kept for ever.

use std::ffi::OsStr;

use crate::{
    child::{Limits, Outcome, Program},
    programs::{demo, tiny},
};

/// Runs a program with its mode, the small model and a picture.
fn run(program: &Program, mode: &str, limits: Limits) -> Outcome {
    println!("{mode}");
    let (tiny, demo) = (tiny(), demo());
    program.run(&[OsStr::new(mode), tiny.as_os_str(), demo.as_os_str()], limits)
}

/// Frees, and whatever else is asked, in exit handlers before and after the library's own.
#[test]
fn exit_handlers_may_free_what_streams() {
    let program = Program::build("exit.c");
    let modes =
        ["before", "after", "suspended", "callback", "log", "slow-log", "operation", "progress", "inside", "freeing"];
    for mode in modes {
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

/// Forks at any time: in the child every call is refused and its end does not hang; the parent answers as before.
#[test]
fn a_forked_child_is_refused_and_ends() {
    let program = Program::build("fork.c");
    for mode in ["idle", "streaming", "suspended", "working", "progress"] {
        run(&program, mode, Limits::default().seconds(30));
    }
}

#[test]
fn a_child_that_was_forked_before_the_first_use_works() {
    run(&Program::build("fork.c"), "first", Limits::default().seconds(20));
}
