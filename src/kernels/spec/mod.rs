//! The specification: the set `scalar`, which every other one must equal bit for bit, and which runs where no better one can.
//!
//! Products are in weights (and float, for matrices that are not quantised), attention over a chunk of the cache in attention, what
//! goes element by element in arithmetic, which fixes the order of f32 sums. packed has the one layout that is no file's, scan and
//! placed have what the past asks for: its index, and its keys where they stand.

pub mod arithmetic;
pub mod attention;
pub mod delta;
pub mod float;
pub mod mamba;
pub mod packed;
pub mod placed;
pub mod scan;
pub mod weights;

use super::Table;

pub(crate) static TABLE: Table = Table {
    matmul: weights::matmul,
    quantize: arithmetic::quantize,
    rms_norm: arithmetic::rms_norm,
    add: arithmetic::add,
    silu_mul: arithmetic::silu_mul,
    clamped_silu_mul: arithmetic::clamped_silu_mul,
    gelu_mul: arithmetic::gelu_mul,
    silu: arithmetic::silu,
    sigmoid_mul: arithmetic::sigmoid_mul,
    delta_step: delta::delta_step,
    mamba_step: mamba::mamba_step,
    relu2: arithmetic::relu2,
    xielu: arithmetic::xielu,
    soft_cap: arithmetic::soft_cap,
    l2_norm: arithmetic::l2_norm,
    attend: attention::attend,
    merge: attention::merge,
    received: attention::received,
    scan: scan::scan,
    add_shares: scan::add_shares,
    place: placed::place,
    widen: None,
};
