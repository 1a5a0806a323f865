//! A queue of names: each at most once in it and at most once under way.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

#[derive(Default)]
struct Inner {
    ready: VecDeque<String>,
    queued: HashSet<String>,
    active: HashSet<String>,
    /// Asked for again while under way.
    again: HashSet<String>,
    later: BTreeSet<(Instant, String)>,
    due: HashMap<String, Instant>,
    failures: HashMap<String, u32>,
}

/// A queue of names with delays and back-off.
#[derive(Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    bell: Notify,
}

impl Queue {
    /// Puts a name in, unless it waits already. One that is under way comes again afterwards.
    pub fn add(&self, name: &str) {
        let mut inner = self.locked();
        if inner.active.contains(name) {
            inner.again.insert(name.to_owned());
        } else if inner.queued.insert(name.to_owned()) {
            inner.ready.push_back(name.to_owned());
            drop(inner);
            self.bell.notify_one();
        }
    }

    /// Puts a name in later. Of several delays of one name the shortest counts.
    pub fn add_after(&self, name: &str, delay: Duration) {
        let at = Instant::now() + delay;
        let mut inner = self.locked();
        match inner.due.get(name).copied() {
            Some(known) if known <= at => return,
            Some(known) => {
                inner.later.remove(&(known, name.to_owned()));
            }
            None => {}
        }
        inner.due.insert(name.to_owned(), at);
        inner.later.insert((at, name.to_owned()));
        drop(inner);
        self.bell.notify_one();
    }

    /// Puts a name in after a delay that doubles with each failure in a row: from half a second to two minutes,
    /// spread out so that many that failed together do not come back together.
    pub fn add_after_failure(&self, name: &str) -> Duration {
        let failures = {
            let mut inner = self.locked();
            let failures = inner.failures.entry(name.to_owned()).or_default();
            *failures += 1;
            *failures
        };
        let base = Duration::from_millis(500) * 2_u32.saturating_pow(failures.min(9) - 1);
        let spread = u64::from(getrandom::u32().unwrap_or_default()) % (base.as_millis() as u64 / 2).max(1);
        let delay = (base + Duration::from_millis(spread)).min(Duration::from_secs(120));
        self.add_after(name, delay);
        delay
    }

    /// The next failure of this name is the first again.
    pub fn succeeded(&self, name: &str) {
        self.locked().failures.remove(name);
    }

    /// Waits for the next name. [`Self::done`] has to be called for it.
    pub async fn next(&self) -> String {
        loop {
            let bell = self.bell.notified();
            let until = {
                let mut inner = self.locked();
                inner.promote(Instant::now());
                if let Some(name) = inner.ready.pop_front() {
                    inner.queued.remove(&name);
                    inner.active.insert(name.clone());
                    if !inner.ready.is_empty() {
                        self.bell.notify_one();
                    }
                    return name;
                }
                inner.later.first().map(|(at, _)| *at)
            };
            match until {
                Some(at) => {
                    tokio::select! {
                        () = bell => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => bell.await,
            }
        }
    }

    /// A name is no longer under way.
    pub fn done(&self, name: &str) {
        let again = {
            let mut inner = self.locked();
            inner.active.remove(name);
            inner.again.remove(name)
        };
        if again {
            self.add(name);
        }
    }

    /// Names that wait to be taken now.
    pub fn depth(&self) -> usize {
        self.locked().ready.len()
    }

    /// Names that are taken later, when their delay has ended.
    pub fn put_off(&self) -> usize {
        self.locked().later.len()
    }

    /// Names under way.
    pub fn active(&self) -> usize {
        self.locked().active.len()
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn promote(&mut self, now: Instant) {
        while let Some((at, name)) = self.later.first().cloned() {
            if at > now {
                break;
            }
            self.later.remove(&(at, name.clone()));
            self.due.remove(&name);
            if self.active.contains(&name) {
                self.again.insert(name);
            } else if self.queued.insert(name.clone()) {
                self.ready.push_back(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_never_under_way_twice_and_none_is_lost() {
        let queue = Arc::new(Queue::default());
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.depth(), 1);
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "b");
        assert_eq!(queue.depth(), 0, "a is still under way");
        queue.done("a");
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn the_shortest_delay_counts_and_failures_double_it() {
        let queue = Queue::default();
        let begin = Instant::now();
        queue.add_after("a", Duration::from_secs(60));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(30));
        assert_eq!((queue.depth(), queue.put_off()), (0, 1));
        assert_eq!(queue.next().await, "a");
        assert_eq!((begin.elapsed().as_secs(), queue.put_off()), (5, 0));
        queue.done("a");
        let first = queue.add_after_failure("b");
        let second = queue.add_after_failure("b");
        assert!(first >= Duration::from_millis(500) && second >= Duration::from_secs(1));
        queue.succeeded("b");
        assert!(queue.add_after_failure("b") < Duration::from_secs(1));
    }
}
