//! The resources of `conme.venis.it/v1alpha1`.
//!
//! [`Comune`] is one administration on the shared data centre, [`DataCenter`] the capacity that they share,
//! [`ServiceTemplate`] one entry of the service catalogue and [`Migration`] one workload on its way. The types carry their schema: patterns, enumerations,
//! sizes and CEL rules, so that the API server refuses a bad manifest at once and says why. Rules that span
//! several objects are conditions on `status`, not part of this crate.
//!
//! This crate has no client and makes no decision.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod common;
mod comune;
mod comune_status;
mod crds;
mod datacenter;
pub mod keys;
mod migration;
pub mod reasons;
mod servers;
mod template;

pub use common::*;
pub use comune::*;
pub use comune_status::*;
pub use crds::crds;
pub use datacenter::*;
pub use migration::*;
pub use servers::*;
pub use template::*;

/// The API group of every resource.
pub const GROUP: &str = "conme.venis.it";
/// The version of every resource.
pub const VERSION: &str = "v1alpha1";
