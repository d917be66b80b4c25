//! One pass: tokens in, logits out. Read it top to bottom; the rest of the crate serves these lines.

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::gguf::quant::dequantize_row;
use crate::kernels::{Kernels, Product};
use crate::kv::attention::Layer;
use crate::kv::cache::{KvCache, MAX_HEAD_DIM};
use crate::mem::arena::Buf;
use crate::mem::pool::Pool;

use super::config::Config;
use super::guard::Guard;
use super::pack::Pack;
use super::rope::Ropes;
use super::scratch::Scratch;
use super::weights::{Files, Mixer, Weights};

pub struct Model {
    pub file: GgufFile,
    /// The pack beside the file, if there is one that is the model's.
    pub pack: Option<Pack>,
    pub config: Config,
    pub weights: Weights,
    pub ropes: Ropes,
}

impl Model {
    pub fn load(file: GgufFile) -> Result<Model> {
        let mut model = Self::load_without_pack(file)?;
        model.pack = Pack::beside(&model.file);
        Ok(model)
    }

    pub fn load_without_pack(file: GgufFile) -> Result<Model> {
        let config = Config::from_gguf(&file)?;
        let weights = Weights::bind(&file, &config)?;
        let ropes = Ropes::new(&config, weights.rope_freqs.as_deref());
        Ok(Model { file, pack: None, config, weights, ropes })
    }

    /// What these kernels read weights from.
    pub fn files(&self, kernels: Kernels) -> Files<'_> {
        Files { model: &self.file, pack: self.pack.as_ref().filter(|_| kernels.reads_packed()) }
    }
}

/// Which tokens of a batch need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// More of the prompt follows.
    None,
    Last,
    All,
}

/// The machine that a pass runs on.
pub struct Machine {
    pub kernels: Kernels,
    pub pool: Pool,
    pub scratch: Scratch,
    pub guard: Guard,
}

/// Takes `tokens` (at most a batch of them) into the cache and returns the wanted rows of logits, `[rows][n_vocab]`.
pub fn forward<'a>(
    model: &Model,
    machine: &'a mut Machine,
    cache: &mut KvCache,
    tokens: &[u32],
    wanted: Logits,
) -> Result<&'a [f32]> {
    forward_watched(model, machine, cache, tokens, wanted, |_, _, _| ())
}

/// `forward`, with an eye on attention: `watch` is shown the cache of each layer that has one once the batch is committed, not yet counted as
/// live, and the batch's scaled queries, `[n_tok][q_dim]`, in the basis of the keys. The normal pass is compiled without it.
pub fn forward_watched<'a>(
    model: &Model,
    machine: &'a mut Machine,
    cache: &mut KvCache,
    tokens: &[u32],
    wanted: Logits,
    mut watch: impl FnMut(usize, &KvCache, &[f32]),
) -> Result<&'a [f32]> {
    let Model { config: c, weights, ropes, .. } = model;
    let Machine { kernels, pool, scratch: s, guard } = machine;
    let (kernels, n_tok) = (*kernels, tokens.len());
    let file = &model.files(kernels);
    make_room(model, pool, s, cache, n_tok)?;
    embed(model, tokens, &mut s.x)?;
    guard.always(&s.x[..n_tok * c.n_embd]);
    s.angles.set(ropes, cache.next_pos(), n_tok);
    let score_cap = c.soft_caps.map_or(0.0, |caps| caps.scores);
    // The first of the rows that are still computed: in the last layer only those whose logits are wanted.
    let mut first = 0;

    // Layers with keys and values, and those with a convolution, are each counted by themselves.
    let (mut n_attn, mut n_conv) = (0, 0);

    for (i, layer) in weights.layers.iter().enumerate() {
        let (x, x_norm) = (&mut s.x[..n_tok * c.n_embd], &mut s.x_norm[..n_tok * c.n_embd]);
        rms_norm(kernels, pool, x, &layer.attn_norm, c.rms_eps, x_norm);
        let acts = kernels.quantize(pool, x_norm, c.n_embd, &mut s.acts);
        let mixed = &mut s.mixed[..n_tok * c.q_dim()];
        match &layer.mixer {
            Mixer::Attention(layer) => {
                // What each token asks for, offers, and holds.
                let q = &mut s.q[..n_tok * c.q_dim()];
                let (k, v) = (&mut s.k[..n_tok * c.kv_dim()], &mut s.v[..n_tok * c.kv_dim()]);
                let products = &mut [
                    Product { w: layer.attn_q.in_file(file), out: &mut *q },
                    Product { w: layer.attn_k.in_file(file), out: &mut *k },
                    Product { w: layer.attn_v.in_file(file), out: &mut *v },
                ];
                kernels.matmul(pool, &mut s.tiles, acts, products);
                if let Some([q_bias, k_bias, v_bias]) = &layer.qkv_bias {
                    add_bias(kernels, q, q_bias);
                    add_bias(kernels, k, k_bias);
                    add_bias(kernels, v, v_bias);
                }
                guard.see(q, c.q_dim());
                guard.see(k, c.kv_dim());
                guard.see(v, c.kv_dim());
                if let Some([q_norm, k_norm]) = &layer.qk_norm {
                    norm_heads(kernels, pool, q, c.q_dim(), q_norm, c.rms_eps);
                    norm_heads(kernels, pool, k, c.kv_dim(), k_norm, c.rms_eps);
                }
                let a = n_attn;
                n_attn += 1;
                cache.rate(pool, a, k, v, |x| kernels.l2_norm(x));
                if c.arch.turns(a) {
                    s.angles.turn(ropes, a, q, c.q_dim(), c.head_dim);
                    s.angles.turn(ropes, a, k, c.kv_dim(), c.head_dim);
                }
                q.iter_mut().for_each(|q| *q *= c.q_scale);

                cache.learn_asked(a, q, n_tok);
                cache.place(pool, a, k, v);
                if n_tok == 1 {
                    cache.commit(a, 1);
                    Layer { cache, kernels, layer: a, soft_cap: score_cap }.attend_one(pool, &mut s.attend, q, mixed);
                } else {
                    Layer { cache, kernels, layer: a, soft_cap: score_cap }.attend_batch(pool, &mut s.attend, q, mixed, n_tok);
                    cache.commit(a, n_tok);
                }
                cache.settle(a, n_tok, |head| s.attend.given(head));
                watch(a, cache, q);
            }
            Mixer::Conv(conv) => {
                let convs = s.convs.as_mut().expect("carved for a model with convolutions");
                convs.mix((conv, n_conv), (kernels, file), (pool, &mut s.tiles), acts, mixed);
                n_conv += 1;
                guard.see(mixed, c.q_dim());
            }
        }

        if i + 1 == weights.layers.len() {
            first = match wanted {
                Logits::None => break,
                Logits::Last => n_tok - 1,
                Logits::All => 0,
            };
        }
        let rows = n_tok - first;
        let (x, mixed) = (&mut s.x[first * c.n_embd..][..rows * c.n_embd], &mixed[first * c.q_dim()..]);
        let (x_norm, proj) = (&mut s.x_norm[..rows * c.n_embd], &mut s.proj[..rows * c.n_embd]);
        let acts = kernels.quantize(pool, mixed, c.q_dim(), &mut s.acts);
        kernels.matmul(pool, &mut s.tiles, acts, &mut [Product { w: layer.mixer_output.in_file(file), out: &mut *proj }]);
        add_to(kernels, pool, x, proj, &layer.attn_post_norm, c.rms_eps, x_norm);

        // Feed-forward: SwiGLU or GeGLU.
        rms_norm(kernels, pool, x, &layer.ffn_norm, c.rms_eps, x_norm);
        let (gate, up) = (&mut s.gate[..rows * c.n_ff], &mut s.up[..rows * c.n_ff]);
        let acts = kernels.quantize(pool, x_norm, c.n_embd, &mut s.acts);
        let products = &mut [
            Product { w: layer.ffn_gate.in_file(file), out: &mut *gate },
            Product { w: layer.ffn_up.in_file(file), out: &mut *up },
        ];
        kernels.matmul(pool, &mut s.tiles, acts, products);
        pool.for_chunks(gate, c.n_ff, |t, gate| {
            let up = &up[t * c.n_ff..][..c.n_ff];
            if c.arch.is_gemma { kernels.gelu_mul(gate, up) } else { kernels.silu_mul(gate, up) }
        });
        guard.see(gate, c.n_ff);
        let acts = kernels.quantize(pool, gate, c.n_ff, &mut s.acts);
        kernels.matmul(pool, &mut s.tiles, acts, &mut [Product { w: layer.ffn_down.in_file(file), out: &mut *proj }]);
        add_to(kernels, pool, x, proj, &layer.ffn_post_norm, c.rms_eps, x_norm);
    }
    cache.advance(n_tok);
    if wanted == Logits::None {
        return guard.judge(model, false).map(|()| &[][..]);
    }

    let rows = n_tok - first;
    let (x, x_norm) = (&s.x[first * c.n_embd..][..rows * c.n_embd], &mut s.x_norm[..rows * c.n_embd]);
    rms_norm(kernels, pool, x, &weights.output_norm, c.rms_eps, x_norm);
    guard.always(x_norm);
    let acts = kernels.quantize(pool, x_norm, c.n_embd, &mut s.acts);
    let logits = &mut s.logits[..rows * c.n_vocab];
    kernels.matmul(pool, &mut s.tiles, acts, &mut [Product { w: weights.output.in_file(file), out: &mut *logits }]);
    guard.see(logits, c.n_vocab);
    guard.judge(model, true)?;
    if let Some(caps) = c.soft_caps {
        pool.for_chunks(logits, c.n_vocab.div_ceil(64), |_, logits| kernels.soft_cap(logits, caps.logits));
    }
    Ok(logits)
}

/// Positions at most over which the mean key is spread. Of 2,048, 4,096 and 8,192 the first left the least rounding error in
/// windows of 2,048 tokens; pairs that turn slowly enough to matter later gain from it as well.
const POSITIONS: usize = 2048;

/// Asks the cache to admit the tokens, renumbering first where their positions would pass the trained context, and
/// fixing how keys are rounded once enough of them were seen.
fn make_room(model: &Model, pool: &mut Pool, s: &mut Scratch, cache: &mut KvCache, n_tok: usize) -> Result<()> {
    assert!(n_tok >= 1 && n_tok <= cache.shape().n_batch, "a batch of {n_tok} tokens");
    cache.admit(n_tok)?;
    if cache.must_fix_roundings() {
        cache.fix_roundings(&mut s.renumber[0], |layer, asked, centre, angles| {
            if model.config.arch.turns(layer) {
                let (rope, angles) = (model.ropes.of(layer), &mut angles[..model.config.rope.n_rot]);
                rope.even_out(asked);
                if let Some(centre) = centre {
                    rope.mean_angles(model.config.n_ctx.min(POSITIONS), angles);
                    rope.turn(centre, angles);
                }
            }
        });
    }
    if cache.must_renumber(n_tok) {
        log::debug!(
            "position {} nears the trained context of {}: renumbering what is kept",
            cache.next_pos(),
            model.config.n_ctx
        );
        let rope = |layer| model.config.arch.turns(layer).then(|| model.ropes.of(layer));
        let n_rot = model.config.rope.n_rot;
        cache.renumber(
            pool,
            &mut s.renumber,
            |layer, steps, angles| rope(layer).into_iter().for_each(|rope| rope.angles(steps, &mut angles[..n_rot])),
            |layer, key, angles| rope(layer).into_iter().for_each(|rope| rope.turn(key, &angles[..n_rot])),
        );
    }
    Ok(())
}

fn embed(model: &Model, tokens: &[u32], x: &mut [f32]) -> Result<()> {
    let (n_embd, table) = (model.config.n_embd, model.weights.token_embd.in_model(&model.file));
    for (&token, x) in tokens.iter().zip(x.chunks_exact_mut(n_embd)) {
        assert!((token as usize) < table.n_rows, "token {token} of a vocabulary of {}", table.n_rows);
        dequantize_row(table.ty, table.row(token as usize), x)
            .map_err(|e| Error::unsupported(model.file.path(), format!("token_embd.weight: {e}")))?;
        if model.config.arch.is_gemma {
            let scale = (n_embd as f32).sqrt();
            x.iter_mut().for_each(|x| *x *= scale);
        }
    }
    Ok(())
}

fn rms_norm(kernels: Kernels, pool: &mut Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = weight.len();
    pool.for_chunks(out, n, |t, out| kernels.rms_norm(&x[t * n..][..n], weight, eps, out));
}

/// `x += y`, or what the norm makes of `y`, for which `room` is as large as they are.
fn add_to(kernels: Kernels, pool: &mut Pool, x: &mut [f32], y: &[f32], norm: &Option<Buf<f32>>, eps: f32, room: &mut [f32]) {
    let Some(norm) = norm else { return kernels.add(x, y) };
    rms_norm(kernels, pool, y, norm, eps, room);
    kernels.add(x, room);
}

fn add_bias(kernels: Kernels, x: &mut [f32], bias: &[f32]) {
    x.chunks_exact_mut(bias.len()).for_each(|x| kernels.add(x, bias));
}

/// Norms each head of each row of `x` = `[n_tok][row]`, in place.
fn norm_heads(kernels: Kernels, pool: &mut Pool, x: &mut [f32], row: usize, weight: &[f32], eps: f32) {
    pool.for_chunks(x, row, |_, x| {
        for head in x.chunks_exact_mut(weight.len()) {
            let mut raw = [0f32; MAX_HEAD_DIM];
            let raw = &mut raw[..head.len()];
            raw.copy_from_slice(head);
            kernels.rms_norm(raw, weight, eps, head);
        }
    });
}
