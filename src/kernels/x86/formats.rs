//! How the x86 sets read the block formats of weights, each written once for vectors of eight and of sixteen rows.
//!
//! A vector has a lane of 32 bits for each row. 32 columns of all rows are a `Block`: lane `r` of vector `g` holds columns
//! `4g..4g+4` of row `r` as bytes. `Format::load` makes the blocks of one block of the file, superblocks of 256 columns
//! included, in the order of their columns, so that the products (avx2.rs, avx512.rs) know no format. Layouts of bytes are
//! those of gguf/quant; what the numbers mean is fixed in spec/weights.rs. Refuses types whose scales span less than 16 columns.
//! Types with grids, and ternary ones, are in grids.rs.
//!
//! All is `inline(always)`, to take the features of the set.

use std::arch::x86_64::{__m128i, __m256i};
use std::marker::PhantomData;

use crate::gguf::quant::iq4::LEVELS;
use crate::gguf::quant::mxfp4::DOUBLED;

/// Lanes of 32 bits, one for each row, and what reading a format needs to do with them.
///
/// # Safety
/// All functions need the CPU features of the set that implements it; most touch registers only.
pub trait Vector: Copy {
    /// Flips signed elements to what the products of the set take: 0, or 0x80 for those that take unsigned ones alone.
    const SIGN: u8;
    const LANES: usize;

    /// 16 bytes of each row; lane `r` of vector `k` holds bytes `4k..4k+4` of row `r`.
    ///
    /// # Safety
    /// 16 bytes at `p + r * stride` are readable for every row `r`.
    unsafe fn load_16_bytes(p: *const u8, stride: usize) -> [Self; 4];
    /// 32 bits of each row.
    ///
    /// # Safety
    /// 4 bytes at `p + r * stride` are readable for every row `r`.
    unsafe fn load_words(p: *const u8, stride: usize) -> Self;
    /// An f16 of each row as f32.
    ///
    /// # Safety
    /// 2 bytes at `p + r * stride` are readable for every row `r`.
    unsafe fn load_halves(p: *const u8, stride: usize) -> Self;
    /// The same as `load_16_bytes` of rows that lie anywhere, `at` bytes behind where they begin.
    ///
    /// # Safety
    /// As many rows as there are lanes at `rows`, 16 bytes readable at `at` of each.
    unsafe fn gather_16_bytes(rows: &[*const u8], at: usize) -> [Self; 4];
    /// Eight lanes, and eight more behind them where there are sixteen.
    unsafe fn of_eights(eights: [__m256i; 2]) -> Self;
    /// Lanes of 32 bits, anywhere.
    ///
    /// # Safety
    /// As many are readable.
    unsafe fn load<T>(p: *const T) -> Self;
    /// # Safety
    /// As many lanes are writable.
    unsafe fn store<T>(self, p: *mut T);
    /// `self` and the products of the 16-bit halves of lanes, both added.
    unsafe fn add_products(self, x: Self, y: Self) -> Self;
    /// `fma(self, y, z)` of f32.
    unsafe fn times_plus(self, y: Self, z: Self) -> Self;
    unsafe fn splat(x: u32) -> Self;
    unsafe fn and(self, y: Self) -> Self;
    unsafe fn or(self, y: Self) -> Self;
    unsafe fn xor(self, y: Self) -> Self;
    unsafe fn add(self, y: Self) -> Self;
    unsafe fn shl(self, n: u32) -> Self;
    unsafe fn shr(self, n: u32) -> Self;
    unsafe fn times_i32(self, y: Self) -> Self;
    /// Lanes of 16 bits, shifted right with their sign.
    unsafe fn shr_i16(self, n: u32) -> Self;
    /// Bytes below 16, looked up.
    unsafe fn lookup(self, table: &[u8; 16]) -> Self;
    /// Bits `4g..4g+4` of each lane, one a byte, as 0 or 16.
    unsafe fn fifth_bits(self, g: usize) -> Self;
    /// The lower four bits of each byte, the others from `y`.
    unsafe fn low_nibbles_and(self, y: Self) -> Self;
    /// Bytes, those negated that have a bit among `4g..4g+4` of the lane in `bits`.
    unsafe fn negated(self, bits: Self, g: usize) -> Self;
    /// The even lanes of both, and the odd ones: within each 128 bits those of `self`, then those of `y`.
    unsafe fn unzipped(self, y: Self) -> [Self; 2];
    /// The f16 in the lower halves of lanes as f32.
    unsafe fn halves(self) -> Self;
    /// i32 as f32
    unsafe fn to_floats(self) -> Self;
    /// The product of f32.
    unsafe fn times(self, y: Self) -> Self;
}

/// Declares functions of a `Vector` that touch registers only, or what a reference is to; `$v` is the vector.
macro_rules! in_registers {
    ($($name:ident($v:ident $(, $arg:ident: $ty:ty)*) => $value:expr;)*) => { $(
        #[inline(always)]
        unsafe fn $name(self $(, $arg: $ty)*) -> Self {
            let $v = self;
            // SAFETY: registers only, by features of the caller's promise.
            unsafe { $value }
        }
    )* };
}
pub(super) use in_registers;

/// 32 columns of all rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Block<V> {
    pub q: [V; 8],
    /// Scale, see `Scales`.
    pub d: V,
    /// Minimum or sub-scales, see `Scales`.
    pub m: V,
}

impl<V: Vector> Block<V> {
    /// Scale, and scale of the minimum if the format has one, as f32.
    ///
    /// # Safety
    /// The CPU features of `V`.
    #[inline(always)]
    pub unsafe fn scales<E: Elements>(&self) -> (V, V) {
        match E::SCALES {
            // SAFETY: registers only.
            Scales::TwoMin => unsafe { (self.d.halves(), self.d.shr(16).halves()) },
            _ => (self.d, self.m),
        }
    }
}

/// For `Vector::fifth_bits`: of each lane of 128 bits, its first byte four times.
// SAFETY: sixteen bytes are `__m128i`.
pub const FIRST_BYTES: __m128i = unsafe { std::mem::transmute([0u8, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]) };

/// For `Vector::fifth_bits`: a table that makes 16 of 1, 2, 4 and 8. Of 16 to 128 the minimum with 16 does, so no bit has to be moved.
pub const SIXTEENS: [u8; 16] = [0, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16];

/// What stands in `d` and `m` of a block.
#[derive(Clone, Copy, PartialEq)]
pub enum Scales {
    /// f32, nothing.
    One,
    /// f32, f32.
    OneMin,
    /// f32; scales of the first and of the last 16 columns as i16.
    Two,
    /// Two f16: scale, minus the scale of minimums; bytes: scale and minimum of the first 16 columns, of the last 16.
    TwoMin,
}

/// Each of `Scales` as a type.
pub trait HasScales {
    const SCALES: Scales;
}
macro_rules! scales_as_types {
    ($($name:ident)*) => { $(
        pub struct $name;
        impl HasScales for $name {
            const SCALES: Scales = Scales::$name;
        }
    )* };
}
scales_as_types!(One OneMin Two TwoMin);

impl Scales {
    pub const fn halves(self) -> bool {
        matches!(self, Scales::Two | Scales::TwoMin)
    }
}

/// What products know of the elements of a block, whatever format they were read from. An element counts as `q - OFFSET`.
pub trait Elements {
    const SCALES: Scales;
    const OFFSET: i32;
    /// Whether `q` is signed. If so, it comes flipped by `Vector::SIGN`.
    const SIGNED: bool;
    /// The largest magnitude of `q`.
    const LARGEST: usize;
    /// How many products of four columns, added in pairs, fit into 16 bits; none crosses the halves of a block with two scales.
    const SUMMED: usize = {
        let mut n = if Self::SCALES.halves() { 4 } else { 8 };
        while n * 2 * Self::LARGEST * 127 > i16::MAX as usize {
            n /= 2;
        }
        n
    };
}

/// Unsigned elements, raised by `OFFSET`. `LARGEST` is rounded up to a power of two, so that formats share their products.
pub struct Raised<S, const OFFSET: i32, const LARGEST: usize>(PhantomData<S>);
impl<S: HasScales, const OFFSET: i32, const LARGEST: usize> Elements for Raised<S, OFFSET, LARGEST> {
    const SCALES: Scales = S::SCALES;
    const OFFSET: i32 = OFFSET;
    const SIGNED: bool = false;
    const LARGEST: usize = LARGEST;
}

/// Signed elements; `LARGEST` as for `Raised`.
pub struct Signed<S, const LARGEST: usize>(PhantomData<S>);
impl<S: HasScales, const LARGEST: usize> Elements for Signed<S, LARGEST> {
    const SCALES: Scales = S::SCALES;
    const OFFSET: i32 = 0;
    const SIGNED: bool = true;
    const LARGEST: usize = LARGEST;
}

/// How a type is read.
pub trait Format {
    type Elements: Elements;
    /// Bytes of a block of one row in the file.
    const BYTES: usize;
    /// Blocks of 32 columns in a block of the file.
    const BLOCKS: usize = 1;

    /// # Safety
    /// A block of the file is readable at `p + r * stride` for every row `r`; `BLOCKS` blocks are writable; the CPU features
    /// of `V`.
    unsafe fn load<V: Vector>(p: *const u8, stride: usize, to: *mut Block<V>);
}

/// Bytes repeated over a lane.
pub(super) const fn bytes(x: u8) -> u32 {
    x as u32 * 0x0101_0101
}

/// 32 bytes of each row, `load_16_bytes` twice.
///
/// # Safety
/// They are readable; the CPU features of `V`.
#[inline(always)]
unsafe fn load_32_bytes<V: Vector>(p: *const u8, stride: usize) -> [V; 8] {
    // SAFETY: passed on.
    let ([a, b, c, d], [e, f, g, h]) = unsafe { (V::load_16_bytes(p, stride), V::load_16_bytes(p.add(16), stride)) };
    [a, b, c, d, e, f, g, h]
}

/// 16 bytes of nibbles: byte `i` of a row holds element `i` low and element `i + 16` high.
///
/// # Safety
/// As `load_16_bytes`.
#[inline(always)]
unsafe fn load_nibbles<V: Vector>(p: *const u8, stride: usize) -> [V; 8] {
    // SAFETY: passed on.
    unsafe {
        let [a, b, c, d] = V::load_16_bytes(p, stride);
        let mask = V::splat(bytes(15));
        let mut q = [a, b, c, d, a, b, c, d];
        for g in 0..4 {
            q[g + 4] = q[g].shr(4).and(mask);
            q[g] = q[g].and(mask);
        }
        q
    }
}

/// Elements of five bits: the lower four as in `load_nibbles`, the fifth ones of each row in 32 bits.
///
/// # Safety
/// As `load_words` of `fifth` and `load_16_bytes` of `p`.
#[inline(always)]
unsafe fn load_fives<V: Vector>(fifth: *const u8, p: *const u8, stride: usize) -> [V; 8] {
    // SAFETY: passed on.
    unsafe {
        let (fifth, [a, b, c, d]) = (V::load_words(fifth, stride), V::load_16_bytes(p, stride));
        let mut q = [a, b, c, d, a.shr(4), b.shr(4), c.shr(4), d.shr(4)];
        for g in 0..8 {
            q[g] = q[g].low_nibbles_and(fifth.fifth_bits(g));
        }
        q
    }
}

/// `load_nibbles`, looked up in a table of signed bytes.
///
/// # Safety
/// As `load_16_bytes`.
#[inline(always)]
unsafe fn load_levels<V: Vector>(p: *const u8, stride: usize, levels: &[i8; 16], offset: u8) -> [V; 8] {
    let mut table = [0; 16];
    for i in 0..16 {
        table[i] = (levels[i] as u8).wrapping_add(offset);
    }
    // SAFETY: passed on.
    unsafe {
        let mut q = load_nibbles::<V>(p, stride);
        for g in 0..8 {
            q[g] = q[g].lookup(&table);
        }
        q
    }
}

/// Bits of each byte, moved from bit `from` to bit `to`, the others cleared.
///
/// # Safety
/// The CPU features of `V`.
#[inline(always)]
pub(super) unsafe fn moved<V: Vector>(x: V, from: u32, to: u32, mask: u8) -> V {
    // SAFETY: registers only.
    unsafe {
        let x = if from <= to { x.shl(to - from) } else { x.shr(from - to) };
        x.and(V::splat(bytes(mask)))
    }
}

/// Two bytes of each lane, the lower or the upper ones, as the high bytes of 16 bits each.
///
/// # Safety
/// The CPU features of `V`.
#[inline(always)]
unsafe fn spread<V: Vector>(x: V, upper: bool) -> V {
    // SAFETY: registers only.
    unsafe {
        let x = if upper { x.shr(16) } else { x };
        x.shl(8).and(V::splat(0xff00)).or(x.shl(16).and(V::splat(0xff00_0000)))
    }
}

/// Scales and minimums of Q4_K and Q5_K from `f16 d; f16 dmin; u8 scales[12]`: see `kquants::scale_and_min`.
///
/// # Safety
/// As `Format::load`.
#[inline(always)]
unsafe fn scales_of_k<V: Vector>(p: *const u8, stride: usize, to: *mut Block<V>) {
    // SAFETY: bytes 0..16 of the blocks; eight blocks.
    unsafe {
        let [head, sc, m, low] = V::load_16_bytes(p, stride);
        let (d, minus_dmin) = (head.halves(), head.shr(16).halves().xor(V::splat(1 << 31)));
        let (six, four, two) = (V::splat(bytes(63)), V::splat(bytes(15)), V::splat(bytes(0x30)));
        let scales = [sc.and(six), low.and(four).or(sc.shr(2).and(two))];
        let minimums = [m.and(six), low.shr(4).and(four).or(m.shr(2).and(two))];
        for sub in 0..8 {
            let (at, byte) = (8 * (sub as u32 % 4), V::splat(0xff));
            (*to.add(sub)).d = d.times(scales[sub / 4].shr(at).and(byte).to_floats());
            (*to.add(sub)).m = minus_dmin.times(minimums[sub / 4].shr(at).and(byte).to_floats());
        }
    }
}

/// Declares a format: its elements, the bytes of a block of the file, how many blocks of 32 columns that has, and `Format::load`.
macro_rules! a_format {
    ($(#[$doc:meta])* $name:ident: $elements:ty, $bytes:literal / $blocks:literal, |$p:ident, $stride:ident, $to:ident| $load:expr) => {
        $(#[$doc])*
        pub struct $name;
        impl Format for $name {
            type Elements = $elements;
            const BYTES: usize = $bytes;
            const BLOCKS: usize = $blocks;

            #[inline(always)]
            unsafe fn load<V: Vector>($p: *const u8, $stride: usize, $to: *mut Block<V>) {
                // SAFETY: all that is read lies inside a block of each row, as the formats say; `BLOCKS` blocks are written.
                unsafe { $load }
            }
        }
    };
}
pub(super) use a_format;

a_format!(
    /// `f16 d; u8 qs[16]`
    Q4_0: Raised<One, 8, 16>, 18 / 1, |p, stride, to| {
        // Inside the blocks: bytes 0..2 and 2..18.
        *to = Block { q: load_nibbles(p.add(2), stride), d: V::load_halves(p, stride), m: V::splat(0) };
    }
);
a_format!(
    /// `f16 d; u8 qs[16]`, a bit an element
    Q1_0: Raised<One, 1, 16>, 18 / 4, |p, stride, to| {
        // Inside the blocks: bytes 0..16 and 2..18. A lane of bits is a block of 32 columns.
        let [head, ..] = V::load_16_bytes(p, stride);
        let bits = V::load_16_bytes(p.add(2), stride);
        for sub in 0..4 {
            let mut q = [bits[sub]; 8];
            for g in 0..8 {
                q[g] = bits[sub].fifth_bits(g).shr(3);
            }
            *to.add(sub) = Block { q, d: head.halves(), m: V::splat(0) };
        }
    }
);
a_format!(
    /// `f16 d; u8 qs[16]`, two bits an element
    Q2_0: Raised<One, 1, 16>, 18 / 2, |p, stride, to| {
        // Inside the blocks: bytes 0..16 and 2..18. A byte becomes a lane: its halves are parted, then the pairs of each.
        let [head, ..] = V::load_16_bytes(p, stride);
        let pairs = V::load_16_bytes(p.add(2), stride);
        for sub in 0..2 {
            let mut q = [head; 8];
            for g in 0..8 {
                let x = pairs[2 * sub + g / 4].shr(8 * (g as u32 % 4)).and(V::splat(0xff));
                let x = x.or(x.shl(12)).and(V::splat(0x000f_000f));
                q[g] = x.or(x.shl(6)).and(V::splat(bytes(3)));
            }
            *to.add(sub) = Block { q, d: head.halves(), m: V::splat(0) };
        }
    }
);
a_format!(
    /// `f16 d; f16 m; u8 qs[16]`
    Q4_1: Raised<OneMin, 0, 16>, 20 / 1, |p, stride, to| {
        // Inside the blocks: bytes 0..4 and 4..20.
        let head = V::load_words(p, stride);
        *to = Block { q: load_nibbles(p.add(4), stride), d: head.halves(), m: head.shr(16).halves() };
    }
);
a_format!(
    /// `f16 d; u8 fifth[4]; u8 qs[16]`
    Q5_0: Raised<One, 16, 32>, 22 / 1, |p, stride, to| {
        // Inside the blocks: bytes 0..2, 2..6 and 6..22.
        let q = load_fives(p.add(2), p.add(6), stride);
        *to = Block { q, d: V::load_halves(p, stride), m: V::splat(0) };
    }
);
a_format!(
    /// `f16 d; f16 m; u8 fifth[4]; u8 qs[16]`
    Q5_1: Raised<OneMin, 0, 32>, 24 / 1, |p, stride, to| {
        // Inside the blocks: bytes 0..4, 4..8 and 8..24.
        let (head, q) = (V::load_words(p, stride), load_fives(p.add(4), p.add(8), stride));
        *to = Block { q, d: head.halves(), m: head.shr(16).halves() };
    }
);
a_format!(
    /// `f16 d; i8 qs[32]`. A magnitude of 128 is one too many for i8, not for the unsigned operand of a product.
    Q8_0: Signed<One, 128>, 34 / 1, |p, stride, to| {
        // Inside the blocks: bytes 0..2 and 2..34.
        let mut q = load_32_bytes::<V>(p.add(2), stride);
        for g in 0..8 {
            q[g] = q[g].xor(V::splat(bytes(V::SIGN)));
        }
        *to = Block { q, d: V::load_halves(p, stride), m: V::splat(0) };
    }
);
a_format!(
    /// `f16 d; u8 qs[16]`, indices of levels.
    Iq4Nl: Signed<One, 128>, 18 / 1, |p, stride, to| {
        // Inside the blocks: bytes 0..2 and 2..18.
        *to = Block { q: load_levels(p.add(2), stride, &LEVELS, V::SIGN), d: V::load_halves(p, stride), m: V::splat(0) };
    }
);
a_format!(
    /// `u8 exponent; u8 qs[16]`, indices of levels, which are doubled: the scale is half of what the exponent says, 2^(e-128).
    Mxfp4: Raised<One, 12, 32>, 17 / 1, |p, stride, to| {
        // Inside the blocks: bytes 0..16 and 1..17.
        let [head, ..] = V::load_16_bytes(p, stride);
        // 2^(e-128) may be subnormal; as a product of two normal powers it needs no case of its own:
        // 2^(e/2 - 64) and 2^((e+1)/2 - 64), rounded down.
        let e = head.and(V::splat(0xff));
        let (one, bias) = (V::splat(1), V::splat(127 - 64));
        let d = e.shr(1).add(bias).shl(23).times(e.add(one).shr(1).add(bias).shl(23));
        *to = Block { q: load_levels(p.add(1), stride, &DOUBLED, 12), d, m: V::splat(0) };
    }
);
a_format!(
    /// `f16 d; u16 high; u8 low[4]; u8 qs[128]`: bits of eight scales less 32, and indices of levels.
    Iq4Xs: Signed<One, 128>, 136 / 8, |p, stride, to| {
        // Inside the blocks: bytes 0..16, and 16 from 8 + 16 * sub <= 120 on.
        let [head, low, ..] = V::load_16_bytes(p, stride);
        let (d, high) = (head.halves(), head.shr(16));
        for sub in 0..8 {
            let scale = low.shr(4 * sub).and(V::splat(15)).or(high.shr(2 * sub).and(V::splat(3)).shl(4));
            let d = d.times(scale.add(V::splat(-32i32 as u32)).to_floats());
            let q = load_levels(p.add(8 + 16 * sub as usize), stride, &LEVELS, V::SIGN);
            *to.add(sub as usize) = Block { q, d, m: V::splat(0) };
        }
    }
);
a_format!(
    /// `f16 d; f16 dmin; u8 scales[12]; u8 qs[128]`: 32 bytes hold a block low and the next high.
    Q4K: Raised<OneMin, 0, 16>, 144 / 8, |p, stride, to| {
        // Inside the blocks: 32 bytes from 16 + 32 * pair <= 112 on; eight blocks.
        scales_of_k(p, stride, to);
        for pair in 0..4 {
            let q = load_32_bytes::<V>(p.add(16 + 32 * pair), stride);
            for g in 0..8 {
                (*to.add(2 * pair)).q[g] = moved(q[g], 0, 0, 15);
                (*to.add(2 * pair + 1)).q[g] = moved(q[g], 4, 0, 15);
            }
        }
    }
);
a_format!(
    /// `f16 d; f16 dmin; u8 scales[12]; u8 fifth[32]; u8 qs[128]`: as Q4_K; fifth bits by planes, one for each block.
    Q5K: Raised<OneMin, 0, 32>, 176 / 8, |p, stride, to| {
        // Inside the blocks: 16 bytes from 32 on and from 48 + 32 * pair + 16 <= 160 on; eight blocks.
        scales_of_k(p, stride, to);
        for half in 0..2 {
            let fifth = V::load_16_bytes(p.add(16 + 16 * half), stride);
            for pair in 0..4 {
                let q = V::load_16_bytes(p.add(48 + 32 * pair + 16 * half), stride);
                let plane = 2 * pair as u32;
                for g in 0..4 {
                    (*to.add(2 * pair)).q[4 * half + g] = moved(q[g], 0, 0, 15).or(moved(fifth[g], plane, 4, 16));
                    (*to.add(2 * pair + 1)).q[4 * half + g] = moved(q[g], 4, 0, 15).or(moved(fifth[g], plane + 1, 4, 16));
                }
            }
        }
    }
);
a_format!(
    /// `u8 low[128]; u8 high[64]; i8 scales[16]; f16 d`: for each four blocks, 64 bytes hold two low and two high, and bit pairs
    /// of 32 bytes their upper bits.
    Q6K: Raised<Two, 32, 64>, 210 / 8, |p, stride, to| {
        // Inside the blocks: the last 16 bytes are 194..210; eight blocks.
        let (scales, [.., d]) = (V::load_16_bytes(p.add(192), stride), V::load_16_bytes(p.add(194), stride));
        let d = d.shr(16).halves();
        for sub in 0..8 {
            (*to.add(sub)).d = d;
            (*to.add(sub)).m = spread(scales[sub / 2], sub % 2 == 1).shr_i16(8);
        }
        for part in 0..4 {
            let (four, half) = (part / 2, part % 2);
            let low = p.add(64 * four + 16 * half);
            let low = [V::load_16_bytes(low, stride), V::load_16_bytes(low.add(32), stride)];
            let high = V::load_16_bytes(p.add(128 + 32 * four + 16 * half), stride);
            for i in 0..4 {
                for g in 0..4 {
                    let low = moved(low[i % 2][g], 4 * (i as u32 / 2), 0, 15);
                    (*to.add(4 * four + i)).q[4 * half + g] = low.or(moved(high[g], 2 * i as u32, 4, 0x30));
                }
            }
        }
    }
);
a_format!(
    /// `u8 third[32]; u8 qs[64]; u8 scales[12]; f16 d`: bit pairs of 32 bytes for each four blocks, third bits by planes.
    Q3K: Raised<Two, 4, 16>, 110 / 8, |p, stride, to| {
        // Inside the blocks: the last 16 bytes are 94..110; eight blocks.
        let [a, b, c, d] = V::load_16_bytes(p.add(94), stride);
        let (low, high) = ([a.shr(16).or(b.shl(16)), b.shr(16).or(c.shl(16))], c.shr(16).or(d.shl(16)));
        let d = d.shr(16).halves();
        for sub in 0..8 {
            // Four scales at a time, six bits each; flipping the topmost and extending it takes 32 off.
            let four = sub as u32 / 2;
            let scales = moved(low[sub / 2 % 2], 4 * (four / 2), 0, 15).or(moved(high, 2 * four, 4, 0x30));
            (*to.add(sub)).d = d;
            (*to.add(sub)).m = spread(scales, sub % 2 == 1).shl(2).xor(V::splat(0x8000_8000)).shr_i16(10);
        }
        for part in 0..4 {
            let (four, half) = (part / 2, part % 2);
            let third = V::load_16_bytes(p.add(16 * half), stride);
            let q = V::load_16_bytes(p.add(32 + 32 * four + 16 * half), stride);
            for i in 0..4 {
                let plane = (4 * four + i) as u32;
                for g in 0..4 {
                    let low = moved(q[g], 2 * i as u32, 0, 3);
                    (*to.add(4 * four + i)).q[4 * half + g] = low.or(moved(third[g], plane, 2, 4));
                }
            }
        }
    }
);
a_format!(
    /// `u8 scales[16]; u8 qs[64]; f16 d; f16 dmin`: scale low and minimum high; bit pairs of 32 bytes for each four blocks.
    Q2K: Raised<TwoMin, 0, 16>, 84 / 8, |p, stride, to| {
        // Inside the blocks: the last 16 bytes are 68..84; eight blocks.
        let (scales, [.., d]) = (V::load_16_bytes(p, stride), V::load_16_bytes(p.add(68), stride));
        for sub in 0..8 {
            let high = spread(scales[sub / 2], sub % 2 == 1);
            (*to.add(sub)).d = d.xor(V::splat(1 << 31));
            (*to.add(sub)).m = high.shr(8).and(V::splat(0x000f_000f)).or(high.shr(4).and(V::splat(0x0f00_0f00)));
        }
        for part in 0..4 {
            let (four, half) = (part / 2, part % 2);
            let q = V::load_16_bytes(p.add(16 + 32 * four + 16 * half), stride);
            for i in 0..4 {
                for g in 0..4 {
                    (*to.add(4 * four + i)).q[4 * half + g] = moved(q[g], 2 * i as u32, 0, 3);
                }
            }
        }
    }
);
