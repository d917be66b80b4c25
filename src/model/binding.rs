//! Finds the tensors of a model by name, and checks shape and type; a tensor that nobody would read is refused, since a model
//! with a bias that is left out is another model.

use crate::error::{Error, Result};
use crate::gguf::quant::dequantize_row;
use crate::gguf::{GgufFile, TensorInfo};
use crate::kernels::Kernels;
use crate::mem::arena::{Arena, Buf};

use super::arch::{self, Norms, QkNorm, SharedExpert};
use super::config::{Config, DeltaShape, ExpertConfig, MambaShape, Recurrence};
use super::keys::printable;
use super::norms::multiply;
use super::reading::{LONG_FACTORS, SHORT_FACTORS};
use super::weights::{
    Activation, Attention, Beside, Conv, Delta, Dense, Experts, Ffn, Layer, LayerInput, Mamba, Mixer, SecondTable, Tensor,
    Weights,
};

impl Weights {
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
        let second_table = if config.n_embd_layer > 0 { Some(binder.second_table(config)?) } else { None };
        let mut layers = Vec::new();
        for i in 0..config.n_layer {
            layers.push(binder.layer(config, i)?);
        }
        let output_norm = binder.vector(&format!("{}.weight", config.arch.output_norm), embd)?;
        let output = match config.arch.untied || file.tensor("output.weight").is_some() {
            true => binder.matrix("output.weight", vocab, embd)?,
            false => token_embd,
        };
        let has = |name| file.tensor(name).is_some();
        let rope_freqs = if has("rope_freqs.weight") || config.arch.per_layer {
            Some(binder.floats("rope_freqs.weight", &[config.rope.n_rot / 2])?)
        } else if has(SHORT_FACTORS) || has(LONG_FACTORS) {
            // The long ones hold beyond the context that is used here (`Config::from_gguf`).
            binder.floats(LONG_FACTORS, &[config.rope.n_rot / 2])?;
            Some(binder.floats(SHORT_FACTORS, &[config.rope.n_rot / 2])?)
        } else {
            None
        };
        let norm_bytes = binder.finish(config)?;
        let proj = second_table.iter().map(|table| table.proj);
        let has_float = layers.iter().flat_map(Layer::matrices).chain([output]).chain(proj).any(|t| t.is_float());
        let table_bytes = second_table.as_ref().map_or(0, |table| table.rows.n_bytes() as u64);
        let (n_expert, n_used) = config.experts.map_or((1, 1), |c| (c.n_expert as u64, c.n_used as u64));
        let of_each: u64 = layers.iter().filter_map(|layer| layer.ffn.experts()).map(|e| e.n_bytes() as u64 / n_expert).sum();
        let (idle_bytes, chosen_bytes) = (of_each * (n_expert - n_used), of_each * n_used);
        #[rustfmt::skip]
        let weights = Weights {
            token_embd, second_table, layers, output_norm, output, rope_freqs, has_float, norm_bytes, idle_bytes, chosen_bytes, table_bytes,
        };
        Ok(weights)
    }
}

/// Of the FFN of a layer, with its numbers.
fn activation(c: &Config, i: usize) -> Activation {
    match c.arch.activation {
        arch::Activation::Silu => Activation::Silu,
        arch::Activation::ClampedSilu => Activation::ClampedSilu,
        arch::Activation::Gelu => Activation::Gelu,
        arch::Activation::Relu2 => Activation::Relu2,
        arch::Activation::Xielu => Activation::Xielu(c.xielus[i]),
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

    /// Of what all layers have or none: whether any has it.
    fn has_in_any(&self, end: &str) -> bool {
        self.file.tensors().iter().any(|tensor| tensor.name.ends_with(end))
    }

    fn layer(&mut self, c: &Config, i: usize) -> Result<Layer> {
        let embd = c.n_embd;
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        let (before, after) = (c.arch.norms != Norms::After, c.arch.norms != Norms::Before);
        let mut norm = |is_there: bool, tensor: &str| is_there.then(|| self.norm(&name(tensor), embd)).transpose();
        let (attn_norm, attn_post_norm) = (norm(before, "attn_norm")?, norm(after, "post_attention_norm")?);
        let is_beside = c.experts.is_some_and(|experts| experts.is_beside);
        let (ffn_norm, ffn_post_norm) = (norm(before && !is_beside, c.arch.ffn_norm)?, norm(after, "post_ffw_norm")?);
        let (mixer, output, width) = match c.recurrent.as_ref().filter(|_| c.is_recurrent(i)).map(|recurrent| recurrent.kind) {
            None => (Mixer::Attention(self.attention(c, i)?), "attn_output", c.n_head * c.heads_of(i).head_dim),
            Some(Recurrence::ShortConv { n_tap }) => (Mixer::Conv(self.conv(i, embd, n_tap)?), "shortconv.out_proj", embd),
            Some(Recurrence::DeltaNet(shape)) => (Mixer::Delta(self.delta(i, embd, shape)?), "ssm_out", shape.v_dim()),
            Some(Recurrence::Mamba(shape)) => (Mixer::Mamba(self.mamba(c, i, shape)?), "ssm_out", shape.inner_dim),
        };
        let mixer_output = self.matrix(&name(output), embd, width)?;
        let beside = match c.beside() {
            Some(shape) => Some((self.mamba(c, i, shape)?, self.matrix(&name("ssm_out"), embd, shape.inner_dim)?)),
            None => None,
        };
        let mixer_bias = c.arch.all_biased.then(|| self.vector(&format!("blk.{i}.{output}.bias"), embd)).transpose()?;
        let ffn = match c.experts.filter(|experts| i >= experts.n_dense) {
            Some(experts) if is_beside => Ffn::Beside(Box::new(self.beside(c, i, experts)?)),
            Some(experts) => Ffn::Experts(Box::new(self.experts(c, i, experts)?)),
            None => Ffn::Dense(self.dense(c, i)?),
        };
        let (input, output_scale) = if c.arch.per_layer { self.layer_input(c, i)? } else { (None, 1.0) };
        #[rustfmt::skip]
        let layer = Layer {
            attn_norm, mixer, mixer_output, mixer_bias, beside, attn_post_norm, ffn_norm, ffn, ffn_post_norm, input, output_scale,
        };
        Ok(layer)
    }

    fn second_table(&mut self, c: &Config) -> Result<SecondTable> {
        let width = c.n_embd_layer * c.n_layer;
        Ok(SecondTable {
            rows: self.matrix("per_layer_token_embd.weight", c.n_vocab, width)?,
            proj: self.matrix("per_layer_model_proj.weight", width, c.n_embd)?,
            norm: self.vector("per_layer_proj_norm.weight", c.n_embd_layer)?,
        })
    }

    fn layer_input(&mut self, c: &Config, i: usize) -> Result<(Option<LayerInput>, f32)> {
        let (embd, width, name) = (c.n_embd, c.n_embd_layer, |tensor: &str| format!("blk.{i}.{tensor}.weight"));
        let input = match width {
            0 => None,
            _ => Some(LayerInput {
                gate: self.matrix(&name("inp_gate"), width, embd)?,
                proj: self.matrix(&name("proj"), embd, width)?,
                norm: self.vector(&name("post_norm"), embd)?,
            }),
        };
        let scale =
            if self.has_in_any(".layer_output_scale.weight") { self.floats(&name("layer_output_scale"), &[1])?[0] } else { 1.0 };
        Ok((input, scale))
    }

    fn beside(&mut self, c: &Config, i: usize, e: ExpertConfig) -> Result<Beside> {
        let embd = c.n_embd;
        let mut router_norm = self.vector(&format!("blk.{i}.ffn_gate_inp.scale"), embd)?;
        multiply(&mut router_norm, 1.0 / (embd as f32).sqrt());
        let mut norm = |tensor: &str| self.norm(&format!("blk.{i}.{tensor}.weight"), embd);
        let (dense_norm, dense_post_norm) = (norm(c.arch.ffn_norm)?, norm("post_ffw_norm_1")?);
        let (experts_norm, experts_post_norm) = (norm("pre_ffw_norm_2")?, norm("post_ffw_norm_2")?);
        let (dense, experts) = (self.dense(c, i)?, self.experts(c, i, e)?);
        Ok(Beside { dense, dense_norm, dense_post_norm, router_norm, experts, experts_norm, experts_post_norm })
    }

    fn experts(&mut self, c: &Config, i: usize, e: ExpertConfig) -> Result<Experts> {
        let (embd, ff, n) = (c.n_embd, e.n_ff, e.n_expert);
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        let router = self.matrix(&name("ffn_gate_inp"), n, embd)?;
        let is_biased = c.arch.experts.is_some_and(|mixture| mixture.biased);
        let router_bias = c.arch.all_biased.then(|| self.vector(&format!("blk.{i}.ffn_gate_inp.bias"), n)).transpose()?;
        let bias = is_biased.then(|| self.vector(&format!("blk.{i}.exp_probs_b.bias"), n)).transpose()?;
        let (gate, up) = match self.has(&name("ffn_gate_up_exps")) {
            true => (self.stack(&name("ffn_gate_up_exps"), n, 2 * ff, embd)?, None),
            false => (self.stack(&name("ffn_gate_exps"), n, ff, embd)?, Some(self.stack(&name("ffn_up_exps"), n, ff, embd)?)),
        };
        let down = self.stack(&name("ffn_down_exps"), n, embd, ff)?;
        let is_scaled = e.is_beside && self.has_in_any(".ffn_down_exps.scale");
        let down_scale = is_scaled.then(|| self.vector(&format!("blk.{i}.ffn_down_exps.scale"), n)).transpose()?;
        let biases =
            c.arch.all_biased.then(|| self.expert_biases(i, n, [("gate", ff), ("up", ff), ("down", embd)])).transpose()?;
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
        #[rustfmt::skip]
        let experts = Experts {
            router, router_bias, bias, gate, up, down, down_scale, biases, n_ff: ff, activation: activation(c, i), shared,
        };
        Ok(experts)
    }

    /// Of the matrices of `n` experts, by name and width: a row for each expert, of floats.
    fn expert_biases(&mut self, i: usize, n: usize, of: [(&str, usize); 3]) -> Result<[Tensor; 3]> {
        let mut one = |(matrix, width): (&str, usize)| {
            let name = format!("blk.{i}.ffn_{matrix}_exps.bias");
            let bias = self.matrix(&name, n, width)?;
            match bias.is_float() {
                true => Ok(bias),
                false => {
                    let what =
                        format!("tensor {name} has type {}, and a bias is one of floats: convert the model again", bias.ty);
                    Err(Error::unsupported(self.file.path(), what))
                }
            }
        };
        Ok([one(of[0])?, one(of[1])?, one(of[2])?])
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
        Ok(Dense { gate, up, down: self.matrix(&name("ffn_down"), embd, ff)?, activation: activation(c, i) })
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

    fn mamba(&mut self, c: &Config, i: usize, shape: MambaShape) -> Result<Mamba> {
        let name = |tensor: &str| format!("blk.{i}.{tensor}");
        let MambaShape { n_tap, inner_dim, n_head, n_group, .. } = shape;
        let [gate, entering, dt] = self.split(&name("ssm_in.weight"), [inner_dim, shape.conv_dim(), n_head], c.n_embd)?;
        let norm = name("ssm_norm.weight");
        // Beside attention all layers have it, or none.
        let is_normed = c.beside().is_none() || self.file.tensors().iter().any(|t| t.name.ends_with(".ssm_norm.weight"));
        Ok(Mamba {
            gate,
            entering,
            dt,
            taps: self.taps(&name("ssm_conv1d.weight"), n_tap, shape.conv_dim())?,
            conv_bias: self.vector(&name("ssm_conv1d.bias"), shape.conv_dim())?,
            dt_bias: self.vector(&name("ssm_dt.bias"), n_head)?,
            a: self.table(&name("ssm_a"), &[1, n_head])?,
            skip: self.table(&name("ssm_d"), &[1, n_head])?,
            norm: is_normed.then(|| self.table(&norm, &[inner_dim / n_group, n_group])).transpose()?,
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
        let (embd, heads, shares) = (c.n_embd, c.heads_of(i), c.shares(i));
        let rows @ [q, kv, _] = [with_gates * c.n_head * heads.head_dim, heads.row_dim(), heads.row_dim()];
        let name = |tensor: &str| format!("blk.{i}.{tensor}.weight");
        // Converters write one tensor or three in any family.
        let (attn_q, attn_k, attn_v) = if self.has(&name("attn_qkv")) {
            let [q, k, v] = self.split(&name("attn_qkv"), rows, embd)?;
            (q, Some(k).filter(|_| shares.is_none()), Some(v).filter(|_| shares.is_none()))
        } else if shares.is_some() {
            // Those that a file has in such a layer are of no use.
            ["attn_k", "attn_v", "attn_k_norm"].into_iter().for_each(|tensor| self.leave(&name(tensor)));
            (self.matrix(&name("attn_q"), q, embd)?, None, None)
        } else {
            let are_keys = c.arch.per_layer && !c.has_window(i) && self.lacks_global_values(c);
            let (attn_q, attn_k) = (self.matrix(&name("attn_q"), q, embd)?, self.matrix(&name("attn_k"), kv, embd)?);
            (attn_q, Some(attn_k), if are_keys { None } else { Some(self.matrix(&name("attn_v"), kv, embd)?) })
        };
        let qkv_bias = if c.gates_attention() || c.arch.per_layer { None } else { self.qkv_bias(c, i, rows)? };
        let head_sinks = c.arch.head_sinks.then(|| self.vector(&name("attn_sinks"), c.n_head)).transpose()?;
        let dims = match c.arch.qk_norm {
            QkNorm::No => None,
            QkNorm::Heads | QkNorm::TurnedHeads => Some([heads.head_dim; 2]),
            QkNorm::Rows => Some([q, kv]),
        };
        let mut norm = |n: Option<usize>, tensor: &str| n.map(|n| self.vector(&name(tensor), n)).transpose();
        let mut q_norm = norm(dims.map(|dims| dims[0]), "attn_q_norm")?;
        let mut k_norm = norm(dims.map(|dims| dims[1]).filter(|_| shares.is_none()), "attn_k_norm")?;
        let q_weight = match (&mut q_norm, &mut k_norm) {
            (Some(q), Some(k)) if c.arch.qk_norm == QkNorm::TurnedHeads => {
                let mut weight = self.norms.carve(heads.head_dim);
                weight.iter_mut().zip(&**q).zip(&**k).for_each(|((weight, q), k)| *weight = q * k);
                q.fill(1.0);
                k.fill(1.0);
                Some(weight)
            }
            _ => None,
        };
        let v_norm = (c.arch.per_layer && shares.is_none()).then(|| {
            let mut ones = self.norms.carve(heads.head_dim);
            ones.fill(1.0);
            ones
        });
        Ok(Attention { heads, shares, attn_q, attn_k, attn_v, qkv_bias, head_sinks, q_norm, k_norm, v_norm, q_weight })
    }

    /// Whether no layer that sees all tokens has values of its own: keys are values there, or a file that has lost a tensor is refused.
    fn lacks_global_values(&self, c: &Config) -> bool {
        (0..c.n_holding()).filter(|&i| !c.has_window(i)).all(|i| !self.has(&format!("blk.{i}.attn_v.weight")))
    }

    /// A tensor that may be there and is not read.
    fn leave(&mut self, name: &str) {
        if let Some(index) = self.file.tensors().iter().position(|t| t.name == name) {
            self.used[index] = true;
        }
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

    /// A norm of a layer; Falcon-H1's converter gives one of them a name without its end.
    fn norm(&mut self, name: &str, n: usize) -> Result<Buf<f32>> {
        let short = name.strip_suffix(".weight").filter(|short| !self.has(name) && self.has(short));
        self.vector(short.unwrap_or(name), n)
    }

    /// A norm or a bias, copied.
    fn vector(&mut self, name: &str, n: usize) -> Result<Buf<f32>> {
        self.table(name, &[n])
    }

    /// The same of more dimensions, the row length first.
    fn table(&mut self, name: &str, shape: &[usize]) -> Result<Buf<f32>> {
        let values = self.floats(name, shape)?;
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
