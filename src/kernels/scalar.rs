//! The plain set: what every other one must equal, and what runs where no better one can.
//!
//! A row times a token, for a quantised type: for each block of 32 in order
//!     acc  = fma(d_w * d_a, Σ q_w q_a, acc)        the sum exact, in integers
//!     accm = fma(m_w, d_a Σ q_a, accm)              only for types with a minimum
//! and the result is `acc + accm`. This order is the contract of all sets.

use super::portable::{self, Bits};
use super::{MatmulTask, Table, float};
use crate::gguf::quant::GgmlType;

pub(crate) static TABLE: Table = Table {
    matmul,
    quantize: portable::quantize,
    rms_norm: portable::rms_norm,
    add: portable::add,
    silu_mul: portable::silu_mul,
    l2_norm: portable::l2_norm,
    attend: portable::attend::<Bits>,
};

/// A block of 32 weights: its scale, its minimum, and its elements as integers.
struct Block {
    d: f32,
    m: f32,
    q: [i8; 32],
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Nibbles: byte `i` holds element `i` low and element `i + 16` high.
fn nibbles(bytes: &[u8], offset: i8) -> [i8; 32] {
    std::array::from_fn(|i| if i < 16 { (bytes[i] & 15) as i8 - offset } else { (bytes[i - 16] >> 4) as i8 - offset })
}

/// `f16 d; u8 qs[16]`: d * (q - 8)
fn q4_0(bytes: &[u8]) -> Block {
    Block { d: f16_at(bytes, 0), m: 0.0, q: nibbles(&bytes[2..], 8) }
}

/// `f16 d; f16 m; u8 qs[16]`: d * q + m
fn q4_1(bytes: &[u8]) -> Block {
    Block { d: f16_at(bytes, 0), m: f16_at(bytes, 2), q: nibbles(&bytes[4..], 0) }
}

/// `f16 d; i8 qs[32]`: d * q
fn q8_0(bytes: &[u8]) -> Block {
    Block { d: f16_at(bytes, 0), m: 0.0, q: std::array::from_fn(|i| bytes[2 + i] as i8) }
}

/// # Safety
/// The task's elements of `out` belong to the caller.
unsafe fn matmul(task: &mut MatmulTask) {
    match task.w.ty {
        // SAFETY: passed on.
        GgmlType::Q4_0 => unsafe { by_blocks(task, q4_0, false) },
        // SAFETY: passed on.
        GgmlType::Q4_1 => unsafe { by_blocks(task, q4_1, true) },
        // SAFETY: passed on.
        GgmlType::Q8_0 => unsafe { by_blocks(task, q8_0, false) },
        // SAFETY: passed on; `Bits` needs no CPU feature.
        GgmlType::F16 | GgmlType::F32 => unsafe { float::rows::<Bits>(task) },
        ty => unreachable!("{ty:?} was refused when the model was loaded"),
    }
}

/// # Safety
/// As `matmul`.
#[inline(always)]
unsafe fn by_blocks(task: &mut MatmulTask, block: impl Fn(&[u8]) -> Block, has_min: bool) {
    let acts = task.acts;
    let n_blocks = acts.n_cols / 32;
    for row in task.rows.clone() {
        let bytes = task.w.row(row);
        for t in 0..acts.n_tok {
            let (mut acc, mut acc_m) = (0f32, 0f32);
            for (b, bytes) in bytes.chunks_exact(task.w.ty.block_bytes()).enumerate() {
                let w = block(bytes);
                let at = t * n_blocks + b;
                let q = &acts.q[at * 32..][..32];
                let sum: i32 = w.q.iter().zip(q).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
                acc = (w.d * acts.d[at]).mul_add(sum as f32, acc);
                if has_min {
                    acc_m = w.m.mul_add(acts.s[at], acc_m);
                }
            }
            // SAFETY: the caller's element.
            unsafe { task.out.store(t, row, acc + acc_m) };
        }
    }
}
