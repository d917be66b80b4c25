//! Byte-level byte-pair encoding: words by the pre-tokenizer, then merges within them.

use super::bpe::Bpe;
use super::bytes::BYTE_CHARS;
use super::ids::Ids;
use super::library_bpe::LibraryBpe;
use super::pretokenizer::PreTokenizer;
use super::text_table::NONE;
use super::windows::{Windows, WordMerge, work_bytes};
use crate::error::Result;
use crate::gguf::{GgufFile, StringArray};

/// What the crate `tokenizers` may take of memory: above it tables do, in a tenth.
const LIBRARY_BYTES: u64 = 24 << 20;

pub struct Words {
    merges: Merges,
    pre: PreTokenizer,
}

enum Merges {
    Library(Box<LibraryBpe>),
    Tables(Box<Bpe>),
}

/// Working memory for the length of one text.
#[derive(Default)]
pub struct Work {
    library: Windows<LibraryBpe>,
    tables: Windows<Bpe>,
    spelled: String,
}

impl Words {
    /// `library`: whether the crate merges; `None` lets the vocabulary's size say.
    pub fn from_gguf(file: &GgufFile, tokens: &StringArray<'_>, pre: PreTokenizer, library: Option<bool>) -> Result<Words> {
        let merges = match library.map_or_else(|| by_library(file, tokens), Ok)? {
            true => Merges::Library(Box::new(LibraryBpe::from_gguf(file, tokens)?)),
            false => Merges::Tables(Box::new(Bpe::from_gguf(file, tokens, pre.ignore_merges())?)),
        };
        Ok(Words { merges, pre })
    }

    /// Bytes of `from_gguf` at its highest point, from above.
    pub fn plan_bytes(file: &GgufFile, tokens: &StringArray<'_>) -> Result<u64> {
        match by_library(file, tokens)? {
            true => LibraryBpe::plan_bytes(file, tokens),
            false => Bpe::plan_bytes(file, tokens),
        }
    }

    /// Bytes that the words of such a text take, from above.
    pub fn work_bytes(&self, n_text_bytes: usize) -> usize {
        match &self.merges {
            Merges::Library(bpe) => work_bytes(&**bpe, n_text_bytes),
            Merges::Tables(bpe) => work_bytes(&**bpe, n_text_bytes),
        }
    }

    pub fn encode(&self, text: &str, work: &mut Work, ids: &mut Ids<'_>) -> Result<()> {
        let Work { library, tables, spelled } = work;
        self.pre.split(text, &mut |word| match &self.merges {
            Merges::Library(bpe) => self.encode_word(&**bpe, word, library, spelled, ids),
            Merges::Tables(bpe) => self.encode_word(&**bpe, word, tables, spelled, ids),
        })
    }

    fn encode_word<M: WordMerge>(
        &self,
        bpe: &M,
        word: &str,
        windows: &mut Windows<M>,
        spelled: &mut String,
        ids: &mut Ids<'_>,
    ) -> Result<()> {
        if self.pre.ignore_merges() && word.len() <= bpe.longest() {
            spelled.clear();
            spelled.extend(word.bytes().map(|byte| BYTE_CHARS[byte as usize]));
            if let Some(id) = bpe.token(spelled) {
                ids.push(id);
                return Ok(());
            }
        }
        // No merge reaches across the place of a byte that has no token.
        for run in word.as_bytes().split(|&byte| bpe.byte_id(byte) == NONE) {
            match run {
                [] => {}
                &[byte] => ids.push(bpe.byte_id(byte)),
                _ => windows.merge_bytes(bpe, run, false, |at| at, &mut |part, _| ids.push(part.id))?,
            }
        }
        Ok(())
    }
}

/// Whether the crate merges.
fn by_library(file: &GgufFile, tokens: &StringArray<'_>) -> Result<bool> {
    Ok(LibraryBpe::plan_bytes(file, tokens)? <= LIBRARY_BYTES)
}
