//! One pass: tokens in, logits out. Read it top to bottom; the rest of the crate serves these lines.

use crate::error::{Error, Message, Result};
use crate::gguf::GgufFile;
use crate::gguf::quant::dequantize_row;
use crate::kernels::Kernels;
use crate::kv::{AttnLayer, KvCache};
use crate::mem::pool::Pool;

use super::config::Config;
use super::mixers::Pass;
use super::pack::Pack;
use super::rope::Ropes;
use super::scratch::Scratch;
use super::weights::{Files, Mixer, Weights};

pub struct Model {
    pub file: GgufFile,
    /// The pack beside the file, if there is one that is the model's.
    pub pack: Option<Pack>,
    /// Why one that is there is not used.
    pub unused_pack: Option<Message>,
    pub config: Config,
    pub weights: Weights,
    pub ropes: Ropes,
}

impl Model {
    pub fn load(file: GgufFile) -> Result<Model> {
        let mut model = Self::load_without_pack(file)?;
        match Pack::beside(&model.file) {
            Some(Ok(pack)) => model.pack = Some(pack),
            Some(Err(why)) => model.unused_pack = Some(why),
            None => {}
        }
        Ok(model)
    }

    pub fn load_without_pack(file: GgufFile) -> Result<Model> {
        let config = Config::from_gguf(&file)?;
        let weights = Weights::bind(&file, &config)?;
        let ropes = Ropes::new(&config, weights.rope_freqs.as_deref());
        Ok(Model { file, pack: None, unused_pack: None, config, weights, ropes })
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
    machine.scratch.angles.set(&model.ropes, step.cache().next_pos(), n_tok);
    let (Model { config: c, weights, ropes, .. }, Machine { kernels, pool, scratch: s }) = (model, machine);
    let (file, kernels) = (model.files(*kernels), *kernels);
    let mut pass = Pass { c, weights, ropes, file, kernels, pool, s, n_tok };
    // Layers with keys and values, and those with a convolution, are each counted by themselves.
    let (mut attn, mut n_conv) = (AttnLayer(0), 0);
    let last = weights.layers.len() - 1;
    for (i, layer) in weights.layers.iter().enumerate() {
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
    Ok(match wanted {
        Logits::None => &[],
        Logits::Last => pass.logits(n_tok - 1),
        Logits::All => pass.logits(0),
    })
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
