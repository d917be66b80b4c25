//! One pass: tokens in, logits out. Read it top to bottom; the rest of the crate serves these lines.

use crate::error::{Error, Result};
use crate::gguf::quant::dequantize_row;
use crate::kv::{AttnLayer, KvCache};

use super::mixers::Pass;
use super::weights::Mixer;

pub use super::{Machine, Model};

/// Which tokens of a batch need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// More of the prompt follows.
    None,
    Last,
    All,
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
    mut watch: impl FnMut(AttnLayer, &KvCache, &[f32]),
) -> Result<&'a [f32]> {
    let n_tok = tokens.len();
    let mut step = cache.begin(n_tok, &mut machine.pool, &mut machine.scratch.cache, &model.ropes)?;
    embed(model, tokens, &mut machine.scratch.x)?;
    machine.guard.always(&machine.scratch.x[..n_tok * model.config.n_embd]);
    machine.scratch.angles.set(&model.ropes, step.cache().next_pos(), n_tok);
    let mut pass = Pass::new(model, machine, n_tok);
    // Layers with keys and values, and those with a convolution, are each counted by themselves.
    let (mut attn, mut n_conv) = (AttnLayer(0), 0);
    let last = model.weights.layers.len() - 1;
    for (i, layer) in model.weights.layers.iter().enumerate() {
        match &layer.mixer {
            Mixer::Attention(mixer) => {
                pass.attention(layer, mixer, attn, &mut step);
                watch(attn, step.cache(), pass.queries());
                attn.0 += 1;
            }
            Mixer::Conv(conv) => {
                pass.convolution(layer, conv, n_conv);
                n_conv += 1;
            }
        }
        // Of the last layer only those rows are computed further whose logits are wanted.
        let first = match wanted {
            _ if i < last => 0,
            Logits::None => break,
            Logits::Last => n_tok - 1,
            Logits::All => 0,
        };
        pass.mixer_output(layer, first);
        pass.feed_forward(layer, first);
    }
    step.finish();
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
        if model.config.arch.is_gemma {
            let scale = (n_embd as f32).sqrt();
            x.iter_mut().for_each(|x| *x *= scale);
        }
    }
    Ok(())
}
