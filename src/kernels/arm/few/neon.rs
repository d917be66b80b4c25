//! Without the dot product: `smull`, `smlal` and `smlal2` take eight elements of a row at once, into 16 bits. Rows take turns, so that a
//! core that executes in order need not wait for the last product; it is told ahead what it will read.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lone::{At, Lone, Token, add_pairs, block, by_pairs, pairs, raised, scales};

pub struct Neon;

/// Text: fetches `$at`, which are so many bytes behind `next`, and moves it by `$by`.
macro_rules! fetch {
    ($by:literal, $($at:literal)*) => {
        concat!($("prfm pldl1strm, [{next}, #", $at, "]\n",)* "add {next}, {next}, #", $by, "\n")
    };
}

/// Text: `$r = Σ ($x, $y) (v4, v5)` of two rows, in eight lanes each.
macro_rules! products {
    ($r:literal $x:literal $y:literal, $s:literal $z:literal $u:literal) => {
        concat!(
            products!("smull" "8b", $r $x 4, $s $z 4),
            products!("smlal2" "16b", $r $x 4, $s $z 4),
            products!("smlal" "8b", $r $y 5, $s $u 5),
            products!("smlal2" "16b", $r $y 5, $s $u 5),
        )
    };
    ($op:literal $lanes:literal, $($r:literal $x:literal $a:literal),*) => {
        concat!($($op, " v", $r, ".8h, v", $x, ".", $lanes, ", v", $a, ".", $lanes, "\n"),*)
    };
}

/// Text: lanes of four rows added up twice.
macro_rules! add_up {
    ($lanes:literal, $a:literal $b:literal $c:literal $d:literal) => {
        concat!(
            "addp v", $a, ".", $lanes, ", v", $a, ".", $lanes, ", v", $b, ".", $lanes, "\n", "addp v", $c, ".", $lanes, ", v",
            $c, ".", $lanes, ", v", $d, ".", $lanes, "\n", "addp v", $a, ".", $lanes, ", v", $a, ".", $lanes, ", v", $c, ".",
            $lanes, "\n",
        )
    };
}

/// Text of TQ2_0: `v7 += Σ v0`, `Σ v1` … in lanes of rows. The third pairs are sixteen times what they stand for, up to 48: sums of four
/// products fit into 16 bits, not of eight.
macro_rules! tq2_0_sums {
    (2) => {
        concat!(
            "saddlp v0.4s, v0.8h\nsaddlp v1.4s, v1.8h\nsaddlp v2.4s, v2.8h\nsaddlp v3.4s, v3.8h\n",
            add_up!("4s", 0 1 2 3),
            "add v7.4s, v7.4s, v0.4s\n",
        )
    };
    ($k:tt) => { concat!(add_up!("8h", 0 1 2 3), "sadalp v7.4s, v0.8h\n") };
}

/// Text of TQ2_0: bit pairs `$k` of four rows times the next 32 activations.
macro_rules! tq2_0_pairs {
    ($k:tt, $lo0:literal $hi0:literal, $lo1:literal $hi1:literal, $lo2:literal $hi2:literal, $lo3:literal $hi3:literal) => {
        concat!(
            "ldp q4, q5, [{token}], #32\n",
            pairs!($k, 30, $lo0), pairs!($k, 6, $lo1), pairs!($k, 31, $hi0), pairs!($k, 7, $hi1),
            products!(0 30 31, 1 6 7),
            pairs!($k, 30, $lo2), pairs!($k, 6, $lo3), pairs!($k, 31, $hi2), pairs!($k, 7, $hi3),
            products!(2 30 31, 3 6 7),
            // -Σ a
            "ld1r {{v7.4s}}, [{start}], #4\n",
            tq2_0_sums!($k),
            add_pairs!($k, 7),
        )
    };
}

/// Text of TQ2_0: 128 columns of four rows, in two vectors each.
macro_rules! tq2_0_half {
    ($($w:tt)*) => {
        concat!(
            "ldr q29, [{d}], #16\n",
            tq2_0_pairs!(0, $($w)*),
            tq2_0_pairs!(1, $($w)*),
            tq2_0_pairs!(2, $($w)*),
            tq2_0_pairs!(3, $($w)*),
        )
    };
}

/// Text of TQ1_0: the first digits of two vectors, negative, into `$m` and `$n`. Their next fractions go to `$to` and `$into`; `$x` and
/// `$y` become free.
macro_rules! digits {
    ($m:literal $x:literal $to:literal, $n:literal $y:literal $into:literal) => {
        concat!(
            "mul v",
            $to,
            ".16b, v",
            $x,
            ".16b, v23.16b\n",
            "mul v",
            $into,
            ".16b, v",
            $y,
            ".16b, v23.16b\n",
            "cmhi v",
            $m,
            ".16b, v",
            $x,
            ".16b, v",
            $to,
            ".16b\n",
            "cmhi v",
            $n,
            ".16b, v",
            $y,
            ".16b, v",
            $into,
            ".16b\n",
            "ssra v",
            $m,
            ".16b, v",
            $x,
            ".16b, #7\n",
            "ssra v",
            $n,
            ".16b, v",
            $y,
            ".16b, #7\n",
        )
    };
}

/// Text of TQ1_0: 32 columns, whose scale is lane `$lane` of `v26`: digits of rows 0 and 1 into `v30`, `v31` and `v6`, `v7`, then of 2
/// and 3.
macro_rules! tq1_0_columns {
    ($lane:literal, $low0:expr, $high0:expr, $low2:expr, $high2:expr) => {
        concat!(
            "ldp q4, q5, [{token}], #32\n",
            $low0, $high0, products!(0 30 31, 1 6 7),
            $low2, $high2, products!(2 30 31, 3 6 7),
            // Σ a, for the digits are negative.
            "ld1r {{v7.4s}}, [{start}], #4\n",
            add_up!("8h", 0 1 2 3),
            "sadalp v7.4s, v0.8h\n",
            "fmul v1.4s, v27.4s, v26.s[", $lane, "]\n",
            "scvtf v7.4s, v7.4s\n",
            "fmls v28.4s, v7.4s, v1.4s\n",
        )
    };
}

/// Text of TQ1_0: a digit of the first 32 bytes. Two registers are free, first `$s` and `$u`, at the end `$x3` and `$y3`; vectors lie
/// in the order low halves of two rows, high halves, and again, and end two places further on.
macro_rules! tq1_0_bytes {
    ($lane:literal, $s:literal $u:literal, $w0:literal $w1:literal $w2:literal $w3:literal $w4:literal $w5:literal $w6:literal $w7:literal) => {
        tq1_0_columns!(
            $lane,
            digits!(30 $w0 $s, 6 $w1 $u), digits!(31 $w2 $w0, 7 $w3 $w1),
            digits!(30 $w4 $w2, 6 $w5 $w3), digits!(31 $w6 $w4, 7 $w7 $w5)
        )
    };
}

/// Text of TQ1_0: two digits of the next 16 bytes, in `v10`, `v13`, `v16` and `v19`. `v22` and `v29` are free.
macro_rules! tq1_0_two {
    ($lane:literal) => {
        tq1_0_columns!(
            $lane,
            digits!(30 10 22, 6 13 29), digits!(31 22 10, 7 29 13),
            digits!(30 16 22, 6 19 29), digits!(31 22 16, 7 29 19)
        )
    };
}

/// Text of Q2_0: pairs of sixteen bytes of two rows, `$w` and `$v`, times activations in `v4` to `v7`: of the first eight bytes into `$r`
/// and `$s`, of the last into `$q` and `$p`.
macro_rules! q2_0_rows {
    ($w:literal $r:literal $q:literal, $v:literal $s:literal $p:literal) => {
        concat!(
            q2_0_rows!("and v16.16b, v", $w, ", v24.16b"), q2_0_rows!("and v20.16b, v", $v, ", v24.16b"),
            q2_0_rows!("ushr v17.16b, v", $w, ", #6"), q2_0_rows!("ushr v21.16b, v", $v, ", #6"),
            q2_0_rows!("ushr v18.16b, v", $w, ", #2"), q2_0_rows!("ushr v22.16b, v", $v, ", #2"),
            q2_0_rows!("ushr v19.16b, v", $w, ", #4"), q2_0_rows!("ushr v23.16b, v", $v, ", #4"),
            products!("smull" "8b", $r 16 4, $s 20 4), products!("smull2" "16b", $q 16 4, $p 20 4),
            "and v18.16b, v18.16b, v24.16b\nand v22.16b, v22.16b, v24.16b\n",
            products!("smlal" "8b", $r 17 7, $s 21 7), products!("smlal2" "16b", $q 17 7, $p 21 7),
            "and v19.16b, v19.16b, v24.16b\nand v23.16b, v23.16b, v24.16b\n",
            products!("smlal" "8b", $r 18 5, $s 22 5), products!("smlal2" "16b", $q 18 5, $p 22 5),
            products!("smlal" "8b", $r 19 6, $s 23 6), products!("smlal2" "16b", $q 19 6, $p 23 6),
        )
    };
    ($to:literal, $w:literal, $by:literal) => { concat!($to, $w, ".16b", $by, "\n") };
}

impl Lone for Neon {
    const TQ2_0: usize = 1;

    #[inline(always)]
    fn prepare_tq2_0(sum: &[i32], start: &mut [i32]) {
        for (sum, to) in sum.as_chunks().0.iter().zip(start.as_chunks_mut::<4>().0) {
            // SAFETY: an array of four.
            unsafe { vst1q_s32(to.as_mut_ptr(), raised(sum)) };
        }
    }

    /// Activations, two scales, two sums.
    const Q2_0: usize = 20;

    #[inline(always)]
    fn prepare_q2_0(token: Token, start: &mut [i32]) {
        for ((q, d, sum), to) in token.by_64().zip(start.as_chunks_mut::<{ Self::Q2_0 }>().0) {
            let (pairs, rest) = to.split_first_chunk_mut::<16>().expect("20");
            by_pairs(q, pairs);
            let d = d.map(|d| d.to_bits() as i32);
            rest.copy_from_slice(&[d[0], d[1], -sum[0], -sum[1]]);
        }
    }

    /// Pairs are multiplied where they stand.
    #[inline(always)]
    unsafe fn tq2_0(at: &mut At) {
        // SAFETY: by the caller's promise; a prefetch reads nothing and does not fault.
        unsafe {
            block!(
                at, [
                    fetch!(264, 0 64 128 192 256),
                    "ld1 {{v8.16b-v11.16b}}, [{p0}], #64",
                    "ld1 {{v12.16b-v15.16b}}, [{p1}], #64",
                    "ld1 {{v16.16b-v19.16b}}, [{p2}], #64",
                    "ld1 {{v20.16b-v23.16b}}, [{p3}], #64",
                    scales!(27),
                    tq2_0_half!(8 9, 12 13, 16 17, 20 21),
                    tq2_0_half!(10 11, 14 15, 18 19, 22 23),
                ],
                token = inout(reg) at.token, start = inout(reg) at.start, d = inout(reg) at.d, next = inout(reg) at.next,
                out("v22") _, out("v23") _, in("v24") vdupq_n_u8(3), in("v25") vdupq_n_u8(12), in("v26") vdupq_n_u8(48),
                out("v30") _, out("v31") _,
            );
        }
    }

    /// A digit is counted. Be `x` a byte, a fraction of 256, and `x'` that of the digits behind its first, which is three times `x` in
    /// eight bits. Where the digit is 0, neither `x' < x` nor `x >= 128` holds, where it is 1, one of them, where it is 2, both; and each
    /// is -1 in eight bits where it holds: a comparison, and a byte shifted to its sign.
    #[inline(always)]
    unsafe fn tq1_0(at: &mut At) {
        const POWERS: [u8; 16] = [1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27];
        // SAFETY: by the caller's promise; a prefetch reads nothing and does not fault.
        unsafe {
            block!(
                at, [
                    fetch!(216, 0 64 128 192),
                    "ld1 {{v8.16b-v10.16b}}, [{p0}], #48",
                    "ld1 {{v11.16b-v13.16b}}, [{p1}], #48",
                    "ld1 {{v14.16b-v16.16b}}, [{p2}], #48",
                    "ld1 {{v17.16b-v19.16b}}, [{p3}], #48",
                    "ld1r {{v20.4s}}, [{p0}], #4",
                    "ld1r {{v21.4s}}, [{p1}], #4",
                    "ld1r {{v24.4s}}, [{p2}], #4",
                    "ld1r {{v25.4s}}, [{p3}], #4",
                    scales!(27),
                    "ldr q26, [{d}], #16",
                    tq1_0_bytes!(0, 22 29, 8 11 9 12 14 17 15 18),
                    tq1_0_bytes!(1, 15 18, 22 29 8 11 9 12 14 17),
                    tq1_0_bytes!(2, 14 17, 15 18 22 29 8 11 9 12),
                    tq1_0_bytes!(3, 9 12, 14 17 15 18 22 29 8 11),
                    "ldr q26, [{d}], #16",
                    tq1_0_bytes!(0, 8 11, 9 12 14 17 15 18 22 29),
                    tq1_0_two!(1),
                    tq1_0_two!(2),
                    // The four digits of the last four bytes, all at once.
                    "ldr q6, [{powers}]",
                    "mul v20.16b, v20.16b, v6.16b",
                    "mul v21.16b, v21.16b, v6.16b",
                    "mul v24.16b, v24.16b, v6.16b",
                    "mul v25.16b, v25.16b, v6.16b",
                    tq1_0_columns!(
                        3, digits!(30 10 22, 6 13 29), digits!(31 20 22, 7 21 29), digits!(30 16 22, 6 19 29), digits!(31 24 22, 7 25 29)
                    ),
                ],
                token = inout(reg) at.token, start = inout(reg) at.start, d = inout(reg) at.d, next = inout(reg) at.next,
                powers = in(reg) POWERS.as_ptr(), out("v22") _, in("v23") vdupq_n_u8(3), out("v24") _, out("v25") _, out("v26") _,
                out("v30") _, out("v31") _,
            );
        }
    }

    #[inline(always)]
    unsafe fn q2_0(at: &mut At) {
        // SAFETY: by the caller's promise; a prefetch reads nothing and does not fault.
        unsafe {
            block!(
                at, [
                    fetch!(72, 0 64),
                    scales!(27),
                    "ldr q8, [{p0}], #16",
                    "ldr q9, [{p1}], #16",
                    "ldr q10, [{p2}], #16",
                    "ldr q11, [{p3}], #16",
                    "ld1 {{v4.16b-v7.16b}}, [{start}], #64",
                    "ldr q29, [{start}], #16",
                    q2_0_rows!(8 0 12, 9 1 13),
                    q2_0_rows!(10 2 14, 11 3 15),
                    add_up!("8h", 0 1 2 3),
                    add_up!("8h", 12 13 14 15),
                    "dup v4.4s, v29.s[2]",
                    "dup v5.4s, v29.s[3]",
                    "sadalp v4.4s, v0.8h",
                    "sadalp v5.4s, v12.8h",
                    "fmul v6.4s, v27.4s, v29.s[0]",
                    "fmul v7.4s, v27.4s, v29.s[1]",
                    "scvtf v4.4s, v4.4s",
                    "scvtf v5.4s, v5.4s",
                    "fmla v28.4s, v4.4s, v6.4s",
                    "fmla v28.4s, v5.4s, v7.4s",
                ],
                start = inout(reg) at.start, next = inout(reg) at.next, out("v22") _, out("v23") _, in("v24") vdupq_n_u8(3),
            );
        }
    }
}
