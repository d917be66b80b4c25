//! Text to token ids and back, from the vocabulary and merges that the model file itself carries (`tokenizer.ggml.*`).
//!
//! Byte-level BPE, the model that GGUF calls `gpt2`, and SentencePiece, `llama` (`spm.rs`); other models and unknown
//! pre-tokenizers are refused by name. Ids are those of llama.cpp: special tokens are cut out of the text first, longest
//! first, then, for BPE, words by the pre-tokenizer, then merges: by the crate `tokenizers`, or by tables where the vocabulary is large. Nothing is cached: memory does not grow as text
//! flows. The bytes of all tokens lie in one table.

use std::collections::BTreeMap;
use std::ops::Range;

use super::bpe::{Bpe, Room};
use super::library_bpe::LibraryBpe;
use super::pretokenizer::PreTokenizer;
use super::spm::Spm;
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, StringArray};

/// `tokenizer.ggml.token_type`, as far as encoding and decoding tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    /// Bytes of text, written in the byte alphabet.
    Normal,
    /// Steers the model; in text only when special tokens are parsed, and shown only on request.
    Control,
    /// Text of its own that is always matched whole.
    UserDefined,
    /// One byte, written as `<0x0A>`: in SentencePiece's vocabularies.
    Byte,
    /// Stands for nothing.
    Unused,
}

impl TokenKind {
    fn from_gguf(value: i32) -> Self {
        match value {
            // 2, unknown, is never produced by text and never shown: a control token for our purposes.
            2 | 3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Normal,
        }
    }
}

/// Tokens that end a generation wherever they occur in a vocabulary, by their text; files often fail to say so otherwise.
const END_OF_GENERATION: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// A token for filling in the middle of a text: the keys that name it, and the texts by which it is known where the file has
/// none of them; it is a control token then.
struct Filler {
    keys: &'static [&'static str],
    texts: &'static [&'static str],
    /// What follows it is another file.
    ends: bool,
}

const FILLERS: [Filler; 6] = [
    Filler {
        keys: &["fim_pre", "prefix"],
        texts: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        ends: false,
    },
    Filler {
        keys: &["fim_suf", "suffix"],
        texts: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        ends: false,
    },
    Filler {
        keys: &["fim_mid", "middle"],
        texts: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        ends: false,
    },
    Filler { keys: &["fim_pad"], texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"], ends: true },
    Filler { keys: &["fim_rep"], texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"], ends: true },
    Filler { keys: &["fim_sep"], texts: &["<|file_sep|>"], ends: true },
];

/// Parts of gpt-oss's frame of a message, which text may hold.
const FRAME: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// A token that is matched in text before the pre-tokenizer sees it.
struct Special {
    id: u32,
    text: Box<str>,
    user_defined: bool,
    /// Swallows the white space behind it.
    strips: bool,
}

/// A part of a text: whether control tokens that are written out in it become those tokens (a template's own marks), or are text
/// like any other (what a user says). Tokens that the file calls user-defined are matched in both.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    pub text: &'a str,
    pub parse_special: bool,
}

/// How text between special tokens becomes ids.
enum Merging {
    Bpe(Box<Words>),
    Spm(Box<Spm>),
}

/// Byte-level BPE: words, then merges.
struct Words {
    merges: Merges,
    pre: PreTokenizer,
}

enum Merges {
    Library(Box<LibraryBpe>),
    Tables(Box<Bpe>),
}

/// What the crate `tokenizers` may take of memory: above it tables do, in a tenth.
const LIBRARY_BYTES: u64 = 24 << 20;

pub struct Tokenizer {
    merging: Merging,
    /// Bytes of token `id`: `bytes[offsets[id]..offsets[id + 1]]`. Control tokens have their text.
    bytes: Box<[u8]>,
    offsets: Box<[u32]>,
    /// Longest text first, the order in which they claim the text.
    specials: Box<[Special]>,
    /// Whether a special token begins with the byte.
    special_starts: [bool; 256],
    /// Sorted ids.
    controls: Box<[u32]>,
    ends: Box<[u32]>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";

impl Tokenizer {
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        Self::merging_by(file, None)
    }

    /// With byte-level merges by tables, whatever the size of the vocabulary: what the crate's are compared with.
    pub fn with_tables(file: &GgufFile) -> Result<Self> {
        Self::merging_by(file, Some(false))
    }

    fn merging_by(file: &GgufFile, library: Option<bool>) -> Result<Self> {
        let is_spm = is_spm(file)?;
        let pre = if is_spm { None } else { Some(pretokenizer(file)?) };
        let tokens = file.strings(TOKENS)?;
        let n_vocab = tokens.len();
        let mut kinds = token_kinds(file, n_vocab)?;
        let token_id = |key: &str| special_id(file, key, n_vocab);
        // SentencePiece's own ids, where the file does not say.
        let usual = |id: u32| Some(id).filter(|_| is_spm && n_vocab > 2);
        let bos = token_id("tokenizer.ggml.bos_token_id")?.or(usual(1));
        let eos = token_id("tokenizer.ggml.eos_token_id")?.or(usual(2));
        let ends = ends_of_generation(file, &tokens, eos, &mut kinds)?;

        let (bytes, offsets) = byte_table(file, &tokens, &kinds, is_spm)?;
        let specials = specials(file, &tokens, &kinds)?;
        let mut special_starts = [false; 256];
        specials.iter().for_each(|special| special_starts[special.text.as_bytes()[0] as usize] = true);
        let controls = (0..n_vocab as u32).filter(|id| kinds[*id as usize] == TokenKind::Control).collect();
        drop(kinds);

        let adds_bos = pre.as_ref().map_or(is_spm, PreTokenizer::add_bos);
        let merging = match pre {
            None => Merging::Spm(Box::new(Spm::from_gguf(file, &tokens)?)),
            Some(pre) => {
                let whole = pre.ignore_merges();
                let merges = match library.map_or_else(|| by_library(file, &tokens), Ok)? {
                    true => Merges::Library(Box::new(LibraryBpe::from_gguf(file, &tokens, &BYTE_CHARS, whole)?)),
                    false => Merges::Tables(Box::new(Bpe::from_gguf(file, &tokens, &BYTE_CHARS, whole)?)),
                };
                Merging::Bpe(Box::new(Words { merges, pre }))
            }
        };
        let add = |key, default| Ok::<_, Error>(file.opt_bool(key)?.unwrap_or(default));
        let add_bos = add("tokenizer.ggml.add_bos_token", adds_bos && bos.is_some())?;
        let add_eos = add("tokenizer.ggml.add_eos_token", false)?;
        for (name, adds, id) in [("bos", add_bos, bos), ("eos", add_eos, eos)] {
            if adds && id.is_none() {
                let what = format!(
                    "tokenizer.ggml.add_{name}_token is true and tokenizer.ggml.{name}_token_id is missing: convert the model again"
                );
                return Err(Error::unsupported(file.path(), what));
            }
        }
        let (specials, ends) = (specials.into_boxed_slice(), ends.into_boxed_slice());
        Ok(Tokenizer { merging, bytes, offsets, specials, special_starts, controls, ends, bos, eos, add_bos, add_eos })
    }

    /// Bytes of private memory at the highest point of `from_gguf`, from above: what the tables hold, each small block rounded as
    /// C libraries round it.
    pub fn plan_bytes(file: &GgufFile) -> Result<u64> {
        let tokens = file.strings(TOKENS)?;
        if is_spm(file)? {
            let own = tokens.text_bytes() as u64;
            return Ok(own + tokens.len() as u64 * 5 + Spm::plan_bytes(&tokens) + FIXED_BYTES);
        }
        let own = tokens.text_bytes() as u64 + tokens.len() as u64 * 5 + FIXED_BYTES;
        Ok(own
            + match by_library(file, &tokens)? {
                true => LibraryBpe::plan_bytes(file, &tokens)?,
                false => Bpe::plan_bytes(file, &tokens)?,
            })
    }

    /// The most bytes of the text that a tokenizer of this file merges at once, from above. Pre-tokenizers end words at
    /// white space at the latest.
    pub fn longest_word(file: &GgufFile, text: &str) -> Result<usize> {
        if is_spm(file)? {
            return Ok(Spm::longest_word(&file.strings(TOKENS)?, text));
        }
        let (mut longest, mut word, mut in_space) = (0, 0, false);
        for c in text.chars() {
            let space = c.is_whitespace();
            // White space that follows may belong to a word, as one space before it may.
            if in_space && !space {
                word = 1;
            }
            in_space = space;
            word += c.len_utf8();
            longest = longest.max(word);
        }
        Ok(longest)
    }

    pub fn n_vocab(&self) -> usize {
        self.offsets.len() - 1
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether a generation is over with this token.
    pub fn is_eog(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// Every token that ends a generation, in order.
    pub fn eog_ids(&self) -> &[u32] {
        &self.ends
    }

    pub fn is_control(&self, id: u32) -> bool {
        self.controls.binary_search(&id).is_ok()
    }

    /// The bytes that a token stands for, which may begin or end within a character. Control tokens stand for nothing, or for their
    /// own text with `render_special`; an id beyond the vocabulary stands for nothing.
    pub fn token_bytes(&self, id: u32, render_special: bool) -> &[u8] {
        let place = id as usize;
        if place >= self.n_vocab() || (!render_special && self.is_control(id)) {
            return &[];
        }
        &self.bytes[self.offsets[place] as usize..self.offsets[place + 1] as usize]
    }

    /// The text of the tokens, control tokens as their text; bytes that are no characters become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token_bytes(*id, true)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The ids of `text`. `parse_special`: control tokens written out in the text become those tokens, as in a rendered chat
    /// template. `add_special`: the model's beginning and end tokens are added where its file asks for them and the text does not
    /// have them already.
    pub fn encode(&self, text: &str, parse_special: bool, add_special: bool) -> Result<Vec<u32>> {
        self.encode_pieces(&[Piece { text, parse_special }], add_special)
    }

    /// The ids of the pieces as one text. Control tokens are matched only where they lie wholly in pieces whose special tokens
    /// are parsed, which may be several in a row; words and merges reach across pieces.
    pub fn encode_pieces(&self, pieces: &[Piece<'_>], add_special: bool) -> Result<Vec<u32>> {
        let mut trusted: Vec<Range<usize>> = Vec::new();
        let mut n_bytes = 0;
        for piece in pieces {
            let range = n_bytes..n_bytes + piece.text.len();
            n_bytes = range.end;
            match trusted.last_mut() {
                _ if !piece.parse_special || range.is_empty() => {}
                Some(last) if last.end == range.start => last.end = range.end,
                _ => trusted.push(range),
            }
        }
        match pieces {
            [piece] => self.encode_trusting(piece.text, &trusted, add_special),
            _ => {
                let mut text = String::with_capacity(n_bytes);
                pieces.iter().for_each(|piece| text.push_str(piece.text));
                self.encode_trusting(&text, &trusted, add_special)
            }
        }
    }

    /// `trusted`: where control tokens may be matched, in order and apart.
    fn encode_trusting(&self, text: &str, trusted: &[Range<usize>], add_special: bool) -> Result<Vec<u32>> {
        // About four bytes a token in prose.
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        if let Some(bos) = self.bos.filter(|_| add_special && self.add_bos) {
            ids.push(bos);
        }
        // Where the text behind the last special token begins, and whether there is no other text before it.
        let (mut done, mut opens) = (0, true);
        for (start, place) in self.find_specials(text, trusted) {
            let special = &self.specials[place];
            self.encode_plain(text.get(done..start).unwrap_or(""), opens, &mut ids)?;
            done = start + special.text.len();
            if special.strips {
                done += text[done..].len() - text[done..].trim_start_matches(|c| " \t\n\r\x0b\x0c".contains(c)).len();
            }
            opens = true;
            let doubled = start == 0 && ids == [special.id] && self.bos == Some(special.id);
            if !doubled {
                ids.push(special.id);
            }
        }
        self.encode_plain(&text[done..], opens, &mut ids)?;
        if let Some(eos) = self.eos.filter(|eos| add_special && self.add_eos && ids.last() != Some(eos)) {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// Where special tokens stand in the text, by start, with their place in `specials`. A longer one claims its text before a
    /// shorter, an earlier before a later of the same.
    fn find_specials(&self, text: &str, trusted: &[Range<usize>]) -> BTreeMap<usize, usize> {
        let bytes = text.as_bytes();
        let is_trusted = |start: usize, end: usize| {
            trusted.get(trusted.partition_point(|range| range.end < end)).is_some_and(|range| range.start <= start)
        };
        let mut found = Vec::new();
        for start in (0..bytes.len()).filter(|at| self.special_starts[bytes[*at] as usize]) {
            for (place, special) in self.specials.iter().enumerate() {
                if bytes[start..].starts_with(special.text.as_bytes())
                    && (special.user_defined || is_trusted(start, start + special.text.len()))
                {
                    found.push((place, start));
                }
            }
        }
        found.sort_unstable();
        let mut taken = BTreeMap::new();
        for (place, start) in found {
            let end = start + self.specials[place].text.len();
            let before: Option<(&usize, &usize)> = taken.range(..end).next_back();
            let free = before.is_none_or(|(other, at)| other + self.specials[*at].text.len() <= start);
            if free {
                taken.insert(start, place);
            }
        }
        taken
    }

    /// Text without special tokens; `opens`: it is the first, or follows a special token.
    fn encode_plain(&self, text: &str, opens: bool, ids: &mut Vec<u32>) -> Result<()> {
        match &self.merging {
            Merging::Bpe(words) => words.encode(text, ids),
            Merging::Spm(spm) => {
                spm.encode(text, opens, ids);
                Ok(())
            }
        }
    }
}

/// Whether the crate merges.
fn by_library(file: &GgufFile, tokens: &StringArray<'_>) -> Result<bool> {
    Ok(LibraryBpe::plan_bytes(file, tokens)? <= LIBRARY_BYTES)
}

impl Words {
    fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.merges {
            Merges::Library(bpe) => {
                let mut room = String::new();
                self.pre.split(text, &mut |word| bpe.encode(word, &BYTE_CHARS, &mut room, ids))
            }
            Merges::Tables(bpe) => {
                let mut room = Room::default();
                self.pre.split(text, &mut |word| {
                    bpe.encode(word, &BYTE_CHARS, &mut room, ids);
                    Ok(())
                })
            }
        }
    }
}

/// Whether the file's tokenizer is SentencePiece's.
fn is_spm(file: &GgufFile) -> Result<bool> {
    match file.str(MODEL)? {
        "llama" => Ok(true),
        "gpt2" => Ok(false),
        model => {
            let what = format!(
                "{MODEL} is '{}': only 'gpt2' (byte-level BPE) and 'llama' (SentencePiece) are supported; choose a model such as SmolLM2, Qwen or Llama",
                model.escape_debug()
            );
            Err(Error::unsupported(file.path(), what))
        }
    }
}

fn pretokenizer(file: &GgufFile) -> Result<PreTokenizer> {
    let Some(name) = file.opt_str(PRE)? else {
        let what =
            format!("{PRE} is missing, so the ids of a text are not known: convert the model again with a current converter");
        return Err(Error::unsupported(file.path(), what));
    };
    PreTokenizer::by_name(name).ok_or_else(|| {
        let what = format!(
            "{PRE} is '{name}', a rule for cutting words that is not known here: use a model with one of {}",
            PreTokenizer::known()
        );
        Error::unsupported(file.path(), what)
    })
}

fn token_kinds(file: &GgufFile, n_vocab: usize) -> Result<Vec<TokenKind>> {
    let key = "tokenizer.ggml.token_type";
    let Some(types) = file.opt_i32s(key)? else { return Ok(vec![TokenKind::Normal; n_vocab]) };
    if types.len() != n_vocab {
        let what = format!("{key} has {} values and {TOKENS} has {n_vocab}: the file is damaged, fetch it again", types.len());
        return Err(Error::unsupported(file.path(), what));
    }
    Ok(types.map(TokenKind::from_gguf).collect())
}

fn special_id(file: &GgufFile, key: &str, n_vocab: usize) -> Result<Option<u32>> {
    match file.opt_u32(key)? {
        Some(id) if id as usize >= n_vocab => {
            let what = format!("{key} is {id} and the vocabulary has {n_vocab} tokens: the file is damaged, fetch it again");
            Err(Error::unsupported(file.path(), what))
        }
        id => Ok(id),
    }
}

/// The ids that end a generation, in order: those that llama.cpp knows by their text or by a key. What is found by its text
/// is made a control token, whatever the file says it is.
fn ends_of_generation(file: &GgufFile, tokens: &StringArray<'_>, eos: Option<u32>, kinds: &mut [TokenKind]) -> Result<Vec<u32>> {
    let by_key = |name: &str| special_id(file, &format!("tokenizer.ggml.{name}_token_id"), tokens.len());
    // What the texts are found to be, in one pass.
    let mut by_text = BTreeMap::new();
    let known = |text: &str| {
        END_OF_GENERATION.contains(&text) || FRAME.contains(&text) || FILLERS.iter().any(|f| f.texts.contains(&text))
    };
    for (id, text) in tokens.iter().enumerate().filter(|(_, text)| known(text)) {
        by_text.insert(text, id as u32);
    }
    let find = |text: &str| by_text.get(text).copied();
    let mut ends: Vec<u32> = END_OF_GENERATION.into_iter().filter_map(find).collect();
    ends.iter().for_each(|&id| kinds[id as usize] = TokenKind::Control);
    for Filler { keys, texts, ends: does_end } in FILLERS {
        let mut id = None;
        for key in keys {
            id = id.or(by_key(key)?);
        }
        if id.is_none() {
            id = texts.iter().find_map(|text| find(text));
            id.iter().for_each(|&id| kinds[id as usize] = TokenKind::Control);
        }
        ends.extend(id.filter(|_| does_end));
    }
    FRAME.into_iter().filter_map(find).for_each(|id| kinds[id as usize] = TokenKind::UserDefined);
    for id in [eos, by_key("eot")?, by_key("eom")?] {
        ends.extend(id);
    }
    // Where these are there, the more common texts mean something else: in gpt-oss and Solar, and in Gemma 4.
    let has = |text: &str| find(text).is_some();
    let call = has("<|call|>") || has("<|calls|>");
    for (is_other, text, kind) in [
        (call && (has("<|return|>") || has("<|flush|>")), "<|end|>", TokenKind::UserDefined),
        (has("<|tool_response>"), "</s>", TokenKind::Normal),
    ] {
        if let Some(id) = find(text).filter(|_| is_other) {
            ends.retain(|&end| end != id);
            kinds[id as usize] = kind;
        }
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// The bytes of all tokens end to end, and where each begins and the last ends.
type ByteTable = (Box<[u8]>, Box<[u32]>);

fn byte_table(file: &GgufFile, tokens: &StringArray<'_>, kinds: &[TokenKind], is_spm: bool) -> Result<ByteTable> {
    let total = tokens.text_bytes();
    if u32::try_from(total).is_err() {
        return Err(Error::unsupported(
            file.path(),
            format!("{TOKENS} holds {total} bytes of text, more than 4 GiB: the file is damaged"),
        ));
    }
    let mut bytes = Vec::with_capacity(total);
    let mut offsets = Vec::with_capacity(tokens.len() + 1);
    offsets.push(0);
    for (text, kind) in tokens.iter().zip(kinds) {
        match kind {
            TokenKind::Control | TokenKind::UserDefined => bytes.extend_from_slice(text.as_bytes()),
            TokenKind::Unused => (),
            TokenKind::Byte if is_spm && Spm::byte_of(text).is_some() => bytes.extend(Spm::byte_of(text)),
            TokenKind::Normal | TokenKind::Byte if is_spm => Spm::push_shown(text, &mut bytes),
            TokenKind::Normal | TokenKind::Byte => text.chars().for_each(|c| push_byte_of(c, &mut bytes)),
        }
        offsets.push(bytes.len() as u32);
    }
    Ok((bytes.into_boxed_slice(), offsets.into_boxed_slice()))
}

fn specials(file: &GgufFile, tokens: &StringArray<'_>, kinds: &[TokenKind]) -> Result<Vec<Special>> {
    // The files of Phi-3 do not say that its tokens swallow white space; llama.cpp knows them by their name, and so do we.
    let name = file.opt_str("general.name")?.unwrap_or_default().to_lowercase();
    let is_phi3 = name.contains("phi-3") || name.contains("phi3");
    let strips = |text: &str| is_phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&text);
    let mut specials: Vec<Special> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (text, kind))| !text.is_empty() && matches!(kind, TokenKind::Control | TokenKind::UserDefined))
        .map(|(id, (text, kind))| {
            let user_defined = *kind == TokenKind::UserDefined;
            Special { id: id as u32, text: text.into(), user_defined, strips: strips(text) }
        })
        .collect();
    specials.sort_by_key(|special| std::cmp::Reverse(special.text.len()));
    Ok(specials)
}

/// Kind table of the pre-tokenizer, special tokens and what else does not depend on the vocabulary.
const FIXED_BYTES: u64 = 128 << 10;

/// GPT-2's alphabet: the character that stands for each byte. Printable bytes of Latin-1 stand for themselves, the others for the
/// characters from U+0100 on, in order.
const BYTE_CHARS: [char; 256] = {
    let mut table = ['\0'; 256];
    let mut next = 256u32;
    let mut byte = 0u32;
    while byte < 256 {
        let code = if stands_for_itself(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        table[byte as usize] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("codes below U+0200 are characters"),
        };
        byte += 1;
    }
    table
};

const fn stands_for_itself(byte: u32) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The byte that a character of the alphabet stands for; any other character, which no proper vocabulary has, is its own bytes.
fn push_byte_of(c: char, bytes: &mut Vec<u8>) {
    let code = c as u32;
    let byte = match code {
        _ if stands_for_itself(code) => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    };
    match byte {
        Some(byte) => bytes.push(byte),
        None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_goes_both_ways() {
        for byte in 0..=255u8 {
            let mut back = Vec::new();
            push_byte_of(BYTE_CHARS[byte as usize], &mut back);
            assert_eq!(back, [byte]);
        }
        assert_eq!(
            [BYTE_CHARS[b' ' as usize], BYTE_CHARS[b'\n' as usize], BYTE_CHARS[0xad], BYTE_CHARS[b'a' as usize]],
            ['Ġ', 'Ċ', 'Ń', 'a']
        );
        let mut out = Vec::new();
        push_byte_of('中', &mut out);
        assert_eq!(out, "中".as_bytes());
    }
}
