//! The one thread that computes.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{LazyLock, Mutex, OnceLock, mpsc},
    thread,
};

use super::op::{Cancel, Control, Op, Reporter, Stage};
use crate::{
    Error, Result,
    device::{Backend, Device, at_exit},
};

type Job = Box<dyn FnOnce() + Send>;

/// What the engine sends to the thread that waits for an operation.
pub(super) enum Message<R> {
    Progress(Stage, f32),
    Done(Result<R>),
}

/// Runs `job` on the engine thread, in turn, and waits for its result. Progress is reported on the calling thread. A panic in the job becomes
/// [`Error::Panic`]. An operation that was cancelled before this returns is cancelled, also where its job was done by then.
pub(super) fn run<R: Send + 'static>(mut op: Op, job: impl FnOnce(&Reporter<R>) -> Result<R> + Send + 'static) -> Result<R> {
    let (sender, messages) = mpsc::channel();
    let refused = Cancel::new();
    let control = Control::new(&op, refused.clone());
    submit(Box::new(move || {
        let reporter = Reporter { control, sender };
        let result = match reporter.control.check() {
            Ok(()) => guarded(|| job(&reporter)),
            Err(error) => {
                discard(job);
                Err(error)
            }
        };
        // Where nobody waits any more, nobody misses it.
        let _ = reporter.sender.send(Message::Done(result));
    }))?;
    for message in messages {
        match message {
            Message::Done(Ok(unwanted)) if refused.is_triggered() || op.cancel.as_ref().is_some_and(Cancel::is_triggered) => {
                dispose(unwanted);
                return Err(Error::Cancelled);
            }
            Message::Done(result) => return result,
            Message::Progress(stage, fraction) => {
                if op.progress.as_mut().is_some_and(|progress| !progress(stage, fraction)) {
                    refused.trigger();
                }
            }
        }
    }
    Err(Error::Panic("the engine thread ended before its work was done".into()))
}

/// Drops something that holds MLX arrays on the engine thread, without waiting.
pub(super) fn dispose(thing: impl Send + 'static) {
    // Where the engine cannot be reached the closure, and with it the thing, is dropped here, which MLX permits for evaluated arrays.
    let _ = submit(Box::new(move || {
        let _ = guarded(|| {
            discard(thing);
            Ok(())
        });
    }));
}

/// Drops something that may hold MLX arrays, unless the process ends: then MLX's objects may be gone, and the system takes the memory back.
fn discard(thing: impl Send) {
    if EXITING.is_triggered() {
        mem::forget(thing);
    }
}

/// Calls `f` with operations going to a backend's device. On the engine thread only: devices belong to their thread.
pub(super) fn on_device<T>(backend: Backend, f: impl FnOnce(&Device) -> Result<T>) -> Result<T> {
    thread_local! {
        static DEVICES: RefCell<Vec<(Backend, Device)>> = const { RefCell::new(Vec::new()) };
    }
    let known = DEVICES.with_borrow(|devices| devices.iter().find(|(key, _)| *key == backend).map(|(_, device)| device.clone()));
    let device = match known {
        Some(device) => device,
        None => {
            let device = Device::new(backend)?;
            DEVICES.with_borrow_mut(|devices| devices.push((backend, device.clone())));
            device
        }
    };
    device.run(|| f(&device))
}

fn guarded<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(Error::Panic(panic_text(panic.as_ref()))))
}

/// The text of a caught panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".into())
}

fn submit(job: Job) -> Result<()> {
    static ENGINE: OnceLock<std::result::Result<Mutex<mpsc::Sender<Job>>, String>> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| start().map(Mutex::new).map_err(|error| error.to_string()));
    let sender = engine.as_ref().map_err(|why| Error::InvalidState(format!("the engine thread could not be started: {why}")))?;
    let sender = sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    sender.send(job).map_err(|_| Error::Panic("the engine thread has ended".into()))
}

/// Starts the engine thread; gives the queue of its jobs.
fn start() -> std::io::Result<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let work = move || {
        ENGINE_THREAD.set(true);
        // MLX's own objects first: what is registered last at exit runs first, and must find them alive.
        let _ = Device::new(Backend::Auto);
        at_exit(stop);
        jobs.into_iter().for_each(|job| job());
    };
    thread::Builder::new().name("moxin-engine".into()).spawn(work)?;
    Ok(sender)
}

/// When the process ends, MLX's objects are destroyed under the engine's feet. So it lets go of them before: a running job is asked to end, is
/// waited for, and those behind it are cancelled. Whoever waits for one gets an answer.
extern "C" fn stop() {
    if ENGINE_THREAD.get() {
        return;
    }
    EXITING.trigger();
    let (sender, stopped) = mpsc::channel();
    let halt = move || {
        let _ = sender.send(());
    };
    if submit(Box::new(halt)).is_ok() {
        let _ = stopped.recv();
    }
}

/// Triggered when the process is about to end.
pub(super) static EXITING: LazyLock<Cancel> = LazyLock::new(Cancel::new);

thread_local! {
    static ENGINE_THREAD: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_engine_lives() {
        let result: Result<()> = run(Op::default(), |_| panic!("on purpose"));
        assert!(matches!(result, Err(Error::Panic(text)) if text == "on purpose"));
        assert_eq!(run(Op::default(), |_| Ok(7)).unwrap(), 7);
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
        let op = Op { cancel: Some(cancel), ..Op::default() };
        assert!(matches!(run::<()>(op, |_| unreachable!()), Err(Error::Cancelled)));
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
        let op = Op { progress: Some(&mut progress), ..Op::default() };
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
        let op = Op { timeout: Some(Duration::from_millis(5)), ..Op::default() };
        let result: Result<()> = run(op, |reporter| {
            loop {
                reporter.report(Stage::Load, 0.0)?;
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(matches!(result, Err(Error::Timeout)));
    }
}
