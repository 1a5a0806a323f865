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
    /// Damage that was ever found in this transfer, on the target's disk or on the way to it.
    pub damage: Vec<Damage>,
}

/// Where bytes were not what they had to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On the target's disk: they were not what had been written there. Older files know only this and do not say it.
    #[default]
    Target,
    /// In what arrived: it did not give the hash that the agent had sent with it. Nothing of it was written.
    Arrival,
}

/// Numbers of damaged units that are kept of one damage.
const NAMED: usize = 1000;

/// Bytes that were not what they had to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Where they were.
    #[serde(default)]
    pub place: Place,
    /// When it was found; the first of it, when more came.
    pub found: Timestamp,
    /// Units, in all; one that arrived damaged again counts again.
    pub count: u64,
    /// Their numbers, the first thousand.
    pub units: Vec<u64>,
    /// The round that put it right; absent while none has.
    pub repaired_in: Option<u32>,
}

/// Enters a unit that arrived damaged: with the others that no round has put right yet, so that a bad line makes one
/// entry for each round and not one for each unit.
pub fn arrived_damaged(all: &mut Vec<Damage>, unit: u64, now: Timestamp) {
    let open = |damage: &&mut Damage| damage.place == Place::Arrival && damage.repaired_in.is_none();
    match all.iter_mut().find(open) {
        Some(damage) => {
            damage.count = damage.count.saturating_add(1);
            if damage.units.len() < NAMED && !damage.units.contains(&unit) {
                damage.units.push(unit);
            }
        }
        None => all.push(Damage {
            place: Place::Arrival,
            found: now,
            count: 1,
            units: vec![unit],
            repaired_in: None,
        }),
    }
}

/// Both ends agree on a round: what it has put right is marked so. What was damaged on the target's disk only when
/// that was read back for it; what arrived damaged also without, since both tables of hashes are the same now. Says
/// whether anything was marked.
pub fn repaired(all: &mut [Damage], round: u32, read_back: bool) -> bool {
    let mut any = false;
    for damage in all.iter_mut().filter(|damage| damage.repaired_in.is_none()) {
        if read_back || damage.place == Place::Arrival {
            damage.repaired_in = Some(round);
            any = true;
        }
    }
    any
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_of_an_older_file_was_on_the_target() {
        let old = r#"{"found":"2026-03-01T10:00:00Z","count":1,"units":[8],"repaired_in":null}"#;
        assert_eq!(serde_json::from_str::<Damage>(old).unwrap().place, Place::Target);
    }

    #[test]
    fn what_arrives_damaged_is_one_entry_until_a_round_has_put_it_right() {
        let now = Timestamp::UNIX_EPOCH;
        let found = Damage { place: Place::Target, found: now, count: 1, units: vec![4], repaired_in: None };
        let mut all = vec![found];
        for unit in [7, 9, 7] {
            arrived_damaged(&mut all, unit, now);
        }
        assert_eq!((all.len(), all[1].count, &all[1].units), (2, 3, &vec![7, 9]));
        // Without a reading of the target's disk nobody knows whether that is as it was written.
        assert!(repaired(&mut all, 1, false));
        assert_eq!((all[0].repaired_in, all[1].repaired_in), (None, Some(1)));
        assert!(!repaired(&mut all, 2, false));
        arrived_damaged(&mut all, 7, now);
        assert_eq!((all.len(), all[2].count), (3, 1));
        assert!(repaired(&mut all, 3, true));
        assert_eq!(
            all.iter().map(|damage| damage.repaired_in).collect::<Vec<_>>(),
            [Some(3), Some(1), Some(3)]
        );
        for unit in 0..2 * NAMED as u64 {
            arrived_damaged(&mut all, unit, now);
        }
        assert_eq!((all[3].count, all[3].units.len()), (2 * NAMED as u64, NAMED));
    }
}
