//! Activations of a batch interleaved by six tokens, for the set whose products like them so: a tile of eight rows by six tokens fills
//! all registers with sums, scales and one read of either side, and one pointer serves all six.
//!
//! ```text
//! for each six tokens, each block of 32 columns, `SIX_BLOCK` bytes:
//!     columns 0..16 of token 0, of token 1, … of token 5;  columns 16..32 likewise
//!     the scale of each token, f32, and room for two more
//! ```
//!
//! Tokens that six do not divide are read from the plain layout, by fours.

use super::BLOCK;

/// Tokens that lie together.
pub const SIX: usize = 6;
/// Bytes of a block of them.
pub const SIX_BLOCK: usize = SIX * BLOCK + 32;

/// How many of `n_tok` tokens are taken by sixes: as many as leave whole fours, or nearly, which cost the same.
pub fn by_six(n_tok: usize) -> usize {
    let sixes = n_tok / SIX;
    SIX * sixes.saturating_sub(usize::from(matches!(n_tok % SIX, 1 | 2 | 5)))
}

/// Bytes for `n_tok` tokens.
pub fn len(n_tok: usize, n_cols: usize) -> usize {
    n_tok / SIX * n_cols / BLOCK * SIX_BLOCK
}

/// Interleaves the first of `n_tok` tokens: `q` = `[n_tok][n_cols]`, `d` = `[n_tok][n_cols / 32]`.
pub fn interleave(n_tok: usize, n_cols: usize, q: &[i8], d: &[f32], out: &mut [i8]) {
    const HALF: usize = BLOCK / 2;
    let n_blocks = n_cols / BLOCK;
    for six in 0..by_six(n_tok) / SIX {
        let out = &mut out[six * n_blocks * SIX_BLOCK..][..n_blocks * SIX_BLOCK];
        for t in 0..SIX {
            let (q, d) = (&q[(six * SIX + t) * n_cols..][..n_cols], &d[(six * SIX + t) * n_blocks..][..n_blocks]);
            for ((out, q), d) in out.as_chunks_mut::<SIX_BLOCK>().0.iter_mut().zip(q.as_chunks::<BLOCK>().0).zip(d) {
                out[t * HALF..][..HALF].copy_from_slice(&q[..HALF]);
                out[(SIX + t) * HALF..][..HALF].copy_from_slice(&q[HALF..]);
                out[SIX * BLOCK + 4 * t..][..4].copy_from_slice(&d.to_ne_bytes().map(|byte| byte as i8));
            }
        }
    }
}
