//! The tensors of a model, layer by layer. Matrices stay in the mapped file; norms and biases, a few kilobytes, are copied
//! because they are read as f32. How they are found is `binding`.

use crate::gguf::GgufFile;
use crate::gguf::quant::GgmlType;
use crate::kernels::packed::ROWS;
use crate::kernels::{Matrix, Xielu};
use crate::kv::layout::{AttnLayer, LayerShape};
use crate::mem::arena::Buf;
use crate::mem::map::Map;

use super::pack::Pack;

/// A matrix of the file, or some rows of one, `[n_rows][n_cols]`.
#[derive(Clone, Copy)]
pub struct Tensor {
    pub(super) ty: GgmlType,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    pub(super) index: usize,
    /// Where its rows begin in the tensor.
    pub(super) first_row: usize,
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

    pub(super) fn n_bytes(&self) -> usize {
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

impl Files<'_> {
    /// Asks for the matrices of an expert, which are then read all at once.
    pub fn will_need(&self, w: &Dense) {
        for tensor in [w.gate, Some(w.up), Some(w.down)].into_iter().flatten() {
            let data = tensor.in_file(self).data;
            self.maps().for_each(|map| map.will_need(data));
        }
    }

    /// Experts are read when they are asked for, and not what lies around them.
    pub fn read_experts_alone(&self, layers: &[Layer]) {
        for layer in layers {
            let Some(experts) = layer.ffn.experts() else { continue };
            for tensor in experts.tensors() {
                let data = tensor.in_file(self).data;
                self.maps().for_each(|map| map.is_read_here_and_there(data));
            }
        }
    }

    fn maps(&self) -> impl Iterator<Item = &Map> {
        self.model.maps().chain(self.pack.map(|pack| pack.map()))
    }
}

pub struct Layer {
    pub attn_norm: Option<Buf<f32>>, // [n_embd]
    pub mixer: Mixer,
    pub mixer_output: Tensor, // [n_embd][q_dim]: `attn_output`, or `shortconv.out_proj`; [n_embd][v_dim], [n_embd][inner_dim]: `ssm_out`
    pub mixer_bias: Option<Buf<f32>>, // [n_embd], of `mixer_output`
    /// What mixes tokens beside attention, and `ssm_out`, [n_embd][inner_dim]
    pub beside: Option<(Mamba, Tensor)>,
    pub attn_post_norm: Option<Buf<f32>>, // [n_embd], of what attention adds
    pub ffn_norm: Option<Buf<f32>>,       // [n_embd]
    pub ffn: Ffn,
    pub ffn_post_norm: Option<Buf<f32>>, // [n_embd], of what the FFN adds
    pub input: Option<LayerInput>,
    /// What the residual stream is multiplied with at its end.
    pub output_scale: f32,
}

/// How a layer is fed from the second table of embeddings.
pub struct LayerInput {
    pub gate: Tensor,   // [n_embd_layer][n_embd]
    pub proj: Tensor,   // [n_embd][n_embd_layer]
    pub norm: Buf<f32>, // [n_embd]
}

/// The second table of embeddings, and what is added to its rows.
pub struct SecondTable {
    pub rows: Tensor,   // [n_vocab][n_layer n_embd_layer], of which a token reads one where it lies
    pub proj: Tensor,   // [n_layer n_embd_layer][n_embd]
    pub norm: Buf<f32>, // [n_embd_layer]
}

pub enum Ffn {
    Dense(Dense),
    Experts(Box<Experts>),
    Beside(Box<Beside>),
}

/// A mixture beside a dense FFN: what each reads and gives is normed for itself, and what the router reads is normed for it.
pub struct Beside {
    pub dense: Dense,
    pub dense_norm: Buf<f32>,      // [n_embd]
    pub dense_post_norm: Buf<f32>, // [n_embd]
    pub router_norm: Buf<f32>,     // [n_embd]: `ffn_gate_inp.scale` by the root of `n_embd`
    pub experts: Experts,
    pub experts_norm: Buf<f32>,      // [n_embd]
    pub experts_post_norm: Buf<f32>, // [n_embd]
}

pub struct Dense {
    pub gate: Option<Tensor>, // [n_ff][n_embd]
    pub up: Tensor,           // [n_ff][n_embd]
    pub down: Tensor,         // [n_embd][n_ff]
    pub activation: Activation,
}

/// A mixture: the matrices of all experts, one behind the other.
pub struct Experts {
    pub router: Tensor,                // [n_expert][n_embd]
    pub router_bias: Option<Buf<f32>>, // [n_expert]
    pub bias: Option<Buf<f32>>,        // [n_expert], of the choice
    pub(super) gate: Tensor,           // [n_expert * n_ff][n_embd]; with the rows of `up` between them where they are one tensor
    pub(super) up: Option<Tensor>,     // [n_expert * n_ff][n_embd]
    pub(super) down: Tensor,           // [n_expert * n_embd][n_ff]
    /// What an expert gives is multiplied with, `[n_expert]`.
    pub(super) down_scale: Option<Buf<f32>>,
    /// Of `gate` and `up`, `[n_expert][n_ff]`, and of `down`, `[n_expert][n_embd]`; they stay in the file.
    pub(super) biases: Option<[Tensor; 3]>,
    pub(super) n_ff: usize,
    pub(super) activation: Activation,
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
        Dense { gate: Some(gate), up, down: self.down.rows(expert * n_embd, n_embd), activation: self.activation }
    }

    /// All matrices of its experts.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> {
        [Some(self.gate), self.up, Some(self.down)].into_iter().flatten()
    }

    /// Its biases, a row of each.
    pub fn biases(&self, expert: usize) -> Option<[Tensor; 3]> {
        self.biases.map(|biases| biases.map(|bias| bias.rows(expert, 1)))
    }

    /// Bytes of all experts.
    pub(super) fn n_bytes(&self) -> usize {
        [self.gate, self.down]
            .into_iter()
            .chain(self.up)
            .chain(self.biases.into_iter().flatten())
            .map(|tensor| tensor.n_bytes())
            .sum()
    }
}

impl Ffn {
    /// Its mixture, if it has one.
    pub fn experts(&self) -> Option<&Experts> {
        match self {
            Ffn::Dense(_) => None,
            Ffn::Experts(experts) => Some(experts),
            Ffn::Beside(both) => Some(&both.experts),
        }
    }

    fn matrices(&self) -> Vec<Tensor> {
        let of = |dense: &Dense| [dense.gate, Some(dense.up), Some(dense.down)].into_iter().flatten();
        let mixture = self.experts().into_iter().flat_map(|e| {
            let shared = e.shared.iter().flat_map(|(dense, gate)| of(dense).chain(*gate));
            [e.router, e.gate, e.down].into_iter().chain(e.up).chain(shared)
        });
        let dense = match self {
            Ffn::Dense(dense) => Some(dense),
            Ffn::Experts(_) => None,
            Ffn::Beside(both) => Some(&both.dense),
        };
        dense.into_iter().flat_map(of).chain(mixture).collect()
    }
}

/// `arch::Activation`, with its numbers.
#[derive(Clone, Copy)]
pub enum Activation {
    Silu,
    ClampedSilu,
    Gelu,
    Relu2,
    Xielu(Xielu),
}

/// How tokens of a layer learn of each other.
pub enum Mixer {
    Attention(Attention),
    Conv(Conv),
    Delta(Delta),
    Mamba(Mamba),
}

pub struct Attention {
    pub heads: LayerShape,
    /// A layer whose keys and values it looks at, having none.
    pub shares: Option<AttnLayer>,
    pub attn_q: Tensor,                  // [q_dim][n_embd]; twice the rows where they hold gates too
    pub attn_k: Option<Tensor>,          // [kv_dim][n_embd], in a layer that has keys and values
    pub attn_v: Option<Tensor>,          // [kv_dim][n_embd], where values are not keys before their norm
    pub qkv_bias: Option<[Buf<f32>; 3]>, // [q_dim] [kv_dim] [kv_dim]
    pub head_sinks: Option<Buf<f32>>,    // [n_head], logits that join the softmax without a value
    pub q_norm: Option<Buf<f32>>,        // [head_dim], or [q_dim]
    pub k_norm: Option<Buf<f32>>,        // [head_dim], or [kv_dim]
    pub v_norm: Option<Buf<f32>>,        // [head_dim], of ones
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

/// Mamba-2; the rows of `ssm_in` are three matrices.
pub struct Mamba {
    pub gate: Tensor,           // [inner_dim][n_embd]
    pub entering: Tensor,       // [conv_dim][n_embd]
    pub dt: Tensor,             // [n_head][n_embd]
    pub taps: Buf<f32>,         // [n_tap][conv_dim], that of the newest token last
    pub conv_bias: Buf<f32>,    // [conv_dim]
    pub dt_bias: Buf<f32>,      // [n_head]
    pub a: Buf<f32>,            // [n_head]
    pub skip: Buf<f32>,         // [n_head]: `ssm_d`
    pub norm: Option<Buf<f32>>, // [n_group][inner_dim / n_group]
}

impl Mamba {
    fn matrices(&self) -> [Tensor; 3] {
        [self.gate, self.entering, self.dt]
    }
}

impl Layer {
    pub(super) fn matrices(&self) -> impl Iterator<Item = Tensor> {
        let (mixer, more) = match &self.mixer {
            Mixer::Attention(a) => ([Some(a.attn_q), a.attn_k, a.attn_v], None),
            Mixer::Conv(c) => ([c.gate_in, c.gate_out, c.input].map(Some), None),
            Mixer::Delta(d) => ([d.qkv, d.gate, d.alpha].map(Some), Some(d.beta)),
            Mixer::Mamba(m) => (m.matrices().map(Some), None),
        };
        let beside = self.beside.iter().flat_map(|(mamba, output)| mamba.matrices().into_iter().chain([*output]));
        let input = self.input.iter().flat_map(|input| [input.gate, input.proj]);
        let mixer = mixer.into_iter().flatten().chain(more).chain([self.mixer_output]).chain(beside);
        mixer.chain(self.ffn.matrices()).chain(input)
    }
}

pub struct Weights {
    pub token_embd: Tensor, // [n_vocab][n_embd]
    pub second_table: Option<SecondTable>,
    pub layers: Vec<Layer>,
    pub output_norm: Buf<f32>, // [n_embd]
    pub output: Tensor,        // [n_vocab][n_embd]: `output.weight`, or `token_embd.weight` where they are tied
    /// What each frequency is divided by: `rope_freqs.weight` (Llama 3's long-context factors), or the factors that hold
    /// within the original context. [n_rot / 2]
    pub rope_freqs: Option<Vec<f32>>,
    pub has_float: bool,
    /// Bytes of the copied norms and biases.
    pub norm_bytes: usize,
    /// Bytes of experts that a token does not go through, and that it does.
    pub idle_bytes: u64,
    pub chosen_bytes: u64,
    /// Bytes of the second table of embeddings, of which a token reads a row.
    pub table_bytes: u64,
}

/// Of the bias of a head's keys. In Qwen2.5-Coder 0.5B 40 of 48 are 4 to 21 long, four 32 to 129, and four 227 to 279.
const LONG_BIAS: f32 = 32.0;

fn is_long(bias: &[f32]) -> bool {
    bias.iter().map(|x| x * x).sum::<f32>() >= LONG_BIAS * LONG_BIAS
}

impl Weights {
    /// Every matrix that is multiplied.
    pub fn matrices(&self) -> impl Iterator<Item = Tensor> {
        let proj = self.second_table.iter().map(|table| table.proj);
        self.layers.iter().flat_map(Layer::matrices).chain([self.output]).chain(proj)
    }

    /// Of each layer with keys and values the logits that join its softmax, `[n_head]`, or none.
    pub fn head_sinks(&self) -> Vec<Vec<f32>> {
        let of = |layer: &Layer| match &layer.mixer {
            Mixer::Attention(a) if a.shares.is_none() => Some(a.head_sinks.as_ref().map_or(Vec::new(), |sinks| sinks.to_vec())),
            _ => None,
        };
        self.layers.iter().filter_map(of).collect()
    }

    /// Whether some head's keys have a bias that is long beside all else that they are made of, and RoPE turns it with them: they
    /// are then nothing to keep in few bits.
    pub fn has_long_key_biases(&self) -> bool {
        self.layers.iter().any(|layer| match &layer.mixer {
            Mixer::Attention(a) if a.k_norm.is_none() => {
                a.qkv_bias.as_ref().is_some_and(|[_, k, _]| k.chunks(a.heads.head_dim).any(is_long))
            }
            _ => false,
        })
    }

    /// Their types.
    pub fn types(&self) -> impl Iterator<Item = GgmlType> {
        self.matrices().map(|t| t.ty)
    }
}
