//! Which round comes next, and when.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::frame::{RoundKind, Welcome};

/// Between two rounds at least, in seconds.
const LEAST: Duration = Duration::from_secs(3600);
/// Between two rounds at most.
const MOST: Duration = Duration::from_secs(12 * 3600);

/// What a session is to do about the round that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Begin this round, or go on with it.
    Move {
        /// Its number.
        round: u32,
    },
    /// This round is over: both ends agreed on it, only the answer was lost.
    Over {
        /// Its number.
        round: u32,
    },
}

/// What to do, from what the receiver says and the round that this agent has begun already, if any.
pub fn plan(welcome: &Welcome, kind: RoundKind, begun: Option<u32>) -> Plan {
    let round = welcome.round;
    if welcome.complete && round > 0 && begun == Some(round) && welcome.kind == kind {
        return Plan::Over { round };
    }
    let unfinished = round > 0 && !welcome.complete && welcome.kind == kind;
    Plan::Move { round: if unfinished { round } else { round.saturating_add(1) } }
}

/// How long after a round the next begins, unless somebody asks for it: half of what the last one took, so that
/// rounds become short, but between one hour and twelve.
pub fn pause_after(took: Duration) -> Duration {
    (took / 2).clamp(LEAST, MOST)
}

/// The copy that was done last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// When it began to read.
    pub began: Timestamp,
    /// When both ends agreed.
    pub ended: Timestamp,
    /// Bytes on the line that a day's changes cost, as it was measured; unknown after the first round.
    pub churn: Option<u64>,
}

impl Past {
    /// What is remembered of a copy which sent `wire` bytes. What it sent had changed since the one before began to
    /// read; of the first that says nothing.
    pub fn after(before: Option<Self>, began: Timestamp, ended: Timestamp, wire: u64) -> Self {
        let churn = before.and_then(|before| {
            // Too short a time would make a day's worth of one write.
            let time = began.duration_since(before.began).max(SignedDuration::from_mins(1)).as_secs();
            u64::try_from(i128::from(wire) * 86_400 / i128::from(time)).ok()
        });
        Self { began, ended, churn }
    }

    /// When the next one begins: after a fixed time, or by itself.
    pub fn next(&self, every: Option<Duration>) -> Timestamp {
        let took = Duration::try_from(self.ended.duration_since(self.began)).unwrap_or_default();
        let pause = every.unwrap_or_else(|| pause_after(took));
        let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
        self.ended.saturating_add(pause).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_in_a_day_is_what_a_round_sent_for_the_time_since_the_one_before() {
        let at = |hours: i64| Timestamp::from_second(hours * 3600).unwrap();
        let first = Past::after(None, at(0), at(10), 5_000_000);
        assert_eq!(first.churn, None);
        assert_eq!(first.next(None), at(15));
        assert_eq!(first.next(Some(Duration::from_secs(7200))), at(12));
        let second = Past::after(Some(first), at(12), at(13), 1_000_000);
        assert_eq!(second.churn, Some(2_000_000));
        assert_eq!(second.next(None), at(14));
        // A clock that was set back ends nothing.
        assert_eq!(Past::after(Some(second), at(1), at(0), 1).churn, Some(1440));
        assert_eq!(Past::after(Some(second), at(1), at(0), 1).next(None), at(1));
    }

    fn welcome(round: u32, kind: RoundKind, complete: bool) -> Welcome {
        Welcome {
            revision: 1,
            features: 0,
            window: 1,
            transfer: [0; 16],
            round,
            kind,
            complete,
            watermark: 0,
            software: String::new(),
        }
    }

    #[test]
    fn an_unfinished_round_goes_on_and_a_finished_one_is_followed_by_the_next() {
        use RoundKind::{Copy, Proof};
        let cases = [
            (welcome(0, Copy, false), Copy, None, Plan::Move { round: 1 }),
            (welcome(1, Copy, false), Copy, None, Plan::Move { round: 1 }),
            (welcome(1, Copy, true), Copy, None, Plan::Move { round: 2 }),
            (welcome(1, Copy, false), Proof, None, Plan::Move { round: 2 }),
            (welcome(2, Proof, false), Proof, Some(2), Plan::Move { round: 2 }),
            // The agent died before it heard the answer, or another began: only its own round is over for it.
            (welcome(2, Copy, true), Copy, Some(1), Plan::Move { round: 3 }),
            (welcome(2, Copy, true), Copy, Some(2), Plan::Over { round: 2 }),
        ];
        for (welcome, kind, begun, expected) in cases {
            assert_eq!(plan(&welcome, kind, begun), expected, "{welcome:?} {kind:?} {begun:?}");
        }
    }

    #[test]
    fn rounds_come_between_every_hour_and_twice_a_day() {
        assert_eq!(pause_after(Duration::from_secs(60)), LEAST);
        assert_eq!(pause_after(Duration::from_secs(6 * 3600)), Duration::from_secs(3 * 3600));
        assert_eq!(pause_after(Duration::from_secs(99 * 3600)), MOST);
    }
}
