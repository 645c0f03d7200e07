//! The one thread that computes.

use std::{
    cell::{Cell, RefCell},
    mem,
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use super::{
    callback::Calls,
    lock,
    op::{Control, Op},
    queue::{Queue, Reporter},
};
use crate::{
    Error, Result,
    device::inject,
    device::{Backend, Device, at_exit, leave, settle},
    process,
};

/// Callbacks from threads of the library.
pub static CALLS: Calls = Calls::new();

/// Runs `job` on the engine thread when its turn comes, and waits for its result: see
/// [`Queue::run`].
pub fn run<R: Send + 'static>(
    op: Op,
    job: impl FnOnce(&Reporter<R>) -> Result<R> + Send + 'static,
) -> Result<R> {
    engine()?.run(op, |reporter| {
        inject("engine")?;
        job(reporter)
    })
}

/// Fails if an operation must stop: the library is suspended, the process exits, or the caller
/// asked for it.
pub fn check(control: &Control) -> Result<()> {
    engine()?.check(control)
}

/// Does the same as [`run`] for a job with side effects: cancelling after completion has no effect.
pub fn run_to_completion<R: Send + 'static>(
    op: Op,
    job: impl FnOnce(&Reporter<R>) -> Result<R> + Send + 'static,
) -> Result<R> {
    engine()?.run_to_completion(op, job)
}

/// Runs `job` on the engine thread when its turn comes, even while the library is suspended: for
/// work that only reads or drops arrays.
pub fn turn<R: Send + 'static>(job: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    engine()?.turn(job)
}

/// Runs `job` on the engine thread when its turn comes, without waiting. A panic in it is ignored.
pub fn post(job: impl FnOnce() + Send + 'static) {
    if let Ok(engine) = engine() {
        engine.post(job);
    }
}

/// Drops a value that contains MLX arrays on the engine thread, without waiting.
pub fn dispose(thing: impl Send + 'static) {
    match ENGINE_THREAD.get() {
        // What is counted in the next turn must not include it.
        true => drop(thing),
        false => hand_over(thing, drop),
    }
}

/// Calls `last` with a value that contains MLX arrays on the engine thread, without waiting. Where
/// no engine runs, the value is only dropped.
pub fn hand_over<T: Send + 'static>(thing: T, last: impl FnOnce(T) + Send + 'static) {
    match engine() {
        Ok(engine) => engine.post(move || last(thing)),
        // MLX's locks may be held by a thread that does not exist here.
        Err(_) if process::is_forked() => mem::forget(thing),
        // MLX allows it for evaluated arrays.
        Err(_) => drop(thing),
    }
}

/// Stops all computing; waits at most `drain` for running operations.
///
/// An app that moves to the background must not submit GPU work, which iOS does not allow.
/// Operations fail with [`Error::Suspended`], running ones at their next tensor, block or layer; a
/// stream pauses. Conversations are kept.
///
/// # Errors
/// [`Error::Timeout`] if something is still running after that time. The library is suspended all
/// the same.
pub fn suspend(drain: Duration) -> Result<()> {
    log::info!("suspended");
    engine()?.suspend(drain)
}

/// Resumes computing after [`suspend`].
pub fn resume() {
    if let Some(engine) = started() {
        engine.resume();
        log::info!("resumed");
    }
}

/// Waits while the library is suspended, or until `enough`, which is polled, returns true.
pub fn wait_for_resume(enough: impl Fn() -> bool) {
    if let Ok(engine) = engine() {
        engine.wait_for_resume(enough);
    }
}

/// Calls `f` with operations running on a backend's device. On the engine thread only: devices
/// belong to their thread.
pub fn on_device<T>(backend: Backend, f: impl FnOnce(&Device) -> Result<T>) -> Result<T> {
    thread_local! {
        static DEVICES: RefCell<Vec<(Backend, Device)>> = const { RefCell::new(Vec::new()) };
    }
    let known = DEVICES.with_borrow(|devices| {
        devices
            .iter()
            .find(|(key, _)| *key == backend)
            .map(|(_, device)| device.clone())
    });
    let device = match known {
        Some(device) => device,
        None => {
            let device = Device::new(backend)?;
            DEVICES.with_borrow_mut(|devices| devices.push((backend, device.clone())));
            device
        }
    };
    device.run(|| {
        f(&device).inspect_err(|error| {
            if let Error::Backend(_) = error {
                settle();
            }
        })
    })
}

static ENGINE: OnceLock<Arc<Queue>> = OnceLock::new();

/// Returns the engine, if it was started.
fn started() -> Option<&'static Arc<Queue>> {
    ENGINE.get().filter(|_| !process::is_forked())
}

fn engine() -> Result<&'static Arc<Queue>> {
    static STARTING: Mutex<()> = Mutex::new(());
    process::enter()?;
    if let Some(engine) = ENGINE.get() {
        return Ok(engine);
    }
    let _starting = lock(&STARTING);
    if let Some(engine) = ENGINE.get() {
        return Ok(engine);
    }
    // A failure is not stored: the next call tries again.
    let engine = start()?;
    Ok(ENGINE.get_or_init(|| engine))
}

fn start() -> Result<Arc<Queue>> {
    if CALLS.are_over() {
        return Err(Error::Cancelled);
    }
    let queue = Queue::new(&CALLS);
    let works = queue.clone();
    let work = move || {
        ENGINE_THREAD.set(true);
        // MLX's own objects are created first: exit handlers run in reverse order, and ours must
        // find them alive.
        let _ = Device::new(Backend::Auto);
        at_exit(stop);
        works.work();
    };
    let thread = thread::Builder::new()
        .name("moxin-engine".into())
        .spawn(work);
    thread.map_err(|why| {
        Error::InvalidState(format!(
            "the engine's thread could not be started ({why}); try again"
        ))
    })?;
    log::debug!("the engine thread has started");
    Ok(queue)
}

/// Stops the library when the process exits: no further callback is called, and the engine drops
/// MLX's objects before they are destroyed. May be called twice.
pub fn stop(status: Option<i32>) {
    if process::is_forked() {
        return stop_in_child(status);
    }
    if ENGINE_THREAD.get() {
        return;
    }
    CALLS.end();
    if let Some(engine) = started() {
        engine.end();
    }
    CALLS.wait();
}

/// Ends a forked child at once if the engine was working at the fork: MLX's destructors, which
/// would run next, could find its data half changed. Does nothing otherwise.
fn stop_in_child(status: Option<i32>) {
    if let Some(status) = status
        && ENGINE.get().is_some_and(|engine| engine.is_working())
    {
        leave(status);
    }
}

thread_local! {
    static ENGINE_THREAD: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
mod tests {
    use super::{
        super::op::{Cancel, Stage},
        *,
    };

    #[test]
    fn a_panic_becomes_an_error_and_the_engine_lives() {
        let result: Result<()> = run(Op::default(), |_| panic!("on purpose"));
        assert!(matches!(result, Err(Error::Panic(text)) if text == "on purpose"));
        assert_eq!(run(Op::default(), |_| Ok(7)).unwrap(), 7);
        let result: Result<()> = turn(|| panic!("on purpose"));
        assert!(matches!(result, Err(Error::Panic(text)) if text == "on purpose"));
        assert_eq!(turn(|| Ok(7)).unwrap(), 7);
    }

    #[test]
    fn jobs_run_on_one_thread() {
        let id = || run(Op::default(), |_| Ok(thread::current().id()));
        let here = id().unwrap();
        let there = thread::spawn(move || id().unwrap()).join().unwrap();
        assert_eq!(here, there);
        assert_ne!(here, thread::current().id());
    }

    #[test]
    fn a_cancelled_operation_never_begins() {
        let cancel = Cancel::new();
        cancel.trigger();
        let op = Op {
            cancel: Some(cancel),
            ..Op::default()
        };
        assert!(matches!(
            run::<()>(op, |_| unreachable!()),
            Err(Error::Cancelled)
        ));
    }

    #[test]
    fn progress_is_reported_here_and_can_refuse() {
        let mut seen = Vec::new();
        let here = thread::current().id();
        let mut progress = |_: Stage, fraction: f32| {
            assert_eq!(thread::current().id(), here);
            seen.push(fraction);
            fraction < 0.5
        };
        let op = Op {
            progress: Some(&mut progress),
            ..Op::default()
        };
        let result: Result<()> = run(op, |reporter| {
            loop {
                reporter.report(Stage::Load, 0.5)?;
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        assert!(!seen.is_empty());
    }

    #[test]
    fn a_time_limit_ends_an_operation() {
        let op = Op {
            timeout: Some(Duration::from_millis(5)),
            ..Op::default()
        };
        let result: Result<()> = run(op, |reporter| {
            loop {
                reporter.report(Stage::Load, 0.0)?;
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(matches!(result, Err(Error::Timeout)));
    }

    /// The tests here share the engine; these two use queues of their own.
    fn queue() -> Arc<Queue> {
        let queue = Queue::new(&CALLS);
        let works = queue.clone();
        thread::spawn(move || works.work());
        queue
    }

    #[test]
    fn who_waits_in_line_too_long_goes_without_its_turn() {
        let queue = queue();
        let (let_go, wait) = std::sync::mpsc::channel::<()>();
        queue.post(move || wait.recv().unwrap_or_default());
        let timeout = Some(Duration::from_millis(5));
        let result: Result<()> = queue.run(
            Op {
                timeout,
                ..Op::default()
            },
            |_| unreachable!(),
        );
        assert!(matches!(result, Err(Error::Timeout)));
        let cancel = Cancel::new();
        let triggers = cancel.clone();
        thread::spawn(move || triggers.trigger());
        let result: Result<()> = queue.run(
            Op {
                cancel: Some(cancel),
                ..Op::default()
            },
            |_| unreachable!(),
        );
        assert!(matches!(result, Err(Error::Cancelled)));
        drop(let_go);
        assert_eq!(queue.run(Op::default(), |_| Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_suspended_queue_refuses_and_drains() {
        let queue = queue();
        let (started, has_started) = std::sync::mpsc::channel();
        let busy = thread::spawn({
            let queue = queue.clone();
            move || {
                queue.run::<()>(Op::default(), move |reporter| {
                    loop {
                        let _ = started.send(());
                        reporter.report(Stage::Load, 0.0)?;
                        thread::sleep(Duration::from_millis(1));
                    }
                })
            }
        });
        has_started.recv().unwrap();
        queue.suspend(Duration::from_secs(60)).unwrap();
        assert!(matches!(busy.join().unwrap(), Err(Error::Suspended)));
        assert!(matches!(
            queue.run::<()>(Op::default(), |_| unreachable!()),
            Err(Error::Suspended)
        ));
        assert_eq!(queue.turn(|| Ok(7)).unwrap(), 7);

        // The timeout is reported, and new work is refused all the same.
        queue.resume();
        let (let_go, wait) = std::sync::mpsc::channel::<()>();
        queue.post(move || wait.recv().unwrap_or_default());
        assert!(matches!(
            queue.suspend(Duration::from_millis(5)),
            Err(Error::Timeout)
        ));
        assert!(matches!(
            queue.run::<()>(Op::default(), |_| unreachable!()),
            Err(Error::Suspended)
        ));
        drop(let_go);
        queue.resume();
        assert_eq!(queue.run(Op::default(), |_| Ok(7)).unwrap(), 7);
    }
}
