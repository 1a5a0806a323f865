//! What every part of the operator shares.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use conme_cluster::{Calls, Executor, Index, WatchHealth, lease::Leadership};
use jiff::SignedDuration;
use kube::Client;

use crate::{events::Events, metrics::OperatorMetrics, queue::Queue, world::World};

/// Figures that move by themselves are told when they have stood still for so long, and at most this often.
const STILL: Duration = Duration::from_secs(30);
/// In a crowd they have to stand still for longer: so long for each Comune that is put off. The cluster's own controllers
/// serve all of them in turn, so the next pod of one comes later the more there are.
const STILL_IN_CROWD: Duration = Duration::from_millis(300);
/// Figures that never stand still are told after so many times that.
const RESTLESS: u32 = 10;
/// They are never put off for longer, neither to stand still nor because they do not.
const PUT_OFF_AT_MOST: Duration = Duration::from_secs(900);

/// Figures of a Comune that move by themselves.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    told: Option<Instant>,
    digest: u64,
    since: Instant,
}

impl Figures {
    /// Figures that have never been told, as they are seen at `now`.
    fn new(digest: u64, now: Instant) -> Self {
        Self { told: None, digest, since: now }
    }

    /// Takes note of the figures at `now`, when `crowd` Comuni are put off. Returns after how long they may be told; zero:
    /// at once.
    fn seen(&mut self, digest: u64, crowd: usize, now: Instant) -> Duration {
        if self.digest != digest {
            (self.digest, self.since) = (digest, now);
        }
        let crowd = u32::try_from(crowd).unwrap_or(u32::MAX);
        let still = STILL.max(STILL_IN_CROWD.saturating_mul(crowd)).min(PUT_OFF_AT_MOST);
        let restless = (still * RESTLESS).min(PUT_OFF_AT_MOST);
        let told = self.told.unwrap_or(self.since);
        (self.since.max(told) + still).min(told + restless).saturating_duration_since(now)
    }
}

/// Pause between two looks at whether work may go on; each costs nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What every part of the operator shares.
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// Counted calls that end in time.
    pub calls: Calls,
    /// Carries out plans.
    pub executor: Executor,
    /// Children.
    pub index: Arc<Mutex<Index>>,
    /// Own resources.
    pub world: Mutex<World>,
    /// Comuni to look at.
    pub comuni: Queue,
    /// Databases to look at, as comune/database.
    pub databases: Queue,
    /// DataCenters and templates whose status may have changed.
    pub catalogue: Queue,
    /// Events.
    pub events: Events,
    /// Metrics.
    pub metrics: Arc<OperatorMetrics>,
    /// The operator's own namespace.
    pub namespace: String,
    /// Name of its ServiceAccount.
    pub service_account: String,
    /// Databases and Secrets are looked at again after this time, also when nothing has changed.
    pub recheck: Duration,
    /// Time between the confirmation of a deletion and the deletion.
    pub deletion_grace: SignedDuration,
    /// Until when this process is certain to lead. Asked right before everything that writes, also on databases.
    pub leadership: Arc<Leadership>,
    /// Every watch; set once they have begun.
    pub watches: OnceLock<Vec<WatchHealth>>,
    /// When each database server was last looked at as a whole.
    pub secured: tokio::sync::Mutex<HashMap<String, Instant>>,
    /// Figures that move by themselves, by Comune.
    pub told: Mutex<HashMap<String, Figures>>,
}

impl Context {
    /// Own resources, locked. Never held across an await.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Children, locked. Never held across an await; taken after the world where both are needed.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every cache is complete at this moment. Nothing is decided from one that may have missed something.
    pub fn caches_are_complete(&self) -> bool {
        self.watches.get().is_some_and(|watches| watches.iter().all(WatchHealth::is_synced))
    }

    /// Waits until every cache is complete and this process is certain to lead.
    pub async fn may_work(&self) {
        while !(self.leadership.holds() && self.caches_are_complete()) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether figures that move by themselves, with this digest, may be told of a Comune now, or in how long.
    pub fn may_tell(&self, comune: &str, digest: u64) -> Result<(), Duration> {
        let now = Instant::now();
        let crowd = self.comuni.put_off();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let figures = told.entry(comune.to_owned()).or_insert_with(|| Figures::new(digest, now));
        match figures.seen(digest, crowd, now) {
            Duration::ZERO => Ok(()),
            wait => Err(wait),
        }
    }

    /// Figures of a Comune have been told now.
    pub fn has_told(&self, comune: &str) {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.entry(comune.to_owned()).or_insert_with(|| Figures::new(0, now)).told = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_when_they_stand_still_and_those_that_never_do_after_five_minutes() {
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        let wait = |figures: &mut Figures, digest, second| figures.seen(digest, 100, at(second)).as_secs();
        let mut figures = Figures::new(1, begin);
        assert_eq!(wait(&mut figures, 1, 0), 30);
        figures.told = Some(at(5));
        // Pods that begin one after the other.
        assert_eq!(wait(&mut figures, 2, 20), 30);
        assert_eq!(wait(&mut figures, 3, 45), 30);
        assert_eq!(wait(&mut figures, 3, 70), 5);
        assert_eq!(wait(&mut figures, 3, 75), 0);
        figures.told = Some(at(75));
        for second in (80..365).step_by(20) {
            assert!(wait(&mut figures, second, second) > 0, "{second}");
        }
        assert_eq!(wait(&mut figures, 400, 375), 0);
    }

    #[test]
    fn in_a_crowd_figures_have_to_stand_still_for_longer_and_never_for_more_than_a_quarter_of_an_hour() {
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        let mut figures = Figures::new(1, begin);
        figures.told = Some(begin);
        assert_eq!(figures.seen(2, 1000, at(100)).as_secs(), 300);
        // The crowd gets smaller.
        assert_eq!(figures.seen(2, 500, at(120)).as_secs(), 130);
        assert_eq!(figures.seen(2, 0, at(120)).as_secs(), 10);
        for crowd in [1000, 10_000, usize::MAX] {
            assert_eq!(figures.seen(crowd as u64, crowd, at(890)).as_secs(), 10);
        }
    }
}
