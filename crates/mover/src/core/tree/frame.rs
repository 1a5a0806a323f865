//! What the two ends of a tree's transfer say to each other: the common frames, and kinds 0x20–0x3f of their own.

use super::bytes::{Fields, Malformed, put_number};
use super::list::{BLOCK, Extent, Part};
use super::lists::{Cut, Progress};
use super::path::MAX_PATH;
use crate::core::frame::{self, BadFrame, Frame, Packing, Writer};
use crate::core::hash::Digest;
use crate::core::pack;

/// Bytes of the steps in one frame at most, unpacked.
pub const MAX_STEPS: usize = 1 << 20;
/// Hashes of blocks that one frame has at most.
pub const MAX_HASHES: u64 = 1024;

/// From the agent to the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToReceiver {
    /// A frame that is not of trees alone.
    Common(frame::ToReceiver),
    /// Asks for the hashes of blocks of the receiver's list.
    WantHashes {
        /// Of which file of it.
        part: Part,
        /// The first block.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Asks for a block of the receiver's list.
    WantBlock {
        /// Of which file of it.
        part: Part,
        /// Which block.
        block: u64,
    },
    /// How the list of the round goes on.
    Steps {
        /// Bytes of the steps, unpacked.
        len: u32,
        /// How they are packed.
        packing: Packing,
        /// The steps.
        payload: Vec<u8>,
    },
}

/// What the receiver has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Which list it is.
    pub generation: u64,
    /// Bytes of its entries.
    pub items: u64,
    /// Bytes of its rows.
    pub rows: u64,
    /// The number of the next file beside the tree.
    pub next_id: u64,
    /// From what the list was made, when it was made at the end of a session.
    pub made_from: Option<MadeFrom>,
}

/// From what a list was made: an agent that has the same can make it, too, and nothing has to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeFrom {
    /// Which list was the base then.
    pub generation: u64,
    /// How far that session was.
    pub progress: Progress,
    /// The file that was open.
    pub open: Option<Cut>,
    /// Whether that session ended with everything in its place.
    pub settled: bool,
}

impl MadeFrom {
    /// Adds it.
    pub fn put(&self, out: &mut Vec<u8>) {
        let Progress { work, position, next_id } = self.progress;
        for number in [self.generation, work.items, work.bytes, work.rows, position, next_id] {
            put_number(out, number);
        }
        out.extend_from_slice(&[self.settled.into(), self.open.is_some().into()]);
        if let Some(open) = &self.open {
            open.put(out);
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is cut short.
    pub fn take(from: &mut Fields<'_>) -> Result<Self, Malformed> {
        let number = |from: &mut Fields<'_>| from.number(u64::MAX, "progress");
        let generation = number(from)?;
        let work = Extent { items: number(from)?, bytes: number(from)?, rows: number(from)? };
        let progress = Progress { work, position: number(from)?, next_id: number(from)? };
        let settled = from.number(1, "flag")? == 1;
        let open = from.number(1, "flag")? == 1;
        let open = if open { Some(Cut::take(from)?) } else { None };
        Ok(Self { generation, progress, open, settled })
    }
}

/// From the receiver to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToSender {
    /// A frame that is not of trees alone.
    Common(frame::ToSender),
    /// What the receiver has; comes after the welcome.
    Base(Base),
    /// Hashes of blocks of the receiver's list.
    Hashes {
        /// Of which file of it.
        part: Part,
        /// The first block.
        first: u64,
        /// Their hashes.
        hashes: Vec<Digest>,
    },
    /// A block of the receiver's list.
    Block {
        /// Of which file of it.
        part: Part,
        /// Which block.
        block: u64,
        /// How it is packed.
        packing: Packing,
        /// The block.
        payload: Vec<u8>,
    },
    /// Entries are being put in their places.
    Settling {
        /// Entries done.
        done: u64,
        /// Entries in all.
        total: u64,
    },
}

impl ToReceiver {
    /// Steps, packed.
    ///
    /// # Errors
    /// When zstd has no memory for them.
    pub fn steps(steps: Vec<u8>, packer: &mut pack::Packer) -> std::io::Result<Self> {
        let len = steps.len() as u32;
        let (packing, payload) = packer.pack(steps)?;
        Ok(Self::Steps { len, packing, payload })
    }
}

fn part(part: Part) -> u8 {
    match part {
        Part::Items => 0,
        Part::Rows => 1,
    }
}

/// Reads the fields of a frame, with the frame's words for what is wrong.
struct From<'a> {
    kind: u8,
    fields: Fields<'a>,
}

impl<'a> From<'a> {
    fn number(&mut self, most: u64, field: &'static str) -> Result<u64, BadFrame> {
        self.fields.number(most, field).map_err(|_| BadFrame::Field { kind: self.kind, field })
    }

    fn part(&mut self) -> Result<Part, BadFrame> {
        match self.number(1, "part")? {
            0 => Ok(Part::Items),
            _ => Ok(Part::Rows),
        }
    }

    fn flag(&mut self) -> Result<bool, BadFrame> {
        Ok(self.number(1, "flag")? == 1)
    }

    fn packing(&mut self) -> Result<Packing, BadFrame> {
        match self.number(1, "packing")? {
            0 => Ok(Packing::Raw),
            _ => Ok(Packing::Zstd),
        }
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.fields.0)
    }

    fn end<F>(self, frame: F) -> Result<F, BadFrame> {
        if self.fields.0.is_empty() { Ok(frame) } else { Err(BadFrame::Length(self.kind)) }
    }
}

fn numbers(kind: u8, numbers: &[u64]) -> Writer {
    let mut bytes = Vec::new();
    numbers.iter().for_each(|number| put_number(&mut bytes, *number));
    Writer::new(kind).bytes(&bytes)
}

impl Frame for ToReceiver {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Common(frame) => return frame.encode(),
            Self::WantHashes { part: of, first, count } => numbers(0x20, &[part(*of).into(), *first, *count]),
            Self::WantBlock { part: of, block } => numbers(0x21, &[part(*of).into(), *block]),
            Self::Steps { len, packing, payload } => {
                numbers(0x22, &[(*len).into(), *packing as u64]).bytes(payload)
            }
        }
        .finish()
    }

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            0x20 | 0x21 => Some(32),
            0x22 => Some(frame::MAX_CONTENT),
            // What is of disks alone.
            0x02..=0x04 | 0x06..=0x08 => None,
            _ => frame::ToReceiver::limit(kind),
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame> {
        let mut from = From { kind, fields: Fields(content) };
        let frame = match kind {
            0x20 => Self::WantHashes {
                part: from.part()?,
                first: from.number(u64::MAX, "block")?,
                count: from.number(MAX_HASHES, "count")?,
            },
            0x21 => Self::WantBlock { part: from.part()?, block: from.number(u64::MAX, "block")? },
            0x22 => Self::Steps {
                len: from.number(MAX_STEPS as u64, "length")? as u32,
                packing: from.packing()?,
                payload: from.rest().to_vec(),
            },
            0x02..=0x04 | 0x06..=0x08 => return Err(BadFrame::Kind(kind)),
            _ => return frame::ToReceiver::decode(kind, content).map(Self::Common),
        };
        from.end(frame)
    }
}

impl Frame for ToSender {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Common(frame) => return frame.encode(),
            Self::Base(base) => {
                let mut bytes = Vec::new();
                for number in [base.generation, base.items, base.rows, base.next_id] {
                    put_number(&mut bytes, number);
                }
                bytes.push(base.made_from.is_some().into());
                if let Some(made) = &base.made_from {
                    made.put(&mut bytes);
                }
                Writer::new(0x30).bytes(&bytes)
            }
            Self::Hashes { part: of, first, hashes } => {
                let mut writer = numbers(0x31, &[part(*of).into(), *first]);
                for hash in hashes {
                    writer = writer.bytes(&hash.0);
                }
                writer
            }
            Self::Block { part: of, block, packing, payload } => {
                numbers(0x32, &[part(*of).into(), *block, *packing as u64]).bytes(payload)
            }
            Self::Settling { done, total } => numbers(0x33, &[*done, *total]),
        }
        .finish()
    }

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            0x30 => Some(256 + MAX_PATH),
            0x31 => Some(32 + 32 * MAX_HASHES as usize),
            0x32 => Some(64 + BLOCK as usize),
            0x33 => Some(32),
            0x13..=0x15 | 0x17 => None,
            _ => frame::ToSender::limit(kind),
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame> {
        let mut from = From { kind, fields: Fields(content) };
        let any = u64::MAX;
        let frame = match kind {
            0x30 => {
                let (generation, items) = (from.number(any, "generation")?, from.number(any, "length")?);
                let (rows, next_id) = (from.number(any, "length")?, from.number(any, "number")?);
                let made_from = if from.flag()? {
                    let made = MadeFrom::take(&mut from.fields);
                    Some(made.map_err(|Malformed(field)| BadFrame::Field { kind, field })?)
                } else {
                    None
                };
                Self::Base(Base { generation, items, rows, next_id, made_from })
            }
            0x31 => {
                let (part, first) = (from.part()?, from.number(any, "block")?);
                let (hashes, rest) = from.rest().as_chunks::<32>();
                if !rest.is_empty() {
                    return Err(BadFrame::Length(kind));
                }
                Self::Hashes { part, first, hashes: hashes.iter().map(|hash| Digest(*hash)).collect() }
            }
            0x32 => Self::Block {
                part: from.part()?,
                block: from.number(any, "block")?,
                packing: from.packing()?,
                payload: from.rest().to_vec(),
            },
            0x33 => Self::Settling { done: from.number(any, "count")?, total: from.number(any, "count")? },
            0x13..=0x15 | 0x17 => return Err(BadFrame::Kind(kind)),
            _ => return frame::ToSender::decode(kind, content).map(Self::Common),
        };
        from.end(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::frame::{HEADER, header};
    use crate::core::tree::path::TreePath;

    fn to_receiver() -> Vec<ToReceiver> {
        vec![
            ToReceiver::Common(frame::ToReceiver::Ping),
            ToReceiver::WantHashes { part: Part::Rows, first: 300, count: 1024 },
            ToReceiver::WantBlock { part: Part::Items, block: 1 << 40 },
            ToReceiver::Steps { len: 900, packing: Packing::Zstd, payload: vec![1, 2, 3] },
        ]
    }

    fn to_sender() -> Vec<ToSender> {
        let progress =
            Progress { work: Extent { items: 1, bytes: 200, rows: 3000 }, position: 4, next_id: u64::MAX };
        let open = Cut { path: TreePath::new(b"a/b".to_vec()).unwrap(), id: 7, first_row: 8 };
        let made = MadeFrom { generation: 6, progress, open: Some(open), settled: false };
        vec![
            ToSender::Common(frame::ToSender::Ack { sequence: 4 }),
            ToSender::Base(Base { generation: 7, items: 1, rows: 48, next_id: 9, made_from: Some(made) }),
            ToSender::Base(Base { generation: 0, items: 0, rows: 0, next_id: 0, made_from: None }),
            ToSender::Hashes { part: Part::Items, first: 9, hashes: vec![Digest([4; 32]); 3] },
            ToSender::Block { part: Part::Rows, block: 0, packing: Packing::Raw, payload: vec![9; 99] },
            ToSender::Settling { done: 1, total: 1000 },
        ]
    }

    fn read<F: Frame>(bytes: &[u8]) -> Result<F, BadFrame> {
        let head = header::<F>(*bytes.first_chunk().unwrap())?;
        if head.len != bytes.len() - HEADER {
            return Err(BadFrame::Length(head.kind));
        }
        F::decode(head.kind, &bytes[HEADER..])
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
    fn what_is_said_of_disks_is_not_heard_here() {
        let disk = frame::ToReceiver::Zeros { first: 0, count: 1 }.encode();
        assert_eq!(read::<ToReceiver>(&disk), Err(BadFrame::Kind(7)));
    }

    proptest! {
        #[test]
        fn what_is_read_from_a_damaged_frame_is_written_again_as_it_came(
            which in 0..6_usize, at in 0..120_usize, bit in 0..8_u8, cut in 0..140_usize,
        ) {
            let damage = |mut bytes: Vec<u8>| {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
                bytes.truncate(cut.max(HEADER));
                bytes
            };
            let bytes = damage(to_sender()[which].encode());
            if let Ok(frame) = read::<ToSender>(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
            let bytes = damage(to_receiver()[which % 4].encode());
            if let Ok(frame) = read::<ToReceiver>(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }
    }
}
