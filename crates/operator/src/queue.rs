//! A queue of names: each at most once in it and at most once under way.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

#[derive(Default)]
struct Inner {
    /// Names that were under way before, the oldest first.
    ready: VecDeque<String>,
    /// Names that were never under way, the oldest first.
    fresh: VecDeque<String>,
    /// Names that were under way at least once.
    met: HashSet<String>,
    turn: u8,
    queued: HashSet<String>,
    active: HashSet<String>,
    /// Asked for again while under way.
    again: HashSet<String>,
    later: BTreeSet<(Instant, String)>,
    due: HashMap<String, Instant>,
    failures: HashMap<String, u32>,
}

/// A queue of names with delays and back-off.
///
/// Three take turns: the oldest of those that were under way before, the newest newcomer, and the oldest newcomer. So a
/// crowd of newcomers holds up neither a repair nor the one that somebody applies next, and the last of the crowd is
/// reached, too.
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
        } else if inner.enqueue(name.to_owned()) {
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
                if let Some(name) = inner.take() {
                    inner.queued.remove(&name);
                    inner.met.insert(name.clone());
                    inner.active.insert(name.clone());
                    if !inner.queued.is_empty() {
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
        self.locked().queued.len()
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
            } else {
                self.enqueue(name);
            }
        }
    }

    /// Whether it did not wait before.
    fn enqueue(&mut self, name: String) -> bool {
        if !self.queued.insert(name.clone()) {
            return false;
        }
        let lane = if self.met.contains(&name) { &mut self.ready } else { &mut self.fresh };
        lane.push_back(name);
        true
    }

    fn take(&mut self) -> Option<String> {
        (0..3).find_map(|_| {
            self.turn = (self.turn + 1) % 3;
            match self.turn {
                0 => self.fresh.pop_front(),
                1 => self.ready.pop_front(),
                _ => self.fresh.pop_back(),
            }
        })
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
    async fn in_a_crowd_a_newcomer_and_a_repair_come_soon_and_the_first_of_the_crowd_does_not_wait_for_ever()
    {
        let queue = Queue::default();
        queue.add("old");
        assert_eq!(queue.next().await, "old");
        queue.done("old");
        for number in 0..100 {
            queue.add(&format!("crowd-{number:03}"));
        }
        queue.add("old");
        queue.add("single");
        let mut taken = Vec::new();
        for number in 0..9 {
            let name = queue.next().await;
            queue.done(&name);
            taken.push(name);
            // Newer ones come, one for each that is taken.
            if number >= 2 {
                queue.add(&format!("later-{number}"));
            }
        }
        assert!(
            taken[..3].contains(&"old".to_owned()) && taken[..3].contains(&"single".to_owned()),
            "{taken:?}"
        );
        assert!(
            taken.contains(&"crowd-000".to_owned()) && taken.contains(&"crowd-001".to_owned()),
            "{taken:?}"
        );
        assert_eq!(queue.depth(), 102 - 9 + 7);
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
