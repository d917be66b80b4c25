//! Work that a stranger's file decides about, confined to so many bytes: it runs on a thread of its own, whose allocations are
//! counted. What would take more than its share is stopped before the memory is taken, and never goes on.
//!
//! Rust has no allocation that fails politely inside other people's code. So the allocator puts such a thread to sleep for good,
//! with all that it holds (no more than its share), and its caller goes on with a refusal. A program does that once and ends. One
//! that goes on for months asks `n_lost` how many sleep, and after a few starts no such work any more: what they hold is then bounded.
//! The count needs `#[global_allocator] static HEAP: Heap = Heap;` in the binary; without it work runs unbounded.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

thread_local! {
    /// Bytes that this thread may still take; where it has no share, any.
    static LEFT: Cell<isize> = const { Cell::new(isize::MAX) };
    /// Where it says that it is stopped; null without a share.
    static OVER: Cell<*const AtomicBool> = const { Cell::new(std::ptr::null()) };
    /// Bytes that this thread has taken and not given back, and the most that they were since `metered` began.
    static NET: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Threads that were stopped.
static N_LOST: AtomicUsize = AtomicUsize::new(0);

/// How many threads were stopped and sleep since the program started, each with no more than the share that it had.
pub fn n_lost() -> usize {
    N_LOST.load(Relaxed)
}

/// The system's allocator, which counts for threads that have a share.
pub struct Heap;

/// What C libraries take for a block: a header, and rounded up to 16.
fn block_bytes(bytes: usize) -> isize {
    bytes.saturating_add(31).min(isize::MAX as usize) as isize & !15
}

fn take(bytes: usize) {
    let net = NET.get().saturating_add(block_bytes(bytes));
    NET.set(net);
    PEAK.set(PEAK.get().max(net));
    let over = OVER.get();
    if over.is_null() {
        return;
    }
    let left = LEFT.get().saturating_sub(block_bytes(bytes));
    LEFT.set(left);
    if left < 0 {
        // SAFETY: `run` in `confined` holds what it points to for as long as it is set.
        unsafe { (*over).store(true, Relaxed) };
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

fn give(bytes: usize) {
    NET.set(NET.get().saturating_sub(block_bytes(bytes)));
    if !OVER.get().is_null() {
        LEFT.set(LEFT.get().saturating_add(block_bytes(bytes)));
    }
}

/// The block that the system gave; where it gave none, the end: one line, and no trace of where in the program it was.
fn given(block: *mut u8, bytes: usize) -> *mut u8 {
    if block.is_null() {
        let _ = writeln!(
            std::io::stderr(),
            "lowkey: the system gave no memory for {bytes} bytes more: see `lowkey plan` and `ulimit -a`"
        );
        std::process::exit(1);
    }
    block
}

// SAFETY: every call goes to the system's allocator with the arguments as they came; a thread that is over its share never
// returns from the call, which keeps any promise about what it returns.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: `block` came from `System` with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // The old and the new block may both be there for a moment.
        take(new_size);
        // SAFETY: `block` came from `System` with this layout; the caller's promise about `new_size` is passed on.
        let new = given(unsafe { System.realloc(block, layout, new_size) }, new_size);
        give(layout.size());
        new
    }
}

/// Runs `work` on this thread; what it took and has not given back, in bytes, and the most that it took at once. Both are 0 in programs
/// without `Heap`. What another thread gives back is not seen.
pub fn metered<T>(work: impl FnOnce() -> T) -> (T, isize, usize) {
    let (before, peak) = (NET.get(), PEAK.get());
    PEAK.set(before);
    let done = work();
    let (net, most) = (NET.get().saturating_sub(before), PEAK.get().saturating_sub(before));
    PEAK.set(peak.max(PEAK.get()));
    (done, net, most.max(0) as usize)
}

/// Runs `work` on a thread with a stack of `stack_bytes`, within `heap_bytes` of allocations. None: it would have taken more, or
/// the system has no memory for a thread.
pub fn confined<T: Send + 'static>(
    heap_bytes: usize,
    stack_bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let done = confined_apart(heap_bytes, stack_bytes, work);
    if done.is_none() {
        N_LOST.fetch_add(1, Relaxed);
    }
    done
}

/// The same for work whose losses the caller counts: `n_lost` does not.
pub fn confined_apart<T: Send + 'static>(
    heap_bytes: usize,
    stack_bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let over = Arc::new(AtomicBool::new(false));
    let own = over.clone();
    let (done, result) = sync_channel(1);
    let run = move || {
        LEFT.set(heap_bytes.min(isize::MAX as usize) as isize);
        OVER.set(Arc::as_ptr(&own));
        let answer = work();
        OVER.set(std::ptr::null());
        let _ = done.send(answer);
    };
    let thread = std::thread::Builder::new().stack_size(stack_bytes).spawn(run).ok()?;
    loop {
        match result.recv_timeout(Duration::from_millis(5)) {
            Ok(answer) => {
                let _ = thread.join();
                return Some(answer);
            }
            Err(RecvTimeoutError::Timeout) if over.load(Relaxed) => return None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Ok(()) => return None,
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
}
