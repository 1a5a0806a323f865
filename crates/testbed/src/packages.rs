//! Packages of the distribution, unpacked into the cache for a benchmark or a test; nothing is installed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::{self, Apt};
use crate::dirs::{Dirs, create_dir};
use crate::lock::Lock;
use crate::progress::Progress;

/// An unpacked tree of packages.
#[derive(Debug, Clone)]
pub struct Packages {
    /// The root of the tree.
    pub tree: PathBuf,
    /// Its libraries, for `LD_LIBRARY_PATH`.
    pub libraries: PathBuf,
}

/// Unpacks packages, and of what they need what is not installed here, into the cache as `name`. What was unpacked
/// before is taken as it is.
///
/// # Errors
/// When they cannot be fetched.
pub async fn ensure_packages(
    dirs: &Dirs,
    name: &str,
    wanted: &[&str],
    progress: &Progress,
) -> Result<Packages> {
    let root = dirs.cache.join(name);
    create_dir(&root, 0o755)?;
    let tree = root.join("tree");
    let waiting = format!("  … another process unpacks {name}: waiting for it");
    let _lock = Lock::acquire(&root.join(".lock"), &waiting, progress).await?;
    if !tree.is_dir() {
        match unpack(&Apt::of_system(&root), name, wanted, &tree).await {
            Ok(()) => {}
            // The lists of the system may be missing or too old; ours need no root.
            Err(_) => unpack(&Apt::with_own_lists(&root), name, wanted, &tree).await.with_context(|| {
                format!("install these packages of your distribution: {}", wanted.join(" "))
            })?,
        }
    }
    Ok(Packages { libraries: debian::libraries(&tree), tree })
}

async fn unpack(apt: &Apt, name: &str, wanted: &[&str], target: &Path) -> Result<()> {
    apt.refresh().await?;
    let wanted: Vec<String> = wanted.iter().map(|package| (*package).to_owned()).collect();
    let (_work, tree) = apt.unpack(name, &wanted, |_| true).await?;
    std::fs::rename(&tree, target)?;
    apt.tidy();
    Ok(())
}
