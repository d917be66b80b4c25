//! Places for connections: so many, and the last two of them for health, metrics and the page alone. Where all are taken, the connection
//! that has been idle longest makes way.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

use super::wire::State;

/// Kept for health, metrics and the page.
const N_RESERVED: usize = 2;

/// Connections beyond all others that are being refused at once.
const N_TURNED_AWAY: usize = 64;

/// Places for connections.
pub struct Seats {
    n_all: usize,
    taken: AtomicUsize,
    /// Of those that may ask for anything.
    ordinary: AtomicUsize,
    /// Who has them.
    holders: Mutex<Vec<Arc<Holder>>>,
}

struct Holder {
    state: Arc<State>,
    is_ordinary: AtomicBool,
    /// It has made way, and is about to be closed.
    is_gone: AtomicBool,
}

/// A connection's place.
pub struct Seat {
    seats: Arc<Seats>,
    holder: Arc<Holder>,
}

fn take_one(count: &AtomicUsize, most: usize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1)).is_ok()
}

impl Seats {
    pub fn new(n_all: usize) -> Arc<Seats> {
        let n_all = n_all.max(N_RESERVED + 1);
        let holders = Mutex::new(Vec::with_capacity(n_all));
        Arc::new(Seats { n_all, taken: AtomicUsize::new(0), ordinary: AtomicUsize::new(0), holders })
    }

    pub fn n_taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// A place for a connection of this state; that of the one that has been idle longest, where all are taken. None: nobody is idle.
    pub fn take(self: &Arc<Seats>, state: &Arc<State>) -> Option<Seat> {
        let take = || take_one(&self.taken, self.n_all);
        if !(take() || self.make_way(|_| true) && take()) {
            return None;
        }
        let holder = Arc::new(Holder { state: state.clone(), is_ordinary: false.into(), is_gone: false.into() });
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).push(holder.clone());
        let seat = Seat { seats: self.clone(), holder };
        seat.try_ask();
        Some(seat)
    }

    /// Closes the connection that has been idle longest of those that are `wanted`. False: there is none.
    fn make_way(&self, wanted: impl Fn(&Holder) -> bool) -> bool {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = holders.iter().enumerate().filter(|(_, holder)| wanted(holder));
        let idle = idle.filter_map(|(i, holder)| holder.state.idle_since().map(|since| (since, i)));
        let Some((_, i)) = idle.min() else { return false };
        let holder = holders.swap_remove(i);
        self.leave(&holder);
        holder.state.close();
        true
    }

    fn leave(&self, holder: &Holder) {
        if holder.is_gone.swap(true, Ordering::Relaxed) {
            return;
        }
        self.taken.fetch_sub(1, Ordering::Relaxed);
        if holder.is_ordinary.load(Ordering::Relaxed) {
            self.ordinary.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Seat {
    fn try_ask(&self) -> bool {
        let (seats, holder) = (&self.seats, &self.holder);
        if !holder.is_ordinary.load(Ordering::Relaxed) && take_one(&seats.ordinary, seats.n_all - N_RESERVED) {
            holder.is_ordinary.store(true, Ordering::Relaxed);
        }
        holder.is_ordinary.load(Ordering::Relaxed)
    }

    /// Whether this connection may ask for anything, by now; an idle one makes way for it.
    pub fn may_ask(&self) -> bool {
        self.try_ask() || self.seats.make_way(|holder| holder.is_ordinary.load(Ordering::Relaxed)) && self.try_ask()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.leave(&self.holder);
        let mut holders = self.seats.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|holder| !Arc::ptr_eq(holder, &self.holder));
    }
}

/// Connections that are being refused: so many, of which the oldest is dropped for one more. Whoever sends half a request holds up nobody.
pub struct TurnedAway(Mutex<VecDeque<AbortHandle>>);

impl TurnedAway {
    pub fn new() -> TurnedAway {
        TurnedAway(Mutex::new(VecDeque::with_capacity(N_TURNED_AWAY)))
    }

    pub fn push(&self, task: AbortHandle) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        if tasks.len() == N_TURNED_AWAY
            && let Some(oldest) = tasks.pop_front()
        {
            oldest.abort();
        }
        tasks.push_back(task);
    }
}
