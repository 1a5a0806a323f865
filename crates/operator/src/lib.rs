//! The Con.Me operator: what `conme-operator run` does.
//!
//! [`run()`] wires everything together; [`comune`] takes one Comune through observe, validate, plan, execute and
//! report; [`databases`] brings databases to their declared state on a queue of their own, so that a dead server
//! delays nobody's namespaces; [`dedicated`] does the same for databases on servers of their own; [`catalogue`] tells of the data centre and the templates.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod catalogue;
pub mod cli;
mod comune;
mod context;
mod databases;
mod dedicated;
mod departure;
mod events;
mod manifests;
mod memory;
mod metrics;
mod purge;
mod queue;
mod reference;
mod removals;
mod run;
mod web;
mod world;

pub use manifests::{crds_yaml, roles_yaml};
pub use reference::resources_markdown;
pub use run::{RunOptions, run};
