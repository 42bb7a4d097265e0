//! A file that can be written to without being changed.

use redb::StorageBackend;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE_BYTES: u64 = 4096;

/// The content of a file, with what is written to it kept in memory. The file needs no lock of its
/// own: the directory it is in is locked.
#[derive(Debug)]
pub(super) struct Rehearsal {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    len_bytes: u64,
    /// How much of the file still counts: less than all of it once it has been "truncated".
    from_file_bytes: u64,
    /// By index.
    pages: BTreeMap<u64, [u8; PAGE_BYTES as usize]>,
}

impl Rehearsal {
    pub(super) fn of(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self {
            file,
            written: Mutex::new(Written {
                len_bytes,
                from_file_bytes: len_bytes,
                pages: BTreeMap::new(),
            }),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written().len_bytes == 0
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page as it is in the file, zeros where that has ended.
    fn page_of_file(
        &self,
        index: u64,
        from_file_bytes: u64,
    ) -> io::Result<[u8; PAGE_BYTES as usize]> {
        let mut page = [0; PAGE_BYTES as usize];
        let start = index.saturating_mul(PAGE_BYTES);
        let len = from_file_bytes.saturating_sub(start).min(PAGE_BYTES);
        self.file
            .read_exact_at(&mut page[..usize::try_from(len).unwrap_or(0)], start)?;
        Ok(page)
    }
}

/// Cuts `len` bytes from `offset` into pieces: index of the page, and where the piece is in it.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let end = offset.saturating_add(len as u64);
    (offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(move |index| {
        let start = index * PAGE_BYTES;
        let within =
            |at: u64| usize::try_from(at.clamp(start, start + PAGE_BYTES) - start).unwrap_or(0);
        (index, within(offset)..within(end))
    })
}

impl StorageBackend for Rehearsal {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().len_bytes)
    }

    fn read(&self, offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset
            .checked_add(out.len() as u64)
            .is_none_or(|end| end > written.len_bytes)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (index, range) in pieces(offset, out.len()) {
            let (piece, rest) = out.split_at_mut(range.len());
            match written.pages.get(&index) {
                Some(page) => piece.copy_from_slice(&page[range]),
                None => piece
                    .copy_from_slice(&self.page_of_file(index, written.from_file_bytes)?[range]),
            }
            out = rest;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.written();
        if len < written.len_bytes {
            written.from_file_bytes = written.from_file_bytes.min(len);
            let mut beyond = written.pages.split_off(&(len / PAGE_BYTES));
            if let Some(mut last) = beyond.remove(&(len / PAGE_BYTES)) {
                last[usize::try_from(len % PAGE_BYTES).unwrap_or(0)..].fill(0);
                written.pages.insert(len / PAGE_BYTES, last);
            }
        }
        written.len_bytes = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, mut data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        for (index, range) in pieces(offset, data.len()) {
            let (piece, rest) = data.split_at(range.len());
            let mut page = match written.pages.get(&index) {
                Some(page) => *page,
                None => self.page_of_file(index, written.from_file_bytes)?,
            };
            page[range].copy_from_slice(piece);
            written.pages.insert(index, page);
            data = rest;
        }
        let end = offset.saturating_add(data.len() as u64);
        written.len_bytes = written.len_bytes.max(end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_the_file_is_as_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let original: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        std::fs::write(&path, &original).unwrap();
        let rehearsal = Rehearsal::of(File::open(&path).unwrap()).unwrap();
        let read = |offset: u64, len: usize| {
            let mut out = vec![0xEE; len];
            rehearsal.read(offset, &mut out).map(|()| out)
        };

        rehearsal.write(4090, &[7; 20]).unwrap();
        assert_eq!(
            read(4089, 22).unwrap(),
            [&original[4089..4090], &[7; 20], &original[4110..4111]].concat()
        );
        assert_eq!(read(0, 10_000).unwrap()[4110..], original[4110..]);
        assert!(read(9_999, 2).is_err());

        rehearsal.set_len(4100).unwrap();
        rehearsal.set_len(9_000).unwrap();
        assert_eq!(read(4090, 20).unwrap(), [[7; 10], [0; 10]].concat());
        assert_eq!(read(8_000, 1_000).unwrap(), [0; 1_000]);
        assert_eq!(std::fs::read(&path).unwrap(), original);
    }
}
