//! Text to token ids and back, from the vocabulary and merges that the model file itself carries (`tokenizer.ggml.*`).
//!
//! Byte-level BPE, the model that GGUF calls `gpt2`, SentencePiece, `llama` (`spm`), and BPE of characters, `gemma4` (`char_bpe`);
//! other models and unknown pre-tokenizers are refused by name. Ids are those of llama.cpp: special tokens are cut out of the text first (`specials`),
//! then, for BPE, words by the pre-tokenizer, then merges: by the crate `tokenizers`, or by tables where the vocabulary is
//! large. Nothing is cached, and long words are merged a window at a time (`windows`): memory does not grow as text flows.

mod bpe;
mod bytes;
mod char_bpe;
mod ids;
mod library_bpe;
mod pretokenizer;
mod specials;
mod spm;
mod text_table;
mod vocabulary;
mod windows;
mod words;

use std::borrow::Cow;
use std::ops::Range;

use bytes::ByteTable;
use char_bpe::CharBpe;
use ids::Ids;
use pretokenizer::PreTokenizer;
use specials::Specials;
use spm::Spm;
use vocabulary::{TokenKind, adds, ends_of_generation, n_special, special_id, token_kinds};
use windows::Windows;
use words::Words;

use crate::error::{Error, Result};
use crate::gguf::GgufFile;

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
    Chars(Box<CharBpe>),
}

/// `tokenizer.ggml.model`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bytes,
    Spm,
    Chars,
}

/// Working memory of `Merging`, for the length of one text.
enum Work {
    Bpe(words::Work),
    Spm(Windows<Spm>),
    Chars(Windows<CharBpe>),
}

pub struct Tokenizer {
    merging: Merging,
    bytes: ByteTable,
    specials: Specials,
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

/// Kind table of the pre-tokenizer and what else does not depend on the vocabulary.
const FIXED_BYTES: u64 = 128 << 10;

impl Tokenizer {
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        Self::merging_by(file, None)
    }

    /// With byte-level merges by tables, whatever the size of the vocabulary: what the crate's are compared with.
    pub fn with_tables(file: &GgufFile) -> Result<Self> {
        Self::merging_by(file, Some(false))
    }

    fn merging_by(file: &GgufFile, library: Option<bool>) -> Result<Self> {
        let kind = kind(file)?;
        let pre = if kind == Kind::Bytes { Some(pretokenizer(file)?) } else { None };
        let tokens = file.strings(TOKENS)?;
        let n_vocab = tokens.len();
        let mut kinds = token_kinds(file, n_vocab)?;
        // SentencePiece's own ids, where the file does not say.
        let usual = |id: u32| Some(id).filter(|_| kind == Kind::Spm && n_vocab > 2);
        let bos = special_id(file, "bos", usual(1), n_vocab)?;
        let eos = special_id(file, "eos", usual(2), n_vocab)?;
        let ends = ends_of_generation(file, &tokens, eos, &mut kinds)?.into_boxed_slice();

        let bytes = ByteTable::new(file, &tokens, &kinds, kind != Kind::Bytes)?;
        let specials = specials(file, &kinds, &bytes)?;
        let controls = (0..n_vocab as u32).filter(|id| kinds[*id as usize] == TokenKind::Control).collect();
        drop(kinds);

        let adds_bos = pre.as_ref().is_none_or(PreTokenizer::add_bos);
        let merging = match pre {
            Some(pre) => Merging::Bpe(Box::new(Words::from_gguf(file, &tokens, pre, library)?)),
            None if kind == Kind::Chars => Merging::Chars(Box::new(CharBpe::from_gguf(file, &tokens)?)),
            None => Merging::Spm(Box::new(Spm::from_gguf(file, &tokens)?)),
        };
        let (add_bos, add_eos) = (adds(file, "bos", bos, adds_bos)?, adds(file, "eos", eos, false)?);
        // Early files of Gemma 4 deny it, and the model needs it; llama.cpp knows better than they too.
        let add_bos = add_bos || kind == Kind::Chars && bos.is_some();
        Ok(Tokenizer { merging, bytes, specials, controls, ends, bos, eos, add_bos, add_eos })
    }

    /// Bytes of private memory at the highest point of `from_gguf`, from above: what the tables hold, each small block rounded as
    /// C libraries round it.
    pub fn plan_bytes(file: &GgufFile) -> Result<u64> {
        let tokens = file.strings(TOKENS)?;
        let special = n_special(file)? * specials::BYTES_EACH;
        let own = tokens.text_bytes() as u64 + tokens.len() as u64 * 5 + special + FIXED_BYTES;
        Ok(own
            + match kind(file)? {
                Kind::Bytes => Words::plan_bytes(file, &tokens)?,
                Kind::Spm => Spm::plan_bytes(&tokens),
                Kind::Chars => CharBpe::plan_bytes(file, &tokens)?,
            })
    }

    /// Bytes of the pieces and of what `encode_pieces` takes to make `n_tokens` ids of them: the ids, the pieces put together to
    /// one text where they are several, and working memory, from above.
    pub fn encode_bytes(&self, pieces: &[Piece<'_>], n_tokens: usize) -> usize {
        let n_bytes: usize = pieces.iter().map(|piece| piece.text.len()).sum();
        let copy = if pieces.len() == 1 { 0 } else { n_bytes };
        let merging = match &self.merging {
            Merging::Bpe(words) => words.work_bytes(n_bytes),
            Merging::Spm(spm) => windows::work_bytes(&**spm, n_bytes),
            Merging::Chars(bpe) => windows::work_bytes(&**bpe, n_bytes),
        };
        n_bytes + copy + n_tokens * size_of::<u32>() + merging + self.specials.search_bytes() + pieces.len() * 64
    }

    /// Working memory for a text of so many bytes at most, before there is a tokenizer.
    pub fn most_work_bytes(file: &GgufFile, n_text_bytes: usize) -> Result<usize> {
        let longest = file.strings(TOKENS)?.lengths().max().unwrap_or(0);
        Ok(windows::most_work_bytes(longest, n_text_bytes) + Specials::most_search_bytes(n_special(file)?))
    }

    pub fn n_vocab(&self) -> usize {
        self.bytes.n_tokens()
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// What is written for the tokens that begin and end a text, nothing where there is none.
    pub fn bos_and_eos_texts(&self) -> [String; 2] {
        [self.bos, self.eos]
            .map(|id| id.map_or(String::new(), |id| String::from_utf8_lossy(self.token_bytes(id, true)).into_owned()))
    }

    /// The texts of all tokens that steer the model and may be read.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.specials.steering().filter_map(|id| std::str::from_utf8(self.bytes.of(id)).ok())
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
        if id as usize >= self.n_vocab() || (!render_special && self.is_control(id)) {
            return &[];
        }
        self.bytes.of(id)
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
    /// are parsed, which may be several in a row; words and merges reach across pieces. The text is gone through twice, so that
    /// the list takes what its ids take.
    pub fn encode_pieces(&self, pieces: &[Piece<'_>], add_special: bool) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(self.count(pieces, add_special)?);
        self.encode_into(pieces, add_special, &mut ids)?;
        Ok(ids)
    }

    /// How many ids `encode_pieces` gives.
    pub fn count(&self, pieces: &[Piece<'_>], add_special: bool) -> Result<usize> {
        let mut ids = Ids::counted();
        self.encode_to(pieces, add_special, &mut ids)?;
        Ok(ids.n)
    }

    /// Appends the ids to `list`, which does not grow where there is place for them.
    pub fn encode_into(&self, pieces: &[Piece<'_>], add_special: bool, list: &mut Vec<u32>) -> Result<()> {
        self.encode_to(pieces, add_special, &mut Ids::kept(list))
    }

    fn encode_to(&self, pieces: &[Piece<'_>], add_special: bool, ids: &mut Ids<'_>) -> Result<()> {
        // Where control tokens may be matched, in order and apart.
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
        let text = match pieces {
            [piece] => Cow::Borrowed(piece.text),
            _ => pieces.iter().fold(String::with_capacity(n_bytes), |text, piece| text + piece.text).into(),
        };
        if let Some(bos) = self.bos.filter(|_| add_special && self.add_bos) {
            ids.push(bos);
        }
        let mut work = match &self.merging {
            Merging::Bpe(_) => Work::Bpe(words::Work::default()),
            Merging::Spm(_) => Work::Spm(Windows::default()),
            Merging::Chars(_) => Work::Chars(Windows::default()),
        };
        // Where the text behind the last special token begins.
        let mut done = 0;
        for (start, special) in self.specials.find(&text, &trusted, &self.bytes) {
            self.encode_plain(text.get(done..start).unwrap_or(""), &mut work, ids)?;
            done = start + self.bytes.of(special.id).len();
            if special.strips {
                done += text[done..].len() - text[done..].trim_start_matches(|c| " \t\n\r\x0b\x0c".contains(c)).len();
            }
            let doubled = start == 0 && ids.n == 1 && ids.last == Some(special.id) && self.bos == Some(special.id);
            if !doubled {
                ids.push(special.id);
            }
        }
        self.encode_plain(&text[done..], &mut work, ids)?;
        if let Some(eos) = self.eos.filter(|eos| add_special && self.add_eos && ids.last != Some(*eos)) {
            ids.push(eos);
        }
        Ok(())
    }

    /// Text without special tokens: it is the first, or follows one.
    fn encode_plain(&self, text: &str, work: &mut Work, ids: &mut Ids<'_>) -> Result<()> {
        match (&self.merging, work) {
            (Merging::Bpe(words), Work::Bpe(work)) => words.encode(text, work, ids),
            (Merging::Spm(spm), Work::Spm(windows)) => spm.encode(text, windows, ids),
            (Merging::Chars(bpe), Work::Chars(windows)) => bpe.encode(text, windows, ids),
            _ => unreachable!("the working memory is that of the merging"),
        }
    }
}

fn kind(file: &GgufFile) -> Result<Kind> {
    match file.str(MODEL)? {
        "gpt2" => Ok(Kind::Bytes),
        "llama" => Ok(Kind::Spm),
        "gemma4" => Ok(Kind::Chars),
        model => {
            let what = format!(
                "{MODEL} is '{}': only 'gpt2' (byte-level BPE), 'llama' (SentencePiece) and 'gemma4' (BPE of characters) are supported; choose a model such as SmolLM2, Qwen or Llama",
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

/// The tokens that are cut out of text.
fn specials(file: &GgufFile, kinds: &[TokenKind], bytes: &ByteTable) -> Result<Specials> {
    // The files of Phi-3 do not say that its tokens swallow white space; llama.cpp knows them by their name, and so do we.
    let name = file.opt_str("general.name")?.unwrap_or_default().to_lowercase();
    let is_phi3 = name.contains("phi-3") || name.contains("phi3");
    Ok(Specials::new(kinds, bytes, |text| is_phi3 && ![&b"<unk>"[..], b"<s>", b"<|endoftext|>"].contains(&text)))
}
