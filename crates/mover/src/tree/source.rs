//! Walks a directory by file descriptors, without following a link, in the order of the paths.

use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat, readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::attributes;
use crate::core::tree::item::Time;
use crate::core::tree::path::{RESERVED, TreePath};
use crate::core::tree::ports::{Bit, Seen, SeenKind, Source, Trouble, Walked};

/// Names of one directory that are held at once; of a larger one they are read again and again.
const NAMES: usize = 1 << 16;
/// Directories within one another that are gone into: each takes a descriptor.
const DEPTH: usize = 512;

/// What is not to be carried, by patterns.
#[derive(Debug, Clone, Default)]
pub struct Excludes(GlobSet);

impl Excludes {
    /// With these patterns: one with a `/` stands for a path from the root of the tree on, one without for a name
    /// anywhere. What is in an excluded directory is excluded, too.
    ///
    /// # Errors
    /// When one is no pattern.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, globset::Error> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            let pattern = pattern.trim_end_matches('/');
            let whole = match pattern.strip_prefix('/') {
                Some(path) => path.to_owned(),
                None if pattern.contains('/') => pattern.to_owned(),
                None => format!("**/{pattern}"),
            };
            set.add(GlobBuilder::new(&whole).literal_separator(true).build()?);
        }
        set.build().map(Self)
    }

    fn has(&self, path: &TreePath) -> bool {
        use std::os::unix::ffi::OsStrExt as _;
        !self.0.is_empty() && self.0.is_match(Path::new(std::ffi::OsStr::from_bytes(path.bytes())))
    }
}

/// What is read of a tree.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// What is not.
    pub excludes: Excludes,
    /// Whether directories on which another file system is mounted are gone into.
    pub cross: bool,
    /// A change this short ago may be followed by one that leaves the same times: such a file is read again.
    pub settles_after: Duration,
}

impl Default for SourceSettings {
    fn default() -> Self {
        Self { excludes: Excludes::default(), cross: false, settles_after: Duration::from_secs(2) }
    }
}

/// The tree.
#[derive(Debug)]
pub struct TreeSource {
    path: PathBuf,
    settings: SourceSettings,
    dev: u64,
    stack: Vec<Level>,
    ahead: VecDeque<Walked>,
    file: Option<Open>,
    begun: bool,
}

#[derive(Debug)]
struct Level {
    path: TreePath,
    fd: OwnedFd,
    /// The next names, the first one last.
    names: Vec<Vec<u8>>,
    last: Option<Vec<u8>>,
    more: bool,
}

#[derive(Debug)]
struct Open {
    path: TreePath,
    fd: OwnedFd,
    at: u64,
    data_end: u64,
    /// Bytes when it was opened: who adds to it without end is not followed.
    size: u64,
}

impl TreeSource {
    /// The tree below this directory.
    ///
    /// # Errors
    /// When it cannot be opened, or is none.
    pub fn open(path: &Path, settings: SourceSettings) -> io::Result<Self> {
        let mut this = Self {
            path: path.into(),
            settings,
            dev: 0,
            stack: Vec::new(),
            ahead: VecDeque::new(),
            file: None,
            begun: false,
        };
        this.dev = fstat(this.root()?)?.st_dev;
        Ok(this)
    }

    fn root(&self) -> io::Result<OwnedFd> {
        // The path that a person gave may be a link; nothing below it is followed.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.path, flags, Mode::empty())?)
    }

    fn walk(&mut self) -> io::Result<Walked> {
        if let Some(walked) = self.ahead.pop_front() {
            return Ok(walked);
        }
        self.file = None;
        if !self.begun {
            self.begun = true;
            let fd = self.root()?;
            return self.enter(TreePath::default(), fd);
        }
        while let Some(level) = self.stack.last_mut() {
            match level.next() {
                Ok(Some(name)) => {
                    if let Some(walked) = self.entry(&name) {
                        return Ok(walked);
                    }
                }
                Ok(None) => {
                    self.stack.pop();
                }
                Err(error) => {
                    let path = level.path.clone();
                    self.stack.pop();
                    return Ok(unreadable(path, &error));
                }
            }
        }
        Ok(Walked::End)
    }

    /// A directory, and then what is in it.
    fn enter(&mut self, path: TreePath, fd: OwnedFd) -> io::Result<Walked> {
        let stat = fstat(&fd)?;
        let seen =
            seen(path.clone(), SeenKind::Dir, &stat, attributes::read(&fd)?, self.settings.settles_after);
        if stat.st_dev != self.dev && !self.settings.cross {
            let why = "another file system is mounted there (--cross-file-systems goes into it)";
            self.ahead.push_back(Walked::Trouble(path, Trouble::LeftOut(why)));
        } else if self.stack.len() >= DEPTH {
            let error = io::Error::other("more than 512 directories within one another");
            self.ahead.push_back(unreadable(path, &error));
        } else {
            self.stack.push(Level { path, fd, names: Vec::new(), last: None, more: true });
        }
        Ok(Walked::Seen(seen))
    }

    /// What has this name in the directory at hand; `None` when it is excluded.
    fn entry(&mut self, name: &[u8]) -> Option<Walked> {
        let level = self.stack.last()?;
        let path = match level.path.join(name) {
            Ok(path) => path,
            Err(_) if level.path.is_root() && name == RESERVED => {
                let why = "its name is the one that a receiver keeps for itself";
                return Some(Walked::Trouble(TreePath::default(), Trouble::LeftOut(why)));
            }
            Err(_) => {
                let error = io::Error::other("a path in it is longer than 4095 bytes");
                return Some(unreadable(level.path.clone(), &error));
            }
        };
        if self.settings.excludes.has(&path) {
            return None;
        }
        Some(match self.look(&path, name) {
            Ok(walked) => walked,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Walked::Trouble(path, Trouble::Vanished),
            Err(error) => unreadable(path, &error),
        })
    }

    fn look(&mut self, path: &TreePath, name: &[u8]) -> io::Result<Walked> {
        let Some(level) = self.stack.last() else { return Ok(Walked::End) };
        let stat = statat(&level.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let left_out = |why| Ok(Walked::Trouble(path.clone(), Trouble::LeftOut(why)));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(&level.fd, name, flags, Mode::empty())?;
                self.enter(path.clone(), fd)
            }
            FileType::RegularFile => {
                // Another kind may have taken the name meanwhile, such as a pipe that nobody writes to.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let fd = openat(&level.fd, name, flags, Mode::empty())?;
                let stat = fstat(&fd)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(Walked::Trouble(path.clone(), Trouble::Vanished));
                }
                let seen = seen(
                    path.clone(),
                    SeenKind::File,
                    &stat,
                    attributes::read(&fd)?,
                    self.settings.settles_after,
                );
                self.file = Some(Open { path: path.clone(), fd, at: 0, data_end: 0, size: 0 });
                Ok(Walked::Seen(seen))
            }
            FileType::Symlink => {
                let target = readlinkat(&level.fd, name, Vec::new())?.into_bytes();
                Ok(Walked::Seen(seen(
                    path.clone(),
                    SeenKind::Symlink(target),
                    &stat,
                    Vec::new(),
                    self.settings.settles_after,
                )))
            }
            FileType::Fifo => Ok(Walked::Seen(seen(
                path.clone(),
                SeenKind::Fifo,
                &stat,
                Vec::new(),
                self.settings.settles_after,
            ))),
            FileType::Socket => left_out("a socket is made by the program that listens on it"),
            FileType::CharacterDevice | FileType::BlockDevice => {
                left_out("a device belongs to the machine, and would be a way to the disks of another")
            }
            FileType::Unknown => left_out("it is of an unknown kind"),
        }
    }

    fn current(&mut self) -> io::Result<&mut Open> {
        self.file.as_mut().ok_or_else(|| io::Error::other("no file is open"))
    }
}

fn unreadable(path: TreePath, error: &io::Error) -> Walked {
    Walked::Trouble(path, Trouble::Unreadable(error.to_string()))
}

fn seen(
    path: TreePath,
    kind: SeenKind,
    stat: &Stat,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    settles_after: Duration,
) -> Seen {
    let noticed = attributes::noticed(stat);
    let limit = SystemTime::now().checked_sub(settles_after);
    let limit = limit.and_then(|limit| limit.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let limit = (limit.as_secs() as i64, limit.subsec_nanos());
    // The clock may go wrong, the times of changes with it: what is from the future is never old.
    let is_late = |time: Time| (time.seconds, time.nanos) > limit;
    let fresh = is_late(noticed.mtime) || is_late(noticed.ctime);
    Seen { path, kind, meta: attributes::meta(stat, xattrs), stat: noticed, fresh }
}

impl Level {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.names.is_empty() && self.more {
            self.refill()?;
        }
        let name = self.names.pop();
        self.last.clone_from(&name);
        Ok(name)
    }

    /// The smallest names behind the last one. All of them at once could be more than the memory holds.
    fn refill(&mut self) -> io::Result<()> {
        let mut smallest = BinaryHeap::new();
        let mut held = 0;
        self.more = false;
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let is_behind = self.last.as_ref().is_some_and(|last| name <= last.as_slice());
            if name == b"." || name == b".." || is_behind {
                continue;
            }
            smallest.push(name.to_vec());
            held += 1;
            if held > NAMES {
                smallest.pop();
                held -= 1;
                self.more = true;
            }
        }
        self.names = smallest.into_sorted_vec();
        self.names.reverse();
        Ok(())
    }
}

impl Source for TreeSource {
    fn next(&mut self) -> io::Result<Walked> {
        self.walk()
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.stack.clear();
        self.ahead.clear();
        self.file = None;
        self.begun = false;
        Ok(())
    }

    fn open(&mut self, at: u64) -> io::Result<()> {
        let file = self.current()?;
        file.at = at;
        file.data_end = at;
        file.size = fstat(&file.fd)?.st_size as u64;
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Bit> {
        let file = self.current()?;
        if file.at >= file.size {
            return Ok(Bit::End);
        }
        if file.at >= file.data_end {
            match seek(&file.fd, SeekFrom::Data(file.at)) {
                Ok(data) if data > file.at => {
                    let hole = data.min(file.size) - file.at;
                    file.at += hole;
                    return Ok(Bit::Hole(hole));
                }
                Ok(_) => file.data_end = seek(&file.fd, SeekFrom::Hole(file.at))?,
                // No content from here on.
                Err(Errno::NXIO) => {
                    let size = file.size.min(fstat(&file.fd)?.st_size as u64);
                    let hole = size.saturating_sub(file.at);
                    file.at += hole;
                    return Ok(if hole > 0 { Bit::Hole(hole) } else { Bit::End });
                }
                // A file system that cannot tell.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => file.data_end = u64::MAX,
                Err(error) => return Err(error.into()),
            }
        }
        let left = usize::try_from(file.data_end.min(file.size) - file.at).unwrap_or(usize::MAX);
        let len = buffer.len().min(left.max(1));
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(&file.fd, &mut buffer[..len], file.at))?;
        file.at += count as u64;
        Ok(if count == 0 { Bit::End } else { Bit::Data(count) })
    }

    fn look_again(&mut self) -> io::Result<Seen> {
        let settles_after = self.settings.settles_after;
        let file = self.current()?;
        let stat = fstat(&file.fd)?;
        let xattrs = attributes::read(&file.fd)?;
        Ok(seen(file.path.clone(), SeenKind::File, &stat, xattrs, settles_after))
    }
}
