//! Where an entry is within its tree: bytes, not text, and never a way out.

use std::cmp::Ordering;
use std::fmt;

use super::bytes::Malformed;

/// Bytes of a path at most: what the kernel takes, without its end.
pub const MAX_PATH: usize = 4095;
/// Bytes of one name at most.
pub const MAX_NAME: usize = 255;
/// The name beneath the target that the receiver keeps for itself: nothing of a tree can have it.
pub const RESERVED: &[u8] = b".conme-mover";

/// A path below the root of a tree; the root itself is empty.
///
/// The order is that of the bytes, with `/` before all others: so a directory comes first, then all that is in it,
/// then its neighbours.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The path, when nothing in it could lead elsewhere.
    ///
    /// # Errors
    /// When it is too long or has a name that no entry can have.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Malformed> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut names = bytes.split(|byte| *byte == b'/');
        let top = names.clone().next();
        let fits = bytes.len() <= MAX_PATH && names.all(is_name) && top != Some(RESERVED);
        if fits { Ok(Self(bytes)) } else { Err(Malformed("path")) }
    }

    /// What is called so in this directory.
    ///
    /// # Errors
    /// When nothing can be called so, or the path is too long.
    pub fn join(&self, name: &[u8]) -> Result<Self, Malformed> {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        if bytes.is_empty() { Err(Malformed("path")) } else { Self::new(bytes) }
    }

    /// The path as it is.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root of the tree.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that it is in; the root is in none.
    pub fn parent(&self) -> Option<Self> {
        let name = self.0.rsplit(|byte| *byte == b'/').next()?.len();
        if self.is_root() {
            None
        } else {
            Some(Self(self.0[..(self.0.len() - name).saturating_sub(1)].to_vec()))
        }
    }

    /// The last name of it; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// The names, from the root on.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// Whether it is this directory or below it.
    pub fn is_within(&self, dir: &Self) -> bool {
        dir.is_root()
            || self
                .0
                .strip_prefix(&dir.0[..])
                .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
    }
}

/// Whether an entry of a directory can be called so.
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// As people can read it: what is not text, and what a terminal would obey, as `\xNN` or `\u{NN}`.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for chunk in self.0.utf8_chunks() {
            for letter in chunk.valid().chars() {
                match letter {
                    '\'' | '"' => write!(f, "{letter}")?,
                    // Marks that turn the direction of writing round make a name look like another.
                    '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                        write!(f, "{}", letter.escape_unicode())?;
                    }
                    _ => write!(f, "{}", letter.escape_debug())?,
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &[u8]) -> TreePath {
        TreePath::new(text.to_vec()).unwrap()
    }

    #[test]
    fn no_path_leads_out_of_the_tree() {
        let long = [b"a".repeat(256), b"a/".repeat(2048), b"../etc".to_vec()];
        let bad =
            [&b"/etc"[..], b"a/", b"a//b", b".", b"..", b"a/../b", b"a/./b", b"a\0b", b".conme-mover/x"];
        for bytes in bad.into_iter().chain(long.iter().map(Vec::as_slice)) {
            assert!(TreePath::new(bytes.to_vec()).is_err(), "{bytes:?}");
        }
        assert!(TreePath::new(b"...".to_vec()).is_ok());
        assert!(TreePath::new(b"a/.conme-mover".to_vec()).is_ok());
        assert!(path(b"").join(b"").is_err());
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_that_before_its_neighbours() {
        let mut paths = [&b"a-b"[..], b"a/x", b"a", b"", b"a/x/y", b"a.txt", b"a/x!"].map(path);
        paths.sort();
        assert_eq!(paths, [&b""[..], b"a", b"a/x", b"a/x/y", b"a/x!", b"a-b", b"a.txt"].map(path));
    }

    #[test]
    fn names_that_are_not_text_can_be_shown_and_obey_nobody() {
        assert_eq!(path(b"caff\xe8\x1b[2J/\xe2\x80\xaefdp").to_string(), "caff\\xe8\\u{1b}[2J/\\u{202e}fdp");
        assert_eq!(path("perché.txt".as_bytes()).to_string(), "perché.txt");
        assert_eq!(path(b"").to_string(), ".");
    }

    #[test]
    fn a_parent_is_what_the_last_name_is_in() {
        assert_eq!(path(b"a/b/c").parent(), Some(path(b"a/b")));
        assert_eq!(path(b"a").parent(), Some(path(b"")));
        assert_eq!(path(b"").parent(), None);
        assert!(path(b"a/b").is_within(&path(b"a")) && !path(b"ab").is_within(&path(b"a")));
        assert_eq!(path(b"a/b").name(), b"b");
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_the_names(a in "[ab./-]{0,6}", b in "[ab./-]{0,6}") {
            let (Ok(a), Ok(b)) = (TreePath::new(a.into()), TreePath::new(b.into())) else { return Ok(()) };
            prop_assert_eq!(a.cmp(&b), a.names().cmp(b.names()));
        }
    }
}
