//! Small forms of what is known of thousands of objects: names that many share, ids as numbers.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use conme_blueprint::{ChildRef, Kind, amount::Amount, quota::QuotaSeen};
use serde_json::Value;

/// Texts of which each is kept once.
#[derive(Default)]
pub struct Pool {
    texts: HashSet<Arc<str>>,
    /// When there are more, those that nobody else holds are dropped.
    bound: usize,
}

/// The least number of texts at which a pool is cleared of those that nobody holds.
const LEAST_BOUND: usize = 4096;

impl Pool {
    /// The text, shared with all who hold the same.
    pub fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        if self.texts.len() >= self.bound.max(LEAST_BOUND) {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.bound = self.texts.len() * 2;
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    /// An address.
    pub fn at(&mut self, kind: Kind, namespace: &str, name: &str) -> At {
        At { kind, namespace: self.shared(namespace), name: self.shared(name) }
    }

    /// The texts of a JSON map, by those of its keys that are `wanted`.
    pub fn pairs(&mut self, map: Option<&Value>, wanted: impl Fn(&str) -> bool) -> Pairs {
        let map = map.and_then(Value::as_object).into_iter().flatten();
        let texts =
            map.filter_map(|(key, value)| Some((key, value.as_str()?))).filter(|(key, _)| wanted(key));
        Pairs(texts.map(|(key, value)| (self.shared(key), self.shared(value))).collect())
    }

    fn amounts(&mut self, map: Option<&Value>) -> Amounts {
        let map = map.and_then(Value::as_object).into_iter().flatten();
        let amounts =
            map.filter_map(|(resource, text)| Some((resource, Amount::parse(text.as_str()?).ok()?)));
        amounts.map(|(resource, amount)| (self.shared(resource), amount)).collect()
    }
}

/// Address of a child.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for a Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl At {
    /// The namespace that it is or lives in.
    pub fn home(&self) -> &Arc<str> {
        if self.kind == Kind::Namespace { &self.name } else { &self.namespace }
    }

    /// The same for everybody else.
    pub fn to_ref(&self) -> ChildRef {
        ChildRef::new(self.kind, &*self.namespace, &*self.name)
    }
}

/// Keys with texts, sorted by key as JSON maps are.
#[derive(Debug, PartialEq)]
pub struct Pairs(Box<[(Arc<str>, Arc<str>)]>);

impl Pairs {
    /// The text of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *key).map(|(_, text)| &**text)
    }

    /// The same for everybody else.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect()
    }
}

/// Amounts by resource, sorted by it.
type Amounts = Box<[(Arc<str>, Amount)]>;

/// What is seen of a ResourceQuota.
#[derive(Clone, Debug, PartialEq)]
pub struct Quota {
    spec: Amounts,
    /// None: the same as `spec`.
    enforced: Option<Amounts>,
    used: Amounts,
}

impl Quota {
    /// As it stands in an object.
    pub fn of(pool: &mut Pool, object: &Value) -> Self {
        let spec = pool.amounts(object.pointer("/spec/hard"));
        let enforced = pool.amounts(object.pointer("/status/hard"));
        let used = pool.amounts(object.pointer("/status/used"));
        Self { enforced: (enforced != spec).then_some(enforced), spec, used }
    }

    /// The same for everybody else.
    pub fn seen(&self) -> QuotaSeen {
        let map = |amounts: &[(Arc<str>, Amount)]| {
            amounts.iter().map(|(resource, amount)| (resource.to_string(), *amount)).collect()
        };
        let enforced = self.enforced.as_ref().unwrap_or(&self.spec);
        QuotaSeen { spec: map(&self.spec), enforced: map(enforced), used: map(&self.used) }
    }
}

/// A short text: the unique ids and hashes that nearly all are take no memory of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// As of a UUID in small letters.
    Uuid([u8; 16]),
    /// Sixteen hexadecimal digits in small letters.
    Hash([u8; 8]),
    /// Anything else: somebody may write into an annotation what they like.
    Other(Box<str>),
}

impl From<&str> for Token {
    fn from(text: &str) -> Self {
        let known = if text.len() == 36 {
            number::<16>(&text.replace('-', "")).map(Self::Uuid)
        } else {
            number::<8>(text).map(Self::Hash)
        };
        // Only what is written back as it was.
        known.filter(|known| known.to_string() == text).unwrap_or_else(|| Self::Other(text.into()))
    }
}

/// The bytes that hexadecimal digits stand for.
fn number<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N || !digits.is_ascii() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => {
                for (place, byte) in bytes.iter().enumerate() {
                    if matches!(place, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
            Self::Hash(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_written_back_as_it_was() {
        for text in [
            "0f8fad5b-d9cb-469f-a165-70867728950e",
            "0F8FAD5B-D9CB-469F-A165-70867728950E",
            "0f8fad5bd9cb-469f-a165-70867728950e-",
            "00112233445566ff",
            "00112233445566FF",
            "+0112233445566ff",
            "",
            "u1",
            "\u{e8}\u{e8}\u{e8}\u{e8}\u{e8}\u{e8}\u{e8}\u{e8}",
        ] {
            assert_eq!(Token::from(text).to_string(), text);
        }
        assert!(matches!(Token::from("0f8fad5b-d9cb-469f-a165-70867728950e"), Token::Uuid(_)));
        assert!(matches!(Token::from("00112233445566ff"), Token::Hash(_)));
    }

    #[test]
    fn a_pool_forgets_what_nobody_holds() {
        let mut pool = Pool::default();
        let held = pool.shared("dolo");
        for number in 0..3 * LEAST_BOUND {
            pool.shared(&number.to_string());
        }
        assert!(pool.texts.len() <= LEAST_BOUND + 1);
        assert!(Arc::ptr_eq(&held, &pool.shared("dolo")));
    }
}
