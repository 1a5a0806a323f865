//! The API server's own record of every call.

use std::io::{BufRead, BufReader};

use anyhow::Result;
use jiff::Timestamp;
use serde::Deserialize;

use crate::{DataCentre, OPERATOR_USER};

/// One call, as the API server has recorded it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// get, list, watch, create, update, patch, delete, …
    pub verb: String,
    /// The address asked for.
    #[serde(rename = "requestURI")]
    pub uri: String,
    user: User,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
}

#[derive(Clone, Debug, Deserialize)]
struct User {
    username: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct ResponseStatus {
    code: u16,
}

impl Entry {
    /// Who called.
    pub fn user(&self) -> &str {
        &self.user.username
    }

    /// When the call came in.
    pub fn at(&self) -> Timestamp {
        self.request_received_timestamp
    }

    /// When it was answered; for a watch, when it began.
    pub fn answered(&self) -> Timestamp {
        self.stage_timestamp
    }

    /// Resource, with the subresource after a slash.
    pub fn resource(&self) -> String {
        let object = self.object_ref.clone().unwrap_or_default();
        if object.subresource.is_empty() {
            object.resource
        } else {
            format!("{}/{}", object.resource, object.subresource)
        }
    }

    /// Namespace and name of the object.
    pub fn object(&self) -> (String, String) {
        let object = self.object_ref.clone().unwrap_or_default();
        (object.namespace, object.name)
    }

    /// Status code of the answer; 0 when there was none.
    pub fn code(&self) -> u16 {
        self.response_status.as_ref().map_or(0, |status| status.code)
    }

    /// Whether the call could change something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// All calls since a moment.
///
/// # Errors
/// When the log cannot be read.
pub fn audit_entries(data_centre: &DataCentre, since: Timestamp) -> Result<Vec<Entry>> {
    let file = std::fs::File::open(data_centre.instance().audit_log())?;
    let mut entries = Vec::new();
    for line in BufReader::new(file).lines() {
        // The last line may still be being written.
        let Ok(entry) = serde_json::from_str::<Entry>(&line?) else { continue };
        if entry.at() >= since {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// The operator's writes since a moment, its lease aside.
///
/// # Errors
/// When the log cannot be read.
pub fn operator_writes(data_centre: &DataCentre, since: Timestamp) -> Result<Vec<Entry>> {
    let mut entries = audit_entries(data_centre, since)?;
    entries.retain(|entry| entry.user() == OPERATOR_USER && entry.is_write() && entry.resource() != "leases");
    Ok(entries)
}
