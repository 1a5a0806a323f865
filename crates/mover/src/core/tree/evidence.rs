//! What both ends vouch for after a round of a tree.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{receiver, sender};
use crate::core::evidence::{Evidence, VERSION, Worthless};
use crate::core::frame::RoundKind;
use crate::core::hash::Digest;

/// What was moved in which round: said alike by both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeSubject {
    /// The transfer.
    pub transfer: String,
    /// The server that the tree comes from.
    pub source: String,
    /// The target that it went to.
    pub target: String,
    /// The round.
    pub round: u32,
    /// What the round was for.
    pub purpose: RoundKind,
    /// The root over all entries, what is said about them and the hashes of their content.
    pub tree: Digest,
    /// SHA-256 over the content of all files and all entries, in the order of their paths; only of a proof.
    pub sha256: Option<Digest>,
}

/// What the agent read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeSource {
    /// What was read.
    pub subject: TreeSubject,
    /// When this agent began with the round.
    pub began: Timestamp,
    /// When it had read everything.
    pub ended: Timestamp,
    /// Name and version of the program.
    pub software: String,
    /// Counts of the last session: also of what is not in the copy.
    pub tally: sender::Tally,
}

/// What the receiver has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeTarget {
    /// What it has.
    pub subject: TreeSubject,
    /// When the statement was made.
    pub ended: Timestamp,
    /// Whether the target was read back for it.
    pub read_back: bool,
    /// Name and version of the program.
    pub software: String,
    /// Counts of the last session.
    pub tally: receiver::Tally,
}

/// What both ends vouch for, when it is the same; `None` when this is not the evidence of a tree. Signatures are the
/// caller's.
///
/// # Errors
/// When it is not.
pub fn agreed(evidence: &Evidence) -> Result<Option<(TreeSource, TreeTarget)>, Worthless> {
    if evidence.version != VERSION {
        return Err(Worthless::Form(format!("it has version {}", evidence.version)));
    }
    let Ok(source) = serde_json::from_str::<TreeSource>(&evidence.source.statement) else { return Ok(None) };
    let target: TreeTarget = serde_json::from_str(&evidence.target.statement)
        .map_err(|error| Worthless::Form(error.to_string()))?;
    for (what, same) in [
        ("another root", source.subject.tree == target.subject.tree),
        ("another SHA-256", source.subject.sha256 == target.subject.sha256),
        ("another transfer", source.subject == target.subject),
    ] {
        if !same {
            return Err(Worthless::Differ(what));
        }
    }
    Ok(Some((source, target)))
}
