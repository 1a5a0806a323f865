//! `kubectl comune`: check, preview, follow and use the Comuni of a data centre.
//!
//! What is decided here is pure: [`yaml`] reads manifests with the place of every value, [`schema`] and [`rules`] hold
//! them against the definitions, [`site`] against what they name. The other modules talk to a cluster and leave the
//! decisions to the former and to `conme_blueprint`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod about;
pub mod cli;
mod cluster;
mod credentials;
mod diff;
mod follow;
pub mod input;
pub mod manifest;
pub mod output;
mod page;
pub mod path;
pub mod problem;
mod render;
pub mod rules;
mod run;
pub mod schema;
mod server;
pub mod site;
pub mod suggest;
pub mod validate;
pub mod yaml;

pub use run::run;
