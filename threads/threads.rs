//! Tests the engine's queue, a session's slot and streams, and the log's messages under thread
//! schedules that rarely occur: shuttle (<https://docs.rs/shuttle>) runs each test again and again
//! with different ones. The files are compiled here with shuttle's threads and locks instead of the
//! standard library's. ThreadSanitizer would need a standard library of its own; loom has no
//! channels.
#![allow(dead_code)] // items that the sessions use and these tests do not

#[path = "../src/runtime/callback.rs"]
mod callback;
#[path = "../src/runtime/op.rs"]
mod op;
#[path = "../src/runtime/outbox.rs"]
mod outbox;
#[path = "../src/process.rs"]
mod process;
#[path = "../src/runtime/queue.rs"]
mod queue;
#[path = "../src/runtime/slot.rs"]
mod slot;
#[path = "../src/runtime/stream.rs"]
mod stream;

/// Shuttle's threads and locks. Time does not pass there; but a thread that waits for a message may
/// time out at any moment.
mod sync {
    pub use shuttle::{
        sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
        thread_local,
    };

    pub mod thread {
        pub use shuttle::thread::*;

        /// Lets other threads run, like a sleeping thread does.
        pub fn sleep(_: std::time::Duration) {
            yield_now();
        }
    }

    pub mod mpsc {
        use std::time::Duration;

        use shuttle::rand::{Rng, thread_rng};
        pub use shuttle::sync::mpsc::{RecvError, RecvTimeoutError, Sender};

        pub struct Receiver<T>(shuttle::sync::mpsc::Receiver<T>);

        pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
            let (sender, receiver) = shuttle::sync::mpsc::channel();
            (sender, Receiver(receiver))
        }

        impl<T> Receiver<T> {
            pub fn recv(&self) -> Result<T, RecvError> {
                self.0.recv()
            }

            pub fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
                if thread_rng().gen_ratio(1, 3) {
                    super::thread::yield_now();
                    return Err(RecvTimeoutError::Timeout);
                }
                self.0.recv().map_err(|_| RecvTimeoutError::Disconnected)
            }
        }
    }
}

/// The same as in the library.
mod error {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use moxin_vlm::{Error, Result};

    pub fn guarded<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
        catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(Error::Panic("a panic".into())))
    }
}

use std::time::Duration;

use callback::Calls;
use log::{Level, LevelFilter};
use moxin_vlm::{Error, Result};
use op::{Cancel, Op, Stage};
use outbox::{Message, Outbox, Record, Room};
use queue::Queue;
use slot::Slot;
use stream::{Next, Streams};
use sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

/// The number of schedules that each test tries in each of two ways.
const ORDERS: usize = 10_000;

/// At random, and with few context switches at the worst moments
/// (<https://www.microsoft.com/en-us/research/publication/a-randomized-scheduler-with-probabilistic-guarantees-of-finding-bugs/>).
fn in_any_order(test: fn()) {
    shuttle::check_random(test, ORDERS);
    shuttle::check_pct(test, ORDERS, 3);
}

/// Returns calls that have not ended, for one schedule.
fn calls() -> &'static Calls {
    Box::leak(Box::new(Calls::new()))
}

/// A queue with a thread that works for it.
struct Engine {
    queue: Arc<Queue>,
    worker: thread::JoinHandle<()>,
    over: Arc<AtomicBool>,
}

impl Engine {
    fn start() -> Engine {
        let (queue, over) = (Queue::new(calls()), Arc::new(AtomicBool::new(false)));
        let (works, is_over) = (queue.clone(), over.clone());
        let worker = thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                works.work_once();
            }
        });
        Engine {
            queue,
            worker,
            over,
        }
    }

    /// Runs the remaining jobs, and ends the thread.
    fn finish(self) {
        let _ = self.queue.turn(|| Ok(()));
        self.over.store(true, Ordering::SeqCst);
        self.queue.post(|| ());
        self.worker.join().unwrap();
    }
}

/// Counts itself until it is dropped.
struct Token(Arc<AtomicUsize>);

impl Token {
    fn new(alive: &Arc<AtomicUsize>) -> Token {
        alive.fetch_add(1, Ordering::SeqCst);
        Token(alive.clone())
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Every operation runs once or not at all, and its caller knows which; its captured values are
/// dropped.
#[test]
fn an_operation_completes_or_is_cancelled() {
    in_any_order(|| {
        let engine = Engine::start();
        let (alive, cancel) = (Arc::new(AtomicUsize::new(0)), Cancel::new());
        let callers: Vec<_> = (0..2)
            .map(|i| {
                let (queue, cancel, token) =
                    (engine.queue.clone(), cancel.clone(), Token::new(&alive));
                thread::spawn(move || {
                    let done = Arc::new(AtomicUsize::new(0));
                    let counts = done.clone();
                    let op = Op {
                        cancel: (i == 0).then_some(cancel),
                        ..Op::default()
                    };
                    let result = queue.run(op, move |reporter| {
                        reporter.report(Stage::Load, 0.5)?;
                        counts.fetch_add(1, Ordering::SeqCst);
                        Ok(token)
                    });
                    match result {
                        Ok(_) => assert_eq!(done.load(Ordering::SeqCst), 1),
                        Err(Error::Cancelled) => assert_eq!(i, 0, "nobody cancelled this one"),
                        Err(error) => panic!("{error}"),
                    }
                })
            })
            .collect();
        cancel.trigger();
        callers
            .into_iter()
            .for_each(|caller| caller.join().unwrap());
        engine.finish();
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    });
}

/// After `suspend` has returned nothing computes until `resume`.
#[test]
fn nothing_computes_while_suspended() {
    in_any_order(|| {
        let engine = Engine::start();
        let computing = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let (queue, computing, done) = (
                    engine.queue.clone(),
                    computing.clone(),
                    Arc::new(AtomicUsize::new(0)),
                );
                thread::spawn(move || {
                    let counts = done.clone();
                    let result = queue.run(Op::default(), move |_| {
                        computing.store(true, Ordering::SeqCst);
                        thread::yield_now();
                        counts.fetch_add(1, Ordering::SeqCst);
                        computing.store(false, Ordering::SeqCst);
                        Ok(())
                    });
                    assert!(
                        matches!(result, Ok(()) | Err(Error::Suspended)),
                        "{result:?}"
                    );
                    (result.is_ok(), done)
                })
            })
            .collect();
        engine.queue.suspend(Duration::from_secs(1)).unwrap();
        for _ in 0..3 {
            assert!(!computing.load(Ordering::SeqCst));
            thread::yield_now();
        }
        assert_eq!(engine.queue.turn(|| Ok(7)).unwrap(), 7);
        engine.queue.resume();
        let told: Vec<_> = callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect();
        assert_eq!(engine.queue.run(Op::default(), |_| Ok(7)).unwrap(), 7);
        engine.finish();
        // An operation that failed as suspended may be repeated: it does not run in the meantime.
        told.iter()
            .for_each(|(ok, done)| assert_eq!(done.load(Ordering::SeqCst), usize::from(*ok)));
    });
}

/// When the process exits, every waiting thread gets an answer, and nothing is computed or dropped
/// afterwards.
#[test]
fn process_exit_leaves_no_thread_waiting() {
    in_any_order(|| {
        let engine = Engine::start();
        let (alive, ended) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let caller = {
            let (queue, token, ended) = (engine.queue.clone(), Token::new(&alive), ended.clone());
            thread::spawn(move || {
                let result = queue.run(Op::default(), move |_| {
                    assert!(!ended.load(Ordering::SeqCst));
                    drop(token);
                    Ok(())
                });
                assert!(
                    matches!(result, Ok(()) | Err(Error::Cancelled)),
                    "{result:?}"
                );
            })
        };
        let drops = {
            let (queue, token) = (engine.queue.clone(), Token::new(&alive));
            thread::spawn(move || queue.dispose(token))
        };
        engine.queue.end();
        ended.store(true, Ordering::SeqCst);
        let left = alive.load(Ordering::SeqCst);
        caller.join().unwrap();
        drops.join().unwrap();
        engine.finish();
        assert_eq!(alive.load(Ordering::SeqCst), left);
    });
}

/// A session has one operation at a time; another gets an error, and the session is free when the
/// first is done.
#[test]
fn a_slot_has_one_user() {
    in_any_order(|| {
        let slot = Slot::new(0);
        let users: Vec<_> = (0..3)
            .map(|_| {
                let slot = slot.clone();
                thread::spawn(move || match slot.claim() {
                    Ok(claim) => {
                        let before = *claim.slot().lock();
                        thread::yield_now();
                        *claim.slot().lock() = before + 1;
                        1
                    }
                    Err(Error::Busy) => 0,
                    Err(error) => panic!("{error}"),
                })
            })
            .collect();
        let served: i32 = users.into_iter().map(|user| user.join().unwrap()).sum();
        let claim = slot.claim().unwrap();
        assert_eq!(*claim.slot().lock(), served);
        assert!(served >= 1);
    });
}

/// What a stream's callback has received.
#[derive(Default)]
struct Seen {
    events: AtomicUsize,
    last: AtomicUsize,
    dropped: AtomicBool,
}

/// Starts a stream of three events and a last one, which an atomic flag cancels, like a session's.
fn start(
    streams: &Arc<Streams>,
    calls: &'static Calls,
    slot: &Arc<Slot<u32>>,
    cancel: &Arc<AtomicBool>,
    in_callback: impl Fn() + Send + 'static,
) -> Result<Arc<Seen>> {
    struct Drops(Arc<Seen>);
    impl Drop for Drops {
        fn drop(&mut self) {
            assert_eq!(
                self.0.last.load(Ordering::SeqCst),
                1,
                "the last event comes before the callback is dropped"
            );
            assert!(!self.0.dropped.swap(true, Ordering::SeqCst));
        }
    }
    let claim = slot.claim()?;
    let held = Arc::new(Mutex::new(Some(claim)));
    let (seen, cancelled, refuses, releases, free) = (
        Arc::new(Seen::default()),
        cancel.clone(),
        cancel.clone(),
        held.clone(),
        slot.clone(),
    );
    let mut steps = 0;
    let next = move || {
        let held = held.lock().unwrap();
        *held.as_ref().unwrap().slot().lock() += 1;
        steps += 1;
        if steps > 3 || cancelled.load(Ordering::SeqCst) {
            Next::Last(true)
        } else {
            Next::Event(false)
        }
    };
    let tells = Drops(seen.clone());
    let on_event = move |is_last: bool| {
        assert_eq!(
            tells.0.last.load(Ordering::SeqCst),
            0,
            "nothing follows the last event"
        );
        tells.0.events.fetch_add(1, Ordering::SeqCst);
        // In the last event, and not before, the session is free.
        assert_eq!(free.claim().is_ok(), is_last);
        in_callback();
        tells.0.last.fetch_add(is_last.into(), Ordering::SeqCst);
        true
    };
    streams.spawn(
        calls,
        next,
        on_event,
        move || refuses.store(true, Ordering::SeqCst),
        move || drop(releases.lock().unwrap().take()),
    )?;
    Ok(seen)
}

#[test]
fn a_stream_ends_once_whoever_cancels_or_frees_it() {
    in_any_order(|| {
        let (streams, calls) = (Arc::new(Streams::default()), calls());
        let (slot, cancel) = (Slot::new(0), Arc::new(AtomicBool::new(false)));
        let seen = start(&streams, calls, &slot, &cancel, || ()).unwrap();
        let cancels = {
            let cancel = cancel.clone();
            thread::spawn(move || cancel.store(true, Ordering::SeqCst))
        };
        // Like freeing a session: when this returns everything is over.
        cancel.store(true, Ordering::SeqCst);
        streams.wait(calls);
        assert_eq!(seen.last.load(Ordering::SeqCst), 1);
        assert!(seen.dropped.load(Ordering::SeqCst));
        assert!(seen.events.load(Ordering::SeqCst) <= 4);
        assert!(slot.claim().is_ok());
        cancels.join().unwrap();
    });
}

#[test]
fn a_stream_that_is_freed_in_its_callback_does_not_wait_for_itself() {
    in_any_order(|| {
        let (streams, calls) = (Arc::new(Streams::default()), calls());
        let (slot, cancel) = (Slot::new(0), Arc::new(AtomicBool::new(false)));
        let (inside, cancels) = (streams.clone(), cancel.clone());
        let free = move || {
            cancels.store(true, Ordering::SeqCst);
            inside.wait(calls);
        };
        let seen = start(&streams, calls, &slot, &cancel, free).unwrap();
        streams.wait(calls);
        assert!(seen.dropped.load(Ordering::SeqCst));
        assert!(seen.events.load(Ordering::SeqCst) <= 2);
    });
}

/// When the process exits, threads that wait for a stream continue, and no callback runs or is
/// dropped after the exit handler.
#[test]
fn a_stream_stops_at_process_exit() {
    in_any_order(|| {
        let (streams, calls) = (Arc::new(Streams::default()), calls());
        let (slot, cancel) = (Slot::new(0), Arc::new(AtomicBool::new(false)));
        let (over, late) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (is_over, is_late) = (over.clone(), late.clone());
        let in_callback = move || {
            thread::yield_now();
            is_late.fetch_or(is_over.load(Ordering::SeqCst), Ordering::SeqCst);
        };
        let seen = start(&streams, calls, &slot, &cancel, in_callback).unwrap();
        let frees = {
            let streams = streams.clone();
            thread::spawn(move || streams.wait(calls))
        };
        // Like the exit handler.
        calls.end();
        calls.wait();
        over.store(true, Ordering::SeqCst);
        let dropped = seen.dropped.load(Ordering::SeqCst);
        streams.wait(calls);
        frees.join().unwrap();
        thread::yield_now();
        assert!(!late.load(Ordering::SeqCst));
        assert_eq!(seen.dropped.load(Ordering::SeqCst), dropped);
    });
}

/// A sink and its level are set together: a sink gets no record that it did not ask for, no record
/// that it asked for is lost, and the filter is the latest sink's.
#[test]
fn a_sink_gets_the_records_it_asked_for() {
    const LEVELS: [LevelFilter; 2] = [LevelFilter::Error, LevelFilter::Debug];
    in_any_order(|| {
        let (outbox, filter) = (
            Arc::new(Outbox::<LevelFilter>::new(Room {
                records: 8,
                bytes: 100,
            })),
            Arc::new(Mutex::new(LevelFilter::Off)),
        );
        let mut threads: Vec<_> = LEVELS
            .map(|level| {
                let (outbox, filter) = (outbox.clone(), filter.clone());
                thread::spawn(move || {
                    outbox.set(Some(level), level, |level| *filter.lock().unwrap() = level)
                })
            })
            .into();
        let adds = outbox.clone();
        threads.push(thread::spawn(move || {
            for level in [Level::Debug, Level::Error] {
                adds.add(Record {
                    level,
                    target: String::new(),
                    text: String::new(),
                });
            }
        }));
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        outbox.add(Record {
            level: Level::Error,
            target: "last".into(),
            text: String::new(),
        });
        let mut sink = None;
        loop {
            match outbox.next() {
                Message::Sink(new) => sink = new,
                Message::Record(record) => {
                    let asked = sink.expect("no record without a sink");
                    assert!(record.level <= asked);
                    if record.target == "last" {
                        assert_eq!(*filter.lock().unwrap(), asked);
                        return;
                    }
                }
            }
        }
    });
}

/// However fast records arrive, each is delivered or counted as dropped, and the limit of waiting
/// ones holds.
#[test]
fn dropped_records_are_counted() {
    in_any_order(|| {
        const EACH: usize = 3;
        let outbox = Arc::new(Outbox::<()>::new(Room {
            records: 8,
            bytes: 3,
        }));
        outbox.set(Some(()), LevelFilter::Info, |_| ());
        let record = || Record {
            level: Level::Info,
            target: String::new(),
            text: "xx".into(),
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let outbox = outbox.clone();
                thread::spawn(move || (0..EACH).for_each(|_| outbox.add(record())))
            })
            .collect();
        let mut count = 0;
        while count < 2 * EACH {
            if let Message::Record(record) = outbox.next() {
                let dropped = record
                    .text
                    .split(' ')
                    .next()
                    .and_then(|number| number.parse::<usize>().ok());
                count += dropped.unwrap_or(1);
            }
        }
        assert_eq!(count, 2 * EACH);
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
}
