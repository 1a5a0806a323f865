//! What both ends vouch for after a round: in words, signed, checkable years later.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::frame::RoundKind;
use super::free::Skipped;
use super::geometry::Geometry;
use super::hash::Digest;
use super::{receiver, sender};

/// The form of the file.
pub const VERSION: u32 = 1;

/// What was moved in which round: said alike by both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The transfer.
    pub transfer: String,
    /// The server that the content comes from.
    pub source: String,
    /// The target that it went to.
    pub target: String,
    /// The round.
    pub round: u32,
    /// What the round was for.
    pub purpose: RoundKind,
    /// The measures of the disk.
    pub geometry: Geometry,
    /// The root over the BLAKE3 hashes of everything.
    pub root: Digest,
    /// SHA-256 of everything, from the first byte to the last; only of a proof.
    pub sha256: Option<Digest>,
}

/// What the agent read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatement {
    /// What was read.
    pub subject: Subject,
    /// When this agent began with the round.
    pub began: Timestamp,
    /// When it had read everything.
    pub ended: Timestamp,
    /// Name and version of the program.
    pub software: String,
    /// Counts of the last session.
    pub tally: sender::Tally,
    /// Times that units had to be sent again after the end, since the roots differed.
    pub repairs: u32,
    /// Free space that counts as zeros in the root and in SHA-256, and is zeros on the target; absent when all was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
}

/// What the receiver has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatement {
    /// What it has.
    pub subject: Subject,
    /// When the statement was made.
    pub ended: Timestamp,
    /// How the target was read back for it: `direct`, `dropped` (from the cache first) or `not`.
    pub read_back: String,
    /// Name and version of the program.
    pub software: String,
    /// Counts of the last session.
    pub tally: receiver::Tally,
    /// Damage that was ever found on the target's disk in this transfer.
    pub damage: Vec<Damage>,
}

/// Bytes on the target's disk that were not what had been written there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// When it was found.
    pub found: Timestamp,
    /// Units, in all.
    pub count: u64,
    /// Their numbers, the first thousand.
    pub units: Vec<u64>,
    /// The round that put it right; absent while none has.
    pub repaired_in: Option<u32>,
}

/// A statement and who made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The statement, as the very text that was signed.
    pub statement: String,
    /// Ed25519, in base64.
    pub signature: String,
    /// The certificate of the signer, in PEM, issued by the municipality's authority.
    pub certificate: String,
}

/// The evidence of one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The form of this file.
    pub version: u32,
    /// What the agent vouches for.
    pub source: Signed,
    /// What the receiver vouches for.
    pub target: Signed,
}

/// Why evidence proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum Worthless {
    /// Not a file of this form.
    #[error("not evidence of version {VERSION}: {0}")]
    Form(String),
    /// Both ends speak of different things.
    #[error("the source vouches for {0}, the target for something else")]
    Differ(&'static str),
}

impl Evidence {
    /// What both ends vouch for, when it is the same. Signatures are the caller's.
    ///
    /// # Errors
    /// When it is not.
    pub fn agreed(&self) -> Result<(SourceStatement, TargetStatement), Worthless> {
        if self.version != VERSION {
            return Err(Worthless::Form(format!("it has version {}", self.version)));
        }
        let form = |error: serde_json::Error| Worthless::Form(error.to_string());
        let source: SourceStatement = serde_json::from_str(&self.source.statement).map_err(form)?;
        let target: TargetStatement = serde_json::from_str(&self.target.statement).map_err(form)?;
        let (theirs, ours) = (&source.subject, &target.subject);
        for (what, same) in [
            ("another root", theirs.root == ours.root),
            ("another SHA-256", theirs.sha256 == ours.sha256),
            ("another round", (theirs.round, theirs.purpose) == (ours.round, ours.purpose)),
            ("another transfer", theirs == ours),
        ] {
            if !same {
                return Err(Worthless::Differ(what));
            }
        }
        Ok((source, target))
    }
}
