//! GGUF model files, versions 2 and 3: mapped, indexed once, and read in place.
//!
//! Owns [`GgufFile`]: the map, or those of all parts of a split model, and an index of names and byte spans. Tensor data,
//! strings and arrays are never copied; they are slices of a map. A file that opens is sound: every claim in it has been
//! checked by [`parse`], so what is left to fail is what a reader asks for (a key that is missing or of another type).
//! Refuses to write files, and to know what keys mean: that is the model's business.

mod cursor;
mod error;
mod foreign;
mod parse;
pub mod quant;
mod split;
mod value;

use std::path::{Path, PathBuf};

pub use error::GgufError;
pub use parse::{Index, TensorInfo, parse};
pub use quant::GgmlType;
pub use value::{ArrayIter, ArrayView, StringArray, Value, ValueType};

use crate::mem::map::Map;
use crate::{Error, Result};

/// An open model. All borrows of it last as long as it does; it is `Sync`, so threads share it.
#[derive(Debug)]
pub struct GgufFile {
    /// Never empty; the first has the metadata. More than one are the parts of a split model, in order.
    parts: Vec<Part>,
    index: Index,
}

/// A mapped file.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    map: Map,
}

fn open_part(path: &Path) -> Result<Part> {
    Ok(Part { path: path.to_owned(), map: Map::open(path)? })
}

impl GgufFile {
    /// Maps the file and checks it; of a split model any part may be named, and all are opened. Reads the metadata and the
    /// directory, none of the tensor data.
    pub fn open(path: &Path) -> Result<GgufFile> {
        let part = open_part(path)?;
        let index = parse(part.map.bytes()).map_err(|source| Error::gguf(path, source))?;
        let (parts, index) = split::join(part, index)?;
        Ok(GgufFile { parts, index })
    }

    /// Of the first part.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// Of all parts.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.index.version()
    }

    /// Every tensor starts at a multiple of this, a power of two of at least 8, in the file and (up to a page) in memory.
    pub fn alignment(&self) -> u64 {
        self.index.alignment()
    }

    /// Of all parts together.
    pub fn file_bytes(&self) -> u64 {
        self.maps().map(|map| map.bytes().len() as u64).sum()
    }

    /// The maps of the parts, for advice to the kernel and for locking them in memory.
    pub fn maps(&self) -> impl Iterator<Item = &Map> {
        self.parts.iter().map(|part| &part.map)
    }

    /// In the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.index.tensors()
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.tensor(name)
    }

    /// The tensor `name` with exactly the dimensions `shape`, row length first; otherwise an error that names both.
    pub fn tensor_shaped(&self, name: &str, shape: &[u64]) -> Result<&TensorInfo> {
        let Some(tensor) = self.tensor(name) else {
            return Err(Error::gguf(self.path(), GgufError::MissingTensor { tensor: name.to_owned() }));
        };
        // A file may leave out trailing dimensions of 1, or give them.
        let padded = |dims: &[u64]| std::array::from_fn(|i| dims.get(i).copied().unwrap_or(1));
        if tensor.dims != padded(shape) || shape.len() > 4 {
            let source = GgufError::Shape { tensor: name.to_owned(), wanted: shape.to_vec(), found: tensor.shape().to_vec() };
            return Err(Error::gguf(self.path(), source));
        }
        Ok(tensor)
    }

    /// The bytes of a tensor of this file, exactly `n_bytes` of them, aligned to at least 8 in memory.
    pub fn data(&self, t: &TensorInfo) -> &[u8] {
        // In range since the parser checked it; a tensor of another file is the caller's mistake and panics here.
        &self.parts[t.part as usize].map.bytes()[t.offset as usize..][..t.n_bytes as usize]
    }

    /// Every key and its value, in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.index.metadata(self.parts[0].map.bytes())
    }

    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.index.get(self.parts[0].map.bytes(), key)
    }

    fn opt<'a, T>(
        &'a self,
        key: &str,
        convert: impl FnOnce(Value<'a>) -> std::result::Result<T, GgufError>,
    ) -> Result<Option<T>> {
        self.get(key).map(convert).transpose().map_err(|source| Error::gguf(self.path(), source))
    }

    fn need<T>(&self, key: &str, wanted: &'static str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| Error::gguf(self.path(), GgufError::MissingKey { key: key.to_owned(), wanted }))
    }
}

/// A look-up that needs the key, and one that does not.
macro_rules! typed {
    ($($name:ident$(<$life:lifetime>)? $opt:ident $convert:ident $ty:ty, $wanted:literal;)*) => {
        /// Typed look-ups. `opt_` gives `None` for a missing key; either way a value of another type is an error, and integers
        /// of any width and sign convert where the value fits.
        impl GgufFile {
            $(pub fn $name$(<$life>)?(&$($life)? self, key: &str) -> Result<$ty> {
                self.$opt(key).and_then(|found| self.need(key, $wanted, found))
            }

            pub fn $opt$(<$life>)?(&$($life)? self, key: &str) -> Result<Option<$ty>> {
                self.opt(key, |value| value.$convert(key))
            })*
        }
    };
}

typed! {
    u32 opt_u32 to_u32 u32, "u32";
    f32 opt_f32 to_f32 f32, "f32";
    bool opt_bool to_bool bool, "bool";
    str<'a> opt_str to_str &'a str, "string";
    strings<'a> opt_strings to_strings StringArray<'a>, "array of string";
    i32s<'a> opt_i32s to_i32s impl ExactSizeIterator<Item = i32> + Clone + use<'a>, "array of i32";
    u32s<'a> opt_u32s to_u32s impl ExactSizeIterator<Item = u32> + Clone + use<'a>, "array of u32";
    f32s<'a> opt_f32s to_f32s impl ExactSizeIterator<Item = f32> + Clone + use<'a>, "array of f32";
}
