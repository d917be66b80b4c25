//! LagKV (Liang et al. 2025, arXiv 2504.04704): a token is rated once, when the tokens that follow it are in, by keys and values as they are
//! stored.

use super::marks::{HeadMarks, StoredHead};
use crate::kernels::portable::exp;
use crate::kv::Pos;
use crate::kv::layout::{KvShape, MAX_HEAD_DIM};

/// Tokens of a chunk. (The paper's usual 128 is more than a small arena has slots.)
pub const LAG: usize = 32;

/// Rates what has come to lie far enough back: tokens are taken in chunks of `LAG`; each is rated by how unevenly it fills the ranges that its head's channels have in the
/// chunk that follows, of keys and of values, against the others of its chunk. What has no whole chunk behind it is not rated yet, and stays.
pub fn rate(head: &mut HeadMarks, rows: &StoredHead, live: usize, next_pos: Pos) {
    let (KvShape { k_type, v_type, .. }, head_dim, sinks) = (rows.shape, rows.head_dim, head.rule.protect.sinks);
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
#[path = "../../../tests/unit/kv/policy/lagkv.rs"]
mod tests;
