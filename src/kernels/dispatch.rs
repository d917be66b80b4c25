//! Calls of kernels, safe ones: shapes are checked here and work is split over the pool; the set does the rest.

use std::ops::Range;

use crate::mem::arena::Buf;
use crate::mem::pool::{Pool, SharedMut};

#[cfg(target_arch = "aarch64")]
use super::SetName;
#[cfg(target_arch = "aarch64")]
use super::arm::{quads, wide};
use super::operands::{
    ActBuf, Acts, Attend, BLOCK, CHUNK, MAX_HEAD_DIM, MatmulTask, Out, Partial, Product, TILE_ROWS, weights_len,
};
use super::rows::codec::RowType;
use super::spec::packed;
use super::spec::placed::{AngleSum, Placing};
use super::spec::scan::{Asked, SCAN_CHUNKS, scan_tile_bytes};
use super::{Kernels, Xielu};

impl Kernels {
    /// Quantises `x` = `[n_tok][n_cols]` into `buf`, one token a task.
    pub fn quantize<'a>(&self, pool: &mut Pool, x: &'a [f32], n_cols: usize, buf: &'a mut ActBuf) -> Acts<'a> {
        assert!(n_cols % BLOCK == 0 && x.len() % n_cols == 0);
        let (n_tok, blocks) = (x.len() / n_cols, n_cols / BLOCK);
        let halves = if buf.sum16.is_empty() { 0 } else { blocks };
        let (q, d, s, sum, sum16) = (
            SharedMut::new(&mut buf.q[..x.len()]),
            SharedMut::new(&mut buf.d[..n_tok * blocks]),
            SharedMut::new(&mut buf.s[..n_tok * blocks]),
            SharedMut::new(&mut buf.sum[..n_tok * blocks]),
            SharedMut::new(&mut buf.sum16[..n_tok * halves]),
        );
        let one = |t: usize| {
            let at = t * blocks;
            // SAFETY: each token's ranges are its own; the set's features were detected.
            unsafe {
                let (d, s, sum) = (d.range(at, blocks), s.range(at, blocks), sum.range(at, blocks));
                let q = q.range(t * n_cols, n_cols);
                (self.table().quantize)(&x[t * n_cols..][..n_cols], &mut *q, d, s, &mut *sum);
                sum_halves(q, sum, sum16.range(t * halves, halves));
            }
        };
        pool.run(n_tok, &|_, t| one(t));
        let quads = &mut buf.quads[..self.quads_len(n_tok, n_cols)];
        #[cfg(target_arch = "aarch64")]
        if !quads.is_empty() {
            let (q, d) = (&buf.q[..x.len()], &buf.d[..n_tok * blocks]);
            pool.for_chunks(quads, quads::group_len(n_cols), |group, out| {
                quads::interleave(group, n_cols, q, d, out);
            });
        }
        Acts {
            n_tok,
            n_cols,
            x,
            q: &buf.q[..x.len()],
            d: &buf.d[..n_tok * blocks],
            s: &buf.s[..n_tok * blocks],
            sum: &buf.sum[..n_tok * blocks],
            sum16: &buf.sum16[..n_tok * halves],
            quads,
        }
    }

    /// Rows of a task where `total_rows` are multiplied: enough tasks to even out noisy cores, each large enough to be worth
    /// handing over.
    pub fn rows_per_task(total_rows: usize, n_threads: usize) -> usize {
        (total_rows / (n_threads * 8)).next_multiple_of(TILE_ROWS).clamp(TILE_ROWS, 1024)
    }

    /// Every product of `products` with the same activations, split over the pool by rows.
    pub fn matmul(&self, pool: &mut Pool, tiles: &mut [Buf<u8>], acts: Acts, products: &mut [Product]) {
        let total_rows: usize = products.iter().map(|p| p.w.n_rows).sum();
        let rows_per_task = Kernels::rows_per_task(total_rows, pool.n_threads());
        self.matmul_by(rows_per_task, pool, tiles, acts, products);
    }

    /// The same in tasks of so many rows, a multiple of `TILE_ROWS`.
    pub fn matmul_by(&self, rows_per_task: usize, pool: &mut Pool, tiles: &mut [Buf<u8>], acts: Acts, products: &mut [Product]) {
        const MAX_PRODUCTS: usize = 3;
        assert!(rows_per_task > 0 && rows_per_task % TILE_ROWS == 0);
        let mut first_task = [0; MAX_PRODUCTS + 1];
        let mut outs = [Out { ptr: std::ptr::null_mut(), stride: 0 }; MAX_PRODUCTS];
        for (i, p) in products.iter_mut().enumerate() {
            assert!(
                p.w.n_cols == acts.n_cols
                    && p.out.len() >= acts.n_tok * p.w.n_rows
                    && p.w.data.len() >= p.w.n_rows * p.w.row_bytes()
                    && (!p.w.packed || packed::can_pack(p.w.ty, p.w.n_rows))
                    && (!self.wants_halves(p.w.ty) || acts.sum16.len() == acts.sum.len())
            );
            first_task[i + 1] = first_task[i] + p.w.n_rows.div_ceil(rows_per_task);
            outs[i] = Out { ptr: p.out.as_mut_ptr(), stride: p.w.n_rows };
        }
        let n_products = products.len();
        let (products, outs) = (SharedRef(&*products), SharedRef(&outs));
        let n_tasks = first_task[n_products];
        // What a thread fetches ahead is its own next rows.
        pool.run_apart_with(tiles, n_tasks, |tile: &mut Buf<u8>, task| {
            let i =
                (0..n_products).rfind(|&i| first_task[i] <= task && task < first_task[i + 1]).expect("a task of some product");
            let w = products.get()[i].w;
            let start = (task - first_task[i]) * rows_per_task;
            let rows = start..(start + rows_per_task).min(w.n_rows);
            // SAFETY: the features were detected; the rows of a task are its own, so are their elements of `out`,
            // whose length was checked above.
            unsafe {
                (self.multiplies(&w, acts.n_tok).table().matmul)(&mut MatmulTask { w, rows, acts, out: outs.get()[i], tile })
            };
        });
    }

    /// `out = x / rms(x) * weight` for each row of `weight.len()` elements.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == out.len() && x.len() % weight.len() == 0);
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            // SAFETY: the set's features were detected.
            unsafe { (self.table().rms_norm)(x, weight, eps, out) };
        }
    }

    /// `x += y`
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table().add)(x, y) };
    }

    /// `gate = silu(gate) * up`
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table().silu_mul)(gate, up) };
    }

    /// `gate = g sigmoid(1.702 g) * (u + 1)`, where `g` is the gate cut above 7 and `u` is `up` within -7 and 7
    pub fn clamped_silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table().clamped_silu_mul)(gate, up) };
    }

    /// `gate = gelu(gate) * up`, GELU by its tanh
    pub fn gelu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table().gelu_mul)(gate, up) };
    }

    /// `x = x * sigmoid(x)`
    pub fn silu(&self, x: &mut [f32]) {
        // SAFETY: the set's features were detected.
        unsafe { (self.table().silu)(x) };
    }

    /// `x = x * sigmoid(gate)`
    pub fn sigmoid_mul(&self, x: &mut [f32], gate: &[f32]) {
        assert_eq!(x.len(), gate.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table().sigmoid_mul)(x, gate) };
    }

    /// `x = max(x, 0)^2`
    pub fn relu2(&self, x: &mut [f32]) {
        // SAFETY: the set's features were detected.
        unsafe { (self.table().relu2)(x) };
    }

    /// xIELU, in place.
    pub fn xielu(&self, x: &mut [f32], by: &Xielu) {
        // SAFETY: the set's features were detected.
        unsafe { (self.table().xielu)(x, by) };
    }

    /// `x = cap * tanh(x / cap)`
    pub fn soft_cap(&self, x: &mut [f32], cap: f32) {
        // SAFETY: the set's features were detected.
        unsafe { (self.table().soft_cap)(x, cap) };
    }

    pub fn l2_norm(&self, x: &[f32]) -> f32 {
        // SAFETY: the set's features were detected.
        unsafe { (self.table().l2_norm)(x) }
    }

    pub fn attend(&self, a: &Attend, out: &mut Partial) {
        let n_q = a.q.len() / a.head_dim;
        assert!(a.head_dim % 8 == 0 && a.head_dim <= MAX_HEAD_DIM && a.n_rows <= CHUNK && a.n_rows > 0);
        assert!(out.max.len() == n_q && out.sum.len() == n_q && out.acc.len() == a.q.len());
        assert!(out.weights.is_empty() || out.weights.len() == weights_len(n_q));
        match a.wide.is_empty() {
            true => a.assert_stored(0..a.n_rows),
            false => assert!(a.wide.len() == self.wide_len(a.head_dim)),
        }
        // SAFETY: the set's features were detected; rows are inside the buffers by the assertions above.
        unsafe { (self.attention().attend)(a, out) };
    }

    /// Adds what a later chunk left to what those before it left: `running`, `[max][sum]` of each query, and `acc`. Before the first,
    /// `max` is -inf.
    pub fn merge(&self, running: &mut [f32], acc: &mut [f32], chunk: &Partial) {
        assert!(running.len() == 2 * chunk.max.len() && chunk.sum.len() == chunk.max.len() && acc.len() == chunk.acc.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table().merge)(running, acc, chunk) };
    }

    /// `total`: the attention that each entry of a chunk received, over the queries together. That is the chunk's weights, brought from its
    /// own highest scores, `tops`, to the highest of all chunks and divided by the sums of all, both in `running` as `merge` left them.
    pub fn received(&self, tops: &[f32], weights: &[f32], running: &[f32], total: &mut [f32]) {
        assert!(running.len() == 2 * tops.len() && weights.len() == weights_len(tops.len()) && total.len() <= CHUNK);
        // SAFETY: the set's features were detected.
        unsafe { (self.table().received)(tops, weights, running, total) };
    }

    /// For each query and each `SCAN_CHUNK` keys of a tile of the index the highest score of those that `wanted` has a bit for; -inf where
    /// it has none. Query `n` writes from `n * stride` on.
    pub fn scan(&self, tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) {
        let n_query = asked.scale.len();
        assert!(asked.head_dim % 4 == 0 && tile.len() == scan_tile_bytes(asked.head_dim) && asked.sum.len() == n_query);
        assert!(asked.q.len() == n_query * asked.head_dim && out.len() >= n_query.saturating_sub(1) * stride + SCAN_CHUNKS);
        // SAFETY: the set's features were detected.
        unsafe { (self.table().scan)(tile, wanted, asked, stride, out) };
    }

    /// Adds to `total` what softmax makes of one query's scores, as many; `scores` is left as anything.
    pub fn add_shares(&self, scores: &mut [f32], total: &mut [f32]) {
        assert!(scores.len() == total.len() && scores.len() % 8 == 0);
        // SAFETY: the set's features were detected.
        unsafe { (self.table().add_shares)(scores, total) };
    }

    /// Brings the key at the beginning of `row`, as it was stored less `mean` (empty: nothing), to the position of `angles`, and leaves it
    /// there in f16. `key`: `[head_dim]`, left as anything.
    pub fn place(&self, p: &Placing, row: &mut [u8], mean: &[f32], angles: AngleSum, key: &mut [f32]) {
        assert!(key.len() == p.head_dim && row.len() == RowType::F16.row_bytes(p.head_dim) && p.n_rot <= p.head_dim);
        assert!(angles.0.len() >= p.n_rot && angles.1.len() >= p.n_rot);
        // SAFETY: the set's features were detected.
        unsafe { (self.table().place)(p, row, mean, angles, key) };
    }

    /// Bytes of `Acts::quads`: also for sets that come to read them only where a matrix is packed.
    pub(super) fn quads_len(&self, n_tok: usize, n_cols: usize) -> usize {
        #[cfg(target_arch = "aarch64")]
        if matches!(self.name, SetName::Dotprod | SetName::I8mm) {
            return quads::len(n_tok, n_cols);
        }
        let _ = (n_tok, n_cols);
        0
    }

    /// Floats of `Attend::wide`; 0 where the set reads rows as fast where they lie.
    pub fn wide_len(&self, head_dim: usize) -> usize {
        #[cfg(target_arch = "aarch64")]
        if self.attention().widen.is_some() {
            return wide::len(head_dim);
        }
        let _ = head_dim;
        0
    }

    /// Brings rows `which` of a chunk to their places in `wide`, and with them those of the same four; nothing where the set needs
    /// none. A row may be brought again.
    pub fn widen(&self, a: &Attend, which: Range<usize>, wide: &mut [f32]) {
        let Some(widen) = self.attention().widen else { return };
        assert!(a.head_dim % 8 == 0 && which.end <= a.n_rows && a.n_rows <= CHUNK && wide.len() == self.wide_len(a.head_dim));
        a.assert_stored(which.start / 4 * 4..which.end.next_multiple_of(4).min(a.n_rows));
        // SAFETY: the set's features were detected; the rows are inside the buffers, their places inside `wide`.
        unsafe { widen(a, which, wide) };
    }
}

/// `sum16` of each block of 32 `q`, whose whole sum is known, where `sum16` is not empty.
fn sum_halves(q: &[i8], sum: &[i32], sum16: &mut [i32]) {
    for ((q, sum), sum16) in q.as_chunks::<BLOCK>().0.iter().zip(sum).zip(sum16) {
        let first: i32 = q[..BLOCK / 2].iter().map(|&q| i32::from(q)).sum();
        *sum16 = first & 0xffff | (sum - first) << 16;
    }
}

/// Lets tasks on other threads read a value that holds raw pointers or `&mut`, which they do not follow at once.
struct SharedRef<'a, T: ?Sized>(&'a T);
// SAFETY: tasks read plain fields (shapes, pointers); what the pointers point at is split by rows.
unsafe impl<T: ?Sized> Sync for SharedRef<'_, T> {}
impl<T: ?Sized> SharedRef<'_, T> {
    fn get(&self) -> &T {
        self.0
    }
}
