//! Watches: they keep the index and the caches of the operator's own resources up to date. No call to the API
//! server is made while an event is handled.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use conme_api::keys;
use conme_blueprint::Kind;
use futures::{Stream, StreamExt};
use kube::{
    Api, Client, Resource,
    core::DeserializeGuard,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::whole::Unread;

/// Pause after the first interruption of a watch. Short, because an API server that has just learnt of a definition
/// refuses the first watches on it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two attempts: how long after the API server's return the operator may still wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Objects in one page of a list, which is held as a whole.
const PAGE: u32 = 100;

/// Kinds that are listed at the same time. More would not be faster, as one takes a processor, and each has a page in memory.
static LISTS: Semaphore = Semaphore::const_new(3);

/// A watch that went on for so long begins again after the shortest pause.
const STEADY: Duration = Duration::from_secs(60);

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
/// `period` is the time after which the API server is to end a watch, as of [`renewed_each`].
///
/// Namespaces are all watched, so that clashes are seen; of the other kinds only what carries the operator's label.
pub async fn watch_children(
    client: Client,
    kind: Kind,
    period: Duration,
    health: WatchHealth,
    handle: impl FnMut(Event<Value>) + Send,
) {
    let resource = kind.api_resource();
    let api: Api<Unread> = Api::all_with(client, &resource);
    let mut config = renewed_each(period).page_size(PAGE);
    if kind != Kind::Namespace {
        config = config.labels(&format!("{}={}", keys::MANAGED_BY, keys::MANAGER));
    }
    let mut handle = handle;
    run(
        || watcher(api.clone(), config.clone()),
        health,
        move |event| {
            let read = |object: Unread| Ok::<_, serde_json::Error>(object.read()?.into_value(kind));
            handle(match event {
                Event::Apply(object) => Event::Apply(read(object)?),
                Event::Delete(object) => Event::Delete(read(object)?),
                Event::Init => Event::Init,
                Event::InitApply(object) => Event::InitApply(read(object)?),
                Event::InitDone => Event::InitDone,
            });
            Ok(())
        },
    )
    .await;
}

/// What a watch on the operator's own resources tells.
pub enum OwnEvent<K> {
    /// As of any watch.
    Event(Event<K>),
    /// The object of this name exists but cannot be read, as one made under an older schema. It is reported here and
    /// stalls nothing else; it must not be taken for one that is gone.
    Unreadable(String),
}

/// Watches one kind of the operator's own resources for ever; `period` as of [`renewed_each`].
pub async fn watch_own<K>(
    client: Client,
    period: Duration,
    health: WatchHealth,
    mut handle: impl FnMut(OwnEvent<K>) + Send,
) where
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
    run(
        || watcher(api.clone(), renewed_each(period).page_size(PAGE)),
        health,
        move |event| {
            handle(match event {
                Event::Apply(object) => unwrap(object, Event::Apply),
                Event::Delete(object) => unwrap(object, Event::Delete),
                Event::Init => OwnEvent::Event(Event::Init),
                Event::InitApply(object) => unwrap(object, Event::InitApply),
                Event::InitDone => OwnEvent::Event(Event::InitDone),
            });
            Ok(())
        },
    )
    .await;
}

/// A watch that the API server ends after this time, and that is then taken up where it was, without a list. A connection
/// over which nothing comes any more, not even that end, looks like one on which nothing happens: it is noticed 5 seconds
/// later.
fn renewed_each(period: Duration) -> watcher::Config {
    watcher::Config::default().timeout(u32::try_from(period.as_secs()).unwrap_or(u32::MAX))
}

/// Why a watch begins again.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    /// What kube says.
    #[error(transparent)]
    Watch(watcher::Error),
    /// An event that cannot be handled.
    #[error("an object cannot be read: {0}")]
    Unreadable(serde_json::Error),
}

/// Lists and watches, over and over. After an interruption everything is listed again instead of going on from where
/// the watch was: only a list says when the cache is complete, and a watch that resumes in silence says nothing. An event
/// that cannot be handled is an interruption.
async fn run<K, S>(
    begin: impl Fn() -> S,
    health: WatchHealth,
    mut handle: impl FnMut(Event<K>) -> serde_json::Result<()> + Send,
) where
    K: Resource + Send,
    S: Stream<Item = Result<Event<K>, watcher::Error>> + Send,
{
    let _alive = Alive(health.alive.clone());
    let mut pause = FIRST_PAUSE;
    loop {
        // A closed semaphore cannot happen: it is never closed.
        let mut turn = LISTS.acquire().await.ok();
        let began = Instant::now();
        let mut stream = std::pin::pin!(begin());
        while let Some(event) = stream.next().await {
            let handled = event.map_err(Interruption::Watch).and_then(|event| {
                let done = matches!(event, Event::InitDone);
                handle(event).map_err(Interruption::Unreadable)?;
                Ok(done)
            });
            match handled {
                Ok(true) => {
                    turn = None;
                    health.synced.store(true, Ordering::Release);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(watch = %health.name, %error, "the watch was interrupted; it begins again");
                    break;
                }
            }
        }
        drop(turn);
        // What happens meanwhile is seen with the next list only.
        health.synced.store(false, Ordering::Release);
        if began.elapsed() > STEADY {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::stream;
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn refused() -> watcher::Error {
        watcher::Error::NoResourceVersion
    }

    /// Lets a watch work for so long, and drops it.
    async fn for_a_while(watches: impl Future<Output = ()>, duration: Duration) {
        tokio::select! {
            () = watches => unreachable!("a watch never ends"),
            () = tokio::time::sleep(duration) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_cannot_be_handled_makes_the_watch_begin_again() {
        let health = WatchHealth::new("configmaps");
        let begun = AtomicUsize::new(0);
        let begin = || {
            begun.fetch_add(1, Ordering::AcqRel);
            let events = [Event::<ConfigMap>::Init, Event::InitDone];
            stream::iter(events.map(Ok)).chain(stream::once(std::future::pending()))
        };
        let handle = |event| match event {
            Event::InitDone if begun.load(Ordering::Acquire) < 3 => serde_json::from_str("{"),
            _ => Ok(()),
        };
        for_a_while(run(begin, health.clone(), handle), Duration::from_millis(50)).await;
        assert!(!health.is_synced(), "it is not complete");
        begun.store(0, Ordering::Release);
        for_a_while(run(begin, health.clone(), handle), Duration::from_secs(5)).await;
        assert_eq!((begun.load(Ordering::Acquire), health.is_synced()), (3, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_interrupted_after_its_list_lists_again_and_is_complete_again() {
        let health = WatchHealth::new("configmaps");
        let begun = AtomicUsize::new(0);
        let watches = run(
            || {
                let first = begun.fetch_add(1, Ordering::AcqRel) == 0;
                let events = [Ok(Event::<ConfigMap>::Init), Ok(Event::InitDone)];
                // The first one breaks off after its list, as while an API server reads in a definition.
                stream::iter(events.into_iter().chain(first.then(|| Err(refused()))))
                    .chain(stream::once(std::future::pending()))
            },
            health.clone(),
            |_| Ok(()),
        );
        for_a_while(watches, Duration::from_secs(5)).await;
        assert_eq!(begun.load(Ordering::Acquire), 2);
        assert!(health.is_synced());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_refused_is_tried_at_a_slower_and_slower_pace() {
        let health = WatchHealth::new("configmaps");
        let begun = AtomicUsize::new(0);
        let begin = || {
            begun.fetch_add(1, Ordering::AcqRel);
            stream::iter([Err::<Event<ConfigMap>, _>(refused())])
        };
        for_a_while(run(begin, health.clone(), |_| Ok(())), Duration::from_secs(120)).await;
        // 0.1 + 0.2 + … + 6.4 s, and then one each 10 s.
        assert_eq!(begun.load(Ordering::Acquire), 18);
        assert!(!health.is_synced());
        assert!(!health.is_alive(), "a loop that was dropped is at work no more");
    }
}
