//! The receiver's record in a small file with two places, written in turns.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::core::journal::{Record, SLOT};
use crate::core::ports::Log;

/// The file.
#[derive(Debug)]
pub struct FileLog {
    file: File,
}

impl FileLog {
    /// Opens it, or makes an empty one.
    ///
    /// # Errors
    /// Of the disk.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Self { file })
    }
}

impl Log for FileLog {
    fn load(&mut self) -> io::Result<Option<Record>> {
        let mut slots = vec![0; 2 * SLOT];
        let mut filled = 0;
        while filled < slots.len() {
            match self.file.read_at(&mut slots[filled..], filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        let (first, second) = slots.split_at(SLOT);
        Ok(Record::newest([first, second]))
    }

    fn store(&mut self, record: &Record, durable: bool) -> io::Result<()> {
        self.file.write_all_at(&record.encode(), (record.slot() * SLOT) as u64)?;
        if durable { self.file.sync_data() } else { Ok(()) }
    }
}
