//! Sockets, TLS and threads: what carries frames between the two ends, and keeps them going.

pub mod agent;
mod dial;
pub mod enrol;
pub mod receive;
pub mod tls;
pub mod tree;
mod wire;
