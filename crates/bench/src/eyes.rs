//! The bench's own watches: what they see is when something has happened for a user.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use conme_blueprint::amount::Amount;
use futures::TryStreamExt;
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::DynamicObject,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::plane::PATIENCE;

/// What is remembered of each object, and when it was first seen so.
type Seen<T> = Arc<Mutex<HashMap<String, (T, Timestamp)>>>;

/// A watch that keeps one figure of each object.
pub struct Eye<T> {
    seen: Seen<T>,
    watch: JoinHandle<()>,
}

impl<T> Drop for Eye<T> {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl<T: PartialEq + Send + 'static> Eye<T> {
    /// Watches all objects of `api`; `figure` is what is looked at in one.
    pub fn open(
        api: Api<DynamicObject>,
        config: watcher::Config,
        figure: impl Fn(&DynamicObject) -> T + Send + 'static,
    ) -> Self {
        let seen: Seen<T> = Arc::default();
        let shared = seen.clone();
        let watch = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(api, config).default_backoff().touched_objects());
            loop {
                // What interrupts a watch is over with the next attempt; if not, whoever waits says so in the end.
                let Ok(Some(object)) = events.try_next().await else { continue };
                let key = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
                let figure = figure(&object);
                let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if seen.get(&key).is_none_or(|(before, _)| *before != figure) {
                    seen.insert(key, (figure, Timestamp::now()));
                }
            }
        });
        Self { seen, watch }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, (T, Timestamp)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every one of `keys` (namespace/name) has the figure that is wanted of it. Returns when the last one
    /// got it.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn all(&self, what: &str, wanted: &BTreeMap<String, T>) -> Result<Timestamp> {
        let begin = Instant::now();
        loop {
            let missing = {
                let seen = self.locked();
                let is_so = |(key, wanted): &(&String, &T)| {
                    seen.get(*key).is_some_and(|(figure, _)| figure == *wanted)
                };
                let missing = wanted.iter().filter(|entry| !is_so(entry)).count();
                if missing == 0 {
                    let times = wanted.keys().filter_map(|key| seen.get(key).map(|(_, at)| *at));
                    return Ok(times.max().unwrap_or(Timestamp::UNIX_EPOCH));
                }
                missing
            };
            if begin.elapsed() > PATIENCE {
                bail!(
                    "not after {} s: {what}; {missing} of {} are missing",
                    PATIENCE.as_secs(),
                    wanted.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// When an object was first seen with its present figure.
    pub fn since(&self, key: &str) -> Option<Timestamp> {
        self.locked().get(key).map(|(_, at)| *at)
    }
}

/// The generation at which a Comune is Ready; None while it is not.
pub fn ready_at(comune: &DynamicObject) -> Option<i64> {
    let conditions = comune.data.pointer("/status/conditions")?.as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    let observed = comune.data.pointer("/status/observedGeneration")?.as_i64()?;
    (ready["status"] == "True").then_some(observed)
}

/// What a quota asks for, in notation-free amounts.
pub fn hard(quota: &Value) -> BTreeMap<String, Amount> {
    let hard = quota.pointer("/spec/hard").and_then(Value::as_object);
    let amount =
        |(resource, text): (&String, &Value)| Some((resource.clone(), Amount::parse(text.as_str()?).ok()?));
    hard.into_iter().flatten().filter_map(amount).collect()
}
