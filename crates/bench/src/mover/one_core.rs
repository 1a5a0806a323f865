//! What one core does with an image: BLAKE3 over its leaves and zstd's level 1 over its units, from memory to memory. The
//! mover is held against it; nothing of the mover is used, so that it is not measured with itself.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// As the mover cuts a disk, in bytes.
const UNIT: usize = 1 << 20;
/// Hashed one by one, in bytes.
const LEAF: usize = 4096;
/// It is measured so often; the fastest counts, since the machine only ever slows it down.
const TIMES: usize = 3;

/// What one core has done.
#[derive(Debug, Serialize)]
pub struct OneCore {
    /// Bytes of the image.
    pub bytes: u64,
    /// Units with content.
    pub units: u64,
    /// Bytes that they were packed to.
    pub packed: u64,
    /// How long it took.
    pub seconds: f64,
}

impl OneCore {
    /// Bytes of the image a second, holes included.
    pub fn speed(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// Measures it.
    ///
    /// # Errors
    /// When the image cannot be read, or fits not into memory.
    pub fn measure(image: &Path) -> Result<Self> {
        let content = std::fs::read(image).with_context(|| image.display().to_string())?;
        let mut best: Option<Self> = None;
        for _ in 0..TIMES {
            let one = once(&content)?;
            if best.as_ref().is_none_or(|best| one.seconds < best.seconds) {
                best = Some(one);
            }
        }
        best.context("nothing was measured")
    }
}

fn once(content: &[u8]) -> Result<OneCore> {
    // A compressor of its own for the whole run: a new one for each unit would cost a tenth.
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    let mut buffer = vec![0; zstd::zstd_safe::compress_bound(UNIT)];
    let (began, mut packed, mut units) = (Instant::now(), 0, 0);
    for unit in content.chunks(UNIT) {
        // Zeros are read by everybody and sent by nobody.
        if unit.iter().all(|byte| *byte == 0) {
            continue;
        }
        units += 1;
        for leaf in unit.chunks(LEAF) {
            std::hint::black_box(blake3::hash(leaf));
        }
        packed += compressor.compress_to_buffer(unit, &mut buffer)? as u64;
    }
    ensure!(packed > 0, "the image is empty");
    Ok(OneCore { bytes: content.len() as u64, units, packed, seconds: began.elapsed().as_secs_f64() })
}

/// How fast the disk of the image gives it, around the cache as far as that can be asked for, in bytes a second: what
/// nobody is faster than.
///
/// # Errors
/// Of the disk.
pub fn reading(image: &Path) -> Result<f64> {
    let file = File::open(image)?;
    file.sync_data()?;
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let (len, mut buffer) = (file.metadata()?.len(), vec![0; UNIT]);
    let (began, mut at) = (Instant::now(), 0);
    while at < len {
        let count = file.read_at(&mut buffer, at)?;
        ensure!(count > 0, "the image became shorter");
        at += count as u64;
    }
    Ok(len as f64 / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_zeros_are_no_work_and_the_others_are_all_packed() {
        let mut content = vec![0; 3 * UNIT];
        content[UNIT..2 * UNIT].copy_from_slice(&b"tributi ".repeat(UNIT / 8));
        let one = once(&content).unwrap();
        assert_eq!((one.bytes, one.units), (3 << 20, 1));
        assert!(one.packed > 0 && one.packed < 1 << 12, "{}", one.packed);
        once(&vec![0; UNIT]).unwrap_err();
    }
}
