//! The image that is moved, and what is changed on it.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use conme_testbed::{Dirs, Progress, ensure_packages};
use nix::{
    errno::Errno,
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    unistd::{Whence, lseek},
};

use super::link::run;

/// What a small server of a municipality has: a kernel, a database, a web server, languages, documents.
const SYSTEM: [&str; 22] = [
    "linux-image-cloud-amd64",
    "systemd",
    "udev",
    "bash",
    "coreutils",
    "libc6",
    "libc-bin",
    "perl-base",
    "perl-modules-5.36",
    "libperl5.36",
    "python3.11-minimal",
    "libpython3.11-stdlib",
    "postgresql-15",
    "mariadb-server-core",
    "apache2-bin",
    "openssl",
    "libicu72",
    "git",
    "vim-runtime",
    "locales",
    "iso-codes",
    "cracklib-runtime",
];

/// The same in small, for links on which that would take hours.
const SMALL: [&str; 10] = [
    "bash",
    "coreutils",
    "libc6",
    "perl-base",
    "python3.11-minimal",
    "libpython3.11-stdlib",
    "apache2-bin",
    "openssl",
    "systemd",
    "iso-codes",
];

/// The whole system needs this room, in MiB.
pub const WHOLE: u64 = 700;
/// The small one.
pub const LEAST: u64 = 120;

/// Bytes of a block that a change writes.
const BLOCK: u64 = 4096;

/// A system image of this size, made once from packages of the distribution: a small system when the whole one does not
/// fit.
///
/// # Errors
/// When the packages cannot be fetched, or do not fit.
pub async fn system(dirs: &Dirs, mib: u64, progress: &Progress) -> Result<PathBuf> {
    let (name, wanted) =
        if mib >= WHOLE { ("bench-system", &SYSTEM[..]) } else { ("bench-system-small", &SMALL[..]) };
    let packages = ensure_packages(dirs, name, wanted, progress).await?;
    let image = dirs.cache.join(name).join(format!("{mib}.img"));
    if !image.is_file() {
        let part = image.with_extension("part");
        let file = File::create(&part)?;
        file.set_len(mib << 20)?;
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-d"]).arg(&packages.tree).arg(&part);
        run(&mut make)?;
        file.sync_all()?;
        std::fs::rename(&part, &image)?;
    }
    Ok(image)
}

/// What is changed on the image before a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// One percent of the bytes as scattered writes of 4 KiB.
    Scattered,
    /// One percent as stretches of 64 KiB.
    Stretches,
    /// Ten percent, in one place.
    Region,
}

/// Changes the image: the same places and bytes for everybody. Returns how many bytes.
///
/// # Errors
/// Of the disk.
pub fn change(image: &Path, change: Change) -> Result<u64> {
    let file = File::options().write(true).open(image)?;
    let len = file.metadata()?.len();
    ensure!(len >= 64 << 20, "an image of less than 64 MiB has too few blocks to be changed by percents");
    let mut random = Random(0x5eed ^ change as u64);
    let (extent, total) = match change {
        Change::Scattered => (BLOCK, len / 100),
        Change::Stretches => (64 << 10, len / 100),
        Change::Region => (len / 10 / BLOCK * BLOCK, len / 10),
    };
    let count = (total / extent).max(1);
    let mut content = vec![0; usize::try_from(extent)?];
    for _ in 0..count {
        // Records of a database more than noise: every other word is a number, the rest is text.
        for (at, word) in content.chunks_exact_mut(8).enumerate() {
            let text = *b"tributi ";
            word.copy_from_slice(&if at % 2 == 0 { random.next().to_le_bytes() } else { text });
        }
        let place = random.next() % ((len - extent) / BLOCK) * BLOCK;
        file.write_all_at(&content, place)?;
    }
    file.sync_all()?;
    Ok(count * extent)
}

/// Bytes that are read, written and compared at once.
const STEP: u64 = 1 << 20;

/// Makes a sparse disk of `len` bytes whose content is that of the image: `spread` evenly, once, or again and again until
/// it is full. Returns the bytes of content.
///
/// # Errors
/// Of the disk.
pub fn disk(image: &Path, disk: &Path, len: u64, spread: bool) -> Result<u64> {
    let (from, to) = (File::open(image)?, File::create(disk)?);
    to.set_len(len)?;
    let steps = from.metadata()?.len() / STEP;
    ensure!(steps > 0 && len >= steps * STEP, "a disk of {len} bytes has no room for the image");
    let stride = if spread { len / STEP / steps } else { 1 };
    let mut content = vec![0; usize::try_from(STEP)?];
    let mut written = 0;
    for at in (0..len / STEP).step_by(usize::try_from(stride)?) {
        let from_step = at / stride;
        if spread && from_step == steps {
            break;
        }
        from.read_exact_at(&mut content, from_step % steps * STEP)?;
        if content.iter().any(|byte| *byte != 0) {
            to.write_all_at(&content, at * STEP)?;
            written += STEP;
        }
    }
    to.sync_all()?;
    Ok(written)
}

/// Compares two files byte by byte; holes in both are not read.
///
/// # Errors
/// When they differ, saying where; of the disk.
pub fn same(one: &Path, other: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let files = [open(one)?, open(other)?];
    let [len, other_len] = [files[0].metadata()?.len(), files[1].metadata()?.len()];
    ensure!(len == other_len, "one has {len} bytes, the other {other_len}");
    let (mut left, mut right) = (vec![0; usize::try_from(STEP)?], vec![0; usize::try_from(STEP)?]);
    let mut at = 0;
    while let Some(next) = next_content(&files, at)? {
        let count = usize::try_from((next.end - next.start).min(STEP))?;
        files[0].read_exact_at(&mut left[..count], next.start)?;
        files[1].read_exact_at(&mut right[..count], next.start)?;
        if left[..count] != right[..count] {
            let same = left.iter().zip(&right).take_while(|(one, other)| one == other).count();
            bail!("they differ from byte {} on", next.start + same as u64);
        }
        at = next.start + count as u64;
    }
    Ok(())
}

/// The first stretch from `at` on that is not a hole in either.
fn next_content(files: &[File; 2], at: u64) -> Result<Option<Range<u64>>> {
    let mut next: Option<Range<u64>> = None;
    for file in files {
        let seek = |at: u64, whence| -> Result<Option<u64>> {
            match lseek(file, i64::try_from(at)?, whence) {
                Ok(found) => Ok(Some(u64::try_from(found)?)),
                Err(Errno::ENXIO) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        let Some(start) = seek(at, Whence::SeekData)? else { continue };
        let end = seek(start, Whence::SeekHole)?.context("content without an end")?;
        if next.as_ref().is_none_or(|next| start < next.start) {
            next = Some(start..end);
        }
    }
    Ok(next)
}

/// Makes everything below a directory durable and drops it from the cache: each transfer begins with cold disks.
///
/// # Errors
/// Of the disk.
pub fn cool(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            cool(&entry.path())?;
        } else if kind.is_file() {
            let file = File::open(entry.path())?;
            // Dirty pages cannot be dropped.
            file.sync_data()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

/// SplitMix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_differ_in_one_byte_or_in_a_hole_are_told_from_equal_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let sparse = |path: &Path| {
            let file = File::create(path).unwrap();
            file.set_len(32 << 20).unwrap();
            file.write_all_at(b"tributi", 9 << 20).unwrap();
            file
        };
        let (file, copy) = (sparse(&one), sparse(&other));
        same(&one, &other).unwrap();
        // A hole and zeros are the same content.
        copy.write_all_at(&[0; 8192], 1 << 20).unwrap();
        same(&one, &other).unwrap();
        file.write_all_at(&[7], (30 << 20) + 5).unwrap();
        let told = same(&one, &other).unwrap_err().to_string();
        assert!(told.contains(&((30 << 20) + 5).to_string()), "{told}");
        copy.write_all_at(&[7], (30 << 20) + 5).unwrap();
        same(&one, &other).unwrap();
        // Content in a hole of the other, before what both have.
        copy.write_all_at(&[1], 5 << 20).unwrap();
        same(&one, &other).unwrap_err();
        same(&other, &one).unwrap_err();
        file.write_all_at(&[1], 5 << 20).unwrap();
        same(&one, &other).unwrap();
        copy.set_len(33 << 20).unwrap();
        same(&one, &other).unwrap_err();
    }

    #[test]
    fn a_change_is_the_same_for_everybody_and_as_large_as_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let image = |name: &str| {
            let path = dir.path().join(name);
            File::create(&path).unwrap().set_len(64 << 20).unwrap();
            path
        };
        let (one, other) = (image("one"), image("other"));
        for (what, share) in [(Change::Scattered, 100), (Change::Stretches, 100), (Change::Region, 10)] {
            let bytes = change(&one, what).unwrap();
            assert!((64 << 20) / share - bytes < 128 << 10, "{what:?}: {bytes}");
            assert_eq!(change(&other, what).unwrap(), bytes);
            same(&one, &other).unwrap();
        }
    }

    #[test]
    fn a_disk_is_full_or_has_its_content_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        File::create(path("image")).unwrap().write_all_at(&vec![5; 2 << 20], 0).unwrap();
        assert_eq!(disk(&path("image"), &path("full"), 16 << 20, false).unwrap(), 16 << 20);
        assert_eq!(disk(&path("image"), &path("thin"), 16 << 20, true).unwrap(), 2 << 20);
        let mut byte = [0];
        File::open(path("thin")).unwrap().read_exact_at(&mut byte, 8 << 20).unwrap();
        assert_eq!(byte, [5]);
    }
}
