//! The tensors of a model, found by name, shape and type checked; a tensor that nobody would read is refused, since a
//! model with a bias that is left out is another model. Matrices stay in the mapped file; norms and biases, a few
//! kilobytes, are copied because they are read as f32.

use crate::error::{Error, Result};
use crate::gguf::quant::{GgmlType, dequantize_row};
use crate::gguf::{GgufFile, TensorInfo};
use crate::kernels::packed::ROWS;
use crate::kernels::{Kernels, Matrix, Xielu};
use crate::mem::arena::{Arena, Buf};

use super::arch::{self, Norms, QkNorm, SharedExpert};
use super::config::{Config, DeltaShape, ExpertConfig, Recurrence};
use super::keys::printable;
use super::pack::Pack;
use super::reading::{LONG_FACTORS, SHORT_FACTORS};

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

    /// Some of its rows.
    fn rows(&self, first: usize, n_rows: usize) -> Tensor {
        assert!(first + n_rows <= self.n_rows);
        Tensor { first_row: self.first_row + first, n_rows, ..*self }
    }

    fn n_bytes(&self) -> usize {
        self.n_rows * (self.n_cols / self.ty.block_elems() * self.ty.block_bytes())
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub fn n_cols(&self) -> usize {
        self.n_cols
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
    pub attn_norm: Option<Buf<f32>>, // [n_embd]
    pub mixer: Mixer,
    pub mixer_output: Tensor, // [n_embd][q_dim]: `attn_output`, or `shortconv.out_proj`; [n_embd][v_dim]: `ssm_out`
    pub attn_post_norm: Option<Buf<f32>>, // [n_embd], of what attention adds
    pub ffn_norm: Option<Buf<f32>>, // [n_embd]
    pub ffn: Ffn,
    pub ffn_post_norm: Option<Buf<f32>>, // [n_embd], of what the FFN adds
}

pub enum Ffn {
    Dense(Dense),
    Experts(Box<Experts>),
}

pub struct Dense {
    pub gate: Option<Tensor>, // [n_ff][n_embd]
    pub up: Tensor,           // [n_ff][n_embd]
    pub down: Tensor,         // [n_embd][n_ff]
    pub activation: Activation,
}

/// A mixture: the matrices of all experts, one behind the other.
pub struct Experts {
    pub router: Tensor,         // [n_expert][n_embd]
    pub bias: Option<Buf<f32>>, // [n_expert], of the choice
    gate: Tensor,               // [n_expert * n_ff][n_embd]; with the rows of `up` between them where they are one tensor
    up: Option<Tensor>,         // [n_expert * n_ff][n_embd]
    down: Tensor,               // [n_expert * n_embd][n_ff]
    n_ff: usize,
    /// An expert that all tokens share, and its gate, `[1][n_embd]`, if it has one.
    pub shared: Option<(Dense, Option<Tensor>)>,
}

impl Experts {
    /// Its matrices.
    pub fn expert(&self, expert: usize) -> Dense {
        let (n_ff, n_embd) = (self.n_ff, self.gate.n_cols);
        let (gate, up) = match self.up {
            Some(up) => (self.gate.rows(expert * n_ff, n_ff), up.rows(expert * n_ff, n_ff)),
            None => (self.gate.rows(2 * expert * n_ff, n_ff), self.gate.rows((2 * expert + 1) * n_ff, n_ff)),
        };
        Dense { gate: Some(gate), up, down: self.down.rows(expert * n_embd, n_embd), activation: Activation::Silu }
    }

    /// Bytes of all experts.
    fn n_bytes(&self) -> usize {
        [self.gate, self.down].into_iter().chain(self.up).map(|tensor| tensor.n_bytes()).sum()
    }
}

impl Ffn {
    fn matrices(&self) -> Vec<Tensor> {
        let of = |dense: &Dense| [dense.gate, Some(dense.up), Some(dense.down)].into_iter().flatten().collect::<Vec<_>>();
        match self {
            Ffn::Dense(dense) => of(dense),
            Ffn::Experts(e) => {
                let shared = e.shared.iter().flat_map(|(dense, gate)| of(dense).into_iter().chain(*gate));
                [e.router, e.gate, e.down].into_iter().chain(e.up).chain(shared).collect()
            }
        }
    }
}

/// `arch::Activation`, with its numbers.
#[derive(Clone, Copy)]
pub enum Activation {
    Silu,
    Gelu,
    Relu2,
    Xielu(Xielu),
}

/// How tokens of a layer learn of each other.
pub enum Mixer {
    Attention(Attention),
    Conv(Conv),
    Delta(Delta),
}

pub struct Attention {
    pub attn_q: Tensor,                  // [q_dim][n_embd]; twice the rows where they hold gates too
    pub attn_k: Tensor,                  // [kv_dim][n_embd]
    pub attn_v: Tensor,                  // [kv_dim][n_embd]
    pub qkv_bias: Option<[Buf<f32>; 3]>, // [q_dim] [kv_dim] [kv_dim]
    pub qk_norm: Option<[Buf<f32>; 2]>,  // [head_dim] each, or [q_dim] and [kv_dim]
    /// What turned queries are multiplied with, where their norm and that of keys come after turning. A norm commutes with turning
    /// but for its weights, and those of keys count as much in the queries: so keys stay what can be turned. [head_dim]
    pub q_weight: Option<Buf<f32>>,
}

/// `shortconv.in_proj`, whose rows are three matrices, and `shortconv.conv`.
pub struct Conv {
    pub gate_in: Tensor,  // [n_embd][n_embd], of what enters the convolution
    pub gate_out: Tensor, // [n_embd][n_embd], of what leaves it
    pub input: Tensor,    // [n_embd][n_embd]
    pub taps: Buf<f32>,   // [n_tap][n_embd], that of the newest token last (in the file `[n_embd][n_tap]`)
}

/// A gated delta net behind a convolution.
pub struct Delta {
    pub qkv: Tensor,    // [conv_dim][n_embd]
    pub gate: Tensor,   // [v_dim][n_embd]
    pub alpha: Tensor,  // [n_v_head][n_embd]
    pub beta: Tensor,   // [n_v_head][n_embd]
    pub taps: Buf<f32>, // [n_tap][conv_dim], that of the newest token last
    pub a: Buf<f32>,    // [n_v_head]
    pub dt: Buf<f32>,   // [n_v_head]
    pub norm: Buf<f32>, // [head_dim]
}

impl Layer {
    fn matrices(&self) -> impl Iterator<Item = Tensor> {
        let (mixer, more) = match &self.mixer {
            Mixer::Attention(a) => ([a.attn_q, a.attn_k, a.attn_v], None),
            Mixer::Conv(c) => ([c.gate_in, c.gate_out, c.input], None),
            Mixer::Delta(d) => ([d.qkv, d.gate, d.alpha], Some(d.beta)),
        };
        mixer.into_iter().chain(more).chain([self.mixer_output]).chain(self.ffn.matrices())
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
    /// Bytes of the copied norms and biases.
    pub norm_bytes: usize,
    /// Bytes of experts that a token does not go through.
    pub idle_bytes: u64,
}

impl Weights {
    /// Every matrix that is multiplied.
    pub fn matrices(&self) -> impl Iterator<Item = Tensor> {
        self.layers.iter().flat_map(Layer::matrices).chain([self.output])
    }

    /// Their types.
    pub fn types(&self) -> impl Iterator<Item = GgmlType> {
        self.matrices().map(|t| t.ty)
    }

    pub fn bind(file: &GgufFile, config: &Config) -> Result<Weights> {
        // Once to check all and to measure what is copied, once to copy it.
        let norm_bytes = Self::bind_into(Arena::measure(), file, config)?.norm_bytes;
        let norms = Arena::take(norm_bytes).map_err(|e| Error::io(file.path(), e))?;
        Self::bind_into(norms, file, config)
    }

    fn bind_into(norms: Arena, file: &GgufFile, config: &Config) -> Result<Weights> {
        let mut binder = Binder { file, norms, used: vec![false; file.tensors().len()] };
        let (embd, vocab) = (config.n_embd, config.n_vocab);
        let token_embd = binder.matrix("token_embd.weight", vocab, embd)?;
        let mut layers = Vec::new();
        for i in 0..config.n_layer {
            layers.push(binder.layer(config, i)?);
        }
        let output_norm = binder.vector(&format!("{}.weight", config.arch.output_norm), embd)?;
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
        let norm_bytes = binder.finish(config)?;
        let has_float = layers.iter().flat_map(Layer::matrices).chain([output]).any(|t| t.is_float());
        let idle = |layer: &Layer| match (&layer.ffn, config.experts) {
            (Ffn::Experts(experts), Some(c)) => (experts.n_bytes() / c.n_expert * (c.n_expert - c.n_used)) as u64,
            _ => 0,
        };
        let idle_bytes = layers.iter().map(idle).sum();
        Ok(Weights { token_embd, layers, output_norm, output, rope_freqs, has_float, norm_bytes, idle_bytes })
    }
}

struct Binder<'a> {
    file: &'a GgufFile,
    norms: Arena,
    used: Vec<bool>,
}

impl<'a> Binder<'a> {
    fn find(&mut self, name: &str, shape: &[u64]) -> Result<(usize, &'a TensorInfo)> {
        let tensor = self.file.tensor_shaped(name, shape)?;
        let index = self.file.tensors().iter().position(|t| std::ptr::eq(t, tensor)).expect("a tensor of this file");
        self.used[index] = true;
        Ok((index, tensor))
    }

    fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_some()
    }

    fn layer(&mut self, c: &Config, i: usize) -> Result<Layer> {
        let embd = c.n_embd;
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        let (before, after) = (c.arch.norms != Norms::After, c.arch.norms != Norms::Before);
        let mut norm = |is_there: bool, tensor: &str| is_there.then(|| self.vector(&name(tensor), embd)).transpose();
        let (attn_norm, attn_post_norm) = (norm(before, "attn_norm")?, norm(after, "post_attention_norm")?);
        let (ffn_norm, ffn_post_norm) = (norm(before, c.arch.ffn_norm)?, norm(after, "post_ffw_norm")?);
        let (mixer, output, width) = match c.recurrent.as_ref().filter(|_| c.is_recurrent(i)).map(|recurrent| recurrent.kind) {
            None => (Mixer::Attention(self.attention(c, i)?), "attn_output", c.q_dim()),
            Some(Recurrence::ShortConv { n_tap }) => (Mixer::Conv(self.conv(i, embd, n_tap)?), "shortconv.out_proj", embd),
            Some(Recurrence::DeltaNet(shape)) => (Mixer::Delta(self.delta(i, embd, shape)?), "ssm_out", shape.v_dim()),
        };
        let mixer_output = self.matrix(&name(output), embd, width)?;
        let ffn = match c.experts.filter(|experts| i >= experts.n_dense) {
            Some(experts) => Ffn::Experts(Box::new(self.experts(c, i, experts)?)),
            None => Ffn::Dense(self.dense(c, i)?),
        };
        Ok(Layer { attn_norm, mixer, mixer_output, attn_post_norm, ffn_norm, ffn, ffn_post_norm })
    }

    fn experts(&mut self, c: &Config, i: usize, e: ExpertConfig) -> Result<Experts> {
        let (embd, ff, n) = (c.n_embd, e.n_ff, e.n_expert);
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        let router = self.matrix(&name("ffn_gate_inp"), n, embd)?;
        let is_biased = c.arch.experts.is_some_and(|mixture| mixture.biased);
        let bias = is_biased.then(|| self.vector(&format!("blk.{i}.exp_probs_b.bias"), n)).transpose()?;
        let (gate, up) = match self.has(&name("ffn_gate_up_exps")) {
            true => (self.stack(&name("ffn_gate_up_exps"), n, 2 * ff, embd)?, None),
            false => (self.stack(&name("ffn_gate_exps"), n, ff, embd)?, Some(self.stack(&name("ffn_up_exps"), n, ff, embd)?)),
        };
        let down = self.stack(&name("ffn_down_exps"), n, embd, ff)?;
        let shared = match e.n_shared_ff {
            0 => None,
            ff => {
                let gate = Some(self.matrix(&name("ffn_gate_shexp"), ff, embd)?);
                let (up, down) = (self.matrix(&name("ffn_up_shexp"), ff, embd)?, self.matrix(&name("ffn_down_shexp"), embd, ff)?);
                let is_gated = c.arch.experts.is_some_and(|mixture| mixture.shared == SharedExpert::Gated);
                let own_gate = is_gated.then(|| self.row(&name("ffn_gate_inp_shexp"), embd)).transpose()?;
                Some((Dense { gate, up, down, activation: Activation::Silu }, own_gate))
            }
        };
        Ok(Experts { router, bias, gate, up, down, n_ff: ff, shared })
    }

    fn dense(&mut self, c: &Config, i: usize) -> Result<Dense> {
        let (embd, ff) = (c.n_embd, c.ffs[i]);
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        let (gate, up) = if !c.arch.activation.is_gated() {
            (None, self.matrix(&name("ffn_up"), ff, embd)?)
        } else if c.arch.fused_up {
            let [gate, up] = self.split(&name("ffn_up"), [ff, ff], embd)?;
            (Some(gate), up)
        } else {
            (Some(self.matrix(&name("ffn_gate"), ff, embd)?), self.matrix(&name("ffn_up"), ff, embd)?)
        };
        let activation = match c.arch.activation {
            arch::Activation::Silu => Activation::Silu,
            arch::Activation::Gelu => Activation::Gelu,
            arch::Activation::Relu2 => Activation::Relu2,
            arch::Activation::Xielu => Activation::Xielu(c.xielus[i]),
        };
        Ok(Dense { gate, up, down: self.matrix(&name("ffn_down"), embd, ff)?, activation })
    }

    fn conv(&mut self, i: usize, embd: usize, n_tap: usize) -> Result<Conv> {
        let in_proj = format!("blk.{i}.shortconv.in_proj.weight");
        let [gate_in, gate_out, input] = self.split(&in_proj, [embd; 3], embd)?;
        let taps = self.taps(&format!("blk.{i}.shortconv.conv.weight"), n_tap, embd)?;
        Ok(Conv { gate_in, gate_out, input, taps })
    }

    fn delta(&mut self, i: usize, embd: usize, shape: DeltaShape) -> Result<Delta> {
        let name = |tensor: &str| format!("blk.{i}.{tensor}");
        let heads = shape.n_v_head;
        Ok(Delta {
            qkv: self.matrix(&name("attn_qkv.weight"), shape.conv_dim(), embd)?,
            gate: self.matrix(&name("attn_gate.weight"), shape.v_dim(), embd)?,
            alpha: self.matrix(&name("ssm_alpha.weight"), heads, embd)?,
            beta: self.matrix(&name("ssm_beta.weight"), heads, embd)?,
            taps: self.taps(&name("ssm_conv1d.weight"), shape.n_tap, shape.conv_dim())?,
            a: self.vector(&name("ssm_a"), heads)?,
            dt: self.vector(&name("ssm_dt.bias"), heads)?,
            norm: self.vector(&name("ssm_norm.weight"), shape.head_dim)?,
        })
    }

    /// The weights of a convolution, `[n_tap][width]`; in the file each channel has its own together.
    fn taps(&mut self, name: &str, n_tap: usize, width: usize) -> Result<Buf<f32>> {
        let rows = self.floats(name, &[n_tap, width])?;
        let mut taps = self.norms.carve(n_tap * width);
        let n_channel = taps.len() / n_tap; // none while room is measured
        for (channel, row) in rows.chunks_exact(n_tap).take(n_channel).enumerate() {
            row.iter().enumerate().for_each(|(tap, &weight)| taps[tap * width + channel] = weight);
        }
        Ok(taps)
    }

    fn attention(&mut self, c: &Config, i: usize) -> Result<Attention> {
        let with_gates = if c.gates_attention() { 2 } else { 1 };
        let (embd, rows @ [q, kv, _]) = (c.n_embd, [with_gates * c.q_dim(), c.kv_dim(), c.kv_dim()]);
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        // Converters write one tensor or three in any family.
        let [attn_q, attn_k, attn_v] = match self.has(&name("attn_qkv")) {
            true => self.split(&name("attn_qkv"), rows, embd)?,
            false => [
                self.matrix(&name("attn_q"), q, embd)?,
                self.matrix(&name("attn_k"), kv, embd)?,
                self.matrix(&name("attn_v"), kv, embd)?,
            ],
        };
        let qkv_bias = if c.gates_attention() { None } else { self.qkv_bias(c, i, rows)? };
        let (mut qk_norm, mut q_weight) = (None, None);
        let mut norms = |q, k| Ok::<_, Error>([self.vector(&name("attn_q_norm"), q)?, self.vector(&name("attn_k_norm"), k)?]);
        match c.arch.qk_norm {
            QkNorm::No => {}
            QkNorm::Heads => qk_norm = Some(norms(c.head_dim, c.head_dim)?),
            QkNorm::Rows => qk_norm = Some(norms(q, kv)?),
            QkNorm::TurnedHeads => {
                let [mut q, mut k] = norms(c.head_dim, c.head_dim)?;
                let mut weight = self.norms.carve(c.head_dim);
                weight.iter_mut().zip(&*q).zip(&*k).for_each(|((weight, q), k)| *weight = q * k);
                q.fill(1.0);
                k.fill(1.0);
                (qk_norm, q_weight) = (Some([q, k]), Some(weight));
            }
        }
        Ok(Attention { attn_q, attn_k, attn_v, qkv_bias, qk_norm, q_weight })
    }

    /// Of queries, keys and values, `rows` of them: in one tensor or in three.
    fn qkv_bias(&mut self, c: &Config, i: usize, rows: [usize; 3]) -> Result<Option<[Buf<f32>; 3]>> {
        let name = |tensor: &str| format!("blk.{i}.{tensor}.bias");
        if self.has(&name("attn_qkv")) {
            let all = self.floats(&name("attn_qkv"), &[rows.iter().sum()])?;
            let mut rest = &all[..];
            return Ok(Some(rows.map(|n| {
                let (own, behind) = rest.split_at(n);
                rest = behind;
                self.copied(own)
            })));
        }
        if !c.arch.qkv_bias && !self.has(&name("attn_q")) {
            return Ok(None);
        }
        let [q, k, v] = rows;
        Ok(Some([self.vector(&name("attn_q"), q)?, self.vector(&name("attn_k"), k)?, self.vector(&name("attn_v"), v)?]))
    }

    fn matrix(&mut self, name: &str, n_rows: usize, n_cols: usize) -> Result<Tensor> {
        self.split(name, [n_rows], n_cols).map(|[matrix]| matrix)
    }

    /// A tensor that holds the rows of several matrices, one after the other.
    fn split<const N: usize>(&mut self, name: &str, n_rows: [usize; N], n_cols: usize) -> Result<[Tensor; N]> {
        self.tensor(name, &[n_cols as u64, n_rows.iter().sum::<usize>() as u64], n_rows)
    }

    /// The matrices of `n` experts, one behind the other.
    fn stack(&mut self, name: &str, n: usize, n_rows: usize, n_cols: usize) -> Result<Tensor> {
        let shape = [n_cols, n_rows, n].map(|n| n as u64);
        self.tensor(name, &shape, [n * n_rows]).map(|[all]| all)
    }

    /// A matrix of one row, which has one dimension in the file.
    fn row(&mut self, name: &str, n_cols: usize) -> Result<Tensor> {
        self.tensor(name, &[n_cols as u64], [1]).map(|[row]| row)
    }

    fn tensor<const N: usize>(&mut self, name: &str, shape: &[u64], n_rows: [usize; N]) -> Result<[Tensor; N]> {
        let (index, tensor) = self.find(name, shape)?;
        let n_cols = shape[0] as usize;
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
        let (lowest, wanted) = if name.starts_with("rope_f") { (f32::MIN_POSITIVE, "positive") } else { (f32::MIN, "finite") };
        match out.iter().all(|v| (lowest..=f32::MAX).contains(v)) {
            true => Ok(out),
            false => Err(Error::unsupported(
                self.file.path(),
                format!("tensor {name} holds values that are no {wanted} numbers: the file is damaged; fetch it again"),
            )),
        }
    }

    /// A norm or a bias, copied.
    fn vector(&mut self, name: &str, n: usize) -> Result<Buf<f32>> {
        let values = self.floats(name, &[n])?;
        Ok(self.copied(&values))
    }

    /// Nothing but the room for it, while that is measured.
    fn copied(&mut self, values: &[f32]) -> Buf<f32> {
        let mut buf = self.norms.carve(values.len());
        let n = buf.len();
        buf.copy_from_slice(&values[..n]);
        buf
    }

    /// Bytes of what was copied; an error if a tensor of the model was not asked for.
    fn finish(self, c: &Config) -> Result<usize> {
        let is_draft = |name: &str| {
            let block = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            block.is_some_and(|block| (c.n_layer..c.n_layer + c.n_draft).contains(&block))
        };
        let unread = |(tensor, used): &(&TensorInfo, &bool)| !**used && !is_draft(&tensor.name);
        match self.file.tensors().iter().zip(&self.used).find(unread) {
            None => Ok(self.norms.used()),
            Some((tensor, _)) => Err(Error::unsupported(
                self.file.path(),
                format!(
                    "tensor {} is not one that architecture '{}' reads here; leaving it out would run another model",
                    printable(&tensor.name),
                    c.arch.name
                ),
            )),
        }
    }
}
