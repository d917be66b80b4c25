//! Metadata values, read from the mapped bytes when asked for: scalars by value, strings and arrays as borrowed views.
//!
//! One function, [`read_value`], knows the encoding and checks it; the parser calls it over every value at open, and the
//! views call it again as they go, so a view never trusts a length that it has not just compared with the bytes it has.
//! Refuses: unknown types, strings that are not UTF-8, truth values other than 0 and 1, deep nesting, absurd counts.

use std::fmt;

use super::cursor::{Cursor, Short};
use super::error::{GgufError, Name};

/// The types of the format, by id. <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

/// Each type by its id: its name, and the bytes of one value; of strings and arrays the fewest they take, the length fields.
const TYPES: [(ValueType, &str, u64); 13] = {
    use ValueType::*;
    [
        (U8, "u8", 1),
        (I8, "i8", 1),
        (U16, "u16", 2),
        (I16, "i16", 2),
        (U32, "u32", 4),
        (I32, "i32", 4),
        (F32, "f32", 4),
        (Bool, "bool", 1),
        (Str, "string", 8),
        (Array, "array", 12),
        (U64, "u64", 8),
        (I64, "i64", 8),
        (F64, "f64", 8),
    ]
};

impl ValueType {
    pub fn from_id(id: u32) -> Option<ValueType> {
        TYPES.get(usize::try_from(id).ok()?).map(|ty| ty.0)
    }

    pub fn name(self) -> &'static str {
        TYPES[self as usize].1
    }

    pub(super) fn min_bytes(self) -> u64 {
        TYPES[self as usize].2
    }
}

/// One metadata value; strings and arrays borrow from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(&'a str),
    Array(ArrayView<'a>),
}

impl<'a> Value<'a> {
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// `u32`, `string`, `array of f32`.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", array.elem.name()),
            scalar => scalar.value_type().name().to_owned(),
        }
    }

    /// The value of any integer type.
    pub fn as_int(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// The value of either float type; an f64 is rounded.
    pub fn as_float(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// The same type and the same bytes: NaN is NaN.
    pub(super) fn is_same(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::F32(a), Value::F32(b)) => a.to_bits() == b.to_bits(),
            (Value::F64(a), Value::F64(b)) => a.to_bits() == b.to_bits(),
            (a, b) => a == b,
        }
    }

    fn wrong(&self, key: &str, wanted: &'static str) -> GgufError {
        GgufError::WrongType { key: key.to_owned(), wanted, found: self.type_name() }
    }

    pub fn to_u32(self, key: &str) -> Result<u32, GgufError> {
        let found = self.as_int().ok_or_else(|| self.wrong(key, "u32"))?;
        u32::try_from(found).map_err(|_| GgufError::IntRange { key: key.to_owned(), index: None, wanted: "u32", found })
    }

    pub fn to_f32(self, key: &str) -> Result<f32, GgufError> {
        self.as_float().ok_or_else(|| self.wrong(key, "f32"))
    }

    pub fn to_bool(self, key: &str) -> Result<bool, GgufError> {
        if let Value::Bool(v) = self { Ok(v) } else { Err(self.wrong(key, "bool")) }
    }

    pub fn to_str(self, key: &str) -> Result<&'a str, GgufError> {
        if let Value::Str(v) = self { Ok(v) } else { Err(self.wrong(key, "string")) }
    }

    pub fn to_strings(self, key: &str) -> Result<StringArray<'a>, GgufError> {
        match self {
            Value::Array(array) if array.elem == ValueType::Str => Ok(StringArray { array }),
            _ => Err(self.wrong(key, "array of string")),
        }
    }

    /// An array of any integer type, every value of which fits.
    pub fn to_i32s(self, key: &str) -> Result<impl ExactSizeIterator<Item = i32> + Clone + use<'a>, GgufError> {
        self.to_ints(key, "i32", "array of i32")
    }

    /// An array of any integer type, every value of which fits.
    pub fn to_u32s(self, key: &str) -> Result<impl ExactSizeIterator<Item = u32> + Clone + use<'a>, GgufError> {
        self.to_ints(key, "u32", "array of u32")
    }

    fn to_ints<T: TryFrom<i128> + Default>(
        self,
        key: &str,
        elem: &'static str,
        wanted: &'static str,
    ) -> Result<impl ExactSizeIterator<Item = T> + Clone + use<'a, T>, GgufError> {
        let Value::Array(array) = self else { return Err(self.wrong(key, wanted)) };
        if !matches!(array.elem.name().as_bytes()[0], b'u' | b'i') {
            return Err(self.wrong(key, wanted));
        }
        for (i, value) in array.iter().enumerate() {
            let found = value.as_int().ok_or_else(|| self.wrong(key, wanted))?;
            if T::try_from(found).is_err() {
                return Err(GgufError::IntRange { key: key.to_owned(), index: Some(i), wanted: elem, found });
            }
        }
        // Every value has just been seen to fit; the default stands only for a file rewritten since.
        Ok(array.iter().map(|value| value.as_int().and_then(|v| T::try_from(v).ok()).unwrap_or_default()))
    }

    pub fn to_f32s(self, key: &str) -> Result<impl ExactSizeIterator<Item = f32> + Clone + use<'a>, GgufError> {
        match self {
            // The element type makes every value a float.
            Value::Array(array) if matches!(array.elem, ValueType::F32 | ValueType::F64) => {
                Ok(array.iter().map(|value| value.as_float().unwrap_or_default()))
            }
            _ => Err(self.wrong(key, "array of f32")),
        }
    }
}

/// An array in the file: element type, length, and the bytes of the elements.
#[derive(Clone, Copy, PartialEq)]
pub struct ArrayView<'a> {
    elem: ValueType,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> ArrayView<'a> {
    pub fn elem_type(&self) -> ValueType {
        self.elem
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> ArrayIter<'a> {
        ArrayIter { cur: Cursor::new(self.bytes), elem: self.elem, left: self.len }
    }
}

/// Without the elements: an array of tokens has a quarter of a million.
impl fmt::Debug for ArrayView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.elem.name(), self.len)
    }
}

#[derive(Clone, Debug)]
pub struct ArrayIter<'a> {
    cur: Cursor<'a>,
    elem: ValueType,
    left: usize,
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The parser has read the same bytes without an error, so this ends early only for a file rewritten since.
        read_value(&mut self.cur, self.elem, Place { key: "", index: None }, 1).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for ArrayIter<'_> {}

/// An array of strings, all of them UTF-8 (the parser has refused a file with any other).
#[derive(Clone, Copy, Debug)]
pub struct StringArray<'a> {
    array: ArrayView<'a>,
}

impl<'a> StringArray<'a> {
    pub fn len(&self) -> usize {
        self.array.len
    }

    pub fn is_empty(&self) -> bool {
        self.array.len == 0
    }

    /// Bytes of all strings together, without reading them: each stands behind a length of eight bytes.
    pub fn text_bytes(&self) -> usize {
        self.array.bytes.len().saturating_sub(8 * self.array.len)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a str> + Clone + use<'a> {
        self.array.iter().map(|value| if let Value::Str(text) = value { text } else { "" })
    }

    /// Bytes of each string, which are not read: for those that only count.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + use<'a> {
        let mut cur = Cursor::new(self.array.bytes);
        std::iter::from_fn(move || {
            let n_bytes = cur.u64().ok()?;
            cur.take(n_bytes).ok().map(<[u8]>::len)
        })
    }
}

/// What is being read, for messages.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub key: &'a str,
    pub index: Option<usize>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metadata key {}", Name(self.key))?;
        self.index.map_or(Ok(()), |i| write!(f, ", element {i}"))
    }
}

/// Arrays within arrays are allowed by the format and used by no known model; four levels bound the recursion.
const MAX_DEPTH: u32 = 4;

/// Reads the value of type `ty` under the cursor and leaves the cursor behind it. Offsets in errors count from the start
/// of the cursor's slice.
pub(super) fn read_value<'a>(cur: &mut Cursor<'a>, ty: ValueType, place: Place<'_>, depth: u32) -> Result<Value<'a>, GgufError> {
    let end = cur.at() as u64 + cur.left();
    let short = |s: Short| GgufError::Truncated { what: place.to_string(), at: s.at, need: s.need, file_bytes: end };
    Ok(match ty {
        ValueType::U8 => Value::U8(cur.u8().map_err(short)?),
        ValueType::I8 => Value::I8(cur.i8().map_err(short)?),
        ValueType::U16 => Value::U16(cur.u16().map_err(short)?),
        ValueType::I16 => Value::I16(cur.i16().map_err(short)?),
        ValueType::U32 => Value::U32(cur.u32().map_err(short)?),
        ValueType::I32 => Value::I32(cur.i32().map_err(short)?),
        ValueType::U64 => Value::U64(cur.u64().map_err(short)?),
        ValueType::I64 => Value::I64(cur.i64().map_err(short)?),
        ValueType::F32 => Value::F32(cur.f32().map_err(short)?),
        ValueType::F64 => Value::F64(cur.f64().map_err(short)?),
        ValueType::Bool => {
            let at = cur.at() as u64;
            match cur.u8().map_err(short)? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                found => return Err(GgufError::Bool { what: place.to_string(), at, found }),
            }
        }
        ValueType::Str => {
            let len = cur.u64().map_err(short)?;
            let at = cur.at() as u64;
            let text = cur.take(len).map_err(short)?;
            Value::Str(std::str::from_utf8(text).map_err(|_| GgufError::Utf8 { what: place.to_string(), at })?)
        }
        ValueType::Array => Value::Array(read_array(cur, place, depth)?),
    })
}

/// The element type and length that open an array; the length is one that the rest of the bytes have room for.
fn read_array_head(cur: &mut Cursor<'_>, place: Place<'_>) -> Result<(ValueType, usize), GgufError> {
    let end = cur.at() as u64 + cur.left();
    let short = |s: Short| GgufError::Truncated { what: place.to_string(), at: s.at, need: s.need, file_bytes: end };
    let at = cur.at() as u64;
    let id = cur.u32().map_err(short)?;
    let elem = ValueType::from_id(id).ok_or_else(|| GgufError::ValueType { what: format!("{place}, an array,"), at, id })?;
    let at = cur.at() as u64;
    let found = cur.u64().map_err(short)?;
    let room = cur.left() / elem.min_bytes();
    let count = || GgufError::Count { what: format!("the array length of {place}"), at, found, room };
    match usize::try_from(found) {
        Ok(len) if found <= room => Ok((elem, len)),
        _ => Err(count()),
    }
}

fn read_array<'a>(cur: &mut Cursor<'a>, place: Place<'_>, depth: u32) -> Result<ArrayView<'a>, GgufError> {
    if depth >= MAX_DEPTH {
        return Err(GgufError::Depth { key: place.key.to_owned(), max: MAX_DEPTH });
    }
    let (elem, len) = read_array_head(cur, place)?;
    let start = cur.clone();
    match elem {
        ValueType::Str | ValueType::Array | ValueType::Bool => {
            for i in 0..len {
                read_value(cur, elem, Place { key: place.key, index: Some(i) }, depth + 1)?;
            }
        }
        // Any bytes are a number, and the head has compared the length with what is left.
        _ => {
            let need = len as u64 * elem.min_bytes();
            let at = cur.at() as u64;
            let file_bytes = at + cur.left();
            cur.take(need).map_err(|s| GgufError::Truncated { what: place.to_string(), at, need: s.need, file_bytes })?;
        }
    }
    let n_bytes = cur.at() - start.at();
    let bytes = start.clone().take(n_bytes as u64).unwrap_or_default();
    Ok(ArrayView { elem, len, bytes })
}

/// Reads a value whose bytes the parser has already read once: an array is not walked again. `None` only for a file
/// rewritten since.
pub(super) fn reread_value(bytes: &[u8], ty: ValueType) -> Option<Value<'_>> {
    let place = Place { key: "", index: None };
    let mut cur = Cursor::new(bytes);
    if ty != ValueType::Array {
        return read_value(&mut cur, ty, place, 0).ok();
    }
    let (elem, len) = read_array_head(&mut cur, place).ok()?;
    Some(Value::Array(ArrayView { elem, len, bytes: bytes.get(cur.at()..)? }))
}
