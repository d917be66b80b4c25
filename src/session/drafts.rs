//! What may follow, guessed from the stream's own words: where the latest tokens have stood before, what followed
//! them then is likely to follow again. Copying, changing code and answering with what was asked are full of it.
//! (Prompt lookup: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; Yang et al. 2023, arXiv 2304.04487.)
//!
//! A guess may be anything: the pass that takes it in decides (`session::steps`). So nothing here need be exact, and
//! a slot of the table may be overwritten by another key. But what a stream has forgotten is guessed no more: the
//! time that an answer takes would tell of another conversation.
//!
//! Half as many tokens are guessed as have matched: two or three words that have been seen together are weak
//! evidence, twenty are strong. A place that was found is followed on for as long as it predicts what comes, guessed
//! from or not; that costs nothing.

/// Tokens that are remembered, and places of each table. Together they are 64 KiB.
const N_TOKENS: usize = 8192;
const N_PLACES: usize = 4096;
/// Tokens that are looked up, the more first.
const LONG: usize = 3;
const SHORT: usize = 2;

/// Guesses in a step at most, `--speculate`.
pub const MAX_GUESSES: usize = 16;

/// Drafts that are judged together, and the least share of their guesses that must be right, as its inverse.
const N_JUDGED: u32 = 5;
const LEAST_SHARE: usize = 5;
/// Tokens without drafts after too few were right; twice as many each time, up to `LONGEST_PAUSE`.
const PAUSE: usize = 64;
const LONGEST_PAUSE: usize = 1024;
/// Tokens that a place must predict during a pause to end it.
const ENDS_PAUSE: usize = 8;

/// What drafts came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    pub n_drafts: u64,
    /// Tokens that were guessed, and those that were right.
    pub n_guessed: u64,
    pub n_right: u64,
}

/// The latest tokens of a stream, and where to look for what they are like.
pub struct Drafts {
    /// A ring; `n` were put into it in all.
    tokens: Box<[u32]>,
    n: usize,
    /// Those before this one have been overwritten by others that are forgotten.
    first: usize,
    /// By the hash of so many tokens: the number of the token that followed them last.
    longs: Box<[u32]>,
    shorts: Box<[u32]>,
    /// The number of the token that is expected next, and how many before it were as expected.
    place: Option<(usize, usize)>,
    guesses: [u32; MAX_GUESSES],
    counts: DraftCounts,
    /// Drafts since the latest judgement, and their guesses and right ones.
    judged: (u32, usize, usize),
    /// Tokens until drafts may be made again, and how long the next pause is.
    paused: usize,
    pause: usize,
}

impl Drafts {
    pub const BYTES: usize = (N_TOKENS + 2 * N_PLACES) * size_of::<u32>() + size_of::<Drafts>();

    pub fn new() -> Drafts {
        let numbers = |n: usize| vec![0u32; n].into_boxed_slice();
        Drafts {
            tokens: numbers(N_TOKENS),
            n: 0,
            first: 0,
            longs: numbers(N_PLACES),
            shorts: numbers(N_PLACES),
            place: None,
            guesses: [0; MAX_GUESSES],
            counts: DraftCounts::default(),
            judged: (0, 0, 0),
            paused: 0,
            pause: PAUSE,
        }
    }

    /// Since the latest `begin`.
    pub fn counts(&self) -> DraftCounts {
        self.counts
    }

    /// Another answer begins: what was said stays, what drafts came to is forgotten.
    pub fn begin(&mut self) {
        (self.counts, self.judged, self.paused, self.pause) = (DraftCounts::default(), (0, 0, 0), 0, PAUSE);
    }

    /// The stream has forgotten its latest `n` tokens.
    pub fn forget(&mut self, n: usize) {
        self.first = self.first.max(self.n.saturating_sub(N_TOKENS));
        self.n = self.n.saturating_sub(n);
        self.first = self.first.min(self.n);
        self.place = None;
    }

    /// The stream has forgotten everything.
    pub fn clear(&mut self) {
        self.forget(self.n);
        self.first = 0;
    }

    /// Tokens that the stream has taken in.
    pub fn push(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.place = match self.place {
                Some((at, n_matched)) if self.token(at) == Some(token) => Some((at + 1, n_matched + 1)),
                _ => None,
            };
            for n_key in [LONG, SHORT] {
                if let Some(i) = self.index(n_key) {
                    self.table(n_key)[i] = self.n as u32;
                }
            }
            self.tokens[self.n % N_TOKENS] = token;
            self.n += 1;
            self.paused = self.paused.saturating_sub(1);
        }
    }

    /// What may follow: at most `most` tokens, none where nothing is known, or too little of late was right.
    pub fn guess(&mut self, most: usize) -> &[u32] {
        if self.place.is_none() {
            self.place = self.find();
        }
        let Some((at, n_matched)) = self.place else { return &[] };
        if self.paused > 0 && n_matched < LONG + ENDS_PAUSE {
            return &[];
        }
        let n = (n_matched / 2).min(most).min(MAX_GUESSES);
        for i in 0..n {
            // What repeats itself goes on where it has been guessed.
            let token = if at + i < self.n { self.token(at + i) } else { Some(self.guesses[at + i - self.n]) };
            let Some(token) = token else { return &self.guesses[..i] };
            self.guesses[i] = token;
        }
        &self.guesses[..n]
    }

    /// What became of a draft of `n_guessed` tokens.
    pub fn judge(&mut self, n_guessed: usize, n_right: usize) {
        self.counts.n_drafts += 1;
        self.counts.n_guessed += n_guessed as u64;
        self.counts.n_right += n_right as u64;
        let (drafts, guessed, right) = self.judged;
        self.judged = (drafts + 1, guessed + n_guessed, right + n_right);
        let (drafts, guessed, right) = self.judged;
        if drafts < N_JUDGED {
            return;
        }
        self.judged = (0, 0, 0);
        if right * LEAST_SHARE < guessed {
            self.paused = self.pause;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        } else {
            self.pause = PAUSE;
        }
    }

    /// A token that is remembered, by its number.
    fn token(&self, at: usize) -> Option<u32> {
        (at >= self.first && at < self.n && self.n - at <= N_TOKENS).then(|| self.tokens[at % N_TOKENS])
    }

    /// Where the latest `n_key` tokens have their place in a table; `None` where there are fewer.
    fn index(&self, n_key: usize) -> Option<usize> {
        let first = self.n.checked_sub(n_key).filter(|&first| first >= self.first)?;
        let hash = (first..self.n).fold(0u64, |hash, at| {
            (hash ^ u64::from(self.tokens[at % N_TOKENS])).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
        });
        Some((hash >> 32) as usize % N_PLACES)
    }

    fn table(&mut self, n_key: usize) -> &mut [u32] {
        if n_key == LONG { &mut self.longs } else { &mut self.shorts }
    }

    /// The latest place that was preceded by what precedes this one.
    fn find(&mut self) -> Option<(usize, usize)> {
        [LONG, SHORT].into_iter().find_map(|n_key| {
            let i = self.index(n_key)?;
            // Numbers wrap round in a table; the distance to one tells which it is.
            let back = (self.n as u32).wrapping_sub(self.table(n_key)[i]) as usize;
            let at = self.n.checked_sub(back).filter(|&at| at >= n_key && at < self.n)?;
            let same = (1..=n_key).all(|i| self.token(at - i).is_some() && self.token(at - i) == self.token(self.n - i));
            same.then_some((at, n_key))
        })
    }
}

impl Default for Drafts {
    fn default() -> Self {
        Drafts::new()
    }
}

#[cfg(test)]
#[path = "../../tests/unit/session/drafts.rs"]
mod tests;
