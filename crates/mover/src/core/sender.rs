//! The agent's end of a session: what it reads, what it sends, what it believes to be at the other end.
//!
//! It keeps three tables. `units` and `leaves` say what the receiver has: the first is compared with the
//! receiver's own at the beginning of every session, the second is believed only where it hashes to the first.
//! `seen` says what this round has read. A unit is done when it was seen and the receiver has just that; so after
//! any kill or cut the session goes on where it was without anybody having to remember a place. The root that is
//! sent in the end is the one of `seen`: of what was read, not of what is believed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use super::frame::{
    BUNDLES, Cargo, Hello, Packing, REVISION, RoundKind, RoundResult, ToReceiver, ToSender, UnitFrame,
    UnitHead, Welcome,
};
use super::geometry::{Geometry, LeafSet, SEGMENT};
use super::hash::{self, Digest, Root, Zeros};
use super::ports::{Extent, Fault, Source, Table};
use super::rounds::{self, Plan};
use super::verify::Sha256;

/// Units of zeros that one frame may name.
const ZEROS: u32 = 65536;
/// Hashes of unacknowledged leaves that are held at most: 8 MiB.
const HELD: usize = (8 << 20) / 32;
/// Units that may pass in silence before the receiver is told how far the reading is.
const SILENCE: u64 = 1024;
/// Frames that may be under way: their answers must find room at this end.
pub const FRAMES: usize = 4096;
/// Requests for hashes that may be under way.
const REQUESTS: usize = 16;
/// Times that one unit may arrive damaged.
const DAMAGES: u32 = 5;
/// Times that a round may end with a difference.
const REPAIRS: u32 = 5;

/// What an agent wants of a session.
#[derive(Debug, Clone)]
pub struct Order {
    /// The measures of the disk.
    pub geometry: Geometry,
    /// What the round is for.
    pub kind: RoundKind,
    /// The round that this agent has begun already for this purpose.
    pub begun: Option<u32>,
    /// Name and version of the program.
    pub software: String,
}

/// The agent's tables.
#[derive(Debug)]
pub struct Tables<T> {
    /// What the receiver has, by unit.
    pub units: T,
    /// The same by leaf, as many places for each unit as a full one has leaves.
    pub leaves: T,
    /// What this round has read, by unit. The first place says which round that is.
    pub seen: T,
}

/// What has been done so far in a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Units that have been dealt with: read, and acknowledged where they were sent.
    pub units_done: u64,
    /// Units that were done before this session.
    pub units_before: u64,
    /// Units that were sent, whole or in part.
    pub units_sent: u64,
    /// Units that the receiver has acknowledged, of those that were sent and of zeros.
    pub units_acknowledged: u64,
    /// Bytes of content that were sent, before packing.
    pub content: u64,
    /// Bytes of the frames that carried them.
    pub wire: u64,
    /// Bytes of zeros that were not sent.
    pub zeros: u64,
    /// Units that arrived damaged and were sent again.
    pub damaged: u64,
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
    /// The root of what was read.
    pub root: Digest,
    /// SHA-256 of it, of a proof.
    pub sha256: Option<[u8; 32]>,
    /// Repairs that were needed.
    pub repairs: u32,
}

#[derive(Debug)]
enum Phase {
    /// Nothing was said yet.
    Silent,
    /// The receiver has been greeted.
    Greeted,
    /// Both ends compare what they know.
    Comparing(Comparison),
    /// The disk is read and sent.
    Moving,
    /// The end of the round was sent.
    Concluded,
    Over(Option<RoundResult>),
}

#[derive(Debug, Default)]
struct Comparison {
    next_segment: u64,
    segments: BTreeSet<u64>,
    asked_segments: Option<Range<u64>>,
    asked_units: BTreeSet<u64>,
}

#[derive(Debug)]
enum Change {
    Unit { unit: u64, hash: Digest, leaves: LeafSet, digests: Vec<Digest> },
    Zeros { first: u64, count: u32 },
    Progress,
}

#[derive(Debug)]
struct InFlight {
    /// How far reading was.
    position: u64,
    sequence: u64,
    cost: u64,
    held: usize,
    refused: bool,
    change: Change,
}

/// The agent's end of one session.
#[derive(Debug)]
pub struct Sender<S, T> {
    order: Order,
    geometry: Geometry,
    source: S,
    tables: Tables<T>,
    zeros: Zeros,
    phase: Phase,
    outbox: VecDeque<ToReceiver>,
    window: u64,
    bundles: bool,
    transfer: [u8; 16],
    round: u32,
    repairs: u32,
    // Of the reading.
    cursor: u64,
    told: u64,
    page: Page,
    stretch: Option<Extent>,
    zero_run: Option<(u64, u32)>,
    again: BTreeSet<u64>,
    wanted: BTreeSet<u64>,
    whole: BTreeSet<u64>,
    damages: BTreeMap<u64, u32>,
    sha256: Option<Sha256>,
    proof: Option<[u8; 32]>,
    buffer: Vec<u8>,
    // Of what is under way.
    sequence: u64,
    packed: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_cost: u64,
    held: usize,
    tally: Tally,
}

/// What the tables say of one segment, read at once.
#[derive(Debug, Default)]
struct Page {
    segment: Option<u64>,
    units: Vec<Digest>,
    seen: Vec<Digest>,
}

impl<S: Source, T: Table> Sender<S, T> {
    /// A session that has not begun.
    pub fn new(order: Order, source: S, tables: Tables<T>) -> Self {
        let geometry = order.geometry;
        Self {
            order,
            geometry,
            source,
            tables,
            zeros: Zeros::new(&geometry),
            phase: Phase::Silent,
            outbox: VecDeque::new(),
            window: 0,
            bundles: false,
            transfer: [0; 16],
            round: 0,
            repairs: 0,
            cursor: 0,
            told: 0,
            page: Page::default(),
            stretch: None,
            zero_run: None,
            again: BTreeSet::new(),
            wanted: BTreeSet::new(),
            whole: BTreeSet::new(),
            damages: BTreeMap::new(),
            sha256: None,
            proof: None,
            buffer: Vec::new(),
            sequence: 0,
            packed: 0,
            in_flight: VecDeque::new(),
            in_flight_cost: 0,
            held: 0,
            tally: Tally::default(),
        }
    }

    /// What has been done so far.
    pub fn tally(&self) -> Tally {
        // What has not arrived is not done: the line may be far behind the disk.
        let done = self.in_flight.front().map_or(self.cursor, |flying| flying.position);
        Tally { units_done: done, ..self.tally }
    }

    /// The round that this session has begun or gone on with; 0 before.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// The disk that is read.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// Whether the receiver takes bundles.
    pub fn bundles(&self) -> bool {
        self.bundles
    }

    /// The next so many counted frames have gone as so many bytes, packed: told in their order, when it is known.
    /// Until then they take as much of the window as their content has.
    pub fn packed(&mut self, frames: u64, bytes: u64) {
        if frames == 0 {
            return;
        }
        self.tally.wire += bytes;
        let range = self.packed + 1..=self.packed.saturating_add(frames).min(self.sequence);
        self.packed = *range.end();
        // What is acknowledged already takes nothing any more.
        let first = self.in_flight.front().map_or(0, |flying| flying.sequence);
        let skip = usize::try_from(range.start().saturating_sub(first)).unwrap_or(usize::MAX);
        let these = |sequence: u64| sequence <= *range.end();
        let under_way = self.in_flight.iter().skip(skip).take_while(|flying| these(flying.sequence));
        let content: u64 = under_way.map(|flying| flying.cost).sum();
        for flying in self.in_flight.iter_mut().skip(skip).take_while(|flying| these(flying.sequence)) {
            let cost =
                u64::try_from(u128::from(flying.cost) * u128::from(bytes) / u128::from(content.max(1)))
                    .unwrap_or(u64::MAX)
                    .clamp(1, flying.cost);
            self.in_flight_cost -= flying.cost - cost;
            flying.cost = cost;
        }
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
                    self.outbox.push_back(ToReceiver::Hello(Hello {
                        revision: REVISION,
                        features: BUNDLES,
                        cargo: Cargo::Disk,
                        len: self.geometry.len(),
                        unit: self.geometry.unit(),
                        leaf: self.geometry.leaf(),
                        software: self.order.software.clone(),
                    }));
                    self.phase = Phase::Greeted;
                }
                Phase::Comparing(comparison) => match comparison.ask(&self.geometry) {
                    Some(frame) => self.outbox.push_back(frame),
                    None if comparison.is_over(&self.geometry) => self.begin_moving(),
                    None => return Ok(Step::Wait),
                },
                Phase::Moving => {
                    if let Some(step) = self.advance()? {
                        return Ok(step);
                    }
                }
                Phase::Greeted | Phase::Concluded => return Ok(Step::Wait),
                Phase::Over(result) => return Ok(Step::Over { round: self.round, result: result.clone() }),
            }
        }
    }

    /// What the receiver says.
    ///
    /// # Errors
    /// When it may not say that now, or ends the session; and those of the tables.
    pub fn receive(&mut self, frame: ToSender) -> Result<(), Fault> {
        match frame {
            ToSender::Welcome(welcome) => self.welcome(&welcome),
            ToSender::Refused { later, text } => Err(Fault::Refused { later, text }),
            ToSender::Segments { first, hashes } => self.segments(first, &hashes),
            ToSender::Units { segment, hashes } => self.units(segment, &hashes),
            ToSender::Leaves { unit, hashes } => self.leaves(unit, &hashes),
            ToSender::Ack { sequence } => self.acknowledged(sequence),
            ToSender::Nack { sequence, unit } => self.refused(sequence, unit),
            ToSender::RoundResult(result) => self.result(result),
            ToSender::Reading { .. } | ToSender::Pong => Ok(()),
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
        self.bundles = welcome.features & BUNDLES != 0;
        self.transfer = welcome.transfer;
        match rounds::plan(welcome, self.order.kind, self.order.begun) {
            Plan::Over { round } => {
                self.round = round;
                self.phase = Phase::Over(None);
            }
            Plan::Move { round } => {
                self.round = round;
                self.open_seen()?;
                self.outbox.push_back(ToReceiver::RoundBegin { round, kind: self.order.kind });
                self.phase = Phase::Comparing(Comparison::default());
            }
        }
        Ok(())
    }

    /// What was seen counts only for this very round; and a proof is read from the first byte on in one session.
    fn open_seen(&mut self) -> Result<(), Fault> {
        let mut tag = blake3::Hasher::new_derive_key("conme-mover 1 seen");
        tag.update(&self.transfer).update(&self.round.to_le_bytes());
        let tag = Digest(*tag.finalize().as_bytes());
        let seen = &mut self.tables.seen;
        let known = seen.get(0, 1).map_err(Fault::State)?;
        if known != [tag] || self.order.kind == RoundKind::Proof {
            seen.clear().map_err(Fault::State)?;
            seen.set(0, &[tag]).map_err(Fault::State)?;
        }
        self.sha256 = (self.order.kind == RoundKind::Proof).then(Sha256::default);
        Ok(())
    }

    fn segments(&mut self, first: u64, hashes: &[Digest]) -> Result<(), Fault> {
        let Phase::Comparing(comparison) = &mut self.phase else {
            return Err(Fault::Peer("segments that nobody asked for".into()));
        };
        let asked = comparison.asked_segments.take();
        if asked.as_ref().is_none_or(|asked| asked.start != first || asked.end - first != hashes.len() as u64)
        {
            return Err(Fault::Peer("other segments than were asked for".into()));
        }
        for (segment, theirs) in (first..).zip(hashes) {
            let range = self.geometry.segment_units(segment);
            let mine = get(&mut self.tables.units, range)?;
            if hash::segment(&self.geometry, segment, &mine) != *theirs {
                comparison.segments.insert(segment);
            }
        }
        Ok(())
    }

    fn units(&mut self, segment: u64, hashes: &[Digest]) -> Result<(), Fault> {
        let range = self.geometry.segment_units(segment);
        let asked = match &mut self.phase {
            Phase::Comparing(comparison) => comparison.asked_units.remove(&segment),
            _ => false,
        };
        if !asked {
            return Err(Fault::Peer("units that nobody asked for".into()));
        }
        if range.end - range.start != hashes.len() as u64 {
            return Err(Fault::Peer("more or fewer units than a segment has".into()));
        }
        self.tables.units.set(range.start, hashes).map_err(Fault::State)
    }

    fn leaves(&mut self, unit: u64, hashes: &[Digest]) -> Result<(), Fault> {
        if !self.wanted.remove(&unit) {
            return Err(Fault::Peer("leaves that nobody asked for".into()));
        }
        // The receiver may have read the unit back since the tables were compared: what it says now counts.
        let base = match hashes.len() {
            0 => Digest::UNKNOWN,
            count if count == self.geometry.leaves(unit) => {
                self.tables.leaves.set(self.leaf_place(unit), hashes).map_err(Fault::State)?;
                hash::unit(&self.geometry, unit, hashes)
            }
            _ => return Err(Fault::Peer("more or fewer leaves than a unit has".into())),
        };
        self.tables.units.set(unit, &[base]).map_err(Fault::State)?;
        self.again.insert(unit);
        Ok(())
    }

    fn acknowledged(&mut self, sequence: u64) -> Result<(), Fault> {
        if sequence > self.sequence {
            return Err(Fault::Peer("an acknowledgement of what was not sent".into()));
        }
        while self.in_flight.front().is_some_and(|flying| flying.sequence <= sequence) {
            let Some(landed) = self.in_flight.pop_front() else { break };
            self.in_flight_cost -= landed.cost;
            self.held -= landed.held;
            match landed.change {
                Change::Unit { unit, .. } if landed.refused => {
                    self.again.insert(unit);
                }
                Change::Unit { unit, hash, leaves, digests } => {
                    self.tally.units_acknowledged += 1;
                    self.believe(unit, hash, &leaves, &digests)?;
                }
                Change::Zeros { first, count } => {
                    self.tally.units_acknowledged += u64::from(count);
                    let zeros: Vec<_> =
                        (first..first + u64::from(count)).map(|unit| self.zeros.unit(unit)).collect();
                    self.tables.units.set(first, &zeros).map_err(Fault::State)?;
                }
                Change::Progress => {}
            }
        }
        Ok(())
    }

    /// The receiver has these leaves now, durably.
    fn believe(
        &mut self,
        unit: u64,
        hash: Digest,
        leaves: &LeafSet,
        digests: &[Digest],
    ) -> Result<(), Fault> {
        let place = self.leaf_place(unit);
        let mut digests = digests;
        for run in runs(leaves) {
            let (these, rest) = digests.split_at(run.len().min(digests.len()));
            self.tables.leaves.set(place + run.start as u64, these).map_err(Fault::State)?;
            digests = rest;
        }
        self.tables.units.set(unit, &[hash]).map_err(Fault::State)
    }

    fn refused(&mut self, sequence: u64, unit: u64) -> Result<(), Fault> {
        let flying = self.in_flight.iter_mut().find(|flying| flying.sequence == sequence);
        match flying {
            Some(InFlight { refused, change: Change::Unit { unit: sent, .. }, .. }) if *sent == unit => {
                *refused = true;
            }
            _ => return Err(Fault::Peer("a refusal of what was not sent".into())),
        }
        self.tally.damaged += 1;
        let times = self.damages.entry(unit).or_default();
        *times += 1;
        // Perhaps the leaves that did not change are the ones that differ.
        self.whole.insert(unit);
        if *times >= DAMAGES { Err(Fault::Damaged { unit, times: *times }) } else { Ok(()) }
    }

    fn result(&mut self, result: RoundResult) -> Result<(), Fault> {
        if !matches!(self.phase, Phase::Concluded) || result.round != self.round {
            return Err(Fault::Peer("the result of another round".into()));
        }
        if result.agreed {
            self.phase = Phase::Over(Some(result));
            return Ok(());
        }
        self.repairs += 1;
        if self.repairs > REPAIRS {
            return Err(Fault::Differs(REPAIRS));
        }
        self.phase = Phase::Comparing(Comparison::default());
        Ok(())
    }

    fn begin_moving(&mut self) {
        self.cursor = 0;
        self.told = 0;
        self.page = Page::default();
        self.stretch = None;
        self.phase = Phase::Moving;
    }

    /// One piece of the reading; `None` when there may be more at once.
    fn advance(&mut self) -> Result<Option<Step>, Fault> {
        let full = self.in_flight_cost >= self.window || self.held >= HELD || self.in_flight.len() >= FRAMES;
        if full || self.wanted.len() >= REQUESTS {
            return Ok(Some(Step::Wait));
        }
        if let Some(unit) = self.again.pop_first() {
            self.read(unit, false)?;
            return Ok(None);
        }
        if self.cursor < self.geometry.units() {
            let unit = self.cursor;
            self.cursor += 1;
            self.pass(unit)?;
            if self.cursor - self.told >= SILENCE {
                self.flush_zeros();
                self.fly(ToReceiver::Progress { unit: self.cursor }, 0, Change::Progress);
            }
            return Ok(None);
        }
        if self.zero_run.is_some() {
            self.flush_zeros();
            return Ok(None);
        }
        if let Some(sha256) = self.sha256.take() {
            self.proof = Some(sha256.finish());
        }
        if !self.in_flight.is_empty() || !self.wanted.is_empty() {
            return Ok(Some(Step::Wait));
        }
        self.conclude().map(Some)
    }

    /// The next unit in order: skipped when it is done, read otherwise.
    fn pass(&mut self, unit: u64) -> Result<(), Fault> {
        let (seen, base) = self.page(unit)?;
        if seen.is_known() && seen == base {
            self.tally.units_before += 1;
            return Ok(());
        }
        self.read(unit, true)
    }

    /// What was seen of a unit, and what the receiver has.
    fn page(&mut self, unit: u64) -> Result<(Digest, Digest), Fault> {
        let segment = unit / SEGMENT;
        let range = self.geometry.segment_units(segment);
        if self.page.segment != Some(segment) {
            self.page.units = get(&mut self.tables.units, range.clone())?;
            self.page.seen = get(&mut self.tables.seen, range.start + 1..range.end + 1)?;
            self.page.segment = Some(segment);
        }
        let at = (unit - range.start) as usize;
        let of = |page: &[Digest]| page.get(at).copied().unwrap_or_default();
        Ok((of(&self.page.seen), of(&self.page.units)))
    }

    fn read(&mut self, unit: u64, in_order: bool) -> Result<(), Fault> {
        let offset = self.geometry.offset(unit);
        let end = offset + self.geometry.unit_len(unit) as u64;
        if self.stretch.is_none_or(|stretch| stretch.end <= offset) || !in_order {
            self.stretch = Some(self.source.extent(offset).map_err(Fault::Disk)?);
        }
        let in_hole = self.stretch.is_some_and(|stretch| !stretch.data && stretch.end >= end);
        self.buffer.resize(self.geometry.unit_len(unit), 0);
        if !in_hole {
            self.source.read(offset, &mut self.buffer).map_err(Fault::Disk)?;
        } else if in_order && self.sha256.is_some() {
            self.buffer.fill(0);
        }
        if in_order && let Some(sha256) = &mut self.sha256 {
            sha256.add(&self.buffer);
        }
        if in_hole || hash::is_zero(&self.buffer) {
            let zero = self.zeros.unit(unit);
            self.tally.zeros += self.buffer.len() as u64;
            self.see(unit, zero)?;
            if self.base(unit)? != zero {
                self.add_zero(unit);
            }
            return Ok(());
        }
        let digests = hash::leaves(&self.geometry, &self.buffer);
        let now = hash::unit(&self.geometry, unit, &digests);
        self.see(unit, now)?;
        let base = self.base(unit)?;
        if base != now {
            self.send_unit(unit, base, now, digests)?;
        }
        Ok(())
    }

    fn see(&mut self, unit: u64, now: Digest) -> Result<(), Fault> {
        if self.order.kind == RoundKind::Proof {
            let before = self.tables.seen.get(unit + 1, 1).map_err(Fault::State)?;
            // Of what the proof has hashed already nothing may have changed since.
            if before.first().is_some_and(|before| before.is_known() && *before != now) {
                return Err(Fault::Disturbed(unit));
            }
        }
        self.tables.seen.set(unit + 1, &[now]).map_err(Fault::State)
    }

    fn send_unit(&mut self, unit: u64, base: Digest, now: Digest, digests: Vec<Digest>) -> Result<(), Fault> {
        let all = LeafSet::first(digests.len());
        let whole = self.whole.contains(&unit);
        let before = if !base.is_known() || whole {
            None
        } else if base == self.zeros.unit(unit) {
            Some(self.zeros.leaves(&self.geometry, unit))
        } else {
            let place = self.leaf_place(unit);
            let stored = self.tables.leaves.get(place, digests.len()).map_err(Fault::State)?;
            if hash::unit(&self.geometry, unit, &stored) != base {
                self.wanted.insert(unit);
                self.outbox.push_back(ToReceiver::WantLeaves { unit });
                return Ok(());
            }
            Some(stored)
        };
        let mut changed = all;
        if let Some(before) = &before {
            changed = LeafSet::default();
            let differ = digests.iter().zip(before).enumerate().filter(|(_, (now, before))| now != before);
            differ.for_each(|(leaf, _)| changed.insert(leaf));
        }
        let mut zero = LeafSet::default();
        let mut content = Vec::new();
        for leaf in changed.iter() {
            let part = &self.buffer[self.geometry.leaf_range(unit, leaf)];
            if digests.get(leaf) == Some(&self.zeros.leaf()) || hash::is_zero(part) {
                zero.insert(leaf);
                self.tally.zeros += part.len() as u64;
            } else {
                content.extend_from_slice(part);
            }
        }
        self.tally.units_sent += 1;
        self.tally.content += content.len() as u64;
        // Where the table has no leaves of this unit that can be relied on, it needs all of them.
        let stored = before.is_some() && base != self.zeros.unit(unit);
        let (leaves, digests) = if stored {
            (changed, changed.iter().filter_map(|leaf| digests.get(leaf).copied()).collect())
        } else {
            (all, digests)
        };
        self.whole.remove(&unit);
        self.flush_zeros();
        let held = digests.len();
        let head = UnitHead { unit, hash: now, changed, zero };
        // How it is packed is decided where it is packed: beside this, and together with others.
        let frame = ToReceiver::Unit(UnitFrame { head, packing: Packing::Raw, payload: content });
        self.fly(frame, held, Change::Unit { unit, hash: now, leaves, digests });
        Ok(())
    }

    fn add_zero(&mut self, unit: u64) {
        match &mut self.zero_run {
            Some((first, count)) if *first + u64::from(*count) == unit && *count < ZEROS => *count += 1,
            _ => {
                self.flush_zeros();
                self.zero_run = Some((unit, 1));
            }
        }
    }

    fn flush_zeros(&mut self) {
        if let Some((first, count)) = self.zero_run.take() {
            self.fly(ToReceiver::Zeros { first, count }, 0, Change::Zeros { first, count });
        }
    }

    fn fly(&mut self, frame: ToReceiver, held: usize, change: Change) {
        // What is said about a unit besides its payload is counted, too.
        let cost = match &frame {
            ToReceiver::Unit(unit) => unit.payload.len() as u64 + 128,
            _ => 16,
        };
        self.sequence += 1;
        self.told = self.cursor;
        self.in_flight_cost += cost;
        self.held += held;
        let (position, sequence) = (self.cursor, self.sequence);
        self.in_flight.push_back(InFlight { position, sequence, cost, held, refused: false, change });
        self.outbox.push_back(frame);
    }

    fn conclude(&mut self) -> Result<Step, Fault> {
        let mut root = Root::new(&self.geometry);
        for segment in 0..self.geometry.segments() {
            let range = self.geometry.segment_units(segment);
            for (unit, seen) in range.clone().zip(get(&mut self.tables.seen, range.start + 1..range.end + 1)?)
            {
                if !seen.is_known() {
                    return Err(Fault::State(std::io::Error::other(format!(
                        "what was read of unit {unit} is lost"
                    ))));
                }
                root.add(&seen);
            }
        }
        let Some(root) = root.finish() else {
            return Err(Fault::State(std::io::Error::other("what was read is lost")));
        };
        self.phase = Phase::Concluded;
        Ok(Step::Conclude(Conclusion {
            transfer: self.transfer,
            round: self.round,
            kind: self.order.kind,
            root,
            sha256: self.proof,
            repairs: self.repairs,
        }))
    }

    fn base(&mut self, unit: u64) -> Result<Digest, Fault> {
        Ok(self.tables.units.get(unit, 1).map_err(Fault::State)?.first().copied().unwrap_or_default())
    }

    fn leaf_place(&self, unit: u64) -> u64 {
        unit * self.geometry.full_leaves() as u64
    }
}

impl Comparison {
    fn ask(&mut self, geometry: &Geometry) -> Option<ToReceiver> {
        if self.asked_units.len() < REQUESTS
            && let Some(segment) = self.segments.pop_first()
        {
            self.asked_units.insert(segment);
            return Some(ToReceiver::WantUnits { segment });
        }
        // The next stretch of segments waits until the differences of this one are known: the memory is bounded.
        if self.asked_segments.is_none()
            && self.segments.is_empty()
            && self.next_segment < geometry.segments()
        {
            let first = self.next_segment;
            self.next_segment = first.saturating_add(SEGMENT).min(geometry.segments());
            self.asked_segments = Some(first..self.next_segment);
            let count = (self.next_segment - first) as u32;
            return Some(ToReceiver::WantSegments { first, count });
        }
        None
    }

    fn is_over(&self, geometry: &Geometry) -> bool {
        self.next_segment >= geometry.segments()
            && self.asked_segments.is_none()
            && self.segments.is_empty()
            && self.asked_units.is_empty()
    }
}

fn get(table: &mut impl Table, range: Range<u64>) -> Result<Vec<Digest>, Fault> {
    let count = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    table.get(range.start, count).map_err(Fault::State)
}

/// The stretches of leaves that lie side by side.
pub fn runs(leaves: &LeafSet) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for leaf in leaves.iter() {
        match runs.last_mut() {
            Some(run) if run.end == leaf => run.end += 1,
            _ => runs.push(leaf..leaf + 1),
        }
    }
    runs
}
