//! The command line.

pub(crate) mod args;
pub(crate) mod commands;
mod logs;
mod run;
mod signals;
mod table;
