//! What the two ends say to each other, and how it lies on the wire.
//!
//! A frame is one byte of kind, three of length (little endian), and that many of content. Every kind has a limit
//! of its own, checked before anything is allocated; every count is checked against the bytes that are there; what
//! is left over is an error. Kinds from 0x80 on may be skipped by an end that does not know them: that is how the
//! protocol grows. 0x20–0x3f are kept for file trees, 0x40–0x4f for dumps of databases.

use super::geometry::{LeafSet, SEGMENT};
use super::hash::Digest;

/// The protocol that this program speaks, named in ALPN, too: a break in it is a new name.
pub const ALPN: &[u8] = b"conme-mover/1";
/// The revision of the frames within the protocol: the lower of both ends is spoken.
pub const REVISION: u16 = 1;
/// Bytes before the content of a frame.
pub const HEADER: usize = 4;
/// Bytes of a frame's content at most: a unit that does not compress, and what is said about it.
pub const MAX_CONTENT: usize = (1 << 20) + 256;
/// Bit of `features`: this end takes bundles.
pub const BUNDLES: u64 = 1;
/// Bytes that the content of a bundle has at most before it is packed.
pub const BUNDLE: usize = 4 << 20;
/// Parts of a bundle at most.
pub const PARTS: usize = 1024;
/// Bytes of a text for people at most.
pub const MAX_TEXT: usize = 1024;
/// Bytes of a signed statement at most.
pub const MAX_STATEMENT: usize = 16 << 10;

/// What a peer sent is not a frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// A kind that this end does not know and may not skip.
    #[error("a frame of kind {0:#04x}, which this version does not know: use the same version at both ends")]
    Kind(u8),
    /// Longer than its kind may be.
    #[error("a frame of kind {kind:#04x} with {len} bytes, more than it may have")]
    TooLong {
        /// The kind of the frame.
        kind: u8,
        /// Bytes that it claims to have.
        len: usize,
    },
    /// It ends within a field, or goes on after the last.
    #[error("a frame of kind {0:#04x} that is cut short or has something behind its end")]
    Length(u8),
    /// A field has a value that it cannot have.
    #[error("a frame of kind {kind:#04x} with an impossible {field}")]
    Field {
        /// The kind of the frame.
        kind: u8,
        /// The field.
        field: &'static str,
    },
}

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cargo {
    /// A disk or an image of one.
    Disk = 1,
    /// A directory with all that is in it.
    Tree = 2,
}

/// What a round is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum RoundKind {
    /// While the source works: the first copies all, later ones what changed.
    Copy = 1,
    /// The source stands still: everything is read from the first byte on and hashed with SHA-256, too, and the
    /// target is read back from its disk.
    Proof = 2,
}

/// How the leaves of a unit are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Packing {
    /// As they are.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// The first words of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The highest revision that it speaks.
    pub revision: u16,
    /// What it can do beyond the revision, one bit each: see [`BUNDLES`].
    pub features: u64,
    /// What it moves.
    pub cargo: Cargo,
    /// Bytes of the disk.
    pub len: u64,
    /// Bytes of a unit.
    pub unit: u32,
    /// Bytes of a leaf.
    pub leaf: u32,
    /// Name and version of the program.
    pub software: String,
}

/// The first words of the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The revision that both speak.
    pub revision: u16,
    /// What both can do beyond it.
    pub features: u64,
    /// Bytes that may be under way unacknowledged.
    pub window: u32,
    /// The transfer: made by the receiver once, the same in every session.
    pub transfer: [u8; 16],
    /// The round that was begun last; 0 when none was.
    pub round: u32,
    /// What that round was for.
    pub kind: RoundKind,
    /// Whether both ends have agreed on its root.
    pub complete: bool,
    /// Units from the first on that were durable and of that round; told to people, decided on by nobody.
    pub watermark: u64,
    /// Name and version of the program.
    pub software: String,
}

/// What is said about new content of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitHead {
    /// Which unit.
    pub unit: u64,
    /// Its hash with this content.
    pub hash: Digest,
    /// The leaves that change.
    pub changed: LeafSet,
    /// Those of them that are zeros, and are not in the payload.
    pub zero: LeafSet,
}

/// New content of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFrame {
    /// What is said about it.
    pub head: UnitHead,
    /// How the payload is packed.
    pub packing: Packing,
    /// The changed leaves that are not zeros, one after another.
    pub payload: Vec<u8>,
}

/// A part of a bundle. Each is counted and acknowledged like a frame of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// New content of one unit.
    Unit(UnitHead),
    /// Units of nothing but zeros.
    Zeros {
        /// The first.
        first: u64,
        /// How many.
        count: u32,
    },
}

/// New content of several units, packed together: what is alike in them goes once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// At most [`PARTS`].
    pub parts: Vec<Part>,
    /// How the payload is packed.
    pub packing: Packing,
    /// The changed leaves that are not zeros, of one unit after another; at most [`BUNDLE`] bytes unpacked.
    pub payload: Vec<u8>,
}

/// The agent has read everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundEnd {
    /// The round.
    pub round: u32,
    /// The root of what it read.
    pub root: Digest,
    /// SHA-256 of the whole, when this round is a proof.
    pub sha256: Option<[u8; 32]>,
    /// The same in words, with times and counts: what the agent vouches for.
    pub statement: Vec<u8>,
    /// The agent's signature under the statement.
    pub signature: Vec<u8>,
}

/// The receiver's answer to the end of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundResult {
    /// The round.
    pub round: u32,
    /// Whether everything is as the agent read it.
    pub agreed: bool,
    /// The root of what the receiver has; none while units are missing.
    pub root: Option<Digest>,
    /// Units whose bytes on the target's disk were not what had been written there.
    pub damaged: u64,
}

/// From the agent to the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToReceiver {
    /// Begins the session.
    Hello(Hello),
    /// Asks for the hashes of segments.
    WantSegments {
        /// The first.
        first: u64,
        /// How many, at most 1024.
        count: u32,
    },
    /// Asks for the hashes of the units of one segment.
    WantUnits {
        /// The segment.
        segment: u64,
    },
    /// Asks for the hashes of the leaves of one unit.
    WantLeaves {
        /// The unit.
        unit: u64,
    },
    /// Begins a round, or goes on with it.
    RoundBegin {
        /// Its number, from 1 on.
        round: u32,
        /// What it is for.
        kind: RoundKind,
    },
    /// New content of one unit.
    Unit(UnitFrame),
    /// Units of nothing but zeros.
    Zeros {
        /// The first.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Everything before this unit has been read; what was not sent has not changed.
    Progress {
        /// The unit.
        unit: u64,
    },
    /// Several units at once.
    Bundle(Bundle),
    /// The round is at its end.
    RoundEnd(RoundEnd),
    /// Are you there?
    Ping,
    /// The session is at its end.
    Bye,
}

/// From the receiver to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToSender {
    /// The session may go on.
    Welcome(Welcome),
    /// The session is over; the text is for people.
    Refused {
        /// Whether trying again later may help.
        later: bool,
        /// Why, and what to do.
        text: String,
    },
    /// Hashes of segments.
    Segments {
        /// The first.
        first: u64,
        /// Their hashes.
        hashes: Vec<Digest>,
    },
    /// Hashes of the units of one segment; zeros for what is not known.
    Units {
        /// The segment.
        segment: u64,
        /// Their hashes.
        hashes: Vec<Digest>,
    },
    /// Hashes of the leaves of one unit; none when it is not known.
    Leaves {
        /// The unit.
        unit: u64,
        /// Their hashes.
        hashes: Vec<Digest>,
    },
    /// Everything up to and with this frame of the round is durable, or was refused.
    Ack {
        /// `Unit`, `Zeros` and `Progress` are counted, from 1 on, in each session.
        sequence: u64,
    },
    /// The content of this frame was not what its hash said: it changed nothing and has to come again.
    Nack {
        /// The frame.
        sequence: u64,
        /// Its unit.
        unit: u64,
    },
    /// The target is being read back.
    Reading {
        /// Units read.
        done: u64,
        /// Units in all.
        total: u64,
    },
    /// The round's result.
    RoundResult(RoundResult),
    /// I am here.
    Pong,
}

/// A frame that can be written and read.
pub trait Frame: Sized {
    /// The frame as it goes over the wire, with its header.
    fn encode(&self) -> Vec<u8>;
    /// Bytes that the content of a frame of this kind may have at most; `None` when the kind is not known.
    fn limit(kind: u8) -> Option<usize>;
    /// The frame from its content.
    ///
    /// # Errors
    /// When it is not one.
    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame>;
}

/// What to do with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of the frame.
    pub kind: u8,
    /// Bytes of its content.
    pub len: usize,
    /// Whether it is to be skipped, since this end does not know it and need not.
    pub skip: bool,
}

/// The header of a frame of type `F`.
///
/// # Errors
/// When no such frame may come.
pub fn header<F: Frame>(bytes: [u8; HEADER]) -> Result<Header, BadFrame> {
    let [kind, a, b, c] = bytes;
    let len = u32::from_le_bytes([a, b, c, 0]) as usize;
    match F::limit(kind) {
        Some(limit) if len <= limit => Ok(Header { kind, len, skip: false }),
        None if kind >= 0x80 && len <= MAX_STATEMENT => Ok(Header { kind, len, skip: true }),
        None if kind < 0x80 => Err(BadFrame::Kind(kind)),
        _ => Err(BadFrame::TooLong { kind, len }),
    }
}

/// Bytes of a part of a bundle at most.
const PART: usize = 1 + 8 + 32 + 2 * LeafSet::BYTES;
const SOFTWARE: usize = 64;
const SIGNATURE: usize = 512;
const HASHES: usize = SEGMENT as usize * 32;

impl Frame for ToReceiver {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => Writer::new(0x01)
                .u16(hello.revision)
                .u64(hello.features)
                .u8(hello.cargo as u8)
                .u64(hello.len)
                .u32(hello.unit)
                .u32(hello.leaf)
                .text(&hello.software, SOFTWARE),
            Self::WantSegments { first, count } => Writer::new(0x02).u64(*first).u32(*count),
            Self::WantUnits { segment } => Writer::new(0x03).u64(*segment),
            Self::WantLeaves { unit } => Writer::new(0x04).u64(*unit),
            Self::RoundBegin { round, kind } => Writer::new(0x05).u32(*round).u8(*kind as u8),
            Self::Unit(unit) => Writer::new(0x06)
                .with_room(PART + unit.payload.len())
                .unit(&unit.head)
                .u8(unit.packing as u8)
                .bytes(&unit.payload),
            Self::Zeros { first, count } => Writer::new(0x07).u64(*first).u32(*count),
            Self::Progress { unit } => Writer::new(0x08).u64(*unit),
            Self::RoundEnd(end) => Writer::new(0x09)
                .u32(end.round)
                .bytes(&end.root.0)
                .u8(end.sha256.is_some().into())
                .bytes(&end.sha256.unwrap_or_default())
                .counted(&end.statement)
                .counted(&end.signature),
            Self::Bundle(bundle) => {
                let count = u16::try_from(bundle.parts.len()).unwrap_or(u16::MAX);
                let begun = Writer::new(0x0c).with_room(3 + bundle.parts.len() * PART + bundle.payload.len());
                let parts = bundle.parts.iter().fold(begun.u16(count), |to, part| match part {
                    Part::Unit(head) => to.u8(1).unit(head),
                    Part::Zeros { first, count } => to.u8(2).u64(*first).u32(*count),
                });
                parts.u8(bundle.packing as u8).bytes(&bundle.payload)
            }
            Self::Ping => Writer::new(0x0a),
            Self::Bye => Writer::new(0x0b),
        }
        .finish()
    }

    fn limit(kind: u8) -> Option<usize> {
        Some(match kind {
            0x01 => 64 + SOFTWARE,
            0x02..=0x05 | 0x07 | 0x08 => 12,
            0x06 => MAX_CONTENT,
            0x09 => 128 + MAX_STATEMENT + SIGNATURE,
            0x0a | 0x0b => 0,
            0x0c => 3 + PARTS * PART + BUNDLE,
            _ => return None,
        })
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame> {
        let mut from = Reader { kind, left: content };
        let frame = match kind {
            0x01 => Self::Hello(Hello {
                revision: from.u16()?,
                features: from.u64()?,
                cargo: match from.u8()? {
                    1 => Cargo::Disk,
                    2 => Cargo::Tree,
                    _ => return from.impossible("cargo"),
                },
                len: from.u64()?,
                unit: from.u32()?,
                leaf: from.u32()?,
                software: from.text(SOFTWARE)?,
            }),
            0x02 => Self::WantSegments { first: from.u64()?, count: from.count(SEGMENT)? },
            0x03 => Self::WantUnits { segment: from.u64()? },
            0x04 => Self::WantLeaves { unit: from.u64()? },
            0x05 => Self::RoundBegin { round: from.u32()?, kind: from.round_kind()? },
            0x06 => Self::Unit(UnitFrame {
                head: from.unit()?,
                packing: from.packing()?,
                payload: from.rest().to_vec(),
            }),
            0x07 => Self::Zeros { first: from.u64()?, count: from.u32()? },
            0x08 => Self::Progress { unit: from.u64()? },
            0x09 => Self::RoundEnd(RoundEnd {
                round: from.u32()?,
                root: from.digest()?,
                sha256: {
                    let present = from.flag()?;
                    let sha256 = *from.array()?;
                    present.then_some(sha256)
                },
                statement: from.counted(MAX_STATEMENT)?.to_vec(),
                signature: from.counted(SIGNATURE)?.to_vec(),
            }),
            0x0a => Self::Ping,
            0x0b => Self::Bye,
            0x0c => {
                let count = usize::from(from.u16()?);
                if count == 0 || count > PARTS {
                    return from.impossible("count");
                }
                let mut parts = Vec::with_capacity(count);
                for _ in 0..count {
                    parts.push(match from.u8()? {
                        1 => Part::Unit(from.unit()?),
                        2 => Part::Zeros { first: from.u64()?, count: from.u32()? },
                        _ => return from.impossible("part"),
                    });
                }
                Self::Bundle(Bundle { parts, packing: from.packing()?, payload: from.rest().to_vec() })
            }
            _ => return Err(BadFrame::Kind(kind)),
        };
        from.end(frame)
    }
}

impl Frame for ToSender {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Welcome(welcome) => Writer::new(0x11)
                .u16(welcome.revision)
                .u64(welcome.features)
                .u32(welcome.window)
                .bytes(&welcome.transfer)
                .u32(welcome.round)
                .u8(welcome.kind as u8)
                .u8(welcome.complete.into())
                .u64(welcome.watermark)
                .text(&welcome.software, SOFTWARE),
            Self::Refused { later, text } => Writer::new(0x12).u8((*later).into()).text(text, MAX_TEXT),
            Self::Segments { first, hashes } => Writer::new(0x13).u64(*first).digests(hashes),
            Self::Units { segment, hashes } => Writer::new(0x14).u64(*segment).digests(hashes),
            Self::Leaves { unit, hashes } => Writer::new(0x15).u64(*unit).digests(hashes),
            Self::Ack { sequence } => Writer::new(0x16).u64(*sequence),
            Self::Nack { sequence, unit } => Writer::new(0x17).u64(*sequence).u64(*unit),
            Self::Reading { done, total } => Writer::new(0x18).u64(*done).u64(*total),
            Self::RoundResult(result) => Writer::new(0x19)
                .u32(result.round)
                .u8(result.agreed.into())
                .bytes(&result.root.unwrap_or(Digest::UNKNOWN).0)
                .u64(result.damaged),
            Self::Pong => Writer::new(0x1a),
        }
        .finish()
    }

    fn limit(kind: u8) -> Option<usize> {
        Some(match kind {
            0x11 => 64 + SOFTWARE,
            0x12 => 8 + MAX_TEXT,
            0x13..=0x15 => 8 + HASHES,
            0x16 => 8,
            0x17 | 0x18 => 16,
            0x19 => 64,
            0x1a => 0,
            _ => return None,
        })
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame> {
        let mut from = Reader { kind, left: content };
        let frame = match kind {
            0x11 => Self::Welcome(Welcome {
                revision: from.u16()?,
                features: from.u64()?,
                window: from.u32()?,
                transfer: *from.array()?,
                round: from.u32()?,
                kind: from.round_kind()?,
                complete: from.flag()?,
                watermark: from.u64()?,
                software: from.text(SOFTWARE)?,
            }),
            0x12 => Self::Refused { later: from.flag()?, text: from.text(MAX_TEXT)? },
            0x13 => Self::Segments { first: from.u64()?, hashes: from.digests()? },
            0x14 => Self::Units { segment: from.u64()?, hashes: from.digests()? },
            0x15 => Self::Leaves { unit: from.u64()?, hashes: from.digests()? },
            0x16 => Self::Ack { sequence: from.u64()? },
            0x17 => Self::Nack { sequence: from.u64()?, unit: from.u64()? },
            0x18 => Self::Reading { done: from.u64()?, total: from.u64()? },
            0x19 => Self::RoundResult(RoundResult {
                round: from.u32()?,
                agreed: from.flag()?,
                root: Some(from.digest()?).filter(Digest::is_known),
                damaged: from.u64()?,
            }),
            0x1a => Self::Pong,
            _ => return Err(BadFrame::Kind(kind)),
        };
        from.end(frame)
    }
}

/// Writes the fields of a frame.
pub struct Writer(Vec<u8>);

impl Writer {
    /// A frame of this kind without content.
    pub fn new(kind: u8) -> Self {
        Self(vec![kind, 0, 0, 0])
    }

    fn with_room(mut self, room: usize) -> Self {
        self.0.reserve_exact(room);
        self
    }

    /// Adds a number of one byte.
    #[must_use]
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds a number of four bytes.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds a number of eight bytes.
    #[must_use]
    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds bytes whose number is known to the reader.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds bytes with their number.
    #[must_use]
    pub fn counted(self, bytes: &[u8]) -> Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).bytes(bytes)
    }

    /// Adds a text, cut after `most` bytes.
    #[must_use]
    pub fn text(self, text: &str, most: usize) -> Self {
        let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.counted(&text.as_bytes()[..end])
    }

    fn unit(self, head: &UnitHead) -> Self {
        self.u64(head.unit).bytes(&head.hash.0).bytes(&head.changed.to_bytes()).bytes(&head.zero.to_bytes())
    }

    fn digests(mut self, digests: &[Digest]) -> Self {
        for digest in digests {
            self.0.extend_from_slice(&digest.0);
        }
        self
    }

    /// The frame. It is within the limits when its fields were.
    pub fn finish(mut self) -> Vec<u8> {
        let [a, b, c, _] = u32::try_from(self.0.len() - HEADER).unwrap_or(u32::MAX).to_le_bytes();
        self.0[1..HEADER].copy_from_slice(&[a, b, c]);
        self.0
    }
}

/// Reads the fields of a frame.
pub struct Reader<'a> {
    /// The kind of the frame, for what is said about it.
    pub kind: u8,
    /// What has not been read.
    pub left: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadFrame> {
        let (taken, left) = self.left.split_at_checked(count).ok_or(BadFrame::Length(self.kind))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], BadFrame> {
        let (taken, left) = self.left.split_first_chunk().ok_or(BadFrame::Length(self.kind))?;
        self.left = left;
        Ok(taken)
    }

    /// A number of one byte.
    ///
    /// # Errors
    /// When the frame is at its end; so for all that follow.
    pub fn u8(&mut self) -> Result<u8, BadFrame> {
        Ok(u8::from_le_bytes(*self.array()?))
    }

    fn u16(&mut self) -> Result<u16, BadFrame> {
        Ok(u16::from_le_bytes(*self.array()?))
    }

    /// A number of four bytes.
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn u32(&mut self) -> Result<u32, BadFrame> {
        Ok(u32::from_le_bytes(*self.array()?))
    }

    /// A number of eight bytes.
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn u64(&mut self) -> Result<u64, BadFrame> {
        Ok(u64::from_le_bytes(*self.array()?))
    }

    fn flag(&mut self) -> Result<bool, BadFrame> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => self.impossible("flag"),
        }
    }

    fn count(&mut self, most: u64) -> Result<u32, BadFrame> {
        match self.u32()? {
            count if u64::from(count) <= most => Ok(count),
            _ => self.impossible("count"),
        }
    }

    fn round_kind(&mut self) -> Result<RoundKind, BadFrame> {
        match self.u8()? {
            1 => Ok(RoundKind::Copy),
            2 => Ok(RoundKind::Proof),
            _ => self.impossible("kind of round"),
        }
    }

    fn packing(&mut self) -> Result<Packing, BadFrame> {
        match self.u8()? {
            0 => Ok(Packing::Raw),
            1 => Ok(Packing::Zstd),
            _ => self.impossible("packing"),
        }
    }

    fn unit(&mut self) -> Result<UnitHead, BadFrame> {
        Ok(UnitHead {
            unit: self.u64()?,
            hash: self.digest()?,
            changed: LeafSet::from_bytes(self.array()?),
            zero: LeafSet::from_bytes(self.array()?),
        })
    }

    fn digest(&mut self) -> Result<Digest, BadFrame> {
        Ok(Digest(*self.array()?))
    }

    fn digests(&mut self) -> Result<Vec<Digest>, BadFrame> {
        let (digests, rest) = self.rest().as_chunks::<32>();
        if rest.is_empty() {
            Ok(digests.iter().map(|bytes| Digest(*bytes)).collect())
        } else {
            Err(BadFrame::Length(self.kind))
        }
    }

    /// Bytes that come with their number.
    ///
    /// # Errors
    /// When there are fewer, or more than `most`.
    pub fn counted(&mut self, most: usize) -> Result<&'a [u8], BadFrame> {
        let count = self.u32()? as usize;
        if count > most { self.impossible("length") } else { self.take(count) }
    }

    /// A text of at most `most` bytes.
    ///
    /// # Errors
    /// When it is longer, cut short or not UTF-8.
    pub fn text(&mut self, most: usize) -> Result<String, BadFrame> {
        let bytes = self.counted(most)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => self.impossible("text"),
        }
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.left)
    }

    fn impossible<T>(&self, field: &'static str) -> Result<T, BadFrame> {
        Err(BadFrame::Field { kind: self.kind, field })
    }

    /// The frame, when nothing is left over.
    ///
    /// # Errors
    /// When there is.
    pub fn end<F>(self, frame: F) -> Result<F, BadFrame> {
        if self.left.is_empty() { Ok(frame) } else { Err(BadFrame::Length(self.kind)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn to_receiver() -> Vec<ToReceiver> {
        let head =
            UnitHead { unit: 5, hash: Digest([7; 32]), changed: LeafSet::first(9), zero: LeafSet::first(2) };
        vec![
            ToReceiver::Hello(Hello {
                revision: 1,
                features: 3,
                cargo: Cargo::Disk,
                len: 1 << 40,
                unit: 1 << 20,
                leaf: 4096,
                software: "conme-mover 0.1.0".into(),
            }),
            ToReceiver::WantSegments { first: 7, count: 1024 },
            ToReceiver::WantUnits { segment: 3 },
            ToReceiver::WantLeaves { unit: 9 },
            ToReceiver::RoundBegin { round: 4, kind: RoundKind::Proof },
            ToReceiver::Unit(UnitFrame { head, packing: Packing::Zstd, payload: vec![1, 2, 3] }),
            ToReceiver::Bundle(Bundle {
                parts: vec![Part::Zeros { first: 9, count: 4 }, Part::Unit(head)],
                packing: Packing::Raw,
                payload: vec![4, 5],
            }),
            ToReceiver::Zeros { first: 1, count: 99 },
            ToReceiver::Progress { unit: 8 },
            ToReceiver::RoundEnd(RoundEnd {
                round: 2,
                root: Digest([3; 32]),
                sha256: Some([9; 32]),
                statement: b"{}".to_vec(),
                signature: vec![5; 64],
            }),
            ToReceiver::Ping,
            ToReceiver::Bye,
        ]
    }

    fn to_sender() -> Vec<ToSender> {
        vec![
            ToSender::Welcome(Welcome {
                revision: 1,
                features: 0,
                window: 1 << 25,
                transfer: [4; 16],
                round: 2,
                kind: RoundKind::Copy,
                complete: true,
                watermark: 77,
                software: "conme-mover 0.1.0".into(),
            }),
            ToSender::Refused { later: true, text: "the disk is full: make room".into() },
            ToSender::Segments { first: 0, hashes: vec![Digest([1; 32]); 3] },
            ToSender::Units { segment: 0, hashes: vec![Digest([1; 32]); 1024] },
            ToSender::Leaves { unit: 0, hashes: vec![] },
            ToSender::Ack { sequence: 4 },
            ToSender::Nack { sequence: 4, unit: 9 },
            ToSender::Reading { done: 1, total: 2 },
            ToSender::RoundResult(RoundResult { round: 1, agreed: false, root: None, damaged: 3 }),
            ToSender::Pong,
        ]
    }

    fn read<F: Frame>(bytes: &[u8]) -> Result<F, BadFrame> {
        let head = header::<F>(*bytes.first_chunk().unwrap())?;
        let content = &bytes[HEADER..];
        if head.skip || content.len() != head.len {
            return Err(BadFrame::Length(head.kind));
        }
        F::decode(head.kind, content)
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        for frame in to_receiver() {
            assert_eq!(read::<ToReceiver>(&frame.encode()).as_ref(), Ok(&frame));
        }
        for frame in to_sender() {
            assert_eq!(read::<ToSender>(&frame.encode()).as_ref(), Ok(&frame));
        }
    }

    #[test]
    fn lengths_are_refused_before_anything_is_read() {
        let claims = |kind, len: u32| {
            let [a, b, c, _] = len.to_le_bytes();
            header::<ToReceiver>([kind, a, b, c])
        };
        assert_eq!(claims(0x06, 0xff_ffff), Err(BadFrame::TooLong { kind: 0x06, len: 0xff_ffff }));
        assert_eq!(claims(0x0a, 1), Err(BadFrame::TooLong { kind: 0x0a, len: 1 }));
        assert_eq!(claims(0x7f, 0), Err(BadFrame::Kind(0x7f)));
        assert!(claims(0x90, 100).unwrap().skip);
        assert_eq!(claims(0x90, 1 << 20), Err(BadFrame::TooLong { kind: 0x90, len: 1 << 20 }));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let long = "è".repeat(MAX_TEXT);
        let frame = ToSender::Refused { later: false, text: long.clone() };
        let Ok(ToSender::Refused { text, .. }) = read(&frame.encode()) else { panic!("not read") };
        assert_eq!(text.len(), MAX_TEXT);
        assert!(long.starts_with(&text));
    }

    proptest! {
        #[test]
        fn no_content_can_crash_a_reader(kind: u8, content in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = ToReceiver::decode(kind, &content);
            let _ = ToSender::decode(kind, &content);
        }

        #[test]
        fn what_is_read_from_a_damaged_frame_is_written_again_as_it_came(
            which in 0..12_usize, at in 0..200_usize, bit in 0..8_u8, cut in 0..300_usize,
        ) {
            let mut bytes = to_receiver()[which].encode();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            bytes.truncate(cut.max(HEADER));
            if let Ok(frame) = read::<ToReceiver>(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }
    }
}
