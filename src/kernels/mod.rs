//! The kernels: what a token's arithmetic is made of, in sets that are chosen at run time.
//!
//! ```text
//! operands   what a kernel takes and gives       dispatch, delta, mamba   safe calls: shapes are checked, work is split over the pool
//! spec/      what every set must equal           rows/      keys and values in their rows of the cache
//! x86/ arm/  the sets                            suite/     each set against the specification
//! ```
//!
//! A `Kernels` value is the proof that this CPU has the features of its set: only detection builds one, so calling through it is
//! safe. Every set gives the bits of `spec/`, because integer block sums are exact and every f32 sum has one order; but for a float
//! matrix against a batch (`x86/float.rs`, `arm/dense.rs`). So each operation may take the set that is fastest at it (`Op`,
//! `assigned`), and no result shows which one it was.
//!
//! A weight type needs its block in gguf/quant (`unpacking`), a format in formats.rs of x86 and arm (or grids.rs), its line in the `matmul` of
//! x86/product.rs and arm/mod.rs, and in `QUANTISED` of the suite. A set needs a `TABLE` (arm/i8mm.rs is the shortest file with one), a
//! `SetName`, and its features in `SetName::is_detected`.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod arm;
mod assigned;
mod delta;
mod dispatch;
mod mamba;
mod operands;
pub mod rows;
pub mod spec;
#[cfg(test)]
mod suite;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use crate::error::{Error, Result, Setting};
use crate::gguf::quant::{GgmlType, can_dequantize};

use assigned::Assigned;
pub use assigned::{FEW_TOKENS, Op};
pub use delta::DeltaNet;
pub use mamba::Mamba;
pub use operands::{
    ActBuf, Acts, Attend, BLOCK, CHUNK, MAX_HEAD_DIM, MAX_QUERIES, MatmulTask, Matrix, Out, Partial, Product, RopeOrder, Rows,
    TILE_ROWS, tile_bytes, weights_len,
};
pub use rows::codec as kv_rows;
pub use rows::hadamard::{flip, hadamard};
pub use spec::arithmetic::Xielu;
use spec::delta::DeltaStep;
pub use spec::float::GEMM_FROM;
use spec::mamba::MambaStep;
pub use spec::placed::{AngleSum, Placing};
pub use spec::scan::{Asked, SCAN_CHUNK, SCAN_CHUNKS, SCAN_TILE, scan_steps, scan_tile_bytes};
pub use spec::{arithmetic as portable, packed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetName {
    Scalar,
    Neon,
    Dotprod,
    I8mm,
    Avx2,
    Vnni256,
    Avx512,
}

impl SetName {
    pub const ALL: [SetName; 7] =
        [SetName::Scalar, SetName::Neon, SetName::Dotprod, SetName::I8mm, SetName::Avx2, SetName::Vnni256, SetName::Avx512];

    pub fn name(self) -> &'static str {
        match self {
            SetName::Scalar => "scalar",
            SetName::Neon => "neon",
            SetName::Dotprod => "dotprod",
            SetName::I8mm => "i8mm",
            SetName::Avx2 => "avx2",
            SetName::Vnni256 => "vnni256",
            SetName::Avx512 => "avx512",
        }
    }

    /// Whether this CPU has the features of the set, all of them.
    fn is_detected(self) -> bool {
        match self {
            SetName::Scalar => true,
            #[cfg(target_arch = "aarch64")]
            SetName::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            SetName::Dotprod => SetName::Neon.is_detected() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            SetName::I8mm => SetName::Dotprod.is_detected() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[cfg(target_arch = "x86_64")]
            SetName::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            SetName::Vnni256 | SetName::Avx512 => {
                SetName::Avx2.is_detected()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            _ => false,
        }
    }

    /// The functions of a set of this processor, whether the CPU has its features or not.
    fn table(self) -> &'static Table {
        match self {
            #[cfg(target_arch = "aarch64")]
            SetName::Neon => &arm::neon::TABLE,
            #[cfg(target_arch = "aarch64")]
            SetName::Dotprod => &arm::dotprod::TABLE,
            #[cfg(target_arch = "aarch64")]
            SetName::I8mm => &arm::i8mm::TABLE,
            #[cfg(target_arch = "x86_64")]
            SetName::Avx2 => &x86::avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            SetName::Vnni256 => &x86::vnni256::TABLE,
            #[cfg(target_arch = "x86_64")]
            SetName::Avx512 => &x86::avx512::TABLE,
            _ => &spec::TABLE,
        }
    }

    /// Whether this set has vector kernels for the type. What it has none for is multiplied by the scalar set, which gives
    /// the same bits, many times slower.
    fn is_fast(self, ty: GgmlType) -> bool {
        self != SetName::Scalar && Kernels::supports(ty)
    }

    /// Whether this set multiplies packed matrices better than others. The scalar set reads them because it is the
    /// specification; all others leave them to it.
    pub(crate) fn reads_packed(self) -> bool {
        matches!(self, SetName::Scalar | SetName::Dotprod | SetName::I8mm)
    }
}

/// The functions of one set. All `unsafe`: they need the CPU features of their set.
pub(crate) struct Table {
    pub matmul: unsafe fn(&mut MatmulTask),
    pub quantize: unsafe fn(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]),
    pub rms_norm: unsafe fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
    pub add: unsafe fn(x: &mut [f32], y: &[f32]),
    pub silu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub clamped_silu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub gelu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub silu: unsafe fn(x: &mut [f32]),
    pub sigmoid_mul: unsafe fn(x: &mut [f32], gate: &[f32]),
    pub delta_step: unsafe fn(state: &mut [f32], step: &DeltaStep, out: &mut [f32]),
    pub mamba_step: unsafe fn(state: &mut [f32], step: &MambaStep, out: &mut [f32]),
    pub relu2: unsafe fn(x: &mut [f32]),
    pub xielu: unsafe fn(x: &mut [f32], by: &Xielu),
    pub soft_cap: unsafe fn(x: &mut [f32], cap: f32),
    pub l2_norm: unsafe fn(x: &[f32]) -> f32,
    pub attend: unsafe fn(&Attend, &mut Partial),
    pub merge: unsafe fn(running: &mut [f32], acc: &mut [f32], chunk: &Partial),
    pub received: unsafe fn(tops: &[f32], weights: &[f32], running: &[f32], total: &mut [f32]),
    pub scan: unsafe fn(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]),
    pub add_shares: unsafe fn(scores: &mut [f32], total: &mut [f32]),
    pub place: unsafe fn(p: &Placing, row: &mut [u8], mean: &[f32], angles: AngleSum, key: &mut [f32]),
    /// Sets that read rows as fast where they lie have none.
    pub widen: Option<unsafe fn(&Attend, Range<usize>, &mut [f32])>,
}

/// A set of kernels that this CPU can run, and which other sets do some of its work: products of some types of weights, or
/// attention. All of them were detected.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Does whatever no other set does.
    name: SetName,
    /// Whether other sets may do some of it: no set was asked for by name.
    is_auto: bool,
    assigned: Assigned,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Kernels {
    /// Every set that this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Kernels> {
        SetName::ALL.into_iter().filter_map(Kernels::detect)
    }

    fn detect(name: SetName) -> Option<Kernels> {
        name.is_detected().then_some(Kernels { name, is_auto: false, assigned: Assigned::to(name) })
    }

    /// The set named by `--kernels`. `auto` is the fastest that this CPU can run, as a rule; where another one is faster,
    /// it may do that (`Kernels::with`).
    pub fn choose(wanted: &str) -> Result<Kernels> {
        let names = || Kernels::available().map(|k| k.name.name()).collect::<Vec<_>>().join(", ");
        if wanted == "auto" {
            let last = Kernels::available().last().expect("scalar always runs");
            return Ok(Kernels { is_auto: true, ..last });
        }
        let Some(name) = SetName::ALL.into_iter().find(|n| n.name() == wanted) else {
            return Err(Error::usage(
                Setting::Kernels,
                format!("'{wanted}' is not a kernel set; this CPU runs auto, {}", names()),
            ));
        };
        Kernels::detect(name)
            .ok_or_else(|| Error::usage(Setting::Kernels, format!("this CPU cannot run '{wanted}'; it runs auto, {}", names())))
    }

    /// Of the set that does whatever no other one does.
    pub fn name(&self) -> &'static str {
        self.name.name()
    }

    pub fn set(&self) -> SetName {
        self.name
    }

    /// The functions of the set that does whatever no other one does.
    fn table(&self) -> &'static Table {
        self.name.table()
    }

    /// Whether matrices of this type can be multiplied.
    pub fn supports(ty: GgmlType) -> bool {
        can_dequantize(ty)
    }

    /// Whether products with matrices of this type read `Acts::sum16`: minimums of halves need them, and on x86 all else that is
    /// taken off sums. That is so on all sets of a processor, whichever multiplies.
    pub fn wants_halves(&self, ty: GgmlType) -> bool {
        ty == GgmlType::Q2_K || (cfg!(target_arch = "x86_64") && self.name != SetName::Scalar)
    }

    /// See `SetName::is_fast`.
    pub fn is_fast(&self, ty: GgmlType) -> bool {
        self.name.is_fast(ty)
    }

    /// See `SetName::reads_packed`; sets that do not read them do not multiply packed matrices.
    pub fn reads_packed(&self) -> bool {
        self.name.reads_packed()
    }
}
