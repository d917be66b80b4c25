//! KeyDiff (Park et al. 2025, arXiv 2504.15364): all keys of a head are compared anew, as they are stored, before anything is evicted from it.

use super::marks::{HeadMarks, StoredHead, cosine};
use crate::kv::layout::MAX_HEAD_DIM;

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Scores the first `live` entries by the cosine between each key and the mean of all, each of length one. `centre` is what was taken off
/// keys when they were stored.
pub fn rescore(head: &mut HeadMarks, rows: &StoredHead, live: usize, centre: &[f32]) {
    let dim = rows.head_dim;
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
