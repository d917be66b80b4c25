//! Byte-pair encoding of characters, the tokenizer that GGUF calls `gemma4`: spaces are `▁`, as in SentencePiece's vocabularies, the
//! text is cut into runs of newlines and runs of others, and within a run neighbours are joined by the list of merges, from single
//! characters on. A run of newlines that is a token is taken whole. A character without a token becomes the tokens of its bytes. Ids
//! are those of llama.cpp.

use super::bpe::{self, Bpe};
use super::ids::{Ids, Part};
use super::spm::{SPACE, part_len, spell};
use super::text_table::NONE;
use super::windows::{Merge, Windows};
use crate::error::Result;
use crate::gguf::{GgufFile, StringArray};

pub struct CharBpe {
    merges: Bpe,
    /// The token of each byte, `<0x0A>`, or `NONE`: such bytes drop out of the text, as in llama.cpp.
    byte_ids: [u32; 256],
}

/// Stands for a character that is no token, and so in no merge.
const UNKNOWN: u32 = NONE - 1;

impl CharBpe {
    pub fn from_gguf(file: &GgufFile, tokens: &StringArray<'_>) -> Result<CharBpe> {
        let merges = Bpe::from_gguf(file, tokens, true)?;
        let mut byte_ids = [NONE; 256];
        for byte in 0..=255u8 {
            byte_ids[byte as usize] = merges.find(format!("<0x{byte:02X}>").as_bytes()).unwrap_or(NONE);
        }
        Ok(CharBpe { merges, byte_ids })
    }

    /// Bytes of `from_gguf` at its highest point, from above.
    pub fn plan_bytes(file: &GgufFile, tokens: &StringArray<'_>) -> Result<u64> {
        Bpe::plan_bytes(file, tokens)
    }

    /// Appends the ids of a text without special tokens.
    pub fn encode(&self, text: &str, windows: &mut Windows<CharBpe>, ids: &mut Ids<'_>) -> Result<()> {
        let mut rest = text;
        while let Some(first) = rest.bytes().next() {
            let is_line = first == b'\n';
            let end = rest.bytes().position(|byte| (byte == b'\n') != is_line).unwrap_or(rest.len());
            let (run, behind) = rest.split_at(end);
            rest = behind;
            match self.merges.find(run.as_bytes()).filter(|_| is_line) {
                Some(id) => ids.push(id),
                None => windows.merge(self, run, false, &mut |part, own| self.push(part, own, ids))?,
            }
        }
        Ok(())
    }

    fn push(&self, part: Part, own: &[u8], ids: &mut Ids<'_>) {
        if part.id != NONE {
            return ids.push(part.id);
        }
        let shown = if own == b" " { SPACE.as_bytes() } else { own };
        shown.iter().map(|&byte| self.byte_ids[byte as usize]).filter(|&id| id != NONE).for_each(|id| ids.push(id));
    }
}

/// Working memory.
#[derive(Default)]
pub struct Room {
    /// The window with its spaces as the vocabulary has them.
    spelled: String,
    /// Where each of its characters begins, and its end.
    starts: Vec<u32>,
    merging: bpe::Room,
}

impl Merge for CharBpe {
    type Room = Room;

    const WORK_BYTES: usize = 144;

    fn longest(&self) -> usize {
        self.merges.longest()
    }

    fn merge(&self, text: &[u8], _opens: bool, room: &mut Room, parts: &mut Vec<Part>) -> Result<()> {
        let text = std::str::from_utf8(text).expect("windows and parts end between characters");
        let Room { spelled, starts, merging } = room;
        spelled.clear();
        spell(text, spelled);
        starts.clear();
        starts.extend(spelled.char_indices().map(|(start, _)| start as u32).chain([spelled.len() as u32]));
        let chars = starts.windows(2).map(|ends| &spelled.as_bytes()[ends[0] as usize..ends[1] as usize]);
        self.merges.join(chars.map(|char| self.merges.find(char).unwrap_or(UNKNOWN)), merging, parts);
        // Lengths are in characters so far.
        let (mut rest, mut first) = (text, 0);
        for part in parts {
            let end = first + part.len as usize;
            let len = part_len(rest, (starts[end] - starts[first]) as usize);
            rest = &rest[len..];
            (*part, first) = (Part { id: if part.id == UNKNOWN { NONE } else { part.id }, len: len as u32 }, end);
        }
        Ok(())
    }
}
