//! How fast bytes may leave: smoothly, in small quanta.

use std::time::Duration;

/// Bytes that go out at once: at 10 Mbit/s this takes 13 ms, so a telephone call beside it is not disturbed.
pub const QUANTUM: usize = 16 << 10;
/// Time that was not used and may be made up for.
const SLACK: Duration = Duration::from_millis(20);

/// The pace of one connection. Time is an argument, measured from any fixed moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    rate: Option<u64>,
    free_at: Duration,
}

impl Pace {
    /// So many bytes each second; no limit when `None`. A rate of 0 stops everything.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, free_at: Duration::ZERO }
    }

    /// From now on at another rate.
    pub fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        if self.rate != rate {
            // What was reserved at the old rate is not waited for: a stop that ends has to end at once.
            self.free_at = self.free_at.min(now);
            self.rate = rate;
        }
    }

    /// When the next `bytes` may leave; they are then taken as sent. `None` while everything is stopped.
    pub fn reserve(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let rate = match self.rate {
            None => return Some(now),
            Some(0) => return None,
            Some(rate) => rate,
        };
        let start = self.free_at.max(now.saturating_sub(SLACK));
        let takes = (bytes as u128).saturating_mul(1_000_000_000) / u128::from(rate);
        self.free_at = start.saturating_add(Duration::from_nanos(u64::try_from(takes).unwrap_or(u64::MAX)));
        Some(start.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_at_a_megabyte_each_carry_ten_megabytes_and_no_burst() {
        let mut pace = Pace::new(Some(1_000_000));
        let (mut now, mut sent) = (Duration::ZERO, Vec::new());
        while now < Duration::from_secs(10) {
            now = pace.reserve(now, QUANTUM).unwrap();
            sent.push(now);
        }
        let bytes = sent.len() * QUANTUM;
        assert!((9_900_000..10_100_000).contains(&bytes), "{bytes}");
        // In no tenth of a second more than its share and what the slack allows.
        for window in sent.windows(10) {
            assert!(window[9] - window[0] >= Duration::from_millis(100), "{window:?}");
        }
    }

    #[test]
    fn a_silence_is_not_made_up_for() {
        let mut pace = Pace::new(Some(1_000_000));
        pace.reserve(Duration::ZERO, QUANTUM).unwrap();
        let later = Duration::from_secs(60);
        let at_once = (0..100).take_while(|_| pace.reserve(later, QUANTUM) == Some(later)).count();
        assert!(at_once <= 3, "{at_once}");
    }

    #[test]
    fn a_stop_holds_until_there_is_a_rate_again() {
        let mut pace = Pace::new(Some(1));
        assert!(pace.reserve(Duration::ZERO, QUANTUM).is_some());
        pace.set_rate(Some(0), Duration::from_secs(1));
        assert_eq!(pace.reserve(Duration::from_secs(2), 1), None);
        pace.set_rate(Some(1000), Duration::from_secs(3));
        assert_eq!(pace.reserve(Duration::from_secs(3), 1), Some(Duration::from_secs(3)));
    }
}
