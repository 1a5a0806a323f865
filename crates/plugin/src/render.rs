//! The objects that the operator would create, by its own functions.

use std::collections::BTreeMap;

use conme_api::{Comune, keys};
use conme_blueprint::{Action, DatabaseSeen, Desired, Observed, ValidComune, Verdict, plan};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{cli::ObjectFormat, run::Failure};

/// The children of a Comune that nothing exists of yet, in the order in which they are made.
pub fn children(verdict: &Verdict) -> Vec<Desired> {
    let Some(valid) = &verdict.valid else { return Vec::new() };
    let observed = Observed { databases: databases_ready(valid), ..Observed::default() };
    let plan = plan(valid, &observed, Timestamp::UNIX_EPOCH);
    let unknown = unknown_annotations(valid);
    plan.actions()
        .filter_map(|action| match action {
            Action::Apply { desired, .. } => Some(desired.clone()),
            Action::Delete { .. } => None,
        })
        .map(|mut child| {
            leave_out(&mut child.body, &unknown);
            child
        })
        .collect()
}

/// Annotations of namespaces whose value only a cluster can give, and has not given to this Comune.
pub fn unknown_annotations(valid: &ValidComune) -> Vec<&'static str> {
    let mut unknown = Vec::new();
    if valid.uid.is_empty() {
        unknown.push(keys::COMUNE_UID);
    }
    if valid.admitted_at.is_none() {
        unknown.push(keys::ADMITTED_AT);
    }
    unknown
}

/// Takes annotations away that are not known; with the first, the hash that speaks of all of them.
pub fn leave_out(object: &mut Value, unknown: &[&str]) {
    let is_namespace = object["kind"] == "Namespace";
    let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    let Some(annotations) = annotations.filter(|_| is_namespace && !unknown.is_empty()) else { return };
    annotations.retain(|key, _| key != keys::APPLIED && !unknown.contains(&key.as_str()));
}

/// As if every database were open: services do not have to wait for what will be there.
pub fn databases_ready(valid: &ValidComune) -> BTreeMap<String, DatabaseSeen> {
    let shared = valid.databases.iter().map(|database| &database.spec.name);
    let dedicated = valid.dedicated.iter().map(|database| &database.spec.name);
    shared
        .chain(dedicated)
        .map(|name| {
            let ready = DatabaseSeen::Ready {
                system_identifier: String::new(),
                provisioned_at: Timestamp::UNIX_EPOCH,
                database: String::new(),
                details: Box::default(),
            };
            (name.clone(), ready)
        })
        .collect()
}

/// Why a Comune, or a part of it, would not be built.
pub fn obstacles(comune: &Comune, verdict: &Verdict) -> Vec<String> {
    let name = comune.metadata.name.as_deref().unwrap_or_default();
    verdict.problems.iter().map(|problem| format!("{name}: {}: {}", problem.path, problem.message)).collect()
}

/// Objects as text.
///
/// # Errors
/// When they cannot be written.
pub fn text(objects: &[Value], format: ObjectFormat) -> Result<String, Failure> {
    match format {
        ObjectFormat::Json => {
            Ok(format!("{:#}\n", json!({"apiVersion": "v1", "kind": "List", "items": objects})))
        }
        ObjectFormat::Yaml => {
            let mut text = String::new();
            for object in objects {
                text.push_str("---\n");
                text.push_str(&yaml(object)?);
            }
            Ok(text)
        }
    }
}

/// A value as YAML.
///
/// # Errors
/// When it cannot be written.
pub fn yaml(value: &Value) -> Result<String, Failure> {
    let mut text = serde_saphyr::to_string(value)
        .map_err(|error| Failure::Other(format!("it cannot be written as YAML: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}
