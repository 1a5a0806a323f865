//! Where a chunk lies, by its hash: a table in a file, so that millions of chunks take no memory.
//!
//! Slots of 24 bytes with open addressing. It is made anew in every session and believed by nobody: what it names
//! is looked at before it is used. A key-value store would sort what nobody reads in order.

use std::io;

use super::ports::Store;

/// The part of a hash by which it is found.
pub type Key = [u8; 16];

const SLOT: u64 = 24;
const FIRST: u64 = 1 << 14;
/// Slots that are looked at with one reading.
const STEP: usize = 4;

/// The table.
#[derive(Debug)]
pub struct Hashes<S> {
    store: S,
    room: u64,
    slots: u64,
    used: u64,
}

impl<S: Store> Hashes<S> {
    /// An empty table with room for so many hashes; it grows when there are more.
    ///
    /// # Errors
    /// Of the disk; so for all that follow.
    pub fn new(mut store: S, room: u64) -> io::Result<Self> {
        let slots = room.saturating_mul(2).max(FIRST).next_power_of_two();
        store.set_len(0)?;
        store.set_len(slots * SLOT)?;
        Ok(Self { store, room, slots, used: 0 })
    }

    /// Whether it is so full that it should be made anew.
    pub fn is_full(&self) -> bool {
        self.used >= self.slots / 4 * 3
    }

    /// Hashes in it.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// What it was made with room for.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Everything that is in it.
    ///
    /// # Errors
    /// See [`Self::new`]; and those of what is done.
    pub fn each(&self, mut with: impl FnMut(&Key, u64) -> io::Result<()>) -> io::Result<()> {
        let mut bytes = vec![0; 1024 * SLOT as usize];
        for first in (0..self.slots).step_by(1024) {
            let read = self.store.read_at(first * SLOT, &mut bytes)?;
            for entry in bytes[..read].chunks_exact(SLOT as usize) {
                let (Ok(key), Ok(value)) = (entry[..16].try_into(), entry[16..].try_into()) else { continue };
                if let Some(value) = u64::from_le_bytes(value).checked_sub(1) {
                    with(key, value)?;
                }
            }
        }
        Ok(())
    }

    /// Enters a hash; a later value takes the place of the one before.
    ///
    /// # Errors
    /// See [`Self::new`]; also when it is full to the last slot.
    pub fn set(&mut self, key: &Key, value: u64) -> io::Result<()> {
        let (slot, found) = self.look(key)?;
        let slot = slot.ok_or_else(|| io::Error::other("a table of hashes is full"))?;
        let mut bytes = [0; SLOT as usize];
        bytes[..16].copy_from_slice(key);
        bytes[16..].copy_from_slice(&(value + 1).to_le_bytes());
        self.used += u64::from(found.is_none());
        self.store.write_at(slot * SLOT, &bytes)
    }

    /// The value of a hash.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn get(&self, key: &Key) -> io::Result<Option<u64>> {
        Ok(self.look(key)?.1)
    }

    /// The slot of a key, or the one where it would be, and its value.
    fn look(&self, key: &Key) -> io::Result<(Option<u64>, Option<u64>)> {
        let (start, _) = key.split_at(8);
        let start = start.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let mut tried = 0;
        while tried < self.slots {
            let slot = start.wrapping_add(tried) & (self.slots - 1);
            let count = (STEP as u64).min(self.slots - slot) as usize;
            let mut bytes = [0; STEP * SLOT as usize];
            let bytes = &mut bytes[..count * SLOT as usize];
            let read = self.store.read_at(slot * SLOT, bytes)?;
            if read != bytes.len() {
                return Err(super::list::damaged("a table that is cut short"));
            }
            for (at, entry) in bytes.chunks_exact(SLOT as usize).enumerate() {
                let (theirs, value) = entry.split_at(16);
                let value = value.try_into().map(u64::from_le_bytes).unwrap_or_default();
                match value.checked_sub(1) {
                    None => return Ok((Some(slot + at as u64), None)),
                    Some(value) if theirs == key => return Ok((Some(slot + at as u64), Some(value))),
                    Some(_) => {}
                }
            }
            tried += count as u64;
        }
        Ok((None, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::store::MemoryStore;

    #[test]
    fn what_was_entered_is_found_until_another_value_takes_its_place() {
        let mut hashes = Hashes::new(MemoryStore::default(), 0).unwrap();
        // All of them begin their search at the same slot, the last of the table.
        let key = |n: u64| {
            let mut key = [0xff; 16];
            key[8..].copy_from_slice(&n.to_le_bytes());
            key
        };
        for n in 0..300 {
            assert_eq!(hashes.get(&key(n)).unwrap(), None);
            hashes.set(&key(n), n * 7).unwrap();
        }
        hashes.set(&key(5), 0).unwrap();
        for n in 0..300 {
            assert_eq!(hashes.get(&key(n)).unwrap(), Some(if n == 5 { 0 } else { n * 7 }));
        }
        assert_eq!(hashes.used(), 300);
        assert!(!hashes.is_full());
    }
}
