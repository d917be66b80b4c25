//! Logits for other programs: rows of f32 in NumPy's file format, version 1.0. The file is there whole or not at all.

use std::io::{Seek, Write};
use std::path::Path;

use crate::cli::unfinished::Unfinished;
use crate::error::{Error, Result};

/// A file of one matrix, row after row.
pub struct NpyFile {
    file: Unfinished,
    n_rows: usize,
    n_cols: usize,
}

/// The header is of fixed length so that the number of rows can be filled in at the end.
const NPY_HEADER: usize = 128;

impl NpyFile {
    pub fn create(path: &Path, n_cols: usize) -> Result<Self> {
        let mut file = Unfinished::create(path).map_err(|e| Self::failed(path, &e))?;
        file.out.write_all(&[0; NPY_HEADER]).map_err(|e| Self::failed(path, &e))?;
        Ok(NpyFile { file, n_rows: 0, n_cols })
    }

    fn failed(path: &Path, e: &std::io::Error) -> Error {
        Error::budget(
            "--logits-out",
            format!("{}: {e}: give a name in a folder that can be written and has room", path.display()),
        )
    }

    pub fn row(&mut self, row: &[f32]) -> Result<()> {
        self.n_rows += 1;
        let written = row.iter().try_for_each(|v| self.file.out.write_all(&v.to_le_bytes()));
        written.map_err(|e| Self::failed(self.file.path(), &e))
    }

    pub fn finish(self) -> Result<()> {
        let NpyFile { mut file, n_rows, n_cols } = self;
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {n_cols}), }}");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(((NPY_HEADER - 10) as u16).to_le_bytes());
        bytes.extend(format!("{header:<width$}\n", width = NPY_HEADER - 11).bytes());
        let path = file.path().to_owned();
        let written = file.out.seek(std::io::SeekFrom::Start(0)).and_then(|_| file.out.write_all(&bytes));
        written.and_then(|()| file.finish()).map_err(|e| Self::failed(&path, &e))
    }
}
