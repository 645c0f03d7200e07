//! Jobs for one thread, done in order of arrival. Independent of MLX.

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use super::{
    callback::Calls,
    op::{Control, Op, Stage},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};
use crate::{Error, Result, error::guarded, process};

/// How often a waiting thread checks whether it should stop waiting.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);

type Job = Box<dyn FnOnce() + Send>;

/// What a job sends to the thread that waits for it.
enum Message<R> {
    Progress(Stage, f32),
    Done(Result<R>),
}

/// Jobs that wait for one thread.
pub struct Queue {
    calls: &'static Calls,
    line: Mutex<VecDeque<Job>>,
    changed: Condvar,
    /// Whether a job is running. Changed under the lock, but also read without it.
    working: AtomicBool,
    suspended: AtomicBool,
    ending: AtomicBool,
    /// Set by the last job that may use MLX's objects.
    ended: AtomicBool,
}

/// Connects a job with the thread that waits for it.
pub struct Reporter<R> {
    queue: Arc<Queue>,
    control: Control,
    sender: mpsc::Sender<Message<R>>,
}

impl<R> Reporter<R> {
    /// Reports progress; fails if the operation must stop.
    pub fn report(&self, stage: Stage, fraction: f32) -> Result<()> {
        // If nobody waits any more, nobody needs the result.
        let _ = self.sender.send(Message::Progress(stage, fraction));
        self.check()
    }

    /// Fails if the operation must stop.
    pub fn check(&self) -> Result<()> {
        self.queue.check(&self.control)
    }
}

impl Queue {
    /// Creates an empty queue, which reports progress until `calls` are ended.
    pub fn new(calls: &'static Calls) -> Arc<Queue> {
        let (line, changed) = (Mutex::default(), Condvar::default());
        let [working, suspended, ending, ended] = [(); 4].map(|()| AtomicBool::new(false));
        Arc::new(Queue {
            calls,
            line,
            changed,
            working,
            suspended,
            ending,
            ended,
        })
    }

    /// Runs jobs on the calling thread, forever.
    pub fn work(&self) {
        loop {
            self.work_once();
        }
    }

    /// Waits for a job and runs it.
    pub fn work_once(&self) {
        let job = self.next();
        job();
        let line = self.line();
        self.working.store(false, Ordering::SeqCst);
        drop(line);
        self.changed.notify_all();
    }

    fn next(&self) -> Job {
        let mut line = self.line();
        loop {
            if let Some(job) = line.pop_front() {
                self.working.store(true, Ordering::SeqCst);
                return job;
            }
            line = self
                .changed
                .wait(line)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn push(&self, job: impl FnOnce() + Send + 'static) {
        self.line().push_back(Box::new(job));
        self.changed.notify_all();
    }

    /// Runs `job` when its turn comes, without waiting; not if the process exits. A panic in it is
    /// ignored.
    pub fn post(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let queue = self.clone();
        self.push(move || match queue.is_ending() {
            true => queue.discard(job),
            false => drop(guarded(|| {
                job();
                Ok(())
            })),
        });
    }

    /// Runs `job` when its turn comes and waits for its result. Progress is reported on the calling
    /// thread. A panic in the job becomes [`Error::Panic`]. An operation that is cancelled before
    /// this returns counts as cancelled, even if its job is complete. An operation whose turn has
    /// not come when it is cancelled or its time is over returns without running.
    pub fn run<R: Send + 'static>(
        self: &Arc<Self>,
        op: Op,
        job: impl FnOnce(&Reporter<R>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run_job(op, job, false)
    }

    /// Does the same as [`Queue::run`] for a job with side effects: cancelling after completion has
    /// no effect.
    pub fn run_to_completion<R: Send + 'static>(
        self: &Arc<Self>,
        op: Op,
        job: impl FnOnce(&Reporter<R>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run_job(op, job, true)
    }

    fn run_job<R: Send + 'static>(
        self: &Arc<Self>,
        mut op: Op,
        job: impl FnOnce(&Reporter<R>) -> Result<R> + Send + 'static,
        ignore_late_cancel: bool,
    ) -> Result<R> {
        let control = Control::new(op.cancel.clone(), op.timeout);
        if let Err(error) = self.check(&control) {
            // Not on the queue's own thread, because MLX may no longer exist there.
            if self.is_ending() {
                mem::forget(job);
            }
            return Err(error);
        }
        let (sender, messages) = mpsc::channel();
        let begun = Arc::new(AtomicBool::new(false));
        let (reporter, begins) = (
            Reporter {
                queue: self.clone(),
                control: control.clone(),
                sender,
            },
            begun.clone(),
        );
        self.push(move || {
            if begins.swap(true, Ordering::AcqRel) {
                return reporter.queue.discard(job);
            }
            let result = match reporter.queue.check(&reporter.control) {
                Ok(()) => guarded(|| job(&reporter)),
                Err(error) => {
                    reporter.queue.discard(job);
                    Err(error)
                }
            };
            let _ = reporter.sender.send(Message::Done(result));
        });
        loop {
            match messages.recv_timeout(POLL_INTERVAL) {
                Ok(Message::Done(Ok(unwanted)))
                    if !ignore_late_cancel && control.is_cancelled() =>
                {
                    self.dispose(unwanted);
                    return Err(Error::Cancelled);
                }
                Ok(Message::Done(result)) => return result,
                Ok(Message::Progress(stage, fraction)) => {
                    if op.progress.as_mut().is_some_and(|progress| {
                        self.calls.enter(|| progress(stage, fraction)) == Some(false)
                    }) {
                        control.refused.trigger();
                    }
                    // The progress callback may have forked. In the child nobody answers, and the
                    // channel may contain half a message.
                    if let Err(error) = process::check() {
                        mem::forget(messages);
                        return Err(error);
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(error) = self.check(&control)
                        && !begun.swap(true, Ordering::AcqRel)
                    {
                        return Err(error);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::Panic(
                        "the engine thread ended before its work was done".into(),
                    ));
                }
            }
        }
    }

    /// Runs `job` when its turn comes and waits for it, even while the queue is suspended: for jobs
    /// that compute nothing.
    pub fn turn<R: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let (sender, result) = mpsc::channel();
        let queue = self.clone();
        self.push(move || {
            let done = match queue.is_ending() {
                true => {
                    queue.discard(job);
                    Err(Error::Cancelled)
                }
                false => guarded(job),
            };
            let _ = sender.send(done);
        });
        result.recv().unwrap_or_else(|_| {
            Err(Error::Panic(
                "the engine thread ended before its work was done".into(),
            ))
        })
    }

    /// Drops a value on the queue's thread, without waiting.
    pub fn dispose(self: &Arc<Self>, thing: impl Send + 'static) {
        self.post(move || drop(thing));
    }

    /// Drops a value that may contain MLX arrays on the queue's thread. After [`end`](Self::end) it
    /// is leaked instead: MLX's objects may be gone, and the system reclaims the memory.
    fn discard(&self, thing: impl Send) {
        if self.ended.load(Ordering::SeqCst) {
            mem::forget(thing);
        }
    }

    /// Fails if an operation must stop.
    pub fn check(&self, control: &Control) -> Result<()> {
        if self.is_ending() {
            return Err(Error::Cancelled);
        }
        control.check()?;
        if self.suspended.load(Ordering::SeqCst) {
            Err(Error::Suspended)
        } else {
            Ok(())
        }
    }

    /// Refuses operations from now on, and waits at most `drain` for running ones, which stop at
    /// the next check.
    pub fn suspend(&self, drain: Duration) -> Result<()> {
        self.suspended.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + drain.min(Duration::from_secs(u32::MAX.into()));
        let mut line = self.line();
        while self.is_working() || !line.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout);
            }
            line = self
                .changed
                .wait_timeout(line, left)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0;
        }
        Ok(())
    }

    /// Accepts operations again.
    pub fn resume(&self) {
        self.suspended.store(false, Ordering::SeqCst);
        drop(self.line());
        self.changed.notify_all();
    }

    /// Waits until the queue is resumed, the process exits, or `enough`, which is polled, returns
    /// true.
    pub fn wait_for_resume(&self, enough: impl Fn() -> bool) {
        let mut line = self.line();
        while self.suspended.load(Ordering::SeqCst) && !self.is_ending() && !enough() {
            line = self
                .changed
                .wait_timeout(line, POLL_INTERVAL)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0;
        }
    }

    /// Prepares for process exit: asks the running job to stop and waits for it; cancels the jobs
    /// behind it. Every waiting thread gets an answer.
    pub fn end(self: &Arc<Self>) {
        self.ending.store(true, Ordering::SeqCst);
        let (sender, ended) = mpsc::channel();
        let queue = self.clone();
        self.push(move || {
            queue.ended.store(true, Ordering::SeqCst);
            let _ = sender.send(());
        });
        let _ = ended.recv();
    }

    /// Returns whether a job is running. Takes no lock.
    pub fn is_working(&self) -> bool {
        self.working.load(Ordering::SeqCst)
    }

    /// Returns whether the process is about to exit.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<Job>> {
        // Nothing panics while the lock is held.
        self.line
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
