//! A process can exit whatever the library is doing, a forked child survives, and a temporary
//! shortage has no lasting effect.

use std::{ffi::OsStr, time::Duration};

use moxin_vlm::{Backend, Error, GenerationOptions, LoadOptions, Model, Op, Picture, Role, device};

use crate::{
    child::{Limits, Outcome, Program, in_child, watch},
    programs::{demo, tiny},
};

/// Runs a program with its mode, the small model and a picture.
fn run(program: &Program, mode: &str, limits: Limits) -> Outcome {
    println!("{mode}");
    let (tiny, demo) = (tiny(), demo());
    program.run(
        &[OsStr::new(mode), tiny.as_os_str(), demo.as_os_str()],
        limits,
    )
}

/// Frees handles, and more, in exit handlers before and after the library's own.
#[test]
fn exit_handlers_may_free_what_streams() {
    let program = Program::build("exit.c");
    let modes = [
        "before",
        "after",
        "suspended",
        "callback",
        "log",
        "slow-log",
        "operation",
        "progress",
        "inside",
        "freeing",
    ];
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

/// Forks at any time: in the child every call is refused and its exit does not hang; the parent
/// answers as before.
#[test]
fn a_forked_child_is_refused_and_ends() {
    let program = Program::build("fork.c");
    for mode in ["idle", "streaming", "suspended", "working"] {
        let outcome = run(&program, mode, Limits::default().seconds(30));
        assert_eq!(outcome.stdout, "child\n".repeat(16), "what children wrote");
    }
    for mode in ["progress", "callbacks"] {
        run(&program, mode, Limits::default().seconds(30));
    }
}

/// The same for a Rust program, which may also drop its objects.
#[test]
fn a_forked_child_of_a_rust_program_is_refused() {
    in_child(
        "process::a_forked_child_of_a_rust_program_is_refused",
        Limits::default().seconds(20),
        || {
            let model = Model::load(tiny(), LoadOptions::default(), Op::default()).unwrap();
            let session = model.session(GenerationOptions::default()).unwrap();
            let embedding = model
                .encode_image(
                    &Picture::open(demo(), &Default::default()).unwrap(),
                    Op::default(),
                )
                .unwrap();
            session.add_text(Role::User, "Describe").unwrap();
            session.start(Default::default(), |_| true).unwrap();
            // SAFETY: the child only makes calls that are promised to work there, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let is_refused = |result: Result<(), Error>| matches!(result, Err(Error::InvalidState(what)) if what.contains("fork"));
                let refused = [
                    is_refused(
                        Model::load(tiny(), LoadOptions::default(), Op::default()).map(drop),
                    ),
                    is_refused(model.session(GenerationOptions::default()).map(drop)),
                    is_refused(session.add_text(Role::User, "Describe")),
                    is_refused(session.start(Default::default(), |_| true)),
                    is_refused(session.messages().map(drop)),
                    is_refused(embedding.to_vec().map(drop)),
                    is_refused(device::Device::new(Backend::Cpu).map(drop)),
                    is_refused(device::available_memory().map(drop)),
                    is_refused(moxin_vlm::suspend(Duration::from_secs(100))),
                ];
                moxin_vlm::resume();
                moxin_vlm::trim_memory();
                session.close();
                drop((session, model, embedding));
                std::process::exit(refused.iter().filter(|refused| !**refused).count() as i32);
            }
            let mut status = -1;
            // SAFETY: `status` outlives the call.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(
                status, 0,
                "as many calls were not refused as the second byte says"
            );
            session.close();
            session
                .add_text(Role::User, "How many shapes are there?")
                .unwrap();
            assert!(session.generate().all(|event| event.is_ok()));
        },
    );
}

#[test]
fn a_child_that_was_forked_before_the_first_use_works() {
    run(
        &Program::build("fork.c"),
        "first",
        Limits::default().seconds(20),
    );
}

/// Each kind of thread temporarily cannot be started: an error says so, and the next attempt works.
/// The CPU kernels work without threads.
#[test]
#[cfg(target_os = "linux")] // elsewhere a program's pthread_create does not replace the system's
fn a_temporary_lack_of_threads_has_no_lasting_effect() {
    let program = Program::build("threads.c");
    for mode in ["engine", "log", "stream", "pool"] {
        run(&program, mode, Limits::default().seconds(20));
    }
    // One after the other, until none fails.
    let (tiny, demo) = (tiny(), demo());
    let refused = |number: &usize| {
        let number = number.to_string();
        let arguments = [
            OsStr::new("each"),
            tiny.as_os_str(),
            demo.as_os_str(),
            OsStr::new(&number),
        ];
        program
            .run(&arguments, Limits::default().seconds(20))
            .stdout
            == "refused 1\n"
    };
    let threads = (0..30).take_while(refused).count();
    assert!(
        (4..30).contains(&threads),
        "{threads} threads: log, engine, MLX's, the CPU's, stream"
    );
}

#[test]
fn too_many_cpu_threads_are_refused() {
    let program = Program::build("cpu.c");
    let limits = Limits::default().seconds(20);
    run(&program, "function", limits);
    let (tiny, demo) = (tiny(), demo());
    for number in ["100000", "18446744073709551616", "-1", "many", ""] {
        let mut command =
            program.command(&["variable".as_ref(), tiny.as_os_str(), demo.as_os_str()]);
        command.env("MOXIN_CPU_THREADS", number);
        let outcome = watch(command, limits);
        assert!(outcome.status.success(), "{number:?}: {outcome:#?}");
    }
}

/// As many threads as CPUs that the process may use, not as the machine has.
#[test]
#[cfg(target_os = "linux")]
fn cpu_threads_follow_the_affinity() {
    in_child(
        "process::cpu_threads_follow_the_affinity",
        Limits::default(),
        || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let list = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
                .unwrap();
            let first: usize = list
                .trim()
                .split([',', '-'])
                .next()
                .unwrap()
                .parse()
                .unwrap();
            // SAFETY: the set is plain numbers, created, filled and read here.
            let bound = unsafe {
                let mut one: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(first, &mut one);
                libc::sched_setaffinity(0, size_of_val(&one), &one)
            };
            assert_eq!(bound, 0);
            moxin_vlm::device::set_cpu_threads(0).unwrap();
            assert_eq!(moxin_vlm::device::cpu_threads(), 1);
        },
    );
}

/// A log callback that calls the library, or is slow, causes no unbounded memory; callback and
/// level are set together.
#[test]
fn a_careless_log_callback_is_bounded() {
    let program = Program::build("log.c");
    for mode in ["feed", "slow", "set"] {
        run(&program, mode, Limits::mebibytes(64).seconds(20));
    }
}

#[test]
fn a_free_in_the_destroy_of_a_failed_call_does_not_wait() {
    run(
        &Program::build("log.c"),
        "destroy",
        Limits::default().seconds(20),
    );
}
