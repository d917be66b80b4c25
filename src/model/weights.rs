//! The tensors of a model, found by name, shape and type checked; a tensor that nobody would read is refused, since a
//! model with a bias that is left out is another model. Matrices stay in the mapped file; norms and biases, a few
//! kilobytes, are copied because they are read as f32.

use crate::error::{Error, Result};
use crate::gguf::quant::{GgmlType, dequantize_row};
use crate::gguf::{GgufFile, TensorInfo};
use crate::kernels::packed::ROWS;
use crate::kernels::{Kernels, Matrix};
use crate::mem::arena::{Arena, Buf, region_bytes};

use super::config::{Config, LONG_FACTORS, SHORT_FACTORS};
use super::keys::printable;
use super::pack::Pack;

/// A matrix of the file, or some rows of one, `[n_rows][n_cols]`.
#[derive(Clone, Copy)]
pub struct Tensor {
    ty: GgmlType,
    n_rows: usize,
    n_cols: usize,
    index: usize,
    /// Where its rows begin in the tensor.
    first_row: usize,
}

impl Tensor {
    /// Where it is to be multiplied from: the pack if it is there, else the model.
    pub fn in_file<'a>(&self, files: &Files<'a>) -> Matrix<'a> {
        let native = self.in_model(files.model);
        // Some rows of a fused matrix are whole groups of interleaved rows, or stay as they are in the model.
        let whole_groups = self.first_row % ROWS == 0 && self.n_rows % ROWS == 0;
        match files.pack.filter(|_| whole_groups).and_then(|pack| pack.data(self.index)) {
            Some(data) => {
                Matrix { data: &data[self.first_row * native.row_bytes()..][..native.data.len()], packed: true, ..native }
            }
            None => native,
        }
    }

    /// As it lies in the model: row after row.
    pub fn in_model<'a>(&self, file: &'a GgufFile) -> Matrix<'a> {
        let Tensor { ty, n_rows, n_cols, index, first_row } = *self;
        let row_bytes = n_cols / ty.block_elems() * ty.block_bytes();
        let data = &file.data(&file.tensors()[index])[first_row * row_bytes..][..n_rows * row_bytes];
        Matrix { ty, n_rows, n_cols, data, packed: false }
    }

    /// In the model's directory.
    pub fn index(&self) -> usize {
        self.index
    }

    pub fn is_float(&self) -> bool {
        self.ty.is_float()
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
    pub mixer: Mixer,
    pub mixer_output: Tensor,             // [n_embd][q_dim]: `attn_output`, or `shortconv.out_proj`
    pub attn_post_norm: Option<Buf<f32>>, // [n_embd], of what attention adds
    pub ffn_norm: Buf<f32>,               // [n_embd]
    pub ffn_gate: Tensor,                 // [n_ff][n_embd]
    pub ffn_up: Tensor,                   // [n_ff][n_embd]
    pub ffn_down: Tensor,                 // [n_embd][n_ff]
    pub ffn_post_norm: Option<Buf<f32>>,  // [n_embd], of what the FFN adds
}

/// How tokens of a layer learn of each other.
pub enum Mixer {
    Attention(Attention),
    Conv(Conv),
}

pub struct Attention {
    pub attn_q: Tensor,                  // [q_dim][n_embd]
    pub attn_k: Tensor,                  // [kv_dim][n_embd]
    pub attn_v: Tensor,                  // [kv_dim][n_embd]
    pub qkv_bias: Option<[Buf<f32>; 3]>, // [q_dim] [kv_dim] [kv_dim]
    pub qk_norm: Option<[Buf<f32>; 2]>,  // [head_dim] each
}

/// `shortconv.in_proj`, whose rows are three matrices, and `shortconv.conv`.
pub struct Conv {
    pub gate_in: Tensor,  // [n_embd][n_embd], of what enters the convolution
    pub gate_out: Tensor, // [n_embd][n_embd], of what leaves it
    pub input: Tensor,    // [n_embd][n_embd]
    pub taps: Buf<f32>,   // [n_tap][n_embd], that of the newest token last (in the file `[n_embd][n_tap]`)
}

impl Layer {
    fn matrices(&self) -> [Tensor; 7] {
        let mixer = match &self.mixer {
            Mixer::Attention(a) => [a.attn_q, a.attn_k, a.attn_v],
            Mixer::Conv(c) => [c.gate_in, c.gate_out, c.input],
        };
        let [a, b, c] = mixer;
        [a, b, c, self.mixer_output, self.ffn_gate, self.ffn_up, self.ffn_down]
    }
}

pub struct Weights {
    pub token_embd: Tensor, // [n_vocab][n_embd]
    pub layers: Vec<Layer>,
    pub output_norm: Buf<f32>, // [n_embd]
    pub output: Tensor,        // [n_vocab][n_embd]: `output.weight`, or `token_embd.weight` where they are tied
    /// What each frequency is divided by: `rope_freqs.weight` (Llama 3's long-context factors), or the factors that hold
    /// within the original context. [n_rot / 2]
    pub rope_freqs: Option<Vec<f32>>,
    pub has_float: bool,
}

impl Weights {
    /// Bytes of the copied norms and biases.
    pub fn norm_bytes(c: &Config) -> usize {
        let region = region_bytes::<f32>;
        let bias = if c.arch.qkv_bias { region(c.q_dim()) + 2 * region(c.kv_dim()) } else { 0 };
        let head = if c.arch.qk_norm { 2 * region(c.head_dim) } else { 0 };
        let post = if c.arch.post_norm { 2 * region(c.n_embd) } else { 0 };
        let taps = c.conv.as_ref().map_or(0, |conv| region(conv.n_tap * c.n_embd));
        c.n_layer * (2 * region(c.n_embd) + post) + c.n_attn_layer() * (bias + head) + c.n_conv_layer() * taps + region(c.n_embd)
    }

    /// Every matrix that is multiplied.
    pub fn matrices(&self) -> impl Iterator<Item = Tensor> {
        self.layers.iter().flat_map(Layer::matrices).chain([self.output])
    }

    /// Their types.
    pub fn types(&self) -> impl Iterator<Item = GgmlType> {
        self.matrices().map(|t| t.ty)
    }

    pub fn bind(file: &GgufFile, config: &Config) -> Result<Weights> {
        let mut binder = Binder::new(file, Self::norm_bytes(config))?;
        let (embd, vocab) = (config.n_embd, config.n_vocab);
        let token_embd = binder.matrix("token_embd.weight", vocab, embd)?;
        let mut layers = Vec::new();
        for i in 0..config.n_layer {
            layers.push(binder.layer(config, i)?);
        }
        let output_norm =
            binder.vector(if config.arch.short_conv { "token_embd_norm.weight" } else { "output_norm.weight" }, embd)?;
        let output = match file.tensor("output.weight") {
            Some(_) => binder.matrix("output.weight", vocab, embd)?,
            None => token_embd,
        };
        let has = |name| file.tensor(name).is_some();
        let rope_freqs = if has("rope_freqs.weight") {
            Some(binder.floats("rope_freqs.weight", &[config.rope.n_rot / 2])?)
        } else if has(SHORT_FACTORS) || has(LONG_FACTORS) {
            // The long ones hold beyond the context that is used here (`Config::from_gguf`).
            binder.floats(LONG_FACTORS, &[config.rope.n_rot / 2])?;
            Some(binder.floats(SHORT_FACTORS, &[config.rope.n_rot / 2])?)
        } else {
            None
        };
        binder.finish(config.arch.name)?;
        let has_float = layers.iter().flat_map(Layer::matrices).chain([output]).any(|t| t.is_float());
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
        let norms = Arena::take(norm_bytes).map_err(|e| Error::io(file.path(), e))?;
        Ok(Binder { file, norms, used: vec![false; file.tensors().len()] })
    }

    fn find(&mut self, name: &str, shape: &[u64]) -> Result<(usize, &'a TensorInfo)> {
        let tensor = self.file.tensor_shaped(name, shape)?;
        let index = self.file.tensors().iter().position(|t| std::ptr::eq(t, tensor)).expect("a tensor of this file");
        self.used[index] = true;
        Ok((index, tensor))
    }

    fn layer(&mut self, c: &Config, i: usize) -> Result<Layer> {
        let (embd, ff) = (c.n_embd, c.n_ff);
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        let attn_norm = self.vector(&name("attn_norm"), embd)?;
        let (mixer, mixer_output) = match &c.conv {
            Some(conv) if conv.layers[i] => (Mixer::Conv(self.conv(i, embd, conv.n_tap)?), name("shortconv.out_proj")),
            _ => (Mixer::Attention(self.attention(c, i)?), name("attn_output")),
        };
        let mixer_output = self.matrix(&mixer_output, embd, c.q_dim())?;
        let mut post_norm = |tensor: &str| c.arch.post_norm.then(|| self.vector(&name(tensor), embd)).transpose();
        let (attn_post_norm, ffn_post_norm) = (post_norm("post_attention_norm")?, post_norm("post_ffw_norm")?);
        let ffn_norm = self.vector(&name("ffn_norm"), embd)?;
        let [ffn_gate, ffn_up] = match c.arch.fused {
            true => self.split(&name("ffn_up"), [ff, ff], embd)?,
            false => [self.matrix(&name("ffn_gate"), ff, embd)?, self.matrix(&name("ffn_up"), ff, embd)?],
        };
        let ffn_down = self.matrix(&name("ffn_down"), embd, ff)?;
        Ok(Layer { attn_norm, mixer, mixer_output, attn_post_norm, ffn_norm, ffn_gate, ffn_up, ffn_down, ffn_post_norm })
    }

    fn conv(&mut self, i: usize, embd: usize, n_tap: usize) -> Result<Conv> {
        let in_proj = format!("blk.{i}.shortconv.in_proj.weight");
        let [gate_in, gate_out, input] = self.split(&in_proj, [embd; 3], embd)?;
        let rows = self.floats(&format!("blk.{i}.shortconv.conv.weight"), &[n_tap, embd])?;
        let mut taps = self.norms.carve(n_tap * embd);
        for (channel, row) in rows.chunks_exact(n_tap).enumerate() {
            row.iter().enumerate().for_each(|(tap, &weight)| taps[tap * embd + channel] = weight);
        }
        Ok(Conv { gate_in, gate_out, input, taps })
    }

    fn attention(&mut self, c: &Config, i: usize) -> Result<Attention> {
        let (embd, q, kv) = (c.n_embd, c.q_dim(), c.kv_dim());
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        let bias = |tensor: &str| format!("blk.{i}.{tensor}.bias");
        let [attn_q, attn_k, attn_v] = match c.arch.fused {
            true => self.split(&name("attn_qkv"), [q, kv, kv], embd)?,
            false => [
                self.matrix(&name("attn_q"), q, embd)?,
                self.matrix(&name("attn_k"), kv, embd)?,
                self.matrix(&name("attn_v"), kv, embd)?,
            ],
        };
        let qkv_bias = match c.arch.qkv_bias {
            true => {
                Some([self.vector(&bias("attn_q"), q)?, self.vector(&bias("attn_k"), kv)?, self.vector(&bias("attn_v"), kv)?])
            }
            false => None,
        };
        let qk_norm = match c.arch.qk_norm {
            true => Some([self.vector(&name("attn_q_norm"), c.head_dim)?, self.vector(&name("attn_k_norm"), c.head_dim)?]),
            false => None,
        };
        Ok(Attention { attn_q, attn_k, attn_v, qkv_bias, qk_norm })
    }

    fn matrix(&mut self, name: &str, n_rows: usize, n_cols: usize) -> Result<Tensor> {
        self.split(name, [n_rows], n_cols).map(|[matrix]| matrix)
    }

    /// A tensor that holds the rows of several matrices, one after the other.
    fn split<const N: usize>(&mut self, name: &str, n_rows: [usize; N], n_cols: usize) -> Result<[Tensor; N]> {
        let (index, tensor) = self.find(name, &[n_cols as u64, n_rows.iter().sum::<usize>() as u64])?;
        if !Kernels::supports(tensor.ty) {
            let what = format!(
                "tensor {name} has type {}, which this engine cannot multiply; use a model in another quantisation, such as Q4_K_M or Q8_0",
                tensor.ty
            );
            return Err(Error::unsupported(self.file.path(), what));
        }
        let mut first_row = 0;
        Ok(n_rows.map(|n_rows| {
            first_row += n_rows;
            Tensor { ty: tensor.ty, n_rows, n_cols, index, first_row: first_row - n_rows }
        }))
    }

    /// The numbers of a small tensor; the row length first.
    fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        let (_, tensor) = self.find(name, &shape)?;
        let mut out = vec![0f32; shape.iter().product::<u64>() as usize];
        dequantize_row(tensor.ty, self.file.data(tensor), &mut out)
            .map_err(|e| Error::unsupported(self.file.path(), format!("tensor {name}: {e}")))?;
        // Frequencies are divided by factors.
        let lowest = if name.starts_with("rope_f") { f32::MIN_POSITIVE } else { f32::MIN };
        match out.iter().all(|v| (lowest..=f32::MAX).contains(v)) {
            true => Ok(out),
            false => Err(Error::unsupported(
                self.file.path(),
                format!(
                    "tensor {name} holds values that are no finite numbers from {lowest:e} up: the file is damaged; fetch it again"
                ),
            )),
        }
    }

    /// A norm or a bias, copied.
    fn vector(&mut self, name: &str, n: usize) -> Result<Buf<f32>> {
        let values = self.floats(name, &[n])?;
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
