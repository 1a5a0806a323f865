//! When a move will be ready, in words and as data, and why it takes longer than was said before.

use std::fmt;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::line::Line;

/// Nothing is foretold for longer than this.
const HORIZON: SignedDuration = SignedDuration::from_hours(24 * 90);
const DAY: f64 = 86_400.0;
const WEEK: SignedDuration = SignedDuration::from_hours(24 * 7);
/// A forecast that moves by less has not changed.
const NOTICED: SignedDuration = SignedDuration::from_mins(30);
/// The hours of a night: from the evening on, and before the morning.
const EVENING: i8 = 20;
const MORNING: i8 = 7;

/// What a forecast is made from. Bytes are those that the line carries, after packing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Facts {
    /// Bytes that are still to be sent.
    pub left: u64,
    /// Bytes each second that were measured at most, whatever the cap; unknown when absent.
    pub measured: Option<u64>,
    /// Bytes that change at the source in a day, and so have to be sent again.
    pub churn: u64,
    /// The part of the site's line that this server has: from 0 to 1.
    pub share: f64,
}

/// When it will be ready.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Forecast {
    /// At this moment, if nothing changes.
    Ready {
        /// When.
        at: Timestamp,
    },
    /// More changes than the line carries.
    Churn {
        /// Bytes that change in a day.
        #[serde(rename = "changedEachDay")]
        changed: u64,
        /// Bytes that the line carries in a day, as the mean of a week.
        #[serde(rename = "carriedEachDay")]
        carried: u64,
    },
    /// The line carries nothing: it is paused, or its calendar never opens.
    Stopped {
        /// Whether a person has stopped it.
        paused: bool,
    },
    /// Later than anything is foretold.
    Far,
}

/// The forecast.
pub fn forecast(now: Timestamp, line: &Line, facts: &Facts) -> Forecast {
    let end = now.saturating_add(HORIZON).unwrap_or(Timestamp::MAX);
    let churn = facts.churn as f64 / DAY;
    let mut left = facts.left as f64;
    let mut at = now;
    while at < end {
        let next = line.next_change(at).map_or(end, |next| next.min(end));
        let seconds = next.duration_since(at).as_secs_f64();
        let net = rate(line, facts, at) - churn;
        if left <= 0.0 {
            return Forecast::Ready { at };
        }
        if net > 0.0 && left / net <= seconds {
            let after = SignedDuration::from_secs_f64(left / net);
            return Forecast::Ready { at: at.saturating_add(after).unwrap_or(end) };
        }
        left -= net * seconds;
        at = next;
    }
    let carried = carried(line, facts, now, now.saturating_add(WEEK).unwrap_or(end)) / 7.0;
    if carried <= 0.0 {
        return Forecast::Stopped { paused: line.is_paused(now) };
    }
    if facts.churn as f64 >= carried {
        return Forecast::Churn { changed: facts.churn, carried: carried as u64 };
    }
    Forecast::Far
}

fn rate(line: &Line, facts: &Facts, at: Timestamp) -> f64 {
    let measured = facts.measured.map_or(f64::INFINITY, |rate| rate as f64);
    match line.cap_at(at) {
        Some(cap) => (cap.content() as f64 * facts.share).min(measured),
        // Without a cap and without a measure nothing is known: a usual line is supposed, 10 Mbit/s.
        None if measured.is_infinite() => 1_250_000.0 * facts.share,
        None => measured,
    }
}

fn carried(line: &Line, facts: &Facts, from: Timestamp, until: Timestamp) -> f64 {
    let (mut at, mut sum) = (from, 0.0);
    while at < until {
        let next = line.next_change(at).map_or(until, |next| next.min(until));
        sum += rate(line, facts, at) * next.duration_since(at).as_secs_f64();
        at = next;
    }
    sum
}

impl Forecast {
    /// For people, by the clock of the place.
    pub fn words(&self, zone: &TimeZone) -> String {
        match self {
            Self::Ready { at } => format!("ready {}", Moment { at: *at, zone }),
            Self::Churn { changed, carried } => format!(
                "never at this pace: {} change at the source each day, and the line carries {}; raise the cap, \
                 widen its hours, or stop what rewrites so much",
                Bytes(*changed),
                Bytes(*carried)
            ),
            Self::Stopped { paused: true } => {
                "not while the site is paused: `conme-mover gateway resume` lets it go on".into()
            }
            Self::Stopped { paused: false } => {
                "never: the calendar of the site gives it nothing at any hour; raise its cap".into()
            }
            Self::Far => "in more than three months: raise the cap or widen its hours".into(),
        }
    }
}

struct Moment<'a> {
    at: Timestamp,
    zone: &'a TimeZone,
}

impl fmt::Display for Moment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.zone.to_datetime(self.at);
        let (date, hour) = (local.date(), local.hour());
        let time = local.strftime("%H:%M");
        let evening = match hour {
            EVENING.. => Some(date),
            0..MORNING => date.yesterday().ok(),
            _ => None,
        };
        match evening.and_then(|evening| Some((evening, evening.tomorrow().ok()?))) {
            Some((from, to)) => write!(
                f,
                "in the night of {} to {}, towards {time}",
                from.strftime("%A %-d %B"),
                to.strftime("%A %-d")
            ),
            None => write!(f, "on {}, towards {time}", date.strftime("%A %-d %B")),
        }
    }
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000_000 => write!(f, "{:.0} kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.0} MB", bytes / 1e6),
            _ => write!(f, "{:.1} GB", bytes / 1e9),
        }
    }
}

/// Why a move will be ready later than was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// More changes at the source.
    Churn,
    /// The line carries less than it did.
    Measured,
    /// Other servers of the site have a part of the line.
    Share,
    /// The cap or its hours are others, or a person has paused the site.
    Line,
    /// Less was sent since than was foreseen: an interruption, or more to send than was known.
    Behind,
}

impl Cause {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Churn => "more changes at the source each day than before",
            Self::Measured => "the line carries less than before: look what else uses it",
            Self::Share => "other servers of the site share the line",
            Self::Line => "the cap of the site or its hours were changed",
            Self::Behind => "less was sent than foreseen: the agent or its connection stood still for a time",
        }
    }
}

/// Why the forecast of now is later than the one before; `None` when it is not. What matters most is found by asking
/// what the forecast would be if only this had stayed as it was.
pub fn why_later(
    now: Timestamp,
    before: (&Line, &Facts),
    was: &Forecast,
    after: (&Line, &Facts),
) -> Option<Cause> {
    let end = |forecast: &Forecast| match forecast {
        Forecast::Ready { at } => *at,
        _ => now.saturating_add(HORIZON).unwrap_or(Timestamp::MAX),
    };
    let (line, facts) = after;
    let is = end(&forecast(now, line, facts));
    let late = is.duration_since(end(was));
    if late <= NOTICED {
        return None;
    }
    let (old_line, old) = before;
    let instead = [
        (Cause::Churn, line, Facts { churn: old.churn, ..*facts }),
        (Cause::Measured, line, Facts { measured: old.measured, ..*facts }),
        (Cause::Share, line, Facts { share: old.share, ..*facts }),
        (Cause::Line, old_line, *facts),
    ];
    let best = instead
        .into_iter()
        .map(|(cause, line, facts)| (end(&forecast(now, line, &facts)), cause))
        .min_by_key(|(at, _)| *at)?;
    // What explains less than half of it is not the reason.
    Some(if is.duration_since(best.0) * 2 >= late { best.1 } else { Cause::Behind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::calendar::{Calendar, Rate};
    use crate::core::line::{Said, Word};

    fn nights() -> Line {
        let calendar: Calendar = serde_json::from_value(serde_json::json!({
            "timezone": "Europe/Rome",
            "cap": "0 bit/s",
            "hours": [{"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "from": "22:00", "to": "06:00",
                "cap": "100 Mbit/s"}],
        }))
        .unwrap();
        Line { calendar, said: None }
    }

    fn at(text: &str) -> Timestamp {
        text.parse::<jiff::Zoned>().unwrap().timestamp()
    }

    const FACTS: Facts = Facts { left: 500_000_000_000, measured: None, churn: 0, share: 1.0 };

    #[test]
    fn half_a_terabyte_by_night_is_ready_in_the_second_one() {
        // 100 Mbit/s carry 344 GB in a night of eight hours.
        let monday = at("2026-03-02T12:00:00[Europe/Rome]");
        let line = nights();
        let forecast = forecast(monday, &line, &FACTS);
        let Forecast::Ready { at: ready } = forecast else { panic!("{forecast:?}") };
        assert_eq!(
            forecast.words(line.calendar.zone()),
            "ready in the night of Tuesday 3 March to Wednesday 4, towards 01:37"
        );
        assert!(
            ready > at("2026-03-04T01:30:00[Europe/Rome]") && ready < at("2026-03-04T01:45:00[Europe/Rome]")
        );
    }

    #[test]
    fn by_day_it_says_the_day() {
        let line = Line { calendar: Calendar::constant(Some(Rate::bits(100_000_000))), said: None };
        let forecast =
            forecast(at("2026-03-02T12:00:00[UTC]"), &line, &Facts { left: 1_000_000_000, ..FACTS });
        assert_eq!(forecast.words(line.calendar.zone()), "ready on Monday 2 March, towards 12:01");
        assert_eq!(
            super::forecast(at("2026-03-02T12:00:00[UTC]"), &line, &Facts { left: 0, ..FACTS }),
            Forecast::Ready { at: at("2026-03-02T12:00:00[UTC]") }
        );
    }

    #[test]
    fn what_changes_faster_than_the_line_carries_is_said_so() {
        let forecast = forecast(
            at("2026-03-02T12:00:00[Europe/Rome]"),
            &nights(),
            &Facts { churn: 400_000_000_000, ..FACTS },
        );
        assert!(
            matches!(forecast, Forecast::Churn { carried: 340_000_000_000..350_000_000_000, .. }),
            "{forecast:?}"
        );
        assert!(forecast.words(&TimeZone::UTC).contains("400.0 GB change at the source each day"));
        // Somewhat less only delays it.
        let slower = Facts { churn: 200_000_000_000, ..FACTS };
        assert!(matches!(
            super::forecast(at("2026-03-02T12:00:00[Europe/Rome]"), &nights(), &slower),
            Forecast::Ready { at } if at > "2026-03-04T12:00:00Z".parse().unwrap()
        ));
    }

    #[test]
    fn a_paused_site_and_one_that_never_opens_are_told_apart() {
        let now = at("2026-03-02T12:00:00[UTC]");
        let mut line = Line { calendar: Calendar::constant(Some(Rate::ZERO)), said: None };
        assert_eq!(forecast(now, &line, &FACTS), Forecast::Stopped { paused: false });
        line.said = Some(Said { word: Word::Pause, until: None });
        assert_eq!(forecast(now, &line, &FACTS), Forecast::Stopped { paused: true });
        assert!(forecast(now, &line, &FACTS).words(&TimeZone::UTC).contains("gateway resume"));
        // A pause that ends is waited for.
        let until = Some(now + SignedDuration::from_hours(10));
        let line = Line {
            calendar: Calendar::constant(Some(Rate::bits(100_000_000))),
            said: Some(Said { word: Word::Pause, until }),
        };
        let facts = Facts { left: 1_000_000_000, ..FACTS };
        assert!(matches!(forecast(now, &line, &facts), Forecast::Ready { at } if Some(at) > until));
    }

    #[test]
    fn the_reason_why_it_slips_is_the_one_that_changed_most() {
        let now = at("2026-03-02T12:00:00[Europe/Rome]");
        let line = nights();
        let was = forecast(now, &line, &FACTS);
        let later = |line_now: &Line, facts: &Facts| why_later(now, (&line, &FACTS), &was, (line_now, facts));
        assert_eq!(later(&line, &FACTS), None);
        assert_eq!(later(&line, &Facts { churn: 200_000_000_000, ..FACTS }), Some(Cause::Churn));
        assert_eq!(later(&line, &Facts { measured: Some(4_000_000), ..FACTS }), Some(Cause::Measured));
        assert_eq!(later(&line, &Facts { share: 0.2, ..FACTS }), Some(Cause::Share));
        assert_eq!(later(&line, &Facts { left: 900_000_000_000, ..FACTS }), Some(Cause::Behind));
        let paused = Line { said: Some(Said { word: Word::Pause, until: None }), ..line.clone() };
        assert_eq!(later(&paused, &FACTS), Some(Cause::Line));
        // Both changed; one hardly.
        let both = Facts { churn: 1_000_000, share: 0.3, ..FACTS };
        assert_eq!(later(&line, &both), Some(Cause::Share));
    }
}
