//! What the library has to say while it works, for a program that is not written in Rust. One that is uses a logger of its own, for the
//! [`log`] crate.

use std::sync::{LazyLock, Mutex, mpsc};

use log::{LevelFilter, Log, Metadata, Record};

use super::{callback, engine, sync::thread};
use crate::{Error, Result, panic::guarded};

/// Where messages go: level, target (such as `moxin_vlm::runtime`), text. Called on a thread of its own, one message after the other; dropped
/// there too, after its last.
pub type LogSink = Box<dyn FnMut(log::Level, &str, &str) + Send>;

enum Message {
    Sink(Option<LogSink>),
    Record(log::Level, String, String),
}

/// Passes messages to the thread that calls the sink: who logs never waits for the program.
struct Forward;

/// The way to that thread, once there is one.
static THREAD: LazyLock<Result<Mutex<mpsc::Sender<Message>>, String>> = LazyLock::new(|| {
    let (sender, messages) = mpsc::channel();
    let started = thread::Builder::new().name("moxin-log".into()).spawn(move || deliver(messages));
    started.map(|_| Mutex::new(sender)).map_err(|error| error.to_string())
});

/// Has messages up to a level go to `sink` from now on, or nowhere. What was logged before goes to the earlier sink, which is then dropped.
///
/// # Errors
/// [`Error::InvalidState`] where the program has installed another logger for the `log` crate.
pub fn set_log(sink: Option<LogSink>, level: LevelFilter) -> Result<()> {
    static INSTALLED: LazyLock<bool> = LazyLock::new(|| log::set_logger(&Forward).is_ok());
    if !*INSTALLED {
        return Err(Error::InvalidState("the program has installed a logger of its own, which gets the messages".into()));
    }
    let level = if sink.is_some() { level } else { LevelFilter::Off };
    send(Message::Sink(sink))?;
    log::set_max_level(level);
    Ok(())
}

fn send(message: Message) -> Result<()> {
    let sender = THREAD.as_ref().map_err(|why| Error::InvalidState(format!("the log's thread could not be started: {why}")))?;
    let sender = sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    sender.send(message).map_err(|_| Error::Panic("the log's thread has ended".into()))
}

fn deliver(messages: mpsc::Receiver<Message>) {
    let mut sink = None;
    for message in messages {
        // Where the process ends the program's function is not to be called any more: what it would use may be gone.
        while engine::is_ending() {
            thread::park();
        }
        // A panic in the program's function costs its message only.
        let _ = guarded(|| {
            callback::enter(|| match message {
                Message::Sink(new) => sink = new,
                Message::Record(level, target, text) => {
                    if let Some(sink) = &mut sink {
                        sink(level, &target, &text);
                    }
                }
            });
            Ok(())
        });
    }
}

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            // A message that cannot be delivered has nowhere to be complained of.
            let _ = send(Message::Record(record.level(), record.target().into(), record.args().to_string()));
        }
    }

    fn flush(&self) {}
}
