//! One block of anonymous memory, taken from the system once, made resident at once, and carved into typed buffers.
//!
//! Nothing is ever given back to the block and nothing grows: a `Buf` is a slice whose length was decided by a plan.
//! Carving more than the block holds is a mistake of ours and panics; the plan was checked before.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};

/// Every buffer starts on a cache line, so that two threads never share one across a border.
pub const ALIGN: usize = 64;

/// Bytes that `n` elements of `T` take in an arena, alignment included.
pub const fn region_bytes<T>(n: usize) -> usize {
    (n * size_of::<T>()).next_multiple_of(ALIGN)
}

/// Plain numbers: any bit pattern is a value, all zeros too.
///
/// # Safety
/// Implementors have no padding, no invalid bit patterns and no destructor.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: primitive numbers.
unsafe impl Plain for u8 {}
// SAFETY: primitive numbers.
unsafe impl Plain for i8 {}
// SAFETY: primitive numbers.
unsafe impl Plain for u16 {}
// SAFETY: primitive numbers.
unsafe impl Plain for i32 {}
// SAFETY: primitive numbers.
unsafe impl Plain for u32 {}
// SAFETY: primitive numbers.
unsafe impl Plain for f32 {}

pub struct Arena {
    block: Arc<MmapMut>,
    base: *mut u8,
    bytes: usize,
    used: usize,
}

impl Arena {
    /// Takes `bytes` from the system and touches every page, so that resident memory does not grow later.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let mut block = MmapOptions::new().len(bytes.max(ALIGN)).populate().map_anon()?;
        // `populate` is a wish; writing is a fact.
        for page in block.chunks_mut(4096) {
            page[0] = 0;
        }
        let base = block.as_mut_ptr();
        Ok(Arena { block: Arc::new(block), base, bytes, used: 0 })
    }

    /// The next `n` elements, zeroed.
    pub fn carve<T: Plain>(&mut self, n: usize) -> Buf<T> {
        let bytes = region_bytes::<T>(n);
        assert!(
            self.used + bytes <= self.bytes,
            "arena of {} bytes has no room for {bytes} more after {}",
            self.bytes,
            self.used
        );
        // SAFETY: `used + bytes <= self.bytes`, so the pointer stays inside the block; it is ALIGN-aligned because the
        // mapping is page-aligned and every region is a multiple of ALIGN.
        let start = unsafe { self.base.add(self.used) }.cast::<T>();
        self.used += bytes;
        Buf { start, len: n, _block: self.block.clone(), _owns: PhantomData }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn used(&self) -> usize {
        self.used
    }
}

/// A carved slice: the sole owner of its range, alive as long as it wishes.
pub struct Buf<T> {
    start: *mut T,
    len: usize,
    _block: Arc<MmapMut>,
    _owns: PhantomData<T>,
}

// SAFETY: a Buf is the only way to its range (ranges never overlap), like a Box<[T]>.
unsafe impl<T: Plain> Send for Buf<T> {}
// SAFETY: as above; sharing a &Buf only gives &[T].
unsafe impl<T: Plain> Sync for Buf<T> {}

impl<T> Deref for Buf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `carve` checked the range; memory is initialised (zeroed by the system) and T is Plain.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T> DerefMut for Buf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the access unique because ranges never overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carved_buffers_are_disjoint_aligned_and_zeroed() {
        let mut arena = Arena::new(region_bytes::<f32>(5) + region_bytes::<u8>(1) + region_bytes::<i8>(64)).unwrap();
        let mut a = arena.carve::<f32>(5);
        let mut b = arena.carve::<u8>(1);
        let c = arena.carve::<i8>(64);
        assert_eq!(arena.used(), arena.bytes());
        a.fill(f32::NAN);
        b[0] = 7;
        drop(arena);
        drop(a);
        assert_eq!((b[0], &c[..]), (7, &[0i8; 64][..]));
        assert_eq!((b.as_ptr() as usize % ALIGN, c.as_ptr() as usize % ALIGN), (0, 0));
    }

    #[test]
    #[should_panic(expected = "no room")]
    fn carving_past_the_end_is_our_mistake() {
        Arena::new(64).unwrap().carve::<f32>(17);
    }
}
