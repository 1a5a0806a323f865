//! MariaDB servers as ordinary processes on the loopback interface.

pub(crate) mod binaries;
pub(crate) mod server;

use anyhow::Result;

use crate::dirs::Dirs;
use crate::progress::Progress;

/// Finds MariaDB on this machine or unpacks it from the packages of the distribution into the cache; returns its
/// version.
///
/// # Errors
/// When it is neither installed nor can be fetched; the text says what to do.
pub async fn ensure_mariadb(dirs: &Dirs, progress: &Progress) -> Result<String> {
    binaries::Binaries::ensure(dirs, progress).await?.version().await
}
