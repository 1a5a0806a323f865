//! The line of a site: what its calendar allows, and what a person has said since.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::calendar::{Calendar, Rate, lower};

/// What a person has said about a line; it goes before the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// Nothing is moved.
    Pause,
    /// This cap, at all hours.
    Cap(Rate),
}

/// What was said, and until when it holds; for ever when that is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// What.
    pub word: Word,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Said {
    fn holds(&self, at: Timestamp) -> bool {
        self.until.is_none_or(|until| at < until)
    }

    fn cap(&self) -> Rate {
        match self.word {
            Word::Pause => Rate::ZERO,
            Word::Cap(cap) => cap,
        }
    }
}

/// The line of a site.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// What holds every week.
    pub calendar: Calendar,
    /// What was said last.
    pub said: Option<Said>,
}

impl Line {
    /// The cap at this moment; `None` is no cap.
    pub fn cap_at(&self, at: Timestamp) -> Option<Rate> {
        match &self.said {
            Some(said) if said.holds(at) => Some(said.cap()),
            _ => self.calendar.cap_at(at),
        }
    }

    /// Whether a person has stopped it.
    pub fn is_paused(&self, at: Timestamp) -> bool {
        self.said.is_some_and(|said| said.word == Word::Pause && said.holds(at))
    }

    /// When the cap becomes another one, or may do so; `None` when it never does.
    pub fn next_change(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.said {
            Some(said) if said.holds(after) => said.until,
            _ => self.calendar.next_change(after),
        }
    }

    /// The lowest cap from one moment to another.
    pub fn lowest(&self, from: Timestamp, until: Timestamp) -> Option<Rate> {
        match &self.said {
            Some(said) if said.holds(from) => match said.until.filter(|end| *end < until) {
                Some(end) => lower(Some(said.cap()), self.calendar.lowest(end, until)),
                None => Some(said.cap()),
            },
            _ => self.calendar.lowest(from, until),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn what_a_person_says_goes_before_the_calendar_until_it_ends() {
        let start: Timestamp = "2026-03-02T10:00:00Z".parse().unwrap();
        let hour = SignedDuration::from_hours(1);
        let slow = Rate::bits(1_000_000);
        let mut line = Line { calendar: Calendar::constant(Some(slow)), said: None };
        assert_eq!((line.cap_at(start), line.next_change(start)), (Some(slow), None));

        let fast = Rate::bits(9_000_000);
        line.said = Some(Said { word: Word::Cap(fast), until: Some(start + hour) });
        assert_eq!(line.cap_at(start), Some(fast));
        assert_eq!(line.cap_at(start + hour), Some(slow));
        assert_eq!(line.next_change(start), Some(start + hour));
        assert_eq!(line.lowest(start, start + hour), Some(fast));
        // A lease that would outlast the word gets no more than what holds afterwards.
        assert_eq!(line.lowest(start, start + hour * 2), Some(slow));

        line.said = Some(Said { word: Word::Pause, until: None });
        assert!(line.is_paused(start + hour * 1000));
        assert_eq!(line.cap_at(start), Some(Rate::ZERO));
        assert_eq!(line.next_change(start), None);
    }
}
