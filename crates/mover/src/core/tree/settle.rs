//! The end of a round: what has arrived is put in its place, what is gone at the source is taken away.
//!
//! First what has to go, from the innermost outwards; then what comes, directories before what is in them. Every
//! step can be done twice: after a crash all of it is done again from the beginning.

use std::collections::BTreeMap;

use super::item::{Item, Kind, Place, State};
use super::list::List;
use super::path::TreePath;
use super::ports::{Fault, Outcome, Store, Target};

/// Entries that are dealt with at once.
const STEP: u64 = 256;
/// Entries that may be in somebody else's way.
const MOST_MISSING: usize = 10_000;
/// Paths that are named; beyond that they are only counted.
pub const NAMED: usize = 1000;

/// Something at the target that is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Where.
    pub path: TreePath,
    /// What it is, and what to do.
    pub text: String,
}

/// What is done so far.
#[derive(Debug, Default)]
pub struct Settle {
    removed: u64,
    placed: u64,
    dirs: Vec<Item>,
    blocked: Option<TreePath>,
    /// Entries that are not in their places, since somebody else's are there.
    pub missing: BTreeMap<u64, TreePath>,
    /// What was left alone, the first thousand.
    pub foreign: Vec<Foreign>,
}

impl Settle {
    /// Entries dealt with, and entries in all.
    pub fn progress<S: Store>(&self, work: &List<S>) -> (u64, u64) {
        (self.removed + self.placed, work.extent().items * 2)
    }

    /// Does some more; `None` when all is done.
    ///
    /// # Errors
    /// Of the target and of the state directory.
    pub fn step<S: Store>(
        &mut self,
        work: &mut List<S>,
        target: &mut impl Target,
    ) -> Result<Option<()>, Fault> {
        let items = work.extent().items;
        for _ in 0..STEP {
            if self.removed < items {
                self.remove(work, target, items)?;
            } else if self.placed < items {
                self.place(work, target, items)?;
            } else {
                while let Some(dir) = self.dirs.pop() {
                    target.close_dir(&dir).map_err(Fault::Target)?;
                }
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    /// The entries of the last path that has not been dealt with.
    fn remove<S: Store>(
        &mut self,
        work: &mut List<S>,
        target: &mut impl Target,
        items: u64,
    ) -> Result<(), Fault> {
        let (mut live, mut had) = (None, Vec::new());
        while self.removed < items {
            let item = work.item(items - 1 - self.removed).map_err(Fault::State)?;
            let first = live.as_ref().or(had.last());
            if first.is_some_and(|first: &Item| first.path != item.path) {
                break;
            }
            self.removed += 1;
            match item.state {
                State::Live => live = Some(item),
                State::Ghost | State::Partial => had.extend(lies_there(item)),
            }
        }
        let Some(first) = had.first() else { return Ok(()) };
        let replaced = live.is_some_and(|live| live.kind.is_dir() == first.kind.is_dir());
        if !replaced && let Outcome::Foreign(text) = target.remove(&had).map_err(Fault::Target)? {
            self.note(first.path.clone(), text);
        }
        Ok(())
    }

    /// The entries of the next path.
    fn place<S: Store>(
        &mut self,
        work: &mut List<S>,
        target: &mut impl Target,
        items: u64,
    ) -> Result<(), Fault> {
        let mut had: Vec<Item> = Vec::new();
        while self.placed < items {
            let number = self.placed;
            let item = work.item(number).map_err(Fault::State)?;
            if had.first().is_some_and(|first| first.path != item.path) {
                break;
            }
            self.placed += 1;
            match item.state {
                State::Ghost | State::Partial => had.extend(lies_there(item)),
                State::Live => return self.place_one(number, item, &had, target),
            }
        }
        Ok(())
    }

    fn place_one(
        &mut self,
        number: u64,
        item: Item,
        had: &[Item],
        target: &mut impl Target,
    ) -> Result<(), Fault> {
        while self.dirs.last().is_some_and(|dir| !item.path.is_within(&dir.path)) {
            let Some(dir) = self.dirs.pop() else { break };
            target.close_dir(&dir).map_err(Fault::Target)?;
        }
        if self.blocked.as_ref().is_some_and(|blocked| item.path.is_within(blocked)) {
            return self.miss(number, item.path);
        }
        // Another name of somebody else's file would give that file away.
        if let Kind::Link(to) = &item.kind
            && self.missing.values().any(|missing| missing == to)
        {
            return self.miss(number, item.path);
        }
        // A further name may be one of a file that is new.
        let stays = item.place == Place::There && !matches!(item.kind, Kind::Dir | Kind::Link(_));
        if stays {
            return Ok(());
        }
        let itself = (item.place == Place::There).then(|| item.clone());
        let had: Vec<Item> = had.iter().cloned().chain(itself).collect();
        match target.place(&item, &had).map_err(Fault::Target)? {
            Outcome::Done if item.kind.is_dir() => self.dirs.push(item),
            Outcome::Done => {}
            Outcome::Foreign(text) => {
                self.note(item.path.clone(), text);
                if item.kind.is_dir() {
                    self.blocked = Some(item.path.clone());
                }
                self.miss(number, item.path)?;
            }
        }
        Ok(())
    }

    fn miss(&mut self, number: u64, path: TreePath) -> Result<(), Fault> {
        self.missing.insert(number, path);
        if self.missing.len() > MOST_MISSING {
            let text = "more than ten thousand entries are in the way of somebody else's: empty the target";
            return Err(Fault::Target(std::io::Error::other(text)));
        }
        Ok(())
    }

    fn note(&mut self, path: TreePath, text: String) {
        if self.foreign.len() < NAMED {
            self.foreign.push(Foreign { path, text });
        }
    }
}

fn lies_there(item: Item) -> Option<Item> {
    matches!(item.place, Place::There | Place::Restated).then_some(item)
}
