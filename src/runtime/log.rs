//! The library's log messages, for programs that are not written in Rust. Rust programs install a
//! logger of their own for the [`log`] crate.

use std::{
    cell::Cell,
    mem,
    sync::{LazyLock, Mutex},
    thread,
};

use log::{LevelFilter, Log, Metadata};

use super::{
    callback,
    engine::{self, CALLS},
    lock,
    outbox::{Message, Outbox, Record, Room},
};
use crate::{Error, Result, device::at_exit, error::guarded, process};

/// A log callback: level, target (such as `moxin_vlm::runtime`) and text. Called on a thread of its
/// own, one message at a time; also dropped there, after its last message.
pub type LogSink = Box<dyn FnMut(log::Level, &str, &str) + Send>;

/// Passes messages to the thread that calls the sink, so that logging never waits for the program.
struct Forward;

/// The messages that wait for that thread.
static OUTBOX: Outbox<LogSink> = Outbox::new(Room {
    records: 1024,
    bytes: 1 << 20,
});

thread_local! {
    /// Whether this is the log's thread. Messages logged there, by a sink that calls the library,
    /// would keep the sink busy forever.
    static LOG_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Sets the log callback and level; `None` disables logging. Messages logged before go to the
/// previous sink, which is then dropped.
///
/// Messages logged on the sink's thread are dropped. So are messages that arrive faster than the
/// sink handles them: at most 1,024 messages or 1 MiB wait, and one message then reports how many
/// were dropped.
///
/// # Errors
/// [`Error::InvalidState`] if the program has installed another logger for the `log` crate, in a
/// forked child, or if the log's thread cannot be started. The previous sink then stays, and `sink`
/// is dropped before this returns.
pub fn set_log(sink: Option<LogSink>, level: LevelFilter) -> Result<()> {
    if let Err(error) = prepare() {
        callback::enter(|| drop(sink));
        return Err(error);
    }
    OUTBOX.set(sink, level, log::set_max_level);
    Ok(())
}

/// Installs the logger and starts its thread, if that was not done yet.
fn prepare() -> Result<()> {
    static INSTALLED: LazyLock<bool> = LazyLock::new(|| log::set_logger(&Forward).is_ok());
    static STARTED: Mutex<bool> = Mutex::new(false);
    process::enter()?;
    if CALLS.are_over() {
        return Err(Error::Cancelled);
    }
    if !*INSTALLED {
        return Err(Error::InvalidState(
            "the program has installed a logger of its own, which gets the messages".into(),
        ));
    }
    let mut started = lock(&STARTED);
    if !*started {
        let thread = thread::Builder::new()
            .name("moxin-log".into())
            .spawn(deliver);
        thread.map_err(|why| {
            Error::InvalidState(format!(
                "the log's thread could not be started ({why}); try again"
            ))
        })?;
        at_exit(engine::stop);
        *started = true;
    }
    Ok(())
}

/// Runs the log's thread.
fn deliver() {
    LOG_THREAD.set(true);
    let mut sink = None;
    // A sink may fork; in the child there is nothing left to do.
    while !process::is_forked() {
        let mut message = Some(OUTBOX.next());
        // A panic in the program's callback loses only this message.
        let told = CALLS.enter(|| {
            guarded(|| {
                tell(&mut sink, message.take());
                Ok(())
            })
        });
        if told.is_none() {
            // Objects that the sink uses may be gone.
            mem::forget(message);
            break;
        }
    }
    mem::forget(sink);
}

fn tell(sink: &mut Option<LogSink>, message: Option<Message<LogSink>>) {
    match message {
        Some(Message::Sink(new)) => *sink = new,
        Some(Message::Record(Record {
            level,
            target,
            text,
        })) => {
            if let Some(sink) = sink {
                sink(level, &target, &text);
            }
        }
        None => {}
    }
}

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level() && !LOG_THREAD.get()
    }

    fn log(&self, record: &log::Record) {
        // In a forked child the lock may be held by a thread that does not exist there.
        if self.enabled(record.metadata()) && !process::is_forked() {
            OUTBOX.add(Record {
                level: record.level(),
                target: record.target().into(),
                text: record.args().to_string(),
            });
        }
    }

    fn flush(&self) {}
}
