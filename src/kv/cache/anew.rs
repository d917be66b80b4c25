//! Scores that are not fixed when an entry enters: before anything is evicted from a layer, KeyDiff compares all keys anew, and LagKV
//! rates the tokens that have come to lie far enough back. Both read keys and values as they are stored. Other policies need nothing.

use super::{KvCache, MAX_HEAD_DIM};
use crate::kernels::portable::exp;
use crate::kv::Pos;
use crate::kv::marks::{Head, cosine};
use crate::kv::policy::{LAG, Policy};
use crate::kv::shape::KvShape;

impl KvCache {
    pub(super) fn compare_anew(&mut self, layer: usize) {
        let rule = self.rule(layer);
        if !matches!(rule.policy, Policy::KeyDiff | Policy::LagKv) {
            return;
        }
        let (shape, live, n_slot, first) = (self.shape, self.live(layer), self.slots(layer), self.first_row(layer, 0));
        let (k_bytes, v_bytes) = (shape.k_bytes(), shape.v_bytes());
        for (h, mut head) in self.marks.of_layer(&self.shape, layer, rule).enumerate() {
            let row = first + h * n_slot;
            let rows = Rows { shape, keys: &self.keys[row * k_bytes..], values: &self.values[row * v_bytes..] };
            match rule.policy {
                Policy::LagKv => by_lag(&mut head, &rows, live, self.next_pos),
                _ => {
                    let rounding = self.roundings.of_head(layer * shape.n_head_kv + h);
                    by_mean(&mut head, &rows, live, rounding.centre);
                }
            }
        }
    }
}

/// Keys and values of a head, by slot.
struct Rows<'a> {
    shape: KvShape,
    keys: &'a [u8],
    values: &'a [u8],
}

impl Rows<'_> {
    /// In the basis in which it is stored.
    fn key(&self, slot: usize, out: &mut [f32]) {
        self.shape.k_type.row().load(&self.keys[slot * self.shape.k_bytes()..], out);
    }

    fn value(&self, slot: usize, out: &mut [f32]) {
        self.shape.v_type.row().load(&self.values[slot * self.shape.v_bytes()..], out);
    }
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// KeyDiff: the cosine between each key and the mean of all, each of length one.
fn by_mean(head: &mut Head, rows: &Rows, live: usize, centre: &[f32]) {
    let dim = rows.shape.head_dim;
    let (mut mean, mut room) = ([0f32; MAX_HEAD_DIM], [0f32; MAX_HEAD_DIM]);
    let (mean, key) = (&mut mean[..dim], &mut room[..dim]);
    let load = |slot: usize, key: &mut [f32]| {
        rows.key(slot, key);
        key.iter_mut().zip(centre).for_each(|(key, centre)| *key += centre);
    };
    for slot in 0..live {
        load(slot, key);
        let unit = 1.0 / norm(key).max(f32::MIN_POSITIVE);
        mean.iter_mut().zip(&*key).for_each(|(mean, key)| *mean += key * unit);
    }
    let mean_norm = norm(mean);
    head.rescore(live, |slot| {
        load(slot, key);
        cosine(key, norm(key), mean, mean_norm)
    });
}

/// LagKV: tokens are taken in chunks of `LAG`; each is rated by how unevenly it fills the ranges that its head's channels have in the
/// chunk that follows, of keys and of values, against the others of its chunk. What has no whole chunk behind it is not rated yet, and stays.
fn by_lag(head: &mut Head, rows: &Rows, live: usize, next_pos: Pos) {
    let (KvShape { k_type, v_type, head_dim, .. }, sinks) = (rows.shape, head.rule.protect.sinks);
    let chunk_of = |pos: Pos| pos.checked_sub(sinks).map(|pos| pos / LAG as Pos);
    let key = |slot: usize, out: &mut [f32]| {
        rows.key(slot, out);
        k_type.turn_back(out, head_dim);
    };
    let value = |slot: usize, out: &mut [f32]| {
        rows.value(slot, out);
        v_type.turn_back(out, head_dim);
    };
    loop {
        let unrated = (0..live).filter(|&slot| !head.is_rated(slot));
        let Some(chunk) = unrated.filter_map(|slot| chunk_of(head.positions[slot])).min() else { return };
        if Some(chunk + 2) > chunk_of(next_pos) {
            return;
        }
        let slots_of = |chunk: Pos, slots: &mut [usize; LAG]| {
            let inside = (0..live).filter(|&slot| chunk_of(head.positions[slot]) == Some(chunk));
            inside.zip(slots).map(|(slot, place)| *place = slot).count()
        };
        let (mut slots, mut behind) = ([0; LAG], [0; LAG]);
        let (n, n_behind) = (slots_of(chunk, &mut slots), slots_of(chunk + 1, &mut behind));
        let (slots, behind, mut ratings) = (&slots[..n], &behind[..n_behind], [0f32; LAG]);
        add_spreads(slots, behind, key, head_dim, &mut ratings[..n]);
        add_spreads(slots, behind, value, head_dim, &mut ratings[..n]);
        // Renumbering gathers tokens of several chunks in one: what was rated among its own stays.
        for (&slot, rating) in slots.iter().zip(ratings) {
            if !head.is_rated(slot) {
                head.rate_late(slot, -rating);
            }
        }
    }
}

/// Adds for each of `slots` the standard deviation over its channels, scaled to their ranges in the slots `behind`, as softmax makes it
/// a share of all.
fn add_spreads(slots: &[usize], behind: &[usize], load: impl Fn(usize, &mut [f32]), dim: usize, ratings: &mut [f32]) {
    let (mut low, mut high, mut room) = ([f32::MAX; MAX_HEAD_DIM], [f32::MIN; MAX_HEAD_DIM], [0f32; MAX_HEAD_DIM]);
    let x = &mut room[..dim];
    for &slot in behind {
        load(slot, x);
        for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(&*x) {
            (*low, *high) = (low.min(x), high.max(x));
        }
    }
    let mut shares = [0f32; LAG];
    for (&slot, share) in slots.iter().zip(&mut shares) {
        load(slot, x);
        for ((x, low), high) in x.iter_mut().zip(&low).zip(&high) {
            *x = if high > low { (*x - low) / (high - low) } else { 0.0 };
        }
        let mean = x.iter().sum::<f32>() / dim as f32;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / dim as f32;
        *share = exp(variance.sqrt().min(80.0));
    }
    let sum = shares.iter().sum::<f32>();
    ratings.iter_mut().zip(shares).for_each(|(rating, share)| *rating += share / sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tokens of two channels, by hand: in ranges of 0..2 and 0..4 the first fills both by half, the second the first channel
    /// only; deviations 0 and 1/2.
    #[test]
    fn spreads_by_hand() {
        let rows = [[1.0, 2.0], [2.0, 0.0], [0.0, 4.0], [2.0, 0.0]];
        let mut ratings = [1.0, 1.0];
        add_spreads(&[0, 1], &[2, 3], |slot, out| out.copy_from_slice(&rows[slot]), 2, &mut ratings);
        let e = 0.5f32.exp();
        assert!((ratings[0] - (1.0 + 1.0 / (1.0 + e))).abs() < 1e-6 && (ratings[1] - (1.0 + e / (1.0 + e))).abs() < 1e-6);
        // A channel that is the same in all tells nothing.
        add_spreads(&[0], &[0], |slot, out| out.copy_from_slice(&rows[slot]), 2, &mut ratings[..1]);
        assert!(ratings[0].is_finite());
    }

    /// Every other token is the same in all channels, which is no news to LagKV: those go first, once they were rated.
    #[test]
    fn what_is_even_goes_first() {
        use crate::kv::cache::tests::cache_for;
        use crate::kv::cache::{KvParams, Recent};
        use crate::kv::policy::Marks;
        use crate::kv::types::KvType;
        use crate::mem::pool::Pool;
        let (k_type, v_type, marks) = (KvType::F16, KvType::Q8_0, Marks::default());
        let shape = KvShape {
            n_layer: 1,
            n_head_kv: 1,
            head_dim: 8,
            n_batch: 1,
            n_ctx: 1024,
            window: None,
            k_type,
            v_type,
            capped: false,
            marks,
        };
        let recent = Some(Recent::Tokens(2 * LAG as u32 + 8));
        let params = KvParams {
            budget_bytes: shape.arena_bytes(200) as u64,
            policy: Policy::LagKv,
            sinks: 3,
            pinned: 0,
            recent,
            rare: None,
            pool: None,
        };
        let (mut cache, mut pool) = (cache_for(shape, &params), Pool::new(1).unwrap());
        let mut rng = fastrand::Rng::with_seed(9);
        for t in 0..260 {
            let row: [f32; 8] = if t % 2 == 1 { [0.1; 8] } else { std::array::from_fn(|_| rng.f32() - 0.5) };
            cache.rate(&mut pool, 0, &row, &row, |_| 0.0);
            cache.place(&mut pool, 0, &row, &row);
            cache.commit(0, 1);
            cache.advance(1);
        }
        let n_gone = 260 - cache.n_slot();
        let old: Vec<Pos> = cache.kept(0, 0).iter().copied().filter(|&pos| (3..100).contains(&pos)).collect();
        let n_even = old.iter().filter(|&&pos| pos % 2 == 1).count();
        // What is gone was even, every one; and it was not the oldest that went.
        assert!(
            n_gone > 40 && cache.kept(0, 0).iter().filter(|&&pos| pos % 2 == 1).count() == 130 - n_gone,
            "{n_gone} gone, {old:?}"
        );
        assert!(n_even > 0 && cache.kept(0, 0).iter().filter(|&&pos| pos % 2 == 0).count() == 130);
    }
}
