//! Every row of the table of policies against a naive model of it: a stream of random keys, values and queries goes through
//! small caches, and each entry that leaves must be one that the definition, written down here in f64, lets go. And the
//! table of docs/policies.md is the code's.

use lowkey::kv::policy::Rule;
use lowkey::kv::policy::table::{TABLE, markdown};
use lowkey::kv::{Policy, Recent, Share};
use lowkey_test_kit::tiny::Tiny;

const DIM: usize = 8;
const POOL: u32 = 2;
/// Tokens of a chunk of LagKV.
const LAG: u32 = 32;
/// A mean of attention begins as if this many tokens had given `PRIOR` each.
const HEAD_START: f64 = 32.0;
const PRIOR: f64 = 3e-4;

type Vector = [f64; DIM];

fn dot(a: &Vector, b: &Vector) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &Vector) -> f64 {
    dot(a, a).sqrt()
}

fn cosine(a: &Vector, b: &Vector) -> f64 {
    let norms = norm(a) * norm(b);
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

struct Entry {
    pos: u32,
    key: Vector,
    value: Vector,
    received: f64,
    rating: Option<f64>,
}

/// What a head would do if it took its time.
struct Naive {
    rule: Rule,
    n_slot: usize,
    pool: u32,
    head_sink: Option<f64>,
    kept: Vec<Entry>,
    /// Of every token there was: its score and how common it is, before neighbours share them.
    raw: Vec<[f64; 2]>,
    mean: Vector,
}

impl Naive {
    /// The token `now` comes: what is known of it for good.
    fn rate(&mut self, key: &Vector, value: &Vector) {
        let (k, v, now) = (norm(key), norm(value), self.raw.len() as f64);
        let unlike = 1.0 - cosine(key, &self.mean);
        for (mean, key) in self.mean.iter_mut().zip(key) {
            *mean += (if k > 0.0 { key / k } else { 0.0 } - *mean) / (now + 1.0);
        }
        let half_life = self.rule.policy.row().half_life as f64 * self.n_slot as f64;
        let score = match self.rule.policy {
            Policy::L2 | Policy::L2Paper => k,
            Policy::L2High => -k,
            Policy::L2Attn => k / (unlike * v).max(1e-30) * 2f64.powf(-now / half_life),
            Policy::Attn => 1.0 / (unlike * v).max(1e-30) * 2f64.powf(-now / half_life),
            Policy::KeyDiffFrozen => 1.0 - unlike,
            Policy::Outlier => -unlike * v,
            Policy::Ratio => k / v,
            _ => 0.0,
        };
        self.raw.push([score, if counts_mean_attention(self.rule.policy) { score } else { -unlike * v }]);
    }

    /// The best of a token and its neighbours, of those that have come.
    fn pooled(&self, pos: u32, what: usize) -> f64 {
        let near = pos.saturating_sub(self.pool) as usize..(self.raw.len() - 1).min((pos + self.pool + 1) as usize);
        self.raw[near].iter().map(|raw| raw[what]).fold(f64::INFINITY, f64::min)
    }

    fn priority(&self, e: &Entry) -> f64 {
        match self.rule.policy {
            Policy::KeyDiff => {
                let mut mean = [0.0; DIM];
                for other in &self.kept {
                    let unit = 1.0 / norm(&other.key).max(1e-30);
                    mean.iter_mut().zip(&other.key).for_each(|(mean, key)| *mean += key * unit);
                }
                cosine(&e.key, &mean)
            }
            Policy::LagKv => e.rating.map_or(f64::NEG_INFINITY, |rating| -rating),
            Policy::Tova | Policy::H2o => -e.received,
            Policy::L2Attn | Policy::Attn => self.pooled(e.pos, 0) / e.received,
            Policy::Window | Policy::Random | Policy::Off => 0.0,
            _ => self.pooled(e.pos, 0),
        }
    }

    /// Which positions may leave so that the token `now`, which has been rated, can enter.
    fn may_leave(&mut self, now: u32, tolerance: f64) -> Vec<u32> {
        if self.rule.policy == Policy::LagKv {
            self.rate_chunks(now);
        }
        let protect = self.rule.protect;
        let is_open = |e: &&Entry| e.pos >= protect.sinks && e.pos + protect.recent <= now;
        let open: Vec<&Entry> = self.kept.iter().filter(is_open).collect();
        let mut common: Vec<f64> = open.iter().map(|e| self.pooled(e.pos, 1)).collect();
        common.sort_by(f64::total_cmp);
        // The least common are the reserve.
        let limit =
            if self.rule.n_reserved == 0 { f64::NEG_INFINITY } else { common[self.rule.n_reserved.min(common.len() - 1)] };
        let near = |a: f64, b: f64| a == b || (a - b).abs() <= tolerance * a.abs().max(b.abs());
        // Of entries that are as common as the limit, nearly, f32 may let in what f64 does not.
        let is_near_limit = |e: &Entry| near(self.pooled(e.pos, 1), limit);
        let beyond = open.iter().filter(|e| self.pooled(e.pos, 1) > limit && !is_near_limit(e));
        let best = beyond.map(|e| self.priority(e)).fold(f64::NEG_INFINITY, f64::max);
        let open: Vec<_> = open.iter().filter(|e| self.pooled(e.pos, 1) > limit || is_near_limit(e)).collect();
        let goes = |e: &&&&Entry| self.priority(e) >= best || near(self.priority(e), best);
        let mut may: Vec<u32> = open.iter().filter(goes).map(|e| e.pos).collect();
        may.sort_unstable();
        // Of entries that are exactly equal the oldest.
        let is_tie = open.iter().filter(|e| self.priority(e) == best).count() == may.len();
        if is_tie && self.rule.policy != Policy::Random {
            may.truncate(1);
        }
        may
    }

    /// LagKV: rates what has a whole chunk behind it, by the unevenness of its channels in the ranges of that chunk.
    fn rate_chunks(&mut self, now: u32) {
        let sinks = self.rule.protect.sinks;
        let chunk = |pos: u32| pos.checked_sub(sinks).map(|pos| pos / LAG);
        for c in 0..chunk(now).unwrap_or(0).saturating_sub(1) {
            let (own, behind): (Vec<usize>, Vec<usize>) = (0..self.kept.len())
                .filter(|&i| matches!(chunk(self.kept[i].pos), Some(of) if of == c || of == c + 1))
                .partition(|&i| chunk(self.kept[i].pos) == Some(c));
            if own.iter().all(|&i| self.kept[i].rating.is_some()) {
                continue;
            }
            let spreads = |of: &dyn Fn(&Entry) -> Vector| -> Vec<f64> {
                let range = |d: usize| {
                    let each = behind.iter().map(|&i| of(&self.kept[i])[d]);
                    (each.clone().fold(f64::INFINITY, f64::min), each.fold(f64::NEG_INFINITY, f64::max))
                };
                let spread = |&i: &usize| {
                    let x: Vector = std::array::from_fn(|d| {
                        let (low, high) = range(d);
                        if high > low { (of(&self.kept[i])[d] - low) / (high - low) } else { 0.0 }
                    });
                    let mean = x.iter().sum::<f64>() / DIM as f64;
                    (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / DIM as f64).sqrt().exp()
                };
                let all: Vec<f64> = own.iter().map(spread).collect();
                let sum: f64 = all.iter().sum();
                all.into_iter().map(|s| s / sum).collect()
            };
            let ratings: Vec<f64> = spreads(&|e| e.key).iter().zip(spreads(&|e| e.value)).map(|(k, v)| k + v).collect();
            for (&i, rating) in own.iter().zip(ratings) {
                self.kept[i].rating.get_or_insert(rating);
            }
        }
    }

    /// The token enters, and what it looks at learns of it.
    fn enter(&mut self, now: u32, key: Vector, value: Vector, query: &Vector) {
        let received = if counts_mean_attention(self.rule.policy) { PRIOR } else { 0.0 };
        self.kept.push(Entry { pos: now, key, value, received, rating: None });
        let weights: Vec<f64> = self.kept.iter().map(|e| dot(query, &e.key).exp()).collect();
        let sum: f64 = weights.iter().sum::<f64>() + self.head_sink.map_or(0.0, f64::exp);
        for (e, weight) in self.kept.iter_mut().zip(weights) {
            let before = f64::from(now - e.pos) + HEAD_START;
            e.received = match self.rule.policy {
                Policy::Tova => weight / sum,
                Policy::H2o => e.received + weight / sum,
                _ => (e.received * before + weight / sum) / (before + 1.0),
            };
        }
    }
}

fn counts_mean_attention(policy: Policy) -> bool {
    matches!(policy, Policy::L2Attn | Policy::Attn)
}

/// Two layers of two heads through 300 tokens.
fn check(policy: Policy, rare: f32, pool: u32, seed: u64) {
    let n_slot = if policy == Policy::LagKv { 110 } else { 24 };
    let recent = if policy == Policy::LagKv { 2 * LAG + 8 } else { 6 };
    let mut tiny = Tiny::with(n_slot, |shape, params| {
        (shape.n_layer, shape.each.n_head_kv, shape.n_ctx) = (2, 2, 1024);
        (params.policy, params.sinks, params.recent) = (policy, 2, Some(Recent::Tokens(recent)));
        (params.rare, params.pool) = (Some(Share(rare)), Some(pool));
    });
    let (shape, rule, n_slot) = (*tiny.cache.shape(), tiny.rule, tiny.cache.n_slot());
    let heads = || shape.all_heads();
    // In some runs heads have a logit of their own in the softmax, so that what they give sums to less than 1.
    let head_sinks = if seed % 2 == 1 { vec![2.0, 4.0] } else { vec![] };
    let naive = |i: usize| {
        let (pool, head_sink) = (shape.keeps.pool as u32, head_sinks.get(i % 2).map(|&sink: &f32| f64::from(sink)));
        Naive { rule, n_slot, pool, head_sink, kept: Vec::new(), raw: Vec::new(), mean: [0.0; DIM] }
    };
    let mut model: Vec<Naive> = (0..4).map(naive).collect();
    tiny.head_sinks = head_sinks;
    let mut rng = fastrand::Rng::with_seed(seed);
    let tolerance = if policy.row().received().is_some() { 2e-3 } else { 1e-5 };
    let mut n_not_oldest = 0;
    for now in 0..300u32 {
        // Numbers that f16 holds as they are.
        let mut row = || -> Vec<f32> { (0..2 * DIM).map(|_| rng.i32(-64..=64) as f32 / 32.0).collect() };
        let rows = [(); 2].map(|()| [(); 3].map(|()| row()));
        if !tiny.feed(1, |layer| rows[layer.0].clone(), |_, _| ()) {
            assert!(policy == Policy::Off && now as usize == n_slot, "{}: stopped after {now}", policy.name());
            return;
        }
        for ((layer, head), naive) in heads().zip(&mut model) {
            let [q, k, v] =
                [0, 1, 2].map(|i| -> Vector { std::array::from_fn(|d| f64::from(rows[layer.0][i][head.0 * DIM + d])) });
            naive.rate(&k, &v);
            let kept = tiny.cache.kept(layer, head);
            if naive.kept.len() == n_slot {
                let may = naive.may_leave(now, tolerance);
                let left: Vec<u32> = naive.kept.iter().map(|e| e.pos).filter(|pos| !kept.contains(pos)).collect();
                assert!(left.len() == 1 && may.contains(&left[0]), "{} at {now}: {left:?} left, not of {may:?}", policy.name());
                let open = naive.kept.iter().map(|e| e.pos).filter(|&pos| pos >= rule.protect.sinks);
                n_not_oldest += usize::from(Some(left[0]) != open.min());
                naive.kept.retain(|e| e.pos != left[0]);
            }
            naive.enter(now, k, v, &q);
            assert!(kept.contains(&now) && kept.len() == naive.kept.len());
        }
    }
    assert!((n_not_oldest > 100) == (policy != Policy::Window), "{}: {n_not_oldest} were not the oldest", policy.name());
}

#[test]
fn every_policy_keeps_what_its_definition_keeps() {
    for row in &TABLE {
        for seed in 0..4 {
            check(row.policy, 0.0, 0, seed);
            if row.pool.is_some() {
                check(row.policy, 0.0, POOL, seed);
            }
            if row.reserve.is_some() {
                check(row.policy, 0.3, 0, seed);
                check(row.policy, 0.3, POOL, seed);
            }
        }
    }
}

/// `LOWKEY_WRITE_TABLE=1 cargo test --test policies` writes the table into the document, in place of the one that is there.
#[test]
fn the_documents_table_is_the_code_s() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/policies.md");
    let text = std::fs::read_to_string(path).expect("docs/policies.md");
    let (begin, end) = ("<!-- policies:begin -->\n", "<!-- policies:end -->");
    let (before, rest) = text.split_once(begin).expect("the mark before the table");
    let (table, after) = rest.split_once(end).expect("the mark after the table");
    match std::env::var_os("LOWKEY_WRITE_TABLE") {
        Some(_) => std::fs::write(path, [before, begin, &markdown(), end, after].concat()).expect("docs/policies.md"),
        None => assert_eq!(table, markdown(), "docs/policies.md is not src/kv/policy/table.rs: write it anew"),
    }
}
