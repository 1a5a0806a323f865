//! The decisions of the operator, as functions from values to values.
//!
//! [`validate()`] turns a Comune into a value that can be built, or into all of its problems; [`plan()`] says which
//! calls to the API server are missing; [`report()`] says what to tell of it. The [`Register`] answers what spans
//! several Comuni. Nothing here waits, asks a server or looks at a clock.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod amount;
pub mod build;
pub mod capacity;
pub mod child;
pub mod credential;
mod departure;
#[cfg(test)]
mod fixtures;
pub mod kind;
pub mod names;
mod plan;
pub mod quota;
mod register;
mod report;
pub mod rights;
pub mod shelf;
#[cfg(test)]
mod tests;
mod text;
mod validate;

pub use child::{ChildRef, Desired};
pub use departure::{
    Circumstances, Departure, Estate, Told, departure, estate, finalizers_to_write, grace_left, grace_step,
    held_by_others, holds_finalizer, is_departing, plan_departure, tell_departure, without_finalizer,
};
pub use kind::{Kind, Wave};
pub use plan::{
    Action, ChildSeen, ChildState, Clash, DatabaseDetails, DatabaseSeen, NamespaceSeen, Observed, Plan,
    PodsSeen, Stopped, Survey, Wait, plan, plan_abandoned,
};
pub use register::{Claim, Register, is_ready};
pub use report::{Failure, report, without_volatile};
pub use validate::{
    Problem, Scope, Site, ValidComune, ValidDatabase, ValidDedicated, ValidEnvironment, ValidService,
    Verdict, rules_of, totals_in_force, totals_of, validate,
};
