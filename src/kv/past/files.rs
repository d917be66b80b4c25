//! Two files of one shape: the stream's own, and one that a session left, which has the tiles that the stream had when it was saved or
//! restored. Nothing is copied for a stream that goes on from a session: its new tiles go to its own file, and the others are read where
//! they are. So a session may be the start of many streams.

use std::io;

use super::disk::Disk;
use super::shape::PastShape;
use crate::mem::view::View;

/// The file of a session.
pub struct Left {
    pub(super) disk: Box<dyn Disk>,
    pub(super) name: String,
}

/// Where the tiles of a stream are read.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    pub shape: &'a PastShape,
    pub own: &'a dyn Disk,
    pub left: Option<&'a dyn Disk>,
    /// `[n_tile]`: of the ring, and of those that are there which the session's file has.
    pub is_there: &'a [u8],
    pub is_left: &'a [u8],
}

/// A view of a file, where the system has one to give.
pub(super) fn look(disk: &mut dyn Disk, shape: &PastShape) {
    if let Err(e) = disk.look(shape.file_bytes(), shape.index_bytes()) {
        log::warn!("the file of the past cannot be mapped ({e}): it is read by calls, which takes longer");
    }
}

impl Files<'_> {
    /// Shows what `read` would fill `into` with, without a copy if it lies in one file of which there is a view. `see` may be called
    /// twice: then what it saw first was not all in the file.
    pub fn see(&self, into: &mut [u8], at: u64, mut see: impl FnMut(&[u8])) -> io::Result<()> {
        if let Some(view) = self.view(at, into.len())
            && view.see(at, into.len(), &mut see)
        {
            return Ok(());
        }
        self.read(into, at)?;
        see(into);
        Ok(())
    }

    /// Brings what lies there nearer, where there is a view of it: `see` will follow.
    pub fn expect(&self, at: u64, n_bytes: usize) {
        if let Some(view) = self.view(at, n_bytes) {
            view.expect(at, n_bytes);
        }
    }

    /// Of the one file in which all of this lies.
    fn view(&self, at: u64, n_bytes: usize) -> Option<&View> {
        let Some(left) = self.left else { return self.own.view() };
        let (first, mut end) = self.shape.place(at);
        let (source, mut done) = (self.source(first), end);
        while done < n_bytes {
            let next;
            (next, end) = self.shape.place(at + done as u64);
            if self.source(next) != source {
                return None;
            }
            done += end;
        }
        match source {
            Source::None => None,
            Source::Left => left.view(),
            Source::Own => self.own.view(),
        }
    }

    /// Fills `into` from the byte `at` on. What is of a tile that is not there may be anything.
    pub fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        if self.left.is_none() {
            return self.own.read(into, at);
        }
        let (mut done, n_bytes) = (0, into.len());
        while done < n_bytes {
            let (first, mut end) = self.shape.place(at + done as u64);
            let mut n = end.min(n_bytes - done);
            let source = self.source(first);
            // As much as lies in the same file.
            while done + n < n_bytes {
                let next;
                (next, end) = self.shape.place(at + (done + n) as u64);
                if self.source(next) != source {
                    break;
                }
                n += end.min(n_bytes - done - n);
            }
            let part = &mut into[done..done + n];
            match (source, self.left) {
                (Source::None, _) => {}
                (Source::Left, Some(left)) => left.read(part, at + done as u64)?,
                _ => self.own.read(part, at + done as u64)?,
            }
            done += n;
        }
        Ok(())
    }

    fn source(&self, slot: usize) -> Source {
        match (self.is_there[slot], self.is_left[slot]) {
            (0, _) => Source::None,
            (_, 0) => Source::Own,
            _ => Source::Left,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    None,
    Own,
    Left,
}
