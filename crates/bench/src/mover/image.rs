//! The image that is moved, and what is changed on it.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use conme_testbed::{Dirs, Progress, ensure_packages};

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

/// Bytes of a block that a change writes.
const BLOCK: u64 = 4096;

/// The system image with this size, made once from packages of the distribution.
///
/// # Errors
/// When the packages cannot be fetched, or do not fit.
pub async fn system(dirs: &Dirs, mib: u64, progress: &Progress) -> Result<PathBuf> {
    let packages = ensure_packages(dirs, "bench-system", &SYSTEM, progress).await?;
    let image = dirs.cache.join("bench-system").join(format!("{mib}.img"));
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
