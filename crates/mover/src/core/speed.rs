//! How fast something gets on, and when it will be done, by what the last seconds have shown.

use std::collections::VecDeque;
use std::time::Duration;

/// What is looked back on: short enough to follow a cap that was changed, long enough not to flicker.
const SPAN: Duration = Duration::from_secs(20);
/// Between two moments that are remembered.
const STEP: Duration = Duration::from_millis(200);
/// Before this nothing is said.
const LEAST: Duration = Duration::from_millis(600);

/// Moments of the last seconds: when, how far, and how many bytes on the line.
#[derive(Debug, Default)]
pub struct Speed(VecDeque<(Duration, u64, u64)>);

impl Speed {
    /// At this moment, counted from any beginning, so much was done, with so many bytes on the line. What goes back is
    /// another pass: what was before is forgotten.
    pub fn note(&mut self, now: Duration, done: u64, wire: u64) {
        if self.0.back().is_some_and(|(at, before, sent)| done < *before || wire < *sent || now < *at) {
            self.0.clear();
        }
        // The last moment moves along until it is far enough from the one before.
        if let [.., before, last] = self.0.make_contiguous()
            && last.0.saturating_sub(before.0) < STEP
        {
            self.0.pop_back();
        }
        self.0.push_back((now, done, wire));
        while self.0.get(1).is_some_and(|(at, ..)| now.saturating_sub(*at) >= SPAN) {
            self.0.pop_front();
        }
    }

    fn since(&self) -> Option<(Duration, u64, u64)> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let time = last.0 - first.0;
        (time >= LEAST).then(|| (time, last.1 - first.1, last.2 - first.2))
    }

    /// Bytes on the line, each second; none while too little is known.
    pub fn rate(&self) -> Option<u64> {
        let (time, _, wire) = self.since()?;
        Some((wire as f64 / time.as_secs_f64()).round() as u64)
    }

    /// The time until `total` is done, if it goes on like this; none while nothing moves.
    pub fn left(&self, total: u64) -> Option<Duration> {
        let (time, done, _) = self.since()?;
        let now = self.0.back()?.1;
        if done == 0 {
            return (now >= total).then_some(Duration::ZERO);
        }
        Duration::try_from_secs_f64(time.as_secs_f64() * total.saturating_sub(now) as f64 / done as f64).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_last_seconds_count_and_not_how_it_was_long_ago() {
        let mut speed = Speed::default();
        speed.note(at(0), 0, 0);
        assert_eq!((speed.rate(), speed.left(100)), (None, None));
        for second in 1..=60 {
            speed.note(at(second * 1000), second * 10, second * 1000);
        }
        assert_eq!((speed.rate(), speed.left(700)), (Some(1000), Some(at(10_000))));
        // The line becomes ten times faster; after a while nothing else is known.
        for second in 61..=90 {
            speed.note(at(second * 1000), 600 + (second - 60) * 100, 60_000 + (second - 60) * 10_000);
        }
        assert_eq!((speed.rate(), speed.left(3700)), (Some(10_000), Some(at(1000))));
    }

    #[test]
    fn many_words_in_a_moment_are_one_and_another_pass_begins_anew() {
        let mut speed = Speed::default();
        for milli in 0..100_000 {
            speed.note(at(milli), milli, 2 * milli);
        }
        assert!(speed.0.len() < 120, "{} moments", speed.0.len());
        assert_eq!(speed.rate(), Some(2000));
        speed.note(at(100_000), 5, 0);
        assert_eq!((speed.rate(), speed.left(10)), (None, None));
        speed.note(at(102_000), 5, 0);
        assert_eq!((speed.rate(), speed.left(10), speed.left(5)), (Some(0), None, Some(Duration::ZERO)));
    }
}
