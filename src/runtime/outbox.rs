//! A bounded queue of messages for the log's thread. Independent of what is done with them.

use std::{collections::VecDeque, mem};

use log::{Level, LevelFilter};

use super::sync::{Condvar, Mutex, MutexGuard};

/// Messages for a sink of type `S`, in order.
pub struct Outbox<S> {
    most: Room,
    line: Mutex<Line<S>>,
    came: Condvar,
}

/// What the log's thread does next.
pub enum Message<S> {
    /// Use another sink, or none.
    Sink(Option<S>),
    /// Pass a record to the sink.
    Record(Record),
}

/// One log message.
pub struct Record {
    pub level: Level,
    pub target: String,
    pub text: String,
}

/// A number of records and of bytes in their texts.
pub struct Room {
    pub records: usize,
    pub bytes: usize,
}

struct Line<S> {
    messages: VecDeque<Message<S>>,
    /// The level of the latest sink.
    level: LevelFilter,
    waiting: Room,
    /// The number of records dropped since the last one that found room.
    dropped: usize,
}

impl<S> Outbox<S> {
    /// Creates an outbox that accepts no records yet. Records that arrive while `most` or more wait
    /// are dropped.
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

    /// Sends records up to `level` to `sink` from now on; waiting records go to the previous one.
    /// Calls `also` with the level under the same lock.
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

    /// Adds a record, if the latest sink wants it and there is room.
    pub fn add(&self, record: Record) {
        let mut line = self.line();
        if record.level > line.level {
            return;
        }
        // After the first dropped record all are dropped until the queue is empty, so that one
        // notice reports many.
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
        // Nothing panics while the lock is held.
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

    /// Takes a record that reports the number of dropped messages, if there are any.
    fn notice(&mut self) -> Option<Record> {
        let dropped = mem::take(&mut self.dropped);
        let level = self.level.to_level()?.min(Level::Warn);
        let text = format!(
            "{dropped} messages were dropped: they came faster than the log callback handled them"
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
