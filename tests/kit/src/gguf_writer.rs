//! Writes GGUF files in memory, so that tests need no model: valid ones by default, and broken ones by overriding a field.
//!
//! Owns the layout of the format and nothing about what keys mean. It refuses nothing: a wrong count, type or offset is
//! written as it is given, since the tests of hostile files live on it.

pub const U8: u32 = 0;
pub const U16: u32 = 2;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;

/// Everything the file says, in the order of the file.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    pub magic: [u8; 4],
    pub version: u32,
    pub alignment: usize,
    /// Written instead of the true counts.
    pub n_tensors: Option<u64>,
    pub n_keys: Option<u64>,
    /// Key, value type, value as encoded.
    pub keys: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    /// Row length first.
    pub dims: Vec<u64>,
    pub type_id: u32,
    /// From the start of the data; `None` places it behind the tensor before.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        GgufWriter {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            n_tensors: None,
            n_keys: None,
            keys: Vec::new(),
            tensors: Vec::new(),
        }
    }
}

impl GgufWriter {
    pub fn new() -> Self {
        Self::default()
    }

    /// A value of any type, already encoded.
    pub fn raw(&mut self, key: &str, value_type: u32, value: Vec<u8>) -> &mut Self {
        self.keys.push((key.to_owned(), value_type, value));
        self
    }

    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, U32, value.to_le_bytes().to_vec())
    }

    pub fn i32(&mut self, key: &str, value: i32) -> &mut Self {
        self.raw(key, I32, value.to_le_bytes().to_vec())
    }

    pub fn u64(&mut self, key: &str, value: u64) -> &mut Self {
        self.raw(key, U64, value.to_le_bytes().to_vec())
    }

    pub fn u8(&mut self, key: &str, value: u8) -> &mut Self {
        self.raw(key, U8, vec![value])
    }

    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, F32, value.to_le_bytes().to_vec())
    }

    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, BOOL, vec![value.into()])
    }

    pub fn str(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, STRING, string(value.as_bytes()))
    }

    pub fn strs(&mut self, key: &str, values: &[&str]) -> &mut Self {
        let elems: Vec<u8> = values.iter().flat_map(|value| string(value.as_bytes())).collect();
        self.raw(key, ARRAY, array(STRING, values.len() as u64, &elems))
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let elems: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key, ARRAY, array(I32, values.len() as u64, &elems))
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        let elems: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key, ARRAY, array(F32, values.len() as u64, &elems))
    }

    /// Row length first in `dims`; `type_id` is ggml's.
    pub fn tensor(&mut self, name: &str, dims: &[u64], type_id: u32, data: Vec<u8>) -> &mut Self {
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), type_id, offset: None, data });
        self
    }

    /// A tensor of f32 (type 0).
    pub fn tensor_f32(&mut self, name: &str, dims: &[u64], values: &[f32]) -> &mut Self {
        self.tensor(name, dims, 0, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Header, metadata and directory: what comes before the padding and the data.
    pub fn head(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value_type, value) in &self.keys {
            out.extend(string(key.as_bytes()));
            out.extend(value_type.to_le_bytes());
            out.extend(value);
        }
        let mut next = 0;
        for tensor in &self.tensors {
            out.extend(string(tensor.name.as_bytes()));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next += tensor.data.len().next_multiple_of(self.alignment) as u64;
        }
        out
    }

    /// The parts of the same model split in `n`: the first with all metadata and, as llama.cpp's splitter can, no tensor; the
    /// others with their numbers alone, each with a run of the tensors.
    pub fn split(&self, n: usize) -> Vec<GgufWriter> {
        let total = self.tensors.len();
        let part = |no: usize| {
            let mut part =
                GgufWriter { keys: if no == 0 { self.keys.clone() } else { Vec::new() }, tensors: Vec::new(), ..self.clone() };
            part.raw("split.no", U16, (no as u16).to_le_bytes().to_vec());
            part.raw("split.count", U16, (n as u16).to_le_bytes().to_vec());
            part.raw("split.tensors.count", I32, (total as i32).to_le_bytes().to_vec());
            let run = total.div_ceil(n - 1);
            part.tensors =
                self.tensors.iter().skip(run * no.wrapping_sub(1).min(n)).take(if no == 0 { 0 } else { run }).cloned().collect();
            part
        };
        (0..n).map(part).collect()
    }

    /// The whole file. The last tensor is not padded, so that a file one byte shorter is cut short.
    pub fn build(&self) -> Vec<u8> {
        let mut out = self.head();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

/// A length-prefixed string.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// Element type, length, elements as encoded.
pub fn array(elem_type: u32, len: u64, elems: &[u8]) -> Vec<u8> {
    [&elem_type.to_le_bytes()[..], &len.to_le_bytes(), elems].concat()
}

/// A file of tests/data taken apart into keys and tensors.
pub fn take_apart(name: &str) -> GgufWriter {
    let bytes = std::fs::read(crate::data(name)).expect(name);
    let index = lowkey::gguf::parse(&bytes).expect(name);
    let mut at = 24;
    let mut file = GgufWriter::new();
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight")) as usize;
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
    let width = |ty: u32| [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][ty as usize];
    for (key, _) in index.metadata(&bytes) {
        at += 8 + key.len();
        let ty = u32_at(at);
        at += 4;
        let start = at;
        match ty {
            STRING => at += 8 + u64_at(at),
            ARRAY => {
                let (elem, n) = (u32_at(at), u64_at(at + 4));
                at += 12;
                for _ in 0..n {
                    at += if elem == STRING { 8 + u64_at(at) } else { width(elem) };
                }
            }
            scalar => at += width(scalar),
        }
        file.raw(key, ty, bytes[start..at].to_vec());
    }
    for t in index.tensors() {
        file.tensor(&t.name, t.shape(), t.ty.id(), bytes[t.offset as usize..][..t.n_bytes as usize].to_vec());
    }
    file
}
