//! Reads a target back from its own disk and compares it with what was written there.

use ring::digest::{Context, SHA256};

use super::geometry::Geometry;
use super::hash::{self, Digest, Root, Zeros};
use super::ports::{Extent, Fault, Source, Table};

/// Damaged units that are named; beyond that they are only counted.
pub const NAMED: usize = 1000;

/// What reading back has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The root of what is on the disk; none while units have never been written.
    pub root: Option<Digest>,
    /// SHA-256 of everything.
    pub sha256: [u8; 32],
    /// Units whose bytes are not what had been written there.
    pub damaged: u64,
    /// The first of them.
    pub named: Vec<u64>,
}

/// SHA-256 of a disk as it is read.
#[derive(Clone)]
pub struct Sha256(Context);

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256")
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Sha256 {
    /// Adds content.
    pub fn add(&mut self, content: &[u8]) {
        self.0.update(content);
    }

    /// The hash.
    pub fn finish(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        bytes
    }
}

/// A reading in progress.
#[derive(Debug)]
pub struct Verifier {
    geometry: Geometry,
    zeros: Zeros,
    next: u64,
    hole: Option<Extent>,
    buffer: Vec<u8>,
    sha256: Sha256,
    root: Root,
    found: Verified,
}

impl Verifier {
    /// From the first unit on.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            zeros: Zeros::new(&geometry),
            next: 0,
            hole: None,
            buffer: Vec::new(),
            sha256: Sha256::default(),
            root: Root::new(&geometry),
            found: Verified::default(),
            geometry,
        }
    }

    /// Units that have been read.
    pub fn done(&self) -> u64 {
        self.next
    }

    /// Reads the next unit; `None` when all have been read. Where its bytes are not what the tables say, the tables
    /// are made to say what is there, so that the next round sends what is missing.
    ///
    /// # Errors
    /// Of the disk or of the tables.
    pub fn step(
        &mut self,
        target: &mut impl Source,
        units: &mut impl Table,
        leaves: &mut impl Table,
    ) -> Result<Option<()>, Fault> {
        let unit = self.next;
        if unit >= self.geometry.units() {
            return Ok(None);
        }
        let offset = self.geometry.offset(unit);
        self.buffer.resize(self.geometry.unit_len(unit), 0);
        let end = offset + self.buffer.len() as u64;
        if self.hole.is_none_or(|extent| extent.end <= offset) {
            self.hole = Some(target.extent(offset).map_err(Fault::Disk)?);
        }
        let in_hole = self.hole.is_some_and(|extent| !extent.data && extent.end >= end);
        if in_hole {
            self.buffer.fill(0);
        } else {
            target.read(offset, &mut self.buffer).map_err(Fault::Disk)?;
        }
        self.sha256.add(&self.buffer);
        let (actual, actual_leaves) = if in_hole || hash::is_zero(&self.buffer) {
            (self.zeros.unit(unit), None)
        } else {
            let leaves = hash::leaves(&self.geometry, &self.buffer);
            (hash::unit(&self.geometry, unit, &leaves), Some(leaves))
        };
        let expected = units.get(unit, 1).map_err(Fault::State)?.first().copied().unwrap_or_default();
        if expected.is_known() && expected != actual {
            self.found.damaged += 1;
            if self.found.named.len() < NAMED {
                self.found.named.push(unit);
            }
            if let Some(actual_leaves) = actual_leaves {
                leaves
                    .set(unit * self.geometry.full_leaves() as u64, &actual_leaves)
                    .map_err(Fault::State)?;
            }
            units.set(unit, &[actual]).map_err(Fault::State)?;
        }
        self.root.add(if expected.is_known() { &actual } else { &expected });
        self.next += 1;
        Ok(Some(()))
    }

    /// What was found, when all has been read.
    pub fn finish(self) -> Verified {
        Verified { root: self.root.finish(), sha256: self.sha256.finish(), ..self.found }
    }
}
