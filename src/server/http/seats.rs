//! Places for connections: so many, and the last two of them for health, metrics and the page alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Kept for health, metrics and the page.
const N_RESERVED: usize = 2;

/// Places for connections.
pub struct Seats {
    n_all: usize,
    taken: AtomicUsize,
    /// Of those that may ask for anything.
    ordinary: AtomicUsize,
}

/// A connection's place.
pub struct Seat {
    seats: Arc<Seats>,
    is_ordinary: AtomicBool,
}

fn take_one(count: &AtomicUsize, most: usize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1)).is_ok()
}

impl Seats {
    pub fn new(n_all: usize) -> Arc<Seats> {
        Arc::new(Seats { n_all: n_all.max(N_RESERVED + 1), taken: AtomicUsize::new(0), ordinary: AtomicUsize::new(0) })
    }

    pub fn n_taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    pub fn take(self: &Arc<Seats>) -> Option<Seat> {
        if !take_one(&self.taken, self.n_all) {
            return None;
        }
        let seat = Seat { seats: self.clone(), is_ordinary: false.into() };
        seat.may_ask();
        Some(seat)
    }
}

impl Seat {
    /// Whether this connection may ask for anything, by now.
    pub fn may_ask(&self) -> bool {
        if !self.is_ordinary.load(Ordering::Relaxed) && take_one(&self.seats.ordinary, self.seats.n_all - N_RESERVED) {
            self.is_ordinary.store(true, Ordering::Relaxed);
        }
        self.is_ordinary.load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.fetch_sub(1, Ordering::Relaxed);
        if self.is_ordinary.load(Ordering::Relaxed) {
            self.seats.ordinary.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
