//! A block device or an image, read around the page cache.
//!
//! A mounted file system writes past the cache of its device, so what the cache holds may be old while every hash
//! over it is right. Where `O_DIRECT` is not possible, the cache is dropped before each read instead.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::aligned::{ALIGNMENT, Aligned};
use crate::core::ports::{Again, Extent, Source, Target};

/// How the cache is avoided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Around {
    /// By `O_DIRECT`.
    Direct,
    /// By dropping it before each read: on file systems without `O_DIRECT`.
    Dropped,
}

impl Around {
    /// As evidence has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Dropped => "dropped",
        }
    }
}

/// Why a disk cannot be moved from or to.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be opened.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Neither a block device nor a regular file.
    #[error("{0} is neither a block device nor a regular file")]
    Kind(PathBuf),
    /// The target is too small.
    #[error("{path} has {has} bytes, but {needs} are needed: give it a larger target")]
    TooSmall {
        /// Which.
        path: PathBuf,
        /// Bytes that it has.
        has: u64,
        /// Bytes that the source has.
        needs: u64,
    },
    /// There is something on the target already.
    #[error("{0} is not empty: choose another target, or add --overwrite when its content may be lost")]
    NotEmpty(PathBuf),
    /// The target is in use.
    #[error("{0} is in use: unmount it, or end what uses it")]
    Busy(PathBuf),
}

/// One disk or image.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    /// Through the cache: for writes.
    file: File,
    /// Around it: for reads.
    direct: Option<File>,
    block_device: bool,
    len: u64,
    aligned: Aligned,
}

impl Disk {
    /// Opens a disk to be read.
    ///
    /// # Errors
    /// When it cannot be, or is none.
    pub fn source(path: &Path) -> Result<Self, OpenError> {
        let file = File::open(path).map_err(|error| io_error(path, error))?;
        Self::new(path, file)
    }

    /// Opens the target for a disk of `len` bytes. When `begun` is false, nothing of this transfer can be on it: it
    /// is made when it does not exist, and what exists has to be empty unless `overwrite` is set.
    ///
    /// # Errors
    /// When it cannot be opened, is in use, too small, or not empty.
    pub fn target(path: &Path, len: u64, begun: bool, overwrite: bool) -> Result<Self, OpenError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let device = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
        if device {
            // The kernel grants this to one only, and to nobody while it is mounted.
            options.custom_flags(OFlags::EXCL.bits() as i32);
        } else {
            // An image that has vanished is not made anew: that would be an empty disk under an old name.
            options.create(!begun).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        }
        let file = options.open(path).map_err(|error| match error.raw_os_error() {
            Some(code) if code == Errno::BUSY.raw_os_error() => OpenError::Busy(path.into()),
            _ => io_error(path, error),
        })?;
        let mut this = Self::new(path, file)?;
        if !this.block_device {
            if !begun && this.len > 0 && !overwrite {
                return Err(OpenError::NotEmpty(path.into()));
            }
            if !begun {
                // Emptied first: what was there must not show through where the source has holes.
                this.file.set_len(0).map_err(|error| io_error(path, error))?;
            }
            this.file.set_len(len).map_err(|error| io_error(path, error))?;
            this.file.sync_all().map_err(|error| io_error(path, error))?;
            sync_parent(path).map_err(|error| io_error(path, error))?;
            this.len = len;
        } else if this.len < len {
            return Err(OpenError::TooSmall { path: path.into(), has: this.len, needs: len });
        } else if !begun && !overwrite && !this.begins_empty().map_err(|error| io_error(path, error))? {
            return Err(OpenError::NotEmpty(path.into()));
        }
        Ok(this)
    }

    /// Whether a transfer may begin on this target: nothing is there, or it may be lost.
    ///
    /// # Errors
    /// When something is there, or it cannot be read.
    pub fn vacant(path: &Path, overwrite: bool) -> Result<(), OpenError> {
        if overwrite || !path.try_exists().map_err(|error| io_error(path, error))? {
            return Ok(());
        }
        let mut this = Self::source(path)?;
        let empty = if this.block_device {
            this.begins_empty().map_err(|error| io_error(path, error))?
        } else {
            this.len == 0
        };
        if empty { Ok(()) } else { Err(OpenError::NotEmpty(path.into())) }
    }

    fn new(path: &Path, file: File) -> Result<Self, OpenError> {
        let meta = file.metadata().map_err(|error| io_error(path, error))?;
        let block_device = meta.file_type().is_block_device();
        if !block_device && !meta.is_file() {
            return Err(OpenError::Kind(path.into()));
        }
        let len = if block_device {
            rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|error| io_error(path, error.into()))?
        } else {
            meta.len()
        };
        let mut this =
            Self { path: path.into(), file, direct: None, block_device, len, aligned: Aligned::default() };
        this.direct = this.open_direct();
        Ok(this)
    }

    /// A second handle around the cache, where one read shows that it works.
    fn open_direct(&mut self) -> Option<File> {
        // By the handle and not by the path again: what has this name now may be another file.
        let this = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        let direct =
            OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(this).ok()?;
        direct.read_at(self.aligned.get(ALIGNMENT), 0).ok()?;
        Some(direct)
    }

    /// Bytes of the disk.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How the cache is avoided.
    pub fn around(&self) -> Around {
        if self.direct.is_some() { Around::Direct } else { Around::Dropped }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the beginning and the end of a device are zeros: where partition tables and file systems leave their
    /// marks.
    fn begins_empty(&mut self) -> io::Result<bool> {
        let mut block = vec![0; 1 << 20];
        for offset in [0, self.len.saturating_sub(1 << 20) & !(ALIGNMENT as u64 - 1)] {
            let len = usize::try_from(self.len - offset).unwrap_or(usize::MAX).min(block.len());
            self.read(offset, &mut block[..len])?;
            if !crate::core::hash::is_zero(&block[..len]) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Again for Disk {
    fn again(&self) -> io::Result<Self> {
        Ok(Self {
            path: self.path.clone(),
            file: self.file.try_clone()?,
            direct: self.direct.as_ref().map(File::try_clone).transpose()?,
            block_device: self.block_device,
            len: self.len,
            aligned: Aligned::default(),
        })
    }
}

impl Source for Disk {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let Some(direct) = &self.direct else {
            let len = std::num::NonZeroU64::new(buffer.len() as u64);
            rustix::fs::fadvise(&self.file, offset, len, Advice::DontNeed)?;
            return self.file.read_exact_at(buffer, offset);
        };
        let aligned = self.aligned.get(buffer.len());
        let mut read = 0;
        while read < buffer.len() {
            match direct.read_at(&mut aligned[read..], offset + read as u64) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has become shorter")),
                Ok(count) => {
                    read += count;
                    // A short read that does not end at a block can only be the end of the file.
                    if read < buffer.len() && count % ALIGNMENT != 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has become shorter"));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.copy_from_slice(&aligned[..buffer.len()]);
        Ok(())
    }

    fn extent(&mut self, offset: u64) -> io::Result<Extent> {
        if self.block_device {
            return Ok(Extent { data: true, end: self.len });
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(Extent { data: false, end: data }),
            Ok(_) => {
                let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(offset))?;
                Ok(Extent { data: true, end: hole.max(offset + 1) })
            }
            // No content from here on.
            Err(Errno::NXIO) => Ok(Extent { data: false, end: self.len.max(offset + 1) }),
            // A file system that cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Extent { data: true, end: self.len.max(offset + 1) }),
            Err(error) => Err(error.into()),
        }
    }
}

impl Target for Disk {
    fn write(&mut self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.file.write_all_at(content, offset)
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let ways = if self.block_device {
            // Discarding a device may leave anything there; this leaves zeros.
            [
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            ]
        } else {
            [
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            ]
        };
        for way in ways {
            match rustix::fs::fallocate(&self.file, way, offset, len) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let zeros = vec![0; 1 << 20];
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(zeros.len());
            self.file.write_all_at(&zeros[..count], at)?;
            at += count as u64;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Makes the name of a new file durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn io_error(path: &Path, error: io::Error) -> OpenError {
    OpenError::Io { path: path.into(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_holes_and_an_odd_end_is_read_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = File::create(&path).unwrap();
        file.set_len((8 << 20) + 123).unwrap();
        file.write_all_at(b"comune", 3 << 20).unwrap();
        file.write_all_at(b"fine", (8 << 20) + 119).unwrap();
        file.sync_all().unwrap();
        let mut disk = Disk::source(&path).unwrap();
        assert_eq!(disk.len(), (8 << 20) + 123);
        let mut end = vec![0; 123];
        disk.read(8 << 20, &mut end).unwrap();
        assert!(end.ends_with(b"fine"));
        let first = disk.extent(0).unwrap();
        assert!(first.data || first.end <= 3 << 20, "{first:?}");
        assert!(disk.read(8 << 20, &mut vec![0; 4096]).is_err(), "read behind the end");
    }

    #[test]
    fn a_target_that_is_not_empty_is_not_touched_without_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        std::fs::write(&path, b"somebody's").unwrap();
        assert!(matches!(Disk::target(&path, 4096, false, false), Err(OpenError::NotEmpty(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
        let disk = Disk::target(&path, 4096, false, true).unwrap();
        assert_eq!(disk.len(), 4096);
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; 4096]);
    }

    #[test]
    fn a_target_that_has_vanished_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        assert!(matches!(Disk::target(&path, 4096, true, false), Err(OpenError::Io { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn zeroing_takes_the_room_back() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        let mut disk = Disk::target(&path, 4 << 20, false, false).unwrap();
        disk.write(0, &vec![7; 4 << 20]).unwrap();
        disk.sync().unwrap();
        let before = std::fs::metadata(&path).unwrap().blocks();
        disk.zero(1 << 20, 2 << 20).unwrap();
        disk.sync().unwrap();
        assert!(std::fs::metadata(&path).unwrap().blocks() < before);
        let mut read = vec![1; 4 << 20];
        disk.read(0, &mut read).unwrap();
        assert_eq!(read[..1 << 20], vec![7; 1 << 20]);
        assert_eq!(read[1 << 20..3 << 20], vec![0; 2 << 20]);
    }
}
