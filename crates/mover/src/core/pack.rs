//! How the content of leaves is packed for the way.

use super::frame::Packing;

/// Packs the content of leaves: compressed when that saves something, as it is otherwise.
#[derive(Debug)]
pub struct Packer {
    level: i32,
}

impl Packer {
    /// With zstd of this level; 0 never compresses.
    pub fn new(level: i32) -> Self {
        Self { level }
    }

    /// From now on with this level.
    pub fn set_level(&mut self, level: i32) {
        self.level = level;
    }

    /// The content, packed.
    ///
    /// # Errors
    /// When zstd has no memory for it.
    pub fn pack(&mut self, content: Vec<u8>) -> std::io::Result<(Packing, Vec<u8>)> {
        if self.level == 0 || content.is_empty() {
            return Ok((Packing::Raw, content));
        }
        let packed = zstd::bulk::compress(&content, self.level)?;
        // Less than a 32nd is not worth the work of unpacking.
        if packed.len() < content.len() - content.len() / 32 {
            Ok((Packing::Zstd, packed))
        } else {
            Ok((Packing::Raw, content))
        }
    }
}

/// The content of leaves, unpacked; `None` when it has not exactly `len` bytes.
pub fn unpack(packing: Packing, payload: Vec<u8>, len: usize) -> Option<Vec<u8>> {
    let content = match packing {
        Packing::Raw => payload,
        // The capacity is what the leaves have: a payload that claims to be more is refused, not unpacked.
        Packing::Zstd => zstd::bulk::decompress(&payload, len).ok()?,
    };
    (content.len() == len).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compresses_is_compressed_and_what_does_not_goes_as_it_is() {
        let text = b"tributi ".repeat(1000);
        let (packing, payload) = Packer::new(3).pack(text.clone()).unwrap();
        assert_eq!(packing, Packing::Zstd);
        assert!(payload.len() < 200);
        assert_eq!(unpack(packing, payload, text.len()), Some(text.clone()));

        let mut noise = vec![0; 8192];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(Packer::new(3).pack(noise.clone()).unwrap(), (Packing::Raw, noise));
        assert_eq!(Packer::new(0).pack(text.clone()).unwrap(), (Packing::Raw, text));
    }

    #[test]
    fn a_payload_that_unpacks_to_more_than_it_should_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert_eq!(unpack(Packing::Zstd, bomb, 4096), None);
        assert_eq!(unpack(Packing::Raw, vec![0; 4097], 4096), None);
        assert_eq!(unpack(Packing::Zstd, vec![1, 2, 3], 4096), None);
    }
}
