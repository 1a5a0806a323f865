//! How much of its line a site gives to the mover, and when.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// Windows that a calendar may have.
const MAX_HOURS: usize = 64;
/// Nothing that repeats every week is still new after so many days.
const LOOK_AHEAD_DAYS: usize = 9;
/// Bytes of content in a full frame of an Ethernet, and of the frame: what a line carries is more than what is sent.
const CONTENT_OF_FRAME: u64 = 1448;
const FRAME: u64 = 1514;

/// Bits each second, on the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(u64);

/// A text that is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no rate: write for example \"10 Mbit/s\", \"800 kbit/s\" or \"0 bit/s\"")]
pub struct BadRate(String);

impl Rate {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many bits each second.
    pub fn bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bytes of a TCP connection each second, so that the line carries no more than this with all headers.
    pub fn content(self) -> u64 {
        let bytes = u128::from(self.0) * u128::from(CONTENT_OF_FRAME) / u128::from(8 * FRAME);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let bad = || BadRate(text.into());
        let short = text.trim().trim_end_matches("/s").trim_end();
        let digits = short.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, unit) = short.split_at(digits);
        let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "bit" => 1,
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            _ => return Err(bad()),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let part_unit = 10_u64.checked_pow(u32::try_from(part.len()).map_err(|_| bad())?).ok_or_else(bad)?;
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let part: u64 = if part.is_empty() { 0 } else { part.parse().map_err(|_| bad())? };
        let part = part.checked_mul(unit).ok_or_else(bad)? / part_unit;
        whole.checked_mul(unit).and_then(|bits| bits.checked_add(part)).map(Self).ok_or_else(bad)
    }
}

impl TryFrom<String> for Rate {
    type Error = BadRate;

    fn try_from(text: String) -> Result<Self, BadRate> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            bits if bits >= 1_000_000_000 => (1_000_000_000, "Gbit/s"),
            bits if bits >= 1_000_000 => (1_000_000, "Mbit/s"),
            bits if bits >= 1_000 => (1_000, "kbit/s"),
            _ => (1, "bit/s"),
        };
        let (whole, part) = (self.0 / unit, self.0 % unit);
        if part == 0 {
            return write!(f, "{whole} {name}");
        }
        let places = unit.ilog10() as usize;
        let part = format!("{part:0places$}");
        write!(f, "{whole}.{} {name}", part.trim_end_matches('0'))
    }
}

/// The lower of two caps; `None` is no cap.
pub fn lower(one: Option<Rate>, other: Option<Rate>) -> Option<Rate> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A stretch of the week with a cap of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hours {
    days: Vec<Weekday>,
    from: Time,
    to: Time,
    cap: Option<Rate>,
}

/// The caps of a site over the week, by the clock of its place.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Calendar {
    zone: TimeZone,
    otherwise: Option<Rate>,
    hours: Vec<Hours>,
}

/// As a person writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default = "rome")]
    timezone: String,
    #[serde(default)]
    cap: Option<Rate>,
    #[serde(default)]
    hours: Vec<WrittenHours>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHours {
    days: Vec<Day>,
    from: Time,
    to: Time,
    #[serde(default)]
    cap: Option<Rate>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

fn rome() -> String {
    "Europe/Rome".into()
}

/// A calendar that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub enum BadCalendar {
    /// A place that has no clock.
    #[error("{0:?} is no time zone: write for example \"Europe/Rome\"")]
    Zone(String),
    /// A window on no day.
    #[error("the hours from {0} have no days: name some of mon, tue, wed, thu, fri, sat, sun")]
    NoDays(Time),
    /// Too many windows.
    #[error("more than {MAX_HOURS} hours: let fewer cover more days")]
    TooMany,
}

impl TryFrom<Written> for Calendar {
    type Error = BadCalendar;

    fn try_from(written: Written) -> Result<Self, BadCalendar> {
        if written.hours.len() > MAX_HOURS {
            return Err(BadCalendar::TooMany);
        }
        let hours = written.hours.into_iter().map(|hours| {
            if hours.days.is_empty() {
                return Err(BadCalendar::NoDays(hours.from));
            }
            let days = hours.days.into_iter().map(weekday).collect();
            Ok(Hours { days, from: hours.from, to: hours.to, cap: hours.cap })
        });
        Ok(Self {
            zone: TimeZone::get(&written.timezone).map_err(|_| BadCalendar::Zone(written.timezone))?,
            otherwise: written.cap,
            hours: hours.collect::<Result<_, _>>()?,
        })
    }
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

impl Default for Calendar {
    /// No cap at any time.
    fn default() -> Self {
        Self { zone: TimeZone::UTC, otherwise: None, hours: Vec::new() }
    }
}

impl Calendar {
    /// The same cap at all times.
    pub fn constant(cap: Option<Rate>) -> Self {
        Self { otherwise: cap, ..Self::default() }
    }

    /// The clock of the place.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The cap at this moment; `None` is no cap.
    pub fn cap_at(&self, at: Timestamp) -> Option<Rate> {
        let today = self.zone.to_datetime(at).date();
        let days = [today.yesterday().ok(), Some(today)];
        let holds = |hours: &&Hours| {
            days.iter()
                .flatten()
                .filter_map(|day| self.stretch(hours, *day))
                .any(|(from, to)| from <= at && at < to)
        };
        self.hours.iter().find(holds).map_or(self.otherwise, |hours| hours.cap)
    }

    /// When the cap becomes another one; `None` when it never does.
    pub fn next_change(&self, after: Timestamp) -> Option<Timestamp> {
        let now = self.cap_at(after);
        let first = self.zone.to_datetime(after).date();
        let first = first.yesterday().unwrap_or(first);
        let mut bounds: Vec<Timestamp> = first
            .series(jiff::Span::new().days(1))
            .take(LOOK_AHEAD_DAYS)
            .flat_map(|day| self.hours.iter().filter_map(move |hours| self.stretch(hours, day)))
            .flat_map(|(from, to)| [from, to])
            .filter(|bound| *bound > after)
            .collect();
        bounds.sort_unstable();
        bounds.into_iter().find(|bound| self.cap_at(*bound) != now)
    }

    /// The lowest cap from one moment to another.
    pub fn lowest(&self, from: Timestamp, until: Timestamp) -> Option<Rate> {
        let mut lowest = self.cap_at(from);
        let mut at = from;
        while let Some(change) = self.next_change(at).filter(|change| *change < until) {
            lowest = lower(lowest, self.cap_at(change));
            at = change;
        }
        lowest
    }

    /// From when to when these hours hold that begin on this day; by moments and not by the face of the clock, so
    /// that no hour is counted twice or left out in the nights when clocks are changed.
    fn stretch(&self, hours: &Hours, day: Date) -> Option<(Timestamp, Timestamp)> {
        if !hours.days.contains(&day.weekday()) {
            return None;
        }
        let last = if hours.to > hours.from { day } else { day.tomorrow().ok()? };
        let moment = |day: Date, time| self.zone.to_timestamp(day.to_datetime(time)).ok();
        Some((moment(day, hours.from)?, moment(last, hours.to)?))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn office() -> Calendar {
        serde_json::from_value(serde_json::json!({
            "timezone": "Europe/Rome",
            "cap": "100 Mbit/s",
            "hours": [
                {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "07:30", "to": "19:00", "cap": "10 Mbit/s"},
                {"days": ["sun"], "from": "23:00", "to": "02:30", "cap": "0 bit/s"},
            ],
        }))
        .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse::<jiff::Zoned>().unwrap().timestamp()
    }

    fn mbit(count: u64) -> Option<Rate> {
        Some(Rate::bits(count * 1_000_000))
    }

    #[test]
    fn little_by_day_much_by_night_nothing_while_the_back_up_runs() {
        let calendar = office();
        for (moment, cap) in [
            ("2026-03-02T07:29:59[Europe/Rome]", mbit(100)),
            ("2026-03-02T07:30:00[Europe/Rome]", mbit(10)),
            ("2026-03-02T18:59:59[Europe/Rome]", mbit(10)),
            ("2026-03-02T19:00:00[Europe/Rome]", mbit(100)),
            ("2026-03-07T12:00:00[Europe/Rome]", mbit(100)),
            ("2026-03-08T22:59:00[Europe/Rome]", mbit(100)),
            ("2026-03-08T23:00:00[Europe/Rome]", mbit(0)),
            ("2026-03-09T02:29:00[Europe/Rome]", mbit(0)),
            ("2026-03-09T02:30:00[Europe/Rome]", mbit(100)),
        ] {
            assert_eq!(calendar.cap_at(at(moment)), cap, "{moment}");
        }
    }

    #[test]
    fn the_nights_when_clocks_change_have_no_gap_and_no_echo() {
        let calendar = office();
        // In spring 02:30 does not exist; it then is 03:30.
        assert_eq!(
            calendar.next_change(at("2026-03-29T23:30:00[Europe/Rome]")),
            Some(at("2026-03-30T02:30:00[Europe/Rome]"))
        );
        let nightly: Calendar = serde_json::from_value(serde_json::json!({
            "hours": [{"days": ["sun"], "from": "02:30", "to": "02:45", "cap": "1 Mbit/s"}],
        }))
        .unwrap();
        // In autumn 02:30 comes twice, and the quarter of an hour is held once.
        let mut held = 0;
        let mut moment = at("2026-10-25T00:00:00[Europe/Rome]");
        while moment < at("2026-10-25T06:00:00[Europe/Rome]") {
            held += i32::from(nightly.cap_at(moment) == mbit(1));
            moment += SignedDuration::from_mins(1);
        }
        assert_eq!(held, 15);
    }

    proptest! {
        #[test]
        fn between_two_changes_the_cap_stands_still(
            start in 1_772_000_000_i64..1_830_000_000,
            parts in prop::collection::vec(0.0..1.0_f64, 1..20),
        ) {
            let calendar = office();
            let start = Timestamp::from_second(start).unwrap();
            let end = calendar.next_change(start).unwrap();
            let cap = calendar.cap_at(start);
            let len = end.duration_since(start).as_secs_f64();
            for part in parts {
                let between = start + SignedDuration::from_secs_f64(len * part * 0.999);
                prop_assert_eq!(calendar.cap_at(between), cap, "{}", between);
            }
            prop_assert!(calendar.cap_at(end) != cap);
            prop_assert_eq!(calendar.lowest(start, end), cap);
            let behind = end + SignedDuration::from_secs(1);
            prop_assert_eq!(calendar.lowest(start, behind), lower(cap, calendar.cap_at(end)));
        }

        #[test]
        fn a_rate_is_read_as_it_is_written(bits in any::<u64>()) {
            let rate = Rate::bits(bits);
            prop_assert_eq!(rate.to_string().parse::<Rate>(), Ok(rate));
        }

        #[test]
        fn no_text_does_harm(text in ".{0,30}") {
            let _ = text.parse::<Rate>();
        }
    }

    #[test]
    fn rates_are_bits_and_nothing_else() {
        assert_eq!("10Mbit/s".parse(), Ok(Rate::bits(10_000_000)));
        assert_eq!("1.5 Mbit".parse(), Ok(Rate::bits(1_500_000)));
        for bad in ["10", "10 MB/s", "-1 kbit/s", "fast", "", "99999999999 Gbit/s", "1. Mbit/s2"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        // 10 Mbit/s of line are a little less of content.
        assert_eq!(Rate::bits(10_000_000).content(), 1_195_508);
    }

    #[test]
    fn a_calendar_that_cannot_be_meant_is_refused_with_words() {
        let read = |value| serde_json::from_value::<Calendar>(value).unwrap_err().to_string();
        assert!(read(serde_json::json!({"timezone": "Italy/Rome"})).contains("Europe/Rome"));
        let nowhere = serde_json::json!({"hours": [{"days": [], "from": "01:00", "to": "02:00"}]});
        assert!(read(nowhere).contains("mon, tue"));
        assert!(read(serde_json::json!({"cap": "10 MB/s"})).contains("10 Mbit/s"));
        assert!(read(serde_json::json!({"kap": "10 Mbit/s"})).contains("kap"));
    }
}
