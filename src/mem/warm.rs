//! A heap that is taken before it is needed. What a thread allocates and frees again stays with the process or goes back to the system
//! as the C library sees fit; a server whose memory is not to grow takes its share at start and keeps it.

/// Smaller than what C libraries map by itself.
const PIECE_BYTES: usize = 16 << 10;

/// What glibc is told: one heap for all threads, so that none keeps a share of its own; blocks of any size come from it, and what is
/// freed stays in it. What the process freed before goes back to the system.
#[cfg(target_env = "gnu")]
fn keep_heap() {
    use std::ffi::c_int;
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
        fn malloc_trim(pad: usize) -> c_int;
    }
    // Of its malloc.h: M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD. The second is the largest that it takes.
    const SETTINGS: [(c_int, c_int); 3] = [(-8, 1), (-3, 32 << 20), (-1, c_int::MAX)];
    // SAFETY: both take numbers alone, may be called at any time and from any thread, and fail by what they return.
    let is_set = unsafe {
        malloc_trim(0);
        SETTINGS.iter().all(|&(parameter, value)| mallopt(parameter, value) == 1)
    };
    if !is_set {
        log::warn!("the C library does not keep its heap as it is told: private memory may grow a little and shrink again");
    }
}

/// Other C libraries have no such settings.
#[cfg(not(target_env = "gnu"))]
fn keep_heap() {}

/// Makes so many bytes of the heap resident, and leaves them to it, free, for all threads. From then on it gives nothing back.
pub fn settle_heap(bytes: usize) {
    keep_heap();
    let pieces: Vec<Vec<u8>> = (0..bytes.div_ceil(PIECE_BYTES)).map(|_| vec![1; PIECE_BYTES]).collect();
    std::hint::black_box(&pieces);
    drop(pieces);
    // A block behind them, which is never given back, keeps any C library from returning them.
    std::mem::forget(std::hint::black_box(Box::new([1u8; 256])));
}

/// Makes a part of this thread's stack resident.
#[inline(never)]
pub fn warm_stack() {
    std::hint::black_box([1u8; WARM_STACK_BYTES]);
}

/// What ordinary work takes of a stack.
pub const WARM_STACK_BYTES: usize = 128 << 10;
