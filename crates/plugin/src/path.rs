//! Field paths as people write them: `spec.environments[1].name`.

use std::fmt;

use crate::yaml::{Data, Node};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// A field of a map.
    Field(String),
    /// An element of a list.
    Index(usize),
}

/// Way from the top of a document to a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(pub Vec<Segment>);

impl Path {
    /// The field of this name below.
    pub fn field(&self, name: &str) -> Self {
        self.with(Segment::Field(name.to_owned()))
    }

    /// The element of this number below.
    pub fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    fn with(&self, segment: Segment) -> Self {
        let mut path = self.clone();
        path.0.push(segment);
        path
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// Reads a path as it stands in messages, and finds its elements in a document: `[portale]` is the element with
    /// that name, `[2]` the third one. What the document does not have is kept as it is.
    pub fn parse(text: &str, root: &Node) -> Self {
        let mut path = Self::default();
        let mut node = Some(root);
        for word in words(text) {
            let list = match node.map(|node| &node.data) {
                Some(Data::List(items)) => Some(items),
                _ => None,
            };
            let by_name = |items: &Vec<Node>| {
                items.iter().position(|item| {
                    ["name", "version", "path"].iter().any(|key| item.text(key) == Some(word.as_str()))
                })
            };
            let segment = match (list.and_then(by_name), word.parse()) {
                (Some(index), _) => Segment::Index(index),
                (None, Ok(index)) if list.is_some() => Segment::Index(index),
                _ => Segment::Field(word),
            };
            node = node.and_then(|node| node.step(&segment));
            path.0.push(segment);
        }
        path
    }
}

/// The words between dots and brackets.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches('.');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (word, after) = inner.split_once(']').unwrap_or((inner, ""));
            words.push(word.trim_matches(['"', '\'']).to_owned());
            rest = after.trim_start_matches('.');
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            rest = rest[end..].trim_start_matches('.');
        }
    }
    words
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Field(name) if name.contains(['.', '/']) => write!(f, "[{name}]")?,
                Segment::Field(name) if position == 0 => f.write_str(name)?,
                Segment::Field(name) => write!(f, ".{name}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_by_name_or_number() {
        let text =
            "spec:\n  services:\n    - name: a\n    - name: portale\nmetadata:\n  annotations: {x.it/y: 1}\n";
        let (documents, problems) = crate::yaml::read("f", text.as_bytes());
        assert!(problems.is_empty());
        let root = &documents[0].root;
        let shown = |text: &str| Path::parse(text, root).to_string();
        assert_eq!(shown("spec.services[portale].template"), "spec.services[1].template");
        assert_eq!(shown("spec.services[0].name"), "spec.services[0].name");
        assert_eq!(shown("spec.services[7].name"), "spec.services[7].name");
        assert_eq!(shown("metadata.annotations[x.it/y]"), "metadata.annotations[x.it/y]");
    }
}
