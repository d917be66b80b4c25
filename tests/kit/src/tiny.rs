//! A tiny cache and what a pass through it needs, by the door that the engine uses.

use lowkey::kernels::{Kernels, RopeOrder};
use lowkey::kv::attention::{AttendScratch, AttendShape};
use lowkey::kv::policy::{Keeps, Rule};
use lowkey::kv::store::KvScratch;
use lowkey::kv::{AttnLayer, Head, KvCache, KvParams, KvShape, KvType, LayerShape, Policy, Recent, Rotary};
use lowkey::mem::arena::Arena;
use lowkey::mem::pool::Pool;

/// Keys that no position turns.
pub struct Unturned;

impl Rotary for Unturned {
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

pub struct Tiny {
    pub cache: KvCache,
    pub rule: Rule,
    pool: Pool,
    scratch: [KvScratch; 1],
    attend: AttendScratch,
    /// `[n_head]`, or empty: logits that join the softmax of each query head without a value.
    pub head_sinks: Vec<f32>,
}

impl Tiny {
    /// `n_slot` slots or a few more; `l2` without sinks and one recent token, unless it is changed.
    pub fn with(n_slot: usize, change: impl FnOnce(&mut KvShape, &mut KvParams)) -> Tiny {
        Tiny::with_queries(n_slot, 1, change)
    }

    /// The same with `n_q` query heads for each KV head.
    pub fn with_queries(n_slot: usize, n_q: usize, change: impl FnOnce(&mut KvShape, &mut KvParams)) -> Tiny {
        let (mut shape, recent) = (tiny_shape(), Some(Recent::Tokens(1)));
        let mut params = KvParams { budget_bytes: 0, policy: Policy::L2, sinks: 0, pinned: 0, recent, rare: None, pool: None };
        change(&mut shape, &mut params);
        shape.keeps = Keeps { token: shape.keeps.token, ..params.keeps() };
        params.budget_bytes = shape.arena_bytes(n_slot) as u64;
        let (n_slot, rule) = params.fit(&shape).expect("it fits");
        let kernels = Kernels::choose("auto").expect("a set");
        let attend = AttendShape { kv: shape, n_slot, n_threads: 1, n_q, kernels, soft_cap: 0.0 };
        Tiny {
            cache: KvCache::new(shape, n_slot, rule, params.budget_bytes).expect("memory"),
            rule,
            pool: Pool::new(1).expect("no thread is started"),
            scratch: [Arena::fill(|arena| KvScratch::carve(arena, n_slot, shape.max_head_dim())).expect("memory")],
            attend: Arena::fill(|arena| AttendScratch::carve(arena, attend)).expect("memory"),
            head_sinks: Vec::new(),
        }
    }

    /// A step: `rows(layer)` gives queries, keys and values of all heads, `see` the cache before attention. False, and
    /// nothing has happened, where the cache may not go on.
    pub fn feed(
        &mut self,
        n_tok: usize,
        rows: impl FnMut(AttnLayer) -> [Vec<f32>; 3],
        see: impl FnMut(AttnLayer, &KvCache),
    ) -> bool {
        self.attend(n_tok, rows, see, |_, _| ())
    }

    /// The same; `given` is what attention gives each token of a layer.
    pub fn attend(
        &mut self,
        n_tok: usize,
        rows: impl FnMut(AttnLayer) -> [Vec<f32>; 3],
        see: impl FnMut(AttnLayer, &KvCache),
        given: impl FnMut(AttnLayer, &[f32]),
    ) -> bool {
        self.attend_turned(&Unturned, n_tok, rows, see, given)
    }

    /// The same with queries and keys that `rotary` turns to their positions.
    pub fn attend_turned(
        &mut self,
        rotary: &impl Rotary,
        n_tok: usize,
        mut rows: impl FnMut(AttnLayer) -> [Vec<f32>; 3],
        mut see: impl FnMut(AttnLayer, &KvCache),
        mut given: impl FnMut(AttnLayer, &[f32]),
    ) -> bool {
        let (layers, kernels) = (self.cache.shape().layers(), Kernels::choose("auto").expect("a set"));
        let Tiny { cache, pool, scratch, attend, head_sinks, .. } = self;
        let head_dim = cache.shape().each.head_dim;
        let mut angles = vec![0.0; head_dim];
        let Ok(mut step) = cache.begin(n_tok, pool, scratch, rotary) else { return false };
        let first = i64::from(step.cache().next_pos());
        for layer in layers {
            let [mut q, mut k, v] = rows(layer);
            let mut out = vec![0.0; q.len()];
            let rated = step.rate(layer, pool, kernels, &k, &v);
            for (t, position) in (0..n_tok).zip(first..) {
                rotary.set_angles(layer, position, &mut angles);
                for rows in [&mut q, &mut k] {
                    let row = rows.len() / n_tok;
                    rows[t * row..][..row].chunks_exact_mut(head_dim).for_each(|head| rotary.turn(layer, head, &angles));
                }
            }
            let taken = rated.take(pool, rotary, &q, &k, &v);
            see(layer, taken.cache());
            taken.attend(pool, attend, head_sinks, &mut q, &mut out);
            given(layer, &out);
        }
        step.finish();
        true
    }

    /// One token, whose number is its key's norm in every layer and head, so that it can be known again.
    pub fn feed_number(&mut self, token: usize) -> bool {
        let LayerShape { n_head_kv, head_dim } = self.cache.shape().each;
        let row: Vec<f32> = (0..n_head_kv * head_dim).map(|i| if i % head_dim == 0 { token as f32 } else { 0.0 }).collect();
        self.feed(1, |_| [vec![0.0; row.len()], row.clone(), row.clone()], |_, _| ())
    }

    /// The numbers that the first head keeps, oldest first.
    pub fn numbers(&self) -> Vec<usize> {
        let (layer, head) = (AttnLayer(0), Head(0));
        let mut kept: Vec<_> = self.cache.kept(layer, head).iter().zip(self.cache.scores(layer, head)).collect();
        kept.sort_unstable_by_key(|(pos, _)| **pos);
        kept.into_iter().map(|(_, &score)| score as usize).collect()
    }

    /// The positions that a head holds, sorted.
    pub fn kept(&self, layer: usize, head: usize) -> Vec<u32> {
        let mut kept = self.cache.kept(AttnLayer(layer), Head(head)).to_vec();
        kept.sort_unstable();
        kept
    }
}
