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

/// Figures that move by themselves are told at most this often.
pub const VOLATILE_PERIOD: Duration = Duration::from_secs(30);

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
    /// When figures that move by themselves were last told, by Comune.
    pub told: Mutex<HashMap<String, Instant>>,
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

    /// Whether figures that move by themselves may be told of a Comune now, or in how long.
    pub fn may_tell(&self, comune: &str) -> Result<(), Duration> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.get(comune).map(Instant::elapsed) {
            Some(since) if since < VOLATILE_PERIOD => Err(VOLATILE_PERIOD - since),
            _ => Ok(()),
        }
    }

    /// Figures of a Comune have been told now.
    pub fn has_told(&self, comune: &str) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(comune.to_owned(), Instant::now());
    }
}
