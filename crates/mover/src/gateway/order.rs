//! What a gateway is asked or told, and what it answers.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::shared::Shared;
use crate::control;
use crate::core::line::Said;

/// What a gateway is asked or told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Order {
    /// Everything that it knows.
    Status,
    /// What holds for a site from now on; without `said`, its calendar.
    Say {
        /// The site.
        site: String,
        /// What.
        said: Option<Said>,
    },
}

pub(super) fn answer(shared: &Shared, text: &[u8]) -> Value {
    match serde_json::from_slice(text) {
        Ok(Order::Status) => json!({ "ok": shared.status() }),
        Ok(Order::Say { site, said }) => match shared.say(&site, said) {
            Ok(status) => json!({ "ok": status }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        },
        Err(error) => json!({ "error": format!("not an order of this version: {error}") }),
    }
}

/// Gives an order to the gateway that works in this state directory.
///
/// # Errors
/// When none does, or it refuses.
pub async fn ask(state: &Path, order: &Order) -> anyhow::Result<Value> {
    control::ask(state, "gateway", order).await
}
