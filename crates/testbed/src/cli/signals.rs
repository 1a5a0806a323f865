//! Ctrl-C and its relatives.

use std::future::Future;

use anyhow::{Context, Result};
use conme_testbed::complain;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask this program to end.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    pub fn listen() -> Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them and returns its number.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hang_up.recv() => 1,
        }
    }
}

/// What became of a piece of work.
pub(crate) enum Outcome<T> {
    Done(T),
    /// Broken off by the signal with this number; what it had started is stopped.
    Interrupted(u8),
}

/// Works until done or interrupted. Dropping the work undoes it, which the caller is told about first.
pub(crate) async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<Outcome<T>> {
    let mut signals = Signals::listen()?;
    let mut work = Box::pin(work);
    tokio::select! {
        result = &mut work => Ok(Outcome::Done(result?)),
        number = signals.next() => {
            complain("interrupted: stopping what was started");
            drop(work);
            Ok(Outcome::Interrupted(number))
        }
    }
}
