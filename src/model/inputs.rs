//! What each layer is fed besides the residual stream, where a model has a second table of embeddings (Gemma 4, after Gemma 3n):
//!
//! ```text
//! e = (norm(proj x / sqrt(n_embd)) + sqrt(n_embd_layer) * row of the token) / sqrt(2)     [n_layer][n_embd_layer], each layer's normed
//! in layer i, behind the FFN:   x += norm(proj_i (gelu(gate_i x) * e[i]))
//! ```
//!
//! The table is most of the file. A token's row is read where it lies in the map, and nothing else of it.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gguf::quant::dequantize_row;
use crate::kernels::{ActBuf, GEMM_FROM, Kernels, Product};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

use super::config::Config;
use super::weights::{Files, SecondTable};

/// Tokens that are projected together. A float matrix against more has sums in another order, and what a token is fed must not
/// depend on the batch.
const AT_ONCE: usize = GEMM_FROM - 1;

pub struct LayerInputs {
    all: Buf<f32>,           // [n_rows][n_layer][n_embd_layer]
    projected: Buf<f32>,     // [AT_ONCE][n_layer n_embd_layer]
    row: Buf<f32>,           // [n_layer n_embd_layer] of the table
    pub gate: Buf<f32>,      // [n_rows][n_embd_layer]
    pub n_embd_layer: usize, // of one layer
    width: usize,            // of all layers
}

impl LayerInputs {
    /// `None` for a model without a second table.
    pub fn carve(arena: &mut Arena, c: &Config, n_rows: usize) -> Option<LayerInputs> {
        let (n_embd_layer, width) = (c.n_embd_layer, c.n_layer * c.n_embd_layer);
        if n_embd_layer == 0 {
            return None;
        }
        arena.begin_part("layer inputs");
        Some(LayerInputs {
            all: arena.carve(n_rows * width),
            projected: arena.carve(n_rows.min(AT_ONCE) * width),
            row: arena.carve(width),
            gate: arena.carve(n_rows * n_embd_layer),
            n_embd_layer,
            width,
        })
    }

    /// Makes what all layers are fed for some tokens, the rows from `first` on, whose embeddings, scaled, are `x` = `[tokens][n_embd]`.
    pub fn set(
        &mut self,
        w: &SecondTable,
        (kernels, files): (Kernels, &Files),
        (pool, tiles, acts): (&mut Pool, &mut [Buf<u8>], &mut ActBuf),
        (tokens, x): (&[u32], &[f32]),
        (first, eps): (usize, f32),
    ) -> Result<()> {
        let (width, table, n_embd) = (self.width, w.rows.in_model(files.model), w.proj.n_cols());
        let ends = x.chunks(AT_ONCE * n_embd).zip(tokens.chunks(AT_ONCE)).zip((first..).step_by(AT_ONCE));
        for ((x, tokens), first) in ends {
            let projected = &mut self.projected[..tokens.len() * width];
            let acts = kernels.quantize(pool, x, n_embd, acts);
            kernels.matmul(pool, tiles, acts, &mut [Product { w: w.proj.in_file(files), out: &mut *projected }]);
            let scale = 1.0 / (n_embd as f32).sqrt();
            projected.iter_mut().for_each(|x| *x *= scale);
            let all = self.all[first * width..].chunks_exact_mut(width);
            for ((&token, projected), out) in tokens.iter().zip(projected.chunks_exact(width)).zip(all) {
                kernels.rms_norm(projected, &w.norm, eps, out);
                dequantize_row(table.ty, table.row(token as usize), &mut self.row)
                    .map_err(|e| Error::unsupported(files.model.path(), format!("per_layer_token_embd.weight: {e}")))?;
                let (of_row, of_sum) = ((self.n_embd_layer as f32).sqrt(), std::f32::consts::FRAC_1_SQRT_2);
                out.iter_mut().zip(&*self.row).for_each(|(out, row)| *out = (*out + of_row * row) * of_sum);
            }
        }
        Ok(())
    }

    /// All that some rows are fed, for the guard.
    pub fn rows(&self, rows: Range<usize>) -> &[f32] {
        &self.all[rows.start * self.width..rows.end * self.width]
    }

    /// `gate = gelu(gate) * e[layer]`, for the rows from `first` on, whose gates are the first ones.
    pub fn apply(&mut self, layer: usize, first: usize, n_rows: usize, kernels: Kernels) {
        let (n, width) = (self.n_embd_layer, self.width);
        let fed = self.all[first * width..].chunks_exact(width).map(|row| &row[layer * n..][..n]);
        self.gate.chunks_exact_mut(n).take(n_rows).zip(fed).for_each(|(gate, fed)| kernels.gelu_mul(gate, fed));
    }
}
