//! The receiver's end of a tree's session: in which order it writes, and when it says that it has something.
//!
//! New content goes to files beside the tree at once. A batch is acknowledged in this order, each step durable
//! before the next: the content; the list; the record that says how long the list is; then the acknowledgement.

use std::collections::BTreeMap;

use super::bytes::Fields;
use super::frame::{Base, MAX_STEPS, MadeFrom, ToReceiver, ToSender};
use super::item::State;
use super::list::{BLOCK, List, Part, Row, names};
use super::lists::{Budget, Cut, Lists, Progress, finish, fold};
use super::op::Op;
use super::path::TreePath;
use super::ports::{Difference, Fault, Shelf, Target, Where};
use super::record::Record;
use super::settle::{Foreign, NAMED, Settle};
use crate::core::frame::{self, REVISION, RoundEnd, RoundKind, RoundResult, Welcome};
use crate::core::hash::{self, Digest};
use crate::core::pack;
use crate::core::verify::Sha256;

/// Bytes of content after which a batch is made durable.
const BATCH: u64 = 16 << 20;
/// Frames after which it is.
const FRAMES: u64 = 1024;
/// The store of the record.
pub const RECORD: &str = "record";

/// What has been done so far in a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Bytes of content that arrived.
    pub received: u64,
    /// Bytes of content that were there already and were copied.
    pub copied: u64,
    /// Entries of the tree.
    pub entries: u64,
}

/// What reading the target back has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// SHA-256 of everything.
    pub sha256: [u8; 32],
    /// Entries that are not as they should be.
    pub damaged: u64,
    /// The first thousand of them.
    pub named: Vec<Difference>,
}

/// A step of the end of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Entries are being put in their places.
    Settling {
        /// Entries done.
        done: u64,
        /// Entries in all.
        total: u64,
    },
    /// The target is being read back.
    Reading {
        /// Entries read.
        done: u64,
        /// Entries in all.
        total: u64,
    },
    /// The result, to be sent.
    Result(RoundResult),
}

#[derive(Debug)]
enum Phase {
    Open,
    InRound,
    Settling(RoundEnd, Settle),
    Reading(RoundEnd, Box<Verifier>, bool),
    Over,
}

/// The receiver's end of one session.
#[derive(Debug)]
pub struct Receiver<T, F: Shelf> {
    target: T,
    shelf: F,
    log: F::Store,
    record: Record,
    lists: Lists<F::Store>,
    transfer: [u8; 16],
    window: u32,
    budget: Budget,
    phase: Phase,
    sequence: u64,
    acknowledged: u64,
    batch: u64,
    failed: bool,
    buffer: Vec<u8>,
    tally: Tally,
    foreign: Vec<Foreign>,
    verified: Option<Verified>,
}

/// The list of what the target has.
pub fn base_name(generation: u64) -> String {
    format!("base-{generation}")
}

/// The list in `work` has a name of its own for every base: what a dead session has left is not taken for it.
fn work_name(generation: u64) -> String {
    format!("work-{generation}")
}

impl<T: Target, F: Shelf> Receiver<T, F> {
    /// Opens the target, and finishes what the last session has left unfinished.
    ///
    /// # Errors
    /// Of the target and of the state directory.
    pub fn open(
        mut target: T,
        mut shelf: F,
        transfer: [u8; 16],
        window: u32,
        budget: Budget,
    ) -> Result<Self, Fault> {
        let mut log = shelf.open(RECORD).map_err(Fault::State)?;
        let mut record = Record::load(&log).map_err(Fault::State)?.unwrap_or_default();
        let mut foreign = Vec::new();
        if record.settling {
            let mut work = open_work(&mut shelf, &record)?;
            let mut settle = Settle::default();
            while settle.step(&mut work, &mut target)?.is_some() {}
            foreign = std::mem::take(&mut settle.foreign);
            settled(&mut target, &mut shelf, &mut log, &mut record, work, &settle.missing)?;
        } else if record.progress.position > 0 || record.progress.work.items > 0 || record.open.is_some() {
            go_on(&mut target, &mut shelf, &mut log, &mut record)?;
        }
        let base = List::open(&mut shelf, &base_name(record.generation), false).map_err(Fault::State)?;
        let work = List::create(&mut shelf, &work_name(record.generation), false).map_err(Fault::State)?;
        let lists = Lists::new(base, work, record.progress.next_id, budget);
        Ok(Self {
            target,
            shelf,
            log,
            record,
            lists,
            transfer,
            window,
            budget,
            phase: Phase::Open,
            sequence: 0,
            acknowledged: 0,
            batch: 0,
            failed: false,
            buffer: Vec::new(),
            tally: Tally::default(),
            foreign,
            verified: None,
        })
    }

    /// What has been done so far.
    pub fn tally(&self) -> Tally {
        Tally { entries: self.lists.entries(), ..self.tally }
    }

    /// How far the receiver is.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What at the target is somebody else's and was left alone.
    pub fn foreign(&self) -> &[Foreign] {
        &self.foreign
    }

    /// What reading back has found, after a proof.
    pub fn verified(&self) -> Option<&Verified> {
        self.verified.as_ref()
    }

    /// Whether something was received that is not acknowledged yet.
    pub fn is_pending(&self) -> bool {
        self.sequence > self.acknowledged
    }

    /// The first words to the agent.
    pub fn welcome(&self, software: &str) -> [ToSender; 2] {
        let welcome = Welcome {
            revision: REVISION,
            features: 0,
            window: self.window,
            transfer: self.transfer,
            round: self.record.round,
            kind: self.record.kind,
            complete: self.record.complete,
            watermark: 0,
            software: software.into(),
        };
        let base = Base {
            generation: self.record.generation,
            items: self.lists.base.part_len(Part::Items),
            rows: self.lists.base.part_len(Part::Rows),
            next_id: self.record.progress.next_id,
            made_from: self.record.made_from.clone(),
        };
        [ToSender::Common(frame::ToSender::Welcome(welcome)), ToSender::Base(base)]
    }

    /// What the agent says, and the answers to it. `Hello`, `Ping` and `Bye` are the caller's; after `RoundEnd` the
    /// caller asks [`Self::end`] until there is a result.
    ///
    /// # Errors
    /// When the agent may not say that; and those of target and state directory, after which nothing more is taken.
    pub fn handle(&mut self, frame: ToReceiver) -> Result<Vec<ToSender>, Fault> {
        self.refuse_after_failure()?;
        let answered = self.try_handle(frame);
        self.failed |= answered.is_err();
        answered
    }

    fn try_handle(&mut self, frame: ToReceiver) -> Result<Vec<ToSender>, Fault> {
        match frame {
            ToReceiver::Common(frame::ToReceiver::RoundBegin { round, kind }) => {
                self.begin(round, kind)?;
                Ok(Vec::new())
            }
            ToReceiver::Common(frame::ToReceiver::RoundEnd(end)) => self.begin_end(end),
            ToReceiver::WantHashes { part, first, count } => {
                self.expect_untouched()?;
                let blocks = self.lists.base.part_len(part).div_ceil(BLOCK);
                if first.checked_add(count).is_none_or(|end| end > blocks) {
                    return Err(Fault::Peer("blocks behind the end of a list".into()));
                }
                let mut hashes = Vec::new();
                for block in first..first + count {
                    hashes.push(hash::leaf(&self.lists.base.block(part, block).map_err(Fault::State)?));
                }
                Ok(vec![ToSender::Hashes { part, first, hashes }])
            }
            ToReceiver::WantBlock { part, block } => {
                self.expect_untouched()?;
                let content = self.lists.base.block(part, block).map_err(Fault::State)?;
                let (packing, payload) = pack::Packer::new(3).pack(content).map_err(Fault::State)?;
                Ok(vec![ToSender::Block { part, block, packing, payload }])
            }
            ToReceiver::Steps { len, packing, payload } => {
                if !matches!(self.phase, Phase::InRound) {
                    return Err(Fault::Peer("content outside of a round".into()));
                }
                let steps = pack::unpack(packing, payload, (len as usize).min(MAX_STEPS));
                let steps = steps.ok_or(Fault::Damaged)?;
                let mut from = Fields(&steps);
                while let Some(op) = Op::take(&mut from).map_err(|error| Fault::Peer(error.to_string()))? {
                    self.apply(op)?;
                }
                self.sequence += 1;
                let due = self.batch >= BATCH || self.sequence - self.acknowledged >= FRAMES;
                Ok(if due { self.try_commit()?.into_iter().collect() } else { Vec::new() })
            }
            ToReceiver::Common(_) => Err(Fault::Peer("a frame out of its place".into())),
        }
    }

    fn refuse_after_failure(&self) -> Result<(), Fault> {
        if self.failed { Err(Fault::State(std::io::Error::other("this session has failed"))) } else { Ok(()) }
    }

    fn expect_untouched(&self) -> Result<(), Fault> {
        if self.sequence == 0 {
            Ok(())
        } else {
            Err(Fault::Peer("a comparison in the middle of a round".into()))
        }
    }

    fn begin(&mut self, round: u32, kind: RoundKind) -> Result<(), Fault> {
        let goes_on =
            round == self.record.round && kind == self.record.kind && !self.record.complete && round > 0;
        if !matches!(self.phase, Phase::Open) || (!goes_on && self.record.round.checked_add(1) != Some(round))
        {
            return Err(Fault::Peer(format!("round {round} after round {}", self.record.round)));
        }
        self.record.round = round;
        self.record.kind = kind;
        self.record.complete = false;
        self.phase = Phase::InRound;
        self.record.save(&mut self.log).map_err(Fault::State)
    }

    fn apply(&mut self, op: Op) -> Result<(), Fault> {
        match op {
            Op::Keep { count } => (0..count).try_for_each(|_| self.lists.keep(None)),
            Op::Pass { count } => (0..count).try_for_each(|_| self.lists.pass()),
            Op::Put { path, kind, meta } => self.lists.put(path, kind, meta, None),
            Op::Restate { meta } => self.lists.restate(meta, None),
            Op::Open { path, goes_on } => {
                let file = self.lists.open(path, goes_on)?;
                if goes_on {
                    // What the last session wrote and did not acknowledge is not relied on.
                    self.target.set_len(file.id, file.size).map_err(Fault::Target)
                } else {
                    self.target.stage(file.id).map_err(Fault::Target)
                }
            }
            Op::Chunk { hash, content } => {
                if hash::leaf(&content) != hash {
                    return Err(Fault::Damaged);
                }
                let file = self.lists.add(|offset| Row::chunk(hash, offset, content.len() as u32))?;
                let (id, at) = (file.id, file.size - content.len() as u64);
                self.tally.received += content.len() as u64;
                self.batch += content.len() as u64;
                self.target.write(id, at, &content).map_err(Fault::Target)
            }
            Op::Copy { work, row, count } => {
                let end = row.checked_add(count).ok_or_else(|| Fault::Peer("rows".into()))?;
                (row..end).try_for_each(|row| self.copy(work, row))
            }
            Op::Zeros { len } => {
                let file = self.lists.add(|offset| Row::zeros(offset, len))?;
                let (id, size) = (file.id, file.size);
                self.target.set_len(id, size).map_err(Fault::Target)
            }
            Op::Close { meta } => self.lists.close(meta, None),
            Op::Abandon => self.lists.abandon(),
        }
    }

    fn copy(&mut self, work: bool, number: u64) -> Result<(), Fault> {
        let (row, place) = self.lists.locate(work, number)?;
        if let Some(len) = row.zero {
            return self.apply(Op::Zeros { len });
        }
        self.buffer.resize(row.len as usize, 0);
        let read = self.target.read(&place, row.offset, &mut self.buffer).map_err(Fault::Target)?;
        if !read || hash::leaf(&self.buffer) != row.hash {
            return self.spoil(work, number);
        }
        let file = self.lists.add(|offset| Row { offset, ..row })?;
        let (id, at) = (file.id, file.size - u64::from(row.len));
        self.tally.copied += u64::from(row.len);
        self.batch += u64::from(row.len);
        self.target.write(id, at, &self.buffer).map_err(Fault::Target)
    }

    /// What both ends relied on is not there. It is stricken from the list; the next session finds that out.
    fn spoil(&mut self, work: bool, row: u64) -> Result<(), Fault> {
        let list = if work { &mut self.lists.work } else { &mut self.lists.base };
        list.spoil(row).map_err(Fault::State)?;
        if !work && let Some(owner) = list.owner(row).map_err(Fault::State)? {
            list.set_state(owner, State::Ghost).map_err(Fault::State)?;
        }
        list.sync().map_err(Fault::State)?;
        Err(Fault::Spoilt)
    }

    /// Makes durable what has arrived, and says so.
    ///
    /// # Errors
    /// Of target and state directory, after which nothing more is taken.
    pub fn commit(&mut self) -> Result<Option<ToSender>, Fault> {
        self.refuse_after_failure()?;
        let committed = self.try_commit();
        self.failed |= committed.is_err();
        committed
    }

    fn try_commit(&mut self) -> Result<Option<ToSender>, Fault> {
        if !self.is_pending() {
            return Ok(None);
        }
        self.target.sync().map_err(Fault::Target)?;
        self.lists.work.sync().map_err(Fault::State)?;
        self.record.progress = self.lists.progress();
        let open = self.lists.open_file();
        self.record.open =
            open.map(|file| Cut { path: file.path.clone(), id: file.id, first_row: file.first_row });
        self.record.save(&mut self.log).map_err(Fault::State)?;
        self.batch = 0;
        self.acknowledged = self.sequence;
        Ok(Some(ToSender::Common(frame::ToSender::Ack { sequence: self.sequence })))
    }

    fn begin_end(&mut self, end: RoundEnd) -> Result<Vec<ToSender>, Fault> {
        if !matches!(self.phase, Phase::InRound) || end.round != self.record.round {
            return Err(Fault::Peer("the end of another round".into()));
        }
        self.lists.is_complete()?;
        if self.lists.root() != end.root {
            return Err(Fault::Peer("the root of another tree".into()));
        }
        let answers = self.try_commit()?.into_iter().collect();
        self.record.settling = true;
        self.record.save(&mut self.log).map_err(Fault::State)?;
        self.phase = Phase::Settling(end, Settle::default());
        Ok(answers)
    }

    /// Goes on with the end of the round.
    ///
    /// # Errors
    /// When the round is not at its end; and those of target and state directory.
    pub fn end(&mut self) -> Result<Ending, Fault> {
        self.refuse_after_failure()?;
        let ending = self.try_end();
        self.failed |= ending.is_err();
        ending
    }

    fn try_end(&mut self) -> Result<Ending, Fault> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Settling(end, mut settle) => {
                if settle.step(&mut self.lists.work, &mut self.target)?.is_some() {
                    let (done, total) = settle.progress(&self.lists.work);
                    self.phase = Phase::Settling(end, settle);
                    return Ok(Ending::Settling { done, total });
                }
                self.foreign.append(&mut settle.foreign);
                let total = self.settled(&settle)?;
                if self.record.kind == RoundKind::Proof {
                    self.phase = Phase::Reading(end, Box::default(), settle.missing.is_empty());
                    return Ok(Ending::Reading { done: 0, total });
                }
                self.result(&end, settle.missing.is_empty())
            }
            Phase::Reading(end, mut verifier, all_there) => {
                if verifier.step(&mut self.lists.base, &mut self.target)?.is_some() {
                    let (done, total) = (verifier.next, self.lists.base.extent().items);
                    self.phase = Phase::Reading(end, verifier, all_there);
                    return Ok(Ending::Reading { done, total });
                }
                self.lists.base.sync().map_err(Fault::State)?;
                let verified = verifier.finish();
                let proven = all_there && verified.damaged == 0 && Some(verified.sha256) == end.sha256;
                self.verified = Some(verified);
                self.result(&end, proven)
            }
            Phase::Open | Phase::InRound | Phase::Over => Err(Fault::Peer("the end of no round".into())),
        }
    }

    /// Everything is in its place: what was the work of this round is the base of the next.
    fn settled(&mut self, settle: &Settle) -> Result<u64, Fault> {
        let work =
            List::open(&mut self.shelf, &work_name(self.record.generation), false).map_err(Fault::State)?;
        settled(&mut self.target, &mut self.shelf, &mut self.log, &mut self.record, work, &settle.missing)?;
        let base =
            List::open(&mut self.shelf, &base_name(self.record.generation), false).map_err(Fault::State)?;
        let next =
            List::create(&mut self.shelf, &work_name(self.record.generation), false).map_err(Fault::State)?;
        let total = base.extent().items;
        self.tally.entries = total;
        self.lists = Lists::new(base, next, self.record.progress.next_id, self.budget);
        Ok(total)
    }

    fn result(&mut self, end: &RoundEnd, agreed: bool) -> Result<Ending, Fault> {
        if agreed {
            self.record.complete = true;
            self.record.save(&mut self.log).map_err(Fault::State)?;
        }
        let damaged = self.verified.as_ref().map_or(0, |verified| verified.damaged);
        Ok(Ending::Result(RoundResult { round: end.round, agreed, root: Some(end.root), damaged }))
    }

    /// Reads the whole target back outside of a round. Where it differs from the list, the list is made to say so,
    /// and the next round sends what is missing.
    ///
    /// # Errors
    /// In the middle of a round; and those of target and state directory.
    pub fn verify(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<Verified, Fault> {
        self.refuse_after_failure()?;
        if !matches!(self.phase, Phase::Open) {
            return Err(Fault::Peer("a verification in the middle of a round".into()));
        }
        let mut verifier = Verifier::default();
        while verifier.step(&mut self.lists.base, &mut self.target)?.is_some() {
            progress(verifier.next, self.lists.base.extent().items);
        }
        self.lists.base.sync().map_err(Fault::State)?;
        Ok(verifier.finish())
    }

    /// Target and state directory, when the session is over.
    pub fn into_parts(self) -> (T, F) {
        (self.target, self.shelf)
    }
}

fn open_work<F: Shelf>(shelf: &mut F, record: &Record) -> Result<List<F::Store>, Fault> {
    let mut work = List::open(shelf, &work_name(record.generation), false).map_err(Fault::State)?;
    work.truncate(record.progress.work).map_err(Fault::State)?;
    Ok(work)
}

fn forget<F: Shelf>(shelf: &mut F, generation: u64) -> Result<(), Fault> {
    for name in [base_name(generation), work_name(generation)].iter().flat_map(|name| names(name)) {
        shelf.remove(&name).map_err(Fault::State)?;
    }
    Ok(())
}

fn made_from(record: &Record, settled: bool) -> Option<MadeFrom> {
    let open = record.open.clone();
    Some(MadeFrom { generation: record.generation, progress: record.progress, open, settled })
}

/// The work of a complete round becomes the base.
fn settled<T: Target, F: Shelf>(
    target: &mut T,
    shelf: &mut F,
    log: &mut F::Store,
    record: &mut Record,
    mut work: List<F::Store>,
    missing: &BTreeMap<u64, TreePath>,
) -> Result<(), Fault> {
    target.sync().map_err(Fault::Target)?;
    let before = record.generation;
    let mut base = List::create(shelf, &base_name(before + 1), false).map_err(Fault::State)?;
    finish(&mut base, &mut work, missing).map_err(Fault::State)?;
    base.sync().map_err(Fault::State)?;
    record.made_from = made_from(record, true);
    record.generation = before + 1;
    record.settling = false;
    record.open = None;
    record.progress = Progress { next_id: record.progress.next_id, ..Progress::default() };
    record.save(log).map_err(Fault::State)?;
    target.clear().map_err(Fault::Target)?;
    forget(shelf, before)
}

/// What the last session had come to becomes the base.
fn go_on<T: Target, F: Shelf>(
    target: &mut T,
    shelf: &mut F,
    log: &mut F::Store,
    record: &mut Record,
) -> Result<(), Fault> {
    let before = record.generation;
    let mut work = open_work(shelf, record)?;
    let mut old = List::open(shelf, &base_name(before), false).map_err(Fault::State)?;
    let mut base = List::create(shelf, &base_name(before + 1), false).map_err(Fault::State)?;
    let open = record.open.as_ref().map(|cut| (cut, None));
    let dropped =
        fold(&mut base, &mut old, &mut work, record.progress.position, open).map_err(Fault::State)?;
    base.sync().map_err(Fault::State)?;
    record.made_from = made_from(record, false);
    record.generation = before + 1;
    record.open = None;
    record.progress = Progress { next_id: record.progress.next_id, ..Progress::default() };
    record.save(log).map_err(Fault::State)?;
    for id in dropped {
        target.unstage(id).map_err(Fault::Target)?;
    }
    forget(shelf, before)
}

/// A reading of the target, compared with the list.
#[derive(Debug, Default)]
struct Verifier {
    next: u64,
    row: u64,
    wrong: Option<String>,
    dropped: bool,
    buffer: Vec<u8>,
    sha256: Sha256,
    found: Verified,
}

impl Verifier {
    /// Reads some rows of the next entry; `None` when all have been read.
    fn step<S: super::ports::Store>(
        &mut self,
        list: &mut List<S>,
        target: &mut impl Target,
    ) -> Result<Option<()>, Fault> {
        if self.next >= list.extent().items {
            return Ok(None);
        }
        let item = list.item(self.next).map_err(Fault::State)?;
        if item.state != State::Live || item.place != super::item::Place::There {
            self.next += 1;
            return Ok(Some(()));
        }
        let place = Where::There(item.path.clone());
        if !self.dropped && item.kind.rows() > 0 {
            target.drop_cache(&place).map_err(Fault::Target)?;
        }
        self.dropped = true;
        let first = list.first_row(self.next).map_err(Fault::State)?;
        let end = self.row.saturating_add(64).min(item.kind.rows());
        for number in first + self.row..first + end {
            let row = list.row(number).map_err(Fault::State)?;
            if !self.read(&row, &place, target)? {
                self.wrong.get_or_insert_with(|| format!("its content from byte {} on", row.offset));
                if row.zero.is_none() {
                    list.spoil(number).map_err(Fault::State)?;
                }
            }
        }
        self.row = end;
        if self.row < item.kind.rows() {
            return Ok(Some(()));
        }
        self.sha256.add(&item.canonical());
        let wrong = self.wrong.take();
        let wrong = if wrong.is_some() { wrong } else { target.compare(&item).map_err(Fault::Target)? };
        if let Some(what) = wrong {
            list.set_state(self.next, State::Ghost).map_err(Fault::State)?;
            self.found.damaged += 1;
            if self.found.named.len() < NAMED {
                self.found.named.push(Difference { path: item.path, what });
            }
        }
        self.next += 1;
        self.row = 0;
        self.dropped = false;
        Ok(Some(()))
    }

    /// Whether this piece is what it should be.
    fn read(&mut self, row: &Row, place: &Where, target: &mut impl Target) -> Result<bool, Fault> {
        let mut left = row.span();
        let mut sound = true;
        if let Some(len) = row.zero {
            self.sha256.add(&len.to_le_bytes());
        }
        while left > 0 && sound {
            self.buffer.resize(left.min(1 << 18) as usize, 0);
            sound = target
                .read(place, row.offset + row.span() - left, &mut self.buffer)
                .map_err(Fault::Target)?;
            left -= self.buffer.len() as u64;
            sound &= if row.zero.is_some() {
                hash::is_zero(&self.buffer)
            } else {
                self.sha256.add(&self.buffer);
                row.hash != Digest::UNKNOWN && hash::leaf(&self.buffer) == row.hash
            };
        }
        Ok(sound)
    }

    fn finish(self) -> Verified {
        Verified { sha256: self.sha256.finish(), ..self.found }
    }
}
