//! The tensor types of ggml: names, block sizes, and the expansion of a row to f32 that every kernel is measured against.
//!
//! Owns the table of types, all of them, so that `info` can name what the engine cannot run, and [`dequantize_row`], which
//! is written to be read and not to be fast. One file per family of block formats. Refuses types that have no expansion
//! here with [`Unsupported`]; lengths that do not match are the caller's mistake and panic.

mod codebooks;
mod few;
mod float;
pub(crate) mod grids;
pub(crate) mod iq4;
mod kquants;
mod legacy;
pub(crate) mod mxfp4;

use std::fmt;

pub use float::element;

/// Written once: variant, id in the file, elements per block, bytes per block.
macro_rules! ggml_types {
    ($($name:ident = $id:literal, $elems:literal in $bytes:expr;)*) => {
        /// A tensor type, by ggml's name.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum GgmlType { $($name = $id),* }

        impl GgmlType {
            /// In the order of their ids.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$name),*];

            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id { $($id => Some(GgmlType::$name),)* _ => None }
            }

            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$name => stringify!($name)),* }
            }

            /// Elements in a block; a row is whole blocks.
            pub const fn block_elems(self) -> usize {
                match self { $(GgmlType::$name => $elems),* }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(GgmlType::$name => $bytes),* }
            }
        }
    };
}

// Bytes spelt as the fields of the block: scales first, then sub-scales, then the packed elements.
ggml_types! {
    F32 = 0, 1 in 4;
    F16 = 1, 1 in 2;
    Q4_0 = 2, 32 in 2 + 16;
    Q4_1 = 3, 32 in 2 + 2 + 16;
    Q5_0 = 6, 32 in 2 + 4 + 16;
    Q5_1 = 7, 32 in 2 + 2 + 4 + 16;
    Q8_0 = 8, 32 in 2 + 32;
    Q8_1 = 9, 32 in 2 + 2 + 32;
    Q2_K = 10, 256 in 2 + 2 + 16 + 64;
    Q3_K = 11, 256 in 2 + 12 + 32 + 64;
    Q4_K = 12, 256 in 2 + 2 + 12 + 128;
    Q5_K = 13, 256 in 2 + 2 + 12 + 32 + 128;
    Q6_K = 14, 256 in 2 + 16 + 64 + 128;
    Q8_K = 15, 256 in 4 + 32 + 256;
    IQ2_XXS = 16, 256 in 2 + 64;
    IQ2_XS = 17, 256 in 2 + 8 + 64;
    IQ3_XXS = 18, 256 in 2 + 32 + 64;
    IQ1_S = 19, 256 in 2 + 16 + 32;
    IQ4_NL = 20, 32 in 2 + 16;
    IQ3_S = 21, 256 in 2 + 4 + 8 + 32 + 64;
    IQ2_S = 22, 256 in 2 + 8 + 8 + 64;
    IQ4_XS = 23, 256 in 2 + 2 + 4 + 128;
    I8 = 24, 1 in 1;
    I16 = 25, 1 in 2;
    I32 = 26, 1 in 4;
    I64 = 27, 1 in 8;
    F64 = 28, 1 in 8;
    IQ1_M = 29, 256 in 8 + 16 + 32;
    BF16 = 30, 1 in 2;
    TQ1_0 = 34, 256 in 2 + 4 + 48;
    TQ2_0 = 35, 256 in 2 + 64;
    MXFP4 = 39, 32 in 1 + 16;
    NVFP4 = 40, 64 in 4 + 32;
    Q1_0 = 41, 128 in 2 + 16;
    Q2_0 = 42, 64 in 2 + 16;
}

impl GgmlType {
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Of the types that can be run: those that are not quantised.
    pub const fn is_float(self) -> bool {
        matches!(self, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A type that has no expansion to f32 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    pub ty: GgmlType,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensors of type {} cannot be run: use a model in another quantisation, such as Q4_0, Q4_K or Q8_0", self.ty)
    }
}

impl std::error::Error for Unsupported {}

/// 32 weights of a row, as a block of the file holds them: element `i` is `d * sc[i / 16] * q[i]`, and its minimum (`Min`) besides.
pub struct Block {
    pub q: [i8; 32],
    /// Scales of the halves; 1 for types with one scale for each 32.
    pub sc: [i32; 2],
    pub d: f32,
    /// The minimum, or what multiplies those of the halves.
    pub m: f32,
    pub m_sub: [i32; 2],
}

/// What is added to the elements of a `Block`.
#[derive(Clone, Copy, PartialEq)]
pub enum Min {
    None,
    /// `m`
    Whole,
    /// `m * m_sub[i / 16]`
    Halves,
}

impl Block {
    /// One scale, `offset` below each of the elements.
    fn new(q: [u8; 32], offset: i8, d: f32, m: f32) -> Block {
        Block { q: q.map(|q| q as i8 - offset), sc: [1; 2], d, m, m_sub: [0; 2] }
    }

    fn of_levels(levels: &[i8; 16], q: [u8; 32], d: f32) -> Block {
        Block { q: q.map(|q| levels[usize::from(q)]), sc: [1; 2], d, m: 0.0, m_sub: [0; 2] }
    }

    fn expand(&self, min: Min, out: &mut [f32]) {
        for (i, (out, q)) in out.iter_mut().zip(self.q).enumerate() {
            let x = self.d * self.sc[i / 16] as f32 * f32::from(q);
            *out = match min {
                Min::None => x,
                Min::Whole => x + self.m,
                Min::Halves => x + self.m * self.m_sub[i / 16] as f32,
            };
        }
    }
}

/// Columns `32 * sub` and on of a block, whose bytes have the length of the table above.
pub type Unpack = fn(bytes: &[u8], sub: usize) -> Block;

/// How a quantised type is unpacked: the one place that knows, for `dequantize_row` and for the kernels' specification.
pub fn unpacking(ty: GgmlType) -> Option<(Unpack, Min)> {
    Some(match ty {
        GgmlType::Q4_0 => (legacy::q4_0, Min::None),
        GgmlType::Q4_1 => (legacy::q4_1, Min::Whole),
        GgmlType::Q5_0 => (legacy::q5_0, Min::None),
        GgmlType::Q5_1 => (legacy::q5_1, Min::Whole),
        GgmlType::Q8_0 => (legacy::q8_0, Min::None),
        GgmlType::Q2_K => (kquants::q2_k, Min::Halves),
        GgmlType::Q3_K => (kquants::q3_k, Min::None),
        GgmlType::Q4_K => (kquants::q4_k, Min::Whole),
        GgmlType::Q5_K => (kquants::q5_k, Min::Whole),
        GgmlType::Q6_K => (kquants::q6_k, Min::None),
        GgmlType::IQ2_XXS => (codebooks::iq2_xxs, Min::None),
        GgmlType::IQ2_XS => (codebooks::iq2_xs, Min::None),
        GgmlType::IQ2_S => (codebooks::iq2_s, Min::None),
        GgmlType::IQ3_XXS => (codebooks::iq3_xxs, Min::None),
        GgmlType::IQ3_S => (codebooks::iq3_s, Min::None),
        GgmlType::IQ4_NL => (iq4::iq4_nl, Min::None),
        GgmlType::IQ4_XS => (iq4::iq4_xs, Min::None),
        GgmlType::MXFP4 => (mxfp4::mxfp4, Min::None),
        GgmlType::Q1_0 => (few::q1_0, Min::None),
        GgmlType::Q2_0 => (few::q2_0, Min::None),
        GgmlType::TQ1_0 => (few::tq1_0, Min::None),
        GgmlType::TQ2_0 => (few::tq2_0, Min::None),
        _ => return None,
    })
}

/// Whether [`dequantize_row`] knows the type.
pub fn can_dequantize(ty: GgmlType) -> bool {
    ty.is_float() || unpacking(ty).is_some()
}

/// Expands whole blocks, such as a row, to f32: `out.len()` is a multiple of the type's `block_elems`, and `bytes` are the
/// blocks of that many elements.
pub fn dequantize_row(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), Unsupported> {
    let (block_elems, block_bytes) = (ty.block_elems(), ty.block_bytes());
    assert_eq!(out.len() % block_elems, 0, "{ty}: {} elements are not whole blocks", out.len());
    assert_eq!(bytes.len(), out.len() / block_elems * block_bytes, "{ty}: bytes do not match {} elements", out.len());
    if ty.is_float() {
        out.iter_mut().enumerate().for_each(|(i, out)| *out = element(ty, bytes, i));
        return Ok(());
    }
    let (unpack, min) = unpacking(ty).ok_or(Unsupported { ty })?;
    for (block, out) in bytes.chunks_exact(block_bytes).zip(out.chunks_exact_mut(block_elems)) {
        out.chunks_exact_mut(32).enumerate().for_each(|(sub, out)| unpack(block, sub).expand(min, out));
    }
    Ok(())
}

#[cfg(test)]
#[path = "../../../tests/unit/gguf/quant.rs"]
mod tests;
