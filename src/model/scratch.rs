//! Every buffer of the forward pass, carved at start. Shapes are for the largest pass; a single token uses the first row.

use crate::kernels::{ActBuf, Kernels, tile_bytes};
use crate::kv::KvShape;
use crate::kv::attention::{AttendScratch, AttendShape};
use crate::kv::store::KvScratch;
use crate::mem::arena::{Arena, Buf};
use crate::mem::plan::Plan;

use super::config::Config;
use super::delta::DeltaScratch;
use super::ffn::ExpertScratch;
use super::inputs::LayerInputs;
use super::mamba::MambaScratch;
use super::rope::Angles;
use super::shortconv::ShortConvs;

/// What decides the size of the scratch.
#[derive(Clone, Copy, Debug)]
pub struct ScratchShape {
    pub kv: KvShape,
    pub n_slot: usize,
    /// Tokens of a pass at most: a batch of one stream, or a token of each.
    pub n_rows: usize,
    pub n_threads: usize,
    /// Rows of logits that may be asked for at once.
    pub n_logits: usize,
    pub has_float: bool,
    /// `Kernels::wants_halves` of some matrix.
    pub has_halves: bool,
    /// Some want room of their own.
    pub kernels: Kernels,
}

pub struct Scratch {
    pub x: Buf<f32>,      // [n_rows][n_embd] the residual stream
    pub x_norm: Buf<f32>, // [n_rows][n_embd]
    pub q: Buf<f32>,      // [n_rows][q_dim]
    pub k: Buf<f32>,      // [n_rows][kv_dim]
    pub v: Buf<f32>,      // [n_rows][kv_dim]
    pub q_gate: Buf<f32>, // [n_rows][2 q_dim] queries and gates, where attention is gated
    pub mixed: Buf<f32>,  // [n_rows][mixed_dim] what attention gives, or a recurrence
    pub beside: Buf<f32>, // [n_rows][inner_dim] what Mamba-2 gives beside attention
    pub proj: Buf<f32>,   // [n_rows][n_embd] what attention or the FFN adds to x
    pub gate: Buf<f32>,   // [n_rows][n_ff]
    pub up: Buf<f32>,     // [n_rows][n_ff]
    pub acts: ActBuf,     // [n_rows][max_cols] quantised
    pub angles: Angles,   // [n_rows][n_rot], of each rope
    pub logits: Buf<f32>, // [n_logits][n_vocab]
    pub tiles: Vec<Buf<u8>>,
    pub attend: AttendScratch,
    pub cache: Vec<KvScratch>,
    pub convs: Option<ShortConvs>,
    pub deltas: Option<DeltaScratch>,
    pub mambas: Option<MambaScratch>,
    pub experts: Option<ExpertScratch>,
    pub inputs: Option<LayerInputs>,
}

impl Scratch {
    pub fn carve(arena: &mut Arena, c: &Config, s: &ScratchShape) -> Scratch {
        let &ScratchShape { kv, n_slot, n_rows, n_threads, kernels, .. } = s;
        arena.begin_part("activations");
        let mut rows = |n: usize| arena.carve(n_rows * n);
        let [x, x_norm, proj] = [c.n_embd; 3].map(&mut rows);
        let [q, mixed] = [c.q_dim(), c.mixed_dim()].map(&mut rows);
        let beside = rows(c.beside().map_or(0, |shape| shape.inner_dim));
        let q_gate = rows(if c.gates_attention() { 2 * c.q_dim() } else { 0 });
        let [k, v] = [c.kv_dim(); 2].map(&mut rows);
        let [gate, up] = [c.n_ff; 2].map(&mut rows);
        let angles = Angles::carve(arena, c, n_rows);
        arena.begin_part("quantised activations");
        let acts = ActBuf::carve(kernels, arena, n_rows, c.max_cols(), s.has_halves);
        arena.begin_part("logits");
        let logits = arena.carve(s.n_logits * c.n_vocab);
        arena.begin_part("weight tiles");
        let tiles = (0..n_threads).map(|_| arena.carve(tile_bytes(c.max_cols(), s.has_float))).collect();
        arena.begin_part("attention scratch");
        let (n_q, soft_cap) = (c.n_head / c.n_head_kv, c.soft_caps.map_or(0.0, |caps| caps.scores));
        let attend = AttendScratch::carve(arena, AttendShape { kv, n_slot, n_threads, n_q, kernels, soft_cap });
        let cache = (0..n_threads).map(|_| KvScratch::carve(arena, n_slot, kv.max_head_dim())).collect();
        let convs = ShortConvs::carve(arena, c, n_rows);
        let deltas = DeltaScratch::carve(arena, c, n_rows);
        let mambas = MambaScratch::carve(arena, c, n_rows);
        let experts = ExpertScratch::carve(arena, c, n_rows);
        let inputs = LayerInputs::carve(arena, c, n_rows);
        #[rustfmt::skip]
        let scratch = Scratch {
            x, x_norm, q, k, v, q_gate, mixed, beside, proj, gate, up, acts, angles, logits, tiles, attend, cache, convs, deltas, mambas,
            experts, inputs,
        };
        scratch
    }

    /// A line for each part that `carve` begins.
    pub fn plan(c: &Config, s: &ScratchShape, plan: &mut Plan) {
        let mut arena = Arena::measure();
        Scratch::carve(&mut arena, c, s);
        arena.parts().iter().for_each(|&(name, bytes)| plan.private(name, bytes));
    }
}
