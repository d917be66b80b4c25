//! An allocator that counts what a whole process takes, as blocks: `#[global_allocator] static ALLOCATOR: Counting = Counting;` in
//! a test program of its own, whose tests take turns (`alone`).

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use lowkey::mem::confined::Heap;

/// The program's allocator, with counters beside it.
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static ALONE: Mutex<()> = Mutex::new(());

/// What C libraries take for a block.
fn block_bytes(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call goes to the program's allocator with the arguments as they came; only counters are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        let block = unsafe { Heap.alloc(layout) };
        PEAK.fetch_max(LIVE.fetch_add(block_bytes(layout), Relaxed) + block_bytes(layout), Relaxed);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(block_bytes(layout), Relaxed);
        // SAFETY: `block` came from `Heap` with this layout.
        unsafe { Heap.dealloc(block, layout) }
    }
}

/// Held by whoever counts, since tests run beside each other.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Bytes since some moment.
pub struct Since {
    before: usize,
}

impl Since {
    pub fn now() -> Since {
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        Since { before }
    }

    /// The most that was taken beyond what was there, since the latest `now`.
    pub fn most(&self) -> usize {
        PEAK.load(Relaxed) - self.before
    }

    /// What is there beyond what was; 0 where it is less.
    pub fn kept(&self) -> usize {
        LIVE.load(Relaxed).saturating_sub(self.before)
    }
}
