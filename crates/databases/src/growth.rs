//! When a database has reached its size: decided from figures alone.

use crate::Growth;

/// Below this share, what was stopped may grow again: less than 100, so that it does not go back and forth.
const FREE_PERCENT: u128 = 95;
/// Beyond this share, whoever goes on writing to a stopped database is shut out.
const CLOSED_PERCENT: u128 = 110;
/// The same while a table is being rewritten, which is how space is given back and needs a second copy meanwhile.
const CLOSED_WHILE_REWRITING_PERCENT: u128 = 210;

/// What held until now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Before {
    /// Whether it could grow.
    pub growth: Growth,
    /// Its size in bytes when it was stopped; absent where that is not known.
    pub stopped_at: Option<u64>,
}

/// Whether a database of `bytes` may grow. `rewriting` is whether a `VACUUM FULL` or the like is under way. Without
/// `max_bytes` it always may.
pub fn growth(bytes: u64, max_bytes: Option<u64>, before: Before, rewriting: bool) -> Growth {
    let Some(max) = max_bytes else { return Growth::Free };
    let reaches = |percent: u128, of: u64| u128::from(bytes) * 100 >= u128::from(of) * percent;
    // A size that was lowered in the manifest is nobody's fault: what counts is what has been added since.
    let start = max.max(before.stopped_at.unwrap_or(bytes));
    let limit = if rewriting { CLOSED_WHILE_REWRITING_PERCENT } else { CLOSED_PERCENT };
    let goes_on = before.growth >= Growth::Stopped && reaches(limit, start);
    if goes_on || before.growth == Growth::Closed && reaches(100, max) {
        Growth::Closed
    } else if reaches(100, max) || before.growth >= Growth::Stopped && reaches(FREE_PERCENT, max) {
        Growth::Stopped
    } else {
        Growth::Free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Growth::{Closed, Free, Stopped};
    use proptest::prelude::*;

    fn at(bytes: u64, before: Growth) -> Growth {
        let stopped_at = (before >= Stopped).then_some(100);
        growth(bytes, Some(100), Before { growth: before, stopped_at }, false)
    }

    #[test]
    fn a_database_is_stopped_at_its_size_and_freed_with_some_room() {
        assert_eq!([at(94, Free), at(99, Free), at(100, Free)], [Free, Free, Stopped]);
        assert_eq!([at(100, Stopped), at(95, Stopped), at(94, Stopped)], [Stopped, Stopped, Free]);
    }

    #[test]
    fn who_goes_on_is_shut_out_until_there_is_room() {
        assert_eq!([at(109, Stopped), at(110, Stopped)], [Stopped, Closed]);
        assert_eq!([at(100, Closed), at(99, Closed), at(94, Closed)], [Closed, Stopped, Free]);
    }

    #[test]
    fn a_size_that_was_lowered_shuts_nobody_out() {
        assert_eq!(at(500, Free), Stopped);
        let stopped_at = |bytes| Before { growth: Stopped, stopped_at: bytes };
        assert_eq!(growth(500, Some(100), stopped_at(Some(500)), false), Stopped);
        assert_eq!(growth(500, Some(100), stopped_at(None), false), Stopped);
        assert_eq!(growth(550, Some(100), stopped_at(Some(500)), false), Closed);
    }

    #[test]
    fn clearing_up_may_need_room_for_a_moment() {
        let before = Before { growth: Stopped, stopped_at: Some(100) };
        assert_eq!(growth(180, Some(100), before, true), Stopped);
        assert_eq!(growth(180, Some(100), before, false), Closed);
        assert_eq!(growth(210, Some(100), before, true), Closed);
    }

    proptest! {
        #[test]
        fn a_larger_one_never_has_more_freedom(
            a: u64, b: u64, max in 1_u64.., step in 0_usize..3, stopped_at: u64, rewriting: bool,
        ) {
            let before = Before { growth: [Free, Stopped, Closed][step], stopped_at: Some(stopped_at) };
            let (small, large) = (a.min(b), a.max(b));
            prop_assert!(growth(small, Some(max), before, rewriting) <= growth(large, Some(max), before, rewriting));
            prop_assert_eq!(growth(large, None, before, rewriting), Free);
        }
    }
}
