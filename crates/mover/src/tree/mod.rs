//! Directories: read without following a link, written without leaving the target.

mod attributes;
mod beneath;
mod source;
pub mod store;
mod target;

pub use source::{Excludes, SourceSettings, TreeSource};
pub use target::{OpenError, Owners, TargetSettings, TreeTarget};
