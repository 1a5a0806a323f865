//! Moves disks, file trees and databases of a municipality's local server over a thin uplink into the data centre,
//! while the server keeps working.
//!
//! [`core`] decides, without a disk, a socket or a clock. [`disk`], [`net`], [`hooks`] and [`identity`] act. [`cli`] is what a
//! person sees. Nothing here knows of Kubernetes.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cli;
mod control;
pub mod core;
pub mod disk;
pub mod gateway;
pub mod hooks;
pub mod identity;
pub mod net;
pub mod tree;
