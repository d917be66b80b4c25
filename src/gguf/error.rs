//! What can be wrong with the bytes of a GGUF file, and with what a reader asks of it.
//!
//! Each variant holds the facts (byte offset, key or tensor, expected, actual); `Display` makes them one line that ends
//! with what to do. The path is not here: [`crate::Error::Gguf`] puts it in front. Names come from the file, so they are
//! escaped and cut before they are printed.

use std::fmt;

use super::quant::GgmlType;

#[derive(Clone, Debug, PartialEq)]
pub enum GgufError {
    /// The first four bytes, `start`, are not `GGUF`; `what` the file is instead.
    Foreign {
        start: Vec<u8>,
        what: &'static str,
        advice: &'static str,
    },
    /// The file was written for a big-endian machine.
    BigEndian,
    /// Not version 2 or 3.
    Version {
        found: u32,
    },
    /// The file ends inside `what`, which needs `need` bytes from byte `at`.
    Truncated {
        what: String,
        at: u64,
        need: u64,
        file_bytes: u64,
    },
    /// A count that the rest of the file has no room for.
    Count {
        what: String,
        at: u64,
        found: u64,
        room: u64,
    },
    /// A name longer than the format allows.
    NameLength {
        what: String,
        at: u64,
        found: u64,
        max: u64,
    },
    /// A string that is not UTF-8.
    Utf8 {
        what: String,
        at: u64,
    },
    /// A metadata value whose type is none of the format's.
    ValueType {
        what: String,
        at: u64,
        id: u32,
    },
    /// A truth value that is neither 0 nor 1.
    Bool {
        what: String,
        at: u64,
        found: u8,
    },
    /// Arrays within arrays, deeper than is read.
    Depth {
        key: String,
        max: u32,
    },
    DuplicateKey {
        key: String,
    },
    DuplicateTensor {
        tensor: String,
    },
    /// `general.alignment` is not a power of two of at least 8.
    Alignment {
        found: u64,
    },
    NDims {
        tensor: String,
        at: u64,
        found: u32,
    },
    ZeroDim {
        tensor: String,
        dim: usize,
    },
    /// The product of the dimensions, or their bytes, is more than any file holds.
    Size {
        tensor: String,
        dims: Vec<u64>,
    },
    /// A tensor type that is none of ggml's.
    TypeId {
        tensor: String,
        at: u64,
        id: u32,
    },
    /// The row length is no multiple of the block.
    RowLength {
        tensor: String,
        ty: GgmlType,
        row_len: u64,
    },
    Misaligned {
        tensor: String,
        offset: u64,
        alignment: u64,
    },
    OutOfRange {
        tensor: String,
        end: u64,
        file_bytes: u64,
    },
    Overlap {
        first: String,
        second: String,
        at: u64,
    },
    /// A tensor of type Q2_0 whose blocks are those of files from before llama.cpp had the type.
    OlderQ2_0 {
        tensor: String,
    },
    /// A key that a reader needs.
    MissingKey {
        key: String,
        wanted: &'static str,
    },
    /// A key with a value of another type.
    WrongType {
        key: String,
        wanted: &'static str,
        found: String,
    },
    /// An integer that does not fit where it is wanted; `index` within an array.
    IntRange {
        key: String,
        index: Option<usize>,
        wanted: &'static str,
        found: i128,
    },
    /// A tensor that a reader needs.
    MissingTensor {
        tensor: String,
    },
    /// A tensor with other dimensions than the metadata implies, row length first.
    Shape {
        tensor: String,
        wanted: Vec<u64>,
        found: Vec<u64>,
    },
}

const DAMAGED: &str = "the file is damaged; fetch it again";
const INCOMPLETE: &str = "the download is incomplete; fetch it again";
const CONVERT: &str = "convert the model again with a current tool";

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use GgufError::*;
        match self {
            Foreign { start, what, advice } => {
                write!(f, "not a GGUF file but {what} (it starts with \"{}\"): {advice}", start.escape_ascii())
            }
            BigEndian => f.write_str("a big-endian GGUF file, and only little-endian ones are read: fetch the little-endian one"),
            Version { found: 1 } => write!(f, "GGUF version 1, and only 2 and 3 are read: {CONVERT}"),
            Version { found } => {
                write!(f, "GGUF version {found} at byte 4, and only 2 and 3 are read: use a newer lowkey or fetch another file")
            }
            Truncated { what, at, need, file_bytes } => {
                write!(f, "{what} needs {need} bytes from byte {at}, file has {file_bytes}: {INCOMPLETE}")
            }
            Count { what, at, found, room } => {
                write!(
                    f,
                    "{what} is {found} at byte {at}, and the rest of the file has room for {room}: the file is cut short or damaged; fetch it again"
                )
            }
            NameLength { what, at, found, max } => {
                write!(f, "{what} has a name of {found} bytes at byte {at}, and 1 to {max} are allowed: {DAMAGED}")
            }
            Utf8 { what, at } => write!(f, "{what} at byte {at} is not UTF-8: {CONVERT}"),
            ValueType { what, at, id } => {
                write!(f, "{what} has the unknown value type {id} at byte {at}, and 0 to 12 are known: {DAMAGED}")
            }
            Bool { what, at, found } => write!(f, "{what} is {found} at byte {at}, and a truth value is 0 or 1: {DAMAGED}"),
            Depth { key, max } => write!(f, "metadata key {} has arrays nested deeper than {max}: {CONVERT}", Name(key)),
            DuplicateKey { key } => write!(f, "metadata key {} is there twice: {CONVERT}", Name(key)),
            DuplicateTensor { tensor } => write!(f, "tensor {} is there twice: {CONVERT}", Name(tensor)),
            Alignment { found } => write!(f, "general.alignment is {found}, and a power of two from 8 up is wanted: {CONVERT}"),
            NDims { tensor, at, found } => {
                write!(f, "tensor {} has {found} dimensions at byte {at}, and 1 to 4 are allowed: {DAMAGED}", Name(tensor))
            }
            ZeroDim { tensor, dim } => write!(f, "tensor {} has dimension {dim} equal to 0: {CONVERT}", Name(tensor)),
            Size { tensor, dims } => {
                write!(f, "tensor {} of {} elements is larger than any file: {DAMAGED}", Name(tensor), Dims(dims))
            }
            TypeId { tensor, at, id } => type_id(f, tensor, *at, *id),
            RowLength { tensor, ty, row_len } => write!(
                f,
                "tensor {} has rows of {row_len} elements, and {} packs blocks of {}: {CONVERT}",
                Name(tensor),
                ty.name(),
                ty.block_elems()
            ),
            Misaligned { tensor, offset, alignment } => {
                write!(f, "tensor {} has offset {offset}, and a multiple of {alignment} is wanted: {CONVERT}", Name(tensor))
            }
            OutOfRange { tensor, end, file_bytes } => {
                write!(f, "tensor {} ends at byte {end}, file has {file_bytes}: {INCOMPLETE}", Name(tensor))
            }
            Overlap { first, second, at } => {
                write!(f, "tensor {} overlaps tensor {} at byte {at}: {DAMAGED}", Name(second), Name(first))
            }
            OlderQ2_0 { tensor } => write!(
                f,
                "tensor {} has blocks of 128 elements in 34 bytes, which files called Q2_0 had before llama.cpp had that type, of 64 in 18: \
                 use the file of the same model with g64 in its name, or a later one",
                Name(tensor)
            ),
            MissingKey { key, wanted } => write!(f, "metadata key {} ({wanted}) is missing: {CONVERT}", Name(key)),
            WrongType { key, wanted, found } => {
                write!(f, "metadata key {} is of type {found}, and {wanted} is wanted: {CONVERT}", Name(key))
            }
            IntRange { key, index, wanted, found } => {
                let place = index.map_or(String::new(), |i| format!(", element {i},"));
                write!(f, "metadata key {}{place} is {found}, which does not fit {wanted}: {CONVERT}", Name(key))
            }
            MissingTensor { tensor } => write!(f, "tensor {} is missing: fetch a complete model file", Name(tensor)),
            Shape { tensor, wanted, found } => {
                let (found, wanted) = (Dims(found), Dims(wanted));
                write!(f, "tensor {} has shape {found}, and the metadata asks for {wanted}: {CONVERT}", Name(tensor))
            }
        }
    }
}

impl std::error::Error for GgufError {}

impl GgufError {
    /// Whether bytes of the file are wrong or missing, so that nothing helps but to fetch it again.
    pub fn wants_fetching(&self) -> bool {
        use GgufError::*;
        matches!(
            self,
            Foreign { .. }
                | Truncated { .. }
                | Count { .. }
                | NameLength { .. }
                | ValueType { .. }
                | Bool { .. }
                | NDims { .. }
                | Size { .. }
                | OutOfRange { .. }
                | Overlap { .. }
        )
    }
}

/// Ids that ggml has given out and withdrawn are named, since files with them are still about.
fn type_id(f: &mut fmt::Formatter<'_>, tensor: &str, at: u64, id: u32) -> fmt::Result {
    let withdrawn = match id {
        4 => Some(("Q4_2", "Q4_0")),
        5 => Some(("Q4_3", "Q4_1")),
        31 => Some(("Q4_0_4_4", "Q4_0")),
        32 => Some(("Q4_0_4_8", "Q4_0")),
        33 => Some(("Q4_0_8_8", "Q4_0")),
        36 => Some(("IQ4_NL_4_4", "IQ4_NL")),
        37 => Some(("IQ4_NL_4_8", "IQ4_NL")),
        38 => Some(("IQ4_NL_8_8", "IQ4_NL")),
        _ => None,
    };
    if matches!(id, 142 | 143) {
        return write!(
            f,
            "tensor {} has type {id} at byte {at}, which a fork of llama.cpp gave to Q2_0 of its own: use the file of the same model that is \
             with g64 in its name",
            Name(tensor)
        );
    }
    match withdrawn {
        Some((old, new)) => {
            write!(
                f,
                "tensor {} has type {id} ({old}) at byte {at}, which ggml has withdrawn: quantise the model again as {new}",
                Name(tensor)
            )
        }
        None => write!(
            f,
            "tensor {} has the unknown type {id} at byte {at}: use a newer lowkey or a model in another quantisation",
            Name(tensor)
        ),
    }
}

/// A name from the file on one line: control characters escaped, cut after 80 characters.
pub(super) struct Name<'a>(pub &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(80) {
            match c {
                '"' | '\'' => write!(f, "{c}")?,
                _ => write!(f, "{}", c.escape_debug())?,
            }
        }
        if chars.next().is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// `576x49152`: row length first.
struct Dims<'a>(&'a [u64]);

impl fmt::Display for Dims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { "x" })?;
        }
        Ok(())
    }
}
