//! Text of `asm!` of the types with grids: 32 columns of four rows, two rows and sixteen columns at a time, so that each instruction
//! stands beside one of another row. What is loaded next is looked up before what is loaded is used.
//!
//! Named in the text are `v0` to `v3`, which hold activations and the same with the other sign, and from `v16` on what is short-lived:
//! `v16` and `v17` become the magnitudes of sixteen columns of both rows, `v20` and `v21` the activations with their signs, `v26` and
//! `v27` say which bytes of a row's signs count.

/// Text: 32 columns with one scale.
macro_rules! whole {
    ($product:ident, $total:expr, $indices:ident, $words:ident) => {
        concat!(
            "ldp q26, q27, [{bytes}, #32 * ({sub} % 4)]\n",
            "ld1 {{v0.16b-v3.16b}}, [{token}], #64\n",
            $indices!(0, 0 1),
            sixteen!($product $words, 0 r, 26 0 1, 0 1, $indices!(1, 0 1)),
            sixteen!($product $words, 1 r, 27 2 3, 0 1, $indices!(0, 2 3)),
            sixteen!($product $words, 0 r, 26 0 1, 2 3, $indices!(1, 2 3)),
            sixteen!($product $words, 1 r, 27 2 3, 2 3, ""),
            // Into `v17`.
            $total,
            // The first byte of a lane leaves no other behind when it is shifted up, the last when down.
            ".if {sub} % 4 == 0
            shl v18.4s, {scales:v}.4s, #24
            ucvtf v18.4s, v18.4s, #24
            .elseif {sub} % 4 == 3
            ushr v18.4s, {scales:v}.4s, #24
            ucvtf v18.4s, v18.4s
            .else
            shl v18.4s, {scales:v}.4s, #24 - 8 * ({sub} % 4)
            ushr v18.4s, v18.4s, #24
            ucvtf v18.4s, v18.4s
            .endif
            fmul v18.4s, v18.4s, {d:v}.4s
            fmul v18.4s, v18.4s, {d_a:v}.s[{sub} % 4]
            scvtf v17.4s, v17.4s
            fmla {acc:v}.4s, v17.4s, v18.4s",
        )
    };
}
pub(super) use whole;

/// Text: 32 columns with a scale for the first and one for the last sixteen.
macro_rules! halves {
    ($product:ident, $total:expr, $indices:ident, $words:ident) => {
        concat!(
            "ldr q26, [{bytes}, #32 * ({sub} % 4)]\n",
            "ldp q0, q1, [{token}], #32\n",
            $indices!(0, 0 1),
            sixteen!($product $words, 0 r, 26 0 1, 0 1, $indices!(0, 2 3)),
            sixteen!($product $words, 0 r, 26 0 1, 2 3, $indices!(1, 0 1)),
            "ldr q26, [{bytes}, #32 * ({sub} % 4) + 16]\n",
            "ldp q0, q1, [{token}], #32\n",
            sixteen!($product $words, 1 u, 26 0 1, 0 1, $indices!(1, 2 3)),
            sixteen!($product $words, 1 u, 26 0 1, 2 3, ""),
            // Into `v16` and `v17`.
            $total,
            ".if {sub} % 4 == 3
            ushr v18.4s, {scales:v}.4s, #24
            ushr v19.4s, {last_scales:v}.4s, #24
            .else
            shl v18.4s, {scales:v}.4s, #24 - 8 * ({sub} % 4)
            shl v19.4s, {last_scales:v}.4s, #24 - 8 * ({sub} % 4)
            ushr v18.4s, v18.4s, #24
            ushr v19.4s, v19.4s, #24
            .endif
            mul v16.4s, v16.4s, v18.4s
            fmul v20.4s, {d:v}.4s, {d_a:v}.s[{sub} % 4]
            mla v16.4s, v17.4s, v19.4s
            scvtf v16.4s, v16.4s
            fmla {acc:v}.4s, v16.4s, v20.4s",
        )
    };
}
pub(super) use halves;

/// Text: half `$half` of the columns of rows `$r` and `$s`, whose indices are in `x0` and so on. `$byte` says which bytes of signs
/// count, `$plus` are the activations, `$minus` the same with the other sign.
macro_rules! sixteen {
    ($product:ident $words:ident, $half:tt $sum:tt, $byte:literal $plus:literal $minus:literal, $r:literal $s:literal, $next:expr) => {
        concat!(
            $words!(load),
            concat!("tbl v20.16b, {{{s", $r, ":v}.16b}}, v", $byte, ".16b\n"),
            concat!("tbl v21.16b, {{{s", $s, ":v}.16b}}, v", $byte, ".16b\n"),
            $next,
            "cmtst v20.16b, v20.16b, {bit:v}.16b\n",
            "cmtst v21.16b, v21.16b, {bit:v}.16b\n",
            $words!(join),
            concat!("bsl v20.16b, v", $minus, ".16b, v", $plus, ".16b\n"),
            concat!("bsl v21.16b, v", $minus, ".16b, v", $plus, ".16b\n"),
            $product!($half $sum, $r $s),
        )
    };
}
pub(super) use sixteen;

/// Text: words of eight magnitudes.
macro_rules! eights {
    (load) => {
        "ldr d16, [{grid}, {x0}, lsl #3]
        ldr d17, [{grid}, {x1}, lsl #3]
        ldr d18, [{grid}, {x2}, lsl #3]
        ldr d19, [{grid}, {x3}, lsl #3]\n"
    };
    (join) => {
        "zip1 v16.2d, v16.2d, v18.2d
        zip1 v17.2d, v17.2d, v19.2d\n"
    };
}
pub(super) use eights;

/// Text: words of four magnitudes.
macro_rules! fours {
    (load) => {
        "ldr s16, [{grid}, {x0}, lsl #2]
        ldr s17, [{grid}, {x1}, lsl #2]
        ldr s18, [{grid}, {x2}, lsl #2]
        ldr s19, [{grid}, {x3}, lsl #2]
        ldr s22, [{grid}, {x4}, lsl #2]
        ldr s23, [{grid}, {x5}, lsl #2]
        ldr s24, [{grid}, {x6}, lsl #2]
        ldr s25, [{grid}, {x7}, lsl #2]\n"
    };
    (join) => {
        "zip1 v16.4s, v16.4s, v18.4s
        zip1 v17.4s, v17.4s, v19.4s
        zip1 v22.4s, v22.4s, v24.4s
        zip1 v23.4s, v23.4s, v25.4s
        zip1 v16.2d, v16.2d, v22.2d
        zip1 v17.2d, v17.2d, v23.2d\n"
    };
}
pub(super) use fours;

/// Text: index `$i` of row `$row` into `$x`: a byte of the row, or what was put down in sixteen bits, or in as many with a sign.
macro_rules! index {
    (byte $x:literal $row:literal $i:literal) => {
        concat!("ldrb {x", $x, ":w}, [{p", $row, "}, #8 * {sub} + ", $i, "]\n")
    };
    (put $x:literal $row:literal $i:literal) => {
        concat!("ldrh {x", $x, ":w}, [{index}, #8 * {sub} + 64 * ", $row, " + 2 * ", $i, "]\n")
    };
    (signed $x:literal $row:literal $i:literal) => {
        concat!("ldrsh {x", $x, "}, [{index}, #16 * {sub} + 128 * ", $row, " + 2 * ", $i, "]\n")
    };
    // Those of two words, and of four, in each of two rows.
    ($how:ident, $r:literal $s:literal, $i:literal $j:literal) => {
        concat!(index!($how 0 $r $i), index!($how 1 $s $i), index!($how 2 $r $j), index!($how 3 $s $j))
    };
    ($how:ident, $r:literal $s:literal, $i:literal $j:literal $k:literal $l:literal) => {
        concat!(
            index!($how, $r $s, $i $j),
            index!($how 4 $r $k), index!($how 5 $s $k), index!($how 6 $r $l), index!($how 7 $s $l),
        )
    };
}
pub(super) use index;

/// Text: the indices of half of the columns of two rows, words of eight.
macro_rules! bytes_of_eights {
    (0, $r:literal $s:literal) => { index!(byte, $r $s, 0 1) };
    (1, $r:literal $s:literal) => { index!(byte, $r $s, 2 3) };
}
pub(super) use bytes_of_eights;

/// Text: the same, where they were put down.
macro_rules! put_of_eights {
    (0, $r:literal $s:literal) => { index!(put, $r $s, 0 1) };
    (1, $r:literal $s:literal) => { index!(put, $r $s, 2 3) };
}
pub(super) use put_of_eights;

/// Text: the same, words of four.
macro_rules! bytes_of_fours {
    (0, $r:literal $s:literal) => { index!(byte, $r $s, 0 1 2 3) };
    (1, $r:literal $s:literal) => { index!(byte, $r $s, 4 5 6 7) };
}
pub(super) use bytes_of_fours;

/// Text: the same, where they were put down.
macro_rules! put_of_fours {
    (0, $r:literal $s:literal) => { index!(signed, $r $s, 0 1 2 3) };
    (1, $r:literal $s:literal) => { index!(signed, $r $s, 4 5 6 7) };
}
pub(super) use put_of_fours;

/// Text: indices of nine bits in the low ones of sixteen; those of all 32 columns are loaded with the first.
macro_rules! nines_of_eights {
    ($half:tt, 0 1) => { nines_of_eights!($half, 0 x4 1 x5) };
    ($half:tt, 2 3) => { nines_of_eights!($half, 2 x6 3 x7) };
    (0, $r:literal $x:ident $s:literal $y:ident) => {
        concat!(
            concat!("ldr {", stringify!($x), "}, [{p", $r, "}, #8 * {sub}]\n"),
            concat!("ldr {", stringify!($y), "}, [{p", $s, "}, #8 * {sub}]\n"),
            concat!("and {x0}, {", stringify!($x), "}, #511\n"),
            concat!("and {x1}, {", stringify!($y), "}, #511\n"),
            concat!("ubfx {x2}, {", stringify!($x), "}, #16, #9\n"),
            concat!("ubfx {x3}, {", stringify!($y), "}, #16, #9\n"),
        )
    };
    (1, $r:literal $x:ident $s:literal $y:ident) => {
        concat!(
            concat!("ubfx {x0}, {", stringify!($x), "}, #32, #9\n"),
            concat!("ubfx {x1}, {", stringify!($y), "}, #32, #9\n"),
            concat!("ubfx {x2}, {", stringify!($x), "}, #48, #9\n"),
            concat!("ubfx {x3}, {", stringify!($y), "}, #48, #9\n"),
        )
    };
}
pub(super) use nines_of_eights;

/// `asm!` of 32 columns at `$at`, of which `$place` are the rows, or the indices that were put down; `$x` and `$v` are the registers that
/// it overwrites beside those that all do, the last are the scales and sums of the set.
macro_rules! product {
    ($at:ident, $grid:expr, $text:expr, rows $x:tt $v:tt, $($sums:tt)*) => {
        product!(
            $at, $grid, $text, $x $v,
            p0 = in(reg) $at.rows[0], p1 = in(reg) $at.rows[1], p2 = in(reg) $at.rows[2], p3 = in(reg) $at.rows[3], $($sums)*
        )
    };
    ($at:ident, $grid:expr, $text:expr, put $x:tt $v:tt, $($sums:tt)*) => {
        product!($at, $grid, $text, $x $v, index = in(reg) $at.index, $($sums)*)
    };
    ($at:ident, $grid:expr, $text:expr, [$($x:ident)*] [$($v:tt)*], $($operands:tt)*) => {
        asm!(
            $text,
            $($operands)*
            s0 = in(vreg) $at.signs[0], s1 = in(vreg) $at.signs[1], s2 = in(vreg) $at.signs[2], s3 = in(vreg) $at.signs[3],
            bit = in(vreg) $at.bit, bytes = in(reg) $at.bytes, grid = in(reg) $grid, token = inout(reg) $at.token, sub = const SUB,
            scales = in(vreg) $at.scales[0], d = in(vreg) $at.d, d_a = in(vreg) $at.d_a, acc = inout(vreg) $at.acc,
            x0 = out(reg) _, x1 = out(reg) _, x2 = out(reg) _, x3 = out(reg) _, $($x = out(reg) _,)*
            out("v0") _, out("v1") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
            out("v26") _, $(out($v) _,)*
            options(readonly, nostack, preserves_flags),
        )
    };
}
pub(super) use product;

/// The products of all types, which a set makes: by `$whole` with a scale for 32 columns, by `$halves` for sixteen.
macro_rules! types {
    ($whole:ident, $halves:ident) => {
        $whole!(iq2_xxs, grids::IQ2_XXS.as_ptr(), 43, bytes_of_eights, eights, rows [] ["v2" "v3" "v27"]);
        $halves!(iq2_xs, grids::IQ2_XS.as_ptr(), 43, nines_of_eights, eights, rows [x4 x5 x6 x7] []);
        $halves!(iq2_s, grids::IQ2_S.as_ptr(), 43, put_of_eights, eights, put [] []);
        $whole!(iq3_xxs, grids::IQ3_XXS.as_ptr(), 62, bytes_of_fours, fours, rows [x4 x5 x6 x7] ["v2" "v3" "v27" "v22" "v23" "v24" "v25"]);
        $whole!(iq3_s, iq3_s_grid(), 15, put_of_fours, fours, put [x4 x5 x6 x7] ["v2" "v3" "v27" "v22" "v23" "v24" "v25"]);
    };
}
pub(super) use types;
