//! File locks between processes: nobody builds the same thing twice or starts what another one is stopping.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::progress::Progress;

/// Held until dropped; the kernel frees it when the process ends in any way.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock; says `waiting` once when that takes more than a second.
    pub async fn acquire(path: &Path, waiting: &str, progress: &Progress) -> Result<Self> {
        let begin = Instant::now();
        let mut said = false;
        loop {
            if let Some(lock) = Self::attempt(path)? {
                return Ok(lock);
            }
            if !said && begin.elapsed() > Duration::from_secs(1) {
                progress.note(waiting);
                said = true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The lock, or none when another process (or another task of this one) has it.
    pub fn attempt(path: &Path) -> Result<Option<Self>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        // The holder before us may have removed the file: then ours is one that nobody else will ever see.
        let ours = file.metadata()?;
        let current =
            std::fs::metadata(path).is_ok_and(|now| now.ino() == ours.ino() && now.dev() == ours.dev());
        Ok(current.then(|| Self { _file: file, path: path.to_owned() }))
    }

    /// Removes the file as well: the thing that it guarded is gone.
    pub fn remove(self) {
        // Left behind it does no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_also_across_a_removal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::attempt(&path).unwrap().unwrap();
        assert!(Lock::attempt(&path).unwrap().is_none());
        first.remove();
        let second = Lock::attempt(&path).unwrap().unwrap();
        assert!(Lock::attempt(&path).unwrap().is_none());
        drop(second);
        assert!(Lock::attempt(&path).unwrap().is_some());
    }
}
