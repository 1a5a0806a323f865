//! Disks, images and tables of hashes: the thin side of [`crate::core::ports`].

mod aligned;
mod log;
mod raw;
mod table;

pub use log::FileLog;
pub(crate) use raw::sync_parent;
pub use raw::{Around, Disk, OpenError};
pub use table::FileTable;
