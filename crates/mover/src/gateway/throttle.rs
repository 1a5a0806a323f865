//! Lets bytes pass at a pace that others may change at any time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::core::pace::Pace;

/// The pace of one server, over all its connections.
#[derive(Debug)]
pub struct Throttle {
    began: Instant,
    pace: Mutex<Pace>,
    /// Counts the changes of the rate.
    changes: watch::Sender<u64>,
    /// Connections wait one after another, so that none of them starves.
    turn: tokio::sync::Mutex<()>,
    waited: AtomicBool,
}

impl Throttle {
    /// So many bytes each second; no limit when `None`.
    pub fn new(rate: Option<u64>) -> Self {
        Self {
            began: Instant::now(),
            pace: Mutex::new(Pace::new(rate)),
            changes: watch::Sender::new(0),
            turn: tokio::sync::Mutex::new(()),
            waited: AtomicBool::new(false),
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on at another rate: also for those who wait.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.pace().set_rate(rate, self.began.elapsed());
        self.changes.send_modify(|count| *count += 1);
    }

    /// Bytes to let pass at once.
    pub fn quantum(&self) -> usize {
        self.pace().quantum()
    }

    /// Returns when so many bytes may pass.
    pub async fn pass(&self, bytes: usize) {
        let _turn = self.turn.lock().await;
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let next = {
                let mut pace = self.pace();
                let now = self.began.elapsed();
                let next = pace.next(now);
                if next.is_some_and(|at| at <= now) {
                    pace.reserve(now, bytes);
                    return;
                }
                next
            };
            self.waited.store(true, Ordering::Relaxed);
            // `changes` ends with `self` only.
            match next {
                Some(at) => tokio::select! {
                    () = sleep_until(self.began + at) => {}
                    _ = changes.changed() => {}
                },
                None => drop(changes.changed().await),
            }
        }
    }

    /// Whether anybody had to wait since this was asked last.
    pub fn has_waited(&self) -> bool {
        self.waited.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    /// Bytes that pass in each 50 ms while this runs.
    async fn windows(throttle: &Throttle, count: usize) -> Vec<usize> {
        let began = Instant::now();
        let mut windows = vec![0; count];
        loop {
            let bytes = throttle.quantum();
            throttle.pass(bytes).await;
            match windows.get_mut(usize::try_from(began.elapsed().as_millis() / 50).unwrap()) {
                Some(window) => *window += bytes,
                None => return windows,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_megabits_pass_evenly_in_every_twentieth_of_a_second() {
        let throttle = Throttle::new(Some(1_250_000));
        let windows = windows(&throttle, 100).await;
        let total: usize = windows.iter().sum();
        assert!((6_150_000..6_300_000).contains(&total), "{total}");
        for bytes in &windows[1..] {
            assert!((50_000..75_000).contains(bytes), "{windows:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_rate_is_felt_by_those_who_wait() {
        let throttle = Arc::new(Throttle::new(Some(1)));
        throttle.pass(1000).await;
        let waiting = tokio::spawn({
            let throttle = Arc::clone(&throttle);
            async move { throttle.pass(1000).await }
        });
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!waiting.is_finished());
        throttle.set_rate(Some(0));
        tokio::time::sleep(Duration::from_secs(5000)).await;
        assert!(!waiting.is_finished());
        throttle.set_rate(Some(1_000_000));
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(5006), "{:?}", began.elapsed());
        assert!(throttle.has_waited() && !throttle.has_waited());
    }

    #[tokio::test(start_paused = true)]
    async fn two_connections_of_one_server_share_its_pace() {
        let throttle = Arc::new(Throttle::new(Some(1_000_000)));
        let (one, two) = tokio::join!(windows(&throttle, 40), windows(&throttle, 40));
        let (one, two) = (one.iter().sum::<usize>(), two.iter().sum::<usize>());
        assert!((1_900_000..2_100_000).contains(&(one + two)), "{one} {two}");
        assert!(one.abs_diff(two) < 100_000, "{one} {two}");
    }
}
