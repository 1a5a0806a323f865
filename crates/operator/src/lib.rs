//! The Con.Me operator: what `conme-operator run` does.
//!
//! [`run()`] wires everything together; [`comune`] takes one Comune through observe, validate, plan, execute and
//! report; [`databases`] brings databases to their declared state on a queue of their own, so that a dead server
//! delays nobody's namespaces; [`catalogue`] tells of the data centre and the templates.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod catalogue;
mod comune;
mod context;
mod databases;
mod departure;
mod events;
mod manifests;
mod metrics;
mod purge;
mod queue;
mod removals;
mod run;
mod web;
mod world;

pub use manifests::{crds_yaml, roles_yaml};
pub use run::{RunOptions, run};
