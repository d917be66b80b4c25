//! The plain set: what every other one must equal, and what runs where no better one can.
//!
//! A row times a token, for a quantised type: for each 32 columns in order one step of
//!
//! ```text
//! acc  = fma(d_w * d_a, isum, acc)       isum exact, in integers, below 2^24 so that it is exact as f32 too
//! accm = fma(m_w, s_a, accm)             only for types with a minimum; s_a = d_a Σ q_a
//! ```
//!
//! and the result is `acc + accm`. This order is the contract of all sets. What a step is made of, by type:
//! - a scale for each 32 (Q4_0 to Q8_0, IQ4_NL, MXFP4; Q4_K, Q5_K, IQ4_XS, whose d_w = d * scale and m_w = -(dmin * min)
//!   are exact): isum = Σ q_w q_a;
//! - a scale for each 16 (Q3_K, Q6_K): isum = sc0 * Σ first 16 + sc1 * Σ last 16, and d_w = d of the superblock;
//! - and a minimum for each 16 (Q2_K): besides, accm = fma(-(dmin * d_a), m0 * Σ q_a first 16 + m1 * Σ q_a last 16, accm).

use super::arithmetic::Bits;
use super::{float, packed};
use crate::gguf::quant::GgmlType;
use crate::gguf::quant::iq4::LEVELS;
use crate::gguf::quant::kquants::scale_and_min;
use crate::gguf::quant::mxfp4::{DOUBLED, half_power_of_two};
use crate::kernels::MatmulTask;

/// 32 weights of a row: elements as integers, their scales, their minimum.
struct Block {
    q: [i8; 32],
    /// Scale of the halves, 1 for types with one scale for each 32, and what multiplies both.
    sc: [i32; 2],
    d: f32,
    /// Minimum: of the whole, or integers of the halves and what multiplies both.
    m: f32,
    m_sub: [i32; 2],
}

/// What a type has for minimums.
#[derive(Clone, Copy, PartialEq)]
enum Min {
    None,
    Whole,
    Halves,
}

impl Block {
    fn new(q: [i8; 32], d: f32, m: f32) -> Block {
        Block { q, sc: [1; 2], d, m, m_sub: [0; 2] }
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Nibbles: byte `i` holds element `i` low and element `i + 16` high.
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

fn minus(q: [u8; 32], offset: i8) -> [i8; 32] {
    q.map(|q| q as i8 - offset)
}

fn levels(table: &[i8; 16], q: [u8; 32]) -> [i8; 32] {
    q.map(|q| table[usize::from(q)])
}

/// Nibbles with a fifth bit each from the 32 bits before them.
fn fives(bytes: &[u8]) -> [u8; 32] {
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|i| low[i] | (bytes[i / 8] >> (i % 8) & 1) << 4)
}

/// `f16 d; u8 qs[16]`: d * (q - 8)
fn q4_0(bytes: &[u8], _: usize) -> Block {
    Block::new(minus(nibbles(&bytes[2..]), 8), f16_at(bytes, 0), 0.0)
}

/// `f16 d; f16 m; u8 qs[16]`: d * q + m
fn q4_1(bytes: &[u8], _: usize) -> Block {
    Block::new(minus(nibbles(&bytes[4..]), 0), f16_at(bytes, 0), f16_at(bytes, 2))
}

/// `f16 d; u8 fifth[4]; u8 qs[16]`: d * (q - 16)
fn q5_0(bytes: &[u8], _: usize) -> Block {
    Block::new(minus(fives(&bytes[2..]), 16), f16_at(bytes, 0), 0.0)
}

/// `f16 d; f16 m; u8 fifth[4]; u8 qs[16]`: d * q + m
fn q5_1(bytes: &[u8], _: usize) -> Block {
    Block::new(minus(fives(&bytes[4..]), 0), f16_at(bytes, 0), f16_at(bytes, 2))
}

/// `f16 d; i8 qs[32]`: d * q
fn q8_0(bytes: &[u8], _: usize) -> Block {
    Block::new(std::array::from_fn(|i| bytes[2 + i] as i8), f16_at(bytes, 0), 0.0)
}

/// `f16 d; u8 qs[16]`: d * level
fn iq4_nl(bytes: &[u8], _: usize) -> Block {
    Block::new(levels(&LEVELS, nibbles(&bytes[2..])), f16_at(bytes, 0), 0.0)
}

/// `u8 exponent; u8 qs[16]`: half the scale times the doubled level
fn mxfp4(bytes: &[u8], _: usize) -> Block {
    Block::new(levels(&DOUBLED, nibbles(&bytes[1..])), half_power_of_two(bytes[0]), 0.0)
}

/// `f16 d; u16 high; u8 low[4]; u8 qs[128]`: d * (scale - 32) * level
fn iq4_xs(bytes: &[u8], sub: usize) -> Block {
    let high = u16::from_le_bytes([bytes[2], bytes[3]]) >> (2 * sub) & 3;
    let scale = bytes[4 + sub / 2] >> (4 * (sub % 2)) & 15 | (high << 4) as u8;
    let d = f16_at(bytes, 0) * (f32::from(scale) - 32.0);
    Block::new(levels(&LEVELS, nibbles(&bytes[8 + 16 * sub..])), d, 0.0)
}

/// 32 of four bits: in the low halves of 32 bytes, then in their high halves.
fn fours(qs: &[u8], sub: usize) -> [u8; 32] {
    std::array::from_fn(|i| qs[sub / 2 * 32 + i] >> (4 * (sub % 2)) & 15)
}

/// 32 of two bits: by bit pairs of 32 bytes.
fn twos(qs: &[u8], sub: usize) -> [u8; 32] {
    std::array::from_fn(|i| qs[sub / 4 * 32 + i] >> (2 * (sub % 4)) & 3)
}

/// `f16 d; f16 dmin; u8 scales[12]; u8 qs[128]`: d * scale * q - dmin * min
fn q4_k(bytes: &[u8], sub: usize) -> Block {
    let (sc, m) = scale_and_min(&bytes[4..16], sub);
    let (d, m) = (f16_at(bytes, 0) * f32::from(sc), f16_at(bytes, 2) * f32::from(m));
    Block::new(minus(fours(&bytes[16..], sub), 0), d, -m)
}

/// `f16 d; f16 dmin; u8 scales[12]; u8 fifth[32]; u8 qs[128]`: as Q4_K
fn q5_k(bytes: &[u8], sub: usize) -> Block {
    let low = fours(&bytes[48..], sub);
    let q = std::array::from_fn(|i| low[i] | (bytes[16 + i] >> sub & 1) << 4);
    Block { q: minus(q, 0), ..q4_k(bytes, sub) }
}

/// `u8 low[128]; u8 high[64]; i8 scales[16]; f16 d`: d * scale * (q - 32); 64 bytes hold two runs of 64
fn q6_k(bytes: &[u8], sub: usize) -> Block {
    let high = twos(&bytes[128..], sub);
    let (at, shift) = (sub / 4 * 64 + sub % 2 * 32, 4 * (sub / 2 % 2));
    let q = std::array::from_fn(|i| bytes[at + i] >> shift & 15 | high[i] << 4);
    let sc = [0, 1].map(|half| i32::from(bytes[192 + 2 * sub + half] as i8));
    Block { sc, ..Block::new(minus(q, 32), f16_at(bytes, 208), 0.0) }
}

/// `u8 third[32]; u8 qs[64]; u8 scales[12]; f16 d`: d * (scale - 32) * (q - 4)
fn q3_k(bytes: &[u8], sub: usize) -> Block {
    let low = twos(&bytes[32..], sub);
    let q = std::array::from_fn(|i| low[i] | (bytes[i] >> sub & 1) << 2);
    let sc = [2 * sub, 2 * sub + 1].map(|g| {
        let (low, high) = (bytes[96 + g % 8] >> (4 * (g / 8)) & 15, bytes[104 + g % 4] >> (2 * (g / 4)) & 3);
        i32::from(low | high << 4) - 32
    });
    Block { sc, ..Block::new(minus(q, 4), f16_at(bytes, 108), 0.0) }
}

/// `u8 scales[16]; u8 qs[64]; f16 d; f16 dmin`: d * scale * q - dmin * min, scale in the low half of a byte, min in the high
fn q2_k(bytes: &[u8], sub: usize) -> Block {
    let halves = [bytes[2 * sub], bytes[2 * sub + 1]];
    let (sc, m_sub) = (halves.map(|b| i32::from(b & 15)), halves.map(|b| i32::from(b >> 4)));
    Block { q: minus(twos(&bytes[16..], sub), 0), sc, d: f16_at(bytes, 80), m: -f16_at(bytes, 82), m_sub }
}

/// # Safety
/// The task's elements of `out` belong to the caller.
pub unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on; `Bits` needs no CPU feature.
    unsafe {
        match task.w.ty {
            GgmlType::Q4_0 => by_blocks(task, q4_0, Min::None),
            GgmlType::Q4_1 => by_blocks(task, q4_1, Min::Whole),
            GgmlType::Q5_0 => by_blocks(task, q5_0, Min::None),
            GgmlType::Q5_1 => by_blocks(task, q5_1, Min::Whole),
            GgmlType::Q8_0 => by_blocks(task, q8_0, Min::None),
            GgmlType::IQ4_NL => by_blocks(task, iq4_nl, Min::None),
            GgmlType::MXFP4 => by_blocks(task, mxfp4, Min::None),
            GgmlType::IQ4_XS => by_blocks(task, iq4_xs, Min::None),
            GgmlType::Q2_K => by_blocks(task, q2_k, Min::Halves),
            GgmlType::Q3_K => by_blocks(task, q3_k, Min::None),
            GgmlType::Q4_K => by_blocks(task, q4_k, Min::Whole),
            GgmlType::Q5_K => by_blocks(task, q5_k, Min::Whole),
            GgmlType::Q6_K => by_blocks(task, q6_k, Min::None),
            GgmlType::F16 | GgmlType::BF16 | GgmlType::F32 => float::rows::<Bits>(task),
            ty => unreachable!("{ty:?} was refused when the model was loaded"),
        }
    }
}

/// Tokens that share the unpacking of a block.
const TOKENS: usize = 8;

/// `block` gives the 32 columns `sub` of a block of the file.
///
/// # Safety
/// As `matmul`.
#[inline(always)]
unsafe fn by_blocks(task: &mut MatmulTask, block: impl Fn(&[u8], usize) -> Block, min: Min) {
    let acts = task.acts;
    let (n_blocks, per_block, bytes) = (acts.n_cols / 32, task.w.ty.block_elems() / 32, task.w.ty.block_bytes());
    let is_packed = task.w.packed;
    for row in task.rows.clone() {
        let native = if is_packed { &[][..] } else { task.w.row(row) };
        for first in (0..acts.n_tok).step_by(TOKENS) {
            let n = TOKENS.min(acts.n_tok - first);
            let (mut acc, mut acc_m) = ([0f32; TOKENS], [0f32; TOKENS]);
            for b in 0..n_blocks {
                let w = match is_packed {
                    true => block(&packed::block(&task.w, row, b), 0),
                    false => block(&native[b / per_block * bytes..][..bytes], b % per_block),
                };
                for t in 0..n {
                    let at = (first + t) * n_blocks + b;
                    let d_a = acts.d[at];
                    let isum = w.sc[0] * dot(&w.q, &acts.q[at * 32..], 0) + w.sc[1] * dot(&w.q, &acts.q[at * 32..], 16);
                    acc[t] = (w.d * d_a).mul_add(isum as f32, acc[t]);
                    match min {
                        Min::None => {}
                        Min::Whole => acc_m[t] = w.m.mul_add(acts.s[at], acc_m[t]),
                        Min::Halves => {
                            let [a0, a1] = acts.half_sums(at);
                            acc_m[t] = (w.m * d_a).mul_add((w.m_sub[0] * a0 + w.m_sub[1] * a1) as f32, acc_m[t]);
                        }
                    }
                }
            }
            for t in 0..n {
                // SAFETY: the caller's element.
                unsafe { task.out.store(first + t, row, acc[t] + acc_m[t]) };
            }
        }
    }
}

/// Of 16 elements from `at` on.
#[inline(always)]
fn dot(w: &[i8; 32], a: &[i8], at: usize) -> i32 {
    w[at..at + 16].iter().zip(&a[at..at + 16]).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum()
}
