//! Watches: they keep the index and the caches of the operator's own resources up to date. No call to the API
//! server is made while an event is handled.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use conme_api::keys;
use conme_blueprint::Kind;
use futures::StreamExt;
use kube::{
    Api, Client, Resource,
    api::DynamicObject,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        utils::{Backoff, ResetTimerBackoff},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Pause after the first interruption of a watch. Short, because an API server that has just learnt of a definition
/// refuses the first watches on it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Pauses that double, up to the longest.
struct Pauses(Duration);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = FIRST_PAUSE;
    }
}

/// Whether a watch has shown everything that there is, and is still at work.
#[derive(Clone, Debug)]
pub struct WatchHealth {
    /// What is watched, for people.
    pub name: String,
    synced: Arc<AtomicBool>,
    alive: Arc<AtomicBool>,
}

impl WatchHealth {
    /// A watch that is about to begin.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), synced: Arc::default(), alive: Arc::new(AtomicBool::new(true)) }
    }

    /// Everything that there is has been seen, and nothing has been missed since.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// The loop has not ended.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }
}

/// Ends with the loop, however that ends.
struct Alive(Arc<AtomicBool>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Watches one kind of child for ever and hands every event to `handle`.
///
/// Namespaces are all watched, so that clashes are seen; of the other kinds only what carries the operator's label.
pub async fn watch_children(
    client: Client,
    kind: Kind,
    health: WatchHealth,
    handle: impl FnMut(Event<Value>) + Send,
) {
    let resource = kind.api_resource();
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut config = watcher::Config::default().page_size(500);
    if kind != Kind::Namespace {
        config = config.labels(&format!("{}={}", keys::MANAGED_BY, keys::MANAGER));
    }
    let mut handle = handle;
    run(watcher(api, config), health, move |event| {
        let to_value = |object| to_value(kind, object);
        handle(match event {
            Event::Apply(object) => Event::Apply(to_value(object)),
            Event::Delete(object) => Event::Delete(to_value(object)),
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(to_value(object)),
            Event::InitDone => Event::InitDone,
        });
    })
    .await;
}

/// An object as it stands in a manifest. In lists the API server leaves `apiVersion` and `kind` out.
pub(crate) fn to_value(kind: Kind, object: DynamicObject) -> Value {
    let mut value = object.data;
    value["apiVersion"] = kind.api_version().into();
    value["kind"] = kind.name().into();
    value["metadata"] = serde_json::to_value(object.metadata).unwrap_or_default();
    value
}

/// What a watch on the operator's own resources tells.
pub enum OwnEvent<K> {
    /// As of any watch.
    Event(Event<K>),
    /// The object of this name exists but cannot be read, as one made under an older schema. It is reported here and
    /// stalls nothing else; it must not be taken for one that is gone.
    Unreadable(String),
}

/// Watches one kind of the operator's own resources for ever.
pub async fn watch_own<K>(client: Client, health: WatchHealth, mut handle: impl FnMut(OwnEvent<K>) + Send)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let api: Api<DeserializeGuard<K>> = Api::all(client);
    let unwrap = |guarded: DeserializeGuard<K>, wrap: fn(K) -> Event<K>| match guarded.0 {
        Ok(object) => OwnEvent::Event(wrap(object)),
        Err(error) => {
            let name = error.metadata.name.unwrap_or_default();
            tracing::error!(kind = %K::kind(&()), %name, error = %error.error, "cannot be read and is left alone");
            OwnEvent::Unreadable(name)
        }
    };
    run(watcher(api, watcher::Config::default()), health, move |event| {
        handle(match event {
            Event::Apply(object) => unwrap(object, Event::Apply),
            Event::Delete(object) => unwrap(object, Event::Delete),
            Event::Init => OwnEvent::Event(Event::Init),
            Event::InitApply(object) => unwrap(object, Event::InitApply),
            Event::InitDone => OwnEvent::Event(Event::InitDone),
        });
    })
    .await;
}

async fn run<K>(
    stream: impl futures::Stream<Item = Result<Event<K>, watcher::Error>> + Send,
    health: WatchHealth,
    mut handle: impl FnMut(Event<K>) + Send,
) where
    K: Resource + Send,
{
    let _alive = Alive(health.alive.clone());
    let pauses = ResetTimerBackoff::new(Pauses(FIRST_PAUSE), Duration::from_secs(60));
    let mut stream = std::pin::pin!(stream.backoff(pauses));
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                let done = matches!(event, Event::InitDone);
                handle(event);
                if done {
                    health.synced.store(true, Ordering::Release);
                }
            }
            Err(error) => {
                // What happens meanwhile is seen with the next list only.
                health.synced.store(false, Ordering::Release);
                tracing::warn!(watch = %health.name, %error, "the watch was interrupted; it begins again");
            }
        }
    }
}
