//! Disks, images and tables of hashes: the thin side of [`crate::core::ports`].

mod ahead;
mod aligned;
mod log;
mod raw;
mod table;

pub use ahead::Ahead;
pub use log::FileLog;
pub(crate) use raw::sync_parent;
pub use raw::{Around, Disk, OpenError};
pub use table::FileTable;
