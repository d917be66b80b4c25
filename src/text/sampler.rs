//! Chooses the next token from the logits: bias, penalties, top-k, top-p, min-p, temperature, then one draw, in llama.cpp's order.
//!
//! All buffers are made by `Sampler::new` and never grow; `begin`, `sample` and `accept` allocate nothing. The draw depends on the seed and
//! the logits alone: the generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) and the exponential comes from `libm`, so every
//! platform chooses the same token. A logit that is not a number is never chosen; when no logit is a number, that is an error.

use std::cmp::Ordering;

use crate::error::{Error, Result, Setting};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerParams {
    /// Divides the logits; 0 or less always takes the most likely token.
    pub temp: f32,
    /// How many of the most likely tokens stay; 0 for all.
    pub top_k: usize,
    /// The most likely tokens stay until their probabilities reach this sum; 1 for all.
    pub top_p: f32,
    /// A token stays when it is at least this fraction as likely as the most likely one; 0 for all.
    pub min_p: f32,
    /// Logits of recent tokens are divided by this when positive and multiplied when negative; 1 for none.
    pub repeat_penalty: f32,
    /// What a recent token's logit loses once, and for each time that it occurs; 0 for nothing.
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// How many recent tokens the penalties look at; 0 for none.
    pub repeat_last_n: usize,
    pub seed: u64,
}

impl Default for SamplerParams {
    fn default() -> Self {
        SamplerParams {
            temp: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerParams {
    pub fn validate(&self) -> Result<()> {
        let check = |setting, good: bool, value: f32, range: &str| match good {
            true => Ok(()),
            false => Err(Error::usage(setting, format!("{value} cannot be used: write {range}"))),
        };
        let temp = self.temp;
        check(Setting::Temp, temp.is_finite() && temp >= 0.0, temp, "a number from 0 up, 0 for always the most likely token")?;
        check(Setting::TopP, (0.0..=1.0).contains(&self.top_p), self.top_p, "a number from 0 to 1, 1 for no limit")?;
        check(Setting::MinP, (0.0..=1.0).contains(&self.min_p), self.min_p, "a number from 0 to 1, 0 for no limit")?;
        let penalty = self.repeat_penalty;
        check(Setting::RepeatPenalty, penalty.is_finite() && penalty > 0.0, penalty, "a number above 0, 1 for no penalty")?;
        for (setting, penalty) in
            [(Setting::PresencePenalty, self.presence_penalty), (Setting::FrequencyPenalty, self.frequency_penalty)]
        {
            check(setting, penalty.is_finite(), penalty, "a number, 0 for no penalty")?;
        }
        if self.repeat_last_n > MAX_LAST_N {
            return Err(Error::usage(Setting::RepeatLastN, format!("{} is too many: at most {MAX_LAST_N}", self.repeat_last_n)));
        }
        Ok(())
    }

    fn penalises(&self) -> bool {
        self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Which tokens may come next.
pub trait Filter {
    fn allows(&mut self, token: u32) -> bool;

    /// A bit for each token of the vocabulary, the lowest of a word first; none: there is no way on.
    fn mask(&mut self) -> Option<&[u32]>;
}

/// The window of the repeat penalty is a buffer of this process: no flag may ask for gigabytes of it.
const MAX_LAST_N: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Most likely first, ties to the lowest id. Candidates are numbers: `gather` left the others out.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

pub struct Sampler {
    params: SamplerParams,
    n_vocab: usize,
    /// Room for every token of the vocabulary.
    candidates: Vec<Candidate>,
    /// Ring of the tokens last accepted, `recent[..recent_len]` in use; as long as the window of the penalties may be.
    recent: Box<[u32]>,
    /// The same tokens sorted, while they are counted.
    sorted: Box<[u32]>,
    recent_len: usize,
    recent_next: usize,
    rng: SplitMix64,
}

impl Sampler {
    /// `params.repeat_last_n` is the longest window that `begin` may ask for.
    pub fn new(params: SamplerParams, n_vocab: usize) -> Result<Self> {
        params.validate()?;
        let window = || vec![u32::MAX; params.repeat_last_n].into_boxed_slice();
        Ok(Sampler {
            params,
            n_vocab,
            // Written once, so that the pages are resident from the start.
            candidates: vec![Candidate { id: u32::MAX, logit: f32::NAN }; n_vocab],
            recent: window(),
            sorted: window(),
            recent_len: 0,
            recent_next: 0,
            rng: SplitMix64(params.seed),
        })
    }

    /// Bytes of the buffers that `new` makes.
    pub fn bytes(n_vocab: usize, repeat_last_n: usize) -> usize {
        n_vocab * size_of::<Candidate>() + 2 * repeat_last_n * size_of::<u32>()
    }

    pub fn params(&self) -> &SamplerParams {
        &self.params
    }

    /// Forgets the recent tokens and starts the random numbers over: the next stream is as the first was.
    pub fn reset(&mut self) {
        (self.recent_len, self.recent_next) = (0, 0);
        self.rng = SplitMix64(self.params.seed);
    }

    /// As a new sampler of these parameters, which have been validated; a window longer than that of `new` is cut to it.
    pub fn begin(&mut self, params: &SamplerParams) {
        self.params = SamplerParams { repeat_last_n: params.repeat_last_n.min(self.recent.len()), ..*params };
        self.reset();
    }

    /// Where the random numbers stand.
    pub fn rng_state(&self) -> u64 {
        self.rng.0
    }

    pub fn set_rng_state(&mut self, state: u64) {
        self.rng = SplitMix64(state);
    }

    /// A token of the stream, of the prompt too, that the penalties shall know of.
    pub fn accept(&mut self, token: u32) {
        let window = self.params.repeat_last_n;
        if window == 0 {
            return;
        }
        self.recent[self.recent_next] = token;
        self.recent_next = (self.recent_next + 1) % window;
        self.recent_len = (self.recent_len + 1).min(window);
    }

    /// The next token. `logits` has `n_vocab` values. Does not accept the token: the caller does, when it enters the stream.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.sample_biased(logits, &[])
    }

    /// The next token, with something added to the logits of some; minus infinity forbids one.
    pub fn sample_biased(&mut self, logits: &[f32], bias: &[(u32, f32)]) -> Result<u32> {
        assert_eq!(logits.len(), self.n_vocab, "one logit for each token of the vocabulary");
        if self.params.temp <= 0.0 && !self.params.penalises() && bias.is_empty() {
            return greedy(logits);
        }
        self.gather(logits, None);
        self.choose(bias)
    }

    /// The next of the tokens that `filter` allows. One that is drawn freely and happens to be allowed is as likely as it would be among
    /// those alone, so the mask, which costs more, is asked for only where it is not. With top-k, top-p and min-p what they leave is
    /// another set among all tokens than among those allowed, and a draw is of the one or the other, as in llama.cpp.
    pub fn sample_filtered(&mut self, logits: &[f32], bias: &[(u32, f32)], filter: &mut dyn Filter) -> Result<u32> {
        let free = self.sample_biased(logits, bias)?;
        if filter.allows(free) {
            return Ok(free);
        }
        let Some(mask) = filter.mask() else { return Err(Error::stopped("no token may follow")) };
        self.gather(logits, Some(mask));
        self.choose(bias)
    }

    /// One of the candidates.
    fn choose(&mut self, bias: &[(u32, f32)]) -> Result<u32> {
        self.add_bias(bias);
        self.penalise();
        if self.params.temp <= 0.0 {
            let best = self.candidates.iter().min_by(|a, b| by_rank(a, b));
            return best.map(|best| best.id).ok_or_else(no_number);
        }
        self.keep_top_k();
        self.keep_top_p();
        self.keep_min_p();
        self.draw().ok_or_else(no_number)
    }

    /// Fills the candidates with every logit that is a number, of the tokens whose bits are set.
    fn gather(&mut self, logits: &[f32], mask: Option<&[u32]>) {
        self.candidates.clear();
        let is_set = |id: usize| mask.is_none_or(|mask| mask.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1));
        let usable = |(id, &logit): (usize, &f32)| {
            (logit > f32::NEG_INFINITY && is_set(id)).then(|| Candidate { id: id as u32, logit: logit.min(f32::MAX) })
        };
        self.candidates.extend(logits.iter().enumerate().filter_map(usable));
    }

    /// What is forbidden goes; candidates stay in the order of their ids.
    fn add_bias(&mut self, bias: &[(u32, f32)]) {
        for &(token, bias) in bias {
            let Ok(place) = self.candidates.binary_search_by_key(&token, |candidate| candidate.id) else { continue };
            let logit = &mut self.candidates[place].logit;
            let sum = *logit + bias;
            *logit = if sum == f32::NEG_INFINITY { sum } else { sum.clamp(f32::MIN, f32::MAX) };
        }
        if !bias.is_empty() {
            self.candidates.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
        }
    }

    /// Once for each different recent token.
    fn penalise(&mut self) {
        let SamplerParams { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.params;
        if !self.params.penalises() {
            return;
        }
        let sorted = &mut self.sorted[..self.recent_len];
        sorted.copy_from_slice(&self.recent[..self.recent_len]);
        sorted.sort_unstable();
        for same in sorted.chunk_by(|a, b| a == b) {
            let Ok(place) = self.candidates.binary_search_by_key(&same[0], |candidate| candidate.id) else { continue };
            let logit = &mut self.candidates[place].logit;
            let penalised = if *logit > 0.0 { *logit / repeat_penalty } else { *logit * repeat_penalty };
            let occurs = presence_penalty + frequency_penalty * same.len() as f32;
            *logit = (penalised - occurs).clamp(f32::MIN, f32::MAX);
        }
    }

    /// Puts the `k` best candidates in front, best first; the others follow in any order.
    fn sort_best(&mut self, k: usize) {
        if k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k, by_rank);
        }
        let k = k.min(self.candidates.len());
        self.candidates[..k].sort_unstable_by(by_rank);
    }

    fn keep_top_k(&mut self) {
        let k = self.params.top_k;
        if k > 0 {
            self.sort_best(k);
            self.candidates.truncate(k);
        }
    }

    fn keep_top_p(&mut self) {
        let top_p = self.params.top_p as f64;
        if top_p >= 1.0 || self.candidates.is_empty() {
            return;
        }
        let max = self.max_logit();
        let total: f64 = self.candidates.iter().map(|candidate| weight(candidate.logit - max)).sum();
        // Few tokens hold nearly all the probability: order a prefix, and a longer one only when it falls short.
        let mut ordered = 64;
        loop {
            self.sort_best(ordered);
            let mut sum = 0.0;
            for (place, candidate) in self.candidates.iter().take(ordered).enumerate() {
                sum += weight(candidate.logit - max);
                if sum >= top_p * total {
                    return self.candidates.truncate(place + 1);
                }
            }
            if ordered >= self.candidates.len() {
                return;
            }
            ordered *= 4;
        }
    }

    fn keep_min_p(&mut self) {
        let min_p = self.params.min_p;
        if min_p > 0.0 {
            let max = self.max_logit();
            self.candidates.retain(|candidate| weight(candidate.logit - max) >= min_p as f64);
        }
    }

    fn max_logit(&self) -> f32 {
        self.candidates.iter().map(|candidate| candidate.logit).fold(f32::MIN, f32::max)
    }

    /// One token by the softmax of the candidates at the temperature. Their order is by rank or by id, never left to a sort's whim.
    fn draw(&mut self) -> Option<u32> {
        let max = self.max_logit();
        let temp = self.params.temp;
        let scaled = |candidate: &Candidate| weight((candidate.logit - max) / temp);
        let total: f64 = self.candidates.iter().map(scaled).sum();
        let target = self.rng.unit() * total;
        let mut sum = 0.0;
        let mut chosen = None;
        for candidate in &self.candidates {
            let weight = scaled(candidate);
            sum += weight;
            // The last one of any weight stands when rounding left the sum below the target.
            if weight > 0.0 {
                chosen = Some(candidate.id);
                if sum > target {
                    break;
                }
            }
        }
        chosen
    }
}

/// The most likely token, as a temperature of 0 takes it.
pub fn greedy(logits: &[f32]) -> Result<u32> {
    most_likely(logits).ok_or_else(no_number)
}

/// The id of the largest logit, the lowest of equals. Eight maxima side by side, then one look for where the largest stands:
/// a branch for each of a vocabulary's logits is a few per cent of a small model's token.
fn most_likely(logits: &[f32]) -> Option<u32> {
    let (eights, rest) = logits.as_chunks::<8>();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 8];
    for eight in eights {
        lanes = std::array::from_fn(|i| larger(lanes[i], eight[i]));
    }
    let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    (largest > f32::NEG_INFINITY).then(|| logits.iter().position(|&logit| logit == largest)).flatten().map(|id| id as u32)
}

fn no_number() -> Error {
    Error::stopped("the model's logits are not numbers: its weights are damaged; fetch the model again")
}

/// exp of a difference to the largest logit, never above 1.
fn weight(difference: f32) -> f64 {
    libm::expf(difference) as f64
}

struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to just below 1, in steps of 2^-53.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The `k` most likely tokens with the natural logarithm of their probability under the softmax over the whole vocabulary, most
/// likely first, into `out` (cleared; grows only when its capacity is below `k`). Logits that are not numbers are left out.
pub fn top_logprobs(logits: &[f32], k: usize, out: &mut Vec<(u32, f64)>) {
    out.clear();
    let usable = |logit: f32| logit > f32::NEG_INFINITY;
    let clipped = |logit: f32| logit.min(f32::MAX) as f64;
    let max = logits.iter().copied().filter(|&logit| usable(logit)).map(clipped).fold(f64::NEG_INFINITY, f64::max);
    if k == 0 || max == f64::NEG_INFINITY {
        return;
    }
    out.reserve(k.min(logits.len()));
    let mut total = 0.0f64;
    for (id, &logit) in logits.iter().enumerate().filter(|(_, logit)| usable(**logit)) {
        let logit = clipped(logit);
        total += libm::exp(logit - max);
        if out.len() == k && out[k - 1].1 >= logit {
            continue;
        }
        let place = out.partition_point(|&(_, better)| better >= logit);
        if out.len() == k {
            out.pop();
        }
        out.insert(place, (id as u32, logit));
    }
    let log_total = libm::log(total);
    out.iter_mut().for_each(|(_, logit)| *logit = *logit - max - log_total);
}

/// -ln softmax(logits)[token], in f64.
pub fn nll(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - max)
}

#[cfg(test)]
#[path = "../../tests/unit/text/sampler.rs"]
mod tests;
