//! Namespaces whose RoleBinding is so young that the API server may not have learnt of it yet.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

type Gate = Arc<tokio::sync::Mutex<()>>;

/// In each of these namespaces one call goes ahead and finds out whether the API server knows of the operator's rights;
/// the others wait for it, instead of being refused each for itself.
#[derive(Debug, Default)]
pub struct Gates {
    closed: Mutex<HashMap<String, Gate>>,
}

/// The turn of one call in a namespace. Whoever has one goes ahead; the next comes when it is dropped.
#[derive(Debug)]
pub struct Turn {
    _held: OwnedMutexGuard<()>,
}

impl Gates {
    /// Rights were just given in this namespace, or a call was refused for want of them.
    pub fn close(&self, namespace: &str) {
        let mut closed = self.locked();
        if !closed.contains_key(namespace) {
            closed.insert(namespace.to_owned(), Gate::default());
        }
    }

    /// A call was let through: the API server knows.
    pub fn open(&self, namespace: &str) {
        self.locked().remove(namespace);
    }

    /// Waits until a call may be made in this namespace. None: it is open, and everybody may.
    pub async fn turn(&self, namespace: &str) -> Option<Turn> {
        loop {
            let gate = self.locked().get(namespace).cloned()?;
            let held = Arc::clone(&gate).lock_owned().await;
            // Opened meanwhile, perhaps closed again.
            if self.locked().get(namespace).is_some_and(|now| Arc::ptr_eq(now, &gate)) {
                return Some(Turn { _held: held });
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, Gate>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn one_goes_ahead_and_the_others_follow_when_it_was_let_through() {
        let gates = Gates::default();
        assert!(gates.turn("dolo").now_or_never().unwrap().is_none(), "nothing is known to be young");
        gates.close("dolo");
        let first = gates.turn("dolo").now_or_never().unwrap().unwrap();
        let mut others = [(); 3].map(|()| Box::pin(gates.turn("dolo")));
        assert!(others.iter_mut().all(|other| other.now_or_never().is_none()), "they wait");
        assert!(gates.turn("mira").now_or_never().unwrap().is_none(), "elsewhere nobody does");
        gates.open("dolo");
        drop(first);
        assert!(others.iter_mut().all(|other| other.now_or_never().unwrap().is_none()), "all at once");
    }

    #[test]
    fn whoever_gives_up_leaves_the_next_one_its_turn_and_a_refusal_closes_again() {
        let gates = Gates::default();
        gates.close("dolo");
        let first = gates.turn("dolo").now_or_never().unwrap().unwrap();
        let mut second = Box::pin(gates.turn("dolo"));
        assert!((&mut second).now_or_never().is_none());
        gates.close("dolo");
        drop(first);
        let second = second.now_or_never().unwrap().unwrap();
        gates.open("dolo");
        gates.close("dolo");
        drop(second);
        assert!(gates.turn("dolo").now_or_never().unwrap().is_some());
    }
}
