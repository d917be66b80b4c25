//! One way to make a tiny cache, for the tests of this room.

use super::attention::{AttendScratch, AttendShape};
use super::layout::{AttnLayer, Head, KvShape, LayerShape};
use super::policy::Keeps;
use super::store::KvScratch;
use super::{KvCache, KvParams, KvType, Policy, Pos, Recent, Rotary};
use crate::kernels::{Kernels, RopeOrder};
use crate::mem::arena::Arena;
use crate::mem::pool::Pool;

/// Keys that no position turns.
impl Rotary for () {
    fn magnitude(&self, _: AttnLayer) -> Option<f32> {
        None
    }
    fn pairs(&self, _: AttnLayer) -> Option<(RopeOrder, usize)> {
        None
    }
    fn set_angles(&self, _: AttnLayer, _: i64, _: &mut [f32]) {}
    fn turn(&self, _: AttnLayer, _: &mut [f32], _: &[f32]) {}
    fn mean_squares(&self, _: AttnLayer, _: &mut [f32]) {}
    fn mean_key(&self, _: AttnLayer, _: &mut [f32], _: &mut [f32]) {}
}

/// One layer, one head of eight elements in f16, one token at a time, a context of 64.
pub fn tiny_shape() -> KvShape {
    KvShape {
        n_layer: 1,
        each: LayerShape { n_head_kv: 1, head_dim: 8 },
        local: None,
        shared: false,
        n_batch: 1,
        n_ctx: 64,
        window: None,
        k_type: KvType::F16,
        v_type: KvType::F16,
        capped: false,
        keeps: Keeps::default(),
    }
}

/// A cache and what a pass through it needs.
pub struct Tiny {
    pub cache: KvCache,
    pub pool: Pool,
    pub scratch: Vec<KvScratch>,
    attend: AttendScratch,
}

impl Tiny {
    /// `n_slot` slots or a few more; `l2` without sinks and one recent token, unless it is changed.
    pub fn with(n_slot: usize, change: impl FnOnce(&mut KvShape, &mut KvParams)) -> Tiny {
        let (mut shape, recent) = (tiny_shape(), Some(Recent::Tokens(1)));
        let mut params = KvParams { budget_bytes: 0, policy: Policy::L2, sinks: 0, pinned: 0, recent, rare: None, pool: None };
        change(&mut shape, &mut params);
        shape.keeps = params.keeps();
        params.budget_bytes = shape.arena_bytes(n_slot) as u64;
        let (n_slot, rule) = params.fit(&shape).unwrap();
        let attend =
            AttendShape { kv: shape, n_slot, n_threads: 1, n_q: 1, kernels: Kernels::choose("auto").unwrap(), soft_cap: 0.0 };
        Tiny {
            cache: KvCache::new(shape, n_slot, rule, params.budget_bytes).unwrap(),
            pool: Pool::new(1).unwrap(),
            scratch: vec![Arena::fill(|arena| KvScratch::carve(arena, n_slot, shape.max_head_dim())).unwrap()],
            attend: Arena::fill(|arena| AttendScratch::carve(arena, attend)).unwrap(),
        }
    }

    pub fn new(n_slot: usize, n_ctx: usize, sinks: u32, recent: Recent) -> Tiny {
        Tiny::with(n_slot, |shape, params| (shape.n_ctx, params.sinks, params.recent) = (n_ctx, sinks, Some(recent)))
    }

    /// A step: `rows(layer)` gives queries, keys and values of all heads.
    pub fn feed_each(&mut self, mut rows: impl FnMut(AttnLayer) -> [Vec<f32>; 3]) {
        let Tiny { cache, pool, scratch, attend } = self;
        let shape = *cache.shape();
        let mut batch = rows(AttnLayer(0));
        let mut step = cache.begin(batch[1].len() / shape.of(AttnLayer(0)).row_dim(), pool, scratch, &()).unwrap();
        for layer in shape.layers() {
            if layer.0 > 0 {
                batch = rows(layer);
            }
            let [q, k, v] = &mut batch;
            let mut out = vec![0.0; q.len()];
            let rated = step.rate(layer, pool, Kernels::choose("auto").unwrap(), k, v);
            rated.take(pool, &(), q, k, v).attend(pool, attend, &[], q, &mut out);
        }
        step.finish();
    }

    /// The same queries, keys and values in all layers.
    pub fn feed_asked(&mut self, q: &[f32], k: &[f32], v: &[f32]) {
        self.feed_each(|_| [q, k, v].map(<[f32]>::to_vec));
    }

    pub fn feed(&mut self, k: &[f32], v: &[f32]) {
        self.feed_asked(&vec![0.0; k.len()], k, v);
    }

    /// One token, whose number is its key's norm, so that it can be known again.
    pub fn feed_number(&mut self, token: usize) {
        let mut key = [0.0; 8];
        key[0] = token as f32;
        self.feed(&key, &key);
    }

    /// The positions that a head holds, sorted.
    pub fn kept(&self, layer: usize, head: usize) -> Vec<Pos> {
        let mut kept = self.cache.kept(AttnLayer(layer), Head(head)).to_vec();
        kept.sort_unstable();
        kept
    }
}
