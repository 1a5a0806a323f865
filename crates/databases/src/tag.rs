//! The mark of ownership: compact JSON in the comment of a database or role, or in the registry of a server.

use serde::{Deserialize, Serialize};

use crate::{Desired, Problem};

const MANAGED_BY: &str = "conme";

const ADOPT: &str = "If it may be taken over, set `adopt: true` on the database; else choose another name";
const NEVER: &str = "It cannot be taken over: choose another name, or have the data centre clear it up";

#[derive(Debug, Serialize, Deserialize)]
struct Tag {
    #[serde(rename = "managed-by")]
    managed_by: String,
    comune: String,
    database: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    istat: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    uid: Option<String>,
}

/// What the comment of an object says about its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Ours, and the comment is what we would write.
    Ours,
    /// Ours, but the comment is to be written anew (the resource was re-created, or its ISTAT code was added).
    OursOutdated,
    /// Nobody's: no comment, or one that is not of this system.
    Nobody,
    /// Of a municipality of the same name of which it cannot be told that it is the same one.
    Namesake,
    /// Of another municipality or another database.
    Another(String),
}

/// The comment for everything that belongs to this database.
pub(crate) fn comment(desired: &Desired) -> String {
    let tag = Tag {
        managed_by: MANAGED_BY.to_owned(),
        comune: desired.comune.clone(),
        database: desired.database.clone(),
        istat: desired.tag.istat.clone(),
        uid: Some(desired.tag.uid.clone()),
    };
    // A structure of texts cannot fail to be serialised; an empty comment would only be written anew.
    serde_json::to_string(&tag).unwrap_or_default()
}

fn parse(comment: Option<&str>) -> Option<Tag> {
    serde_json::from_str::<Tag>(comment?).ok().filter(|tag| tag.managed_by == MANAGED_BY)
}

/// Whether an object belongs to some database of this system.
pub(crate) fn is_managed(comment: Option<&str>) -> bool {
    parse(comment).is_some()
}

/// Comune, database and ISTAT code that a comment of this system speaks of.
pub(crate) fn owner(comment: Option<&str>) -> Option<(String, String, Option<String>)> {
    parse(comment).map(|tag| (tag.comune, tag.database, tag.istat))
}

/// Who the object with this comment belongs to, seen from `desired`.
pub(crate) fn claim(desired: &Desired, found: Option<&str>) -> Claim {
    let Some(tag) = parse(found) else {
        return Claim::Nobody;
    };
    if tag.comune != desired.comune || tag.database != desired.database {
        return Claim::Another(format!("database \"{}\" of comune \"{}\"", tag.database, tag.comune));
    }
    let same_uid =
        tag.uid.as_ref().is_some_and(|uid| *uid == desired.tag.uid || desired.tag.former_uids.contains(uid));
    match (&tag.istat, &desired.tag.istat) {
        (Some(theirs), Some(ours)) if theirs != ours => Claim::Another(format!(
            "database \"{}\" of the comune \"{}\" with ISTAT code {theirs}",
            tag.database, tag.comune
        )),
        (Some(theirs), None) if !same_uid => {
            Claim::Another(format!("the comune \"{}\" with ISTAT code {theirs}", tag.comune))
        }
        // The ISTAT code is the identity that outlives the resource.
        (Some(_), Some(_)) if !same_uid => Claim::OursOutdated,
        _ if !same_uid => Claim::Namesake,
        _ if found == Some(comment(desired).as_str()) => Claim::Ours,
        _ => Claim::OursOutdated,
    }
}

/// Whether an object with this claim on it may be changed; `vouched` when something else shows that we made it.
///
/// # Errors
/// [`Problem::NotOurs`], where `nobodys` tells what an object that is nobody's looks like.
pub(crate) fn may_touch(
    desired: &Desired,
    object: String,
    claim: Claim,
    vouched: bool,
    nobodys: impl FnOnce() -> String,
) -> Result<(), Problem> {
    let (found, advice) = match claim {
        Claim::Ours | Claim::OursOutdated => return Ok(()),
        Claim::Nobody if desired.adopt || vouched => return Ok(()),
        Claim::Namesake if desired.adopt => return Ok(()),
        Claim::Nobody => (nobodys(), ADOPT),
        Claim::Namesake => {
            ("it was made for an earlier resource of the same name, without ISTAT code".to_owned(), ADOPT)
        }
        Claim::Another(owner) => (format!("it belongs to {owner}"), NEVER),
    };
    Err(Problem::NotOurs { object, found, advice })
}
