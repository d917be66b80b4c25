//! With the dot product: `sdot` takes sixteen elements of a row at once.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lone::{At, Lone, Token, add_pairs, block, by_pairs, pairs, raised, scales};

pub struct Dot;

/// Text: `sdot` of eight vectors with activations: each is made by `$make` two steps ahead, and neighbours belong to other rows, for a
/// core that executes in order. `v30` and `v31` take turns.
macro_rules! in_turns {
    ($make:ident $k:tt, $r0:literal $w0:literal $a0:literal, $r1:literal $w1:literal $a1:literal, $r2:literal $w2:literal $a2:literal,
        $r3:literal $w3:literal $a3:literal, $r4:literal $w4:literal $a4:literal, $r5:literal $w5:literal $a5:literal,
        $r6:literal $w6:literal $a6:literal, $r7:literal $w7:literal $a7:literal) => {
        concat!(
            $make!($k, "30", $w0),
            $make!($k, "31", $w1),
            sdot!($r0, "30", $a0),
            $make!($k, "30", $w2),
            sdot!($r1, "31", $a1),
            $make!($k, "31", $w3),
            sdot!($r2, "30", $a2),
            $make!($k, "30", $w4),
            sdot!($r3, "31", $a3),
            $make!($k, "31", $w5),
            sdot!($r4, "30", $a4),
            $make!($k, "30", $w6),
            sdot!($r5, "31", $a5),
            $make!($k, "31", $w7),
            sdot!($r6, "30", $a6),
            sdot!($r7, "31", $a7),
        )
    };
}

/// Text: `$r += Σ $w $a`, by fours.
macro_rules! sdot {
    ($r:literal, $w:literal, $a:literal) => {
        concat!("sdot v", $r, ".4s, v", $w, ".16b, v", $a, ".16b\n")
    };
}

/// Text of TQ2_0: bit pairs `$k` of four rows times 32 activations in `$x` and `$y`.
macro_rules! tq2_0_pairs {
    ($k:tt, $x:literal $y:literal, $lo0:literal $hi0:literal, $lo1:literal $hi1:literal, $lo2:literal $hi2:literal, $lo3:literal $hi3:literal) => {
        concat!(
            // Of each row -Σ a in one of four lanes.
            "ld1 {{v0.1d-v3.1d}}, [{start}], #32\n",
            in_turns!(pairs $k, 0 $lo0 $x, 1 $lo1 $x, 2 $lo2 $x, 3 $lo3 $x, 0 $hi0 $y, 1 $hi1 $y, 2 $hi2 $y, 3 $hi3 $y),
            "addp v0.4s, v0.4s, v1.4s\n",
            "addp v2.4s, v2.4s, v3.4s\n",
            "addp v0.4s, v0.4s, v2.4s\n",
            add_pairs!($k, 0),
        )
    };
}

/// Text of TQ2_0: 128 columns of four rows, in two vectors each.
macro_rules! tq2_0_half {
    ($($w:tt)*) => {
        concat!(
            "ldr q29, [{d}], #16\n",
            "ld1 {{v4.16b-v7.16b}}, [{token}], #64\n",
            tq2_0_pairs!(0, 4 5, $($w)*),
            tq2_0_pairs!(1, 6 7, $($w)*),
            "ld1 {{v4.16b-v7.16b}}, [{token}], #64\n",
            tq2_0_pairs!(2, 4 5, $($w)*),
            tq2_0_pairs!(3, 6 7, $($w)*),
        )
    };
}

/// Text of TQ1_0: the sign of the highest bit turned, by `v22`.
macro_rules! turn {
    ($($w:literal)*) => { concat!($("eor v", $w, ".16b, v", $w, ".16b, v22.16b\n",)*) };
}

/// Text of TQ1_0: four columns of each of four rows beside each other.
macro_rules! transpose {
    ($a:literal $b:literal $c:literal $d:literal) => {
        concat!(
            "trn1 v0.4s, v",
            $a,
            ".4s, v",
            $b,
            ".4s\n",
            "trn2 v1.4s, v",
            $a,
            ".4s, v",
            $b,
            ".4s\n",
            "trn1 v2.4s, v",
            $c,
            ".4s, v",
            $d,
            ".4s\n",
            "trn2 v3.4s, v",
            $c,
            ".4s, v",
            $d,
            ".4s\n",
            "zip1 v",
            $a,
            ".2d, v0.2d, v2.2d\n",
            "zip1 v",
            $b,
            ".2d, v1.2d, v3.2d\n",
            "zip2 v",
            $c,
            ".2d, v0.2d, v2.2d\n",
            "zip2 v",
            $d,
            ".2d, v1.2d, v3.2d\n",
        )
    };
}

/// Text of TQ1_0: a digit of vectors of four rows times lanes of `$a`. `v0` adds up products before, `v1` after the turn to the next.
macro_rules! digit {
    ($a:literal, $i:literal $w:literal) => { concat!(digit!(dot 0, $i $w $a), digit!(next $w), digit!(dot 1, $i $w $a)) };
    ($a:literal, $w0:literal $w1:literal $w2:literal $w3:literal) => {
        concat!(
            digit!(dot 0, 0 $w0 $a), digit!(next $w0), digit!(dot 0, 1 $w1 $a), digit!(next $w1),
            digit!(dot 0, 2 $w2 $a), digit!(next $w2), digit!(dot 1, 0 $w0 $a),
            digit!(dot 0, 3 $w3 $a), digit!(next $w3), digit!(dot 1, 1 $w1 $a),
            digit!(dot 1, 2 $w2 $a), digit!(dot 1, 3 $w3 $a),
        )
    };
    (dot $r:literal, $i:literal $w:literal $a:literal) => { concat!("sdot v", $r, ".4s, v", $w, ".16b, v", $a, ".4b[", $i, "]\n") };
    (next $w:literal) => { concat!("mul v", $w, ".16b, v", $w, ".16b, v23.16b\n") };
}

/// Text of TQ1_0: 32 columns, whose scale is lane `$lane` of `$d`, by digits.
macro_rules! tq1_0_columns {
    ($d:literal $lane:literal, $($digit:expr),*) => {
        concat!(
            "movi v0.4s, #0\n",
            "movi v1.4s, #0\n",
            $($digit,)*
            "fmul v2.4s, v21.4s, v", $d, ".s[", $lane, "]\n",
            // -256 isum
            "mls v1.4s, v0.4s, v26.4s\n",
            "scvtf v1.4s, v1.4s, #8\n",
            "fmls v28.4s, v1.4s, v2.4s\n",
        )
    };
}

/// Text of Q2_0: the pairs of two rows, each in `$w`, times activations in `v4` to `v7`, by two registers each.
macro_rules! q2_0_rows {
    ($r:literal $w:literal $x:literal $y:literal, $s:literal $v:literal $z:literal $u:literal) => {
        concat!(
            "and v",
            $x,
            ".16b, v",
            $w,
            ".16b, v24.16b\n",
            "and v",
            $z,
            ".16b, v",
            $v,
            ".16b, v24.16b\n",
            "ushr v",
            $y,
            ".16b, v",
            $w,
            ".16b, #6\n",
            "ushr v",
            $u,
            ".16b, v",
            $v,
            ".16b, #6\n",
            sdot!($r, $x, 4),
            sdot!($s, $z, 4),
            sdot!($r, $y, 7),
            sdot!($s, $u, 7),
            "ushr v",
            $x,
            ".16b, v",
            $w,
            ".16b, #2\n",
            "ushr v",
            $z,
            ".16b, v",
            $v,
            ".16b, #2\n",
            "ushr v",
            $y,
            ".16b, v",
            $w,
            ".16b, #4\n",
            "ushr v",
            $u,
            ".16b, v",
            $v,
            ".16b, #4\n",
            "and v",
            $x,
            ".16b, v",
            $x,
            ".16b, v24.16b\n",
            "and v",
            $z,
            ".16b, v",
            $z,
            ".16b, v24.16b\n",
            "and v",
            $y,
            ".16b, v",
            $y,
            ".16b, v24.16b\n",
            "and v",
            $u,
            ".16b, v",
            $u,
            ".16b, v24.16b\n",
            sdot!($r, $x, 5),
            sdot!($s, $z, 5),
            sdot!($r, $y, 6),
            sdot!($s, $u, 6),
        )
    };
}

impl Lone for Dot {
    /// Two lanes for each row.
    const TQ2_0: usize = 8;

    #[inline(always)]
    fn prepare_tq2_0(sum: &[i32], start: &mut [i32]) {
        for (sum, to) in sum.as_chunks().0.iter().zip(start.as_chunks_mut::<{ 4 * Self::TQ2_0 }>().0) {
            // SAFETY: registers, and arrays of four.
            unsafe {
                let (x, none) = (raised(sum), vdupq_n_s32(0));
                let [x, y] = [vzip1q_s32(x, none), vzip2q_s32(x, none)].map(|x| vreinterpretq_s64_s32(x));
                let each = [vdupq_laneq_s64::<0>(x), vdupq_laneq_s64::<1>(x), vdupq_laneq_s64::<0>(y), vdupq_laneq_s64::<1>(y)];
                for (x, to) in each.into_iter().zip(to.as_chunks_mut::<8>().0) {
                    vst1q_s32(to.as_mut_ptr(), vreinterpretq_s32_s64(x));
                    vst1q_s32(to[4..].as_mut_ptr(), vreinterpretq_s32_s64(x));
                }
            }
        }
    }

    /// Sums of both blocks for each row, activations, two scales.
    const Q2_0: usize = 34;

    #[inline(always)]
    fn prepare_q2_0(token: Token, start: &mut [i32]) {
        for ((q, d, sum), to) in token.by_64().zip(start.as_chunks_mut::<{ Self::Q2_0 }>().0) {
            let (sums, to) = to.split_first_chunk_mut::<16>().expect("34");
            sums.as_chunks_mut().0.fill([-sum[0], 0, -sum[1], 0]);
            let (pairs, scales) = to.split_first_chunk_mut::<16>().expect("18");
            by_pairs(q, pairs);
            scales.copy_from_slice(&d.map(|d| d.to_bits() as i32));
        }
    }

    /// Pairs are multiplied where they stand, of each row in four lanes, which are added up in the end.
    #[inline(always)]
    unsafe fn tq2_0(at: &mut At) {
        // SAFETY: by the caller's promise.
        unsafe {
            block!(
                at, [
                    "ld1 {{v8.16b-v11.16b}}, [{p0}], #64",
                    "ld1 {{v12.16b-v15.16b}}, [{p1}], #64",
                    "ld1 {{v16.16b-v19.16b}}, [{p2}], #64",
                    "ld1 {{v20.16b-v23.16b}}, [{p3}], #64",
                    scales!(27),
                    tq2_0_half!(8 9, 12 13, 16 17, 20 21),
                    tq2_0_half!(10 11, 14 15, 18 19, 22 23),
                ],
                token = inout(reg) at.token, start = inout(reg) at.start, d = inout(reg) at.d, out("v22") _, out("v23") _,
                in("v24") vdupq_n_u8(3), in("v25") vdupq_n_u8(12), in("v26") vdupq_n_u8(48), out("v30") _, out("v31") _,
            );
        }
    }

    /// No digit is ever taken out. Be `x` a byte, a fraction of 256, and `x'` that of the digits behind its first, which is three times
    /// `x` in eight bits: `3 x = 256 digit + x'`. With `y = x - 128`, which the turned highest bit makes of a byte with a sign, and `y'`
    /// likewise, `3 y - y' = 256 (digit - 1)`. So the products of `y` and of `y'` are added up, each by themselves.
    #[inline(always)]
    unsafe fn tq1_0(at: &mut At) {
        // SAFETY: by the caller's promise.
        unsafe {
            block!(
                at, [
                    "ld1 {{v8.16b-v10.16b}}, [{p0}], #48",
                    "ld1 {{v11.16b-v13.16b}}, [{p1}], #48",
                    "ld1 {{v14.16b-v16.16b}}, [{p2}], #48",
                    "ld1 {{v17.16b-v19.16b}}, [{p3}], #48",
                    "ldr s20, [{p0}], #4",
                    "ld1 {{v20.s}}[1], [{p1}], #4",
                    "ld1 {{v20.s}}[2], [{p2}], #4",
                    "ld1 {{v20.s}}[3], [{p3}], #4",
                    scales!(21),
                    turn!(8 9 10 11 12 13 14 15 16 17 18 19 20),
                    transpose!(8 11 14 17),
                    transpose!(9 12 15 18),
                    transpose!(10 13 16 19),
                    "ld1 {{v24.4s-v25.4s}}, [{d}], #32",
                    "ld1 {{v4.16b-v7.16b}}, [{token}], #64",
                    tq1_0_columns!(24 0, digit!(4, 8 11 14 17), digit!(5, 9 12 15 18)),
                    tq1_0_columns!(24 1, digit!(6, 8 11 14 17), digit!(7, 9 12 15 18)),
                    "ld1 {{v4.16b-v7.16b}}, [{token}], #64",
                    tq1_0_columns!(24 2, digit!(4, 8 11 14 17), digit!(5, 9 12 15 18)),
                    tq1_0_columns!(24 3, digit!(6, 8 11 14 17), digit!(7, 9 12 15 18)),
                    "ld1 {{v4.16b-v7.16b}}, [{token}], #64",
                    tq1_0_columns!(25 0, digit!(4, 8 11 14 17), digit!(5, 9 12 15 18)),
                    tq1_0_columns!(25 1, digit!(6, 10 13 16 19), digit!(7, 10 13 16 19)),
                    "ld1 {{v4.16b-v7.16b}}, [{token}], #64",
                    tq1_0_columns!(25 2, digit!(4, 10 13 16 19), digit!(5, 10 13 16 19)),
                    // The last four bytes of four rows are one vector.
                    tq1_0_columns!(25 3, digit!(6, 10 13 16 19), digit!(7, 0 20), digit!(7, 1 20), digit!(7, 2 20), digit!(7, 3 20)),
                ],
                token = inout(reg) at.token, d = inout(reg) at.d, in("v22") vdupq_n_u8(128), in("v23") vdupq_n_u8(3),
                out("v24") _, out("v25") _, in("v26") vdupq_n_s32(3),
            );
        }
    }

    /// Both blocks of 32 columns of a row, in two lanes each.
    #[inline(always)]
    unsafe fn q2_0(at: &mut At) {
        // SAFETY: by the caller's promise.
        unsafe {
            block!(
                at, [
                    scales!(27),
                    "ldr q8, [{p0}], #16",
                    "ldr q9, [{p1}], #16",
                    "ldr q10, [{p2}], #16",
                    "ldr q11, [{p3}], #16",
                    "ld1 {{v0.4s-v3.4s}}, [{start}], #64",
                    "ld1 {{v4.4s-v7.4s}}, [{start}], #64",
                    "ldr d29, [{start}], #8",
                    q2_0_rows!(0 8 12 13, 1 9 14 15),
                    q2_0_rows!(2 10 16 17, 3 11 18 19),
                    "addp v0.4s, v0.4s, v1.4s",
                    "addp v2.4s, v2.4s, v3.4s",
                    "fmul v4.4s, v27.4s, v29.s[0]",
                    "fmul v5.4s, v27.4s, v29.s[1]",
                    "uzp1 v1.4s, v0.4s, v2.4s",
                    "uzp2 v3.4s, v0.4s, v2.4s",
                    "scvtf v1.4s, v1.4s",
                    "scvtf v3.4s, v3.4s",
                    "fmla v28.4s, v1.4s, v4.4s",
                    "fmla v28.4s, v3.4s, v5.4s",
                ],
                start = inout(reg) at.start, in("v24") vdupq_n_u8(3),
            );
        }
    }
}
