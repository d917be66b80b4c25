//! The bytes of every region the process will use, known before any of them is taken.

use crate::units::Bytes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anonymous memory of this process: what the kernel cannot take back.
    Private,
    /// Pages of the model file: shared, clean, dropped by the kernel when it needs room.
    File,
    /// Pages of the model file of which a token reads a few: they need not be in memory.
    Lookup,
    /// Files that this process writes, at most: the kernel may drop their pages, which are then read again.
    Disk,
}

#[derive(Clone, Debug)]
pub struct Region {
    pub name: &'static str,
    pub bytes: u64,
    pub kind: Kind,
}

#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub regions: Vec<Region>,
}

impl Plan {
    pub fn private(&mut self, name: &'static str, bytes: usize) {
        self.regions.push(Region { name, bytes: bytes as u64, kind: Kind::Private });
    }

    pub fn file(&mut self, name: &'static str, bytes: u64) {
        self.regions.push(Region { name, bytes, kind: Kind::File });
    }

    pub fn lookup(&mut self, name: &'static str, bytes: u64) {
        self.regions.push(Region { name, bytes, kind: Kind::Lookup });
    }

    pub fn disk(&mut self, name: &'static str, bytes: u64) {
        self.regions.push(Region { name, bytes, kind: Kind::Disk });
    }

    fn sum(&self, kind: Kind) -> u64 {
        self.regions.iter().filter(|r| r.kind == kind).map(|r| r.bytes).sum()
    }

    pub fn private_bytes(&self) -> u64 {
        self.sum(Kind::Private)
    }

    pub fn file_bytes(&self) -> u64 {
        self.sum(Kind::File)
    }

    pub fn disk_bytes(&self) -> u64 {
        self.sum(Kind::Disk)
    }

    /// The largest private regions, for the message of a plan that does not fit.
    pub fn largest(&self, n: usize) -> String {
        let mut private: Vec<_> = self.regions.iter().filter(|r| r.kind == Kind::Private).collect();
        private.sort_by_key(|r| std::cmp::Reverse(r.bytes));
        let parts: Vec<_> = private.iter().take(n).map(|r| format!("{} {}", r.name, Bytes(r.bytes))).collect();
        parts.join(", ")
    }
}
