//! What other projects for the same purpose test on themselves.

use crate::{Run, report::Check};

pub fn checks() -> Vec<(Check, Run)> {
    Vec::new()
}
