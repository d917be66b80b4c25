//! What is done to the residual stream around the parts of a pass: norms, and what the parts add.

use crate::kernels::Kernels;
use crate::mem::arena::Buf;
use crate::mem::pool::Pool;

/// `out` = RMSNorm of `x` by `weight`, row by row, both `[n_tok][weight.len()]`.
pub fn rms_norm(kernels: Kernels, pool: &mut Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = weight.len();
    pool.for_chunks(out, n, |t, out| kernels.rms_norm(&x[t * n..][..n], weight, eps, out));
}

/// What the norm makes of `x`, in `room`, or `x` itself where there is no norm.
pub fn normed<'a>(
    kernels: Kernels,
    pool: &mut Pool,
    x: &'a [f32],
    norm: &Option<Buf<f32>>,
    eps: f32,
    room: &'a mut [f32],
) -> &'a [f32] {
    let Some(norm) = norm else { return x };
    rms_norm(kernels, pool, x, norm, eps, room);
    room
}

/// `x += times * y`, or `times` what the norm makes of `y`, for which `room` is as large as they are.
pub fn add_to(
    kernels: Kernels,
    pool: &mut Pool,
    x: &mut [f32],
    y: &mut [f32],
    times: f32,
    (norm, eps): (&Option<Buf<f32>>, f32),
    room: &mut [f32],
) {
    let y = match norm {
        Some(norm) => {
            rms_norm(kernels, pool, y, norm, eps, room);
            room
        }
        None => y,
    };
    multiply(y, times);
    kernels.add(x, y);
}

/// Most models multiply with 1.
pub fn multiply(x: &mut [f32], times: f32) {
    if times != 1.0 {
        x.iter_mut().for_each(|x| *x *= times);
    }
}
