//! A table of hashes in a sparse file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::core::hash::Digest;
use crate::core::ports::Table;

/// Hashes one after another, 32 bytes each; a hole is what was never set.
#[derive(Debug)]
pub struct FileTable {
    file: File,
    dirty: bool,
}

impl FileTable {
    /// Opens a table, or makes an empty one.
    ///
    /// # Errors
    /// Of the disk.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Self { file, dirty: false })
    }
}

impl Table for FileTable {
    fn get(&mut self, first: u64, count: usize) -> io::Result<Vec<Digest>> {
        let mut bytes = vec![0; count * 32];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], first * 32 + filled as u64) {
                // Behind the end nothing was ever set.
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes.as_chunks::<32>().0.iter().map(|bytes| Digest(*bytes)).collect())
    }

    fn set(&mut self, first: u64, digests: &[Digest]) -> io::Result<()> {
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
        self.dirty = true;
        self.file.write_all_at(&bytes, first * 32)
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.dirty = true;
        self.sync()
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_set_is_unknown_and_what_was_set_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let mut table = FileTable::open(&path).unwrap();
        assert_eq!(table.get(1 << 30, 2).unwrap(), [Digest::UNKNOWN; 2]);
        table.set(70, &[Digest([1; 32]), Digest([2; 32])]).unwrap();
        table.sync().unwrap();
        let mut again = FileTable::open(&path).unwrap();
        let expected = [Digest::UNKNOWN, Digest([1; 32]), Digest([2; 32]), Digest::UNKNOWN];
        assert_eq!(again.get(69, 4).unwrap(), expected);
        again.clear().unwrap();
        assert_eq!(table.get(70, 1).unwrap(), [Digest::UNKNOWN]);
    }
}
