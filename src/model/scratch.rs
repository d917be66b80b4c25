//! Every buffer of the forward pass, carved at start. Shapes are for a whole batch; a single token uses the first row.

use crate::kernels::{ActBuf, Kernels, tile_bytes};
use crate::kv::attention::{AttendRoom, AttendShape};
use crate::kv::cache::RenumberScratch;
use crate::mem::arena::{Arena, Buf, region_bytes};
use crate::mem::plan::Plan;

use super::config::Config;
use super::rope::Angles;
use super::shortconv::ShortConvs;

/// What decides the size of the scratch.
#[derive(Clone, Copy, Debug)]
pub struct ScratchShape {
    pub n_batch: usize,
    pub n_slot: usize,
    pub n_threads: usize,
    /// Rows of logits that may be asked for at once.
    pub n_logits: usize,
    pub has_float: bool,
    /// `Kernels::wants_halves` of some matrix.
    pub has_halves: bool,
    pub counts_attention: bool,
    /// Some want room of their own.
    pub kernels: Kernels,
}

pub struct Scratch {
    pub x: Buf<f32>,      // [n_batch][n_embd] the residual stream
    pub x_norm: Buf<f32>, // [n_batch][n_embd]
    pub q: Buf<f32>,      // [n_batch][q_dim]
    pub k: Buf<f32>,      // [n_batch][kv_dim]
    pub v: Buf<f32>,      // [n_batch][kv_dim]
    pub mixed: Buf<f32>,  // [n_batch][q_dim] what attention gives, or a convolution
    pub proj: Buf<f32>,   // [n_batch][n_embd] what attention or the FFN adds to x
    pub gate: Buf<f32>,   // [n_batch][n_ff]
    pub up: Buf<f32>,     // [n_batch][n_ff]
    pub acts: ActBuf,     // [n_batch][max_cols] quantised
    pub angles: Angles,   // [n_batch][n_rot], of each rope
    pub logits: Buf<f32>, // [n_logits][n_vocab]
    pub tiles: Vec<Buf<u8>>,
    pub attend: AttendRoom,
    pub renumber: Vec<RenumberScratch>,
    /// With what convolutions remember of the stream.
    pub convs: Option<ShortConvs>,
}

/// One place that knows all sizes: `plan` adds them up, `carve` takes them.
struct Sizes {
    tile: usize,
    attend: AttendShape,
}

impl Sizes {
    fn of(c: &Config, s: &ScratchShape) -> Sizes {
        let &ScratchShape { n_batch, n_slot, n_threads, counts_attention: counts, kernels, .. } = s;
        let (n_head_kv, n_q, head_dim) = (c.n_head_kv, c.n_head / c.n_head_kv, c.head_dim);
        let wide_len = kernels.wide_len(head_dim);
        let attend = AttendShape { n_slot, n_batch, n_threads, n_head_kv, n_q, head_dim, counts, wide_len };
        Sizes { tile: tile_bytes(c.max_cols(), s.has_float), attend }
    }
}

impl Scratch {
    pub fn plan(c: &Config, s: &ScratchShape, plan: &mut Plan) {
        let sizes = Sizes::of(c, s);
        let activations: usize = [c.n_embd, c.n_embd, c.n_embd, c.q_dim(), c.q_dim(), c.kv_dim(), c.kv_dim(), c.n_ff, c.n_ff]
            .iter()
            .map(|n| region_bytes::<f32>(s.n_batch * n))
            .sum();
        plan.private("activations", activations + Angles::bytes(c, s.n_batch));
        plan.private("quantised activations", ActBuf::bytes(s.kernels, s.n_batch, c.max_cols(), s.has_halves));
        plan.private("logits", region_bytes::<f32>(s.n_logits * c.n_vocab));
        plan.private("weight tiles", s.n_threads * region_bytes::<u8>(sizes.tile));
        let renumber = RenumberScratch::bytes(s.n_slot, c.head_dim);
        plan.private("attention scratch", sizes.attend.bytes() + s.n_threads * renumber);
        ShortConvs::plan(c, s.n_batch, plan);
    }

    pub fn new(c: &Config, s: &ScratchShape) -> std::io::Result<Scratch> {
        let sizes = Sizes::of(c, s);
        let mut plan = Plan::default();
        Scratch::plan(c, s, &mut plan);
        let mut arena = Arena::new(plan.private_bytes() as usize)?;
        let b = s.n_batch;
        let scratch = Scratch {
            x: arena.carve(b * c.n_embd),
            x_norm: arena.carve(b * c.n_embd),
            q: arena.carve(b * c.q_dim()),
            k: arena.carve(b * c.kv_dim()),
            v: arena.carve(b * c.kv_dim()),
            mixed: arena.carve(b * c.q_dim()),
            proj: arena.carve(b * c.n_embd),
            gate: arena.carve(b * c.n_ff),
            up: arena.carve(b * c.n_ff),
            acts: ActBuf::carve(s.kernels, &mut arena, b, c.max_cols(), s.has_halves),
            angles: Angles::carve(&mut arena, c, b),
            logits: arena.carve(s.n_logits * c.n_vocab),
            tiles: (0..s.n_threads).map(|_| arena.carve(sizes.tile)).collect(),
            attend: AttendRoom::carve(&mut arena, sizes.attend),
            convs: ShortConvs::carve(&mut arena, c, b),
            renumber: (0..s.n_threads).map(|_| RenumberScratch::carve(&mut arena, s.n_slot, c.head_dim)).collect(),
        };
        Ok(scratch)
    }
}
