//! The receiver's end of a session: what it writes, in which order, and when it says that it has something.
//!
//! Frames gather in a batch. A batch is committed in this order, each step durable before the next: the record that
//! names what is about to be overwritten; the content; the tables of hashes; then the acknowledgement. Whatever
//! stops in between, the tables never claim a content that is not on the disk, except for the units that the record
//! names: these are read back and hashed before anything else. Units that have no content yet are written at once,
//! since nobody relies on them and no record has to name them: the disk works while the line does.

use std::collections::BTreeSet;
use std::ops::Range;

use super::frame::{
    BUNDLE, BUNDLES, Bundle, Part, REVISION, RoundEnd, RoundKind, RoundResult, ToReceiver, ToSender,
    UnitFrame, UnitHead, Welcome,
};
use super::geometry::{Geometry, LeafSet};
use super::hash::{self, Digest, Root, Zeros};
use super::journal::{MAX_TOUCHED, Record};
use super::pack;
use super::ports::{Fault, Log, Table, Target};
use super::sender::runs;
use super::verify::{Verified, Verifier};

/// Bytes of memory that one batch takes at most before it is committed.
const BATCH: usize = 8 << 20;
/// Bytes of content that one batch has written at most before it is committed: less than the window, so that the
/// agent does not wait for it.
const WRITTEN: usize = 24 << 20;
/// Frames that one batch holds at most.
const FRAMES: usize = 2048;
/// Units of zeros that are entered into a table at once.
const ZEROS: u64 = 1024;

/// The receiver's tables.
#[derive(Debug)]
pub struct Tables<T> {
    /// What the target has, by unit.
    pub units: T,
    /// The same by leaf, as many places for each unit as a full one has leaves.
    pub leaves: T,
}

/// What has been done so far in a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Units written, whole or in part.
    pub units: u64,
    /// Bytes of content written.
    pub content: u64,
    /// Units of zeros.
    pub zeros: u64,
    /// Frames whose content was not what their hash said.
    pub refused: u64,
    /// Units that were read back at the beginning, since the session before was interrupted.
    pub read_back: u64,
}

#[derive(Debug)]
enum Write {
    Unit {
        head: UnitHead,
        /// None when it has been written: what was there before was nothing that anybody relied on.
        content: Option<Vec<u8>>,
        digests: Vec<Digest>,
    },
    Zeros {
        first: u64,
        count: u32,
    },
}

/// The receiver's end of one session.
#[derive(Debug)]
pub struct Receiver<D, T, L> {
    geometry: Geometry,
    target: D,
    tables: Tables<T>,
    log: L,
    zeros: Zeros,
    record: Record,
    transfer: [u8; 16],
    window: u32,
    in_round: bool,
    batch: Vec<Write>,
    batch_units: BTreeSet<u64>,
    batch_bytes: usize,
    batch_written: usize,
    batch_frames: usize,
    sequence: u64,
    acknowledged: u64,
    position: u64,
    failed: bool,
    tally: Tally,
}

impl<D: Target, T: Table, L: Log> Receiver<D, T, L> {
    /// Opens the target, and reads back what the last session left in doubt.
    ///
    /// # Errors
    /// Of the disk or of the state directory.
    pub fn open(
        geometry: Geometry,
        target: D,
        tables: Tables<T>,
        mut log: L,
        transfer: [u8; 16],
        window: u32,
    ) -> Result<Self, Fault> {
        let record = log.load().map_err(Fault::State)?.unwrap_or_default();
        let mut this = Self {
            zeros: Zeros::new(&geometry),
            geometry,
            target,
            tables,
            log,
            position: record.watermark,
            record,
            transfer,
            window,
            in_round: false,
            batch: Vec::new(),
            batch_units: BTreeSet::new(),
            batch_bytes: 0,
            batch_written: 0,
            batch_frames: 0,
            sequence: 0,
            acknowledged: 0,
            failed: false,
            tally: Tally::default(),
        };
        this.recover()?;
        Ok(this)
    }

    /// What has been done so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// How far the receiver is.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether something was received that is not acknowledged yet.
    pub fn is_pending(&self) -> bool {
        self.sequence > self.acknowledged
    }

    /// The first words to the agent.
    pub fn welcome(&self, software: &str) -> Welcome {
        Welcome {
            revision: REVISION,
            features: BUNDLES,
            window: self.window,
            transfer: self.transfer,
            round: self.record.round,
            kind: self.record.kind,
            complete: self.record.complete,
            watermark: self.record.watermark,
            software: software.into(),
        }
    }

    fn recover(&mut self) -> Result<(), Fault> {
        if self.record.touched.is_empty() {
            return Ok(());
        }
        // What the crash left in memory becomes durable first, so that what is read is what stays.
        self.target.sync().map_err(Fault::Disk)?;
        for (first, count) in self.record.touched.clone() {
            for unit in first..first.saturating_add(count.into()).min(self.geometry.units()) {
                self.read_back(unit)?;
            }
        }
        self.tables.leaves.sync().map_err(Fault::State)?;
        self.tables.units.sync().map_err(Fault::State)?;
        self.note(true, Vec::new())
    }

    /// Makes the tables say of a unit what is on the disk.
    fn read_back(&mut self, unit: u64) -> Result<Vec<Digest>, Fault> {
        let mut content = vec![0; self.geometry.unit_len(unit)];
        self.target.read(self.geometry.offset(unit), &mut content).map_err(Fault::Disk)?;
        let digests = hash::leaves(&self.geometry, &content);
        let hash = hash::unit(&self.geometry, unit, &digests);
        self.tables.leaves.set(self.leaf_place(unit), &digests).map_err(Fault::State)?;
        self.tables.units.set(unit, &[hash]).map_err(Fault::State)?;
        self.tally.read_back += 1;
        Ok(digests)
    }

    fn note(&mut self, durable: bool, touched: Vec<(u64, u32)>) -> Result<(), Fault> {
        self.record.serial += 1;
        self.record.touched = touched;
        self.log.store(&self.record, durable).map_err(Fault::State)
    }

    /// What the agent says, and the answers to it. `Hello`, `RoundEnd`, `Ping` and `Bye` are the caller's.
    ///
    /// # Errors
    /// When the agent may not say that; and those of disk and state directory, after which nothing more is taken.
    pub fn handle(&mut self, frame: ToReceiver) -> Result<Vec<ToSender>, Fault> {
        let answered = self.try_handle(frame);
        self.failed |= answered.is_err();
        answered
    }

    fn try_handle(&mut self, frame: ToReceiver) -> Result<Vec<ToSender>, Fault> {
        self.refuse_after_failure()?;
        let mut answers = Vec::new();
        match frame {
            ToReceiver::WantSegments { first, count } => {
                answers.extend(self.try_commit()?);
                answers.push(self.segments(first, count)?);
            }
            ToReceiver::WantUnits { segment } => {
                answers.extend(self.try_commit()?);
                let hashes = self.units(self.geometry.segment_units(segment))?;
                answers.push(ToSender::Units { segment, hashes });
            }
            ToReceiver::WantLeaves { unit } => {
                answers.extend(self.try_commit()?);
                let hashes = if unit < self.geometry.units() { self.base(unit)? } else { None };
                answers.push(ToSender::Leaves { unit, hashes: hashes.unwrap_or_default() });
            }
            ToReceiver::RoundBegin { round, kind } => {
                answers.extend(self.try_commit()?);
                self.begin(round, kind)?;
            }
            ToReceiver::Unit(UnitFrame { head, packing, payload }) => {
                self.expect_round()?;
                let len = self.carried(&head)?;
                let content = pack::unpack(packing, payload, len);
                self.unit(head, content.as_deref(), &mut answers)?;
            }
            ToReceiver::Bundle(bundle) => {
                self.expect_round()?;
                self.bundle(bundle, &mut answers)?;
            }
            ToReceiver::Zeros { first, count } => {
                self.expect_round()?;
                self.zeros(first, count, &mut answers)?;
            }
            ToReceiver::Progress { unit } => {
                self.expect_round()?;
                self.sequence += 1;
                self.batch_frames += 1;
                self.position = self.position.max(unit.min(self.geometry.units()));
            }
            ToReceiver::Hello(_) | ToReceiver::RoundEnd(_) | ToReceiver::Ping | ToReceiver::Bye => {
                return Err(Fault::Peer("a frame out of its place".into()));
            }
        }
        self.commit_when_full(&mut answers)?;
        Ok(answers)
    }

    fn refuse_after_failure(&self) -> Result<(), Fault> {
        if self.failed { Err(Fault::State(std::io::Error::other("this session has failed"))) } else { Ok(()) }
    }

    fn expect_round(&self) -> Result<(), Fault> {
        if self.in_round { Ok(()) } else { Err(Fault::Peer("content outside of a round".into())) }
    }

    fn begin(&mut self, round: u32, kind: RoundKind) -> Result<(), Fault> {
        let goes_on =
            round == self.record.round && kind == self.record.kind && !self.record.complete && round > 0;
        if !goes_on && self.record.round.checked_add(1) != Some(round) {
            return Err(Fault::Peer(format!("round {round} after round {}", self.record.round)));
        }
        if !goes_on || kind == RoundKind::Proof {
            self.position = 0;
        }
        self.record.round = round;
        self.record.kind = kind;
        self.record.complete = false;
        self.record.watermark = self.position;
        self.in_round = true;
        self.note(true, Vec::new())
    }

    fn segments(&mut self, first: u64, count: u32) -> Result<ToSender, Fault> {
        let end = first.checked_add(count.into()).filter(|end| *end <= self.geometry.segments());
        let Some(end) = end else { return Err(Fault::Peer("segments behind the end of the disk".into())) };
        let mut hashes = Vec::with_capacity(count as usize);
        for segment in first..end {
            let units = self.units(self.geometry.segment_units(segment))?;
            hashes.push(hash::segment(&self.geometry, segment, &units));
        }
        Ok(ToSender::Segments { first, hashes })
    }

    fn units(&mut self, range: Range<u64>) -> Result<Vec<Digest>, Fault> {
        let count = range.end.saturating_sub(range.start) as usize;
        self.tables.units.get(range.start, count).map_err(Fault::State)
    }

    /// The hashes of a unit's leaves; `None` when it has no content yet.
    fn base(&mut self, unit: u64) -> Result<Option<Vec<Digest>>, Fault> {
        let known = self.units(unit..unit + 1)?.first().copied().unwrap_or_default();
        if !known.is_known() {
            return Ok(None);
        }
        if known == self.zeros.unit(unit) {
            return Ok(Some(self.zeros.leaves(&self.geometry, unit)));
        }
        let stored = self
            .tables
            .leaves
            .get(self.leaf_place(unit), self.geometry.leaves(unit))
            .map_err(Fault::State)?;
        if hash::unit(&self.geometry, unit, &stored) == known {
            return Ok(Some(stored));
        }
        // A loss of power kept one table and not the other. The disk knows.
        self.read_back(unit).map(Some)
    }

    fn commit_when_full(&mut self, answers: &mut Vec<ToSender>) -> Result<(), Fault> {
        if self.batch_bytes >= BATCH || self.batch_written >= WRITTEN || self.batch_frames >= FRAMES {
            answers.extend(self.try_commit()?);
        }
        Ok(())
    }

    fn zeros(&mut self, first: u64, count: u32, answers: &mut Vec<ToSender>) -> Result<(), Fault> {
        let end = first.checked_add(count.into()).filter(|end| count > 0 && *end <= self.geometry.units());
        let Some(end) = end else {
            return Err(Fault::Peer("zeros behind the end of the disk".into()));
        };
        if self.batch_units.range(first..end).next().is_some() {
            answers.extend(self.try_commit()?);
        }
        self.sequence += 1;
        self.tally.zeros += u64::from(count);
        self.gather(end, Write::Zeros { first, count });
        Ok(())
    }

    /// Each part is taken as if it had come by itself, so that damage costs no more than it would then.
    fn bundle(&mut self, bundle: Bundle, answers: &mut Vec<ToSender>) -> Result<(), Fault> {
        let Bundle { parts, packing, payload } = bundle;
        let mut len = 0;
        for part in &parts {
            if let Part::Unit(head) = part {
                len += self.carried(head)?;
            }
        }
        if len > BUNDLE {
            return Err(Fault::Peer("a bundle of more than it may have".into()));
        }
        let content = pack::unpack(packing, payload, len);
        let mut rest = content.as_deref();
        for part in parts {
            match part {
                Part::Unit(head) => {
                    let len = self.carried(&head)?;
                    let (part, behind) = rest.and_then(|rest| rest.split_at_checked(len)).unzip();
                    rest = behind;
                    self.unit(head, part, answers)?;
                }
                Part::Zeros { first, count } => self.zeros(first, count, answers)?,
            }
            self.commit_when_full(answers)?;
        }
        Ok(())
    }

    /// Bytes of content that come with this unit.
    fn carried(&self, head: &UnitHead) -> Result<usize, Fault> {
        let UnitHead { unit, hash, changed, zero } = head;
        let all = LeafSet::first(self.geometry.leaves(*unit));
        let sound = *unit < self.geometry.units() && !changed.is_empty() && changed.is_within(&all);
        if !sound || !zero.is_within(changed) || !hash.is_known() {
            return Err(Fault::Peer("a unit that is not of this disk".into()));
        }
        let carried = changed.iter().filter(|leaf| !zero.contains(*leaf));
        Ok(carried.map(|leaf| self.geometry.leaf_range(*unit, leaf).len()).sum())
    }

    /// Takes a unit with its content; without one when it could not be unpacked.
    fn unit(
        &mut self,
        head: UnitHead,
        content: Option<&[u8]>,
        answers: &mut Vec<ToSender>,
    ) -> Result<(), Fault> {
        let UnitHead { unit, hash, changed, zero } = head;
        // What has gathered for this unit comes first: written at once, this would come before it.
        let gathered = |write: &Write| match write {
            Write::Unit { .. } => false,
            Write::Zeros { first, count } => (*first..first + u64::from(*count)).contains(&unit),
        };
        if self.batch_units.contains(&unit) || self.batch.iter().any(gathered) {
            answers.extend(self.try_commit()?);
        }
        self.sequence += 1;
        let base = self.base(unit)?;
        let known = base.is_some();
        let all = self.geometry.leaves(unit);
        let mut digests = match base {
            Some(base) => base,
            None if changed == LeafSet::first(all) => vec![Digest::UNKNOWN; all],
            None => {
                answers.push(self.refuse(unit));
                return Ok(());
            }
        };
        let Some(content) = content else {
            answers.push(self.refuse(unit));
            return Ok(());
        };
        let mut rest = content;
        for leaf in changed.iter() {
            let len = self.geometry.leaf_range(unit, leaf).len();
            let Some(digest) = digests.get_mut(leaf) else { continue };
            if !zero.contains(leaf) {
                let (part, behind) = rest.split_at(len.min(rest.len()));
                rest = behind;
                *digest = hash::leaf(part);
            } else if len == self.geometry.leaf() as usize {
                *digest = self.zeros.leaf();
            } else {
                *digest = hash::leaf(&vec![0; len]);
            }
        }
        if hash::unit(&self.geometry, unit, &digests) != hash {
            answers.push(self.refuse(unit));
            return Ok(());
        }
        self.tally.units += 1;
        self.tally.content += content.len() as u64;
        self.batch_bytes += digests.len() * 32;
        self.batch_units.insert(unit);
        let content = if known {
            self.batch_bytes += content.len();
            Some(content.to_vec())
        } else {
            self.batch_written += content.len();
            self.write_unit(&head, content)?;
            None
        };
        self.gather(unit + 1, Write::Unit { head, content, digests });
        Ok(())
    }

    fn refuse(&mut self, unit: u64) -> ToSender {
        self.tally.refused += 1;
        self.batch_frames += 1;
        ToSender::Nack { sequence: self.sequence, unit }
    }

    fn gather(&mut self, position: u64, write: Write) {
        // What is said about it takes room, too.
        self.batch_bytes += 256;
        self.batch_frames += 1;
        self.position = self.position.max(position);
        self.batch.push(write);
    }

    /// Makes durable what has gathered, and says so.
    ///
    /// # Errors
    /// Of disk and state directory, after which nothing more is taken.
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
        let batch = std::mem::take(&mut self.batch);
        self.batch_units.clear();
        self.batch_bytes = 0;
        self.batch_written = 0;
        self.batch_frames = 0;
        if !batch.is_empty() {
            let touched = self.touched(&batch)?;
            // A record that names fewer than are overwritten would be a lie after a crash; one range for all is not.
            let touched = if touched.len() <= MAX_TOUCHED { touched } else { spanning(&touched) };
            if !touched.is_empty() {
                self.note(true, touched)?;
            }
            for write in &batch {
                self.write(write)?;
            }
            self.target.sync().map_err(Fault::Disk)?;
            for write in &batch {
                self.enter(write)?;
            }
            self.tables.leaves.sync().map_err(Fault::State)?;
            self.tables.units.sync().map_err(Fault::State)?;
        }
        self.record.watermark = self.position;
        self.note(false, Vec::new())?;
        self.acknowledged = self.sequence;
        Ok(Some(ToSender::Ack { sequence: self.sequence }))
    }

    /// The units with content that the batch overwrites.
    fn touched(&mut self, batch: &[Write]) -> Result<Vec<(u64, u32)>, Fault> {
        let mut touched: Vec<(u64, u32)> = Vec::new();
        let mut add = |unit: u64| match touched.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == unit => *count += 1,
            _ => touched.push((unit, 1)),
        };
        for write in batch {
            match write {
                Write::Unit { head, content: Some(_), .. } => add(head.unit),
                Write::Unit { .. } => {}
                Write::Zeros { first, count } => {
                    let end = first + u64::from(*count);
                    for start in (*first..end).step_by(ZEROS as usize) {
                        let range = start..(start + ZEROS).min(end);
                        let count = (range.end - range.start) as usize;
                        let known = self.tables.units.get(start, count).map_err(Fault::State)?;
                        range
                            .zip(known)
                            .filter(|(_, digest)| digest.is_known())
                            .for_each(|(unit, _)| add(unit));
                    }
                }
            }
        }
        Ok(touched)
    }

    fn write(&mut self, write: &Write) -> Result<(), Fault> {
        match write {
            Write::Unit { head, content: Some(content), .. } => self.write_unit(head, content),
            Write::Unit { content: None, .. } => Ok(()),
            Write::Zeros { first, count } => {
                let offset = self.geometry.offset(*first);
                let end = self.geometry.offset(first + u64::from(*count)).min(self.geometry.len());
                self.target.zero(offset, end - offset).map_err(Fault::Disk)
            }
        }
    }

    fn write_unit(&mut self, head: &UnitHead, content: &[u8]) -> Result<(), Fault> {
        let UnitHead { unit, changed, zero, .. } = head;
        let place = |leaves: &Range<usize>| {
            let first = self.geometry.leaf_range(*unit, leaves.start).start;
            let end = self.geometry.leaf_range(*unit, leaves.end.saturating_sub(1)).end;
            (self.geometry.offset(*unit) + first as u64, end - first)
        };
        let mut carried = LeafSet::default();
        changed.iter().filter(|leaf| !zero.contains(*leaf)).for_each(|leaf| carried.insert(leaf));
        let mut rest = content;
        for run in runs(&carried) {
            let (offset, len) = place(&run);
            let (part, behind) = rest.split_at(len.min(rest.len()));
            rest = behind;
            self.target.write(offset, part).map_err(Fault::Disk)?;
        }
        for run in runs(zero) {
            let (offset, len) = place(&run);
            self.target.zero(offset, len as u64).map_err(Fault::Disk)?;
        }
        Ok(())
    }

    fn enter(&mut self, write: &Write) -> Result<(), Fault> {
        match write {
            Write::Unit { head: UnitHead { unit, hash, .. }, digests, .. } => {
                self.tables.leaves.set(self.leaf_place(*unit), digests).map_err(Fault::State)?;
                self.tables.units.set(*unit, &[*hash]).map_err(Fault::State)
            }
            Write::Zeros { first, count } => {
                let end = first + u64::from(*count);
                for start in (*first..end).step_by(ZEROS as usize) {
                    let zeros: Vec<_> =
                        (start..(start + ZEROS).min(end)).map(|unit| self.zeros.unit(unit)).collect();
                    self.tables.units.set(start, &zeros).map_err(Fault::State)?;
                }
                Ok(())
            }
        }
    }

    /// A reading of the whole target. Nothing else may come in between.
    ///
    /// # Errors
    /// When something is not acknowledged yet.
    pub fn verifier(&self) -> Result<Verifier, Fault> {
        self.refuse_after_failure()?;
        if self.is_pending() {
            return Err(Fault::Peer("the end of a round before its content".into()));
        }
        Ok(Verifier::new(self.geometry))
    }

    /// Reads the next unit; `None` when all have been read.
    ///
    /// # Errors
    /// Of disk and state directory.
    pub fn verify(&mut self, verifier: &mut Verifier) -> Result<Option<()>, Fault> {
        verifier.step(&mut self.target, &mut self.tables.units, &mut self.tables.leaves)
    }

    /// What a round has come to: after a reading of the target when the round is a proof.
    ///
    /// # Errors
    /// When the agent may not end this round; and those of the state directory.
    pub fn conclude(&mut self, end: &RoundEnd, verified: Option<&Verified>) -> Result<RoundResult, Fault> {
        self.refuse_after_failure()?;
        self.expect_round()?;
        if self.is_pending() || end.round != self.record.round {
            return Err(Fault::Peer("the end of another round".into()));
        }
        let root = match verified {
            Some(verified) => verified.root,
            None => self.root()?,
        };
        let proven = match self.record.kind {
            RoundKind::Copy => true,
            RoundKind::Proof => {
                verified.is_some_and(|seen| seen.damaged == 0 && Some(seen.sha256) == end.sha256)
            }
        };
        let agreed = proven && root == Some(end.root);
        let damaged = verified.map_or(0, |verified| verified.damaged);
        if damaged > 0 {
            self.tables.leaves.sync().map_err(Fault::State)?;
            self.tables.units.sync().map_err(Fault::State)?;
        }
        if agreed {
            self.in_round = false;
            self.record.complete = true;
            self.record.watermark = self.geometry.units();
            self.note(true, Vec::new())?;
        }
        Ok(RoundResult { round: end.round, agreed, root, damaged })
    }

    fn root(&mut self) -> Result<Option<Digest>, Fault> {
        let mut root = Root::new(&self.geometry);
        for segment in 0..self.geometry.segments() {
            let range = self.geometry.segment_units(segment);
            self.units(range)?.iter().for_each(|unit| root.add(unit));
        }
        Ok(root.finish())
    }

    fn leaf_place(&self, unit: u64) -> u64 {
        unit * self.geometry.full_leaves() as u64
    }

    /// The disk and the tables, when the session is over.
    pub fn into_parts(self) -> (D, Tables<T>, L) {
        (self.target, self.tables, self.log)
    }
}

/// One stretch over all of these.
fn spanning(touched: &[(u64, u32)]) -> Vec<(u64, u32)> {
    let first = touched.iter().map(|(first, _)| *first).min().unwrap_or(0);
    let end = touched.iter().map(|(first, count)| first + u64::from(*count)).max().unwrap_or(0);
    vec![(first, u32::try_from(end - first).unwrap_or(u32::MAX))]
}
