//! The state directory of a tree's transfer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::core::tree::ports::{Shelf, Store};

/// A file.
#[derive(Debug)]
pub struct FileStore(File);

impl Store for FileStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&mut self, at: u64, content: &[u8]) -> io::Result<()> {
        self.0.write_all_at(content, at)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// A directory of files.
#[derive(Debug)]
pub struct DirShelf {
    path: PathBuf,
}

impl DirShelf {
    /// This directory, which exists.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }
}

impl Shelf for DirShelf {
    type Store = FileStore;

    fn open(&mut self, name: &str) -> io::Result<FileStore> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = options.create(true).open(&path)?;
                File::open(&self.path)?.sync_all()?;
                Ok(FileStore(file))
            }
            opened => opened.map(FileStore),
        }
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A store without a disk.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct MemoryStore(Vec<u8>);

#[cfg(test)]
impl Store for MemoryStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.0.get(at as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write_at(&mut self, at: u64, content: &[u8]) -> io::Result<()> {
        let end = at as usize + content.len();
        self.0.resize(self.0.len().max(end), 0);
        self.0[at as usize..end].copy_from_slice(content);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
