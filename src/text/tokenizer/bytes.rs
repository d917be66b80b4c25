//! The bytes that tokens stand for, in one table, and GPT-2's alphabet, in which byte-level vocabularies write bytes.

use super::spm::Spm;
use super::vocabulary::TokenKind;
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, StringArray};

/// The bytes of all tokens end to end, and where each begins and the last ends. Special tokens have their text.
pub struct ByteTable {
    bytes: Box<[u8]>,
    offsets: Box<[u32]>,
}

impl ByteTable {
    pub fn new(file: &GgufFile, tokens: &StringArray<'_>, kinds: &[TokenKind], is_spm: bool) -> Result<ByteTable> {
        let total = tokens.text_bytes();
        if u32::try_from(total).is_err() {
            let what = format!("tokenizer.ggml.tokens holds {total} bytes of text, more than 4 GiB: the file is damaged");
            return Err(Error::unsupported(file.path(), what));
        }
        let mut bytes = Vec::with_capacity(total);
        let mut offsets = Vec::with_capacity(tokens.len() + 1);
        offsets.push(0);
        for (text, kind) in tokens.iter().zip(kinds) {
            match kind {
                TokenKind::Control | TokenKind::Frame | TokenKind::UserDefined => bytes.extend_from_slice(text.as_bytes()),
                TokenKind::Unused => (),
                TokenKind::Byte if is_spm && Spm::byte_of(text).is_some() => bytes.extend(Spm::byte_of(text)),
                TokenKind::Normal | TokenKind::Byte if is_spm => Spm::push_shown(text, &mut bytes),
                TokenKind::Normal | TokenKind::Byte => text.chars().for_each(|c| push_byte_of(c, &mut bytes)),
            }
            offsets.push(bytes.len() as u32);
        }
        Ok(ByteTable { bytes: bytes.into_boxed_slice(), offsets: offsets.into_boxed_slice() })
    }

    pub fn n_tokens(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Bytes of a token of the vocabulary.
    pub fn of(&self, id: u32) -> &[u8] {
        &self.bytes[self.offsets[id as usize] as usize..self.offsets[id as usize + 1] as usize]
    }
}

/// GPT-2's alphabet: the character that stands for each byte. Printable bytes of Latin-1 stand for themselves, the others for the
/// characters from U+0100 on, in order.
pub const BYTE_CHARS: [char; 256] = {
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
#[path = "../../../tests/unit/text/tokenizer/bytes.rs"]
mod tests;
