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

    pub fn u8(&mut self) -> Result<u8, Short> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn i8(&mut self) -> Result<i8, Short> {
        self.array().map(i8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn i16(&mut self) -> Result<i16, Short> {
        self.array().map(i16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn i32(&mut self) -> Result<i32, Short> {
        self.array().map(i32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, Short> {
        self.array().map(i64::from_le_bytes)
    }

    pub fn f32(&mut self) -> Result<f32, Short> {
        self.array().map(f32::from_le_bytes)
    }

    pub fn f64(&mut self) -> Result<f64, Short> {
        self.array().map(f64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end_and_do_not_move() {
        let mut cur = Cursor::new(&[1, 0, 0, 0, 9]);
        assert_eq!(cur.u32(), Ok(1));
        assert_eq!(cur.u64(), Err(Short { at: 4, need: 8 }));
        assert_eq!(cur.take(u64::MAX), Err(Short { at: 4, need: u64::MAX }));
        assert_eq!((cur.at(), cur.left()), (4, 1));
        assert_eq!(cur.u8(), Ok(9));
        assert_eq!(cur.take(0), Ok(&[][..]));
    }
}
