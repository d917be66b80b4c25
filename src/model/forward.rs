//! One pass: tokens in, logits out. Read it top to bottom; the rest of the crate serves these lines.

use crate::error::{Error, Result};
use crate::gguf::quant::dequantize_row;
use crate::kv::store::undo::Undo;
use crate::kv::{AttnLayer, KvCache};

use super::mixers::{Part, Pass};
use super::norms::multiply;
use super::state::RecurrentState;
use super::weights::Mixer;

pub use super::{Machine, Model};

/// Which tokens of a batch need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// More of the prompt follows.
    None,
    /// That of the last token of the last lane.
    Last,
    All,
}

/// Streams that have a part in one pass at most.
pub const MAX_LANES: usize = 64;

/// What a stream brings to a pass: its memory, and the tokens that follow in it.
pub struct Lane<'a> {
    pub cache: &'a mut KvCache,
    pub recurrent: Option<&'a mut RecurrentState>,
    pub tokens: &'a [u32],
    /// Where all tokens but the first are guesses: what lets them be taken back (`kv::store::undo`).
    pub undo: Option<&'a mut Undo>,
}

/// Takes the tokens of `lanes` into their streams and returns the wanted rows of logits, `[rows][n_vocab]`. The lanes share the
/// weights that are read, and nothing else: what comes out for one does not depend on the others.
pub fn forward<'a, 'l>(
    model: &Model,
    machine: &'a mut Machine,
    lanes: impl IntoIterator<Item = Lane<'l>>,
    wanted: Logits,
) -> Result<&'a [f32]> {
    forward_watched(model, machine, lanes, wanted, |_, _, _| ())
}

/// `forward`, with an eye on the attention of the first lane: `watch` is shown the cache of each layer that has one once the batch is
/// committed (if logits of all tokens are not wanted), not yet counted as live, and the batch's scaled queries, `[n_tok][q_dim]`, in the
/// basis of the keys. The normal pass is compiled without it.
pub fn forward_watched<'a, 'l>(
    model: &Model,
    machine: &'a mut Machine,
    lanes: impl IntoIterator<Item = Lane<'l>>,
    wanted: Logits,
    mut watch: impl FnMut(AttnLayer, &KvCache, &[f32]),
) -> Result<&'a [f32]> {
    let mut parts: [Option<Part>; MAX_LANES] = [const { None }; MAX_LANES];
    let (mut n_tok, mut n_lane) = (0, 0);
    for Lane { cache, recurrent, tokens, undo } in lanes {
        let (rows, n_embd) = (n_tok..n_tok + tokens.len(), model.config.n_embd);
        let (pool, scratch) = (&mut machine.pool, &mut machine.scratch.cache[..]);
        let mut step = match undo {
            None => cache.begin(rows.len(), pool, scratch, &model.ropes)?,
            Some(undo) => cache.begin_guesses(rows.len(), undo, pool, scratch, &model.ropes)?,
        };
        embed(model, tokens, &mut machine.scratch.x[rows.start * n_embd..rows.end * n_embd])?;
        machine.set_inputs(model, tokens, rows.clone())?;
        if wanted == Logits::All {
            step.hold_shared();
        }
        machine.scratch.angles.set(&model.ropes, rows.clone(), step.cache().next_pos());
        n_tok = rows.end;
        parts[n_lane] = Some(Part { rows, step, recurrent });
        n_lane += 1;
    }
    let parts = &mut parts[..n_lane];
    machine.guard.always(&machine.scratch.x[..n_tok * model.config.n_embd]);
    let mut pass = Pass::new(model, machine, n_tok);
    // Layers with keys and values, and those with a recurrence, are each counted by themselves.
    let (mut attn, mut n_recurrent) = (AttnLayer(0), 0);
    // The last layer that holds anything of the stream: behind it there are only those that look at what others hold.
    let last = model.config.n_holding() - 1;
    let mut first = 0;
    for (i, layer) in model.weights.layers.iter().enumerate() {
        match &layer.mixer {
            Mixer::Attention(mixer) if let Some(shared) = mixer.shares => {
                pass.shared_attention(layer, mixer, shared, first, parts);
            }
            Mixer::Attention(mixer) => {
                pass.attention(layer, mixer, attn, parts);
                if let Some(Some(part)) = parts.first() {
                    watch(attn, part.step.cache(), pass.queries(mixer, &part.rows));
                }
                attn.0 += 1;
                if let Some((mamba, _)) = &layer.beside {
                    pass.mamba(layer, mamba, n_recurrent, parts);
                    n_recurrent += 1;
                }
            }
            Mixer::Conv(conv) => {
                pass.convolution(layer, conv, n_recurrent, parts);
                n_recurrent += 1;
            }
            Mixer::Delta(delta) => {
                pass.delta_net(layer, delta, n_recurrent, parts);
                n_recurrent += 1;
            }
            Mixer::Mamba(mamba) => {
                pass.mamba(layer, mamba, n_recurrent, parts);
                n_recurrent += 1;
            }
        }
        // From there on only those rows are computed further whose logits are wanted.
        first = match wanted {
            _ if i < last => 0,
            Logits::None => break,
            Logits::Last => n_tok - 1,
            Logits::All => 0,
        };
        pass.mixer_output(layer, first);
        pass.feed_forward(layer, first);
        pass.layer_end(layer, i, first);
    }
    parts.iter_mut().filter_map(Option::take).for_each(|part| part.step.finish());
    match wanted {
        Logits::None => pass.end(),
        Logits::Last => pass.logits(n_tok - 1),
        Logits::All => pass.logits(0),
    }
}

fn embed(model: &Model, tokens: &[u32], x: &mut [f32]) -> Result<()> {
    let (n_embd, table) = (model.config.n_embd, model.weights.token_embd.in_model(&model.file));
    for (&token, x) in tokens.iter().zip(x.chunks_exact_mut(n_embd)) {
        assert!((token as usize) < table.n_rows, "token {token} of a vocabulary of {}", table.n_rows);
        dequantize_row(table.ty, table.row(token as usize), x)
            .map_err(|e| Error::unsupported(model.file.path(), format!("token_embd.weight: {e}")))?;
        multiply(x, model.config.multipliers.embeddings);
    }
    Ok(())
}
