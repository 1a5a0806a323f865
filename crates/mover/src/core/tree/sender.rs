//! The agent's end of a tree's session: it walks the tree beside what the receiver has, and says what is different.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::bytes::{Fields, put_counted};
use super::cut::Cutter;
use super::frame::{Base, MAX_HASHES, MAX_STEPS, MadeFrom, ToReceiver, ToSender};
use super::hashes::{Hashes, Key};
use super::item::{Item, Kind, Meta, State};
use super::list::{BLOCK, List, Part, ROW, Row, StatRow, names};
use super::lists::{Budget, Lists, finish, fold};
use super::op::Op;
use super::path::{MAX_PATH, TreePath};
use super::ports::{Bit, Fault, Seen, SeenKind, Shelf, Source, Store, Trouble, Walked};
use crate::core::frame::{self, Cargo, Hello, REVISION, RoundKind, RoundResult, Welcome};
use crate::core::hash::{self, Digest};
use crate::core::pack::{self, Packer};
use crate::core::rounds::{self, Plan};
use crate::core::verify::Sha256;

/// Bytes of steps that are sent at once, before packing.
const FRAME: usize = 512 << 10;
/// Entries that may pass before the receiver hears of them.
const SILENCE: u64 = 4096;
/// Blocks of a list that may be asked for at once.
const BLOCKS: usize = 16;
/// Times that a file is read when it changes meanwhile.
const READINGS: u32 = 3;
/// Bytes that a list of the receiver may have: of a hundred million entries.
const MAX_LIST: u64 = 64 << 30;
/// Paths that are named; beyond that they are only counted.
const NAMED: usize = 1000;
/// The store that says which list is the base.
const KNOWN: &str = "known";
/// The store that says which file was open.
const OPENED: &str = "opened";

/// What an agent wants of a session.
#[derive(Debug, Clone)]
pub struct Order {
    /// What the round is for.
    pub kind: RoundKind,
    /// The round that this agent has begun already for this purpose.
    pub begun: Option<u32>,
    /// Name and version of the program.
    pub software: String,
    /// Level of zstd.
    pub level: i32,
}

/// What has been done so far in a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Entries that the walk has come to.
    pub entries: u64,
    /// Files that were read.
    pub files_read: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Bytes of content that were sent, before packing.
    pub content: u64,
    /// Bytes of it that the receiver has acknowledged.
    pub acknowledged: u64,
    /// Bytes of content that the receiver had, of files that are new or changed.
    pub known: u64,
    /// Bytes of the frames.
    pub wire: u64,
    /// Bytes of holes and zeros.
    pub zeros: u64,
    /// Entries that the copy lacks, or has only half of.
    pub lacking: u64,
    /// Entries that vanished while the tree was read.
    pub vanished: u64,
    /// Entries of kinds that are not carried.
    pub left_out: u64,
}

/// What the agent does next.
#[derive(Debug)]
pub enum Step {
    /// Send this.
    Send(ToReceiver),
    /// Everything was read, sent and acknowledged: sign this and send it as the end of the round.
    Conclude(Conclusion),
    /// Nothing, until the receiver says something.
    Wait,
    /// The round is over.
    Over {
        /// Its number.
        round: u32,
        /// The receiver's answer; none when it came in an earlier session and was lost.
        result: Option<RoundResult>,
    },
}

/// What a round has come to at the agent's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conclusion {
    /// The transfer.
    pub transfer: [u8; 16],
    /// The round.
    pub round: u32,
    /// What it was for.
    pub kind: RoundKind,
    /// The root of the tree.
    pub root: Digest,
    /// SHA-256 of it, of a proof.
    pub sha256: Option<[u8; 32]>,
}

#[derive(Debug)]
enum Phase {
    Silent,
    Greeted,
    /// The welcome has come.
    Welcomed,
    Comparing(Comparison),
    Moving,
    Ended,
    Concluded,
    Over(Option<RoundResult>),
}

/// Makes the own copy of the receiver's list like the receiver's.
#[derive(Debug)]
struct Comparison {
    parts: Vec<(Part, u64, u64)>,
    asked: Option<(Part, u64, u64)>,
    wanted: BTreeSet<(bool, u64)>,
    coming: BTreeMap<(bool, u64), Digest>,
    hashes: BTreeMap<(bool, u64), Digest>,
}

fn is_rows(part: Part) -> bool {
    part == Part::Rows
}

/// The file that is being read.
#[derive(Debug)]
struct Reading {
    seen: Seen,
    /// The first row of what the receiver has at this path, and how many there are.
    expected: Option<(u64, u64)>,
    matched: u64,
    opened: bool,
    zeros: u64,
    hole: u64,
    ended: bool,
    times: u32,
}

/// A frame that is not acknowledged yet.
#[derive(Debug)]
struct InFlight {
    sequence: u64,
    cost: u64,
    /// Bytes of content up to and with it.
    content: u64,
}

/// The agent's end of one session.
#[derive(Debug)]
pub struct Sender<R, F: Shelf> {
    order: Order,
    source: R,
    shelf: F,
    lists: Option<Lists<F::Store>>,
    generation: u64,
    phase: Phase,
    outbox: VecDeque<ToReceiver>,
    window: u64,
    transfer: [u8; 16],
    round: u32,
    packer: Packer,
    // Of the walk.
    file: Option<Reading>,
    opened: Option<F::Store>,
    cutter: Cutter,
    silent: u64,
    chunks: Option<Hashes<F::Store>>,
    inodes: Option<Hashes<F::Store>>,
    sha256: Option<Sha256>,
    // Of what is under way.
    pending: Option<Op>,
    steps: Vec<u8>,
    sequence: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_cost: u64,
    tally: Tally,
    troubles: Vec<(TreePath, Trouble)>,
}

fn state(error: std::io::Error) -> Fault {
    Fault::State(error)
}

fn base_name(generation: u64) -> String {
    format!("known-{generation}")
}

fn work_name(generation: u64) -> String {
    format!("next-{generation}")
}

fn key(hash: &Digest) -> Key {
    let mut key = [0; 16];
    key.copy_from_slice(&hash.0[..16]);
    key
}

fn inode(seen: &Seen) -> Key {
    let mut key = [0; 16];
    // The number comes first: by it a place in the table is chosen.
    key[..8].copy_from_slice(&seen.stat.ino.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key[8..].copy_from_slice(&seen.stat.dev.to_le_bytes());
    key
}

fn stat_of(seen: &Seen) -> StatRow {
    StatRow { stat: seen.stat, fresh: seen.fresh }
}

fn is_unchanged(before: &StatRow, seen: &Seen) -> bool {
    let (then, now) = (&before.stat, &seen.stat);
    !before.fresh
        && (then.dev, then.ino, then.size, then.mtime, then.ctime)
            == (now.dev, now.ino, now.size, now.mtime, now.ctime)
}

impl<R: Source, F: Shelf> Sender<R, F> {
    /// A session that has not begun.
    pub fn new(order: Order, source: R, shelf: F) -> Self {
        Self {
            packer: Packer::new(order.level),
            sha256: (order.kind == RoundKind::Proof).then(Sha256::default),
            order,
            source,
            shelf,
            lists: None,
            generation: 0,
            phase: Phase::Silent,
            outbox: VecDeque::new(),
            window: 0,
            transfer: [0; 16],
            round: 0,
            file: None,
            opened: None,
            cutter: Cutter::default(),
            silent: 0,
            chunks: None,
            inodes: None,
            pending: None,
            steps: Vec::new(),
            sequence: 0,
            in_flight: VecDeque::new(),
            in_flight_cost: 0,
            tally: Tally::default(),
            troubles: Vec::new(),
        }
    }

    /// What has been done so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// What could not be carried as it is, the first thousand.
    pub fn troubles(&self) -> &[(TreePath, Trouble)] {
        &self.troubles
    }

    /// The round that this session has begun or gone on with; 0 before.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// From now on with this level of zstd.
    pub fn set_level(&mut self, level: i32) {
        self.packer.set_level(level);
    }

    /// What to do next. After [`Step::Wait`] and [`Step::Conclude`] it is asked again when the receiver has spoken.
    ///
    /// # Errors
    /// When this session cannot go on.
    pub fn step(&mut self) -> Result<Step, Fault> {
        loop {
            if let Some(frame) = self.outbox.pop_front() {
                return Ok(Step::Send(frame));
            }
            match &mut self.phase {
                Phase::Silent => {
                    let hello = Hello {
                        revision: REVISION,
                        features: 0,
                        cargo: Cargo::Tree,
                        len: 0,
                        unit: super::cut::MAX as u32,
                        leaf: super::cut::MIN as u32,
                        software: self.order.software.clone(),
                    };
                    self.outbox.push_back(ToReceiver::Common(frame::ToReceiver::Hello(hello)));
                    self.phase = Phase::Greeted;
                }
                Phase::Comparing(comparison) => {
                    if let Some(frame) = comparison.ask() {
                        self.outbox.push_back(frame);
                    } else if comparison.is_over() {
                        self.begin_moving()?;
                    } else {
                        return Ok(Step::Wait);
                    }
                }
                Phase::Moving => {
                    if self.in_flight_cost >= self.window {
                        return Ok(Step::Wait);
                    }
                    self.advance()?;
                    if self.steps.len() >= FRAME || self.silent >= SILENCE {
                        self.flush()?;
                    }
                }
                Phase::Ended => {
                    if !self.in_flight.is_empty() {
                        return Ok(Step::Wait);
                    }
                    return self.conclude();
                }
                Phase::Greeted | Phase::Welcomed | Phase::Concluded => return Ok(Step::Wait),
                Phase::Over(result) => return Ok(Step::Over { round: self.round, result: result.clone() }),
            }
        }
    }

    /// What the receiver says.
    ///
    /// # Errors
    /// When it may not say that now, or ends the session; and those of the state directory.
    pub fn receive(&mut self, frame: ToSender) -> Result<(), Fault> {
        match frame {
            ToSender::Common(frame::ToSender::Welcome(welcome)) => self.welcome(&welcome),
            ToSender::Common(frame::ToSender::Refused { later, text }) => Err(Fault::Refused { later, text }),
            ToSender::Common(frame::ToSender::Ack { sequence }) => self.acknowledged(sequence),
            ToSender::Common(frame::ToSender::RoundResult(result)) => self.result(result),
            ToSender::Common(frame::ToSender::Reading { .. } | frame::ToSender::Pong)
            | ToSender::Settling { .. } => Ok(()),
            ToSender::Base(base) => self.base(base),
            ToSender::Hashes { part, first, hashes } => self.hashes(part, first, hashes),
            ToSender::Block { part, block, packing, payload } => self.block(part, block, packing, payload),
            ToSender::Common(_) => Err(Fault::Peer("a frame that is not of trees".into())),
        }
    }

    fn welcome(&mut self, welcome: &Welcome) -> Result<(), Fault> {
        if !matches!(self.phase, Phase::Greeted) {
            return Err(Fault::Peer("a second welcome".into()));
        }
        if welcome.revision == 0 || welcome.revision > REVISION || welcome.window == 0 {
            return Err(Fault::Peer("a welcome without a revision or a window".into()));
        }
        self.window = welcome.window.into();
        self.transfer = welcome.transfer;
        match rounds::plan(welcome, self.order.kind, self.order.begun) {
            Plan::Over { round } => {
                self.round = round;
                self.phase = Phase::Over(None);
            }
            Plan::Move { round } => {
                self.round = round;
                let begin = frame::ToReceiver::RoundBegin { round, kind: self.order.kind };
                self.outbox.push_back(ToReceiver::Common(begin));
                self.phase = Phase::Welcomed;
            }
        }
        Ok(())
    }

    fn base(&mut self, base: Base) -> Result<(), Fault> {
        if matches!(self.phase, Phase::Over(_)) {
            return Ok(());
        }
        if !matches!(self.phase, Phase::Welcomed) {
            return Err(Fault::Peer("a list that nobody asked for".into()));
        }
        if base.items > MAX_LIST || base.rows > MAX_LIST || !base.rows.is_multiple_of(ROW) {
            return Err(Fault::Peer("an impossible list".into()));
        }
        let mut list = self.own_copy(&base).map_err(state)?;
        let mut parts = Vec::new();
        for (part, len) in [(Part::Items, base.items), (Part::Rows, base.rows)] {
            if list.part_len(part) != len {
                list.set_part_len(part, len).map_err(state)?;
            }
            parts.push((part, 0, len.div_ceil(BLOCK)));
        }
        self.generation = base.generation;
        // The lists are whole only after the comparison; until then only blocks are looked at.
        let work = List::create(&mut self.shelf, &work_name(base.generation), true).map_err(state)?;
        self.lists = Some(Lists::new(list, work, base.next_id, Budget::NONE));
        self.phase = Phase::Comparing(Comparison {
            parts,
            asked: None,
            wanted: BTreeSet::new(),
            coming: BTreeMap::new(),
            hashes: BTreeMap::new(),
        });
        Ok(())
    }

    /// What the receiver probably has: made from what this end has kept of the last session.
    fn own_copy(&mut self, base: &Base) -> std::io::Result<List<F::Store>> {
        let mut known = self.shelf.open(KNOWN)?;
        let mut bytes = [0; 24];
        let mine = known.read_at(0, &mut bytes)? == bytes.len() && bytes[..16] == self.transfer;
        let mut generation = [0; 8];
        generation.copy_from_slice(&bytes[16..]);
        let generation = mine.then(|| u64::from_le_bytes(generation));
        if generation == Some(base.generation) {
            return List::open(&mut self.shelf, &base_name(base.generation), true);
        }
        let mut list = List::create(&mut self.shelf, &base_name(base.generation), true)?;
        if let (Some(before), Some(made)) = (generation, &base.made_from)
            && made.generation == before
        {
            // When this end has lost something, the comparison finds out; it costs only what is fetched then.
            match self.make(&mut list, made) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    list = List::create(&mut self.shelf, &base_name(base.generation), true)?;
                }
                Err(error) => return Err(error),
            }
        }
        list.flush()?;
        let mut bytes = self.transfer.to_vec();
        bytes.extend_from_slice(&base.generation.to_le_bytes());
        known.write_at(0, &bytes)?;
        if let Some(before) = generation {
            for name in [base_name(before), work_name(before)].iter().flat_map(|name| names(name)) {
                self.shelf.remove(&name)?;
            }
        }
        Ok(list)
    }

    fn make(&mut self, list: &mut List<F::Store>, made: &MadeFrom) -> std::io::Result<()> {
        let mut work = List::open(&mut self.shelf, &work_name(made.generation), true)?;
        work.truncate(made.progress.work)?;
        if made.settled {
            return finish(list, &mut work, &BTreeMap::new());
        }
        let mut base = List::open(&mut self.shelf, &base_name(made.generation), true)?;
        let opened = self.opened()?;
        let open = made.open.as_ref().map(|cut| {
            let stat = opened.filter(|(path, _)| *path == cut.path).map(|(_, stat)| stat);
            (cut, stat)
        });
        fold(list, &mut base, &mut work, made.progress.position, open).map(|_| ())
    }

    /// Notes which file is open: its beginning is of use after a cut only while it has not changed.
    fn note_opened(&mut self, seen: &Seen) -> std::io::Result<()> {
        let mut bytes = stat_of(seen).encode(seen.path.bytes()).to_vec();
        put_counted(&mut bytes, seen.path.bytes());
        if self.opened.is_none() {
            self.opened = Some(self.shelf.open(OPENED)?);
        }
        self.opened.as_mut().map_or(Ok(()), |store| store.write_at(0, &bytes))
    }

    fn opened(&mut self) -> std::io::Result<Option<(TreePath, StatRow)>> {
        let mut bytes = vec![0; 8 << 10];
        let read = self.shelf.open(OPENED)?.read_at(0, &mut bytes)?;
        let Some((stat, path)) = bytes[..read].split_first_chunk() else { return Ok(None) };
        let path = Fields(path).counted(MAX_PATH, "path").and_then(|path| TreePath::new(path.to_vec()));
        let Ok(path) = path else { return Ok(None) };
        Ok(StatRow::decode(stat, path.bytes()).map(|stat| (path, stat)))
    }

    fn hashes(&mut self, part: Part, first: u64, hashes: Vec<Digest>) -> Result<(), Fault> {
        let (Phase::Comparing(comparison), Some(lists)) = (&mut self.phase, &mut self.lists) else {
            return Err(Fault::Peer("hashes that nobody asked for".into()));
        };
        if comparison.asked.take() != Some((part, first, hashes.len() as u64)) {
            return Err(Fault::Peer("other hashes than were asked for".into()));
        }
        for (block, theirs) in (first..).zip(hashes) {
            let mine = hash::leaf(&lists.base.block(part, block).map_err(state)?);
            if mine != theirs {
                comparison.wanted.insert((is_rows(part), block));
                comparison.hashes.insert((is_rows(part), block), theirs);
            }
        }
        Ok(())
    }

    fn block(
        &mut self,
        part: Part,
        block: u64,
        packing: frame::Packing,
        payload: Vec<u8>,
    ) -> Result<(), Fault> {
        let (Phase::Comparing(comparison), Some(lists)) = (&mut self.phase, &mut self.lists) else {
            return Err(Fault::Peer("a block that nobody asked for".into()));
        };
        let Some(expected) = comparison.coming.remove(&(is_rows(part), block)) else {
            return Err(Fault::Peer("a block that nobody asked for".into()));
        };
        let len = lists.base.part_len(part).saturating_sub(block.saturating_mul(BLOCK)).min(BLOCK);
        match pack::unpack(packing, payload, len as usize) {
            Some(content) if hash::leaf(&content) == expected => {
                lists.base.set_block(part, block, &content).map_err(state)
            }
            _ => Err(Fault::Peer("a block that is not what its hash says".into())),
        }
    }

    fn begin_moving(&mut self) -> Result<(), Fault> {
        let Some(lists) = &mut self.lists else { return Err(Fault::Peer("no list".into())) };
        lists.base.index_again().map_err(|error| Fault::Peer(error.to_string()))?;
        self.source.rewind().map_err(Fault::Source)?;
        self.phase = Phase::Moving;
        Ok(())
    }

    fn acknowledged(&mut self, sequence: u64) -> Result<(), Fault> {
        if sequence > self.sequence {
            return Err(Fault::Peer("an acknowledgement of what was not sent".into()));
        }
        while self.in_flight.front().is_some_and(|flying| flying.sequence <= sequence) {
            let Some(landed) = self.in_flight.pop_front() else { break };
            self.in_flight_cost -= landed.cost;
            self.tally.acknowledged = landed.content;
        }
        Ok(())
    }

    fn result(&mut self, result: RoundResult) -> Result<(), Fault> {
        if !matches!(self.phase, Phase::Concluded) || result.round != self.round {
            return Err(Fault::Peer("the result of another round".into()));
        }
        self.phase = Phase::Over(Some(result));
        Ok(())
    }

    fn lists(&mut self) -> Result<&mut Lists<F::Store>, Fault> {
        self.lists.as_mut().ok_or_else(|| Fault::Peer("no list".into()))
    }

    /// Adds a step. Runs of the same kind become one.
    fn emit(&mut self, op: Op) -> Result<(), Fault> {
        match (&mut self.pending, &op) {
            (Some(Op::Keep { count }), Op::Keep { count: more })
            | (Some(Op::Pass { count }), Op::Pass { count: more }) => {
                *count += more;
                return Ok(());
            }
            (Some(Op::Copy { work, row, count }), Op::Copy { work: other, row: next, count: more })
                if work == other && *row + *count == *next =>
            {
                *count += more;
                return Ok(());
            }
            _ => {}
        }
        self.emit_pending()?;
        if matches!(op, Op::Keep { .. } | Op::Pass { .. } | Op::Copy { .. }) {
            self.pending = Some(op);
            return Ok(());
        }
        self.put(&op)
    }

    fn emit_pending(&mut self) -> Result<(), Fault> {
        self.pending.take().map_or(Ok(()), |op| self.put(&op))
    }

    fn put(&mut self, op: &Op) -> Result<(), Fault> {
        let before = self.steps.len();
        op.put(&mut self.steps);
        if self.steps.len() > MAX_STEPS {
            let last = self.steps.split_off(before);
            self.send_steps()?;
            self.steps = last;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.emit_pending()?;
        self.silent = 0;
        if self.steps.is_empty() { Ok(()) } else { self.send_steps() }
    }

    fn send_steps(&mut self) -> Result<(), Fault> {
        let frame = ToReceiver::steps(std::mem::take(&mut self.steps), &mut self.packer).map_err(state)?;
        let cost = match &frame {
            ToReceiver::Steps { payload, .. } => payload.len() as u64 + 16,
            _ => 16,
        };
        self.sequence += 1;
        self.tally.wire += cost;
        self.in_flight_cost += cost;
        self.in_flight.push_back(InFlight { sequence: self.sequence, cost, content: self.tally.content });
        self.outbox.push_back(frame);
        // What the receiver may rely on after a cut has to be in the files, not in the memory of this process.
        self.lists()?.work.flush().map_err(state)
    }

    fn advance(&mut self) -> Result<(), Fault> {
        if let Some(reading) = self.file.take() {
            return self.read_on(reading);
        }
        self.silent += 1;
        match self.source.next().map_err(Fault::Source)? {
            Walked::Seen(seen) => self.walked(seen),
            Walked::Trouble(path, trouble) => self.troubled(path, trouble),
            Walked::End => {
                while self.lists()?.peek()?.is_some() {
                    self.pass()?;
                }
                self.flush()?;
                self.phase = Phase::Ended;
                Ok(())
            }
        }
    }

    fn pass(&mut self) -> Result<(), Fault> {
        self.lists()?.pass()?;
        self.emit(Op::Pass { count: 1 })
    }

    fn keep(&mut self, stat: Option<&StatRow>) -> Result<(), Fault> {
        self.lists()?.keep(stat)?;
        self.emit(Op::Keep { count: 1 })?;
        self.entered()
    }

    /// Lets go of what the receiver has before this path.
    fn pass_until(&mut self, path: &TreePath) -> Result<(), Fault> {
        while self.lists()?.peek()?.is_some_and(|item| item.path < *path) {
            self.pass()?;
        }
        Ok(())
    }

    fn note(&mut self, path: TreePath, trouble: Trouble) -> Result<(), Fault> {
        if self.order.kind == RoundKind::Proof {
            match &trouble {
                Trouble::Unreadable(_) => {
                    return Err(Fault::Unproven { path, trouble: trouble.to_string() });
                }
                Trouble::Changing | Trouble::Vanished => return Err(Fault::Disturbed(path)),
                Trouble::LeftOut(_) => {}
            }
        }
        match &trouble {
            Trouble::LeftOut(_) => self.tally.left_out += 1,
            Trouble::Vanished => self.tally.vanished += 1,
            Trouble::Unreadable(_) | Trouble::Changing => self.tally.lacking += 1,
        }
        if self.troubles.len() < NAMED {
            self.troubles.push((path, trouble));
        }
        Ok(())
    }

    /// What cannot be read now stays at the target as it was.
    fn troubled(&mut self, path: TreePath, trouble: Trouble) -> Result<(), Fault> {
        if matches!(trouble, Trouble::Unreadable(_)) {
            self.keep_what_was(&path)?;
        }
        self.note(path, trouble)
    }

    fn keep_what_was(&mut self, path: &TreePath) -> Result<(), Fault> {
        self.pass_until(path)?;
        while let Some(item) = self.lists()?.peek()? {
            if !item.path.is_within(path) {
                break;
            }
            if item.state == State::Live { self.keep(None)? } else { self.pass()? }
        }
        Ok(())
    }

    fn walked(&mut self, mut seen: Seen) -> Result<(), Fault> {
        self.tally.entries += 1;
        self.pass_until(&seen.path)?;
        let linked = seen.stat.links > 1 && seen.kind != SeenKind::Dir;
        let first = if linked { self.first_name(&seen)? } else { None };
        // What the receiver has at this path: remains first, then what belongs to the tree or was cut.
        let mut live = None;
        let mut goes_on = false;
        while let Some(item) = self.lists()?.peek()? {
            if item.path != seen.path {
                break;
            }
            match item.state {
                State::Live => {
                    live = Some(item);
                    break;
                }
                State::Partial if self.may_go_on(&seen, first.is_some())? => {
                    goes_on = true;
                    break;
                }
                State::Partial | State::Ghost => self.pass()?,
            }
        }
        let kind = match (first, std::mem::replace(&mut seen.kind, SeenKind::File)) {
            (Some(to), _) => Kind::Link(to),
            (None, SeenKind::Dir) => Kind::Dir,
            (None, SeenKind::Symlink(target)) => Kind::Symlink(target),
            (None, SeenKind::Fifo) => Kind::Fifo,
            (None, SeenKind::File) => return self.walked_file(seen, live, goes_on),
        };
        let is_link = matches!(kind, Kind::Link(_));
        let meta = if is_link { Meta::default() } else { seen.meta.clone() };
        match live {
            Some(item) if item.kind == kind && item.meta == meta => self.keep(Some(&stat_of(&seen)))?,
            other => {
                if other.is_some() {
                    self.pass()?;
                }
                let stat = stat_of(&seen);
                self.lists()?.put(seen.path.clone(), kind.clone(), meta.clone(), Some(&stat))?;
                self.emit(Op::Put { path: seen.path.clone(), kind, meta })?;
                self.entered()?;
            }
        }
        if linked && !is_link { self.name_first(&seen) } else { Ok(()) }
    }

    fn may_go_on(&mut self, seen: &Seen, is_link: bool) -> Result<bool, Fault> {
        if is_link || seen.kind != SeenKind::File || self.order.kind == RoundKind::Proof {
            return Ok(false);
        }
        let lists = self.lists()?;
        let position = lists.position();
        let before = lists.base.stat(position).map_err(state)?;
        Ok(before.is_some_and(|before| is_unchanged(&before, seen)))
    }

    fn walked_file(&mut self, seen: Seen, live: Option<Item>, goes_on: bool) -> Result<(), Fault> {
        let mut expected = None;
        if let Some(item) = live {
            let Kind::File { size, rows, .. } = item.kind else {
                self.pass()?;
                return self.begin_file(seen, None, false);
            };
            let lists = self.lists()?;
            let position = lists.position();
            let before = lists.base.stat(position).map_err(state)?;
            let first = lists.base.first_row(position).map_err(state)?;
            let known = self.order.kind == RoundKind::Copy
                && size == seen.stat.size
                && before.is_some_and(|before| is_unchanged(&before, &seen));
            if known {
                return self.same_content(&seen, item.meta == seen.meta);
            }
            expected = Some((first, rows));
        }
        self.begin_file(seen, expected, goes_on)
    }

    /// The next entry of the receiver's list has this content already.
    fn same_content(&mut self, seen: &Seen, same_meta: bool) -> Result<(), Fault> {
        let stat = stat_of(seen);
        if same_meta {
            self.keep(Some(&stat))?;
        } else {
            self.lists()?.restate(seen.meta.clone(), Some(&stat))?;
            self.emit(Op::Restate { meta: seen.meta.clone() })?;
            self.entered()?;
        }
        if seen.stat.links > 1 { self.name_first(seen) } else { Ok(()) }
    }

    fn begin_file(&mut self, seen: Seen, expected: Option<(u64, u64)>, goes_on: bool) -> Result<(), Fault> {
        let mut from = 0;
        if goes_on {
            // Where it was cut, if what is left of it can be opened at all.
            let lists = self.lists()?;
            if let Some(Item { kind: Kind::File { size, .. }, .. }) = lists.peek()? {
                from = size;
            }
        }
        self.tally.files_read += 1;
        if let Err(error) = self.source.open(from) {
            return self.unreadable(seen, false, expected, &error);
        }
        self.cutter.clear();
        let mut reading =
            Reading { seen, expected, matched: 0, opened: false, zeros: 0, hole: 0, ended: false, times: 1 };
        if goes_on {
            self.open_at_receiver(&mut reading, true)?;
            self.tally.known += from;
        } else if expected.is_none() {
            self.open_at_receiver(&mut reading, false)?;
        }
        self.file = Some(reading);
        Ok(())
    }

    fn open_at_receiver(&mut self, reading: &mut Reading, goes_on: bool) -> Result<(), Fault> {
        if reading.expected.is_some() {
            self.pass()?;
        }
        let path = reading.seen.path.clone();
        self.note_opened(&reading.seen).map_err(state)?;
        self.lists()?.open(path.clone(), goes_on)?;
        self.emit(Op::Open { path, goes_on })?;
        reading.opened = true;
        if let Some((first, _)) = reading.expected
            && reading.matched > 0
        {
            self.copy(false, first, reading.matched)?;
        }
        Ok(())
    }

    /// The next rows of the open file have the content of these.
    fn copy(&mut self, work: bool, first: u64, count: u64) -> Result<(), Fault> {
        for number in first..first + count {
            let lists = self.lists()?;
            let list = if work { &mut lists.work } else { &mut lists.base };
            let row = list.row(number).map_err(state)?;
            lists.add(|offset| Row { offset, ..row })?;
            self.tally.known += row.span();
        }
        self.emit(Op::Copy { work, row: first, count })
    }

    fn unreadable(
        &mut self,
        seen: Seen,
        opened: bool,
        expected: Option<(u64, u64)>,
        error: &std::io::Error,
    ) -> Result<(), Fault> {
        let vanished = error.kind() == std::io::ErrorKind::NotFound;
        if opened {
            self.lists()?.abandon()?;
            self.emit(Op::Abandon)?;
        }
        if vanished {
            return self.note(seen.path, Trouble::Vanished);
        }
        match expected {
            // What the receiver had is put together again from what it still has.
            Some((first, rows)) if opened => {
                let lists = self.lists()?;
                let owner = if rows > 0 { lists.base.owner(first).map_err(state)? } else { None };
                if let Some(owner) = owner {
                    let before = lists.base.item(owner).map_err(state)?;
                    lists.open(seen.path.clone(), false)?;
                    self.emit(Op::Open { path: seen.path.clone(), goes_on: false })?;
                    self.copy(false, first, rows)?;
                    self.lists()?.close(before.meta.clone(), None)?;
                    self.emit(Op::Close { meta: before.meta })?;
                    self.entered()?;
                }
            }
            _ => self.keep_what_was(&seen.path)?,
        }
        self.note(seen.path, Trouble::Unreadable(error.to_string()))
    }

    /// One piece of the open file.
    fn read_on(&mut self, mut reading: Reading) -> Result<(), Fault> {
        let last = reading.ended || reading.hole > 0;
        let mut cutter = std::mem::take(&mut self.cutter);
        let piece = cutter.next(last).map(|chunk| self.piece(&mut reading, chunk));
        self.cutter = cutter;
        match piece {
            Some(done) => done?,
            None if reading.hole > 0 => reading.zeros += std::mem::take(&mut reading.hole),
            None if reading.ended => return self.finish_file(reading),
            None => match self.source.read(self.cutter.room()) {
                Ok(Bit::Data(count)) => {
                    self.tally.read += count as u64;
                    self.cutter.add(count);
                }
                Ok(Bit::Hole(len)) => reading.hole = len,
                Ok(Bit::End) => reading.ended = true,
                Err(error) => {
                    self.cutter.clear();
                    return self.unreadable(reading.seen, reading.opened, reading.expected, &error);
                }
            },
        }
        self.file = Some(reading);
        Ok(())
    }

    fn piece(&mut self, reading: &mut Reading, chunk: &[u8]) -> Result<(), Fault> {
        if hash::is_zero(chunk) {
            reading.zeros += chunk.len() as u64;
            return Ok(());
        }
        self.zeros(reading)?;
        let hash = hash::leaf(chunk);
        if let Some(sha256) = &mut self.sha256 {
            sha256.add(chunk);
        }
        let row = Row::chunk(hash, 0, chunk.len() as u32);
        if self.is_expected(reading, &row)? {
            return Ok(());
        }
        if !reading.opened {
            self.open_at_receiver(reading, false)?;
        }
        if let Some((work, number)) = self.find(&row)? {
            return self.copy(work, number, 1);
        }
        let lists = self.lists()?;
        lists.add(|offset| Row { offset, ..row })?;
        let number = lists.work.extent().rows - 1;
        self.remember(&hash, true, number)?;
        self.emit(Op::Chunk { hash, content: chunk.to_vec() })?;
        // Counted only now: a frame that was full has left without it.
        self.tally.content += chunk.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, reading: &mut Reading) -> Result<(), Fault> {
        let len = std::mem::take(&mut reading.zeros);
        if len == 0 {
            return Ok(());
        }
        self.tally.zeros += len;
        if let Some(sha256) = &mut self.sha256 {
            sha256.add(&len.to_le_bytes());
        }
        if self.is_expected(reading, &Row::zeros(0, len))? {
            return Ok(());
        }
        if !reading.opened {
            self.open_at_receiver(reading, false)?;
        }
        self.lists()?.add(|offset| Row::zeros(offset, len))?;
        self.emit(Op::Zeros { len })
    }

    /// Whether the receiver has just this here, in the file of this path.
    fn is_expected(&mut self, reading: &mut Reading, row: &Row) -> Result<bool, Fault> {
        let Some((first, rows)) = reading.expected.filter(|_| !reading.opened) else { return Ok(false) };
        if reading.matched >= rows {
            return Ok(false);
        }
        let theirs = self.lists()?.base.row(first + reading.matched).map_err(state)?;
        let same = (theirs.hash, theirs.len, theirs.zero) == (row.hash, row.len, row.zero);
        reading.matched += u64::from(same);
        Ok(same)
    }

    /// A row with this content that the receiver has.
    fn find(&mut self, row: &Row) -> Result<Option<(bool, u64)>, Fault> {
        if self.chunks.is_none() {
            self.gather()?;
        }
        let Some(chunks) = &self.chunks else { return Ok(None) };
        let Some(value) = chunks.get(&key(&row.hash)).map_err(state)? else { return Ok(None) };
        let (work, number) = (value & 1 == 1, value >> 1);
        let lists = self.lists()?;
        let list = if work { &mut lists.work } else { &mut lists.base };
        let there = list.row(number).map_err(state)?;
        Ok((there.hash == row.hash && there.len == row.len && there.zero.is_none()).then_some((work, number)))
    }

    fn remember(&mut self, hash: &Digest, work: bool, number: u64) -> Result<(), Fault> {
        if self.chunks.as_ref().is_some_and(Hashes::is_full) {
            self.gather()?;
        }
        let Some(chunks) = &mut self.chunks else { return Ok(()) };
        chunks.set(&key(hash), number << 1 | u64::from(work)).map_err(state)
    }

    /// Enters everything that the receiver has into a table of the right size.
    fn gather(&mut self) -> Result<(), Fault> {
        let lists = self.lists.as_mut().ok_or_else(|| Fault::Peer("no list".into()))?;
        let rows = lists.base.extent().rows + lists.work.extent().rows;
        let store = self.shelf.open("chunks").map_err(state)?;
        let mut chunks = Hashes::new(store, rows.saturating_add(rows / 2)).map_err(state)?;
        for (work, list) in [(false, &mut lists.base), (true, &mut lists.work)] {
            for number in 0..list.extent().rows {
                let row = list.row(number).map_err(state)?;
                if row.zero.is_none() && row.hash.is_known() {
                    chunks.set(&key(&row.hash), number << 1 | u64::from(work)).map_err(state)?;
                }
            }
        }
        self.chunks = Some(chunks);
        Ok(())
    }

    fn finish_file(&mut self, mut reading: Reading) -> Result<(), Fault> {
        self.zeros(&mut reading)?;
        let now = match self.source.look_again() {
            Ok(now) => now,
            Err(error) => return self.unreadable(reading.seen, reading.opened, reading.expected, &error),
        };
        let moved = |seen: &Seen| (seen.stat.size, seen.stat.mtime, seen.stat.ctime);
        let mut seen = Seen { path: reading.seen.path.clone(), ..now };
        if moved(&seen) != moved(&reading.seen) {
            if self.order.kind == RoundKind::Proof {
                return Err(Fault::Disturbed(seen.path));
            }
            if reading.times < READINGS {
                return self.read_again(reading, seen);
            }
            seen.fresh = true;
            self.note(seen.path.clone(), Trouble::Changing)?;
        }
        let stat = stat_of(&seen);
        if !reading.opened {
            let all = reading.expected.is_some_and(|(_, rows)| rows == reading.matched);
            if all {
                let before = self.lists()?.peek()?;
                return self.same_content(&seen, before.is_some_and(|before| before.meta == seen.meta));
            }
            self.open_at_receiver(&mut reading, false)?;
        }
        self.lists()?.close(seen.meta.clone(), Some(&stat))?;
        self.emit(Op::Close { meta: seen.meta.clone() })?;
        self.entered()?;
        if seen.stat.links > 1 { self.name_first(&seen) } else { Ok(()) }
    }

    /// It was written to meanwhile: what was read of it is of use for the next reading, and no more.
    fn read_again(&mut self, reading: Reading, seen: Seen) -> Result<(), Fault> {
        let mut expected = reading.expected;
        if reading.opened {
            self.lists()?.abandon()?;
            self.emit(Op::Abandon)?;
            expected = None;
        }
        if let Err(error) = self.source.open(0) {
            return self.unreadable(seen, reading.opened, reading.expected, &error);
        }
        self.cutter.clear();
        let times = reading.times + 1;
        let mut again =
            Reading { seen, expected, matched: 0, opened: false, zeros: 0, hole: 0, ended: false, times };
        if reading.opened {
            self.open_at_receiver(&mut again, false)?;
        }
        self.file = Some(again);
        Ok(())
    }

    /// An entry of the tree has been added to the list.
    fn entered(&mut self) -> Result<(), Fault> {
        if self.sha256.is_none() {
            return Ok(());
        }
        let work = &mut self.lists()?.work;
        let last = work.extent().items.saturating_sub(1);
        let canonical = work.item(last).map_err(state)?.canonical();
        if let Some(sha256) = &mut self.sha256 {
            sha256.add(&canonical);
        }
        Ok(())
    }

    /// The path under which this was entered first, when it was.
    fn first_name(&mut self, seen: &Seen) -> Result<Option<TreePath>, Fault> {
        let Some(inodes) = &self.inodes else { return Ok(None) };
        let Some(number) = inodes.get(&inode(seen)).map_err(state)? else { return Ok(None) };
        Ok(Some(self.lists()?.work.item(number).map_err(state)?.path))
    }

    /// The entry that was added last is the first name of this.
    fn name_first(&mut self, seen: &Seen) -> Result<(), Fault> {
        let lists = self.lists.as_mut().ok_or_else(|| Fault::Peer("no list".into()))?;
        let number = lists.work.extent().items.saturating_sub(1);
        if self.inodes.as_ref().is_none_or(Hashes::is_full) {
            let room = self.inodes.as_ref().map_or(0, |inodes| inodes.used() * 2);
            let name = format!("inodes-{room}");
            let mut next = Hashes::new(self.shelf.open(&name).map_err(state)?, room).map_err(state)?;
            if let Some(before) = &self.inodes {
                before.each(|key, value| next.set(key, value)).map_err(state)?;
                self.shelf.remove(&format!("inodes-{}", before.room())).map_err(state)?;
            }
            self.inodes = Some(next);
        }
        let Some(inodes) = &mut self.inodes else { return Ok(()) };
        inodes.set(&inode(seen), number).map_err(state)
    }

    fn conclude(&mut self) -> Result<Step, Fault> {
        let lists = self.lists()?;
        lists.is_complete()?;
        let root = lists.root();
        lists.work.flush().map_err(state)?;
        self.phase = Phase::Concluded;
        Ok(Step::Conclude(Conclusion {
            transfer: self.transfer,
            round: self.round,
            kind: self.order.kind,
            root,
            sha256: self.sha256.take().map(Sha256::finish),
        }))
    }

    /// Source and state directory, when the session is over.
    pub fn into_parts(self) -> (R, F) {
        (self.source, self.shelf)
    }
}

impl Comparison {
    fn ask(&mut self) -> Option<ToReceiver> {
        if self.coming.len() < BLOCKS
            && let Some((rows, block)) = self.wanted.pop_first()
        {
            let hash = self.hashes.remove(&(rows, block)).unwrap_or_default();
            self.coming.insert((rows, block), hash);
            return Some(ToReceiver::WantBlock { part: if rows { Part::Rows } else { Part::Items }, block });
        }
        if self.asked.is_none() && self.wanted.is_empty() {
            while let Some((part, next, blocks)) = self.parts.first_mut() {
                if *next < *blocks {
                    let count = (*blocks - *next).min(MAX_HASHES);
                    self.asked = Some((*part, *next, count));
                    let frame = ToReceiver::WantHashes { part: *part, first: *next, count };
                    *next += count;
                    return Some(frame);
                }
                self.parts.remove(0);
            }
        }
        None
    }

    fn is_over(&self) -> bool {
        self.asked.is_none() && self.wanted.is_empty() && self.coming.is_empty() && self.parts.is_empty()
    }
}
