//! One block of anonymous memory, taken from the system once, made resident at once, and carved into typed buffers.
//!
//! The same carving runs on two arenas: one that measures, which counts bytes and hands out empty buffers, and one that
//! takes memory. So what a plan shows is what is taken, by construction. Nothing is ever given back to the block and nothing
//! grows; carving more than the block holds is a mistake of ours and panics.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};

/// Every buffer starts on a cache line, so that two threads never share one across a border.
pub const ALIGN: usize = 64;

/// Bytes that `n` elements of `T` take in an arena, alignment included; of more than there are addresses, as many as there are.
pub const fn region_bytes<T>(n: usize) -> usize {
    match n.saturating_mul(size_of::<T>()).checked_next_multiple_of(ALIGN) {
        Some(bytes) => bytes,
        None => usize::MAX - usize::MAX % ALIGN,
    }
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
unsafe impl Plain for i16 {}
// SAFETY: primitive numbers.
unsafe impl Plain for i32 {}
// SAFETY: primitive numbers.
unsafe impl Plain for u32 {}
// SAFETY: primitive numbers.
unsafe impl Plain for u64 {}
// SAFETY: primitive numbers.
unsafe impl Plain for f32 {}

/// The bytes of plain numbers as files have them: little-endian.
pub fn bytes_of<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: plain numbers have no padding, so that all their bytes are initialised; a byte needs no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// The same, to be filled.
pub fn bytes_of_mut<T: Plain>(numbers: &mut [T]) -> &mut [u8] {
    #[cfg(not(target_endian = "little"))]
    compile_error!("files are little-endian: on this processor numbers would have to be turned round");
    // SAFETY: plain numbers have no padding, and any bytes that are written into them are numbers; a byte needs no alignment.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}

pub struct Arena {
    /// `None` in an arena that measures.
    block: Option<Arc<MmapMut>>,
    base: *mut u8,
    bytes: usize,
    used: usize,
    parts: Vec<(&'static str, usize)>,
}

impl Arena {
    /// An arena that counts what is carved from it and hands out empty buffers.
    pub const fn measure() -> Self {
        Arena { block: None, base: std::ptr::null_mut(), bytes: usize::MAX, used: 0, parts: Vec::new() }
    }

    /// Takes `bytes` from the system and touches every page, so that resident memory does not grow later.
    pub fn take(bytes: usize) -> std::io::Result<Self> {
        let mut block = MmapOptions::new().len(bytes.max(ALIGN)).populate().map_anon()?;
        // `populate` is a wish; writing is a fact.
        for page in block.chunks_mut(4096) {
            page[0] = 0;
        }
        let base = block.as_mut_ptr();
        Ok(Arena { block: Some(Arc::new(block)), base, bytes, used: 0, parts: Vec::new() })
    }

    /// Measures what `carve` carves, takes as much, and carves it.
    pub fn fill<T>(carve: impl Fn(&mut Arena) -> T) -> std::io::Result<T> {
        let mut measured = Arena::measure();
        carve(&mut measured);
        let mut arena = Arena::take(measured.used)?;
        let carved = carve(&mut arena);
        assert!(arena.used == measured.used && arena.parts == measured.parts, "what was taken is what was measured");
        Ok(carved)
    }

    /// The next `n` elements, zeroed; none where nothing but their bytes is asked.
    pub fn carve<T: Plain>(&mut self, n: usize) -> Buf<T> {
        let bytes = region_bytes::<T>(n);
        assert!(
            self.block.is_none() || bytes <= self.bytes - self.used,
            "arena of {} bytes has no room for {bytes} more after {}",
            self.bytes,
            self.used
        );
        let at = self.used;
        // What no machine has is as much as there are addresses.
        self.used = self.used.saturating_add(bytes);
        if let Some((_, part_bytes)) = self.parts.last_mut() {
            *part_bytes = part_bytes.saturating_add(bytes);
        }
        let Some(block) = &self.block else {
            return Buf { start: std::ptr::dangling_mut(), len: 0, _block: None, _owns: PhantomData };
        };
        // SAFETY: `at + bytes <= self.bytes`, so the pointer stays inside the block; it is ALIGN-aligned because the
        // mapping is page-aligned and every region is a multiple of ALIGN.
        let start = unsafe { self.base.add(at) }.cast::<T>();
        Buf { start, len: n, _block: Some(block.clone()), _owns: PhantomData }
    }

    /// What is carved from here on belongs to the line `name` of the plan.
    pub fn begin_part(&mut self, name: &'static str) {
        self.parts.push((name, 0));
    }

    /// The parts that were begun, in order, and their bytes.
    pub fn parts(&self) -> &[(&'static str, usize)] {
        &self.parts
    }

    pub fn used(&self) -> usize {
        self.used
    }
}

/// A carved slice: the sole owner of its range, alive as long as it wishes.
pub struct Buf<T> {
    start: *mut T,
    len: usize,
    _block: Option<Arc<MmapMut>>,
    _owns: PhantomData<T>,
}

// SAFETY: a Buf is the only way to its range (ranges never overlap), like a Box<[T]>.
unsafe impl<T: Plain> Send for Buf<T> {}
// SAFETY: as above; sharing a &Buf only gives &[T].
unsafe impl<T: Plain> Sync for Buf<T> {}

impl<T> Deref for Buf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `carve` checked the range, or it is empty and aligned; memory is initialised (zeroed by the system) and T is Plain.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T> DerefMut for Buf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the access unique because ranges never overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Buf<f32> {
    /// The same memory as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: initialised numbers without padding, of which no byte is invalid.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>(), self.len * size_of::<f32>()) }
    }
}

#[cfg(test)]
#[path = "../../tests/unit/mem/arena.rs"]
mod tests;
