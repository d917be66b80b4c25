//! The pack: a file beside the model with its matrices in the interleaved layout of kernels/spec/packed.rs, so that they can be
//! mapped and read in place. Owns the file's format, the check of a pack against its model, and what is written into one.
//! A pack is only ever a faster copy: one that is stale, damaged or of another kind is left aside with a line that says so.
//! Refuses to choose kernels (they say whether they read it) and to create files (cli/pack.rs does).
//!
//! Little-endian. 72 bytes of header, a directory, then the tensors, each at a multiple of 64:
//!
//! ```text
//!  0  "LOWKEYPK"    8  u32 version (1)    12  u32 layout (1: eight rows interleaved, kernels/spec/packed.rs)
//! 16  u64 bytes of the model's files      24  u64 its time of modification, nanoseconds since 1970; 0 for unknown
//! 32  u128 XXH3 of the model's files      48  u32 tensors    52  u32 0    56  u64 bytes of this file
//! 64  u64 XXH3 of bytes 0..64 and the directory
//! 72  for each tensor: u32 index in the model's directory, u32 type, u64 offset in this file, u64 bytes
//! ```

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::{Message, Setting, message};
use crate::gguf::GgufFile;
use crate::gguf::quant::GgmlType;
use crate::kernels::packed::{ROWS, can_pack, pack_rows};
use crate::mem::map::Map;

const MAGIC: &[u8; 8] = b"LOWKEYPK";
const VERSION: u32 = 1;
const LAYOUT: u32 = 1;
const HEADER: usize = 72;
/// The part of the header that is summed: what stands before the sum.
const SUMMED: usize = 64;
const ENTRY: usize = 24;
const ALIGN: u64 = 64;
/// Bytes of a model that are hashed between two looks at `go_on`.
const HASHED_AT_ONCE: usize = 4 << 20;

/// A pack of an open model, checked: every tensor in it is one of the model's, inside the file, and aligned.
pub struct Pack {
    map: Map,
    /// For each tensor of the model where it starts in the pack, and its bytes.
    at: Vec<Option<(usize, usize)>>,
    header: Header,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Header {
    model_bytes: u64,
    model_time: u64,
    model_hash: u128,
    n_tensors: u32,
    file_bytes: u64,
}

/// Why a pack is not used: what is wrong, and what to do.
#[derive(Debug, PartialEq)]
pub enum Unusable {
    /// Not of this program.
    Foreign,
    /// Of another version or layout.
    Other,
    /// Its bytes are not what they must be.
    Damaged(&'static str),
    /// Made of a model of another size or hash.
    OtherModel,
    /// The model was modified since; its contents may be the same.
    OtherTime,
    /// What it holds are not the model's weights.
    Wrong(String),
    Unreadable(String),
}

impl Unusable {
    /// Why, and what to do.
    pub fn message(&self) -> Message {
        match self {
            Unusable::Foreign => message!["this is no pack: move it away, or run ", Setting::PackAnew, " on the model"],
            Unusable::Other => message!["made by another version of lowkey: run ", Setting::Pack, " on the model"],
            Unusable::Damaged(what) => message![format!("damaged ({what}): run "), Setting::Pack, " on the model"],
            Unusable::OtherModel => message!["made of another model file: run ", Setting::Pack, " on the model"],
            Unusable::OtherTime => message![
                "the model was modified or copied after it was packed: run ",
                Setting::PackCheck,
                " on the model, which accepts it if the contents are the same"
            ],
            Unusable::Wrong(tensor) => {
                message![format!("tensor {tensor} is not the model's: run "), Setting::PackAnew, " on the model"]
            }
            Unusable::Unreadable(why) => why.clone().into(),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

impl Header {
    /// Of a file of at least `HEADER` bytes.
    fn read(bytes: &[u8]) -> Header {
        Header {
            model_bytes: u64_at(bytes, 16),
            model_time: u64_at(bytes, 24),
            model_hash: u128::from_le_bytes(std::array::from_fn(|i| bytes[32 + i])),
            n_tensors: u32_at(bytes, 48),
            file_bytes: u64_at(bytes, 56),
        }
    }

    /// With its sum, for a file with this directory.
    fn bytes(&self, directory: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for word in [VERSION, LAYOUT] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.model_bytes.to_le_bytes());
        bytes.extend(self.model_time.to_le_bytes());
        bytes.extend(self.model_hash.to_le_bytes());
        for word in [self.n_tensors, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.file_bytes.to_le_bytes());
        let sum = sum(&bytes, directory);
        bytes.extend(sum.to_le_bytes());
        bytes
    }
}

fn sum(header: &[u8], directory: &[u8]) -> u64 {
    xxh3_64(&[&header[..SUMMED], directory].concat())
}

/// Nanoseconds since 1970, 0 where the system does not know; of a split model the XXH3 of those of its parts, so that none
/// is changed unseen.
fn time_of(file: &GgufFile) -> u64 {
    let time = |map: &Map| {
        let since = map.modified().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        since.map_or(0, |since| since.as_nanos() as u64)
    };
    let times: Vec<u64> = file.maps().map(time).collect();
    match times[..] {
        [time] => time,
        _ => xxh3_64(&times.iter().flat_map(|time| time.to_le_bytes()).collect::<Vec<u8>>()),
    }
}

impl Pack {
    /// `model.gguf.lowkey-pack` of `model.gguf`.
    pub fn path_of(model: &Path) -> PathBuf {
        let mut name = model.file_name().unwrap_or_default().to_owned();
        name.push(".lowkey-pack");
        model.with_file_name(name)
    }

    /// The pack beside a model, if one is there; an error says why it is not used.
    pub fn beside(file: &GgufFile) -> Option<Result<Pack, Message>> {
        let path = Self::path_of(file.path());
        let pack = Self::open(&path, file)?.and_then(|pack| pack.in_time(file));
        Some(pack.map_err(|why| message![format!("{}: not used: ", path.display()), why.message()]))
    }

    /// `None` where there is no such file. The model's time of modification is not looked at.
    pub fn open(path: &Path, file: &GgufFile) -> Option<Result<Pack, Unusable>> {
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            _ => {}
        }
        let map = match Map::open(path) {
            Ok(map) => map,
            Err(crate::Error::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
                return Some(Err(Unusable::Damaged("it is empty")));
            }
            Err(crate::Error::Io { source, .. }) => return Some(Err(Unusable::Unreadable(source.to_string()))),
            Err(e) => return Some(Err(Unusable::Unreadable(e.to_string()))),
        };
        Some(Self::parse(map, file))
    }

    /// Itself, if its model was not touched since, and a few rows are the model's.
    pub fn in_time(self, file: &GgufFile) -> Result<Pack, Unusable> {
        self.is_fresh(file).map(|()| self)
    }

    /// Looks at the time of the model, and at eight rows here and there: a few pages of files that may be larger than memory.
    /// Another model of the same size and time is found by them; a damaged byte may not be (`verify` reads all).
    pub fn is_fresh(&self, file: &GgufFile) -> Result<(), Unusable> {
        const SAMPLES: usize = 16;
        if self.header.model_time != time_of(file) {
            return Err(Unusable::OtherTime);
        }
        let packed: Vec<usize> = (0..self.at.len()).filter(|&i| self.at[i].is_some()).collect();
        for sample in 0..SAMPLES.min(packed.len()) {
            let index = packed[sample * packed.len() / SAMPLES.min(packed.len())];
            let n_groups = file.tensors()[index].n_rows() / ROWS;
            let group = xxh3_64(&index.to_le_bytes()) as usize % n_groups;
            self.check(file, index, group..group + 1)?;
        }
        Ok(())
    }

    /// Compares groups of eight rows of a packed tensor with the model's.
    fn check(&self, file: &GgufFile, index: usize, groups: Range<usize>) -> Result<(), Unusable> {
        let (tensor, data) = (&file.tensors()[index], self.data(index).unwrap_or_default());
        let eight = ROWS * tensor.row_bytes();
        let bytes = groups.start * eight..groups.end * eight;
        let mut packed = vec![0; eight];
        for (rows, found) in file.data(tensor)[bytes.clone()].chunks_exact(eight).zip(data[bytes].chunks_exact(eight)) {
            pack_rows(tensor.ty, rows, &mut packed);
            if packed != found {
                return Err(Unusable::Wrong(tensor.name.escape_debug().to_string()));
            }
        }
        Ok(())
    }

    fn parse(map: Map, file: &GgufFile) -> Result<Pack, Unusable> {
        let bytes = map.bytes();
        if bytes.len() < MAGIC.len() || &bytes[..MAGIC.len()] != MAGIC {
            return Err(Unusable::Foreign);
        }
        if bytes.len() < HEADER {
            return Err(Unusable::Damaged("it ends in its header"));
        }
        if (u32_at(bytes, 8), u32_at(bytes, 12)) != (VERSION, LAYOUT) {
            return Err(Unusable::Other);
        }
        let header = Header::read(bytes);
        if header.file_bytes != bytes.len() as u64 {
            return Err(Unusable::Damaged("its length is not the one it names"));
        }
        let n_tensors = header.n_tensors as usize;
        let data = n_tensors.checked_mul(ENTRY).and_then(|n| n.checked_add(HEADER)).filter(|&data| data <= bytes.len());
        let Some(directory) = data.map(|data| &bytes[HEADER..data]) else {
            return Err(Unusable::Damaged("its directory does not fit into it"));
        };
        if u64_at(bytes, SUMMED) != sum(bytes, directory) {
            return Err(Unusable::Damaged("the sum over its header is wrong"));
        }
        if header.model_bytes != file.file_bytes() {
            return Err(Unusable::OtherModel);
        }
        let at = places(directory, (HEADER + directory.len()) as u64, header.file_bytes, file)?;
        Ok(Pack { map, at, header })
    }

    /// Bytes of a tensor of the model, if they are here.
    pub fn data(&self, index: usize) -> Option<&[u8]> {
        self.at[index].map(|(at, n)| &self.map.bytes()[at..][..n])
    }

    pub fn file_bytes(&self) -> u64 {
        self.header.file_bytes
    }

    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn n_tensors(&self) -> usize {
        self.header.n_tensors as usize
    }

    /// The long check: the hash of the whole model, and every packed byte against the model's. `None` if `go_on` said no.
    pub fn verify(&self, file: &GgufFile, go_on: &mut dyn FnMut() -> bool) -> Option<Result<(), Unusable>> {
        if model_hash(file, go_on)? != self.header.model_hash {
            return Some(Err(Unusable::OtherModel));
        }
        for index in (0..self.at.len()).filter(|&i| self.at[i].is_some()) {
            if let Err(wrong) = self.check(file, index, 0..file.tensors()[index].n_rows() / ROWS) {
                return Some(Err(wrong));
            }
            if !go_on() {
                return None;
            }
        }
        Some(Ok(()))
    }

    /// The header for the model's present time of modification, to be written over the pack's, or `None` if it has that.
    pub fn retimed(&self, file: &GgufFile) -> Option<Vec<u8>> {
        let header = Header { model_time: time_of(file), ..self.header };
        let directory = &self.map.bytes()[HEADER..][..self.n_tensors() * ENTRY];
        (header != self.header).then(|| header.bytes(directory))
    }
}

/// Where each tensor of the model is, by a directory that is not trusted.
fn places(directory: &[u8], data: u64, file_bytes: u64, file: &GgufFile) -> Result<Vec<Option<(usize, usize)>>, Unusable> {
    let mut at = vec![None; file.tensors().len()];
    let mut end = data;
    for entry in directory.chunks_exact(ENTRY) {
        let (index, ty, offset, n) = (u32_at(entry, 0), u32_at(entry, 4), u64_at(entry, 8), u64_at(entry, 16));
        let Some((place, tensor)) = at.get_mut(index as usize).zip(file.tensors().get(index as usize)) else {
            return Err(Unusable::Damaged("it names a tensor that the model has not"));
        };
        if GgmlType::from_id(ty) != Some(tensor.ty) || n != tensor.n_bytes || !is_packable(tensor.ty, tensor.n_rows(), n) {
            return Err(Unusable::Damaged("a tensor has another type or size than the model's"));
        }
        let last = offset.checked_add(n).filter(|&last| last <= file_bytes && offset >= end && offset % ALIGN == 0);
        let Some(last) = last.filter(|_| place.is_none()) else {
            return Err(Unusable::Damaged("a tensor lies outside, across another, or twice in it"));
        };
        end = last;
        // In range, since the file is mapped.
        *place = Some((offset as usize, n as usize));
    }
    Ok(at)
}

fn is_packable(ty: GgmlType, n_rows: usize, n_bytes: u64) -> bool {
    can_pack(ty, n_rows) && n_bytes > 0
}

/// `None` if `go_on` said no.
fn model_hash(file: &GgufFile, go_on: &mut dyn FnMut() -> bool) -> Option<u128> {
    let mut hash = Xxh3::new();
    for bytes in file.maps().flat_map(|map| map.bytes().chunks(HASHED_AT_ONCE)) {
        hash.update(bytes);
        if !go_on() {
            return None;
        }
    }
    Some(hash.digest128())
}

/// What a new pack of a model holds.
pub struct Contents {
    /// Tensors of the model by index, and where in the pack they start.
    tensors: Vec<(usize, u64)>,
    /// Matrices that are multiplied and have no packed layout.
    pub n_left: usize,
    pub file_bytes: u64,
}

impl Contents {
    /// Of the tensors of `file` with these indices, those that are multiplied; what has a packed layout is packed.
    pub fn of(file: &GgufFile, multiplied: impl Iterator<Item = usize>) -> Contents {
        let mut indices: Vec<usize> = multiplied.collect();
        indices.sort_unstable();
        indices.dedup();
        let n_all = indices.len();
        indices.retain(|&i| is_packable(file.tensors()[i].ty, file.tensors()[i].n_rows(), file.tensors()[i].n_bytes));
        let mut end = (HEADER + indices.len() * ENTRY) as u64;
        let mut tensors = Vec::new();
        for index in indices {
            let offset = end.next_multiple_of(ALIGN);
            tensors.push((index, offset));
            end = offset + file.tensors()[index].n_bytes;
        }
        Contents { n_left: n_all - tensors.len(), tensors, file_bytes: end }
    }

    pub fn n_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Writes the whole pack; `false` if `go_on` said no, and then it is not whole.
    pub fn write(&self, file: &GgufFile, out: &mut dyn Write, go_on: &mut dyn FnMut() -> bool) -> io::Result<bool> {
        let Some(model_hash) = model_hash(file, go_on) else { return Ok(false) };
        let mut directory = Vec::new();
        for &(index, offset) in &self.tensors {
            let tensor = &file.tensors()[index];
            for word in [index as u32, tensor.ty.id()] {
                directory.extend(word.to_le_bytes());
            }
            for word in [offset, tensor.n_bytes] {
                directory.extend(word.to_le_bytes());
            }
        }
        let header = Header {
            model_bytes: file.file_bytes(),
            model_time: time_of(file),
            model_hash,
            n_tensors: self.tensors.len() as u32,
            file_bytes: self.file_bytes,
        };
        out.write_all(&header.bytes(&directory))?;
        out.write_all(&directory)?;
        let mut at = (HEADER + directory.len()) as u64;
        for &(index, offset) in &self.tensors {
            let tensor = &file.tensors()[index];
            out.write_all(&[0; ALIGN as usize][..(offset - at) as usize])?;
            let mut packed = vec![0; ROWS * tensor.row_bytes()];
            for rows in file.data(tensor).chunks_exact(packed.len()) {
                pack_rows(tensor.ty, rows, &mut packed);
                out.write_all(&packed)?;
            }
            at = offset + tensor.n_bytes;
            if !go_on() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
