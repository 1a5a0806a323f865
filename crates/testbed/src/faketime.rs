//! A library that tells one program another time, for the stories about clocks that jump.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::{self, Apt};
use crate::dirs::{Dirs, create_dir};
use crate::lock::Lock;
use crate::progress::Progress;

const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
/// What to do when nothing works.
const ADVICE: &str = "install the package libfaketime of your distribution";

/// Finds libfaketime on this machine or unpacks it from the packages of the distribution into the cache; returns the
/// library to preload.
///
/// # Errors
/// When it is neither installed nor can be fetched; the text says what to do.
pub async fn ensure_faketime(dirs: &Dirs, progress: &Progress) -> Result<PathBuf> {
    let root = dirs.cache.join("faketime");
    let tree = root.join("tree");
    if let Some(found) = in_tree(Path::new("/")).or_else(|| in_tree(&tree)) {
        return Ok(found);
    }
    create_dir(&root, 0o755)?;
    let waiting = "  … another process unpacks libfaketime: waiting for it";
    let _lock = Lock::acquire(&root.join(".lock"), waiting, progress).await?;
    if let Some(found) = in_tree(&tree) {
        return Ok(found);
    }
    match unpack(&Apt::of_system(&root), &tree).await {
        Ok(()) => {}
        // The lists of the system may be missing or too old; ours need no root.
        Err(_) => unpack(&Apt::with_own_lists(&root), &tree)
            .await
            .with_context(|| format!("there is no libfaketime here and it cannot be fetched: {ADVICE}"))?,
    }
    in_tree(&tree).with_context(|| format!("the package libfaketime holds no {LIBRARY}: {ADVICE}"))
}

fn in_tree(tree: &Path) -> Option<PathBuf> {
    let library = debian::libraries(tree).join(LIBRARY);
    library.is_file().then_some(library)
}

async fn unpack(apt: &Apt, target: &Path) -> Result<()> {
    apt.refresh().await?;
    let only = |package: &str| package == "libfaketime";
    let (_work, tree) = apt.unpack("libfaketime", &["libfaketime".to_owned()], only).await?;
    std::fs::rename(&tree, target)?;
    apt.tidy();
    Ok(())
}
