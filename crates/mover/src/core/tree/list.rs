//! A list of entries on a disk: the entries, and the rows of what their files are made of.
//!
//! Four files: `items` one after another, each with its length; `index`, where each begins and which row is its
//! first; `rows` of 48 bytes; and at the sender `stats`, by which a change of a file is noticed.

use std::io;

use super::item::{Item, MAX_ITEM, State, Time};
use super::path::TreePath;
use super::ports::{Shelf, Stat, Store};
use crate::core::hash::Digest;

/// Bytes of a row.
pub const ROW: u64 = 48;
const INDEX: u64 = 16;
/// Bytes of what is noted of an entry.
const STAT: u64 = 64;
const WINDOW: usize = 64 << 10;

/// A piece of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its hash; [`Digest::UNKNOWN`] when it is not what it should be.
    pub hash: Digest,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Whether it is nothing but zeros; then `len` counts [`Row::ZEROS`] bytes and `tail` what is left over.
    pub zero: Option<u64>,
}

impl Row {
    /// A chunk of content.
    pub fn chunk(hash: Digest, offset: u64, len: u32) -> Self {
        Self { hash, offset, len, zero: None }
    }

    /// A stretch of zeros.
    pub fn zeros(offset: u64, len: u64) -> Self {
        Self { hash: Digest::UNKNOWN, offset, len: 0, zero: Some(len) }
    }

    /// Bytes of the file that it stands for.
    pub fn span(&self) -> u64 {
        self.zero.unwrap_or(self.len.into())
    }

    /// The row as it lies in the file.
    pub fn encode(&self) -> [u8; ROW as usize] {
        let mut bytes = [0; ROW as usize];
        bytes[..32].copy_from_slice(&self.hash.0);
        bytes[32..40].copy_from_slice(&self.offset.to_le_bytes());
        // The highest bit tells zeros from content: no stretch is that long.
        let len = self.zero.map_or(u64::from(self.len), |len| len | 1 << 63);
        bytes[40..].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    /// The row from the file; `None` when it is none.
    pub fn decode(bytes: &[u8; ROW as usize]) -> Option<Self> {
        let (hash, rest) = bytes.split_first_chunk::<32>()?;
        let (offset, len) = rest.split_first_chunk::<8>()?;
        let (offset, len) = (u64::from_le_bytes(*offset), u64::from_le_bytes(len.try_into().ok()?));
        if len >> 63 == 1 {
            return Some(Self::zeros(offset, len & !(1 << 63)));
        }
        Some(Self::chunk(Digest(*hash), offset, u32::try_from(len).ok()?))
    }
}

/// One file of a list: written at its end, through a small buffer; read anywhere.
#[derive(Debug)]
struct Tail<S> {
    store: S,
    len: u64,
    buffer: Vec<u8>,
    window: Vec<u8>,
    window_at: u64,
    // Where the last reading ended: who goes on there will want what follows, too.
    read_to: u64,
}

impl<S: Store> Tail<S> {
    fn new(store: S) -> io::Result<Self> {
        let len = store.len()?;
        Ok(Self { store, len, buffer: Vec::new(), window: Vec::new(), window_at: 0, read_to: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
        if self.buffer.len() >= WINDOW { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.store.write_at(self.len - self.buffer.len() as u64, &self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let end = at.saturating_add(into.len() as u64);
        if end > self.len {
            return Err(damaged("a place behind the end of a list"));
        }
        let flushed = self.len - self.buffer.len() as u64;
        if at >= flushed {
            let from = (at - flushed) as usize;
            into.copy_from_slice(&self.buffer[from..from + into.len()]);
            return Ok(());
        }
        if end > flushed {
            self.flush()?;
        }
        let follows = at == self.read_to;
        self.read_to = end;
        let in_window = at >= self.window_at && end <= self.window_at + self.window.len() as u64;
        if !in_window && follows && into.len() < WINDOW {
            let flushed = self.len - self.buffer.len() as u64;
            let count = (flushed - at).min(WINDOW as u64) as usize;
            self.window.resize(count, 0);
            self.window_at = at;
            fill(&self.store, at, &mut self.window)?;
        } else if !in_window {
            return fill(&self.store, at, into);
        }
        let from = (at - self.window_at) as usize;
        into.copy_from_slice(&self.window[from..from + into.len()]);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.flush()?;
        self.window.clear();
        self.store.set_len(len)?;
        self.len = len;
        Ok(())
    }

    fn overwrite(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.window.clear();
        self.store.write_at(at, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.store.sync()
    }
}

fn fill(store: &impl Store, at: u64, into: &mut [u8]) -> io::Result<()> {
    if store.read_at(at, into)? == into.len() { Ok(()) } else { Err(damaged("a list that is cut short")) }
}

/// A list that is not what this program has written.
pub fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("damaged ({what}): remove it, then everything is compared anew"),
    )
}

/// How much a list has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Entries.
    pub items: u64,
    /// Bytes of the entries.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
}

/// A list.
#[derive(Debug)]
pub struct List<S> {
    items: Tail<S>,
    index: Tail<S>,
    rows: Tail<S>,
    stats: Option<Tail<S>>,
    last_found: Option<(u64, u64, u64)>,
}

/// The files of the list of this name.
pub fn names(name: &str) -> [String; 4] {
    ["items", "index", "rows", "stats"].map(|part| format!("{name}.{part}"))
}

impl<S: Store> List<S> {
    /// Opens the list of this name, or an empty one.
    ///
    /// # Errors
    /// Of the disk; so for all that follow.
    pub fn open(shelf: &mut impl Shelf<Store = S>, name: &str, with_stats: bool) -> io::Result<Self> {
        let [items, index, rows, stats] = names(name);
        Ok(Self {
            items: Tail::new(shelf.open(&items)?)?,
            index: Tail::new(shelf.open(&index)?)?,
            rows: Tail::new(shelf.open(&rows)?)?,
            stats: if with_stats { Some(Tail::new(shelf.open(&stats)?)?) } else { None },
            last_found: None,
        })
    }

    /// Opens it and leaves nothing in it.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn create(shelf: &mut impl Shelf<Store = S>, name: &str, with_stats: bool) -> io::Result<Self> {
        let mut list = Self::open(shelf, name, with_stats)?;
        list.truncate(Extent::default())?;
        Ok(list)
    }

    /// How much it has.
    pub fn extent(&self) -> Extent {
        Extent { items: self.index.len / INDEX, bytes: self.items.len, rows: self.rows.len / ROW }
    }

    /// Cuts off what is behind this; what it has less of is an error.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn truncate(&mut self, extent: Extent) -> io::Result<()> {
        let has = self.extent();
        if has.items < extent.items || has.bytes < extent.bytes || has.rows < extent.rows {
            return Err(damaged("a list that is cut short"));
        }
        self.last_found = None;
        self.items.set_len(extent.bytes)?;
        self.index.set_len(extent.items * INDEX)?;
        self.rows.set_len(extent.rows * ROW)?;
        if let Some(stats) = &mut self.stats {
            stats.set_len(extent.items * STAT)?;
        }
        Ok(())
    }

    /// Adds a row; the next item that is added owns it.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn add_row(&mut self, row: &Row) -> io::Result<()> {
        self.rows.append(&row.encode())
    }

    /// Adds an item, the rows of which were added before.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn add(&mut self, item: &Item, stat: Option<&StatRow>) -> io::Result<()> {
        let first_row = self.extent().rows.saturating_sub(item.kind.rows());
        let mut index = [0; INDEX as usize];
        index[..8].copy_from_slice(&self.items.len.to_le_bytes());
        index[8..].copy_from_slice(&first_row.to_le_bytes());
        let bytes = item.encode();
        self.items.append(&(bytes.len() as u32).to_le_bytes())?;
        self.items.append(&bytes)?;
        self.index.append(&index)?;
        if let Some(stats) = &mut self.stats {
            let row = stat.map_or([0; STAT as usize], |stat| stat.encode(&item.canonical()));
            stats.append(&row)?;
        }
        Ok(())
    }

    fn index(&mut self, number: u64) -> io::Result<(u64, u64)> {
        let mut index = [0; INDEX as usize];
        self.index.read(number * INDEX, &mut index)?;
        let [offset, row] = [0, 8].map(|at| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&index[at..at + 8]);
            u64::from_le_bytes(eight)
        });
        Ok((offset, row))
    }

    fn item_bytes(&mut self, number: u64) -> io::Result<Vec<u8>> {
        let (offset, _) = self.index(number)?;
        let mut len = [0; 4];
        self.items.read(offset, &mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_ITEM {
            return Err(damaged("an entry that is too long"));
        }
        let mut bytes = vec![0; len];
        self.items.read(offset + 4, &mut bytes)?;
        Ok(bytes)
    }

    /// The item of this number.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn item(&mut self, number: u64) -> io::Result<Item> {
        let bytes = self.item_bytes(number)?;
        Item::decode(&bytes).map_err(|error| damaged(&error.to_string()))
    }

    /// The first row of an item.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn first_row(&mut self, number: u64) -> io::Result<u64> {
        Ok(self.index(number)?.1)
    }

    /// The row of this number.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn row(&mut self, number: u64) -> io::Result<Row> {
        let mut bytes = [0; ROW as usize];
        self.rows.read(number.saturating_mul(ROW), &mut bytes)?;
        Row::decode(&bytes).ok_or_else(|| damaged("a row"))
    }

    /// From now on nobody relies on this row.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn spoil(&mut self, number: u64) -> io::Result<()> {
        let row = Row { hash: Digest::UNKNOWN, ..self.row(number)? };
        self.rows.overwrite(number * ROW, &row.encode())
    }

    /// From now on an item stands in the list like this; its length must not change by that.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn set_state(&mut self, number: u64, state: State) -> io::Result<()> {
        let (offset, _) = self.index(number)?;
        let item = Item { state, ..self.item(number)? };
        self.items.overwrite(offset + 4, &item.encode()[..1])
    }

    /// By what a change of this item is noticed; `None` when that is not known, or was said of another.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn stat(&mut self, number: u64) -> io::Result<Option<StatRow>> {
        if self.stats.is_none() {
            return Ok(None);
        }
        // How an item stands in its list changes from round to round; what it is does not.
        let entry = self.item(number)?.canonical();
        let Some(stats) = &mut self.stats else { return Ok(None) };
        if stats.len < (number + 1) * STAT {
            return Ok(None);
        }
        let mut row = [0; STAT as usize];
        stats.read(number * STAT, &mut row)?;
        Ok(StatRow::decode(&row, &entry))
    }

    /// The item that this row belongs to, and its number; `None` when it belongs to none.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn owner(&mut self, row: u64) -> io::Result<Option<u64>> {
        if let Some((number, first, end)) = self.last_found
            && (first..end).contains(&row)
        {
            return Ok(Some(number));
        }
        let (mut low, mut high) = (0, self.extent().items);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.first_row(middle)? <= row { low = middle + 1 } else { high = middle }
        }
        let Some(number) = low.checked_sub(1) else { return Ok(None) };
        let first = self.first_row(number)?;
        let end = first + self.item(number)?.kind.rows();
        self.last_found = Some((number, first, end));
        Ok((first..end).contains(&row).then_some(number))
    }

    /// The number of the live item at this path.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn find(&mut self, path: &TreePath) -> io::Result<Option<(u64, Item)>> {
        let (mut low, mut high) = (0, self.extent().items);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.item(middle)?.path < *path { low = middle + 1 } else { high = middle }
        }
        for number in low..self.extent().items {
            let item = self.item(number)?;
            if item.path != *path {
                break;
            }
            if item.state == State::Live {
                return Ok(Some((number, item)));
            }
        }
        Ok(None)
    }

    /// Adds an item of another list with its rows, changed as `item` says.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn take(
        &mut self,
        from: &mut Self,
        number: u64,
        item: &Item,
        stat: Option<&StatRow>,
    ) -> io::Result<()> {
        let first = from.first_row(number)?;
        for row in first..first + item.kind.rows() {
            let row = from.row(row)?;
            self.add_row(&row)?;
        }
        self.add(item, stat)
    }

    /// Returns when everything is durable.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn sync(&mut self) -> io::Result<()> {
        self.rows.sync()?;
        self.items.sync()?;
        self.index.sync()
    }

    /// Writes what is in memory to the files, durable or not.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.rows.flush()?;
        self.items.flush()?;
        self.index.flush()?;
        self.stats.as_mut().map_or(Ok(()), Tail::flush)
    }

    /// Bytes of one of the two files that both ends must have alike.
    pub fn part_len(&self, part: Part) -> u64 {
        match part {
            Part::Items => self.items.len,
            Part::Rows => self.rows.len,
        }
    }

    /// A block of one of these files.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn block(&mut self, part: Part, block: u64) -> io::Result<Vec<u8>> {
        let tail = match part {
            Part::Items => &mut self.items,
            Part::Rows => &mut self.rows,
        };
        let at = block.saturating_mul(BLOCK);
        let mut bytes = vec![0; tail.len.saturating_sub(at).min(BLOCK) as usize];
        tail.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces a block of one of these files.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn set_block(&mut self, part: Part, block: u64, bytes: &[u8]) -> io::Result<()> {
        self.last_found = None;
        let tail = match part {
            Part::Items => &mut self.items,
            Part::Rows => &mut self.rows,
        };
        tail.overwrite(block.saturating_mul(BLOCK), bytes)
    }

    /// Makes one of these files so long.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn set_part_len(&mut self, part: Part, len: u64) -> io::Result<()> {
        self.last_found = None;
        match part {
            Part::Items => self.items.set_len(len),
            Part::Rows => self.rows.set_len(len),
        }
    }

    /// Finds out anew where each item begins, after items have come from elsewhere, and whether all are items in
    /// their order.
    ///
    /// # Errors
    /// See [`Self::open`]; also when they are not.
    pub fn index_again(&mut self) -> io::Result<()> {
        self.index.set_len(0)?;
        let (mut offset, mut row) = (0, 0_u64);
        let mut last: Option<TreePath> = None;
        while offset < self.items.len {
            let mut len = [0; 4];
            self.items.read(offset, &mut len)?;
            let len = u32::from_le_bytes(len);
            if len as usize > MAX_ITEM {
                return Err(damaged("an entry that is too long"));
            }
            let mut bytes = vec![0; len as usize];
            self.items.read(offset + 4, &mut bytes)?;
            let item = Item::decode(&bytes).map_err(|error| damaged(&error.to_string()))?;
            if last.as_ref().is_some_and(|last| *last > item.path) {
                return Err(damaged("entries out of their order"));
            }
            let mut index = [0; INDEX as usize];
            index[..8].copy_from_slice(&offset.to_le_bytes());
            index[8..].copy_from_slice(&row.to_le_bytes());
            self.index.append(&index)?;
            row = row.checked_add(item.kind.rows()).ok_or_else(|| damaged("rows"))?;
            offset += 4 + u64::from(len);
            last = Some(item.path);
        }
        if row.checked_mul(ROW) == Some(self.rows.len) {
            Ok(())
        } else {
            Err(damaged("rows that belong to nothing"))
        }
    }
}

/// Bytes of a block by which both ends compare their lists.
pub const BLOCK: u64 = 256 << 10;

/// The two files that both ends must have alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The entries.
    Items,
    /// The rows.
    Rows,
}

/// What the sender notes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatRow {
    /// As it was when it had been read.
    pub stat: Stat,
    /// Whether it had changed so lately that a later change might not be noticed.
    pub fresh: bool,
}

impl StatRow {
    /// With a mark of what it is about.
    pub fn encode(&self, about: &[u8]) -> [u8; STAT as usize] {
        let mut bytes = [0; STAT as usize];
        let stat = &self.stat;
        let mut at = 0;
        let numbers = [stat.dev, stat.ino, stat.size, stat.mtime.seconds as u64, stat.ctime.seconds as u64];
        for number in numbers.map(u64::to_le_bytes) {
            bytes[at..at + 8].copy_from_slice(&number);
            at += 8;
        }
        bytes[40..44].copy_from_slice(&stat.mtime.nanos.to_le_bytes());
        bytes[44..48].copy_from_slice(&stat.ctime.nanos.to_le_bytes());
        bytes[48] = if self.fresh { 2 } else { 1 };
        bytes[56..].copy_from_slice(&mark(about));
        bytes
    }

    /// What was noted, when it was about this.
    pub fn decode(bytes: &[u8; STAT as usize], about: &[u8]) -> Option<Self> {
        let long = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let short = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        if bytes[48] == 0 || bytes[56..] != mark(about) {
            return None;
        }
        Some(Self {
            stat: Stat {
                dev: long(0)?,
                ino: long(8)?,
                links: 0,
                size: long(16)?,
                mtime: Time { seconds: long(24)? as i64, nanos: short(40)? },
                ctime: Time { seconds: long(32)? as i64, nanos: short(44)? },
            },
            fresh: bytes[48] == 2,
        })
    }
}

fn mark(about: &[u8]) -> [u8; 8] {
    let mut mark = [0; 8];
    mark.copy_from_slice(&blake3::hash(about).as_bytes()[..8]);
    mark
}
