//! How fast bytes may leave: smoothly, in small quanta.

use std::time::Duration;

/// Bytes that go out at once at most.
pub const QUANTUM: usize = 16 << 10;
/// Time that a quantum takes at most, but for the slowest rates: a telephone call beside it is not disturbed.
const QUANTUM_TIME: Duration = Duration::from_millis(5);
/// A quantum that is smaller costs more than it smooths.
const SMALLEST: usize = 512;
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

    /// From now on at another rate. What was sent ahead of time at the old rate is made good at the new one: a rate
    /// that changes often is kept nevertheless, and one that rises is felt at once. A stop ends with nothing owed.
    pub fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        if self.rate == rate {
            return;
        }
        let ahead = self.free_at.saturating_sub(now);
        self.free_at = self.free_at.min(now);
        if let (Some(old), Some(new)) = (self.rate, rate)
            && old > 0
            && new > 0
        {
            self.free_at = self.free_at.saturating_add(time_for(bytes_in(ahead, old), new));
        }
        self.rate = rate;
    }

    /// When the next bytes may leave, without taking them as sent. `None` while everything is stopped.
    pub fn next(&self, now: Duration) -> Option<Duration> {
        match self.rate {
            None => Some(now),
            Some(0) => None,
            Some(_) => Some(self.free_at.max(now)),
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
        self.free_at = start.saturating_add(time_for(bytes as u64, rate));
        Some(start.max(now))
    }

    /// Bytes to send at once, so that they take no longer than a few milliseconds.
    pub fn quantum(&self) -> usize {
        match self.rate {
            None => QUANTUM,
            Some(rate) => {
                usize::try_from(bytes_in(QUANTUM_TIME, rate)).unwrap_or(QUANTUM).clamp(SMALLEST, QUANTUM)
            }
        }
    }
}

fn time_for(bytes: u64, rate: u64) -> Duration {
    let takes = u128::from(bytes).saturating_mul(1_000_000_000) / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(takes).unwrap_or(u64::MAX))
}

fn bytes_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_nanos().saturating_mul(u128::from(rate)) / 1_000_000_000).unwrap_or(u64::MAX)
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

    #[test]
    fn a_rate_that_changes_all_the_time_is_kept_nevertheless() {
        let mut pace = Pace::new(Some(1_000_000));
        let (mut now, mut sent, mut turn) = (Duration::ZERO, 0, 0);
        while now < Duration::from_secs(10) {
            turn += 1;
            pace.set_rate(Some(1_000_000 + turn % 2), now);
            match pace.next(now) {
                Some(at) if at <= now => {
                    pace.reserve(now, QUANTUM).unwrap();
                    sent += QUANTUM;
                }
                // Before the quantum is paid, the rate changes again.
                Some(at) => now += (at - now).min(Duration::from_millis(3)),
                None => unreachable!(),
            }
        }
        assert!((9_900_000..10_100_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_quantum_takes_a_few_milliseconds_at_any_usual_rate() {
        for mbit in [1_u64, 10, 50, 100, 1000] {
            let rate = mbit * 1_000_000 / 8;
            let quantum = Pace::new(Some(rate)).quantum() as u64;
            assert!(quantum * 1000 / rate <= 10, "{mbit} Mbit/s: {quantum}");
        }
        assert_eq!(Pace::new(Some(10)).quantum(), SMALLEST);
        assert_eq!(Pace::new(None).quantum(), QUANTUM);
    }
}
