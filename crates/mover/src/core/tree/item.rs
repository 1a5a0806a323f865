//! One entry of a tree: what it is, whose it is, where its content lies.

use super::bytes::{Fields, Malformed, put_counted, put_number};
use super::path::TreePath;
use crate::core::hash::Digest;

/// Bytes of all extended attributes of one entry at most.
pub const MAX_XATTRS: usize = 64 << 10;
/// Bytes that an entry can take in a list or a frame at most.
pub const MAX_ITEM: usize = MAX_XATTRS + 4 * super::path::MAX_PATH;
/// The largest file, in bytes.
pub const MAX_FILE: u64 = 1 << 60;
const MAX_ATTRIBUTES: u64 = 256;
const MAX_ATTRIBUTE_NAME: usize = 255;

/// A moment, as file systems have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds since 1970; before it, below 0.
    pub seconds: i64,
    /// Nanoseconds on top.
    pub nanos: u32,
}

/// What a directory says of an entry, besides what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permissions with setuid, setgid and sticky: 12 bits.
    pub mode: u16,
    /// The owner's number at the source.
    pub uid: u32,
    /// The group's number at the source.
    pub gid: u32,
    /// When the content was changed.
    pub mtime: Time,
    /// Extended attributes by name, POSIX ACLs and capabilities among them.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Bytes, holes included.
        size: u64,
        /// Rows of the list of content that are its own.
        rows: u64,
        /// The hash over these rows.
        content: Digest,
    },
    /// A symbolic link, with what it says.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// Another name of an entry that came before.
    Link(TreePath),
}

/// How an entry stands in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It belongs to the tree.
    Live,
    /// It does not any more, but still lies there.
    Ghost,
    /// The beginning of a file whose transfer was cut.
    Partial,
}

/// Where the content of an entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At its path, from an earlier round.
    There,
    /// At its path, but what is said about it has changed.
    Restated,
    /// In the file of this number beside the tree.
    Staged(u64),
    /// Nowhere yet: it is made at the end of the round.
    New,
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where it is.
    pub path: TreePath,
    /// What it is.
    pub kind: Kind,
    /// What is said about it; nothing for a further name of another entry.
    pub meta: Meta,
    /// How it stands in the list.
    pub state: State,
    /// Where its content lies.
    pub place: Place,
}

/// Whether an attribute of this name is carried. Those of security modules belong to the machine, `trusted` ones to
/// the kernel: neither may come from elsewhere.
pub fn is_carried(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default" | CAPABILITY)
}

/// The attribute that gives a program rights without setuid.
pub const CAPABILITY: &[u8] = b"security.capability";

impl Meta {
    /// Adds it.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_number(out, self.mode.into());
        put_number(out, self.uid.into());
        put_number(out, self.gid.into());
        out.extend_from_slice(&self.mtime.seconds.to_le_bytes());
        put_number(out, self.mtime.nanos.into());
        put_number(out, self.xattrs.len() as u64);
        for (name, value) in &self.xattrs {
            put_counted(out, name);
            put_counted(out, value);
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When no entry can have it.
    pub fn take(from: &mut Fields<'_>) -> Result<Self, Malformed> {
        let mode = from.number(0o7777, "mode")? as u16;
        let uid = from.number(u32::MAX.into(), "owner")? as u32;
        let gid = from.number(u32::MAX.into(), "group")? as u32;
        let seconds = i64::from_le_bytes(from.array("time")?);
        let nanos = from.number(999_999_999, "time")? as u32;
        let count = from.number(MAX_ATTRIBUTES, "number of attributes")?;
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut room = MAX_XATTRS;
        for _ in 0..count {
            let name = from.counted(MAX_ATTRIBUTE_NAME, "attribute")?;
            let value = from.counted(room, "attribute")?;
            room = room.checked_sub(name.len() + value.len()).ok_or(Malformed("attribute"))?;
            let after = xattrs.last().is_none_or(|(before, _)| before.as_slice() < name);
            if !after || !is_carried(name) || name.contains(&0) {
                return Err(Malformed("attribute"));
            }
            xattrs.push((name.to_vec(), value.to_vec()));
        }
        // The two numbers by which the kernel says "leave as it is".
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Malformed("owner"));
        }
        Ok(Self { mode, uid, gid, mtime: Time { seconds, nanos }, xattrs })
    }
}

impl Kind {
    /// Adds it.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Dir => out.push(1),
            Self::File { size, rows, content } => {
                out.push(2);
                put_number(out, *size);
                put_number(out, *rows);
                out.extend_from_slice(&content.0);
            }
            Self::Symlink(target) => {
                out.push(3);
                put_counted(out, target);
            }
            Self::Fifo => out.push(4),
            Self::Link(to) => {
                out.push(5);
                put_counted(out, to.bytes());
            }
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn take(from: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(match from.byte("kind")? {
            1 => Self::Dir,
            2 => Self::File {
                size: from.number(MAX_FILE, "size")?,
                rows: from.number(MAX_FILE, "number of rows")?,
                content: Digest(from.array("content")?),
            },
            3 => {
                let target = from.counted(super::path::MAX_PATH, "link")?;
                if target.is_empty() || target.contains(&0) {
                    return Err(Malformed("link"));
                }
                Self::Symlink(target.to_vec())
            }
            4 => Self::Fifo,
            5 => {
                let to = TreePath::new(from.counted(super::path::MAX_PATH, "link")?.to_vec())?;
                if to.is_root() {
                    return Err(Malformed("link"));
                }
                Self::Link(to)
            }
            _ => return Err(Malformed("kind")),
        })
    }

    /// Rows of the list of content that belong to it.
    pub fn rows(&self) -> u64 {
        if let Self::File { rows, .. } = self { *rows } else { 0 }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self, Self::Dir)
    }
}

impl Item {
    /// The item as it lies in a list.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + self.path.bytes().len());
        out.push(match self.state {
            State::Live => 0,
            State::Ghost => 1,
            State::Partial => 2,
        });
        match self.place {
            Place::There => out.push(0),
            Place::Restated => out.push(1),
            Place::Staged(id) => {
                out.push(2);
                put_number(&mut out, id);
            }
            Place::New => out.push(3),
        }
        self.put_entry(&mut out);
        out
    }

    fn put_entry(&self, out: &mut Vec<u8>) {
        put_counted(out, self.path.bytes());
        self.kind.put(out);
        self.meta.put(out);
    }

    /// The item from a list.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Fields(bytes);
        let state = match from.byte("state")? {
            0 => State::Live,
            1 => State::Ghost,
            2 => State::Partial,
            _ => return Err(Malformed("state")),
        };
        let place = match from.byte("place")? {
            0 => Place::There,
            1 => Place::Restated,
            2 => Place::Staged(from.number(u64::MAX, "place")?),
            3 => Place::New,
            _ => return Err(Malformed("place")),
        };
        let path = TreePath::new(from.counted(super::path::MAX_PATH, "path")?.to_vec())?;
        let kind = Kind::take(&mut from)?;
        let meta = Meta::take(&mut from)?;
        from.end("item")?;
        Ok(Self { path, kind, meta, state, place })
    }

    /// What the root is made of: the entry without how it stands in a list.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + self.path.bytes().len());
        self.put_entry(&mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items() -> Vec<Item> {
        let meta = Meta {
            mode: 0o4755,
            uid: 1000,
            gid: 3_000_000_000,
            mtime: Time { seconds: -7, nanos: 999_999_999 },
            xattrs: vec![(CAPABILITY.to_vec(), vec![1; 20]), (b"user.nota".to_vec(), vec![])],
        };
        let path = TreePath::new(b"uffici/\xff".to_vec()).unwrap();
        let kinds = [
            (Kind::Dir, Place::There),
            (Kind::File { size: 5, rows: 1, content: Digest([7; 32]) }, Place::Staged(300)),
            (Kind::Symlink(b"../../etc".to_vec()), Place::New),
            (Kind::Fifo, Place::Restated),
            (Kind::Link(TreePath::new(b"a".to_vec()).unwrap()), Place::New),
        ];
        let item =
            |(kind, place)| Item { path: path.clone(), kind, meta: meta.clone(), state: State::Live, place };
        kinds.map(item).to_vec()
    }

    #[test]
    fn every_item_comes_back_from_a_list() {
        for item in items() {
            assert_eq!(Item::decode(&item.encode()), Ok(item));
        }
    }

    #[test]
    fn attributes_that_belong_to_the_machine_are_refused() {
        for name in [&b"security.selinux"[..], b"trusted.overlay.redirect", b"system.nfs4_acl", b"user.a\0b"]
        {
            let mut item = items().remove(0);
            item.meta.xattrs = vec![(name.to_vec(), vec![1])];
            assert_eq!(Item::decode(&item.encode()), Err(Malformed("attribute")), "{name:?}");
        }
        let mut twice = items().remove(0);
        twice.meta.xattrs = vec![(b"user.a".to_vec(), vec![]), (b"user.a".to_vec(), vec![])];
        assert!(Item::decode(&twice.encode()).is_err());
        let mut large = items().remove(0);
        large.meta.xattrs = vec![(b"user.a".to_vec(), vec![0; MAX_XATTRS])];
        assert!(Item::decode(&large.encode()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_read_from_damaged_bytes_is_written_again_as_it_came(
            which in 0..5_usize, at in 0..120_usize, bit in 0..8_u8, cut in 0..140_usize,
        ) {
            let mut bytes = items()[which].encode();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            bytes.truncate(cut);
            if let Ok(item) = Item::decode(&bytes) {
                prop_assert_eq!(item.encode(), bytes);
            }
        }
    }
}
