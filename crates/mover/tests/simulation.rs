//! Both ends on one thread, on disks that forget: thousands of runs, each decided by its seed alone.
//!
//! A run moves a disk that is written to meanwhile. At any step a side may be killed, lose its power, be cut off, find
//! its disk full or its `fsync` failing; frames are damaged after decryption, and bits rot on the target. In the end
//! the target has to be what the source is, and nothing that was acknowledged and stayed the same may have been sent
//! twice. `CONME_SEED=17 cargo test -p conme-mover --test simulation` plays one seed again,
//! `CONME_SEEDS=100000` as many, from that seed on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use conme_mover::core::frame::{
    Bundle, Frame, HEADER, Packing, Part, RoundEnd, RoundKind, RoundResult, ToReceiver, ToSender, UnitFrame,
    UnitHead, Welcome, header,
};
use conme_mover::core::geometry::{Geometry, LeafSet};
use conme_mover::core::hash::{self, Digest};
use conme_mover::core::journal::{Record, SLOT};
use conme_mover::core::level::{Ceiling, Choice, Levels};
use conme_mover::core::pack::{Bundler, Load, Packer};
use conme_mover::core::ports::{Extent, Fault, Log, Source, Table, Target};
use conme_mover::core::receiver::{self, Receiver};
use conme_mover::core::sender::{self, Order, Sender, Step};

const UNIT: u32 = 16 << 10;
const LEAF: u32 = 4096;
const SECTOR: usize = 512;

/// Numbers that look random and are the same in every run of a seed.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit.max(1)
    }

    /// Once in so many times.
    fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }
}

/// What is on a disk, and what was written and may be lost.
#[derive(Debug, Default)]
struct Medium {
    durable: Vec<u8>,
    seen: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// A write or sync fails once in so many times; never when 0.
    trouble: u64,
    dice: u64,
}

impl Medium {
    fn failing(&mut self) -> bool {
        let mut dice = Dice(self.dice);
        let fails = dice.once_in(self.trouble);
        self.dice = dice.0;
        fails
    }

    fn put(bytes: &mut Vec<u8>, at: usize, content: &[u8]) {
        if bytes.len() < at + content.len() {
            bytes.resize(at + content.len(), 0);
        }
        bytes[at..at + content.len()].copy_from_slice(content);
    }

    fn read(&self, at: usize, buffer: &mut [u8]) {
        buffer.fill(0);
        let end = self.seen.len().min(at + buffer.len());
        if at < end {
            buffer[..end - at].copy_from_slice(&self.seen[at..end]);
        }
    }

    fn write(&mut self, at: usize, content: &[u8]) -> io::Result<()> {
        if self.failing() {
            // A full disk may have taken a part.
            let part = content.len() / 2 / SECTOR * SECTOR;
            Self::put(&mut self.seen, at, &content[..part]);
            self.unsynced.push((at, content[..part].to_vec()));
            return Err(io::ErrorKind::StorageFull.into());
        }
        Self::put(&mut self.seen, at, content);
        self.unsynced.push((at, content.to_vec()));
        Ok(())
    }

    fn truncate(&mut self) {
        self.durable.clear();
        self.seen.clear();
        self.unsynced.clear();
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.failing() {
            // The kernel forgets what it could not write, and says so once.
            let seed = self.dice;
            self.lose_power(&mut Dice(seed));
            return Err(io::Error::other("fsync failed"));
        }
        self.unsynced.clear();
        self.durable.clone_from(&self.seen);
        Ok(())
    }

    /// Of what was not synced some sectors stay, in whatever order, and some do not.
    fn lose_power(&mut self, dice: &mut Dice) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let mood = dice.below(4);
        for (at, content) in unsynced {
            let mut from = 0;
            while from < content.len() {
                // Tears are at the sectors of the disk, not at those of the write.
                let to = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(content.len());
                let stays = match mood {
                    0 => false,
                    1 => true,
                    _ => dice.once_in(2),
                };
                if stays {
                    Self::put(&mut self.durable, at + from, &content[from..to]);
                }
                from = to;
            }
        }
        self.seen.clone_from(&self.durable);
    }
}

type Shared = Rc<RefCell<Medium>>;

#[derive(Debug, Clone)]
struct Sim {
    medium: Shared,
    len: u64,
    holes: bool,
}

impl Source for Sim {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.borrow().read(offset as usize, buffer);
        Ok(())
    }

    fn extent(&mut self, offset: u64) -> io::Result<Extent> {
        if !self.holes {
            return Ok(Extent { data: true, end: self.len });
        }
        let at = |place: u64| {
            let mut block = vec![0; (self.len - place).min(4096) as usize];
            self.medium.borrow().read(place as usize, &mut block);
            !hash::is_zero(&block)
        };
        let data = at(offset);
        let mut end = offset + 4096;
        while end < self.len && at(end) == data {
            end += 4096;
        }
        Ok(Extent { data, end: end.min(self.len) })
    }
}

impl Target for Sim {
    fn write(&mut self, offset: u64, content: &[u8]) -> io::Result<()> {
        assert!(offset + content.len() as u64 <= self.len, "written behind the end");
        self.medium.borrow_mut().write(offset as usize, content)
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        assert!(offset + len <= self.len, "zeroed behind the end");
        self.medium.borrow_mut().write(offset as usize, &vec![0; len as usize])
    }

    fn sync(&mut self) -> io::Result<()> {
        self.medium.borrow_mut().sync()
    }
}

#[derive(Debug, Clone)]
struct SimTable(Shared);

impl Table for SimTable {
    fn get(&mut self, first: u64, count: usize) -> io::Result<Vec<Digest>> {
        let mut bytes = vec![0; count * 32];
        self.0.borrow().read(first as usize * 32, &mut bytes);
        Ok(bytes.as_chunks::<32>().0.iter().map(|bytes| Digest(*bytes)).collect())
    }

    fn set(&mut self, first: u64, digests: &[Digest]) -> io::Result<()> {
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
        self.0.borrow_mut().write(first as usize * 32, &bytes)
    }

    fn clear(&mut self) -> io::Result<()> {
        self.0.borrow_mut().truncate();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.borrow_mut().sync()
    }
}

#[derive(Debug, Clone)]
struct SimLog(Shared);

impl Log for SimLog {
    fn load(&mut self) -> io::Result<Option<Record>> {
        let mut slots = vec![0; 2 * SLOT];
        self.0.borrow().read(0, &mut slots);
        Ok(Record::newest([&slots[..SLOT], &slots[SLOT..]]))
    }

    fn store(&mut self, record: &Record, durable: bool) -> io::Result<()> {
        let mut medium = self.0.borrow_mut();
        medium.write(record.slot() * SLOT, &record.encode())?;
        if durable { medium.sync() } else { Ok(()) }
    }
}

/// Everything that outlives a session.
struct World {
    dice: Dice,
    geometry: Geometry,
    holes: bool,
    source: Shared,
    target: Shared,
    agent: [Shared; 3],
    receiver: [Shared; 3],
    begun: Option<u32>,
    /// Units in which a bit has rotted: nobody but a proof can know.
    rotten: BTreeSet<u64>,
    /// Sessions that are allowed to go wrong; after that everything works, so that the run ends.
    troubled: u32,
    sessions: u32,
}

/// Between the agent's reading and the wire.
struct Line {
    bundler: Bundler,
    waiting: VecDeque<Load>,
    packer: Packer,
    levels: Levels,
}

impl Line {
    fn add(&mut self, frame: ToReceiver, together: bool) {
        self.waiting.extend(self.bundler.add(frame, together));
    }
}

enum Ended {
    Over,
    Cut,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let units = 1 + dice.below(40);
        let len = (units * u64::from(UNIT)).saturating_sub(dice.below(3) * dice.below(9000)).max(1);
        let geometry = Geometry::new(len, UNIT, LEAF).unwrap();
        let shared = Shared::default;
        let troubled = dice.below(30) as u32;
        let world = Self {
            holes: dice.once_in(2),
            geometry,
            source: shared(),
            target: shared(),
            agent: [shared(), shared(), shared()],
            receiver: [shared(), shared(), shared()],
            begun: None,
            rotten: BTreeSet::new(),
            troubled,
            sessions: 0,
            dice,
        };
        // What was on the target before must not show through.
        let garbage = vec![0xee; len as usize];
        Medium::put(&mut world.target.borrow_mut().durable, 0, &garbage);
        Medium::put(&mut world.target.borrow_mut().seen, 0, &garbage);
        Medium::put(&mut world.source.borrow_mut().seen, 0, &vec![0; len as usize]);
        world
    }

    /// Somebody works on the source.
    fn scribble(&mut self, times: u64) {
        for _ in 0..times {
            let len = self.geometry.len();
            let at = self.dice.below(len);
            let count = (1 + self.dice.below(3 * u64::from(UNIT))).min(len - at) as usize;
            let content = match self.dice.below(4) {
                0 => vec![0; count],
                // The same content again and again: it comes back to what it was.
                1 => vec![7; count],
                _ => {
                    let mut bytes = vec![0; count];
                    blake3::Hasher::new()
                        .update(&self.dice.roll().to_le_bytes())
                        .finalize_xof()
                        .fill(&mut bytes);
                    bytes
                }
            };
            Medium::put(&mut self.source.borrow_mut().seen, at as usize, &content);
        }
    }

    fn set_trouble(&mut self, trouble: u64) {
        for medium in self.receiver.iter().chain([&self.target]) {
            let mut medium = medium.borrow_mut();
            medium.trouble = trouble;
            medium.dice = self.dice.roll();
        }
    }

    fn round(&mut self, kind: RoundKind) -> Result<(), Fault> {
        self.begun = None;
        loop {
            self.sessions += 1;
            assert!(self.sessions < 500, "it never ends");
            let calm = self.sessions > self.troubled;
            let trouble = if calm || self.dice.once_in(2) { 0 } else { 20 + self.dice.below(300) };
            self.set_trouble(trouble);
            let ended = match self.session(kind, calm) {
                Err(fault) if matches!(fault, Fault::Disturbed(_) | Fault::Differs(_) | Fault::Peer(_)) => {
                    return Err(fault);
                }
                Err(Fault::Damaged { .. }) if !calm => Ended::Cut,
                Err(fault) if calm => return Err(fault),
                Err(_) => Ended::Cut,
                Ok(ended) => ended,
            };
            match ended {
                Ended::Over => return Ok(()),
                Ended::Cut => self.crash(),
            }
        }
    }

    /// What a cut leaves of both ends: all, what the kernel had, or what was durable.
    fn crash(&mut self) {
        if self.dice.once_in(3) {
            for medium in self.receiver.iter().chain([&self.target]) {
                medium.borrow_mut().lose_power(&mut self.dice);
            }
        }
        if self.dice.once_in(3) {
            for medium in &self.agent {
                medium.borrow_mut().lose_power(&mut self.dice);
            }
        }
    }

    fn session(&mut self, kind: RoundKind, calm: bool) -> Result<Ended, Fault> {
        let len = self.geometry.len();
        let [units, leaves, seen] = self.agent.clone().map(SimTable);
        let source = Sim { medium: self.source.clone(), len, holes: self.holes };
        let order = Order { geometry: self.geometry, kind, begun: self.begun, software: String::new() };
        let mut agent = Sender::new(order, source, sender::Tables { units, leaves, seen });
        let [units, leaves, log] = self.receiver.clone();
        let tables = receiver::Tables { units: SimTable(units), leaves: SimTable(leaves) };
        let target = Sim { medium: self.target.clone(), len, holes: self.holes };
        let window = 1 + self.dice.below(200_000) as u32;
        let mut there = Receiver::open(self.geometry, target, tables, SimLog(log), [9; 16], window)?;
        self.assert_claims_are_true();

        let choice =
            if self.dice.once_in(2) { Choice::Line } else { Choice::Fixed(self.dice.below(3) as i32) };
        let mut line = Line {
            bundler: Bundler::default(),
            waiting: VecDeque::new(),
            packer: Packer::default(),
            levels: Levels::new(choice, Ceiling::percent(1 + self.dice.below(100) as u8)),
        };
        // A receiver of an older version knows no bundles.
        let together = !self.dice.once_in(4);
        let (mut up, mut down) = (VecDeque::<Vec<u8>>::new(), VecDeque::<Vec<u8>>::new());
        let mut refused = BTreeSet::new();
        let end_at = if calm { u64::MAX } else { self.dice.below(400) };
        for step in 0.. {
            assert!(step < 200_000, "the session never ends");
            if step == end_at {
                return Ok(Ended::Cut);
            }
            if kind == RoundKind::Copy && self.dice.once_in(40) {
                self.scribble(1);
            }
            match self.dice.below(5) {
                0 => match agent.step()? {
                    Step::Send(frame) => {
                        line.add(frame, together && agent.bundles());
                        if self.dice.once_in(8) {
                            line.waiting.extend(line.bundler.flush());
                        }
                    }
                    Step::Wait => line.waiting.extend(line.bundler.flush()),
                    Step::Conclude(end) => line.add(
                        ToReceiver::RoundEnd(RoundEnd {
                            round: end.round,
                            root: end.root,
                            sha256: end.sha256,
                            statement: Vec::new(),
                            signature: Vec::new(),
                        }),
                        false,
                    ),
                    Step::Over { .. } => return Ok(Ended::Over),
                },
                4 => {
                    if let Some(load) = line.waiting.pop_front() {
                        let counted = load.counted();
                        let fewer = self.dice.once_in(2);
                        let Ok(level) = line.levels.for_next(|_, _| Ok::<_, Infallible>(Some(fewer)));
                        line.packer.set_level(level);
                        let bytes = load.pack(&mut line.packer).unwrap().encode();
                        // The reader may hear of it late, even after the acknowledgement, or never.
                        if counted > 0 && !self.dice.once_in(50) {
                            agent.packed(counted, bytes.len() as u64);
                        }
                        let packing = Duration::from_millis(self.dice.below(300));
                        line.levels.note(level, packing, packing * self.dice.below(4) as u32);
                        up.push_back(bytes);
                    }
                }
                1 => {
                    if let Some(mut bytes) = up.pop_front() {
                        let honest = bytes.clone();
                        // The payload of a unit: what the memory of a machine may damage after decryption.
                        if matches!(bytes[0], 0x06 | 0x0c) && !calm && self.dice.once_in(30) {
                            let at = HEADER + 8 + self.dice.below((bytes.len() - HEADER - 8) as u64) as usize;
                            bytes[at] ^= 1 << self.dice.below(8);
                        }
                        let damaged = bytes != honest;
                        self.deliver(&mut there, &bytes, damaged, &mut refused, &mut down)?;
                    }
                }
                2 => {
                    if let Some(bytes) = down.pop_front() {
                        agent.receive(read(&bytes))?;
                        if agent.round() > 0 {
                            self.begun = Some(agent.round());
                        }
                    }
                }
                _ => {
                    if self.dice.once_in(8) {
                        down.extend(there.commit()?.map(|answer| answer.encode()));
                    }
                }
            }
        }
        unreachable!()
    }

    fn deliver(
        &mut self,
        there: &mut Receiver<Sim, SimTable, SimLog>,
        bytes: &[u8],
        damaged: bool,
        refused: &mut BTreeSet<u64>,
        down: &mut VecDeque<Vec<u8>>,
    ) -> Result<(), Fault> {
        let head = header::<ToReceiver>(*bytes.first_chunk().unwrap()).unwrap();
        let Ok(frame) = ToReceiver::decode(head.kind, &bytes[HEADER..]) else {
            assert!(damaged);
            return Err(Fault::Refused { later: true, text: "a damaged frame".into() });
        };
        let answers = match frame {
            ToReceiver::Hello(_) => vec![ToSender::Welcome(there.welcome(""))],
            ToReceiver::RoundEnd(end) => {
                let mut answers: Vec<_> = there.commit()?.into_iter().collect();
                let verified = if there.record().kind == RoundKind::Proof {
                    let mut verifier = there.verifier()?;
                    while there.verify(&mut verifier)?.is_some() {}
                    Some(verifier.finish())
                } else {
                    None
                };
                answers.push(ToSender::RoundResult(there.conclude(&end, verified.as_ref())?));
                answers
            }
            ToReceiver::Unit(unit) => {
                if !damaged && !refused.contains(&unit.head.unit) {
                    self.assert_needed(&unit.head);
                }
                self.take(there, ToReceiver::Unit(unit), damaged)?
            }
            ToReceiver::Bundle(bundle) => {
                for part in &bundle.parts {
                    if let Part::Unit(head) = part
                        && !damaged
                        && !refused.contains(&head.unit)
                    {
                        self.assert_needed(head);
                    }
                }
                self.take(there, ToReceiver::Bundle(bundle), damaged)?
            }
            frame => there.handle(frame)?,
        };
        for answer in answers {
            if let ToSender::Nack { unit, .. } = &answer {
                refused.insert(*unit);
            }
            down.push_back(answer.encode());
        }
        Ok(())
    }

    fn take(
        &self,
        there: &mut Receiver<Sim, SimTable, SimLog>,
        frame: ToReceiver,
        damaged: bool,
    ) -> Result<Vec<ToSender>, Fault> {
        match there.handle(frame) {
            // A damaged frame may claim anything: the session ends, the next one is honest again.
            Err(Fault::Peer(text)) if damaged => Err(Fault::Refused { later: true, text }),
            answers => answers,
        }
    }

    /// Whatever stopped the session before: of a unit the receiver knows what is on its disk, or nothing.
    fn assert_claims_are_true(&self) {
        let geometry = &self.geometry;
        let units = SimTable(self.receiver[0].clone()).get(0, geometry.units() as usize).unwrap();
        for (unit, claimed) in (0..).zip(units) {
            if !claimed.is_known() || self.rotten.contains(&unit) {
                continue;
            }
            let mut content = vec![0; geometry.unit_len(unit)];
            self.target.borrow().read(geometry.offset(unit) as usize, &mut content);
            let there = hash::unit(geometry, unit, &hash::leaves(geometry, &content));
            assert_eq!(there, claimed, "unit {unit} is claimed to be on the disk, and is not");
        }
    }

    /// What the receiver has durably, and said so, does not come again.
    fn assert_needed(&self, head: &UnitHead) {
        let UnitHead { unit, hash, changed, .. } = head;
        let unit = *unit;
        let [units, leaves, _] = &self.receiver;
        let has = SimTable(units.clone()).get(unit, 1).unwrap()[0];
        assert_ne!(has, *hash, "unit {unit} is there already");
        let geometry = &self.geometry;
        let place = unit * geometry.full_leaves() as u64;
        let theirs = SimTable(leaves.clone()).get(place, geometry.leaves(unit)).unwrap();
        if hash::unit(geometry, unit, &theirs) != has {
            return;
        }
        let mut content = vec![0; geometry.unit_len(unit)];
        self.source.borrow().read(geometry.offset(unit) as usize, &mut content);
        let mine = hash::leaves(geometry, &content);
        // Only when the source is still what the frame says can be told which leaves it needed.
        if hash::unit(geometry, unit, &mine) == *hash {
            for leaf in changed.iter() {
                assert_ne!(mine[leaf], theirs[leaf], "leaf {leaf} of unit {unit} is there already");
            }
        }
    }

    fn same(&self) -> bool {
        let len = self.geometry.len() as usize;
        let (source, target) = (self.source.borrow(), self.target.borrow());
        source.seen[..len] == target.seen[..len] && target.durable[..len] == target.seen[..len]
    }
}

fn read(bytes: &[u8]) -> ToSender {
    let head = header::<ToSender>(*bytes.first_chunk().unwrap()).unwrap();
    ToSender::decode(head.kind, &bytes[HEADER..]).unwrap()
}

fn play(seed: u64) {
    let mut world = World::new(seed);
    world.scribble(3);
    for round in 0..3 {
        let kind = if round == 2 { RoundKind::Proof } else { RoundKind::Copy };
        world.round(kind).unwrap_or_else(|fault| panic!("round {round}: {fault}"));
        if kind == RoundKind::Copy {
            world.scribble(2);
            if world.dice.once_in(2) {
                // A bit rots: the proof has to find it.
                let at = world.dice.below(world.geometry.len()) as usize;
                world.rotten.insert(at as u64 / u64::from(UNIT));
                let mut target = world.target.borrow_mut();
                target.seen[at] ^= 4;
                target.durable[at] ^= 4;
            }
        }
    }
    assert!(world.same(), "the target is not what the source is");
}

#[test]
fn whatever_goes_wrong_the_target_becomes_what_the_source_is() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match number("CONME_SEED") {
        Some(seed) => seed..seed + number("CONME_SEEDS").unwrap_or(1),
        None => 0..number("CONME_SEEDS").unwrap_or(1500),
    };
    println!("seeds {seeds:?}");
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| play(seed)) {
            println!("seed {seed} fails: CONME_SEED={seed} cargo test -p conme-mover --test simulation");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A number that somebody might try: small, large, or just beside an edge.
fn number(dice: &mut Dice) -> u64 {
    match dice.below(6) {
        0..=2 => dice.below(45),
        3 => u64::MAX - dice.below(3),
        4 => (1 << dice.below(64)) - dice.below(2),
        _ => dice.roll(),
    }
}

fn any_digest(dice: &mut Dice) -> Digest {
    hash::leaf(&dice.below(3).to_le_bytes())
}

fn any_leaves(dice: &mut Dice) -> LeafSet {
    let mut leaves = LeafSet::default();
    (0..dice.below(5)).for_each(|_| leaves.insert(dice.below(6) as usize));
    leaves
}

fn any_packing(dice: &mut Dice) -> Packing {
    if dice.once_in(2) { Packing::Raw } else { Packing::Zstd }
}

/// What is said about a unit: anything, or what is true of one that is full of sevens, so that it is taken.
fn any_head(dice: &mut Dice, geometry: &Geometry) -> UnitHead {
    if dice.once_in(2) {
        let unit = dice.below(geometry.units());
        let leaves = hash::leaves(geometry, &vec![7; geometry.unit_len(unit)]);
        let changed = LeafSet::first(leaves.len());
        return UnitHead {
            unit,
            hash: hash::unit(geometry, unit, &leaves),
            changed,
            zero: LeafSet::default(),
        };
    }
    UnitHead {
        unit: number(dice),
        hash: any_digest(dice),
        changed: if dice.once_in(2) { LeafSet::first(4) } else { any_leaves(dice) },
        zero: any_leaves(dice),
    }
}

#[test]
fn a_hostile_agent_writes_nothing_outside_of_the_target_and_is_told_of_nothing_that_is_not_there() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let geometry = Geometry::new(1 + dice.below(40 * u64::from(UNIT)), UNIT, LEAF).unwrap();
        // The disk of the simulation fails the test when somebody writes behind its end.
        let target = Sim { medium: Shared::default(), len: geometry.len(), holes: false };
        let kept = [Shared::default(), Shared::default(), Shared::default()];
        let open = || {
            let [units, leaves, log] = kept.clone();
            let tables = receiver::Tables { units: SimTable(units), leaves: SimTable(leaves) };
            Receiver::open(geometry, target.clone(), tables, SimLog(log), [1; 16], 1 << 20).unwrap()
        };
        let mut there = open();
        for _ in 0..200 {
            let frame = match dice.below(10) {
                0 => ToReceiver::WantSegments { first: number(&mut dice), count: dice.below(1025) as u32 },
                1 => ToReceiver::WantUnits { segment: number(&mut dice) },
                2 => ToReceiver::WantLeaves { unit: number(&mut dice) },
                3 => {
                    let kind = if dice.once_in(2) { RoundKind::Copy } else { RoundKind::Proof };
                    ToReceiver::RoundBegin { round: dice.below(4) as u32, kind }
                }
                4 => ToReceiver::Zeros { first: number(&mut dice), count: number(&mut dice) as u32 },
                5 => ToReceiver::Progress { unit: number(&mut dice) },
                6 => {
                    let end = RoundEnd {
                        round: dice.below(4) as u32,
                        root: any_digest(&mut dice),
                        sha256: None,
                        statement: Vec::new(),
                        signature: Vec::new(),
                    };
                    if let Ok(result) = there.conclude(&end, None) {
                        assert!(!result.agreed, "agreed on what nobody sent");
                    }
                    continue;
                }
                7 => {
                    let parts = (0..=dice.below(6)).map(|_| match dice.below(3) {
                        0 => Part::Zeros { first: dice.below(45), count: dice.below(4) as u32 },
                        _ => Part::Unit(any_head(&mut dice, &geometry)),
                    });
                    let parts: Vec<_> = parts.collect();
                    let payload = vec![7; dice.below(25) as usize * LEAF as usize];
                    ToReceiver::Bundle(Bundle { parts, packing: any_packing(&mut dice), payload })
                }
                _ => ToReceiver::Unit(UnitFrame {
                    head: any_head(&mut dice, &geometry),
                    packing: any_packing(&mut dice),
                    payload: vec![7; dice.below(5) as usize * LEAF as usize],
                }),
            };
            if there.handle(frame).is_err() {
                there = open();
            }
        }
        let _ = there.commit();
        // Whatever it claimed, what the tables say is on the disk.
        let mut there = open();
        if let Ok(mut verifier) = there.verifier() {
            while there.verify(&mut verifier).unwrap().is_some() {}
            assert_eq!(verifier.finish().damaged, 0, "seed {seed}");
        }
    }
}

#[test]
fn a_hostile_receiver_never_hears_that_a_round_is_over_which_it_has_not_taken() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let geometry = Geometry::new(1 + dice.below(40 * u64::from(UNIT)), UNIT, LEAF).unwrap();
        let medium = Shared::default();
        Medium::put(&mut medium.borrow_mut().seen, 0, &vec![5; geometry.len() as usize]);
        let order = Order { geometry, kind: RoundKind::Copy, begun: None, software: String::new() };
        let source = Sim { medium, len: geometry.len(), holes: false };
        let [units, leaves, seen] = [(); 3].map(|()| SimTable(Shared::default()));
        let mut agent = Sender::new(order, source, sender::Tables { units, leaves, seen });
        let (mut sent, mut acknowledged) = (0_u64, 0_u64);
        for _ in 0..400 {
            match agent.step() {
                Ok(Step::Send(
                    ToReceiver::Unit(_) | ToReceiver::Zeros { .. } | ToReceiver::Progress { .. },
                )) => sent += 1,
                Ok(Step::Conclude(_)) => {
                    assert!(acknowledged >= sent, "seed {seed}: {acknowledged} of {sent}")
                }
                Ok(_) => {}
                Err(_) => break,
            }
            let hashes = |dice: &mut Dice| (0..dice.below(45)).map(|_| any_digest(dice)).collect();
            let frame = match dice.below(9) {
                0 => ToSender::Welcome(Welcome {
                    revision: dice.below(3) as u16,
                    features: 0,
                    window: number(&mut dice) as u32,
                    transfer: [1; 16],
                    round: number(&mut dice) as u32,
                    kind: RoundKind::Copy,
                    complete: dice.once_in(2),
                    watermark: number(&mut dice),
                    software: String::new(),
                }),
                1 => ToSender::Segments {
                    first: 0,
                    hashes: vec![any_digest(&mut dice); geometry.segments() as usize],
                },
                2 => ToSender::Segments { first: number(&mut dice), hashes: hashes(&mut dice) },
                3 => ToSender::Units {
                    segment: 0,
                    hashes: vec![any_digest(&mut dice); geometry.units() as usize],
                },
                4 => ToSender::Leaves { unit: number(&mut dice), hashes: hashes(&mut dice) },
                5 | 6 => {
                    let sequence = if dice.once_in(2) { sent } else { number(&mut dice) };
                    acknowledged = acknowledged.max(sequence.min(sent));
                    ToSender::Ack { sequence }
                }
                7 => ToSender::Nack { sequence: number(&mut dice), unit: number(&mut dice) },
                _ => ToSender::RoundResult(RoundResult {
                    round: dice.below(3) as u32,
                    agreed: true,
                    root: None,
                    damaged: number(&mut dice),
                }),
            };
            // What it may not say now ends the session; a patient one would get further, so this one is.
            let _ = agent.receive(frame);
        }
    }
}
