//! What the two ends of a tree's transfer need of the world.
//!
//! Nothing here is asynchronous, and nothing has a clock.

use std::io;

use super::item::{Item, Meta, Time};
use super::path::TreePath;

/// A file of the state directory.
pub trait Store {
    /// Bytes in it.
    ///
    /// # Errors
    /// Of the disk; so for all that follow.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has none.
    ///
    /// # Errors
    /// See [`Self::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads from here on, and says how much: less than asked for only at the end.
    ///
    /// # Errors
    /// See [`Self::len`].
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes here; durable after [`Self::sync`].
    ///
    /// # Errors
    /// See [`Self::len`].
    fn write_at(&mut self, at: u64, content: &[u8]) -> io::Result<()>;

    /// Makes it so long: what is added is zeros.
    ///
    /// # Errors
    /// See [`Self::len`].
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Returns when everything is durable.
    ///
    /// # Errors
    /// See [`Self::len`]. They end the session: asking again would say that all is well.
    fn sync(&mut self) -> io::Result<()>;
}

/// The state directory: stores by name.
pub trait Shelf {
    /// Its stores.
    type Store: Store;

    /// The store of this name, empty when there was none. Its name is durable when its content is.
    ///
    /// # Errors
    /// Of the disk.
    fn open(&mut self, name: &str) -> io::Result<Self::Store>;

    /// Forgets a store; one that does not exist is no error.
    ///
    /// # Errors
    /// Of the disk.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// By what a later look tells whether a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// The file system.
    pub dev: u64,
    /// The file in it.
    pub ino: u64,
    /// Names that it has.
    pub links: u64,
    /// Bytes.
    pub size: u64,
    /// When its content changed.
    pub mtime: Time,
    /// When anything of it changed; nobody can set it.
    pub ctime: Time,
}

/// What an entry is at the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenKind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link, with what it says.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
}

/// An entry that the walk has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where.
    pub path: TreePath,
    /// What.
    pub kind: SeenKind,
    /// What is said about it.
    pub meta: Meta,
    /// By what a change is noticed.
    pub stat: Stat,
    /// Whether it changed so lately that another change might leave the same times.
    pub fresh: bool,
}

/// Why something is not at the target as it is at the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It, and what is below it, could not be read: the target keeps what it had.
    Unreadable(String),
    /// It was there when its directory was read, and then it was not.
    Vanished,
    /// It changed each time while it was read: the target may have half of a change.
    Changing,
    /// It is of a kind that is not carried, for this reason.
    LeftOut(&'static str),
}

impl Trouble {
    /// Whether the copy lacks something that it should have.
    pub fn is_lack(&self) -> bool {
        match self {
            Self::Unreadable(_) | Self::Changing => true,
            Self::Vanished | Self::LeftOut(_) => false,
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "cannot be read ({error}): repair it, or exclude it"),
            Self::Vanished => f.write_str("vanished while the tree was read"),
            Self::Changing => f.write_str("changed each time while it was read: stop what writes to it"),
            Self::LeftOut(why) => write!(f, "left out: {why}"),
        }
    }
}

/// One step of the walk.
#[derive(Debug)]
pub enum Walked {
    /// An entry; always behind the ones before.
    Seen(Seen),
    /// Something that is not carried, or not now.
    Trouble(TreePath, Trouble),
    /// That was all.
    End,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bit {
    /// So many bytes are in the buffer.
    Data(usize),
    /// So many bytes are a hole.
    Hole(u64),
    /// The file is at its end.
    End,
}

/// The tree that is moved.
pub trait Source {
    /// The next entry, in the order of the paths; the first is the root.
    ///
    /// # Errors
    /// When the tree as a whole cannot be read.
    fn next(&mut self) -> io::Result<Walked>;

    /// Begins anew with the root.
    ///
    /// # Errors
    /// See [`Self::next`].
    fn rewind(&mut self) -> io::Result<()>;

    /// Opens the file that the walk has come to, to be read from this byte on.
    ///
    /// # Errors
    /// Of this file, also when it is another one by now; so for all that follow.
    fn open(&mut self, at: u64) -> io::Result<()>;

    /// What comes next in the open file.
    ///
    /// # Errors
    /// See [`Self::open`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Bit>;

    /// The open file as it is now.
    ///
    /// # Errors
    /// See [`Self::open`].
    fn look_again(&mut self) -> io::Result<Seen>;
}

/// Where content lies at the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// In the tree.
    There(TreePath),
    /// Beside it.
    Staged(u64),
}

/// What has become of something that was to be put in its place or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is so.
    Done,
    /// What is there is somebody else's, and was left alone.
    Foreign(String),
}

/// How an entry at the target differs from what should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub path: TreePath,
    /// In what.
    pub what: String,
}

/// The directory that is written. Nothing outside of it is ever touched, whatever the arguments say.
pub trait Target {
    /// Begins a file beside the tree, empty.
    ///
    /// # Errors
    /// Of the disk; so for all that follow.
    fn stage(&mut self, id: u64) -> io::Result<()>;

    /// Writes to a file beside the tree; durable after [`Self::sync`].
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn write(&mut self, id: u64, at: u64, content: &[u8]) -> io::Result<()>;

    /// Makes a file beside the tree so long: cut off, or with a hole at its end.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn set_len(&mut self, id: u64, len: u64) -> io::Result<()>;

    /// Forgets a file beside the tree; one that does not exist is no error.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn unstage(&mut self, id: u64) -> io::Result<()>;

    /// Fills the buffer with what lies there; `false` when there is less, or no such file.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn read(&mut self, place: &Where, at: u64, buffer: &mut [u8]) -> io::Result<bool>;

    /// Returns when everything written and made is durable.
    ///
    /// # Errors
    /// See [`Self::stage`]. They end the session: asking again would say that all is well.
    fn sync(&mut self) -> io::Result<()>;

    /// Takes away what an earlier round has put there, and nothing else: `had` are descriptions of it, all of one
    /// path. May be asked again after a crash.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn remove(&mut self, had: &[Item]) -> io::Result<Outcome>;

    /// Brings an entry to its place. `had` is what an earlier round may have put there. May be asked again after a
    /// crash.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn place(&mut self, item: &Item, had: &[Item]) -> io::Result<Outcome>;

    /// All that is in this directory is in its place: gives it what is said about it.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn close_dir(&mut self, item: &Item) -> io::Result<()>;

    /// Forgets everything beside the tree.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn clear(&mut self) -> io::Result<()>;

    /// Compares an entry with what lies there, but for the content of files; the words name what differs.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn compare(&mut self, item: &Item) -> io::Result<Option<String>>;

    /// Forgets what is cached of the content of a file, so that it is read from the disk.
    ///
    /// # Errors
    /// See [`Self::stage`].
    fn drop_cache(&mut self, place: &Where) -> io::Result<()>;
}

/// Where an end cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The tree that is read.
    #[error("the source: {0}")]
    Source(#[source] io::Error),
    /// The directory that is written.
    #[error("the target: {0}")]
    Target(#[source] io::Error),
    /// The own memory of the transfer.
    #[error("the state directory: {0}")]
    State(#[source] io::Error),
    /// The other end broke the protocol.
    #[error("the other end does not keep to the protocol: {0}")]
    Peer(String),
    /// The other end ended the session.
    #[error("{text}")]
    Refused {
        /// Whether trying again later may help.
        later: bool,
        /// Its words.
        text: String,
    },
    /// A bit was flipped where TLS does not protect it.
    #[error(
        "content did not arrive as it was sent, and nothing of it was written: the next session sends it again; when \
         this comes back, test the memory of both machines"
    )]
    Damaged,
    /// Content that both ends took for known is not what it was.
    #[error("what was at the target has changed there; the next session sends it again")]
    Spoilt,
    /// The target is not as it should be, however often what differs is sent again.
    #[error("the target still differs after {0} rounds: the receiver says what is in the way")]
    Differs(u32),
    /// More than the receiver was told to take.
    #[error("the tree is larger than this target may become ({0}): raise the limit, or exclude something")]
    Budget(&'static str),
    /// The source was written to while it had to stand still.
    #[error("{0} changed during the proof: stop what writes to it, then begin again")]
    Disturbed(TreePath),
    /// A proof needs everything.
    #[error("{path} {trouble}; without it nothing is proven")]
    Unproven {
        /// Which.
        path: TreePath,
        /// Why.
        trouble: String,
    },
}

impl Fault {
    /// Whether a new session may get further.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused { later, .. } => *later,
            Self::Peer(_) | Self::Damaged | Self::Spoilt => true,
            Self::Source(_) | Self::Target(_) | Self::State(_) | Self::Budget(_) => false,
            Self::Differs(_) | Self::Disturbed(_) | Self::Unproven { .. } => false,
        }
    }
}
