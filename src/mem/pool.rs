//! A fixed set of workers that live as long as the session. `run` hands out numbered tasks and returns when all are
//! done; nothing is allocated, no queue exists: a task is a number taken from a counter. Where neighbouring tasks read
//! neighbouring weights, each thread has a run of them and its counter; when it is through it takes from the others'.
//!
//! A job is open while tasks are left. Workers join it when they get to it and the caller waits only for those that
//! did: on a busy machine a worker that has lost its core is not waited for, its share is taken by the others. (With a
//! barrier that counts every thread, one such worker stalls each of the two hundred operations of a token.)
//!
//! Workers spin for a short while between jobs (the gap between two operations of a token is microseconds) and then
//! park, so that an idle session costs nothing.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// Stack of each worker. Kernels keep small arrays on it; `touch_stack` makes it resident at start.
pub const STACK_BYTES: usize = 256 << 10;
/// How much of a stack is made resident before the first token.
const TOUCHED_BYTES: usize = 96 << 10;

/// Rounds of spinning before a worker parks, and after which a waiting caller yields its core.
const SPINS_BEFORE_PARK: u32 = 20_000;
const SPINS_BEFORE_YIELD: u32 = 2_000;

type Job = dyn Fn(usize, usize) + Sync;

#[repr(align(128))]
struct Line<T>(T);

/// `state` of the pool: number of the job in the high half, then whether it is open, then how many workers are in it.
const EPOCH: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;
const ACTIVE: u64 = OPEN - 1;

struct Shared {
    state: Line<AtomicU64>,
    /// The next task of each run, of which there are as many as threads at most.
    next_task: Vec<Line<AtomicUsize>>,
    job: UnsafeCell<(*const Job, Tasks)>,
    parked: Vec<Line<AtomicBool>>,
    /// Workers that have started; only `Pool::new` waits for them.
    started: AtomicUsize,
    stop: AtomicBool,
    panicked: AtomicBool,
}

/// Tasks `0..n` in runs of neighbours, about as long as each other.
#[derive(Clone, Copy)]
struct Tasks {
    n: usize,
    n_runs: usize,
}

impl Tasks {
    /// Where a run begins.
    fn first(&self, run: usize) -> usize {
        run * self.n / self.n_runs
    }
}

// SAFETY: `job` is written only by the owner while the job is closed and no worker is in it, and read by workers only
// after they joined, which orders the read after the owner's release of `state`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer inside is only followed by workers that have joined an open job, see `run`.
unsafe impl Send for Shared {}

pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(JoinHandle<()>, Thread)>,
}

impl Pool {
    /// `n_threads` counts the caller: 1 starts no worker at all.
    pub fn new(n_threads: usize) -> std::io::Result<Self> {
        assert!(n_threads >= 1, "a pool has at least the caller's thread");
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            next_task: (0..n_threads).map(|_| Line(AtomicUsize::new(0))).collect(),
            job: UnsafeCell::new((&(|_, _| ()) as *const Job, Tasks { n: 0, n_runs: 1 })),
            parked: (1..n_threads).map(|_| Line(AtomicBool::new(false))).collect(),
            started: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let mut workers = Vec::with_capacity(n_threads - 1);
        for index in 1..n_threads {
            let shared = shared.clone();
            let handle = std::thread::Builder::new()
                .name(format!("lowkey-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&shared, index))?;
            let thread = handle.thread().clone();
            workers.push((handle, thread));
        }
        touch_stack();
        // Their stacks are resident then.
        while shared.started.load(Ordering::Acquire) < n_threads - 1 {
            std::thread::yield_now();
        }
        Ok(Pool { shared, workers })
    }

    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(thread, task)` once for each task in `0..n_tasks`, on any thread, and returns when all are done. Tasks are begun
    /// in order.
    pub fn run(&mut self, n_tasks: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        self.run_all(Tasks { n: n_tasks, n_runs: 1 }, job);
    }

    fn run_all(&mut self, tasks: Tasks, job: &(dyn Fn(usize, usize) + Sync)) {
        if self.workers.is_empty() || tasks.n <= 1 {
            for task in 0..tasks.n {
                job(0, task);
            }
            return;
        }
        let shared = &*self.shared;
        // SAFETY: the last job was closed and left (`close`), `&mut self` excludes a second caller, so nobody reads the
        // cell. The lifetime is erased, yet `close` below keeps `job` borrowed until the last worker has left.
        unsafe { *shared.job.get() = (std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + '_), *const Job>(job), tasks) };
        for (run, next) in shared.next_task[..tasks.n_runs].iter().enumerate() {
            next.0.store(tasks.first(run), Ordering::Relaxed);
        }
        let epoch = shared.state.0.load(Ordering::Relaxed) & !(EPOCH - 1);
        shared.state.0.store(epoch.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for (parked, (_, thread)) in shared.parked.iter().zip(&self.workers) {
            if parked.0.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        // If the caller's share panics, the workers must still leave before `job` goes out of scope.
        let guard = CloseOnDrop(self);
        take_tasks(shared, 0, tasks, job);
        drop(guard);
        assert!(!shared.panicked.load(Ordering::Relaxed), "a worker thread panicked");
    }

    /// Like `run`, with one `state` for each thread (at least `n_threads` of them).
    pub fn run_with<S: Send>(&mut self, states: &mut [S], n_tasks: usize, job: impl Fn(&mut S, usize) + Sync) {
        self.run_all_with(states, Tasks { n: n_tasks, n_runs: 1 }, job);
    }

    /// Like `run_with`, but each thread begins with a run of neighbouring tasks of its own.
    pub fn run_apart_with<S: Send>(&mut self, states: &mut [S], n_tasks: usize, job: impl Fn(&mut S, usize) + Sync) {
        self.run_all_with(states, Tasks { n: n_tasks, n_runs: self.n_threads() }, job);
    }

    fn run_all_with<S: Send>(&mut self, states: &mut [S], tasks: Tasks, job: impl Fn(&mut S, usize) + Sync) {
        assert!(states.len() >= self.n_threads());
        let states = SharedMut::new(states);
        self.run_all(tasks, &|thread, task| {
            // SAFETY: `thread` numbers are distinct for threads that run at the same time.
            let state = unsafe { states.range(thread, 1) };
            job(&mut state[0], task);
        });
    }

    /// Cuts `out` into pieces of `len` elements and calls `job(state, index, piece)` for each.
    pub fn for_chunks_with<S: Send, T: Send>(
        &mut self,
        states: &mut [S],
        out: &mut [T],
        len: usize,
        job: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        let total = out.len();
        let out = SharedMut::new(out);
        self.run_with(states, total.div_ceil(len), |state, task| {
            let start = task * len;
            // SAFETY: each task is run once and its range overlaps no other.
            job(state, task, unsafe { out.range(start, len.min(total - start)) });
        });
    }

    /// `for_chunks_with` behind `n_first` tasks that have no piece (an empty one). Tasks are begun in order, so one may wait for what
    /// a task before it does, and threads need not meet in between.
    pub fn for_chunks_behind<S: Send, T: Send>(
        &mut self,
        states: &mut [S],
        n_first: usize,
        out: &mut [T],
        len: usize,
        job: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        let total = out.len();
        let out = SharedMut::new(out);
        self.run_with(states, n_first + total.div_ceil(len), |state, task| {
            let (start, len) = match task.checked_sub(n_first) {
                Some(piece) => (piece * len, len.min(total - piece * len)),
                None => (0, 0),
            };
            // SAFETY: each task is run once and its range overlaps no other.
            job(state, task, unsafe { out.range(start, len) });
        });
    }

    /// `for_chunks_with` where threads need nothing of their own.
    pub fn for_chunks<T: Send>(&mut self, out: &mut [T], len: usize, job: impl Fn(usize, &mut [T]) + Sync) {
        let total = out.len();
        let out = SharedMut::new(out);
        self.run(total.div_ceil(len), &|_, task| {
            let start = task * len;
            // SAFETY: each task is run once and its range overlaps no other.
            job(task, unsafe { out.range(start, len.min(total - start)) });
        });
    }

    /// Cuts two buffers into equally many pieces (the last of `a` may be shorter) and calls `job(state, index, piece, piece)`
    /// for each pair.
    pub fn for_chunks2_with<S: Send, A: Send, B: Send>(
        &mut self,
        states: &mut [S],
        (a, a_len): (&mut [A], usize),
        (b, b_len): (&mut [B], usize),
        job: impl Fn(&mut S, usize, &mut [A], &mut [B]) + Sync,
    ) {
        let (n, total) = (a.len().div_ceil(a_len), a.len());
        assert!(b.len() == n * b_len);
        let (a, b) = (SharedMut::new(a), SharedMut::new(b));
        self.run_with(states, n, |state, task| {
            // SAFETY: each task is run once and its ranges overlap no other.
            let (a, b) = unsafe { (a.range(task * a_len, a_len.min(total - task * a_len)), b.range(task * b_len, b_len)) };
            job(state, task, a, b);
        });
    }

    /// Lets no more workers in and waits for those inside.
    fn close(&self) {
        let state = self.shared.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        if state & ACTIVE != 0 {
            spin_until(|| self.shared.state.0.load(Ordering::Acquire) & ACTIVE == 0);
        }
    }
}

/// Waits for what another thread is about to do: by spinning, and after a while by giving the core away.
pub fn spin_until(is_done: impl Fn() -> bool) {
    let mut spins = 0u32;
    while !is_done() {
        spins = spins.saturating_add(1);
        if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

struct CloseOnDrop<'a>(&'a Pool);
impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.state.0.fetch_add(EPOCH, Ordering::SeqCst);
        for (handle, thread) in self.workers.drain(..) {
            thread.unpark();
            // A worker's panic was already reported by `run`.
            let _ = handle.join();
        }
    }
}

/// Those of the thread's own run, then what is left of the others'.
fn take_tasks(shared: &Shared, thread: usize, tasks: Tasks, job: &(dyn Fn(usize, usize) + Sync)) {
    let own = thread % tasks.n_runs;
    for run in (own..tasks.n_runs).chain(0..own) {
        let end = tasks.first(run + 1);
        loop {
            let task = shared.next_task[run].0.fetch_add(1, Ordering::Relaxed);
            if task >= end {
                break;
            }
            job(thread, task);
        }
    }
}

fn work(shared: &Shared, index: usize) {
    touch_stack();
    let mut seen = 0;
    shared.started.fetch_add(1, Ordering::Release);
    loop {
        seen = await_job(shared, index, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // Join the job that is open now, if one still is.
        let joined =
            shared.state.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| (state & OPEN != 0).then_some(state + 1));
        let Ok(state) = joined else { continue };
        seen = state >> 32;
        // SAFETY: the owner wrote the job before it opened it, and keeps it alive until the last worker has left.
        let (job, tasks) = unsafe { *shared.job.get() };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: as above.
            take_tasks(shared, index, tasks, unsafe { &*job });
        }));
        if outcome.is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.state.0.fetch_sub(1, Ordering::Release);
    }
}

/// Spins, then parks, until there is a job other than number `seen`; returns its number.
fn await_job(shared: &Shared, index: usize, seen: u64) -> u64 {
    for _ in 0..SPINS_BEFORE_PARK {
        let epoch = shared.state.0.load(Ordering::Acquire) >> 32;
        if epoch != seen {
            return epoch;
        }
        std::hint::spin_loop();
    }
    let parked = &shared.parked[index - 1].0;
    parked.store(true, Ordering::SeqCst);
    let epoch = loop {
        let epoch = shared.state.0.load(Ordering::SeqCst) >> 32;
        if epoch != seen {
            break epoch;
        }
        std::thread::park();
    };
    parked.store(false, Ordering::SeqCst);
    epoch
}

/// Writes once into each page of the part of the stack that kernels use, so that it is resident from the start.
#[inline(never)]
pub fn touch_stack() {
    let mut pages = [0u8; TOUCHED_BYTES];
    for page in pages.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&mut pages);
}

/// A mutable slice that several threads write at once, each its own range.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `range`, whose caller promises that ranges do not overlap.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    /// # Safety
    /// Ranges that are alive at the same time must not overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds by the assertion; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    pub fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Threads to use when the user names none: what CPU affinity and the cgroup's quota allow.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

#[cfg(test)]
#[path = "../../tests/unit/mem/pool.rs"]
mod tests;
