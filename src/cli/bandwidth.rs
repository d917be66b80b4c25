//! A plain read of the weights, where they are mapped: what `bench --bandwidth` holds decoding against.
//! Nothing but additions is done with the bytes, in an order that the processor sees coming; no prefetches.

use std::time::Instant;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::mem::pool::{Pool, STACK_BYTES};
use crate::model::forward::Model;

/// Bytes of a task.
const TASK_BYTES: usize = 1 << 20;

/// How fast, with some threads.
#[derive(Serialize)]
pub struct Read {
    test: &'static str,
    threads: usize,
    pub gb_s_median: f64,
    gb_s_min: f64,
    gb_s_max: f64,
    runs: usize,
}

/// Reads with one thread, and with as many as decode.
pub struct Reader {
    pools: Vec<Pool>,
    seconds: Vec<Vec<f64>>,
}

impl Reader {
    /// Private memory of it.
    pub fn plan_bytes(n_threads: usize, n_runs: usize) -> usize {
        (n_threads - 1) * STACK_BYTES + 2 * n_runs * size_of::<f64>()
    }

    pub fn new(n_threads: usize) -> Result<Reader> {
        let mut pools = Vec::new();
        for n in [1].into_iter().chain((n_threads > 1).then_some(n_threads)) {
            let no_thread = |e| Error::usage("--threads", format!("cannot start {n} more threads for --bandwidth: {e}"));
            pools.push(Pool::new(n).map_err(no_thread)?);
        }
        let seconds = pools.iter().map(|_| Vec::new()).collect();
        Ok(Reader { pools, seconds })
    }

    /// Once with each number of threads.
    pub fn run(&mut self, model: &Model, kernels: Kernels) {
        let weights: Vec<&[u8]> = matrices(model, kernels).flat_map(|bytes| bytes.chunks(TASK_BYTES)).collect();
        for (pool, seconds) in self.pools.iter_mut().zip(&mut self.seconds) {
            let started = Instant::now();
            pool.run(weights.len(), &|_, task| {
                std::hint::black_box(sum(weights[task]));
            });
            seconds.push(started.elapsed().as_secs_f64());
        }
    }

    /// What was seen, all threads last.
    pub fn rows(mut self, model: &Model, kernels: Kernels) -> Vec<Read> {
        let bytes = read_bytes(model, kernels) as f64;
        let of = |(pool, seconds): (&Pool, &mut Vec<f64>)| {
            seconds.sort_by(f64::total_cmp);
            let (gb_s, n) = (|i: usize| bytes / seconds[i] / 1e9, seconds.len());
            let (gb_s_median, gb_s_min, gb_s_max) = (gb_s(n / 2), gb_s(n - 1), gb_s(0));
            Read { test: "read", threads: pool.n_threads(), gb_s_median, gb_s_min, gb_s_max, runs: n }
        };
        self.pools.iter().zip(&mut self.seconds).map(of).collect()
    }
}

impl Read {
    pub fn line(&self) -> String {
        let Read { threads, gb_s_median, gb_s_min, gb_s_max, runs, .. } = self;
        format!("| {threads} | {gb_s_median:.1} | {gb_s_min:.1} | {gb_s_max:.1} | {runs} |")
    }
}

/// Bytes of the matrices that one token is multiplied with: of a mixture's those of the experts that it goes through.
pub fn token_bytes(model: &Model, kernels: Kernels) -> usize {
    read_bytes(model, kernels) - model.weights.idle_bytes as usize
}

fn read_bytes(model: &Model, kernels: Kernels) -> usize {
    matrices(model, kernels).map(<[u8]>::len).sum()
}

/// Where `kernels` read them: in the model, or in its pack.
fn matrices(model: &Model, kernels: Kernels) -> impl Iterator<Item = &[u8]> {
    let files = model.files(kernels);
    model.weights.matrices().map(move |tensor| tensor.in_file(&files).data)
}

fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for line in bytes.as_chunks::<64>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}
