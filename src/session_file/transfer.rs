//! Bytes on their way to a file or from one, through the shelf's buffer, and summed up on the way.

use std::io;

use xxhash_rust::xxh3::Xxh3;

use super::disk::Disk;
use super::error::Why;
use super::format::SUM_BYTES;
use crate::kv::past::disk::SYNC_BYTES;

/// To a file, in order.
pub struct Out<'a, D: Disk> {
    disk: &'a D,
    file: &'a mut D::Writer,
    buffer: &'a mut [u8],
    used: usize,
    n_unsynced: usize,
    sum: Xxh3,
    seed: u64,
}

impl<'a, D: Disk> Out<'a, D> {
    pub fn new(disk: &'a D, file: &'a mut D::Writer, buffer: &'a mut [u8], seed: u64) -> Self {
        Out { disk, file, buffer, used: 0, n_unsynced: 0, sum: Xxh3::with_seed(seed), seed }
    }

    /// What belongs to no region.
    pub fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(self.buffer.len() - self.used);
            self.buffer[self.used..][..n].copy_from_slice(&bytes[..n]);
            (self.used, bytes) = (self.used + n, &bytes[n..]);
            if self.used == self.buffer.len() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// A piece of a region.
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.put(bytes)
    }

    /// A region ends.
    pub fn end_region(&mut self) -> io::Result<()> {
        let sum = std::mem::replace(&mut self.sum, Xxh3::with_seed(self.seed)).digest();
        self.put(&sum.to_le_bytes())
    }

    /// Hands on what is in the buffer.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.used > 0 {
            self.disk.write(self.file, &self.buffer[..self.used])?;
            self.n_unsynced += std::mem::take(&mut self.used);
            if self.n_unsynced >= SYNC_BYTES {
                self.disk.sync(self.file)?;
                self.n_unsynced = 0;
            }
            self.disk.alive();
        }
        Ok(())
    }
}

/// From a file, in order.
pub struct In<'a, D: Disk> {
    disk: &'a D,
    file: D::Reader,
    buffer: &'a mut [u8],
    /// What of the buffer is to be taken next.
    at: usize,
    end: usize,
    sum: Xxh3,
    seed: u64,
}

impl<'a, D: Disk> In<'a, D> {
    pub fn new(disk: &'a D, file: D::Reader, buffer: &'a mut [u8]) -> Self {
        In { disk, file, buffer, at: 0, end: 0, sum: Xxh3::new(), seed: 0 }
    }

    /// The sums of the regions that follow have this seed.
    pub fn set_seed(&mut self, seed: u64) {
        (self.sum, self.seed) = (Xxh3::with_seed(seed), seed);
    }

    /// What belongs to no region.
    pub fn take(&mut self, mut into: &mut [u8]) -> Result<(), Why> {
        while !into.is_empty() {
            let n = self.fill()?.min(into.len());
            let (now, later) = into.split_at_mut(n);
            now.copy_from_slice(&self.buffer[self.at..][..n]);
            (self.at, into) = (self.at + n, later);
        }
        Ok(())
    }

    /// A piece of a region.
    pub fn add(&mut self, into: &mut [u8]) -> Result<(), Why> {
        self.take(into)?;
        self.sum.update(into);
        Ok(())
    }

    /// A piece of a region that nobody keeps; `see` sees it, part by part.
    pub fn pass(&mut self, mut n_bytes: u64, mut see: impl FnMut(&[u8])) -> Result<(), Why> {
        while n_bytes > 0 {
            let n = (self.fill()? as u64).min(n_bytes);
            let part = &self.buffer[self.at..][..n as usize];
            self.sum.update(part);
            see(part);
            (self.at, n_bytes) = (self.at + n as usize, n_bytes - n);
        }
        Ok(())
    }

    /// A region ends: what was read of it must be what was written.
    pub fn end_region(&mut self, wrong: &'static str) -> Result<(), Why> {
        let sum = std::mem::replace(&mut self.sum, Xxh3::with_seed(self.seed)).digest();
        let mut written = [0; SUM_BYTES];
        self.take(&mut written)?;
        if written == sum.to_le_bytes() { Ok(()) } else { Err(Why::Damaged(wrong)) }
    }

    /// Bytes that lie ready, one at least.
    fn fill(&mut self) -> Result<usize, Why> {
        if self.at == self.end {
            (self.at, self.end) = (0, self.disk.read(&mut self.file, self.buffer)?);
            self.disk.alive();
            if self.end == 0 {
                return Err(Why::Damaged("it ends too early"));
            }
        }
        Ok(self.end - self.at)
    }
}
