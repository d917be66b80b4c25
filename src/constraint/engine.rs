//! llguidance behind our words: the vocabulary as its trie, grammars made within the region, and what may follow in an answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::region::{Region, Share};
use super::{Refused, Rules, gbnf, lark, schema};
use crate::error::Result;
use crate::gguf::GgufFile;
use crate::mem::confined::{confined_apart, metered};
use crate::text::{Filter, Tokenizer};
use crate::units::Bytes;

/// Tokens that are longer never come in a grammar: the trie has no place for them.
const MAX_TOKEN_BYTES: usize = 512;
/// Grammars are made on a stack of their own: the library goes down by recursion.
const STACK_BYTES: usize = 8 << 20;
/// What of it is resident at most, by the limits of depth.
const STACK_RESIDENT_BYTES: usize = 2 << 20;
/// A step of an answer begins only where so much of the region is left, as a share of it.
const STEP_SHARE: usize = 4;
const NO_TOKEN: u32 = u32::MAX;
/// Of the region, for each item of a grammar's text.
const ITEM_BYTES: usize = 1024;

/// What grammars for a model need: its vocabulary as a trie, and memory.
pub struct Constraints {
    factory: Arc<ParserFactory>,
    ends: Arc<[u32]>,
    region: Arc<Region>,
}

/// A grammar, as it stands before the first token.
pub struct Grammar {
    parser: Mutex<TokenParser>,
    ends: Arc<[u32]>,
    share: Share,
}

/// A grammar in the course of an answer.
pub struct Live {
    parser: TokenParser,
    grammar: Arc<Grammar>,
    /// What this copy takes.
    share: Share,
    mask: SimpleVob,
    stuck: Option<&'static str>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grammar({})", Bytes(self.share.bytes() as u64))
    }
}

impl Constraints {
    /// Takes the tables for the vocabulary. Grammars share `region_bytes`.
    pub fn new(tokenizer: &Tokenizer, region_bytes: usize) -> Constraints {
        let n_vocab = tokenizer.n_vocab();
        let word = |id: u32| match tokenizer.token_bytes(id, true) {
            long if long.len() > MAX_TOKEN_BYTES => Vec::new(),
            // No text is a control token: the library marks them so.
            text if tokenizer.is_control(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], text].concat(),
            text if text.contains(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
            text => text.to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..n_vocab as u32).map(word).collect();
        let ends: Arc<[u32]> = tokenizer.eog_ids().into();
        let info = TokRxInfo::new(n_vocab as u32, ends.first().copied().unwrap_or(NO_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        drop(words);
        if ends.len() > 1 {
            trie = trie.with_eos_tokens(&ends);
        }
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[]).expect("no slices are asked for");
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = region_bytes / 2048;
        limits.max_grammar_size = region_bytes / 2048;
        limits.initial_lexer_fuel = region_bytes as u64 / 64;
        limits.step_lexer_fuel = region_bytes as u64 / 96;
        limits.step_max_items = region_bytes / 256;
        limits.max_items_in_row = 2000;
        limits.precompute_large_lexemes = false;
        limits.verbose_errors = false;
        quiet_panics();
        Constraints { factory: Arc::new(factory), ends, region: Region::new(region_bytes) }
    }

    /// Private memory at the highest point of `new` and for grammars, from above.
    pub fn plan_bytes(file: &GgufFile, region_bytes: usize) -> Result<usize> {
        let tokens = file.strings("tokenizer.ggml.tokens")?;
        let (n, text) = (tokens.len(), tokens.text_bytes());
        Ok(n * EACH_TOKEN_BYTES + text * EACH_BYTE_BYTES + region_bytes + STACK_RESIDENT_BYTES)
    }

    /// What is left for grammars.
    pub fn left(&self) -> usize {
        self.region.left()
    }

    /// The grammar for some rules.
    pub fn compile(&self, rules: &Rules) -> std::result::Result<Arc<Grammar>, Refused> {
        let top = self.grammar_of(rules)?;
        // Answers under way keep a quarter of what is left.
        let (most, usable) = (self.region.total() / 2, |left: usize| left - left / 4);
        let making = usable(self.region.wait_for(|left| usable(left) >= most));
        let busy = if self.region.is_lost() { Refused::Lost } else { Refused::Busy };
        let mut share = self.region.share(making).filter(|_| making >= most).ok_or(busy)?;
        let factory = self.factory.clone();
        let make = move || {
            let (made, net, _) = metered(|| {
                let mut parser = factory.create_parser(top).map_err(|error| error.to_string())?;
                parser.start_without_prompt();
                // What cannot begin is no grammar.
                parser.compute_mask().map_err(|error| error.to_string())?;
                Ok::<_, String>(parser)
            });
            made.map(|parser| (bytes_of(&parser, net), parser))
        };
        match confined_apart(making, STACK_BYTES, make) {
            Some(Ok((bytes, parser))) if bytes <= most => {
                share.set(bytes);
                Ok(Arc::new(Grammar { parser: Mutex::new(parser), ends: self.ends.clone(), share }))
            }
            Some(Ok((bytes, _))) => Err(Refused::TooLarge(format!("{} of {}", Bytes(bytes as u64), Bytes(most as u64)))),
            Some(Err(error)) => Err(refusal(&error)),
            None => {
                // Its thread sleeps with all that it took, for good.
                share.lose();
                log::error!("a grammar took more memory than its limits allow; what it took is lost until the restart");
                Err(Refused::TooLarge(format!("more than {}", Bytes(making as u64))))
            }
        }
    }

    fn grammar_of(&self, rules: &Rules) -> std::result::Result<TopLevelGrammar, Refused> {
        let trie = self.factory.tok_env().tok_trie();
        let token = |text: &str| {
            let marked = [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat();
            trie.token_id_at_bytes(&marked).or_else(|| trie.token_id_at_bytes(text.as_bytes()))
        };
        let most_made = schema::most_made(self.region.total());
        let of_schema = |schema: &Value| -> std::result::Result<GrammarWithLexer, Refused> {
            let prepared = schema::prepared(schema, most_made).map_err(Refused::Invalid)?;
            Ok(GrammarWithLexer::from_json_schema(prepared.schema))
        };
        let grammar = match rules {
            Rules::Json => of_schema(&json!({ "type": "object" }))?,
            Rules::Schema(schema) => of_schema(schema)?,
            Rules::Gbnf(text) => {
                let gbnf = gbnf::parse(text, &token).map_err(Refused::Invalid)?;
                GrammarWithLexer::from_lark(lark::from_gbnf(&gbnf).map_err(Refused::Invalid)?)
            }
            Rules::Own { n_made, .. } if *n_made > most_made => {
                return Err(Refused::Invalid(schema::too_many("the schemas together", most_made)));
            }
            Rules::Own { text, .. } => GrammarWithLexer::from_lark(text.clone()),
            Rules::Lark(text) => {
                lark::check(text).map_err(Refused::Invalid)?;
                GrammarWithLexer::from_lark(text.clone())
            }
        };
        let n_items = grammar.lark_grammar.as_deref().filter(|_| !matches!(rules, Rules::Own { .. })).map_or(0, lark::n_items);
        let most = self.region.total() / ITEM_BYTES;
        if n_items > most {
            return Err(Refused::TooLarge(format!("{n_items} items of at most {most}")));
        }
        Ok(TopLevelGrammar::from_grammar(grammar))
    }
}

/// For each token, beside its text: words, offsets, order, and what the trie is built with. Measured by `tests/constraint.rs`.
const EACH_TOKEN_BYTES: usize = 96;
/// For each byte of text: the text itself twice, and nodes of the tries.
const EACH_BYTE_BYTES: usize = 24;

/// The library catches its own panics, and would then write down a trace, which takes memory: the usual line must do.
fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let _ = llguidance::panic_utils::catch_unwind(|| Ok(()));
        drop(std::panic::take_hook());
    });
}

/// What a parser takes, as counted; where nothing counts, as the library itself estimates.
fn bytes_of(parser: &TokenParser, net: isize) -> usize {
    let own = parser.parser.lexer_stats();
    if net > 0 { net as usize } else { own.num_bytes + own.num_states * 1024 + (64 << 10) }
}

/// What the library says, and what of a schema it means, in words that help.
const WORDS: [(&str, &str); 4] = [
    (
        "oneOf constraints",
        "`oneOf`: alternatives that may be valid together cannot be held to exactly: tell them apart by a constant member or by \
         their types, or write `anyOf`",
    ),
    ("patternProperty", "`patternProperties`: patterns that may match the same name cannot be held to"),
    ("lookarounds", "an anchor or a look-around within a `pattern` cannot be held to: write it at the ends, or without"),
    ("if regex is empty", "`pattern`, `format` and lengths together are too much: whether any text is left cannot be told"),
];

/// An error of the library, in a line.
fn refusal(error: &str) -> Refused {
    let line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or("it cannot be read");
    let line: String = line.replace("<non-verbose/>", "").trim().chars().take(300).collect();
    if let Some((word, told)) = WORDS.iter().find(|(word, _)| line.contains(word)) {
        let is_shown = ["patternProperty", "lookarounds"].contains(word);
        return Refused::Invalid(if is_shown { format!("{told} ({line})") } else { (*told).to_owned() });
    }
    let is_large =
        ["too big", "too large", "limit", "too many", "Too many", "too complex", "fuel"].iter().any(|word| line.contains(word));
    if is_large { Refused::TooLarge(line) } else { Refused::Invalid(line) }
}

impl Grammar {
    /// At its beginning.
    pub fn begin(self: &Arc<Self>) -> Live {
        let parser = self.parser.lock().unwrap_or_else(|e| e.into_inner());
        let (copy, net, _) = metered(|| parser.deep_clone());
        let bytes = bytes_of(&copy, net);
        drop(parser);
        let mut share = self.share.none();
        share.set(bytes);
        Live { parser: copy, grammar: self.clone(), share, mask: SimpleVob::new(), stuck: None }
    }
}

const FULL: &str = "the grammar needs more memory than is left for grammars: give them more, or make it smaller";
const LOST: &str = "the grammar cannot go on: no token may follow, or it is too complex for its memory";

impl Live {
    /// Does something with the parser, if there is memory for it, and counts what it took.
    fn step<T, E>(&mut self, work: impl FnOnce(&mut TokenParser) -> std::result::Result<T, E>) -> Option<T> {
        if self.stuck.is_some() {
            return None;
        }
        if self.share.left() < self.share.total() / STEP_SHARE {
            self.stuck = Some(FULL);
            return None;
        }
        let parser = &mut self.parser;
        let before = self.share.bytes();
        let (done, net, _) = metered(|| catch_unwind(AssertUnwindSafe(|| work(parser).ok())).ok().flatten());
        let bytes = if net == 0 { before } else { before.saturating_add_signed(net) };
        self.share.set(bytes);
        if done.is_none() {
            self.stuck = Some(LOST);
        }
        done
    }

    /// Takes in a token that is allowed. True: nothing may follow.
    pub fn accept(&mut self, token: u32) -> bool {
        if self.grammar.ends.contains(&token) {
            return true;
        }
        self.step(|parser| parser.consume_token(token).and_then(|_| parser.check_stop())).unwrap_or(false)
    }

    /// Why it cannot go on, if it cannot.
    pub fn stuck(&self) -> Option<&'static str> {
        self.stuck
    }
}

impl Filter for Live {
    fn allows(&mut self, token: u32) -> bool {
        if self.grammar.ends.contains(&token) {
            return self.step(|parser| Ok::<_, ()>(parser.is_accepting())).unwrap_or(false);
        }
        let word = self.parser.token_env.tok_trie().token(token);
        // Control tokens are told by the mask.
        if word.is_empty() || word[0] == TokTrie::SPECIAL_TOKEN_MARKER {
            return !word.is_empty() && self.mask().is_some_and(|mask| mask[token as usize / 32] >> (token % 32) & 1 == 1);
        }
        self.step(|parser| parser.validate_token(token)).unwrap_or(false)
    }

    fn mask(&mut self) -> Option<&[u32]> {
        self.mask = self.step(TokenParser::compute_mask)?;
        Some(self.mask.as_slice())
    }
}
