//! The hashes of a disk: of its leaves, of its units over them, of the whole over these.
//!
//! A leaf is hashed with plain BLAKE3, what is above it with BLAKE3 in its mode for derived keys under a name of
//! its own, so that no leaf can pass for a unit, nor a unit for a disk.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::geometry::{Geometry, SEGMENT};

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// What stands for "not known" where a hash is expected: no content has it.
    pub const UNKNOWN: Self = Self([0; 32]);

    /// Whether this is a hash of something.
    pub fn is_known(&self) -> bool {
        *self != Self::UNKNOWN
    }
}

/// The name of a transfer, as people see it.
pub fn transfer_name(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(&text).map(|hash| Self(*hash.as_bytes())).map_err(serde::de::Error::custom)
    }
}

/// The hash of a leaf's content.
pub fn leaf(content: &[u8]) -> Digest {
    Digest(*blake3::hash(content).as_bytes())
}

/// The hash of a unit from those of its leaves.
pub fn unit(geometry: &Geometry, unit: u64, leaves: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("conme-mover 1 unit");
    hasher.update(&(geometry.unit_len(unit) as u64).to_le_bytes());
    hasher.update(&geometry.leaf().to_le_bytes());
    for leaf in leaves {
        hasher.update(&leaf.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// The hashes of the leaves of a unit's content.
pub fn leaves(geometry: &Geometry, content: &[u8]) -> Vec<Digest> {
    content.chunks(geometry.leaf() as usize).map(leaf).collect()
}

/// The hash of one segment from those of its units, known or not.
pub fn segment(geometry: &Geometry, segment: u64, units: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("conme-mover 1 segment");
    hasher.update(&geometry.len().to_le_bytes());
    hasher.update(&segment.saturating_mul(SEGMENT).to_le_bytes());
    for unit in units {
        hasher.update(&unit.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// The hash of a disk, taken up unit by unit: the root on which both ends have to agree.
#[derive(Debug)]
pub struct Root {
    hasher: blake3::Hasher,
    complete: bool,
}

impl Root {
    /// Of a disk of which no unit has been added.
    pub fn new(geometry: &Geometry) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("conme-mover 1 disk");
        hasher.update(&geometry.len().to_le_bytes());
        hasher.update(&geometry.unit().to_le_bytes());
        hasher.update(&geometry.leaf().to_le_bytes());
        Self { hasher, complete: true }
    }

    /// Adds the next unit.
    pub fn add(&mut self, unit: &Digest) {
        self.complete &= unit.is_known();
        self.hasher.update(&unit.0);
    }

    /// The root; `None` when a unit was not known.
    pub fn finish(&self) -> Option<Digest> {
        self.complete.then(|| Digest(*self.hasher.finalize().as_bytes()))
    }
}

/// The hashes of what is only zeros: they cost nothing, however large the hole.
#[derive(Debug, Clone)]
pub struct Zeros {
    full_leaf: Digest,
    full_unit: Digest,
    last_unit: Digest,
    last: u64,
}

impl Zeros {
    /// Of one disk.
    pub fn new(geometry: &Geometry) -> Self {
        let of = |index: u64| unit(geometry, index, &leaves(geometry, &vec![0; geometry.unit_len(index)]));
        let last = geometry.units().saturating_sub(1);
        Self {
            full_leaf: leaf(&vec![0; geometry.leaf() as usize]),
            full_unit: of(0),
            last_unit: of(last),
            last,
        }
    }

    /// The hash of a unit of zeros.
    pub fn unit(&self, unit: u64) -> Digest {
        if unit == self.last { self.last_unit } else { self.full_unit }
    }

    /// The hash of a full leaf of zeros.
    pub fn leaf(&self) -> Digest {
        self.full_leaf
    }

    /// The hashes of the leaves of a unit of zeros.
    pub fn leaves(&self, geometry: &Geometry, unit: u64) -> Vec<Digest> {
        (0..geometry.leaves(unit))
            .map(|index| match geometry.leaf_range(unit, index).len() {
                len if len == geometry.leaf() as usize => self.full_leaf,
                len => leaf(&vec![0; len]),
            })
            .collect()
    }
}

/// Whether there is nothing but zeros.
pub fn is_zero(content: &[u8]) -> bool {
    // By sixteen bytes at a time: byte by byte this would cost more than the hash.
    let (chunks, rest) = content.as_chunks::<16>();
    rest.iter().all(|byte| *byte == 0) && chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_hashed_as_their_content_would_be() {
        let disk = Geometry::new(2 * 16384 + 4096 + 5, 16384, 4096).unwrap();
        let zeros = Zeros::new(&disk);
        for index in 0..disk.units() {
            let content = vec![0; disk.unit_len(index)];
            assert_eq!(zeros.leaves(&disk, index), leaves(&disk, &content));
            assert_eq!(zeros.unit(index), unit(&disk, index, &leaves(&disk, &content)));
        }
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for len in [1, 15, 16, 17, 4096, 4099] {
            let mut content = vec![0; len];
            assert!(is_zero(&content));
            for at in 0..len {
                content[at] = 1;
                assert!(!is_zero(&content), "{at} of {len}");
                content[at] = 0;
            }
        }
    }

    #[test]
    fn a_root_needs_every_unit_and_depends_on_each() {
        let disk = Geometry::new(4 * 4096, 4096, 4096).unwrap();
        let units: Vec<_> = (0..4_u8).map(|n| leaf(&[n])).collect();
        let root = |units: &[Digest]| {
            let mut root = Root::new(&disk);
            units.iter().for_each(|unit| root.add(unit));
            root.finish()
        };
        assert!(root(&units).is_some());
        let mut other = units.clone();
        other.swap(1, 2);
        assert_ne!(root(&units), root(&other));
        other[0] = Digest::UNKNOWN;
        assert_eq!(root(&other), None);
    }
}
