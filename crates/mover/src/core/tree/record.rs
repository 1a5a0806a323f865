//! What the receiver of a tree has to remember between two batches, and how it lies on its disk.

use std::io;

use super::bytes::{Fields, Malformed, put_counted, put_number};
use super::frame::MadeFrom;
use super::list::Extent;
use super::lists::{Cut, Progress};
use super::ports::Store;
use crate::core::frame::RoundKind;

/// Bytes that a record takes on the disk: two of them lie there, written in turns.
pub const SLOT: usize = 16 << 10;
const MAGIC: &[u8; 8] = b"cmtree01";

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
    /// Whether everything has arrived and is being put in its place.
    pub settling: bool,
    /// Which list is the base.
    pub generation: u64,
    /// How far the lists are.
    pub progress: Progress,
    /// The file that is being received.
    pub open: Option<Cut>,
    /// From what the base was made.
    pub made_from: Option<MadeFrom>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            serial: 0,
            round: 0,
            kind: RoundKind::Copy,
            complete: false,
            settling: false,
            generation: 0,
            progress: Progress::default(),
            open: None,
            made_from: None,
        }
    }
}

impl Record {
    /// The record as it lies on the disk, with its own hash: a torn one is not taken for one.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_number(&mut body, self.serial);
        put_number(&mut body, self.round.into());
        let flags = [self.kind as u8, self.complete.into(), self.settling.into(), self.open.is_some().into()];
        body.extend_from_slice(&flags);
        let Progress { work, position, next_id } = self.progress;
        for number in [self.generation, work.items, work.bytes, work.rows, position, next_id] {
            put_number(&mut body, number);
        }
        if let Some(open) = &self.open {
            open.put(&mut body);
        }
        body.push(self.made_from.is_some().into());
        if let Some(made) = &self.made_from {
            made.put(&mut body);
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(blake3::hash(&body).as_bytes());
        put_counted(&mut bytes, &body);
        bytes
    }

    fn decode(slot: &[u8]) -> Result<Self, Malformed> {
        let mut from = Fields(slot.strip_prefix(MAGIC).ok_or(Malformed("record"))?);
        let hash: [u8; 32] = from.array("record")?;
        let body = from.counted(SLOT, "record")?;
        if *blake3::hash(body).as_bytes() != hash {
            return Err(Malformed("record"));
        }
        let mut from = Fields(body);
        let number = |from: &mut Fields<'_>| from.number(u64::MAX, "record");
        let serial = number(&mut from)?;
        let round = from.number(u32::MAX.into(), "record")? as u32;
        let [kind, complete, settling, open] = from.array("record")?;
        let kind = match kind {
            1 => RoundKind::Copy,
            2 => RoundKind::Proof,
            _ => return Err(Malformed("record")),
        };
        let generation = number(&mut from)?;
        let work = Extent { items: number(&mut from)?, bytes: number(&mut from)?, rows: number(&mut from)? };
        let progress = Progress { work, position: number(&mut from)?, next_id: number(&mut from)? };
        let open = if open == 1 { Some(Cut::take(&mut from)?) } else { None };
        let made_from = if from.byte("record")? == 1 { Some(MadeFrom::take(&mut from)?) } else { None };
        from.end("record")?;
        let (complete, settling) = (complete == 1, settling == 1);
        Ok(Self { serial, round, kind, complete, settling, generation, progress, open, made_from })
    }

    /// The newest record in the store.
    ///
    /// # Errors
    /// Of the disk.
    pub fn load(store: &impl Store) -> io::Result<Option<Self>> {
        let mut newest: Option<Self> = None;
        for slot in 0..2 {
            let mut bytes = vec![0; SLOT];
            let read = store.read_at(slot * SLOT as u64, &mut bytes)?;
            if let Ok(record) = Self::decode(&bytes[..read])
                && newest.as_ref().is_none_or(|newest| newest.serial < record.serial)
            {
                newest = Some(record);
            }
        }
        Ok(newest)
    }

    /// Stores this, durably; never where the record before is.
    ///
    /// # Errors
    /// Of the disk.
    pub fn save(&mut self, store: &mut impl Store) -> io::Result<()> {
        self.serial += 1;
        store.write_at(self.serial % 2 * SLOT as u64, &self.encode())?;
        store.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tree::path::TreePath;
    use crate::tree::store::MemoryStore;

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        let mut store = MemoryStore::default();
        let open = Cut { path: TreePath::new(vec![b'a'; 255]).unwrap(), id: 7, first_row: 9 };
        let mut record = Record { round: 3, kind: RoundKind::Proof, open: Some(open), ..Record::default() };
        record.save(&mut store).unwrap();
        let before = record.clone();
        record.progress.position = 1 << 40;
        record.save(&mut store).unwrap();
        assert_eq!(Record::load(&store).unwrap(), Some(record.clone()));
        let at = record.serial % 2 * SLOT as u64;
        for cut in 0..record.encode().len() {
            // What was there before shines through behind the tear.
            store.write_at(at, &vec![0xaa; SLOT]).unwrap();
            store.write_at(at, &record.encode()[..cut]).unwrap();
            assert_eq!(Record::load(&store).unwrap(), Some(before.clone()), "cut after {cut}");
        }
    }
}
