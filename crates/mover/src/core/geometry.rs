//! How a disk is cut: into units, and each unit into leaves.

use serde::{Deserialize, Serialize};

/// A unit is what is read and written at once: 1 MiB unless a test says otherwise.
pub const UNIT: u32 = 1 << 20;
/// A leaf is the least that is sent: a scattered write of 4 KiB costs this much, not a unit.
pub const LEAF: u32 = 4096;
/// Leaves of one unit at most.
pub const MAX_LEAVES: usize = 256;
/// Units of one segment: both ends compare what they know segment by segment.
pub const SEGMENT: u64 = 1024;

/// The largest disk: 256 TiB.
const MAX_LEN: u64 = 1 << 48;

/// The measures of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    len: u64,
    unit: u32,
    leaf: u32,
}

/// Measures that no disk may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadGeometry {
    /// Nothing to move, or more than can be addressed.
    #[error("a disk of {0} bytes cannot be moved: it has to have between 1 byte and 256 TiB")]
    Length(u64),
    /// Units and leaves do not fit each other.
    #[error(
        "units of {unit} and leaves of {leaf} bytes do not fit: both are powers of two, a leaf has at least \
             4096 bytes, a unit at most 1 MiB and at most 256 leaves"
    )]
    Sizes {
        /// Bytes of a unit.
        unit: u32,
        /// Bytes of a leaf.
        leaf: u32,
    },
}

impl Geometry {
    /// A disk of `len` bytes, cut into units of `unit` and leaves of `leaf` bytes.
    ///
    /// # Errors
    /// When such a disk is outside the limits of the protocol.
    pub fn new(len: u64, unit: u32, leaf: u32) -> Result<Self, BadGeometry> {
        if len == 0 || len > MAX_LEN {
            return Err(BadGeometry::Length(len));
        }
        let fits = unit.is_power_of_two()
            && leaf.is_power_of_two()
            && leaf >= 4096
            && unit <= UNIT
            && leaf <= unit
            && (unit / leaf) as usize <= MAX_LEAVES;
        if fits { Ok(Self { len, unit, leaf }) } else { Err(BadGeometry::Sizes { unit, leaf }) }
    }

    /// Bytes of the disk.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a disk has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a unit that is not the last.
    pub fn unit(&self) -> u32 {
        self.unit
    }

    /// Bytes of a leaf that is not the last.
    pub fn leaf(&self) -> u32 {
        self.leaf
    }

    /// Units of the disk.
    pub fn units(&self) -> u64 {
        self.len.div_ceil(u64::from(self.unit))
    }

    /// Segments of the disk.
    pub fn segments(&self) -> u64 {
        self.units().div_ceil(SEGMENT)
    }

    /// The units of a segment.
    pub fn segment_units(&self, segment: u64) -> std::ops::Range<u64> {
        let first = segment.saturating_mul(SEGMENT).min(self.units());
        first..first.saturating_add(SEGMENT).min(self.units())
    }

    /// Where a unit begins, in bytes.
    pub fn offset(&self, unit: u64) -> u64 {
        unit.saturating_mul(u64::from(self.unit))
    }

    /// Bytes of a unit: the last may be shorter, one behind the end has none.
    pub fn unit_len(&self, unit: u64) -> usize {
        let left = self.len.saturating_sub(self.offset(unit));
        usize::try_from(left).unwrap_or(usize::MAX).min(self.unit as usize)
    }

    /// Leaves of a unit.
    pub fn leaves(&self, unit: u64) -> usize {
        self.unit_len(unit).div_ceil(self.leaf as usize)
    }

    /// Leaves of a unit that is not the last.
    pub fn full_leaves(&self) -> usize {
        (self.unit / self.leaf) as usize
    }

    /// Where a leaf lies within its unit, in bytes.
    pub fn leaf_range(&self, unit: u64, leaf: usize) -> std::ops::Range<usize> {
        let first = leaf.saturating_mul(self.leaf as usize);
        let end = first.saturating_add(self.leaf as usize).min(self.unit_len(unit));
        first.min(end)..end
    }
}

/// Some of the leaves of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeafSet([u64; 4]);

impl LeafSet {
    /// Bytes of a set on the wire.
    pub const BYTES: usize = 32;

    /// The first `count` leaves.
    pub fn first(count: usize) -> Self {
        let mut set = Self::default();
        for leaf in 0..count.min(MAX_LEAVES) {
            set.insert(leaf);
        }
        set
    }

    /// Adds a leaf; one beyond the 256th is no leaf of any unit and is ignored.
    pub fn insert(&mut self, leaf: usize) {
        if let Some(word) = self.0.get_mut(leaf / 64) {
            *word |= 1 << (leaf % 64);
        }
    }

    /// Whether the leaf is in the set.
    pub fn contains(&self, leaf: usize) -> bool {
        self.0.get(leaf / 64).is_some_and(|word| word >> (leaf % 64) & 1 == 1)
    }

    /// How many leaves are in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no leaf is in the set.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Whether all of these leaves are in the other set.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).all(|(mine, theirs)| mine & !theirs == 0)
    }

    /// The leaves, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..MAX_LEAVES).filter(|leaf| self.contains(*leaf))
    }

    /// The set on the wire: leaf 0 is the lowest bit of the first byte.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (eight, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            eight.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The set from the wire.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut set = Self::default();
        for (word, eight) in set.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = eight.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_unit_and_the_last_leaf_are_as_short_as_the_disk() {
        let disk = Geometry::new(3 * 65536 + 4096 + 7, 65536, 4096).unwrap();
        assert_eq!(disk.units(), 4);
        assert_eq!(disk.unit_len(2), 65536);
        assert_eq!(disk.unit_len(3), 4103);
        assert_eq!(disk.leaves(3), 2);
        assert_eq!(disk.leaf_range(3, 1), 4096..4103);
        assert_eq!(disk.unit_len(4), 0);
        assert_eq!(disk.segment_units(0), 0..4);
    }

    #[test]
    fn measures_outside_the_limits_are_refused() {
        assert_eq!(Geometry::new(0, UNIT, LEAF), Err(BadGeometry::Length(0)));
        assert!(Geometry::new(u64::MAX, UNIT, LEAF).is_err());
        for (unit, leaf) in
            [(0, 0), (UNIT * 2, LEAF), (UNIT, 512), (UNIT, UNIT * 2), (UNIT - 1, LEAF), (4096, 8192)]
        {
            assert_eq!(Geometry::new(1, unit, leaf), Err(BadGeometry::Sizes { unit, leaf }));
        }
        assert!(Geometry::new(1, 4096, 4096).is_ok());
    }

    #[test]
    fn a_set_of_leaves_survives_the_wire() {
        let mut set = LeafSet::default();
        for leaf in [0, 7, 8, 63, 64, 200, 255, 256, 9000] {
            set.insert(leaf);
        }
        assert_eq!(set.len(), 7);
        assert_eq!(LeafSet::from_bytes(&set.to_bytes()), set);
        assert_eq!(set.to_bytes()[0], 0b1000_0001);
        assert!(set.is_within(&LeafSet::first(256)));
        assert!(!set.is_within(&LeafSet::first(255)));
    }
}
