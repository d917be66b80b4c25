//! A heap that is taken before it is needed. What a thread allocates and frees again stays with the process or goes back to the system
//! as the C library sees fit; a server whose memory is not to grow takes its share at start and keeps it.

/// Smaller than what C libraries map by itself.
const PIECE_BYTES: usize = 16 << 10;

#[cfg(target_env = "gnu")]
mod glibc {
    use std::ffi::c_int;

    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
        fn malloc_trim(pad: usize) -> c_int;
    }

    /// Of its malloc.h.
    pub const TRIM_THRESHOLD: c_int = -1;
    pub const MMAP_THRESHOLD: c_int = -3;
    pub const ARENA_MAX: c_int = -8;

    pub fn set(parameter: c_int, value: c_int) {
        // SAFETY: it takes numbers alone, may be called at any time, and fails by what it returns.
        if unsafe { mallopt(parameter, value) } != 1 {
            log::warn!("the C library does not keep its heap as it is told: private memory may grow a little and shrink again");
        }
    }

    /// What is free goes back to the system.
    pub fn trim() {
        // SAFETY: it takes a number alone and may be called at any time.
        unsafe { malloc_trim(0) };
    }
}

/// One heap for all threads, so that none keeps a share of its own. To be called before there is a second thread: glibc decides how many
/// heaps there may be when one asks for memory.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    glibc::set(glibc::ARENA_MAX, 1);
}

/// What was freed goes back to the system; from now on blocks of any size come from the heap, and what is freed stays in it.
fn keep_heap() {
    #[cfg(target_env = "gnu")]
    {
        glibc::trim();
        // The largest that it takes.
        glibc::set(glibc::MMAP_THRESHOLD, 32 << 20);
        glibc::set(glibc::TRIM_THRESHOLD, i32::MAX);
    }
}

/// Makes so many bytes of the heap resident, and leaves them to it, free, for all threads. From then on it gives nothing back.
pub fn settle_heap(bytes: usize) {
    keep_heap();
    let pieces: Vec<Vec<u8>> = (0..bytes.div_ceil(PIECE_BYTES)).map(|_| vec![1; PIECE_BYTES]).collect();
    std::hint::black_box(&pieces);
    drop(pieces);
    // A block behind them, which is never given back, keeps any C library from returning them.
    std::mem::forget(std::hint::black_box(Box::new([1u8; 256])));
}

/// Makes so many bytes of this thread's stack resident.
#[inline(never)]
pub fn warm_stack<const BYTES: usize>() {
    std::hint::black_box([1u8; BYTES]);
}
