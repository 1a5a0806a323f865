//! What a session does to the lists, alike at both ends.

use std::collections::BTreeMap;
use std::io;

use super::bytes::{Fields, Malformed, put_counted, put_number};
use super::item::{Item, Kind, MAX_FILE, Meta, Place, State};
use super::list::{Extent, List, Row, StatRow};
use super::path::{MAX_PATH, TreePath};
use super::ports::{Fault, Store, Where};
use crate::core::hash::Digest;

/// What a tree may become at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Entries.
    pub entries: u64,
    /// Bytes of content, without holes.
    pub bytes: u64,
}

impl Budget {
    /// No limit but those of the protocol.
    pub const NONE: Self = Self { entries: 1 << 40, bytes: MAX_FILE };

    /// Rows that such a tree can need: a chunk has a page at least, or is the only one of a stretch.
    fn rows(&self) -> u64 {
        self.entries.saturating_mul(4).saturating_add(self.bytes / 4096)
    }
}

/// The file that is being received.
#[derive(Debug, Clone)]
pub struct OpenFile {
    /// Where it will be.
    pub path: TreePath,
    /// The file beside the tree that it is written to.
    pub id: u64,
    /// Bytes so far.
    pub size: u64,
    /// Its first row.
    pub first_row: u64,
    // What came before it: an abandoned file leaves its place to another.
    before: Option<TreePath>,
    content: blake3::Hasher,
}

impl OpenFile {
    fn new(path: TreePath, id: u64, first_row: u64) -> Self {
        Self {
            path,
            id,
            size: 0,
            first_row,
            before: None,
            content: blake3::Hasher::new_derive_key("conme-mover 1 content"),
        }
    }

    fn add(&mut self, row: &Row) -> Result<(), Fault> {
        let size = self.size.checked_add(row.span()).filter(|size| *size <= MAX_FILE);
        self.size = size.ok_or(Fault::Budget("a file"))?;
        self.content.update(&row.hash.0);
        self.content.update(&row.span().to_le_bytes());
        Ok(())
    }

    fn kind(&self, rows: u64) -> Kind {
        let content = Digest(*self.content.finalize().as_bytes());
        Kind::File { size: self.size, rows: rows - self.first_row, content }
    }

    fn partial(&self, rows: u64) -> Item {
        Item {
            path: self.path.clone(),
            kind: self.kind(rows),
            meta: Meta::default(),
            state: State::Partial,
            place: Place::Staged(self.id),
        }
    }
}

/// The root of a tree, taken up entry by entry.
#[derive(Debug, Clone)]
pub struct Root {
    hasher: blake3::Hasher,
    entries: u64,
}

impl Default for Root {
    fn default() -> Self {
        Self { hasher: blake3::Hasher::new_derive_key("conme-mover 1 tree"), entries: 0 }
    }
}

impl Root {
    /// Adds the next entry.
    pub fn add(&mut self, item: &Item) {
        self.hasher.update(blake3::hash(&item.canonical()).as_bytes());
        self.entries += 1;
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The root.
    pub fn finish(&self) -> Digest {
        Digest(*self.hasher.clone().update(&self.entries.to_le_bytes()).finalize().as_bytes())
    }
}

/// How far the lists of a session are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// What `work` has, without the open file; but with its rows.
    pub work: Extent,
    /// Entries of `base` that have been dealt with.
    pub position: u64,
    /// The number of the next file beside the tree.
    pub next_id: u64,
}

/// The lists of a session.
#[derive(Debug)]
pub struct Lists<S> {
    /// What the receiver has.
    pub base: List<S>,
    /// What the round has come to.
    pub work: List<S>,
    budget: Budget,
    position: u64,
    next_id: u64,
    open: Option<OpenFile>,
    last: Option<TreePath>,
    dirs: Vec<TreePath>,
    root: Root,
    bytes: u64,
}

fn state(error: io::Error) -> Fault {
    Fault::State(error)
}

fn wrong<T>(what: &str) -> Result<T, Fault> {
    Err(Fault::Peer(what.into()))
}

impl<S: Store> Lists<S> {
    /// At the beginning of a session: `work` is empty.
    pub fn new(base: List<S>, work: List<S>, next_id: u64, budget: Budget) -> Self {
        Self {
            base,
            work,
            budget,
            position: 0,
            next_id,
            open: None,
            last: None,
            dirs: Vec::new(),
            root: Root::default(),
            bytes: 0,
        }
    }

    /// How far they are.
    pub fn progress(&self) -> Progress {
        Progress { work: self.work.extent(), position: self.position, next_id: self.next_id }
    }

    /// The file that is being received.
    pub fn open_file(&self) -> Option<&OpenFile> {
        self.open.as_ref()
    }

    /// The root of what `work` has.
    pub fn root(&self) -> Digest {
        self.root.finish()
    }

    /// Entries of the tree so far.
    pub fn entries(&self) -> u64 {
        self.root.entries
    }

    /// The next entry of `base`; `None` behind the last.
    ///
    /// # Errors
    /// Of the state directory; so for all that follow.
    pub fn peek(&mut self) -> Result<Option<Item>, Fault> {
        if self.position < self.base.extent().items {
            self.base.item(self.position).map(Some).map_err(state)
        } else {
            Ok(None)
        }
    }

    /// The number of the next entry of `base`.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn next_of_base(&mut self) -> Result<(u64, Item), Fault> {
        let Some(item) = self.peek()? else { return wrong("more entries than there are") };
        let number = self.position;
        self.position += 1;
        Ok((number, item))
    }

    /// Whether an entry may come here: behind all before, in a directory of this tree.
    fn admit(&mut self, path: &TreePath, is_dir: bool) -> Result<(), Fault> {
        if self.open.is_some() {
            return wrong("an entry within a file");
        }
        if self.last.as_ref().is_some_and(|last| last >= path) {
            return wrong("entries out of their order");
        }
        if self.root.entries >= self.budget.entries {
            return Err(Fault::Budget("number of entries"));
        }
        match path.parent() {
            None if !is_dir => return wrong("a root that is no directory"),
            None => {}
            Some(parent) => {
                while self.dirs.last().is_some_and(|dir| !parent.is_within(dir)) {
                    self.dirs.pop();
                }
                if self.dirs.last() != Some(&parent) {
                    return wrong("an entry in what is no directory");
                }
            }
        }
        if is_dir {
            self.dirs.push(path.clone());
        }
        self.last = Some(path.clone());
        Ok(())
    }

    fn admit_bytes(&mut self, bytes: u64) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.budget.bytes || self.work.extent().rows >= self.budget.rows() {
            return Err(Fault::Budget("bytes"));
        }
        Ok(())
    }

    fn enter(&mut self, item: &Item, stat: Option<&StatRow>) -> Result<(), Fault> {
        self.root.add(item);
        self.work.add(item, stat).map_err(state)
    }

    /// The next entry of `base` belongs to the tree. `stat`: how it is now at the source, unless as before.
    ///
    /// # Errors
    /// When it cannot; see also [`Self::peek`].
    pub fn keep(&mut self, stat: Option<&StatRow>) -> Result<(), Fault> {
        let (number, item) = self.next_of_base()?;
        if item.state != State::Live {
            return wrong("an entry to keep that is not there");
        }
        self.take(number, &item, stat)
    }

    /// The next entry of `base`, a file, belongs to the tree with another description.
    ///
    /// # Errors
    /// See [`Self::keep`].
    pub fn restate(&mut self, meta: Meta, stat: Option<&StatRow>) -> Result<(), Fault> {
        let (number, item) = self.next_of_base()?;
        if item.state != State::Live || !matches!(item.kind, Kind::File { .. }) {
            return wrong("an entry to describe anew that is no file");
        }
        let mut place = item.place;
        if place == Place::There {
            place = Place::Restated;
            // By its old description it is recognised at the target as what an earlier round has put there.
            if let Kind::File { size, content, .. } = item.kind {
                let kind = Kind::File { size, rows: 0, content };
                let before = Item {
                    kind,
                    state: State::Ghost,
                    path: item.path.clone(),
                    meta: item.meta.clone(),
                    place: item.place,
                };
                self.work.add(&before, None).map_err(state)?;
            }
        }
        self.take(number, &Item { meta, place, ..item }, stat)
    }

    fn take(&mut self, number: u64, item: &Item, stat: Option<&StatRow>) -> Result<(), Fault> {
        self.admit(&item.path, item.kind.is_dir())?;
        if let Kind::Link(to) = &item.kind {
            self.admit_link(to)?;
        }
        let first = self.base.first_row(number).map_err(state)?;
        for row in first..first + item.kind.rows() {
            let row = self.base.row(row).map_err(state)?;
            self.admit_bytes(row.len.into())?;
            self.work.add_row(&row).map_err(state)?;
        }
        let before = if stat.is_none() { self.base.stat(number).map_err(state)? } else { None };
        self.enter(item, stat.or(before.as_ref()))
    }

    /// The next entry of `base` does not belong to the tree. It stays in the list until it is gone from the target.
    ///
    /// # Errors
    /// See [`Self::keep`].
    pub fn pass(&mut self) -> Result<(), Fault> {
        let (number, item) = self.next_of_base()?;
        if self.open.is_some() || self.last.as_ref().is_some_and(|last| *last > item.path) {
            return wrong("entries out of their order");
        }
        let lies_there = matches!(item.place, Place::There | Place::Restated);
        if item.kind.rows() > 0 || lies_there {
            let ghost = Item { state: State::Ghost, ..item };
            self.work.take(&mut self.base, number, &ghost, None).map_err(state)?;
        }
        Ok(())
    }

    /// An entry that is not a file.
    ///
    /// # Errors
    /// See [`Self::keep`].
    pub fn put(
        &mut self,
        path: TreePath,
        kind: Kind,
        meta: Meta,
        stat: Option<&StatRow>,
    ) -> Result<(), Fault> {
        self.admit(&path, kind.is_dir())?;
        if let Kind::Link(to) = &kind {
            self.admit_link(to)?;
        }
        self.enter(&Item { path, kind, meta, state: State::Live, place: Place::New }, stat)
    }

    /// A further name has to be one of something that came before, and is itself no further name.
    fn admit_link(&mut self, to: &TreePath) -> Result<(), Fault> {
        match self.work.find(to).map_err(state)? {
            Some((_, Item { kind: Kind::File { .. } | Kind::Symlink(_) | Kind::Fifo, .. })) => Ok(()),
            _ => wrong("a further name of what is not there"),
        }
    }

    /// A file begins, or goes on. Returns where its content goes, and whether there should be content already.
    ///
    /// # Errors
    /// See [`Self::keep`].
    pub fn open(&mut self, path: TreePath, goes_on: bool) -> Result<&OpenFile, Fault> {
        let mut file = OpenFile::new(path, self.next_id, self.work.extent().rows);
        file.before.clone_from(&self.last);
        if goes_on {
            let (number, item) = self.next_of_base()?;
            let Place::Staged(id) = item.place else { return wrong("a file that does not go on") };
            if item.state != State::Partial || item.path != file.path {
                return wrong("a file that does not go on");
            }
            file.id = id;
            self.admit(&file.path, false)?;
            let first = self.base.first_row(number).map_err(state)?;
            for row in first..first + item.kind.rows() {
                let row = self.base.row(row).map_err(state)?;
                self.admit_bytes(row.len.into())?;
                self.work.add_row(&row).map_err(state)?;
                file.add(&row)?;
            }
        } else {
            self.admit(&file.path, false)?;
            self.next_id += 1;
        }
        Ok(self.open.insert(file))
    }

    /// The next piece of the open file.
    ///
    /// # Errors
    /// See [`Self::keep`].
    pub fn add(&mut self, row: impl FnOnce(u64) -> Row) -> Result<&OpenFile, Fault> {
        let Some(mut file) = self.open.take() else { return wrong("content without a file") };
        let row = row(file.size);
        self.admit_bytes(row.len.into())?;
        self.work.add_row(&row).map_err(state)?;
        file.add(&row)?;
        Ok(self.open.insert(file))
    }

    /// What a row says, and where its content lies.
    ///
    /// # Errors
    /// When there is no such content; see also [`Self::peek`].
    pub fn locate(&mut self, work: bool, row: u64) -> Result<(Row, Where), Fault> {
        let list = if work { &mut self.work } else { &mut self.base };
        if row >= list.extent().rows {
            return wrong("content that is not there");
        }
        let what = list.row(row).map_err(state)?;
        if let Some(file) = self.open.as_ref().filter(|file| work && row >= file.first_row) {
            return Ok((what, Where::Staged(file.id)));
        }
        let Some(number) = list.owner(row).map_err(state)? else { return wrong("content that is not there") };
        let item = list.item(number).map_err(state)?;
        match item.place {
            Place::There | Place::Restated => Ok((what, Where::There(item.path))),
            Place::Staged(id) => Ok((what, Where::Staged(id))),
            Place::New => wrong("content that is not there"),
        }
    }

    /// The open file is at its end.
    ///
    /// # Errors
    /// See [`Self::keep`].
    pub fn close(&mut self, meta: Meta, stat: Option<&StatRow>) -> Result<(), Fault> {
        let Some(file) = self.open.take() else { return wrong("the end of no file") };
        let rows = self.work.extent().rows;
        let item = Item { meta, state: State::Live, ..file.partial(rows) };
        self.enter(&item, stat)
    }

    /// The open file will not be finished; what there is of it stays until the end of the round.
    ///
    /// # Errors
    /// See [`Self::keep`].
    pub fn abandon(&mut self) -> Result<(), Fault> {
        let Some(file) = self.open.take() else { return wrong("the end of no file") };
        let ghost = Item { state: State::Ghost, ..file.partial(self.work.extent().rows) };
        self.last = file.before;
        self.work.add(&ghost, None).map_err(state)
    }

    /// The tree is complete.
    ///
    /// # Errors
    /// When it is not.
    pub fn is_complete(&mut self) -> Result<(), Fault> {
        if self.open.is_some() || self.root.entries == 0 || self.peek()?.is_some() {
            return wrong("the end of a tree that is not complete");
        }
        Ok(())
    }

    /// The lists, when the session is over.
    pub fn into_parts(self) -> (List<S>, List<S>) {
        (self.base, self.work)
    }
}

/// What was cut off in the middle of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The path of the open file.
    pub path: TreePath,
    /// The file beside the tree.
    pub id: u64,
    /// Its first row in `work`.
    pub first_row: u64,
}

impl Cut {
    /// Adds it.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_counted(out, self.path.bytes());
        put_number(out, self.id);
        put_number(out, self.first_row);
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is cut short, or no path.
    pub fn take(from: &mut Fields<'_>) -> Result<Self, Malformed> {
        let path = TreePath::new(from.counted(MAX_PATH, "path")?.to_vec())?;
        Ok(Self { path, id: from.number(u64::MAX, "number")?, first_row: from.number(u64::MAX, "row")? })
    }
}

/// Makes one list of what a session had come to, as the base of the next one: `work`, the file that was open, and
/// what `base` has behind. Returns the files beside the tree that no list names any more.
///
/// # Errors
/// Of the disk.
pub fn fold<S: Store>(
    into: &mut List<S>,
    base: &mut List<S>,
    work: &mut List<S>,
    position: u64,
    open: Option<(&Cut, Option<StatRow>)>,
) -> io::Result<Vec<u64>> {
    let mut dropped = Vec::new();
    // Of what is left of several attempts at one path, the last is the longest that is of use.
    let mut held: Option<(u64, Item)> = None;
    let items = work.extent().items;
    for number in 0..items {
        let mut item = work.item(number)?;
        let staged_ghost = item.state == State::Ghost && matches!(item.place, Place::Staged(_));
        let replaced = held.as_ref().is_some_and(|(_, ghost)| {
            ghost.path == item.path && (staged_ghost || item.state != State::Ghost)
        });
        if let Some((ghost_number, ghost)) = held.take() {
            match ghost.place {
                Place::Staged(id) if replaced => dropped.push(id),
                _ => into.take(work, ghost_number, &ghost, None)?,
            }
        }
        if staged_ghost {
            held = Some((number, item));
            continue;
        }
        if item.state == State::Live && !is_sound(work, number, &item)? {
            item.state = State::Ghost;
        }
        let stat = work.stat(number)?;
        into.take(work, number, &item, stat.as_ref())?;
    }
    if let Some((number, ghost)) = held.take() {
        into.take(work, number, &ghost, None)?;
    }
    if let Some((cut, stat)) = open {
        let rows = work.extent().rows;
        let mut file = OpenFile::new(cut.path.clone(), cut.id, cut.first_row);
        let mut known = true;
        for number in cut.first_row..rows {
            let row = work.row(number)?;
            known &= row.zero.is_some() || row.hash.is_known();
            file.add(&row).map_err(|error| io::Error::other(error.to_string()))?;
            into.add_row(&row)?;
        }
        let mut item = file.partial(rows);
        if !known {
            item.state = State::Ghost;
        }
        into.add(&item, stat.as_ref())?;
    }
    for number in position..base.extent().items {
        let mut item = base.item(number)?;
        if item.state == State::Live && !is_sound(base, number, &item)? {
            item.state = State::Ghost;
        }
        let stat = base.stat(number)?;
        into.take(base, number, &item, stat.as_ref())?;
    }
    Ok(dropped)
}

/// Whether all of its content can be relied on.
fn is_sound<S: Store>(list: &mut List<S>, number: u64, item: &Item) -> io::Result<bool> {
    let first = list.first_row(number)?;
    for row in first..first + item.kind.rows() {
        let row = list.row(row)?;
        if row.zero.is_none() && !row.hash.is_known() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the list of what the target has when everything of `work` is in its place, but for what `missing` names.
///
/// # Errors
/// Of the disk.
pub fn finish<S: Store>(
    into: &mut List<S>,
    work: &mut List<S>,
    missing: &BTreeMap<u64, TreePath>,
) -> io::Result<()> {
    for number in 0..work.extent().items {
        let item = work.item(number)?;
        if item.state != State::Live || missing.contains_key(&number) {
            continue;
        }
        let stat = work.stat(number)?;
        into.take(work, number, &Item { place: Place::There, ..item }, stat.as_ref())?;
    }
    Ok(())
}
