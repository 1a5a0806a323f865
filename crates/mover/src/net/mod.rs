//! Sockets, TLS and threads: what carries frames between the two ends, and keeps them going.

pub mod agent;
pub mod dial;
pub mod enrol;
pub mod lease;
mod packing;
pub mod receive;
pub mod tls;
pub mod tree;
pub(crate) mod wire;
