//! The thread pool of the kernels.
//!
//! The threads start with the first work that is worth dividing. After each job they spin for a
//! moment waiting for the next, and then sleep. The thread that submits work takes part in it.
#![allow(unsafe_code)]

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::cores::cores;

/// How long a thread spins before it sleeps: waking it takes about as long.
const SPIN_TIME: Duration = Duration::from_micros(50);

/// A thread pool.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Locked by the thread whose work is running.
    turn: Mutex<()>,
    /// The number of threads that share the work, including the calling one; 0: not known yet.
    threads: AtomicUsize,
}

struct Shared {
    state: Mutex<State>,
    /// Signals new work.
    came: Condvar,
    /// Signals that the last worker has left.
    left: Condvar,
    /// The number of jobs so far, to be read without the lock.
    jobs: AtomicUsize,
    /// The number of workers at the job.
    busy: AtomicUsize,
}

struct State {
    job: Option<Arc<Job>>,
    /// The existing and the wanted number of workers.
    workers: usize,
    wanted: usize,
}

struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    /// Runs tasks until there are none left.
    fn work(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.tasks {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.task)(i))) {
                self.next.store(self.tasks, Ordering::Relaxed);
                *lock(&self.panic) = Some(panic);
            }
        }
    }
}

impl Pool {
    pub fn new() -> Pool {
        let state = State {
            job: None,
            workers: 0,
            wanted: 0,
        };
        let (jobs, busy) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Shared {
            state: Mutex::new(state),
            came: Condvar::new(),
            left: Condvar::new(),
            jobs,
            busy,
        };
        Pool {
            shared: Arc::new(shared),
            turn: Mutex::new(()),
            threads: AtomicUsize::new(0),
        }
    }

    /// Returns the number of threads that share the work.
    pub fn threads(&self) -> usize {
        match self.threads.load(Ordering::Relaxed) {
            0 => {
                self.set_threads(0);
                self.threads()
            }
            threads => threads,
        }
    }

    /// Sets the number of threads for later work; 0 for one per core.
    pub fn set_threads(&self, threads: usize) {
        let threads = if threads == 0 { cores() } else { threads };
        self.threads.store(threads, Ordering::Relaxed);
    }

    /// Returns into how many tasks to divide work that reads so many bytes: somewhat more than
    /// threads, because other programs may use the cores too, but none so small that waking a
    /// thread would take longer.
    pub fn tasks(&self, bytes: usize) -> usize {
        const SMALLEST: usize = 128 << 10;
        (bytes / SMALLEST).clamp(1, 8 * self.threads())
    }

    /// Runs tasks as [`Pool::run`] does if it is worth it, otherwise on this thread alone.
    pub fn run_if(&self, worth: bool, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if worth {
            self.run(tasks, task)
        } else {
            (0..tasks).for_each(task)
        }
    }

    /// Calls `task` with each number below `tasks`, on several threads; tasks must not depend on
    /// each other. Returns when all are done. A panic in a task ends the work and continues in the
    /// caller.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let workers = self.threads().min(tasks).saturating_sub(1);
        // If the threads are busy, or a task of their current work calls this, this thread runs its
        // tasks alone.
        let turn = if workers > 0 {
            self.turn.try_lock().ok()
        } else {
            None
        };
        if turn.is_none() {
            return (0..tasks).for_each(task);
        }
        // SAFETY: the reference is only used by workers that count as busy and by this thread, and
        // this function does not return before no worker is busy and none can find the job any
        // more.
        let task = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task)
        };
        let job = Arc::new(Job {
            task,
            tasks,
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
        });
        self.begin(&job, self.threads() - 1, workers);
        job.work();
        self.end();
        drop(turn);
        if let Some(panic) = lock(&job.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Submits a job to the workers. Starts some if there are fewer than `needed`; those beyond
    /// `wanted` will end.
    fn begin(&self, job: &Arc<Job>, wanted: usize, needed: usize) {
        let mut state = lock(&self.shared.state);
        state.wanted = wanted;
        while state.workers < needed {
            let shared = self.shared.clone();
            let worker = std::thread::Builder::new()
                .name("moxin-cpu".into())
                .spawn(move || shared.work());
            // If no more threads can be started, the existing ones do the work.
            if worker.is_err() {
                break;
            }
            state.workers += 1;
        }
        state.job = Some(job.clone());
        self.shared.jobs.fetch_add(1, Ordering::Release);
        drop(state);
        self.shared.came.notify_all();
    }

    /// Removes the job and waits for the workers to leave it.
    fn end(&self) {
        lock(&self.shared.state).job = None;
        wait(|| self.shared.busy.load(Ordering::Acquire) == 0);
        let mut state = lock(&self.shared.state);
        while self.shared.busy.load(Ordering::Acquire) > 0 {
            state = self
                .shared
                .left
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl Shared {
    /// Runs a worker.
    fn work(&self) {
        let mut seen = 0;
        while let Some(job) = self.next(&mut seen) {
            job.work();
            drop(job);
            let _state = lock(&self.state);
            if self.busy.fetch_sub(1, Ordering::Release) == 1 {
                self.left.notify_all();
            }
        }
    }

    /// Waits for a job; `None` if there are too many workers.
    fn next(&self, seen: &mut usize) -> Option<Arc<Job>> {
        loop {
            wait(|| self.jobs.load(Ordering::Acquire) != *seen);
            let mut state = lock(&self.state);
            while self.jobs.load(Ordering::Acquire) == *seen {
                state = self
                    .came
                    .wait(state)
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            *seen = self.jobs.load(Ordering::Acquire);
            if state.workers > state.wanted {
                state.workers -= 1;
                return None;
            }
            if let Some(job) = &state.job {
                self.busy.fetch_add(1, Ordering::Relaxed);
                return Some(job.clone());
            }
        }
    }
}

/// Spins for a moment until `ready`.
fn wait(ready: impl Fn() -> bool) {
    let begin = Instant::now();
    while !ready() && begin.elapsed() < SPIN_TIME {
        for _ in 0..32 {
            std::hint::spin_loop();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        let pool = Pool::new();
        pool.set_threads(threads);
        pool
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 3, 8] {
            let pool = pool(threads);
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts
                        .iter()
                        .all(|count| count.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {tasks} tasks"
                );
            }
        }
    }

    /// Whichever thread panics, the caller gets the panic, and the pool keeps working.
    #[test]
    fn a_panic_reaches_the_caller() {
        let pool = pool(4);
        for bad in 0..20 {
            let heard = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, &|i| assert!(i != bad, "task {i}"))
            }));
            let message = heard.unwrap_err();
            assert_eq!(
                message.downcast_ref::<String>(),
                Some(&format!("task {bad}"))
            );
        }
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn work_within_work_and_from_two_threads_is_done() {
        let pool = pool(3);
        let sum = AtomicUsize::new(0);
        let add = |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..50).for_each(|_| pool.run(5, &|_| pool.run(5, &add))));
            }
        });
        assert_eq!(sum.into_inner(), 2 * 50 * 5 * 10);
    }

    #[test]
    fn the_number_of_threads_can_change() {
        let pool = pool(4);
        for threads in [4, 2, 8, 3] {
            pool.set_threads(threads);
            let begin = Instant::now();
            let workers = || lock(&pool.shared.state).workers;
            pool.run(64, &|_| ());
            while workers() + 1 != threads {
                assert!(
                    begin.elapsed() < Duration::from_secs(10),
                    "{} workers for {threads} threads",
                    workers()
                );
                pool.run(64, &|_| ());
            }
        }
    }

    #[test]
    fn there_are_no_more_threads_than_tasks() {
        let pool = pool(64);
        let workers = || lock(&pool.shared.state).workers;
        pool.run(3, &|_| ());
        assert_eq!(workers(), 2);
        pool.run(5, &|_| ());
        assert_eq!(workers(), 4);
        pool.run(2, &|_| ());
        assert_eq!(workers(), 4);
    }
}
