//! Effects on Kubernetes: a bounded client, watches that feed an index, and the execution of plans. This crate
//! decides nothing: what to do comes from `conme-blueprint`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod apply;
mod client;
mod compact;
mod execute;
mod gates;
mod index;
pub mod lease;
mod watch;
mod whole;

pub use apply::apply;
pub use client::{CALL_TIMEOUT, Calls, Metrics, SILENCE, bounded_client, words};
pub use execute::{Executor, Outcome};
pub use index::{Index, Touched};
pub use watch::{OwnEvent, WatchHealth, watch_children, watch_own};
