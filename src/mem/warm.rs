//! A heap that is taken before it is needed. What a thread allocates and frees again stays with the process or goes back to the system
//! as the C library sees fit; a server whose memory is not to grow takes its share at start and keeps it.

/// Smaller than what C libraries map by itself.
const PIECE_BYTES: usize = 16 << 10;

/// Makes so many bytes of this thread's heap resident, and leaves them to it, free: a small block behind them, which is never given
/// back, keeps the C library from returning them to the system.
pub fn warm_heap(bytes: usize) {
    let pieces: Vec<Vec<u8>> = (0..bytes.div_ceil(PIECE_BYTES)).map(|_| vec![1; PIECE_BYTES]).collect();
    std::hint::black_box(&pieces);
    std::mem::forget(std::hint::black_box(Box::new([1u8; 256])));
}
