//! What the receiver has to remember between two batches, and how it lies on its disk.
//!
//! A record names the units that are about to be overwritten, before the first of them is. So after a crash it is
//! known of which units the table of hashes may be wrong: they are read back and hashed, and nothing is guessed.
//! Units that had no content yet need no mention: nobody relies on them.

use super::frame::RoundKind;

/// Bytes that a record takes on the disk: two of them lie there, written in turns.
pub const SLOT: usize = 64 << 10;
/// Stretches of units that one record can name.
pub const MAX_TOUCHED: usize = 4096;
const MAGIC: &[u8; 8] = b"cmjrnl01";
const HASH: usize = 32;

/// How far the receiver is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// One more with each record.
    pub serial: u64,
    /// The round that was begun last; 0 when none was.
    pub round: u32,
    /// What it is for.
    pub kind: RoundKind,
    /// Whether both ends agreed on its root.
    pub complete: bool,
    /// Units from the first on that this round has dealt with durably.
    pub watermark: u64,
    /// Units about to be overwritten: the first, and how many.
    pub touched: Vec<(u64, u32)>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            serial: 0,
            round: 0,
            kind: RoundKind::Copy,
            complete: false,
            watermark: 0,
            touched: Vec::new(),
        }
    }
}

impl Record {
    /// The record as it lies on the disk, with its own hash: a torn one is not taken for one.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SLOT);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; HASH]);
        bytes.extend_from_slice(&self.serial.to_le_bytes());
        bytes.extend_from_slice(&self.round.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.push(self.complete.into());
        bytes.extend_from_slice(&self.watermark.to_le_bytes());
        let touched = &self.touched[..self.touched.len().min(MAX_TOUCHED)];
        bytes.extend_from_slice(&(touched.len() as u32).to_le_bytes());
        for (first, count) in touched {
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        let hash = blake3::hash(&bytes[MAGIC.len() + HASH..]);
        bytes[MAGIC.len()..MAGIC.len() + HASH].copy_from_slice(hash.as_bytes());
        bytes
    }

    /// The record from a slot; `None` when there is none, or a torn one.
    pub fn decode(slot: &[u8]) -> Option<Self> {
        let body = slot.strip_prefix(MAGIC)?;
        let (hash, body) = body.split_first_chunk::<HASH>()?;
        let mut rest = body;
        let serial = u64::from_le_bytes(*take(&mut rest)?);
        let round = u32::from_le_bytes(*take(&mut rest)?);
        let [kind, complete] = *take(&mut rest)?;
        let watermark = u64::from_le_bytes(*take(&mut rest)?);
        let count = u32::from_le_bytes(*take(&mut rest)?) as usize;
        if count > MAX_TOUCHED {
            return None;
        }
        let mut touched = Vec::with_capacity(count);
        for _ in 0..count {
            touched.push((u64::from_le_bytes(*take(&mut rest)?), u32::from_le_bytes(*take(&mut rest)?)));
        }
        let used = body.len() - rest.len();
        if blake3::hash(&body[..used]) != *hash {
            return None;
        }
        let kind = match kind {
            1 => RoundKind::Copy,
            2 => RoundKind::Proof,
            _ => return None,
        };
        Some(Self { serial, round, kind, complete: complete == 1, watermark, touched })
    }

    /// The newer of what the two slots hold.
    pub fn newest(slots: [&[u8]; 2]) -> Option<Self> {
        slots.into_iter().filter_map(Self::decode).max_by_key(|record| record.serial)
    }

    /// Which slot a record goes to: never that of the record before.
    pub fn slot(&self) -> usize {
        usize::from(self.serial % 2 == 1)
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> Record {
        Record {
            serial: 9,
            round: 3,
            kind: RoundKind::Proof,
            complete: true,
            watermark: 1 << 40,
            touched: vec![(7, 3); MAX_TOUCHED],
        }
    }

    #[test]
    fn the_largest_record_fits_its_slot_and_comes_back() {
        let bytes = full().encode();
        assert!(bytes.len() <= SLOT, "{}", bytes.len());
        assert_eq!(Record::decode(&bytes), Some(full()));
        let older = Record { serial: 8, ..Record::default() };
        assert_eq!(Record::newest([&older.encode(), &bytes]), Some(full()));
        assert_ne!(older.slot(), full().slot());
    }

    proptest! {
        #[test]
        fn a_torn_record_leaves_the_one_before(cut in 0..49_234_usize) {
            let whole = full().encode();
            let older = Record { serial: 8, touched: vec![(1, 2)], ..Record::default() };
            // What was there before shines through behind the tear.
            let mut torn = vec![0xaa; SLOT];
            torn[..cut.min(whole.len() - 1)].copy_from_slice(&whole[..cut.min(whole.len() - 1)]);
            prop_assert_eq!(Record::newest([&older.encode(), &torn]), Some(older));
        }
    }
}
