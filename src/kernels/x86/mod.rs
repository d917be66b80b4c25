//! The sets for x86: AVX2 (eight rows of weights at a time), the VNNI of AVX-512 in vectors of 256 bits (eight) and of 512
//! (sixteen). They share how formats are read (formats, grids), the way through a matrix (product), that of one or two tokens through
//! types with grids (words), attention (attend), and what `float` has; a set brings vectors and products, those with VNNI the one of vnni.

mod attend;
mod attend512;
pub mod avx2;
pub mod avx512;
mod float;
mod formats;
mod grids;
mod levels;
mod placed;
mod product;
mod scan;
mod vnni;
pub mod vnni256;
mod words;

/// A set `$set` of vectors `$vector`, which takes `$rows` rows at a time, multiplies `$direct` tokens as it reads and `$tiled` at
/// once from the tile, the most first, types with grids by `$words`, and scans the index of the past by `$sums`; its functions, with
/// vectors for attention of `$width`, compiled with its features.
macro_rules! stamp_x86 {
    ($features:literal, $set:ident { vector: $vector:ty, rows: $rows:expr, direct: [$($direct:literal)*], tiled: [$($tiled:literal)*], words: $words:ident, scan: $sums:ident }, $width:ty) => {
        use $crate::kernels::spec::{arithmetic, attention, delta, mamba, scan as past};
        use $crate::kernels::{AngleSum, Asked, DeltaStep, MambaStep, Placing, Xielu};
        use $crate::kernels::x86::{attend, float, grids::Grid, placed, scan as index};

        #[derive(Clone, Copy)]
        struct $set;
        impl Set for $set {
            type V = $vector;
            type F16 = F16c;
            const ROWS: usize = $rows;
            const DIRECT: usize = [$($direct),*].len();

            #[inline(always)]
            unsafe fn expand<F: Format>(tile: Expanded<Self>, p: *const u8, stride: usize, n: usize) {
                // SAFETY: passed on.
                unsafe { expand::<F>(tile, p, stride, n) }
            }

            #[inline(always)]
            unsafe fn direct<F: Format>(rows: Native<Self, F>, acts: &Acts, to: RowsOut) {
                // SAFETY: passed on; all tokens of the batch.
                unsafe {
                    match acts.n_tok {
                        $($direct => product::<F::Elements, _, $direct>(rows, acts, 0, to),)*
                        more => unreachable!("{more} tokens at once"),
                    }
                }
            }

            #[inline(always)]
            unsafe fn by_words<G: Grid>(p: *const u8, stride: usize, acts: &Acts, to: RowsOut) {
                // SAFETY: passed on; all tokens of the batch.
                unsafe {
                    match acts.n_tok {
                        1 => $words::<G, 1>(p, stride, acts, to),
                        2 => $words::<G, 2>(p, stride, acts, to),
                        more => unreachable!("{more} tokens at once"),
                    }
                }
            }

            #[inline(always)]
            unsafe fn tiled<E: Elements>(tile: Expanded<Self>, acts: &Acts, to: RowsOut) {
                let mut t = 0;
                $(while acts.n_tok - t >= $tiled {
                    // SAFETY: passed on; these tokens are inside the batch.
                    unsafe { product::<E, _, $tiled>(tile, acts, t, to) };
                    t += $tiled;
                })*
            }
        }

        stamp_x86! { $features; unsafe
            matmul(task: &mut MatmulTask) = product::matmul::<$set>;
            quantize(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]) = float::quantize;
            attend(a: &Attend, out: &mut Partial) = attend_queries;
            scan(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) = index::scan::<index::$sums>;
            place(p: &Placing, row: &mut [u8], mean: &[f32], angles: AngleSum, key: &mut [f32]) = placed::place;
        }
        stamp_x86! { $features; safe
            rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = arithmetic::rms_norm;
            add(x: &mut [f32], y: &[f32]) = arithmetic::add;
            silu_mul(gate: &mut [f32], up: &[f32]) = arithmetic::silu_mul;
            clamped_silu_mul(gate: &mut [f32], up: &[f32]) = arithmetic::clamped_silu_mul;
            gelu_mul(gate: &mut [f32], up: &[f32]) = arithmetic::gelu_mul;
            silu(x: &mut [f32]) = arithmetic::silu;
            sigmoid_mul(x: &mut [f32], gate: &[f32]) = arithmetic::sigmoid_mul;
            delta_step(state: &mut [f32], step: &DeltaStep, out: &mut [f32]) = delta::delta_step;
            mamba_step(state: &mut [f32], step: &MambaStep, out: &mut [f32]) = mamba::mamba_step;
            relu2(x: &mut [f32]) = arithmetic::relu2;
            xielu(x: &mut [f32], by: &Xielu) = arithmetic::xielu;
            soft_cap(x: &mut [f32], cap: f32) = arithmetic::soft_cap;
            l2_norm(x: &[f32]) -> f32 = arithmetic::l2_norm;
            merge(running: &mut [f32], acc: &mut [f32], chunk: &Partial) = attention::merge;
            received(tops: &[f32], weights: &[f32], running: &[f32], total: &mut [f32]) = attention::received;
            add_shares(scores: &mut [f32], total: &mut [f32]) = past::add_shares;
        }
        #[rustfmt::skip]
        pub(crate) static TABLE: Table = Table {
            matmul, quantize, rms_norm, add, silu_mul, clamped_silu_mul, gelu_mul, silu, sigmoid_mul, delta_step, mamba_step, relu2, xielu,
            soft_cap, l2_norm, attend, merge, received, scan, add_shares, place, widen: None,
        };

        /// # Safety
        /// As `attend::attend_n`.
        #[inline(always)]
        unsafe fn attend_queries(a: &Attend, out: &mut Partial) {
            // SAFETY: passed on.
            unsafe { attention::for_queries!(a, out, attend_n) }
        }

        /// `attend::attend_n`, each on its own: compilers take longer over one function of all.
        ///
        /// # Safety
        /// As `attend::attend_n`.
        #[target_feature(enable = $features)]
        #[inline(never)]
        unsafe fn attend_n<const N: usize>(a: &Attend, q: &[f32], out: &mut Partial) {
            // SAFETY: passed on.
            unsafe { attend::attend_n::<$width, N>(a, q, out) }
        }

        /// # Safety
        /// As `Expanded::expand`.
        #[target_feature(enable = $features)]
        #[inline(never)]
        unsafe fn expand<F: Format>(rows: Expanded<$set>, p: *const u8, stride: usize, n: usize) {
            // SAFETY: passed on.
            unsafe { rows.expand::<F>(p, stride, n) }
        }
    };
    ($features:literal; unsafe $($name:ident($($arg:ident: $ty:ty),*) = $function:expr;)*) => { $(
        #[target_feature(enable = $features)]
        unsafe fn $name($($arg: $ty),*) {
            // SAFETY: the set has the features; the rest is passed on.
            unsafe { $function($($arg),*) }
        }
    )* };
    ($features:literal; safe $($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $function:expr;)*) => { $(
        #[target_feature(enable = $features)]
        unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            $function($($arg),*)
        }
    )* };
}
pub(crate) use stamp_x86;
