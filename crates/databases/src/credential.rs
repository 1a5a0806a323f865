//! When the password of an application is replaced, and when the one before it ends: decided from values alone.
//!
//! A database has two logins. A rotation opens the one that is not in force with a new password, hands it to the
//! applications, and closes the other one when nobody needs it any more. At every instant in between, the credential
//! that the applications are handed is valid.

use jiff::{SignedDuration, Timestamp};

use crate::{Login, OtherLogin};

/// The credential in force, to be remembered by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The login.
    pub login: Login,
    /// When its password was made.
    pub issued_at: Timestamp,
    /// 1 for the first credential of a database, one more with each that followed.
    pub generation: u32,
    /// The login before it, while it is still open.
    pub retiring: Option<Retiring>,
}

/// A login that has been replaced and is still open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retiring {
    /// The login.
    pub login: Login,
    /// It is not closed before this time.
    pub until: Timestamp,
}

/// What is declared about the credentials of a database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewal {
    /// A person wants every credential replaced that is older than one of these, once its time has come.
    pub requested: Vec<Timestamp>,
    /// The age at which a credential is replaced; never when absent.
    pub max_age: Option<SignedDuration>,
    /// How long the one before stays valid at least. Zero: it ends at once, with its sessions.
    pub overlap: SignedDuration,
}

/// What to do with the credential of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Nothing new: the login in force stays, and this becomes of the other.
    Stay(OtherLogin),
    /// Open the other login with a new password, then hand it out.
    Begin,
}

impl Credential {
    /// The first credential of a database.
    pub fn first(issued_at: Timestamp) -> Self {
        Self { login: Login::First, issued_at, generation: 1, retiring: None }
    }

    /// The credential that follows this one from `now` on.
    #[must_use]
    pub fn successor(&self, now: Timestamp, overlap: SignedDuration) -> Self {
        Self {
            login: self.login.other(),
            issued_at: now,
            generation: self.generation.saturating_add(1),
            retiring: Some(Retiring { login: self.login, until: now.saturating_add(overlap).unwrap_or(now) }),
        }
    }
}

impl Credential {
    /// The same by a clock that was set back since: made `now` at the latest, and the one before ends as long after that
    /// as it was to. A difference within `skew` is that of two machines, and changes nothing.
    #[must_use]
    pub fn not_from_the_future(mut self, now: Timestamp, skew: SignedDuration) -> Self {
        let ahead = self.issued_at.duration_since(now);
        if ahead > skew {
            self.issued_at = now;
            if let Some(retiring) = &mut self.retiring {
                retiring.until = retiring.until.saturating_sub(ahead).unwrap_or(now);
            }
        }
        self
    }
}

impl Renewal {
    /// Whether a credential has to be replaced.
    pub fn is_due(&self, credential: &Credential, now: Timestamp) -> bool {
        // A request for a time to come waits for it; else each new credential would be too old for it at once.
        let asked = self.requested.iter().any(|time| *time <= now && credential.issued_at < *time);
        let aged = self.max_age.is_some_and(|age| now.duration_since(credential.issued_at) >= age);
        asked || aged
    }
}

/// What to do at `now`. `handed_out` is whether everything that is known to use the database works with the credential
/// in force: a login that has been replaced stays open until then.
pub fn rotation(credential: &Credential, renewal: &Renewal, now: Timestamp, handed_out: bool) -> Rotation {
    // An overlap that has been shortened since counts: that is how a credential that leaked is ended.
    let by_now = credential.issued_at.saturating_add(renewal.overlap).unwrap_or(now);
    match &credential.retiring {
        // The other login is still needed; a rotation that is due comes after its end.
        Some(retiring) if now < retiring.until.min(by_now) => Rotation::Stay(OtherLogin::Keep),
        Some(_) if renewal.overlap <= SignedDuration::ZERO => Rotation::Stay(OtherLogin::Close),
        Some(_) if !handed_out => Rotation::Stay(OtherLogin::Keep),
        Some(_) => Rotation::Stay(OtherLogin::CloseWhenUnused),
        None if renewal.is_due(credential, now) => Rotation::Begin,
        // Whatever is open there was opened by a rotation that was given up, or by hand: nobody was handed it.
        None => Rotation::Stay(OtherLogin::Close),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn renewal(requested: Option<i64>, max_age: Option<i64>, overlap: i64) -> Renewal {
        Renewal {
            requested: requested.map(at).into_iter().collect(),
            max_age: max_age.map(SignedDuration::from_secs),
            overlap: SignedDuration::from_secs(overlap),
        }
    }

    #[test]
    fn a_clock_that_is_set_back_neither_keeps_a_login_open_for_years_nor_puts_off_the_next_rotation() {
        let (overlap, skew) = (SignedDuration::from_secs(100), SignedDuration::from_secs(10));
        let made = Credential::first(at(0)).successor(at(5000), overlap);
        let seen = made.clone().not_from_the_future(at(50), skew);
        assert_eq!((seen.issued_at, seen.generation), (at(50), 2));
        assert_eq!(seen.retiring.unwrap().until, at(150));
        for now in [4990, 5000, 9000] {
            assert_eq!(made.clone().not_from_the_future(at(now), skew), made, "{now}");
        }
    }

    #[test]
    fn a_request_speaks_of_older_credentials_only() {
        let first = Credential::first(at(0));
        let due = |requested, now| renewal(requested, None, 9).is_due(&first, at(now));
        assert!(!due(None, 1_000_000));
        assert!(due(Some(5), 6));
        assert!(!due(Some(0), 6), "it is as young as that");
        assert!(!due(Some(7), 6), "its time has not come");
        let second = first.successor(at(6), SignedDuration::from_secs(9));
        assert!(!renewal(Some(5), None, 9).is_due(&second, at(1000)), "it has been answered");
        // One for a time to come does not hide one for now.
        let both = Renewal { requested: vec![at(5), at(5000)], ..renewal(None, None, 9) };
        assert!(both.is_due(&first, at(6)) && !both.is_due(&second, at(7)) && both.is_due(&second, at(5000)));
    }

    #[test]
    fn old_age_is_reason_enough() {
        let first = Credential::first(at(0));
        assert!(!renewal(None, Some(90), 9).is_due(&first, at(89)));
        assert!(renewal(None, Some(90), 9).is_due(&first, at(90)));
    }

    #[test]
    fn the_one_before_ends_after_the_overlap_when_nobody_needs_it() {
        let second = Credential::first(at(0)).successor(at(10), SignedDuration::from_secs(5));
        assert_eq!((second.login, second.generation), (Login::Second, 2));
        let next = |overlap, now, out| rotation(&second, &renewal(Some(12), None, overlap), at(now), out);
        assert_eq!(next(5, 14, true), Rotation::Stay(OtherLogin::Keep));
        assert_eq!(next(5, 15, false), Rotation::Stay(OtherLogin::Keep), "a service still has to restart");
        assert_eq!(next(5, 15, true), Rotation::Stay(OtherLogin::CloseWhenUnused));
        assert_eq!(
            next(0, 11, false),
            Rotation::Stay(OtherLogin::Close),
            "no overlap by now: it ends at once"
        );
        // Only then comes the one that was asked for meanwhile.
        let alone = Credential { retiring: None, ..second };
        assert_eq!(rotation(&alone, &renewal(Some(12), None, 5), at(16), true), Rotation::Begin);
        assert_eq!(
            rotation(&alone, &renewal(None, None, 5), at(16), true),
            Rotation::Stay(OtherLogin::Close)
        );
    }

    proptest! {
        /// However often a rotation is asked for, and with whatever pauses, it comes to an end.
        #[test]
        fn every_request_is_answered_once(requested in 0_i64..100, overlap in 0_i64..50, pauses in proptest::collection::vec(1_i64..40, 30..40)) {
            let renewal = renewal(Some(requested), None, overlap);
            let mut credential = Credential::first(at(-1));
            let mut now = 0;
            for pause in pauses {
                now += pause;
                match rotation(&credential, &renewal, at(now), true) {
                    Rotation::Begin => credential = credential.successor(at(now), renewal.overlap),
                    Rotation::Stay(OtherLogin::Keep) => {}
                    Rotation::Stay(_) => credential.retiring = None,
                }
            }
            prop_assert!(credential.generation <= 2);
            prop_assert!(now < requested || credential.generation == 2);
        }
    }
}
