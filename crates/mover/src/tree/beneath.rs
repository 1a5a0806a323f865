//! Opens what is below a directory, and nothing else: no link is followed, no `..`, no other file system.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use crate::core::tree::path::TreePath;

/// A directory and what is below it.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    dev: u64,
    by_kernel: Cell<bool>,
}

impl Beneath {
    /// Below this directory.
    ///
    /// # Errors
    /// Of the system.
    pub fn new(root: OwnedFd) -> io::Result<Self> {
        let dev = fstat(&root)?.st_dev;
        Ok(Self { root, dev, by_kernel: Cell::new(true) })
    }

    /// The directory itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// As on a kernel before 5.6, that cannot do this by itself.
    #[cfg(test)]
    fn by_hand(self) -> Self {
        self.by_kernel.set(false);
        self
    }

    /// Opens what is at this path; a link there is an error, too.
    ///
    /// # Errors
    /// When there is nothing, or a link on the way.
    pub fn open(&self, path: &TreePath, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.by_kernel.get() {
            let name = if path.is_root() { b"." } else { path.bytes() };
            let resolve = ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV;
            match openat2(&self.root, name, flags, Mode::empty(), resolve) {
                // A rename somewhere else may make the kernel unsure; it says so and wants to be asked again.
                Err(Errno::AGAIN) => {}
                Err(Errno::NOSYS | Errno::PERM) => self.by_kernel.set(false),
                opened => return Ok(opened?),
            }
        }
        let mut dir = openat(&self.root, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut names = path.names().peekable();
        while let Some(name) = names.next() {
            let last = names.peek().is_none();
            let step = if last { flags } else { OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC };
            dir = openat(&dir, name, step, Mode::empty())?;
            if fstat(&dir)?.st_dev != self.dev {
                return Err(Errno::XDEV.into());
            }
        }
        Ok(dir)
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// See [`Self::open`]; also when it is none.
    pub fn dir(&self, path: &TreePath) -> io::Result<OwnedFd> {
        self.open(path, OFlags::DIRECTORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_out_whoever_looks() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"!").unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::fs::write(dir.path().join("real/file"), b"").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("real/file", dir.path().join("in")).unwrap();
        let open = || Beneath::new(std::fs::File::open(dir.path()).unwrap().into()).unwrap();
        for beneath in [open(), open().by_hand()] {
            let at = |path: &[u8]| beneath.open(&TreePath::new(path.to_vec()).unwrap(), OFlags::RDONLY);
            assert!(at(b"real/file").is_ok() && at(b"").is_ok() && at(b"real").is_ok());
            assert!(at(b"out/secret").is_err() && at(b"out").is_err() && at(b"in").is_err());
            assert_eq!(at(b"real/none").unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }
}
