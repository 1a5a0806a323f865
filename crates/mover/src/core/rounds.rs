//! Which round comes next, and when.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

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
