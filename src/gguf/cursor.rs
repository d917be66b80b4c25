//! Bounds-checked little-endian reads: the only way bytes of a model file become numbers.
//!
//! Owns a position in a slice. A read past the end is a value, [`Short`], that says where and how much was wanted; the
//! caller adds what it was reading. Refuses nothing else: meaning is checked by who asks.

/// Reads forward through a slice; never moves on failure.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A read of `need` bytes at byte `at` ran past the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Short {
    pub at: u64,
    pub need: u64,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes between here and the end.
    pub fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    pub fn take(&mut self, need: u64) -> Result<&'a [u8], Short> {
        let short = Short { at: self.at as u64, need };
        let n = usize::try_from(need).map_err(|_| short)?;
        let end = self.at.checked_add(n).ok_or(short)?;
        let taken = self.bytes.get(self.at..end).ok_or(short)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let short = Short { at: self.at as u64, need: N as u64 };
        self.take(N as u64)?.try_into().map_err(|_| short)
    }
}

macro_rules! numbers {
    ($($ty:ident)*) => {
        impl Cursor<'_> {
            $(pub fn $ty(&mut self) -> Result<$ty, Short> {
                self.array().map($ty::from_le_bytes)
            })*
        }
    };
}
numbers!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

#[cfg(test)]
#[path = "../../tests/unit/gguf/cursor.rs"]
mod tests;
