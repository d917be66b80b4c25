//! The memory that grammars share: what they take is counted, and nobody gets more than is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long one waits for what others have, and how often one looks.
const PATIENCE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(2);

/// So many bytes for all grammars together.
pub struct Region {
    total: usize,
    taken: AtomicUsize,
    /// Somebody sleeps with a part of it.
    is_lost: AtomicBool,
}

impl Region {
    pub fn new(total: usize) -> Arc<Region> {
        Arc::new(Region { total, taken: AtomicUsize::new(0), is_lost: AtomicBool::new(false) })
    }

    pub fn total(&self) -> usize {
        self.total
    }

    pub fn left(&self) -> usize {
        self.total.saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// What is left, once `enough` is or `PATIENCE` is over: what an answer held that has just ended comes back moments later.
    pub fn wait_for(&self, enough: impl Fn(usize) -> bool) -> usize {
        let began = Instant::now();
        while !enough(self.left()) && !self.is_lost() && began.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
        }
        self.left()
    }

    /// Whether a part of it will never be given back.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// So many bytes of it, if they are left.
    pub fn share(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let take = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.total);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Share { region: self.clone(), bytes })
    }
}

/// A part of the region, given back when it is dropped.
pub struct Share {
    region: Arc<Region>,
    bytes: usize,
}

impl Share {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn left(&self) -> usize {
        self.region.left()
    }

    /// Bytes of the whole region.
    pub fn total(&self) -> usize {
        self.region.total
    }

    /// Nothing yet of the same region.
    pub fn none(&self) -> Share {
        Share { region: self.region.clone(), bytes: 0 }
    }

    /// It will never be given back.
    pub fn lose(self) {
        self.region.is_lost.store(true, Ordering::Relaxed);
        std::mem::forget(self);
    }

    /// It is so many bytes now. What has been taken is counted, whether or not it was left.
    pub fn set(&mut self, bytes: usize) {
        self.region.taken.fetch_add(bytes, Ordering::Relaxed);
        self.region.taken.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.region.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
