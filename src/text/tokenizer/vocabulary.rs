//! What the tokens of a file are for: their types, the ids that steer a text, and those that end a generation.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::gguf::{GgufFile, StringArray, Value};

/// `tokenizer.ggml.token_type`, as far as encoding and decoding tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Bytes of text, written in the byte alphabet.
    Normal,
    /// Steers the model; in text only when special tokens are parsed, and shown only on request.
    Control,
    /// Steers the model as a control token does, and is shown: by it one sees what the model's text is.
    Frame,
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
const END_OF_GENERATION: &str = "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> \
    </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> \
    <｜end▁of▁sentence｜> [e~[";

/// A token for filling in the middle of a text: the keys that name it, and the texts by which it is known where the file has
/// none of them; it is a control token then.
struct Filler {
    keys: &'static [&'static str],
    texts: &'static str,
    /// What follows it is another file.
    ends: bool,
}

const FILLERS: [Filler; 6] = [
    Filler {
        keys: &["fim_pre", "prefix"],
        texts: "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
        ends: false,
    },
    Filler {
        keys: &["fim_suf", "suffix"],
        texts: "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
        ends: false,
    },
    Filler {
        keys: &["fim_mid", "middle"],
        texts: "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
        ends: false,
    },
    Filler { keys: &["fim_pad"], texts: "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]", ends: true },
    Filler { keys: &["fim_rep"], texts: "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>", ends: true },
    Filler { keys: &["fim_sep"], texts: "<|file_sep|>", ends: true },
];

/// Parts of gpt-oss's frame of a message, which are shown. llama.cpp makes them user-defined, so that a user's text may hold them; here
/// they stand in text only where control tokens may.
const FRAME: &str = "<|channel|> <|message|> <|start|> <|constrain|>";

pub fn token_kinds(file: &GgufFile, n_vocab: usize) -> Result<Vec<TokenKind>> {
    let key = "tokenizer.ggml.token_type";
    let Some(types) = file.opt_i32s(key)? else { return Ok(vec![TokenKind::Normal; n_vocab]) };
    if types.len() != n_vocab {
        let what = format!(
            "{key} has {} values and tokenizer.ggml.tokens has {n_vocab}: the file is damaged, fetch it again",
            types.len()
        );
        return Err(Error::unsupported(file.path(), what));
    }
    Ok(types.map(TokenKind::from_gguf).collect())
}

/// Tokens that are matched in text as a whole, from above: those by their type, and those that are known by their text.
pub fn n_special(file: &GgufFile) -> Result<u64> {
    let types = file.opt_i32s("tokenizer.ggml.token_type")?;
    Ok(128 + types.map_or(0, |types| types.filter(|kind| matches!(kind, 2..=4)).count() as u64))
}

/// The id that `tokenizer.ggml.{name}_token_id` names, or `usual` where there is no such key. A number that is no token means
/// none: converters write -1 or the size of the vocabulary.
pub fn special_id(file: &GgufFile, name: &str, usual: Option<u32>, n_vocab: usize) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(value) = file.get(&key) else { return Ok(usual) };
    let Some(id) = value.as_int() else { return file.opt_u32(&key) };
    let found = u32::try_from(id).ok().filter(|&id| (id as usize) < n_vocab);
    if found.is_none() {
        log::warn!("{}: {key} is {id} and tokens are 0 to {}: the model is run without it", file.path().display(), n_vocab - 1);
    }
    Ok(found)
}

/// Whether the token `id` is to be added to a text, as `tokenizer.ggml.add_{name}_token` says or, without that key, `usually`.
/// What is no token is not added.
pub fn adds(file: &GgufFile, name: &str, id: Option<u32>, usually: bool) -> Result<bool> {
    let key = format!("tokenizer.ggml.add_{name}_token");
    // Some converters have no bool.
    let says = match file.get(&key).filter(|value| !matches!(value, Value::Bool(_))).and_then(|value| value.as_int()) {
        Some(number @ 0..=1) => Some(number == 1),
        _ => file.opt_bool(&key)?,
    };
    if says == Some(true) && id.is_none() {
        log::warn!("{}: {key} is true and there is no such token: none is added", file.path().display());
    }
    Ok(says.unwrap_or(usually) && id.is_some())
}

/// The ids that end a generation, in order: those that llama.cpp knows by their text or by a key. What is found by its text
/// is made a control token, whatever the file says it is.
pub fn ends_of_generation(
    file: &GgufFile,
    tokens: &StringArray<'_>,
    eos: Option<u32>,
    kinds: &mut [TokenKind],
) -> Result<Vec<u32>> {
    let by_key = |name: &str| special_id(file, name, None, tokens.len());
    // What the texts are found to be, in one pass.
    let mut by_text = BTreeMap::new();
    let lists = [END_OF_GENERATION, FRAME].into_iter().chain(FILLERS.iter().map(|filler| filler.texts));
    let known: BTreeSet<&str> = lists.flat_map(str::split_whitespace).collect();
    let mut begins = [false; 256];
    known.iter().for_each(|text| begins[text.as_bytes()[0] as usize] = true);
    let is_known = |text: &str| text.bytes().next().is_some_and(|byte| begins[byte as usize]) && known.contains(text);
    for (id, text) in tokens.iter().enumerate().filter(|(_, text)| is_known(text)) {
        by_text.insert(text, id as u32);
    }
    let find = |text: &str| by_text.get(text).copied();
    let mut ends: Vec<u32> = END_OF_GENERATION.split_whitespace().filter_map(find).collect();
    ends.iter().for_each(|&id| kinds[id as usize] = TokenKind::Control);
    for Filler { keys, texts, ends: does_end } in FILLERS {
        let mut id = None;
        for key in keys {
            id = id.or(by_key(key)?);
        }
        if id.is_none() {
            id = texts.split_whitespace().find_map(find);
            id.iter().for_each(|&id| kinds[id as usize] = TokenKind::Control);
        }
        ends.extend(id.filter(|_| does_end));
    }
    FRAME.split_whitespace().filter_map(find).for_each(|id| kinds[id as usize] = TokenKind::Frame);
    for id in [eos, by_key("eot")?, by_key("eom")?] {
        ends.extend(id);
    }
    // Where these are there, the more common texts mean something else: in gpt-oss and Solar, and in Gemma 4.
    let has = |text: &str| find(text).is_some();
    let call = has("<|call|>") || has("<|calls|>");
    for (is_other, text, kind) in [
        (call && (has("<|return|>") || has("<|flush|>")), "<|end|>", TokenKind::Frame),
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
