//! The tensors of a model, found by name, shape and type checked; a tensor that nobody would read is refused, since a
//! model with a bias that is left out is another model. Matrices stay in the mapped file; the norms, a few kilobytes,
//! are copied because they are read as f32.

use crate::error::{Error, Result};
use crate::gguf::quant::{GgmlType, dequantize_row};
use crate::gguf::{GgufFile, TensorInfo};
use crate::kernels::{Kernels, Matrix};
use crate::mem::arena::{Arena, Buf, region_bytes};

use super::config::{Config, printable};
use super::pack::Pack;

/// A matrix of the file, `[n_rows][n_cols]`.
#[derive(Clone, Copy)]
pub struct Tensor {
    ty: GgmlType,
    n_rows: usize,
    n_cols: usize,
    index: usize,
}

impl Tensor {
    /// Where it is to be multiplied from: the pack if it is there, else the model.
    pub fn in_file<'a>(&self, files: &Files<'a>) -> Matrix<'a> {
        match files.pack.and_then(|pack| pack.data(self.index)) {
            Some(data) => Matrix { data, packed: true, ..self.in_model(files.model) },
            None => self.in_model(files.model),
        }
    }

    /// As it lies in the model: row after row.
    pub fn in_model<'a>(&self, file: &'a GgufFile) -> Matrix<'a> {
        let data = file.data(&file.tensors()[self.index]);
        Matrix { ty: self.ty, n_rows: self.n_rows, n_cols: self.n_cols, data, packed: false }
    }

    /// In the model's directory.
    pub fn index(&self) -> usize {
        self.index
    }

    pub fn is_float(&self) -> bool {
        matches!(self.ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
    }
}

/// The files that weights are read from.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    pub model: &'a GgufFile,
    pub pack: Option<&'a Pack>,
}

pub struct Layer {
    pub attn_norm: Buf<f32>, // [n_embd]
    pub attn_q: Tensor,      // [q_dim][n_embd]
    pub attn_k: Tensor,      // [kv_dim][n_embd]
    pub attn_v: Tensor,      // [kv_dim][n_embd]
    pub attn_output: Tensor, // [n_embd][q_dim]
    pub ffn_norm: Buf<f32>,  // [n_embd]
    pub ffn_gate: Tensor,    // [n_ff][n_embd]
    pub ffn_up: Tensor,      // [n_ff][n_embd]
    pub ffn_down: Tensor,    // [n_embd][n_ff]
}

pub struct Weights {
    pub token_embd: Tensor, // [n_vocab][n_embd]
    pub layers: Vec<Layer>,
    pub output_norm: Buf<f32>, // [n_embd]
    pub output: Tensor,        // [n_vocab][n_embd]: `output.weight`, or `token_embd.weight` where they are tied
    /// `rope_freqs.weight`: what each frequency is divided by (Llama 3's long-context factors). [n_rot / 2]
    pub rope_freqs: Option<Vec<f32>>,
    pub has_float: bool,
}

impl Weights {
    /// Bytes of the copied norms.
    pub fn norm_bytes(config: &Config) -> usize {
        (2 * config.n_layer + 1) * region_bytes::<f32>(config.n_embd)
    }

    /// Every matrix that is multiplied.
    pub fn matrices(&self) -> impl Iterator<Item = Tensor> {
        let of = |l: &Layer| [l.attn_q, l.attn_k, l.attn_v, l.attn_output, l.ffn_gate, l.ffn_up, l.ffn_down];
        self.layers.iter().flat_map(of).chain([self.output])
    }

    /// Their types.
    pub fn types(&self) -> impl Iterator<Item = GgmlType> {
        self.matrices().map(|t| t.ty)
    }

    pub fn bind(file: &GgufFile, config: &Config) -> Result<Weights> {
        let mut binder = Binder::new(file, Self::norm_bytes(config))?;
        let (embd, q, kv, ff, vocab) = (config.n_embd, config.q_dim(), config.kv_dim(), config.n_ff, config.n_vocab);
        let token_embd = binder.matrix("token_embd.weight", vocab, embd)?;
        let mut layers = Vec::new();
        for i in 0..config.n_layer {
            let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
            layers.push(Layer {
                attn_norm: binder.norm(&name("attn_norm"), embd)?,
                attn_q: binder.matrix(&name("attn_q"), q, embd)?,
                attn_k: binder.matrix(&name("attn_k"), kv, embd)?,
                attn_v: binder.matrix(&name("attn_v"), kv, embd)?,
                attn_output: binder.matrix(&name("attn_output"), embd, q)?,
                ffn_norm: binder.norm(&name("ffn_norm"), embd)?,
                ffn_gate: binder.matrix(&name("ffn_gate"), ff, embd)?,
                ffn_up: binder.matrix(&name("ffn_up"), ff, embd)?,
                ffn_down: binder.matrix(&name("ffn_down"), embd, ff)?,
            });
        }
        let output_norm = binder.norm("output_norm.weight", embd)?;
        let output = match file.tensor("output.weight") {
            Some(_) => binder.matrix("output.weight", vocab, embd)?,
            None => token_embd,
        };
        let rope_freqs = match file.tensor("rope_freqs.weight") {
            Some(_) => Some(binder.floats("rope_freqs.weight", config.rope.n_rot / 2)?),
            None => None,
        };
        binder.finish(&config.arch)?;
        let has_float = layers.iter().any(|l| {
            [l.attn_q, l.attn_k, l.attn_v, l.attn_output, l.ffn_gate, l.ffn_up, l.ffn_down].iter().any(Tensor::is_float)
        }) || output.is_float();
        Ok(Weights { token_embd, layers, output_norm, output, rope_freqs, has_float })
    }
}

struct Binder<'a> {
    file: &'a GgufFile,
    norms: Arena,
    used: Vec<bool>,
}

impl<'a> Binder<'a> {
    fn new(file: &'a GgufFile, norm_bytes: usize) -> Result<Self> {
        // The file must be able to hold the norms before memory is taken for them.
        if norm_bytes as u64 > file.file_bytes() {
            return Err(Error::unsupported(file.path(), "the metadata names more layers than the file can hold"));
        }
        let norms = Arena::new(norm_bytes).map_err(|e| Error::io(file.path(), e))?;
        Ok(Binder { file, norms, used: vec![false; file.tensors().len()] })
    }

    fn find(&mut self, name: &str, shape: &[u64]) -> Result<(usize, &'a TensorInfo)> {
        let tensor = self.file.tensor_shaped(name, shape)?;
        let index = self.file.tensors().iter().position(|t| std::ptr::eq(t, tensor)).expect("a tensor of this file");
        self.used[index] = true;
        Ok((index, tensor))
    }

    fn matrix(&mut self, name: &str, n_rows: usize, n_cols: usize) -> Result<Tensor> {
        let (index, tensor) = self.find(name, &[n_cols as u64, n_rows as u64])?;
        if !Kernels::supports(tensor.ty) {
            let what = format!(
                "tensor {name} has type {}, which this engine cannot multiply; use a model in another quantisation, such as Q4_K_M or Q8_0",
                tensor.ty
            );
            return Err(Error::unsupported(self.file.path(), what));
        }
        Ok(Tensor { ty: tensor.ty, n_rows, n_cols, index })
    }

    fn floats(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let (_, tensor) = self.find(name, &[n as u64])?;
        let mut out = vec![0f32; n];
        dequantize_row(tensor.ty, self.file.data(tensor), &mut out)
            .map_err(|e| Error::unsupported(self.file.path(), format!("tensor {name}: {e}")))?;
        match out.iter().all(|v| v.is_finite()) {
            true => Ok(out),
            false => Err(Error::unsupported(
                self.file.path(),
                format!("tensor {name} holds values that are not finite: the file is damaged; fetch it again"),
            )),
        }
    }

    fn norm(&mut self, name: &str, n: usize) -> Result<Buf<f32>> {
        let values = self.floats(name, n)?;
        let mut buf = self.norms.carve(n);
        buf.copy_from_slice(&values);
        Ok(buf)
    }

    fn finish(self, arch: &str) -> Result<()> {
        match self.file.tensors().iter().zip(&self.used).find(|(_, used)| !**used) {
            None => Ok(()),
            Some((tensor, _)) => Err(Error::unsupported(
                self.file.path(),
                format!(
                    "tensor {} is not one that architecture '{arch}' reads here; leaving it out would run another model",
                    printable(&tensor.name)
                ),
            )),
        }
    }
}
