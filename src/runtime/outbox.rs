//! Messages that wait for the log's thread, a bounded number of them. Knows nothing of what is done
//! with them.

use std::{collections::VecDeque, mem};

use log::{Level, LevelFilter};

use super::sync::{Condvar, Mutex, MutexGuard};

/// Messages for a sink of type `S`, in order.
pub struct Outbox<S> {
    most: Room,
    line: Mutex<Line<S>>,
    came: Condvar,
}

/// What the log's thread is to do next.
pub enum Message<S> {
    /// Use another sink, or none.
    Sink(Option<S>),
    /// Give a record to the sink.
    Record(Record),
}

/// One message of the library.
pub struct Record {
    pub level: Level,
    pub target: String,
    pub text: String,
}

/// Records, and bytes of their texts.
pub struct Room {
    pub records: usize,
    pub bytes: usize,
}

struct Line<S> {
    messages: VecDeque<Message<S>>,
    /// What the latest sink wants.
    level: LevelFilter,
    waiting: Room,
    /// Records that found no room since the last one that did.
    dropped: usize,
}

impl<S> Outbox<S> {
    /// One that wants no records yet. Those that come while `most` or more wait are dropped.
    pub const fn new(most: Room) -> Outbox<S> {
        let waiting = Room {
            records: 0,
            bytes: 0,
        };
        let line = Line {
            messages: VecDeque::new(),
            level: LevelFilter::Off,
            waiting,
            dropped: 0,
        };
        Outbox {
            most,
            line: Mutex::new(line),
            came: Condvar::new(),
        }
    }

    /// Has records up to `level` go to `sink` from now on; those that wait go to the earlier one.
    /// Calls `also` with the level, in the same step.
    pub fn set(&self, sink: Option<S>, level: LevelFilter, also: impl FnOnce(LevelFilter)) {
        let level = if sink.is_some() {
            level
        } else {
            LevelFilter::Off
        };
        let mut line = self.line();
        if let Some(notice) = line.notice() {
            line.push(notice);
        }
        line.messages.push_back(Message::Sink(sink));
        line.level = level;
        also(level);
        drop(line);
        self.came.notify_one();
    }

    /// Adds a record, where the latest sink wants it and there is room.
    pub fn add(&self, record: Record) {
        let mut line = self.line();
        if record.level > line.level {
            return;
        }
        // Once something was dropped, all is until there is nothing left: so one notice tells of
        // many.
        if line.dropped > 0
            || line.waiting.records >= self.most.records
            || line.waiting.bytes >= self.most.bytes
        {
            line.dropped += 1;
            return;
        }
        line.push(record);
        drop(line);
        self.came.notify_one();
    }

    /// Waits for the next message.
    pub fn next(&self) -> Message<S> {
        let mut line = self.line();
        loop {
            if let Some(message) = line.messages.pop_front() {
                if let Message::Record(record) = &message {
                    line.waiting.records -= 1;
                    line.waiting.bytes -= record.bytes();
                }
                return message;
            }
            if let Some(notice) = line.notice() {
                return Message::Record(notice);
            }
            line = self
                .came
                .wait(line)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn line(&self) -> MutexGuard<'_, Line<S>> {
        // Nothing panics while it is held.
        self.line
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<S> Line<S> {
    fn push(&mut self, record: Record) {
        self.waiting.records += 1;
        self.waiting.bytes += record.bytes();
        self.messages.push_back(Message::Record(record));
    }

    /// Takes a record that says how many were dropped, where any were.
    fn notice(&mut self) -> Option<Record> {
        let dropped = mem::take(&mut self.dropped);
        let level = self.level.to_level()?.min(Level::Warn);
        let text = format!(
            "{dropped} messages were dropped: they came faster than the log's function took them"
        );
        (dropped > 0).then(|| Record {
            level,
            target: "moxin_vlm::runtime::log".into(),
            text,
        })
    }
}

impl Record {
    fn bytes(&self) -> usize {
        self.target.len() + self.text.len()
    }
}
