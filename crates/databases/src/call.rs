//! What every call on a server has: a limit of time, and words for what it is doing.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tokio::time::timeout;

use crate::{Problem, Server};

/// Bounds a whole call; what it was doing becomes part of the problem.
pub(crate) async fn within<T>(
    server: &Server,
    doing: &Doing,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let limit = server.timeouts.total;
    timeout(limit, work).await.unwrap_or_else(|_| Err(Problem::Timeout { doing: doing.get(), limit }))
}

/// What is being done, for the message when the time is up.
pub(crate) struct Doing(Mutex<String>);

impl Doing {
    pub fn new(words: impl Into<String>) -> Self {
        Self(Mutex::new(words.into()))
    }

    pub fn set(&self, words: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = words.into();
    }

    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The time, in whole seconds.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
