//! How the block formats of weights are read on ARM, eight rows at a time: scales and minimums first, then the elements.
//!
//! Eight pointers walk down eight rows. Each read moves its pointer on ("post-index" addressing), so that a block of a
//! row costs one load for its scales and one for its elements and no address arithmetic; compilers do not find this form
//! for reads of one lane, hence the `asm!`. Nothing here needs more than NEON, which every 64-bit ARM has.
//! To add a format: `a_format!` here, or, for one that is only read into the tile, `a_type!` in superblocks.rs; and `matmul` in mod.rs.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::gguf::quant::iq4::LEVELS;

/// Rows that are read at once.
pub const ROWS: usize = 8;

/// Eight f16 as f32, by `fcvtl` and `fcvtl2`, which are part of plain NEON.
#[inline(always)]
pub fn widen_f16(h: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: registers only.
    unsafe {
        asm!("fcvtl {low:v}.4s, {h:v}.4h", low = lateout(vreg) low, h = in(vreg) h, options(pure, nomem, nostack, preserves_flags));
        asm!("fcvtl2 {high:v}.4s, {h:v}.8h", high = lateout(vreg) high, h = in(vreg) h, options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

/// 32 bytes at `p`, which moves behind them.
///
/// # Safety
/// 32 bytes at `p` are readable.
#[inline(always)]
pub unsafe fn next_32<T>(p: &mut *const T) -> [int8x16_t; 2] {
    let (x, y, at): (int8x16_t, int8x16_t, *const T);
    // SAFETY: readable by the caller's promise.
    unsafe {
        asm!("ldp {x:q}, {y:q}, [{p}], #32", x = lateout(vreg) x, y = lateout(vreg) y, p = inlateout(reg) *p => at, options(readonly, nostack, preserves_flags))
    };
    *p = at;
    [x, y]
}

/// 16 bytes of nibbles from each of four rows, which move behind them: byte `i` holds element `i` low, element `i + 16` high.
///
/// # Safety
/// 16 bytes at pointers `first..first + 4` are readable.
#[inline(always)]
pub unsafe fn four_nibbles(p: &mut [*const u8; ROWS], first: usize) -> Four {
    let [l0, h0, l1, h1, l2, h2, l3, h3]: [int8x16_t; 8];
    // SAFETY: readable by the caller's promise.
    unsafe {
        asm!(
            "ldr {h0:q}, [{p0}], #16",
            "ldr {h1:q}, [{p1}], #16",
            "ldr {h2:q}, [{p2}], #16",
            "ldr {h3:q}, [{p3}], #16",
            "and {l0:v}.16b, {h0:v}.16b, {mask:v}.16b",
            "and {l1:v}.16b, {h1:v}.16b, {mask:v}.16b",
            "and {l2:v}.16b, {h2:v}.16b, {mask:v}.16b",
            "and {l3:v}.16b, {h3:v}.16b, {mask:v}.16b",
            "ushr {h0:v}.16b, {h0:v}.16b, #4",
            "ushr {h1:v}.16b, {h1:v}.16b, #4",
            "ushr {h2:v}.16b, {h2:v}.16b, #4",
            "ushr {h3:v}.16b, {h3:v}.16b, #4",
            p0 = inout(reg) p[first], p1 = inout(reg) p[first + 1], p2 = inout(reg) p[first + 2], p3 = inout(reg) p[first + 3],
            l0 = out(vreg) l0, l1 = out(vreg) l1, l2 = out(vreg) l2, l3 = out(vreg) l3,
            h0 = out(vreg) h0, h1 = out(vreg) h1, h2 = out(vreg) h2, h3 = out(vreg) h3,
            mask = in(vreg) vdupq_n_u8(15), options(readonly, nostack, preserves_flags),
        );
    }
    [[l0, h0], [l1, h1], [l2, h2], [l3, h3]]
}

/// `16 * (q - 8)` of the same, which is an instruction less for each row than `q - 8`: a nibble with its top bit flipped is `q - 8`
/// once it stands on top of a byte.
///
/// # Safety
/// As `four_nibbles`.
#[inline(always)]
pub unsafe fn four_raised(p: &mut [*const u8; ROWS], first: usize) -> Four {
    std::array::from_fn(|r| {
        // SAFETY: as `four_nibbles`; the pointer moves within the row or to its end.
        unsafe {
            let x = veorq_u8(vld1q_u8(p[first + r]), vdupq_n_u8(0x88));
            p[first + r] = p[first + r].add(16);
            [vshlq_n_u8::<4>(x), vandq_u8(x, vdupq_n_u8(0xf0))].map(|x| vreinterpretq_s8_u8(x))
        }
    })
}

/// Nibbles with a fifth bit each from the 32 bits before them, from each of four rows, which move behind them; less 16.
///
/// # Safety
/// 20 bytes at pointers `first..first + 4` are readable.
#[inline(always)]
unsafe fn four_fives(p: &mut [*const u8; ROWS], first: usize) -> Four {
    const BYTE: [[u8; 16]; 2] =
        [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]];
    const BIT: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    /// Text: the bits that are not set make bytes of ones, into whose lower halves the nibbles go; row after row.
    macro_rules! rows {
        ($($r:literal)*) => {
            concat!($(
                "ldr {h", $r, ":s}, [{p", $r, "}], #4\n",
                "ldr {q:q}, [{p", $r, "}], #16\n",
                "mvn {h", $r, ":v}.8b, {h", $r, ":v}.8b\n",
                "tbl {l", $r, ":v}.16b, {{{h", $r, ":v}.16b}}, {low_bytes:v}.16b\n",
                "tbl {h", $r, ":v}.16b, {{{h", $r, ":v}.16b}}, {high_bytes:v}.16b\n",
                "cmtst {l", $r, ":v}.16b, {l", $r, ":v}.16b, {bit:v}.16b\n",
                "cmtst {h", $r, ":v}.16b, {h", $r, ":v}.16b, {bit:v}.16b\n",
                "bit {l", $r, ":v}.16b, {q:v}.16b, {nibble:v}.16b\n",
                "sri {h", $r, ":v}.16b, {q:v}.16b, #4\n",
            )*)
        };
    }
    let [l0, h0, l1, h1, l2, h2, l3, h3]: [int8x16_t; 8];
    // SAFETY: readable by the caller's promise; 16 bytes of each table.
    unsafe {
        asm!(
            rows!(0 1 2 3),
            p0 = inout(reg) p[first], p1 = inout(reg) p[first + 1], p2 = inout(reg) p[first + 2], p3 = inout(reg) p[first + 3],
            l0 = out(vreg) l0, l1 = out(vreg) l1, l2 = out(vreg) l2, l3 = out(vreg) l3,
            h0 = out(vreg) h0, h1 = out(vreg) h1, h2 = out(vreg) h2, h3 = out(vreg) h3, q = out(vreg) _,
            low_bytes = in(vreg) vld1q_u8(BYTE[0].as_ptr()), high_bytes = in(vreg) vld1q_u8(BYTE[1].as_ptr()),
            bit = in(vreg) vld1q_u8(BIT.as_ptr()), nibble = in(vreg) vdupq_n_u8(15), options(readonly, nostack, preserves_flags),
        );
    }
    [[l0, h0], [l1, h1], [l2, h2], [l3, h3]]
}

/// 32 bytes from each of four rows, which move behind them.
///
/// # Safety
/// 32 bytes at pointers `first..first + 4` are readable.
#[inline(always)]
unsafe fn four_bytes(p: &mut [*const u8; ROWS], first: usize) -> Four {
    // SAFETY: readable by the caller's promise.
    std::array::from_fn(|r| unsafe { next_32(&mut p[first + r]) })
}

/// A value from each row: the low four rows in the first vector, the high four in the second, in lanes of 16 or 32 bits
/// (`LANE`, "h" or "s"). The pointers move behind them. The two vectors take turns, because each read waits for the last one
/// into the same vector.
macro_rules! gather {
    ($p:ident, $width:literal, $bytes:literal) => {{
        let [mut low, mut high]: [uint16x8_t; 2];
        macro_rules! lane {
            ($i:literal, $v:ident) => {
                asm!(concat!("ld1 {{{x:v}.", $width, "}}[", $i, " & 3], [{p}], #", $bytes), x = inlateout(vreg) $v, p = inlateout(reg) $p[$i], options(readonly, nostack, preserves_flags))
            };
        }
        // The first read clears the other lanes.
        asm!(concat!("ldr {x:", $width, "}, [{p}], #", $bytes), x = lateout(vreg) low, p = inlateout(reg) $p[0], options(readonly, nostack, preserves_flags));
        asm!(concat!("ldr {x:", $width, "}, [{p}], #", $bytes), x = lateout(vreg) high, p = inlateout(reg) $p[4], options(readonly, nostack, preserves_flags));
        lane!(1, low);
        lane!(5, high);
        lane!(2, low);
        lane!(6, high);
        lane!(3, low);
        lane!(7, high);
        [low, high]
    }};
}

/// A block of four rows: 32 elements each, in order.
pub type Four = [[int8x16_t; 2]; 4];

/// Scales and minimums of a block of eight rows, one f32 lane each.
#[derive(Clone, Copy)]
pub struct Scales {
    pub d: [float32x4_t; 2],
    pub m: [float32x4_t; 2],
}

/// What the products need to know of a type's elements.
pub trait Range8 {
    /// The largest magnitude: says how many products with an activation fit into 16 bits.
    const LARGEST: i32;
    const HAS_MIN: bool;
}

/// Elements below 16, looked up.
#[inline(always)]
pub fn levels(table: &[i8; 16], q: [int8x16_t; 2]) -> [int8x16_t; 2] {
    // SAFETY: 16 bytes of the table; registers.
    unsafe {
        let table = vld1q_s8(table.as_ptr());
        [vqtbl1q_s8(table, vreinterpretq_u8_s8(q[0])), vqtbl1q_s8(table, vreinterpretq_u8_s8(q[1]))]
    }
}

/// How elements lie in a block behind the scales.
#[derive(Clone, Copy, PartialEq)]
pub enum Layout {
    /// 16 bytes: byte `i` holds element `i` low and element `i + 16` high.
    Nibbles,
    Bytes,
    /// Some way that `elements` knows.
    Other,
}

/// How a type is read: first the scales of a block, then its elements. An element counts as `q - OFFSET`.
pub trait Format: Range8 {
    /// Bytes of a block of one row.
    const BYTES: usize;
    const LAYOUT: Layout;
    const OFFSET: i8;

    /// # Safety
    /// Each pointer is at the start of a block.
    unsafe fn scales(p: &mut [*const u8; ROWS]) -> Scales;

    /// Rows `first..first + 4`.
    ///
    /// # Safety
    /// The pointers are behind the scales of a block; they move to the start of the next.
    unsafe fn elements(p: &mut [*const u8; ROWS], first: usize) -> Four;
}

/// One f16 for each row.
///
/// # Safety
/// Two bytes at each pointer are readable.
#[inline(always)]
pub unsafe fn scale_only(p: &mut [*const u8; ROWS]) -> Scales {
    // SAFETY: passed on; a vector of zeros that no type without minimums reads.
    unsafe { Scales { d: gather!(p, "h", 2).map(|h| widen_f16(h)[0]), m: [vdupq_n_f32(0.0); 2] } }
}

/// An f16 scale and an f16 minimum for each row.
///
/// # Safety
/// Four bytes at each pointer are readable.
#[inline(always)]
pub unsafe fn scale_and_minimum(p: &mut [*const u8; ROWS]) -> Scales {
    // SAFETY: passed on.
    unsafe {
        let [low, high] = gather!(p, "s", 4);
        Scales { d: widen_f16(vuzp1q_u16(low, high)), m: widen_f16(vuzp2q_u16(low, high)) }
    }
}

/// Declares a format: `$scales` and `$elements` read those of a block, the latter of rows `$first..$first + 4`.
macro_rules! a_format {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $layout:ident, $offset:literal, $largest:literal, $has_min:literal, $scales:ident, |$p:ident, $first:ident| $elements:expr) => {
        $(#[$doc])*
        pub struct $name;
        impl Range8 for $name {
            const LARGEST: i32 = $largest;
            const HAS_MIN: bool = $has_min;
        }
        impl Format for $name {
            const BYTES: usize = $bytes;
            const LAYOUT: Layout = Layout::$layout;
            const OFFSET: i8 = $offset;

            #[inline(always)]
            unsafe fn scales(p: &mut [*const u8; ROWS]) -> Scales {
                // SAFETY: a block begins at each pointer, by the caller's promise.
                unsafe { $scales(p) }
            }

            #[inline(always)]
            unsafe fn elements($p: &mut [*const u8; ROWS], $first: usize) -> Four {
                // SAFETY: the rest of a block is at each pointer, by the caller's promise.
                unsafe { $elements }
            }
        }
    };
}

a_format!(
    /// `f16 d; u8 qs[16]`
    Q4_0, 18, Nibbles, 8, 15, false, scale_only, |p, first| four_nibbles(p, first)
);
a_format!(
    /// `f16 d; f16 m; u8 qs[16]`
    Q4_1, 20, Nibbles, 0, 15, true, scale_and_minimum, |p, first| four_nibbles(p, first)
);
a_format!(
    /// `f16 d; u8 fifth[4]; u8 qs[16]`
    Q5_0, 22, Other, 0, 16, false, scale_only, |p, first| four_fives(p, first)
);
a_format!(
    /// `f16 d; f16 m; u8 fifth[4]; u8 qs[16]`: elements come less 16, which the offset makes good.
    Q5_1, 24, Other, -16, 31, true, scale_and_minimum, |p, first| four_fives(p, first)
);
a_format!(
    /// `f16 d; i8 qs[32]`
    Q8_0, 34, Bytes, 0, 128, false, scale_only, |p, first| four_bytes(p, first)
);
a_format!(
    /// `f16 d; u8 qs[16]`, indices of levels
    Iq4Nl, 18, Other, 0, 127, false, scale_only, |p, first| four_nibbles(p, first).map(|row| levels(&LEVELS, row))
);
