//! What the two ends need of the world: disks, and tables of hashes that survive them.
//!
//! Nothing here is asynchronous, and nothing has a clock: a run of an end is decided by what these answer.

use std::io;

use super::hash::Digest;
use super::journal::Record;

/// A stretch of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Whether it has content; a hole reads as zeros.
    pub data: bool,
    /// Where it ends, in bytes; always behind where it was asked for.
    pub end: u64,
}

/// What can be read around every cache.
pub trait Source {
    /// Fills the buffer from this place on. Never called for bytes behind the end.
    ///
    /// # Errors
    /// Of the disk; also when it has become shorter.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The stretch that begins here. One that cannot tell holes says that all is data.
    ///
    /// # Errors
    /// Of the disk.
    fn extent(&mut self, offset: u64) -> io::Result<Extent>;
}

/// What another thread can read, too.
pub trait Again: Source + Sized {
    /// The same with a handle of its own.
    ///
    /// # Errors
    /// When there are no more handles.
    fn again(&self) -> io::Result<Self>;
}

/// What can be written.
pub trait Target: Source {
    /// Writes here; durable after [`Self::sync`].
    ///
    /// # Errors
    /// Of the disk: also when it is full.
    fn write(&mut self, offset: u64, content: &[u8]) -> io::Result<()>;

    /// Lets this stretch read as zeros, using no room where that is possible.
    ///
    /// # Errors
    /// Of the disk.
    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns when everything written is durable. After an error nothing written since the last success is.
    ///
    /// # Errors
    /// Of the disk. They end the session: asking again would say that all is well.
    fn sync(&mut self) -> io::Result<()>;
}

/// A table of hashes on a disk; what was never set is [`Digest::UNKNOWN`].
pub trait Table {
    /// So many hashes from this place on.
    ///
    /// # Errors
    /// Of the disk.
    fn get(&mut self, first: u64, count: usize) -> io::Result<Vec<Digest>>;

    /// Sets hashes from this place on; durable after [`Self::sync`].
    ///
    /// # Errors
    /// Of the disk.
    fn set(&mut self, first: u64, digests: &[Digest]) -> io::Result<()>;

    /// Forgets everything, durably.
    ///
    /// # Errors
    /// Of the disk.
    fn clear(&mut self) -> io::Result<()>;

    /// Returns when everything set is durable.
    ///
    /// # Errors
    /// Of the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// Where the receiver keeps how far it is.
pub trait Log {
    /// What was stored last, if anything was.
    ///
    /// # Errors
    /// Of the disk.
    fn load(&mut self) -> io::Result<Option<Record>>;

    /// Stores this. When it need not be durable, a loss of power may bring back the one before.
    ///
    /// # Errors
    /// Of the disk.
    fn store(&mut self, record: &Record, durable: bool) -> io::Result<()>;
}

/// Where an end cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The disk that is moved.
    #[error("the disk: {0}")]
    Disk(#[source] io::Error),
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
    /// What was sent arrived as something else, again and again.
    #[error("unit {unit} arrived damaged {times} times: test the memory of both machines")]
    Damaged {
        /// The unit.
        unit: u64,
        /// How often.
        times: u32,
    },
    /// The source was written to while it had to stand still.
    #[error("unit {0} of the source changed during the proof: stop what writes to it, then begin again")]
    Disturbed(u64),
    /// A file system was written to while it had to stand still.
    #[error("the file system at byte {0} changed during the proof: stop what writes to it, then begin again")]
    Stirred(u64),
    /// The roots differ, however often what differs is sent again.
    #[error("both ends still differ after {0} repairs: run `conme-mover verify` at the target")]
    Differs(u32),
}

impl Fault {
    /// Whether a new session may get further.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused { later, .. } => *later,
            Self::Peer(_) => true,
            Self::Disk(_)
            | Self::State(_)
            | Self::Damaged { .. }
            | Self::Disturbed(_)
            | Self::Stirred(_)
            | Self::Differs(_) => false,
        }
    }
}
