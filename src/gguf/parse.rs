//! From the bytes of a file to an index of its keys and tensors, every claim of the file checked before it is used.
//!
//! Owns [`parse`], a pure function, so that tests and the fuzzer need no file. It allocates only as it reads, so what it
//! allocates is bounded by a small multiple of the bytes it has read. Layout: header, metadata, tensor directory, padding
//! to `general.alignment`, tensor data. <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
//! Refuses: version 1, big-endian files, counts without room, duplicates, tensors that are misaligned, out of range,
//! overlapping or not whole blocks.

use super::cursor::{Cursor, Short};
use super::error::{GgufError, Name};
use super::foreign;
use super::quant::GgmlType;
use super::value::{Place, Value, ValueType, read_value, reread_value};

const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_TENSOR_NAME_BYTES: u64 = 64;
/// Name length, one byte of name, value type, one byte of value.
const MIN_KEY_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Name length, one byte of name, number of dimensions, one dimension, type, offset.
const MIN_TENSOR_ENTRY_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// One tensor of the directory, its bytes known to be in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    pub ty: GgmlType,
    /// Row length first; dimensions past `n_dims` are 1.
    pub dims: [u64; 4],
    pub n_dims: u32,
    /// Which file of a split model it is in, from 0.
    pub part: u32,
    /// From the start of that file.
    pub offset: u64,
    pub n_bytes: u64,
}

// The casts below lose nothing: the parser refuses a tensor whose elements do not fit `usize`.
impl TensorInfo {
    /// Elements in a row.
    pub fn row_len(&self) -> usize {
        self.dims[0] as usize
    }

    pub fn n_rows(&self) -> usize {
        (self.dims[1] * self.dims[2] * self.dims[3]) as usize
    }

    pub fn n_elems(&self) -> usize {
        self.row_len() * self.n_rows()
    }

    /// Bytes of a row; rows are contiguous.
    pub fn row_bytes(&self) -> usize {
        self.row_len() / self.ty.block_elems() * self.ty.block_bytes()
    }

    /// The dimensions that the file gives, row length first.
    pub fn shape(&self) -> &[u64] {
        &self.dims[..self.n_dims as usize]
    }
}

/// A metadata key and where its value is.
#[derive(Clone, Debug)]
struct KeyEntry {
    key: String,
    ty: ValueType,
    /// The value's bytes in the file.
    start: usize,
    end: usize,
}

/// What a file holds: owned names, byte spans, nothing else.
#[derive(Clone, Debug)]
pub struct Index {
    version: u32,
    alignment: u64,
    keys: Vec<KeyEntry>,
    /// Indices of `keys` in the order of their names, for look-up; likewise for tensors.
    keys_sorted: Vec<usize>,
    tensors: Vec<TensorInfo>,
    tensors_sorted: Vec<usize>,
}

impl Index {
    pub fn version(&self) -> u32 {
        self.version
    }

    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// In the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let i = self.tensors_sorted.binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[self.tensors_sorted[i]])
    }

    /// Takes up the tensors of another part of a split model, behind its own.
    pub(super) fn absorb(&mut self, other: Index, part: u32) -> Result<(), GgufError> {
        self.tensors.extend(other.tensors.into_iter().map(|tensor| TensorInfo { part, ..tensor }));
        self.tensors_sorted =
            sorted_unique(&self.tensors, |tensor| &tensor.name).map_err(|tensor| GgufError::DuplicateTensor { tensor })?;
        Ok(())
    }

    /// Every key and its value, in the order of the file. `bytes` are those that were parsed.
    pub fn metadata<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.keys.iter().filter_map(|entry| Some((entry.key.as_str(), entry.value(bytes)?)))
    }

    /// The value of `key`. `bytes` are those that were parsed.
    pub fn get<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Value<'a>> {
        let i = self.keys_sorted.binary_search_by(|&i| self.keys[i].key.as_str().cmp(key)).ok()?;
        self.keys[self.keys_sorted[i]].value(bytes)
    }
}

impl KeyEntry {
    fn value<'a>(&self, bytes: &'a [u8]) -> Option<Value<'a>> {
        reread_value(bytes.get(self.start..self.end)?, self.ty)
    }
}

/// Indexes the bytes of a whole file.
pub fn parse(bytes: &[u8]) -> Result<Index, GgufError> {
    let mut cur = Cursor::new(bytes);
    let header = read_header(&mut cur, bytes)?;

    let mut keys = Vec::new();
    for i in 0..header.n_keys {
        keys.push(read_key(&mut cur, i)?);
    }
    let keys_sorted = sorted_unique(&keys, |entry| &entry.key).map_err(|key| GgufError::DuplicateKey { key })?;

    let mut index = Index {
        version: header.version,
        alignment: DEFAULT_ALIGNMENT,
        keys,
        keys_sorted,
        tensors: Vec::new(),
        tensors_sorted: Vec::new(),
    };
    if let Some(value) = index.get(bytes, "general.alignment") {
        let found = value.to_u32("general.alignment")?.into();
        if found < 8 || !u64::is_power_of_two(found) {
            return Err(GgufError::Alignment { found });
        }
        index.alignment = found;
    }

    // The directory counts what is left of the file a second time: metadata may have taken the room.
    check_count("the number of tensors", 8, header.n_tensors, cur.left() / MIN_TENSOR_ENTRY_BYTES)?;
    for i in 0..header.n_tensors {
        index.tensors.push(read_tensor(&mut cur, i, index.alignment)?);
    }
    index.tensors_sorted =
        sorted_unique(&index.tensors, |tensor| &tensor.name).map_err(|tensor| GgufError::DuplicateTensor { tensor })?;

    let file_bytes = bytes.len() as u64;
    place_tensors(&mut index.tensors, cur.at() as u64, index.alignment, file_bytes)?;
    Ok(index)
}

struct Header {
    version: u32,
    n_tensors: u64,
    n_keys: u64,
}

fn read_header(cur: &mut Cursor<'_>, bytes: &[u8]) -> Result<Header, GgufError> {
    let file_bytes = cur.left();
    let short = |s: Short| GgufError::Truncated { what: "the header".to_owned(), at: s.at, need: s.need, file_bytes };
    match cur.take(cur.left().min(4)).map_err(short)? {
        b"GGUF" => {}
        b"FUGG" => return Err(GgufError::BigEndian),
        start if b"GGUF".starts_with(start) => return Err(short(Short { at: 0, need: 4 })),
        _ => return Err(foreign::refusal(bytes)),
    }
    let version = cur.u32().map_err(short)?;
    match version {
        2 | 3 => {}
        // No version reaches 65536: a small number with its bytes reversed is a file of the other byte order.
        _ if version & 0xffff == 0 && version != 0 => return Err(GgufError::BigEndian),
        _ => return Err(GgufError::Version { found: version }),
    }
    let n_tensors = cur.u64().map_err(short)?;
    let n_keys = cur.u64().map_err(short)?;
    check_count("the number of tensors", 8, n_tensors, cur.left() / MIN_TENSOR_ENTRY_BYTES)?;
    check_count("the number of metadata keys", 16, n_keys, cur.left() / MIN_KEY_ENTRY_BYTES)?;
    Ok(Header { version, n_tensors, n_keys })
}

fn check_count(what: &str, at: u64, found: u64, room: u64) -> Result<(), GgufError> {
    if found > room {
        return Err(GgufError::Count { what: what.to_owned(), at, found, room });
    }
    Ok(())
}

/// A length-prefixed name of 1 to `max` bytes.
fn read_name(cur: &mut Cursor<'_>, what: impl Fn() -> String, max: u64) -> Result<String, GgufError> {
    let file_bytes = cur.at() as u64 + cur.left();
    let short = |s: Short| GgufError::Truncated { what: what(), at: s.at, need: s.need, file_bytes };
    let at = cur.at() as u64;
    let found = cur.u64().map_err(short)?;
    if found == 0 || found > max {
        return Err(GgufError::NameLength { what: what(), at, found, max });
    }
    let at = cur.at() as u64;
    let name = cur.take(found).map_err(short)?;
    let name = std::str::from_utf8(name).map_err(|_| GgufError::Utf8 { what: format!("the name of {}", what()), at })?;
    Ok(name.to_owned())
}

fn read_key(cur: &mut Cursor<'_>, i: u64) -> Result<KeyEntry, GgufError> {
    let file_bytes = cur.at() as u64 + cur.left();
    let key = read_name(cur, || format!("metadata entry {i}"), MAX_KEY_BYTES)?;
    let place = Place { key: &key, index: None };
    let at = cur.at() as u64;
    let id = cur.u32().map_err(|s| GgufError::Truncated { what: place.to_string(), at: s.at, need: s.need, file_bytes })?;
    let ty = ValueType::from_id(id).ok_or_else(|| GgufError::ValueType { what: place.to_string(), at, id })?;
    let start = cur.at();
    read_value(cur, ty, place, 0)?;
    Ok(KeyEntry { ty, start, end: cur.at(), key })
}

/// Reads one entry of the directory; `offset` is still the file's, from the start of the data.
fn read_tensor(cur: &mut Cursor<'_>, i: u64, alignment: u64) -> Result<TensorInfo, GgufError> {
    let file_bytes = cur.at() as u64 + cur.left();
    let tensor = read_name(cur, || format!("tensor entry {i}"), MAX_TENSOR_NAME_BYTES)?;
    let short = |s: Short| GgufError::Truncated {
        what: format!("the directory entry of tensor {}", Name(&tensor)),
        at: s.at,
        need: s.need,
        file_bytes,
    };
    let at = cur.at() as u64;
    let n_dims = cur.u32().map_err(short)?;
    if !(1..=4).contains(&n_dims) {
        return Err(GgufError::NDims { tensor, at, found: n_dims });
    }
    let mut dims = [1; 4];
    for dim in dims.iter_mut().take(n_dims as usize) {
        *dim = cur.u64().map_err(short)?;
    }
    let at = cur.at() as u64;
    let id = cur.u32().map_err(short)?;
    let offset = cur.u64().map_err(short)?;

    let ty = GgmlType::from_id(id).ok_or_else(|| GgufError::TypeId { tensor: tensor.clone(), at, id })?;
    if let Some(dim) = dims.iter().position(|&dim| dim == 0) {
        return Err(GgufError::ZeroDim { tensor, dim });
    }
    if dims[0] % ty.block_elems() as u64 != 0 {
        return Err(GgufError::RowLength { tensor, ty, row_len: dims[0] });
    }
    let Some(n_bytes) = tensor_bytes(ty, dims) else {
        return Err(GgufError::Size { tensor, dims: dims[..n_dims as usize].to_vec() });
    };
    if offset % alignment != 0 {
        return Err(GgufError::Misaligned { tensor, offset, alignment });
    }
    Ok(TensorInfo { name: tensor, ty, dims, n_dims, part: 0, offset, n_bytes })
}

/// `None` where the elements or the bytes overflow; `dims[0]` is whole blocks.
fn tensor_bytes(ty: GgmlType, dims: [u64; 4]) -> Option<u64> {
    let n_elems = dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim))?;
    usize::try_from(n_elems).ok()?;
    (n_elems / ty.block_elems() as u64).checked_mul(ty.block_bytes() as u64)
}

/// Turns offsets into positions in the file and checks that each tensor has bytes of its own.
fn place_tensors(tensors: &mut [TensorInfo], directory_end: u64, alignment: u64, file_bytes: u64) -> Result<(), GgufError> {
    // Both are at most the file's length and 2^32, so this rounds up without overflow.
    let data_start = directory_end.next_multiple_of(alignment);
    for tensor in tensors.iter_mut() {
        let start = data_start.checked_add(tensor.offset);
        let Some(end) = start.and_then(|start| start.checked_add(tensor.n_bytes)) else {
            return Err(GgufError::OutOfRange { tensor: tensor.name.clone(), end: u64::MAX, file_bytes });
        };
        if end > file_bytes {
            if is_older_q2_0(tensor, file_bytes.saturating_sub(end - tensor.n_bytes)) {
                return Err(GgufError::OlderQ2_0 { tensor: tensor.name.clone() });
            }
            return Err(GgufError::OutOfRange { tensor: tensor.name.clone(), end, file_bytes });
        }
        tensor.offset += data_start;
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].n_bytes > pair[1].offset {
            if is_older_q2_0(pair[0], pair[1].offset - pair[0].offset) {
                return Err(GgufError::OlderQ2_0 { tensor: pair[0].name.clone() });
            }
            let [first, second] = [pair[0].name.clone(), pair[1].name.clone()];
            return Err(GgufError::Overlap { first, second, at: pair[1].offset });
        }
    }
    Ok(())
}

/// Whether a tensor of type Q2_0 has room for blocks of 128 elements in 34 bytes, which files have from before that number meant 64 in
/// 18, and for no more.
fn is_older_q2_0(tensor: &TensorInfo, room: u64) -> bool {
    let n_elems = tensor.n_bytes / tensor.ty.block_bytes() as u64 * tensor.ty.block_elems() as u64;
    tensor.ty == GgmlType::Q2_0 && n_elems.is_multiple_of(128) && n_elems / 128 * 34 <= room
}

/// Indices of `items` in the order of their names, or a name that is there twice.
fn sorted_unique<T>(items: &[T], name: impl Fn(&T) -> &str) -> Result<Vec<usize>, String> {
    let mut sorted: Vec<usize> = (0..items.len()).collect();
    sorted.sort_by_key(|&i| name(&items[i]));
    match sorted.windows(2).find(|pair| name(&items[pair[0]]) == name(&items[pair[1]])) {
        Some(pair) => Err(name(&items[pair[0]]).to_owned()),
        None => Ok(sorted),
    }
}
