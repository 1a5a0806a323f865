//! How the list of a round goes on: what the sender says and both ends do to their lists.

use super::bytes::{Fields, Malformed, put_counted, put_number};
use super::cut;
use super::item::{Kind, MAX_FILE, Meta};
use super::path::{MAX_PATH, TreePath};
use crate::core::hash::Digest;

/// One step of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The next entries of `base` belong to the tree as they are.
    Keep {
        /// How many.
        count: u64,
    },
    /// The next entries of `base` do not belong to the tree, or not any more.
    Pass {
        /// How many.
        count: u64,
    },
    /// An entry that is not a file.
    Put {
        /// Where.
        path: TreePath,
        /// What.
        kind: Kind,
        /// What is said about it.
        meta: Meta,
    },
    /// The next entry of `base`, a file, keeps its content; this is now said about it.
    Restate {
        /// What is said about it.
        meta: Meta,
    },
    /// A file begins.
    Open {
        /// Where.
        path: TreePath,
        /// Whether it goes on where the next entry of `base` was cut.
        goes_on: bool,
    },
    /// The next content of the file.
    Chunk {
        /// Its hash.
        hash: Digest,
        /// The content.
        content: Vec<u8>,
    },
    /// The next content of the file is that of these rows.
    Copy {
        /// Whether the rows are of `work`, not of `base`.
        work: bool,
        /// The first row.
        row: u64,
        /// How many.
        count: u64,
    },
    /// So many zeros are next in the file.
    Zeros {
        /// Bytes.
        len: u64,
    },
    /// The file is at its end.
    Close {
        /// What is said about it.
        meta: Meta,
    },
    /// The file will not be finished.
    Abandon,
}

impl Op {
    /// Adds it to a frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Keep { count } => {
                out.push(1);
                put_number(out, *count);
            }
            Self::Pass { count } => {
                out.push(2);
                put_number(out, *count);
            }
            Self::Put { path, kind, meta } => {
                out.push(3);
                put_counted(out, path.bytes());
                kind.put(out);
                meta.put(out);
            }
            Self::Restate { meta } => {
                out.push(4);
                meta.put(out);
            }
            Self::Open { path, goes_on } => {
                out.push(if *goes_on { 6 } else { 5 });
                put_counted(out, path.bytes());
            }
            Self::Chunk { hash, content } => {
                out.push(7);
                out.extend_from_slice(&hash.0);
                put_counted(out, content);
            }
            Self::Copy { work, row, count } => {
                out.push(if *work { 9 } else { 8 });
                put_number(out, *row);
                put_number(out, *count);
            }
            Self::Zeros { len } => {
                out.push(10);
                put_number(out, *len);
            }
            Self::Close { meta } => {
                out.push(11);
                meta.put(out);
            }
            Self::Abandon => out.push(12),
        }
    }

    /// The next one of a frame; `None` at its end.
    ///
    /// # Errors
    /// When there is no such step.
    pub fn take(from: &mut Fields<'_>) -> Result<Option<Self>, Malformed> {
        if from.0.is_empty() {
            return Ok(None);
        }
        let path = |from: &mut Fields<'_>| TreePath::new(from.counted(MAX_PATH, "path")?.to_vec());
        Ok(Some(match from.byte("step")? {
            1 => Self::Keep { count: from.number(u64::MAX, "count")? },
            2 => Self::Pass { count: from.number(u64::MAX, "count")? },
            3 => {
                let (path, kind) = (path(from)?, Kind::take(from)?);
                if matches!(kind, Kind::File { .. }) {
                    return Err(Malformed("file without content"));
                }
                Self::Put { path, kind, meta: Meta::take(from)? }
            }
            4 => Self::Restate { meta: Meta::take(from)? },
            5 => Self::Open { path: path(from)?, goes_on: false },
            6 => Self::Open { path: path(from)?, goes_on: true },
            7 => {
                let hash = Digest(from.array("hash")?);
                let content = from.counted(cut::MAX, "chunk")?;
                if content.is_empty() || !hash.is_known() {
                    return Err(Malformed("chunk"));
                }
                Self::Chunk { hash, content: content.to_vec() }
            }
            step @ (8 | 9) => Self::Copy {
                work: step == 9,
                row: from.number(u64::MAX, "row")?,
                count: from.number(u64::MAX, "count")?,
            },
            10 => match from.number(MAX_FILE, "length")? {
                0 => return Err(Malformed("length")),
                len => Self::Zeros { len },
            },
            11 => Self::Close { meta: Meta::take(from)? },
            12 => Self::Abandon,
            _ => return Err(Malformed("step")),
        }))
    }
}
