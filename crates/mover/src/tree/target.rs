//! Writes a directory, and never anything outside of it.
//!
//! New files are written to `.conme-mover` in the directory, where only the owner can look, and get their owner,
//! mode, attributes and times there. Then they are renamed: at its path a file is either the old one or the new one.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Advice, AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Timespec, Timestamps,
    UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, fadvise, fchmod, fchown, flock, fremovexattr, fsetxattr,
    fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, renameat, statat, symlinkat, syncfs,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use super::attributes;
use super::beneath::Beneath;
use crate::core::tree::item::{CAPABILITY, Item, Kind, Meta, Place};
use crate::core::tree::path::{RESERVED, TreePath};
use crate::core::tree::ports::{Outcome, Target, Where};

/// Files beside the tree that share a directory.
const SHARD: u64 = 1024;

/// Whose the entries of the target are.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owners {
    /// Those of the source by their numbers, but for these: the number there, the number here.
    Same {
        /// Of users.
        users: Vec<(u32, u32)>,
        /// Of groups.
        groups: Vec<(u32, u32)>,
    },
    /// Whoever runs the receiver.
    Mine,
}

/// How a tree is written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TargetSettings {
    /// Whose the entries are.
    pub owners: Owners,
    /// Whether programs keep setuid, setgid and capabilities: in another place they give rights to other people.
    pub privileges: bool,
}

impl Default for TargetSettings {
    fn default() -> Self {
        Self { owners: Owners::Same { users: Vec::new(), groups: Vec::new() }, privileges: false }
    }
}

/// Why a directory cannot be written to.
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
    /// There is something in it already.
    #[error(
        "{0} is not empty: choose another directory, or add --overwrite to have the tree put among what is there"
    )]
    NotEmpty(PathBuf),
    /// Another receiver writes there.
    #[error("{0} is in use by another receiver: end that first")]
    Busy(PathBuf),
    /// Owners cannot be given.
    #[error("only root can give files to their owners: run the receiver as root, or add --own")]
    NotRoot,
}

/// The directory.
#[derive(Debug)]
pub struct TreeTarget {
    beneath: Beneath,
    settings: TargetSettings,
    staging: Option<OwnedFd>,
    shard: Option<(u64, OwnedFd)>,
    staged: Option<(u64, File)>,
    parent: Option<(TreePath, OwnedFd)>,
    reading: Option<(Where, File)>,
}

impl TreeTarget {
    /// Opens the directory. When `begun` is false, nothing of this transfer can be in it: it is made when it does not
    /// exist, and what exists has to be empty unless `overwrite` is set. What is in it is kept in any case.
    ///
    /// # Errors
    /// When it cannot be opened, is in use, or not empty; and when owners cannot be given.
    pub fn open(
        path: &Path,
        settings: TargetSettings,
        begun: bool,
        overwrite: bool,
    ) -> Result<Self, OpenError> {
        let wrong = |error: io::Error| OpenError::Io { path: path.into(), error };
        if settings.owners != Owners::Mine && !rustix::process::geteuid().is_root() {
            return Err(OpenError::NotRoot);
        }
        // A directory that has vanished is not made anew: that would be an empty tree under an old name.
        if !begun && !path.exists() {
            std::fs::create_dir(path).map_err(wrong)?;
            crate::disk::sync_parent(path).map_err(wrong)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| wrong(error.into()))?;
        if flock(&root, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(OpenError::Busy(path.into()));
        }
        if !begun && !overwrite && !is_empty(&root).map_err(wrong)? {
            return Err(OpenError::NotEmpty(path.into()));
        }
        Ok(Self {
            beneath: Beneath::new(root).map_err(wrong)?,
            settings,
            staging: None,
            shard: None,
            staged: None,
            parent: None,
            reading: None,
        })
    }

    fn staging(&mut self) -> io::Result<OwnedFd> {
        if self.staging.is_none() {
            self.staging = Some(private_dir(self.beneath.root(), RESERVED)?);
        }
        match &self.staging {
            Some(fd) => fd.try_clone(),
            None => Err(io::Error::other("no directory for new files")),
        }
    }

    fn shard(&mut self, id: u64) -> io::Result<OwnedFd> {
        let number = id / SHARD;
        if self.shard.as_ref().is_none_or(|(open, _)| *open != number) {
            let staging = self.staging()?;
            self.shard = Some((number, private_dir(&staging, format!("{number:x}").as_bytes())?));
        }
        match &self.shard {
            Some((_, fd)) => fd.try_clone(),
            None => Err(io::Error::other("no directory for new files")),
        }
    }

    fn staged_name(id: u64) -> String {
        format!("{id:x}")
    }

    fn staged(&mut self, id: u64) -> io::Result<&File> {
        if self.staged.as_ref().is_none_or(|(open, _)| *open != id) {
            let shard = self.shard(id)?;
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&shard, Self::staged_name(id), flags, Mode::empty())?;
            self.staged = Some((id, file.into()));
        }
        match &self.staged {
            Some((_, file)) => Ok(file),
            None => Err(io::Error::other("no file")),
        }
    }

    /// The directory that an entry is in, and its name there.
    fn parent(&mut self, path: &TreePath) -> io::Result<(OwnedFd, CString)> {
        let Some(parent) = path.parent() else {
            return Err(io::Error::other("the root of a tree is in no directory"));
        };
        if self.parent.as_ref().is_none_or(|(open, _)| *open != parent) {
            let fd = self.beneath.dir(&parent)?;
            self.parent = Some((parent, fd));
        }
        let name = CString::new(path.name())?;
        match &self.parent {
            Some((_, fd)) => Ok((fd.try_clone()?, name)),
            None => Err(io::Error::other("no directory")),
        }
    }

    fn look(&mut self, path: &TreePath) -> io::Result<Option<Stat>> {
        if path.is_root() {
            return Ok(Some(fstat(self.beneath.root())?));
        }
        let looked = self.parent(path).and_then(|(dir, name)| {
            statat(&dir, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
        });
        match looked {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn owner(&self, meta: &Meta) -> Option<(u32, u32)> {
        match &self.settings.owners {
            Owners::Mine => None,
            Owners::Same { users, groups } => Some((mapped(users, meta.uid), mapped(groups, meta.gid))),
        }
    }

    fn mode(&self, item: &Item) -> Mode {
        let mode = u32::from(item.meta.mode);
        // On a directory, setgid only says which group new entries get.
        let strip = !self.settings.privileges && !item.kind.is_dir();
        Mode::from_raw_mode(if strip { mode & 0o1777 } else { mode })
    }

    fn xattrs(&self, meta: &Meta) -> Vec<(Vec<u8>, Vec<u8>)> {
        let kept = meta.xattrs.iter().filter(|(name, _)| self.settings.privileges || name != CAPABILITY);
        kept.map(|(name, value)| {
            let value = match &self.settings.owners {
                Owners::Same { users, groups } if name.starts_with(b"system.posix_acl_") => {
                    mapped_acl(value, users, groups)
                }
                _ => value.clone(),
            };
            (name.clone(), value)
        })
        .collect()
    }

    /// Gives an open file or directory what is said about it, where that differs.
    fn describe(&self, fd: impl AsFd, item: &Item) -> io::Result<()> {
        let stat = fstat(&fd)?;
        if let Some((uid, gid)) = self.owner(&item.meta)
            && (stat.st_uid, stat.st_gid) != (uid, gid)
        {
            fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        let (wanted, there) = (self.xattrs(&item.meta), attributes::read(&fd)?);
        for (name, _) in there.iter().filter(|(name, _)| !wanted.iter().any(|(wanted, _)| wanted == name)) {
            match fremovexattr(&fd, name.as_slice()) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Before the attributes: an ACL has the last word on the rights of the group.
        fchmod(&fd, self.mode(item))?;
        for (name, value) in &wanted {
            // Giving it to its owner took the capabilities away, even where they are as they should be.
            if name == CAPABILITY || !there.contains(&(name.clone(), value.clone())) {
                fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty())?;
            }
        }
        Ok(futimens(&fd, &times(&item.meta))?)
    }

    /// Gives what has just been made in the staging directory what is said about it.
    fn describe_at(&self, dir: &OwnedFd, name: &str, item: &Item) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner(&item.meta) {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if matches!(item.kind, Kind::Fifo) {
            chmodat(dir, name, self.mode(item), AtFlags::empty())?;
        }
        Ok(utimensat(dir, name, &times(&item.meta), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Whether something may be renamed to this path: what is there has to be of an earlier round, or nothing.
    fn may_replace(&mut self, path: &TreePath, had: &[Item]) -> io::Result<Result<(), Outcome>> {
        Ok(match self.look(path)? {
            None => Ok(()),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                Err(foreign("a directory of somebody else is in its place: move it away"))
            }
            Some(_) if had.iter().any(|had| !had.kind.is_dir()) => Ok(()),
            Some(_) => Err(foreign("an entry of somebody else is in its place: move it away")),
        })
    }

    fn place_dir(&mut self, item: &Item) -> io::Result<Outcome> {
        if item.path.is_root() {
            return Ok(Outcome::Done);
        }
        let (dir, name) = self.parent(&item.path)?;
        match mkdirat(&dir, name.as_c_str(), Mode::RWXU) {
            Ok(()) => Ok(Outcome::Done),
            Err(Errno::EXIST) => {
                let stat = statat(&dir, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    return Ok(foreign("an entry of somebody else is in its place: move it away"));
                }
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                if !mode.contains(Mode::RWXU) {
                    // Root may write to it as it is; anybody else could not.
                    fchmod(self.beneath.dir(&item.path)?, mode | Mode::RWXU)?;
                }
                Ok(Outcome::Done)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn place_file(&mut self, item: &Item, id: u64, had: &[Item]) -> io::Result<Outcome> {
        let size = if let Kind::File { size, .. } = item.kind { size } else { 0 };
        match self.staged(id) {
            Ok(file) => {
                if file.metadata()?.len() != size {
                    return Ok(foreign("what had arrived of it was changed by somebody: it is sent again"));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.placed_before(item, size),
            Err(error) => return Err(error),
        }
        if let Err(outcome) = self.may_replace(&item.path, had)? {
            return Ok(outcome);
        }
        let Some((_, file)) = self.staged.take() else { return Err(io::Error::other("no file")) };
        self.describe(&file, item)?;
        let (from, (to, name)) = (self.shard(id)?, self.parent(&item.path)?);
        renameat(&from, Self::staged_name(id), &to, name.as_c_str())?;
        Ok(Outcome::Done)
    }

    /// It is not beside the tree any more: a run that was interrupted has put it in its place.
    fn placed_before(&mut self, item: &Item, size: u64) -> io::Result<Outcome> {
        match self.beneath.open(&item.path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) if fstat(&fd)?.st_size as u64 == size => {
                self.describe(&fd, item)?;
                Ok(Outcome::Done)
            }
            _ => Ok(foreign("what had arrived of it is gone: it is sent again")),
        }
    }

    fn restate(&mut self, item: &Item) -> io::Result<Outcome> {
        match self.beneath.open(&item.path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::RegularFile => {
                self.describe(&fd, item)?;
                Ok(Outcome::Done)
            }
            _ => Ok(foreign("it is not there any more: it is sent again")),
        }
    }

    /// Makes something small in the staging directory and renames it to its place.
    fn place_made(
        &mut self,
        item: &Item,
        had: &[Item],
        make: impl FnOnce(&mut Self, &OwnedFd, &str) -> io::Result<()>,
    ) -> io::Result<Outcome> {
        const NAME: &str = "making";
        // It is so already, from before a crash: then that is no entry of somebody else.
        if self.compare(item)?.is_none() {
            return Ok(Outcome::Done);
        }
        if let Err(outcome) = self.may_replace(&item.path, had)? {
            return Ok(outcome);
        }
        let staging = self.staging()?;
        match unlinkat(&staging, NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        make(self, &staging, NAME)?;
        let (to, name) = self.parent(&item.path)?;
        renameat(&staging, NAME, &to, name.as_c_str())?;
        Ok(Outcome::Done)
    }

    fn differs(&mut self, item: &Item, stat: &Stat) -> io::Result<Option<String>> {
        let there = FileType::from_raw_mode(stat.st_mode);
        let wanted = match &item.kind {
            Kind::Dir => FileType::Directory,
            Kind::File { .. } => FileType::RegularFile,
            Kind::Symlink(_) => FileType::Symlink,
            Kind::Fifo => FileType::Fifo,
            Kind::Link(to) => {
                let first = self.look(to)?;
                let same =
                    first.is_some_and(|first| (first.st_dev, first.st_ino) == (stat.st_dev, stat.st_ino));
                return Ok((!same).then(|| format!("it is not another name of {to}")));
            }
        };
        if there != wanted {
            return Ok(Some("it is of another kind".into()));
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        if wanted != FileType::Symlink && mode != self.mode(item) {
            return Ok(Some(format!("its mode is {:o}", mode.as_raw_mode())));
        }
        if let Some((uid, gid)) = self.owner(&item.meta)
            && (stat.st_uid, stat.st_gid) != (uid, gid)
        {
            return Ok(Some(format!("its owner is {}:{}", stat.st_uid, stat.st_gid)));
        }
        if attributes::mtime(stat) != item.meta.mtime {
            return Ok(Some("its time".into()));
        }
        match &item.kind {
            Kind::File { size, .. } if *size != stat.st_size as u64 => Ok(Some("its length".into())),
            Kind::File { .. } | Kind::Dir => {
                let fd = self.beneath.open(&item.path, OFlags::RDONLY | OFlags::NONBLOCK)?;
                let mut wanted = self.xattrs(&item.meta);
                wanted.sort();
                Ok((attributes::read(&fd)? != wanted).then(|| "its extended attributes".into()))
            }
            Kind::Symlink(target) => {
                let (dir, name) = self.parent(&item.path)?;
                let there = readlinkat(&dir, name.as_c_str(), Vec::new())?;
                Ok((there.as_bytes() != target.as_slice()).then(|| "where it points to".into()))
            }
            Kind::Fifo | Kind::Link(_) => Ok(None),
        }
    }

    fn reading(&mut self, place: &Where) -> io::Result<Option<&File>> {
        if self.reading.as_ref().is_none_or(|(open, _)| open != place) {
            self.reading = None;
            let file = match place {
                Where::There(path) => {
                    self.beneath.open(path, OFlags::RDONLY | OFlags::NONBLOCK).map(File::from)
                }
                Where::Staged(id) => self.staged(*id).and_then(File::try_clone),
            };
            match file {
                Ok(file) if file.metadata()?.is_file() => self.reading = Some((place.clone(), file)),
                Ok(_) => return Ok(None),
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(self.reading.as_ref().map(|(_, file)| file))
    }
}

fn foreign(text: &str) -> Outcome {
    Outcome::Foreign(text.into())
}

/// There is nothing, or something else on the way: in no case what was written.
fn is_absent(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO))
}

fn is_empty(dir: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        // A new file system has the latter.
        if !matches!(entry.file_name().to_bytes(), b"." | b".." | b"lost+found") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A directory of this name that only the owner can look into; what else has the name is an error.
fn private_dir(parent: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(&parent, name, flags, Mode::empty())?;
    let stat = fstat(&fd)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(".conme-mover belongs to somebody else: remove it"));
    }
    fchmod(&fd, Mode::RWXU)?;
    Ok(fd)
}

fn times(meta: &Meta) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let mtime = Timespec { tv_sec: meta.mtime.seconds, tv_nsec: meta.mtime.nanos.into() };
    Timestamps { last_access: omit, last_modification: mtime }
}

fn mapped(map: &[(u32, u32)], number: u32) -> u32 {
    map.iter().find(|(there, _)| *there == number).map_or(number, |(_, here)| *here)
}

/// An ACL for the owners of this place. Its form is the kernel's: a version, then 8 bytes for each entry.
fn mapped_acl(acl: &[u8], users: &[(u32, u32)], groups: &[(u32, u32)]) -> Vec<u8> {
    let mut mapped_acl = acl.to_vec();
    for entry in mapped_acl.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
        let number = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let here = match u16::from_le_bytes([entry[0], entry[1]]) {
            0x02 => mapped(users, number),
            0x08 => mapped(groups, number),
            _ => number,
        };
        entry[4..].copy_from_slice(&here.to_le_bytes());
    }
    mapped_acl
}

impl Target for TreeTarget {
    fn stage(&mut self, id: u64) -> io::Result<()> {
        let shard = self.shard(id)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&shard, Self::staged_name(id), flags, Mode::RUSR | Mode::WUSR)?;
        self.staged = Some((id, file.into()));
        Ok(())
    }

    fn write(&mut self, id: u64, at: u64, content: &[u8]) -> io::Result<()> {
        self.staged(id)?.write_all_at(content, at)
    }

    fn set_len(&mut self, id: u64, len: u64) -> io::Result<()> {
        self.staged(id)?.set_len(len)
    }

    fn unstage(&mut self, id: u64) -> io::Result<()> {
        self.staged = None;
        self.reading = None;
        let shard = self.shard(id)?;
        match unlinkat(&shard, Self::staged_name(id), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self, place: &Where, at: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(file) = self.reading(place)? else { return Ok(false) };
        match file.read_exact_at(buffer, at) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.parent = None;
        // One call for all files and directories; thousands of small files one by one would take minutes.
        Ok(syncfs(self.beneath.root())?)
    }

    fn remove(&mut self, had: &[Item]) -> io::Result<Outcome> {
        let Some(path) = had.first().map(|had| had.path.clone()) else { return Ok(Outcome::Done) };
        self.reading = None;
        let stat = match self.look(&path) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Ok(Outcome::Done),
            Err(error) if is_absent(&error) => {
                return Ok(foreign("something of somebody else has taken the place of its directory"));
            }
            Err(error) => return Err(error),
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let ours = had.iter().any(|had| match &had.kind {
            Kind::Dir => is_dir,
            Kind::File { size, .. } => {
                FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                    && *size == stat.st_size as u64
                    && had.meta.mtime == attributes::mtime(&stat)
            }
            Kind::Symlink(_) => FileType::from_raw_mode(stat.st_mode) == FileType::Symlink,
            Kind::Fifo => FileType::from_raw_mode(stat.st_mode) == FileType::Fifo,
            Kind::Link(_) => !is_dir,
        });
        if !ours {
            return Ok(foreign("it is gone at the source, but somebody has changed it here: it is kept"));
        }
        if is_dir {
            let dir = self.beneath.dir(&path)?;
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            if !mode.contains(Mode::RWXU) {
                fchmod(&dir, mode | Mode::RWXU)?;
            }
        }
        self.parent = None;
        let (dir, name) = self.parent(&path)?;
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(&dir, name.as_c_str(), flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(Outcome::Done),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                Ok(foreign("it is gone at the source, but entries of somebody else are in it: they are kept"))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn place(&mut self, item: &Item, had: &[Item]) -> io::Result<Outcome> {
        self.reading = None;
        let placed = match (&item.kind, item.place) {
            (Kind::Dir, _) => self.place_dir(item),
            (Kind::File { .. }, Place::Staged(id)) => self.place_file(item, id, had),
            (Kind::File { .. }, Place::Restated) => self.restate(item),
            (Kind::File { .. }, Place::There | Place::New) => Ok(Outcome::Done),
            (Kind::Symlink(target), _) => self.place_made(item, had, |this, dir, name| {
                symlinkat(target.as_slice(), dir, name)?;
                this.describe_at(dir, name, item)
            }),
            (Kind::Fifo, _) => self.place_made(item, had, |this, dir, name| {
                mknodat(dir, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                this.describe_at(dir, name, item)
            }),
            (Kind::Link(to), _) => {
                if self.look(to)?.is_none() {
                    return Ok(foreign("what it is another name of is not there: it is sent again"));
                }
                self.place_made(item, had, |this, dir, name| {
                    let (first, first_name) = this.parent(to)?;
                    Ok(linkat(&first, first_name.as_c_str(), dir, name, AtFlags::empty())?)
                })
            }
        };
        match placed {
            Err(error) if is_absent(&error) => {
                Ok(foreign("something of somebody else has taken the place of its directory: move it away"))
            }
            placed => placed,
        }
    }

    fn close_dir(&mut self, item: &Item) -> io::Result<()> {
        self.parent = None;
        if item.path.is_root() {
            // What the receiver keeps in the root for itself would change its time again.
            self.clear()?;
        }
        let fd = self.beneath.dir(&item.path)?;
        self.describe(&fd, item)
    }

    fn clear(&mut self) -> io::Result<()> {
        self.staging = None;
        self.shard = None;
        self.staged = None;
        self.reading = None;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let staging = match openat(self.beneath.root(), RESERVED, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for entry in Dir::read_from(&staging)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match openat(&staging, name, flags, Mode::empty()) {
                Ok(shard) => {
                    for entry in Dir::read_from(&shard)? {
                        let entry = entry?;
                        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                            unlinkat(&shard, entry.file_name(), AtFlags::empty())?;
                        }
                    }
                    unlinkat(&staging, name, AtFlags::REMOVEDIR)?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(&staging, name, AtFlags::empty())?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(unlinkat(self.beneath.root(), RESERVED, AtFlags::REMOVEDIR)?)
    }

    fn compare(&mut self, item: &Item) -> io::Result<Option<String>> {
        let compared = match self.look(&item.path) {
            Ok(Some(stat)) => self.differs(item, &stat),
            Ok(None) => Ok(Some("it is missing".into())),
            Err(error) => Err(error),
        };
        match compared {
            Err(error) if is_absent(&error) => Ok(Some("it is missing, or behind a link".into())),
            compared => compared,
        }
    }

    fn drop_cache(&mut self, place: &Where) -> io::Result<()> {
        self.reading = None;
        match self.reading(place)? {
            Some(file) => Ok(fadvise(file, 0, None, Advice::DontNeed)?),
            None => Ok(()),
        }
    }
}
