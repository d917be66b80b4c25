//! Which set of kernels does what in a model, on the CPU that it runs on: measured once, at start, on the weights themselves.
//! All sets give the same bits, so the outcome shows in nothing but time. A set that was asked for by name does everything, and
//! nothing is measured.
//!
//! ```text
//! for decoding with each type, for attention, for batches with each type, and for a few tokens where there will be any:
//!     3 to 15 times, as time allows, each set in turn: time one piece of work            stop where 5 ms are over
//!     the fastest set does it if it beats the default set by more than 10 %, and three times of four
//! ```
//!
//! Decoding is bound by memory as much as by arithmetic, so each piece is rows of the weights that lie apart from the last one's, in
//! tasks such as the real product has, and all threads take part. Their pages are brought in first and not counted, but for a mixture's: the first token would read them. So it is for a few tokens. Batches are bound by arithmetic:
//! their piece is always the same, for one so small would end before anything was fetched ahead. Everything runs in the scratch
//! of the session, which the plan has shown.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::gguf::quant::GgmlType;
use crate::kernels::{ActBuf, FEW_TOKENS, Kernels, Matrix, Op, Product, SetName, TILE_ROWS, tile_bytes};
use crate::kv::attention::AttendScratch;
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

use super::Model;
use super::weights::{Files, Weights};

/// What the choice may take; a piece of work that has begun is ended.
pub const LIMIT: Duration = Duration::from_millis(5);

/// Times that each set does its piece: at least, and at most where other operations leave the time.
const LEAST_ROUNDS: usize = 3;
const MOST_ROUNDS: usize = 15;
/// How much faster than the default set another one must be, by medians, and in how many of its rounds. Where memory is the limit all
/// sets are alike, and the luckiest is not to do the work; and sets that won by 5 to 10 % on pieces lost as much in whole runs
/// (docs/performance.md).
const MARGIN: f64 = 1.1;
const MUST_WIN: f64 = 0.75;
/// Weights of a piece at most: whole matrices of small models. Where a piece was a task for each thread, what it takes to begin one
/// counted for too much, and a set that begins quickly won by 14 % and was then 5 % slower (docs/performance.md).
const PIECE_BYTES: usize = 512 << 10;
/// Where a piece is smaller than this there is nothing to win and little to see.
const LEAST_BYTES: usize = 32 << 10;
/// Tokens of a batch, as in a real one: with fewer, what it takes to expand rows once for all of them would count for too much.
const BATCH_TOKENS: usize = 64;
/// Products of a piece of a batch, for each thread, about.
const BATCH_PRODUCTS: usize = 1 << 20;
/// Chunks of the cache that are attended to in one piece.
const CHUNKS: usize = 16;

/// What was found for one operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    pub op: Op,
    pub set: SetName,
    /// Time of the default set over that of `set`.
    pub gain: f64,
    /// Bytes of weights a second, in decoding.
    pub read_gb_s: Option<f64>,
}

/// What was found; nothing where nothing was to choose, or time was up.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub found: Vec<Found>,
}

impl Choice {
    /// The fastest reading of weights that was seen, in 1e9 bytes a second.
    pub fn read_gb_s(&self) -> Option<f64> {
        self.found.iter().filter_map(|found| found.read_gb_s).max_by(f64::total_cmp)
    }
}

/// Where it is measured.
pub struct Room<'a> {
    pub pool: &'a mut Pool,
    pub tiles: &'a mut [Buf<u8>],
    pub acts: &'a mut ActBuf,
    /// Tokens that the activations may have.
    pub n_batch: usize,
    /// Numbers, for `n_batch` rows of any matrix's columns.
    pub x: &'a [f32],
    pub out: &'a mut Buf<f32>,
    pub attend: Option<&'a mut AttendScratch>,
    /// Whether a few tokens will be multiplied at once: those of several streams, or guesses.
    pub has_few: bool,
}

/// The kernels with each operation left to the set that is fastest at it, by `clock`, which gives the time since any moment.
pub fn choose(
    kernels: Kernels,
    weights: &Weights,
    files: &Files,
    room: &mut Room,
    clock: &mut dyn FnMut() -> Duration,
) -> (Kernels, Choice) {
    if !kernels.is_auto() {
        return (kernels, Choice::default());
    }
    let start = clock();
    let counts_reading = weights.idle_bytes > 0;
    let groups = groups(weights, files, kernels);
    let n_tok = BATCH_TOKENS.min(room.n_batch);
    let (has_batches, has_few) = (n_tok > FEW_TOKENS, room.has_few && n_tok > 1);
    let n_left = groups.len() * (1 + usize::from(has_batches) + usize::from(has_few)) + 1;
    let mut measuring = Measuring { kernels, clock, start, counts_reading, n_left, found: Vec::new() };
    measuring.products(Op::Decode, 1, &groups, room);
    measuring.attention(room);
    if has_batches {
        measuring.products(Op::Batch, n_tok, &groups, room);
    }
    if has_few {
        measuring.products(Op::Few, n_tok.min(FEW_TOKENS), &groups, room);
    }
    (measuring.kernels, Choice { found: measuring.found })
}

/// The kernels for a model that is not to run here, in scratch of its own and without attention. Nothing is measured where
/// that would be large.
pub fn choose_alone(model: &Model, kernels: Kernels, n_threads: usize) -> std::io::Result<(Kernels, Choice)> {
    let (max_cols, has_float) = (model.config.max_cols(), model.weights.has_float);
    if max_cols > ALONE_COLS {
        return Ok((kernels, Choice::default()));
    }
    let has_halves = model.weights.types().any(|ty| kernels.wants_halves(ty));
    let (mut tiles, mut acts, x, mut out) = Arena::fill(|arena| {
        let tiles: Vec<Buf<u8>> = (0..n_threads).map(|_| arena.carve(tile_bytes(max_cols, has_float))).collect();
        let acts = ActBuf::carve(kernels, arena, BATCH_TOKENS, max_cols, has_halves);
        (tiles, acts, arena.carve(BATCH_TOKENS * max_cols), arena.carve(ALONE_ROWS * n_threads))
    })?;
    let mut pool = Pool::new(n_threads)?;
    let room = &mut Room {
        pool: &mut pool,
        tiles: &mut tiles,
        acts: &mut acts,
        n_batch: BATCH_TOKENS,
        x: &x,
        out: &mut out,
        attend: None,
        has_few: true,
    };
    let started = Instant::now();
    Ok(choose(kernels, &model.weights, &model.files(kernels), room, &mut || started.elapsed()))
}

/// Columns at most: 8 MiB of rows, and as much again for each thread's tile where the file has float matrices.
const ALONE_COLS: usize = 1 << 15;
/// Rows of results for each thread, times tokens.
const ALONE_ROWS: usize = 16 << 10;

/// The largest matrices of a type, all of one shape.
struct Group<'a> {
    ty: GgmlType,
    /// Of all matrices of the type.
    bytes: usize,
    largest: Vec<Matrix<'a>>,
}

/// The types of a model, that with the most bytes first.
fn groups<'a>(weights: &Weights, files: &Files<'a>, kernels: Kernels) -> Vec<Group<'a>> {
    let mut groups: Vec<Group> = Vec::new();
    for w in weights.matrices().map(|tensor| tensor.in_file(files)) {
        if w.ty.is_float() || !kernels.is_fast(w.ty) {
            continue;
        }
        let at = groups.iter().position(|group| group.ty == w.ty).unwrap_or_else(|| {
            groups.push(Group { ty: w.ty, bytes: 0, largest: Vec::new() });
            groups.len() - 1
        });
        let group = &mut groups[at];
        group.bytes += w.data.len();
        let is_alike = |l: &Matrix| (l.n_rows, l.n_cols, l.packed) == (w.n_rows, w.n_cols, w.packed);
        let largest = group.largest.first().map_or(0, |l| l.data.len());
        if w.data.len() > largest {
            group.largest = vec![w];
        } else if w.data.len() == largest && group.largest.first().is_some_and(is_alike) {
            group.largest.push(w);
        }
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
    groups
}

/// `n_rows` rows of a group's matrices, in tasks of `rows_per_task`.
struct Pieces<'a, 'g> {
    group: &'g Group<'a>,
    n_rows: usize,
    rows_per_task: usize,
    /// How many are wanted.
    n: usize,
}

impl<'a> Pieces<'a, '_> {
    /// The `k`th, as far from the others as can be: matrices take turns, and rows within them.
    fn get(&self, k: usize) -> Matrix<'a> {
        let largest = &self.group.largest;
        let w = largest[k % largest.len()];
        let turns = self.n.div_ceil(largest.len());
        let room = w.n_rows - self.n_rows;
        let first = (room * (k / largest.len()) / turns.max(2).saturating_sub(1)).min(room) / TILE_ROWS * TILE_ROWS;
        Matrix { n_rows: self.n_rows, data: &w.data[first * w.row_bytes()..][..self.n_rows * w.row_bytes()], ..w }
    }

    fn bytes(&self) -> usize {
        self.n_rows * self.group.largest[0].row_bytes()
    }

    /// Brings the pages of some of them in.
    fn read(&self, some: Range<usize>) {
        for k in some {
            let sum = self.get(k).data.iter().step_by(4096).fold(0u8, |sum, byte| sum ^ byte);
            std::hint::black_box(sum);
        }
    }
}

struct Measuring<'c> {
    kernels: Kernels,
    clock: &'c mut dyn FnMut() -> Duration,
    start: Duration,
    /// Whether pages that are brought in count: of a mixture the first token does not read most of them.
    counts_reading: bool,
    /// Operations that are still to be measured, each of which may take its share of the time that is left.
    n_left: usize,
    found: Vec<Found>,
}

/// How long each set took in each round.
struct Times {
    of: [[Duration; MOST_ROUNDS]; N_SETS],
    n_rounds: usize,
}

impl Times {
    /// Of a set, in seconds.
    fn median(&self, set: usize) -> f64 {
        let mut times = self.of[set];
        let times = &mut times[..self.n_rounds];
        times.sort_unstable();
        (times[(times.len() - 1) / 2] + times[times.len() / 2]).as_secs_f64().max(2e-9) / 2.0
    }

    /// In how many rounds one set was faster than another.
    fn wins(&self, set: usize, other: usize) -> usize {
        (0..self.n_rounds).filter(|&round| self.of[set][round] < self.of[other][round]).count()
    }
}

impl Measuring<'_> {
    fn products(&mut self, op: fn(GgmlType) -> Op, n_tok: usize, groups: &[Group], room: &mut Room) {
        for group in groups {
            self.product(op(group.ty), n_tok, group, room);
            self.n_left -= 1;
        }
    }

    fn product(&mut self, op: Op, n_tok: usize, group: &Group, room: &mut Room) {
        let sets = Sets::of(self.kernels, op, group.largest[0].packed);
        let is_decode = matches!(op, Op::Decode(_));
        // Decoding is measured even by a single set, for it shows how fast weights are read.
        if (!is_decode && sets.n < 2) || pieces(group, 1, room, 1).bytes() < LEAST_BYTES || self.is_over() {
            return;
        }
        let is_cold = n_tok <= FEW_TOKENS;
        let pieces = pieces(group, n_tok, room, if is_cold { MOST_ROUNDS * sets.n } else { 1 });
        if pieces.n_rows == 0 {
            return;
        }
        let Room { pool, tiles, acts, x, out, .. } = room;
        let n_cols = group.largest[0].n_cols;
        let acts = self.kernels.quantize(pool, &x[..n_tok * n_cols], n_cols, acts);
        let ready = |round: usize| match is_cold {
            true => pieces.read(round * sets.n..(round + 1) * sets.n),
            false => pieces.read(0..1),
        };
        let times = self.time(&sets, ready, |kernels, k| {
            let w = pieces.get(if is_cold { k } else { 0 });
            let products = &mut [Product { w, out: &mut out[..n_tok * w.n_rows] }];
            kernels.matmul_by(pieces.rows_per_task, pool, tiles, acts, products);
        });
        // They are of no use to anyone.
        out[..n_tok * pieces.n_rows].fill(0.0);
        self.take(op, &sets, times, is_decode.then_some(pieces.bytes()));
    }

    fn attention(&mut self, room: &mut Room) {
        let sets = Sets::of(self.kernels, Op::Attention, false);
        let Room { attend: Some(attend), x, out, .. } = room else { return };
        if sets.n < 2 || attend.rehearse(self.kernels, x, out.as_bytes(), CHUNKS) == 0 {
            return;
        }
        let times = self.time(
            &sets,
            |_| (),
            |kernels, _| {
                attend.rehearse(kernels, x, out.as_bytes(), CHUNKS);
            },
        );
        self.take(Op::Attention, &sets, times, None);
    }

    fn is_over(&mut self) -> bool {
        (self.clock)().saturating_sub(self.start) >= LIMIT
    }

    /// The time of each set in each round, and `None` where there was not enough. `ready` brings in what a round
    /// needs; `work` is done with some kernels, on the `k`th piece.
    fn time(&mut self, sets: &Sets, mut ready: impl FnMut(usize), mut work: impl FnMut(Kernels, usize)) -> Option<Times> {
        let mut began = (self.clock)();
        let share = LIMIT.saturating_sub(began.saturating_sub(self.start)) / self.n_left.max(1) as u32;
        let mut times = Times { of: [[Duration::ZERO; MOST_ROUNDS]; N_SETS], n_rounds: 0 };
        for round in 0..MOST_ROUNDS {
            let reading = (self.clock)();
            ready(round);
            if !self.counts_reading {
                let took = (self.clock)().saturating_sub(reading);
                (self.start, began) = (self.start + took, began + took);
            }
            for nth in 0..sets.n {
                let now = (self.clock)();
                let has_enough = round >= LEAST_ROUNDS;
                if has_enough && now.saturating_sub(began) >= share {
                    return Some(times);
                }
                if now.saturating_sub(self.start) >= LIMIT {
                    return None;
                }
                // Another one begins each time: what follows finds the last one's prefetches.
                let i = (nth + round) % sets.n;
                work(sets.kernels[i], round * sets.n + nth);
                times.of[i][round] = (self.clock)().saturating_sub(now);
            }
            times.n_rounds = round + 1;
        }
        Some(times)
    }

    fn take(&mut self, op: Op, sets: &Sets, times: Option<Times>, bytes: Option<usize>) {
        let Some(times) = times else { return };
        let own = sets.n - 1;
        let fastest = (0..sets.n).min_by(|&a, &b| times.median(a).total_cmp(&times.median(b))).unwrap_or(own);
        let is_clear = times.median(own) > MARGIN * times.median(fastest)
            && times.wins(fastest, own) as f64 >= MUST_WIN * times.n_rounds as f64;
        let chosen = if is_clear { fastest } else { own };
        self.kernels = sets.kernels[chosen];
        let read_gb_s = bytes.map(|bytes| bytes as f64 / times.median(chosen) / 1e9);
        let gain = times.median(own) / times.median(chosen);
        self.found.push(Found { op, set: self.kernels.of(op), gain, read_gb_s });
    }
}

const N_SETS: usize = SetName::ALL.len();

/// The kernels with each of the sets that may do something, the default set last.
struct Sets {
    kernels: [Kernels; N_SETS],
    n: usize,
}

impl Sets {
    /// Of those that read packed matrices, where these are.
    fn of(kernels: Kernels, op: Op, packed: bool) -> Sets {
        let mut sets = Sets { kernels: [kernels; N_SETS], n: 0 };
        for set in kernels.alternatives(op).filter(|set| !packed || set.reads_packed()) {
            sets.kernels[sets.n] = kernels.with(op, set);
            sets.n += 1;
        }
        sets
    }
}

/// Pieces for products of `n_tok` tokens with a group: of a batch, a task for each thread.
fn pieces<'a, 'g>(group: &'g Group<'a>, n_tok: usize, room: &Room, n: usize) -> Pieces<'a, 'g> {
    let (w, n_threads) = (group.largest[0], room.pool.n_threads());
    let whole_tiles = |rows: usize| (rows / TILE_ROWS * TILE_ROWS).max(TILE_ROWS);
    let (rows_per_task, n_rows) = match n_tok {
        ..=FEW_TOKENS => {
            let n_rows = (PIECE_BYTES / w.row_bytes()).max(TILE_ROWS * n_threads);
            (Kernels::rows_per_task(w.n_rows, n_threads).min(whole_tiles(n_rows / n_threads)), n_rows)
        }
        _ => {
            let rows_per_task = whole_tiles(BATCH_PRODUCTS / (n_tok * w.n_cols));
            (rows_per_task, rows_per_task * n_threads)
        }
    };
    let n_rows = n_rows.min(w.n_rows).min(room.out.len() / n_tok);
    // Some rows of a packed matrix are whole groups of it.
    let n_rows = if n_rows < w.n_rows { n_rows / TILE_ROWS * TILE_ROWS } else { n_rows };
    Pieces { group, n_rows, rows_per_task, n }
}

#[cfg(test)]
#[path = "../../tests/unit/model/choice.rs"]
mod tests;
