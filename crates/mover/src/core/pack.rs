//! How the content of leaves is packed for the way.

use super::frame::{BUNDLE, Bundle, PARTS, Packing, Part, ToReceiver, UnitFrame};

/// How far back zstd looks, as a power of two: over a whole bundle.
const WINDOW: u32 = 22;
/// Bytes that are packed together at least, even when the line has nothing to do.
const LEAST: usize = 1 << 20;
/// From this level on zstd's tables would be larger than what is packed.
const LARGE: i32 = 9;
/// From this level on it has further tables beside them.
const LARGEST: i32 = 16;
/// Bytes on which two levels are compared.
const SAMPLE: usize = 256 << 10;

/// Packs the content of leaves: compressed when that saves something, as it is otherwise.
#[derive(Default)]
pub struct Packer {
    level: i32,
    /// Kept from one content to the next: making one costs as much as packing a little.
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Packer {
    /// With zstd of this level; 0 never compresses.
    pub fn new(level: i32) -> Self {
        Self { level, zstd: None, packed: Vec::new() }
    }

    /// From now on with this level.
    pub fn set_level(&mut self, level: i32) {
        if level != self.level {
            self.level = level;
            self.zstd = None;
        }
    }

    /// The content, packed.
    ///
    /// # Errors
    /// When zstd has no memory for it.
    pub fn pack(&mut self, content: Vec<u8>) -> std::io::Result<(Packing, Vec<u8>)> {
        if self.level == 0 || content.is_empty() {
            return Ok((Packing::Raw, content));
        }
        let len = self.compress(&content)?;
        // Less than a 32nd is not worth the work of unpacking.
        if len < content.len() - content.len() / 32 {
            Ok((Packing::Zstd, self.packed.clone()))
        } else {
            Ok((Packing::Raw, content))
        }
    }

    /// Whether one level makes fewer bytes of this content than the other, by half a percent at least and as far as its
    /// beginning tells; `None` when there is too little of it. The other level is the one that is set afterwards.
    ///
    /// # Errors
    /// When zstd has no memory for it.
    pub fn makes_fewer(&mut self, level: i32, than: i32, content: &[u8]) -> std::io::Result<Option<bool>> {
        let Some(sample) = content.get(..SAMPLE) else { return Ok(None) };
        self.set_level(level);
        let one = self.compress(sample)?;
        self.set_level(than);
        let other = self.compress(sample)?;
        Ok(Some(one < other - other / 200))
    }

    /// Compresses into the own buffer. Returns how many bytes that are.
    fn compress(&mut self, content: &[u8]) -> std::io::Result<usize> {
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(compressor(self.level)?),
        };
        self.packed.clear();
        self.packed.reserve_exact(zstd::zstd_safe::compress_bound(content.len()));
        zstd.compress_to_buffer(content, &mut self.packed)
    }
}

fn compressor(level: i32) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    use zstd::zstd_safe::CParameter;
    let mut zstd = zstd::bulk::Compressor::new(level)?;
    zstd.set_parameter(CParameter::WindowLog(WINDOW))?;
    if level >= LARGE {
        // Up to 48 MiB without this, for next to no bytes less.
        let less = u32::from(level >= LARGEST);
        zstd.set_parameter(CParameter::ChainLog(21 - less))?;
        zstd.set_parameter(CParameter::HashLog(20 - less))?;
    }
    Ok(zstd)
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

/// What is packed and sent at once.
#[derive(Debug)]
pub enum Load {
    /// A frame as it is.
    Frame(ToReceiver),
    /// Parts of a bundle, and the content of all of them.
    Parts(Vec<Part>, Vec<u8>),
}

impl Load {
    /// Frames and parts in it that are counted.
    pub fn counted(&self) -> u64 {
        match self {
            Self::Frame(ToReceiver::Unit(_) | ToReceiver::Zeros { .. } | ToReceiver::Progress { .. }) => 1,
            Self::Frame(_) => 0,
            Self::Parts(parts, _) => parts.len() as u64,
        }
    }

    /// Bytes of content that are to be packed.
    pub fn content(&self) -> usize {
        match self {
            Self::Frame(_) => 0,
            Self::Parts(_, content) => content.len(),
        }
    }

    /// The frame that is sent.
    ///
    /// # Errors
    /// See [`Packer::pack`].
    pub fn pack(self, packer: &mut Packer) -> std::io::Result<ToReceiver> {
        let (parts, content) = match self {
            Self::Frame(frame) => return Ok(frame),
            Self::Parts(parts, content) => (parts, content),
        };
        let (packing, payload) = packer.pack(content)?;
        Ok(match parts.as_slice() {
            [Part::Unit(head)] => ToReceiver::Unit(UnitFrame { head: *head, packing, payload }),
            _ => ToReceiver::Bundle(Bundle { parts, packing, payload }),
        })
    }
}

/// Gathers units that are sent one after another, to be packed together. The first bundles of a session are small: also
/// a link that is cut after every MiB carries something.
#[derive(Debug)]
pub struct Bundler {
    parts: Vec<Part>,
    content: Vec<u8>,
    full: usize,
}

impl Default for Bundler {
    fn default() -> Self {
        Self { parts: Vec::new(), content: Vec::new(), full: LEAST }
    }
}

impl Bundler {
    /// Takes the next frame of a session, and hands out what is ready, in order. With `together` unset each unit goes
    /// by itself: for a receiver that knows no bundles.
    pub fn add(&mut self, frame: ToReceiver, together: bool) -> impl Iterator<Item = Load> + use<> {
        let (before, after) = match frame {
            ToReceiver::Unit(UnitFrame { head, packing: Packing::Raw, payload }) => {
                let room = self.parts.len() < PARTS && self.content.len() + payload.len() <= self.full;
                let before = if together && room { None } else { self.flush() };
                self.parts.push(Part::Unit(head));
                // Once and for all: growing by and by would take twice the memory.
                self.content.reserve_exact(self.full.saturating_sub(self.content.len()).max(payload.len()));
                self.content.extend_from_slice(&payload);
                (before, if self.content.len() >= self.full { self.flush() } else { None })
            }
            // Alone it needs no bundle.
            ToReceiver::Zeros { first, count } if together && !self.parts.is_empty() => {
                let before = if self.parts.len() < PARTS { None } else { self.flush() };
                self.parts.push(Part::Zeros { first, count });
                (before, None)
            }
            frame => (self.flush(), Some(Load::Frame(frame))),
        };
        before.into_iter().chain(after)
    }

    /// What has gathered, if it is worth a frame: for a line that has nothing to do.
    pub fn early(&mut self) -> Option<Load> {
        if self.content.len() < LEAST { None } else { self.flush() }
    }

    /// What has gathered so far, when nothing comes for a while.
    pub fn flush(&mut self) -> Option<Load> {
        if self.parts.is_empty() {
            return None;
        }
        if self.content.len() >= self.full / 2 {
            self.full = (self.full * 2).min(BUNDLE);
        }
        Some(Load::Parts(std::mem::take(&mut self.parts), std::mem::take(&mut self.content)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::frame::UnitHead;
    use crate::core::geometry::LeafSet;
    use crate::core::hash::Digest;

    fn noise(len: usize) -> Vec<u8> {
        let mut noise = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        noise
    }

    fn unit(unit: u64, payload: Vec<u8>) -> ToReceiver {
        let head =
            UnitHead { unit, hash: Digest([1; 32]), changed: LeafSet::first(1), zero: LeafSet::default() };
        ToReceiver::Unit(UnitFrame { head, packing: Packing::Raw, payload })
    }

    #[test]
    fn what_compresses_is_compressed_and_what_does_not_goes_as_it_is() {
        let text = b"tributi ".repeat(1000);
        let mut packer = Packer::new(3);
        let noise = noise(8192);
        for _ in 0..2 {
            let (packing, payload) = packer.pack(text.clone()).unwrap();
            assert_eq!(packing, Packing::Zstd);
            assert!(payload.len() < 200);
            assert_eq!(unpack(packing, payload, text.len()), Some(text.clone()));
            assert_eq!(packer.pack(noise.clone()).unwrap(), (Packing::Raw, noise.clone()));
        }
        packer.set_level(0);
        assert_eq!(packer.pack(text.clone()).unwrap(), (Packing::Raw, text));
    }

    #[test]
    fn numbers_between_words_that_come_again_are_smallest_with_the_lowest_level_and_text_is_not() {
        let numbers = noise(SAMPLE / 2);
        let records: Vec<u8> = numbers.chunks(8).flat_map(|number| [number, b"tributi "].concat()).collect();
        let mut packer = Packer::new(3);
        assert_eq!(packer.makes_fewer(1, 3, &records).unwrap(), Some(true));
        assert_eq!(packer.makes_fewer(1, 7, &records).unwrap(), Some(true));
        assert_eq!(packer.makes_fewer(1, 7, &records[1..]).unwrap(), None);
        assert_eq!(packer.makes_fewer(1, 3, &noise(SAMPLE)).unwrap(), Some(false));
        let words = ["delibera", "determina", "protocollo", "tributi", "anagrafe", "mensa"];
        let text: Vec<u8> =
            (numbers.iter().flat_map(|byte| words[usize::from(*byte) % words.len()].bytes())).collect();
        assert_eq!(packer.makes_fewer(1, 7, &text).unwrap(), Some(false));
    }

    #[test]
    fn every_level_unpacks_to_what_was_packed() {
        let text = [noise(200_000), b"delibera n. ".repeat(90_000)].concat();
        for level in 1..=19 {
            let (packing, payload) = Packer::new(level).pack(text.clone()).unwrap();
            assert_eq!(unpack(packing, payload, text.len()).as_ref(), Some(&text), "level {level}");
        }
    }

    #[test]
    fn a_payload_that_unpacks_to_more_than_it_should_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert_eq!(unpack(Packing::Zstd, bomb, 4096), None);
        assert_eq!(unpack(Packing::Raw, vec![0; 4097], 4096), None);
        assert_eq!(unpack(Packing::Zstd, vec![1, 2, 3], 4096), None);
    }

    #[test]
    fn what_is_alike_in_units_of_one_bundle_goes_once() {
        let (mut bundler, mut packer) = (Bundler::default(), Packer::new(1));
        let same = noise(1 << 20);
        let mut loads = Vec::new();
        for number in 0..7 {
            loads.extend(bundler.add(unit(number, same.clone()), true));
        }
        let sizes: Vec<_> = loads.iter().map(|load| (load.counted(), load.content())).collect();
        assert_eq!(sizes, [(1, 1 << 20), (2, 2 << 20), (4, BUNDLE)], "full bundles do not wait");
        let frame = loads.remove(2).pack(&mut packer).unwrap();
        let ToReceiver::Bundle(Bundle { parts, packing: Packing::Zstd, payload }) = frame else {
            panic!("{frame:?}")
        };
        assert_eq!(parts.len(), 4);
        assert!(payload.len() < same.len() + 4096, "{} bytes", payload.len());
    }

    #[test]
    fn frames_keep_their_order_and_bundles_their_limits() {
        let mut bundler = Bundler { full: BUNDLE, ..Bundler::default() };
        let mut loads = Vec::new();
        loads.extend(bundler.add(ToReceiver::Zeros { first: 0, count: 3 }, true));
        for number in 3..8 {
            loads.extend(bundler.add(unit(number, vec![7; 1_000_000]), true));
        }
        loads.extend(bundler.add(ToReceiver::Zeros { first: 8, count: 1 }, true));
        loads.extend(bundler.add(ToReceiver::Progress { unit: 9 }, true));
        let parts: Vec<_> = loads.iter().map(|load| (load.counted(), load.content())).collect();
        assert_eq!(parts, [(1, 0), (4, 4_000_000), (2, 1_000_000), (1, 0)]);
        assert!(bundler.flush().is_none());
        // Small parts are limited by their number.
        let many = (0..2000).flat_map(|number| bundler.add(unit(number, vec![7]), true)).count();
        assert_eq!(many, 1);
    }

    #[test]
    fn an_idle_line_gets_less_than_a_full_bundle_but_not_every_leaf() {
        let mut bundler = Bundler { full: BUNDLE, ..Bundler::default() };
        assert_eq!(bundler.add(unit(0, vec![7; LEAST - 1]), true).count(), 0);
        assert!(bundler.early().is_none());
        assert_eq!(bundler.add(unit(1, vec![7; 1]), true).count(), 0);
        assert_eq!(bundler.early().map(|load| load.counted()), Some(2));
    }

    #[test]
    fn a_receiver_that_knows_no_bundles_gets_none() {
        let (mut bundler, mut packer) = (Bundler::default(), Packer::new(1));
        let mut loads: Vec<_> =
            (0..3).flat_map(|number| bundler.add(unit(number, vec![7; 4096]), false)).collect();
        loads.extend(bundler.add(ToReceiver::Zeros { first: 8, count: 1 }, false));
        let frames: Vec<_> = loads.into_iter().map(|load| load.pack(&mut packer).unwrap()).collect();
        assert!(matches!(
            frames.as_slice(),
            [ToReceiver::Unit(_), ToReceiver::Unit(_), ToReceiver::Unit(_), ToReceiver::Zeros { .. }]
        ));
    }
}
