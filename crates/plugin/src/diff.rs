//! What applying manifests would change in a cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use conme_api::{Comune, keys};
use conme_blueprint::{
    Action, ChildRef, Desired, Kind, Observed, Plan, ValidComune, build::TENANT_VIEWER_ROLE, child, names,
    plan,
};
use conme_cluster::Index;
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams},
};
use serde_json::{Value, json};
use similar::TextDiff;

use crate::{cluster::Cluster, output::visible, render, run::Failure};

/// What is there of a Comune.
#[derive(Default)]
pub struct Live {
    index: Index,
    objects: BTreeMap<ChildRef, Value>,
    /// Kinds that may not be looked at in a namespace: nothing is said of them.
    unreadable: BTreeSet<(String, Kind)>,
}

impl Live {
    /// Reads everything that belongs to a Comune, or stands where it wants to be.
    ///
    /// # Errors
    /// When the API server does not answer or refuses.
    pub async fn read(cluster: &Cluster, comune: &str, wanted: &[String]) -> Result<Self, Failure> {
        let mut live = Self::default();
        let namespaces: Api<DynamicObject> =
            Api::all_with(cluster.client.clone(), &Kind::Namespace.api_resource());
        let own = ListParams::default().labels(&format!("{}={comune}", keys::COMUNE));
        let mut homes: BTreeMap<String, DynamicObject> = BTreeMap::new();
        for namespace in cluster.call("listing namespaces", namespaces.list(&own)).await? {
            homes.insert(namespace.name_any(), namespace);
        }
        for name in wanted {
            if let Some(found) = cluster.call("reading a namespace", namespaces.get_opt(name)).await? {
                homes.insert(name.clone(), found);
            }
        }
        for (name, namespace) in homes {
            live.put(Kind::Namespace, namespace)?;
            for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Namespace) {
                let api: Api<DynamicObject> =
                    Api::namespaced_with(cluster.client.clone(), &name, &kind.api_resource());
                let what = format!("listing {} in {name}", kind.plural());
                match cluster.ask(&what, api.list(&own)).await? {
                    Ok(list) => {
                        for object in list {
                            live.put(kind, object)?;
                        }
                    }
                    Err(kube::Error::Api(status)) if status.is_forbidden() => {
                        live.unreadable.insert((name.clone(), kind));
                    }
                    Err(error) => {
                        return Err(Failure::Server(format!("{what}: {}", conme_cluster::words(&error))));
                    }
                }
            }
        }
        Ok(live)
    }

    /// What could not be compared for lack of rights, in words.
    pub fn blind_spots(&self) -> Option<String> {
        let namespaces: BTreeSet<&str> =
            self.unreadable.iter().map(|(namespace, _)| namespace.as_str()).collect();
        let kinds: BTreeSet<Kind> = self.unreadable.iter().map(|(_, kind)| *kind).collect();
        let kinds: Vec<&str> = kinds.into_iter().map(Kind::plural).collect();
        (!kinds.is_empty()).then(|| {
            format!(
                "you may not list {} in {}: these were not compared (the role {TENANT_VIEWER_ROLE} gives the right)",
                kinds.join(", "),
                namespaces.into_iter().collect::<Vec<_>>().join(", ")
            )
        })
    }

    fn put(&mut self, kind: Kind, object: DynamicObject) -> Result<(), Failure> {
        let namespace = object.namespace().unwrap_or_default();
        let at = ChildRef { kind, namespace, name: object.name_any() };
        let mut value = serde_json::to_value(object).map_err(|error| Failure::Other(error.to_string()))?;
        value["apiVersion"] = json!(kind.api_version());
        value["kind"] = json!(kind.name());
        self.index.seen(kind, value.clone());
        self.objects.insert(at, value);
        Ok(())
    }

    /// What the operator would do for a Comune, as it will be in the end: quotas that grow step by step are shown as
    /// they will be.
    pub fn plan(&self, valid: &ValidComune, before: Option<&Comune>) -> Plan {
        let wanted: Vec<String> =
            valid.environments.iter().map(|environment| environment.namespace.clone()).collect();
        let seen = self.index.observe(&valid.name, &wanted);
        let on_record = before
            .and_then(|comune| comune.status.as_ref())
            .into_iter()
            .flat_map(|status| &status.namespaces);
        let observed = Observed {
            quotas: BTreeMap::new(),
            databases: render::databases_ready(valid),
            own_namespaces: on_record.map(|namespace| namespace.uid.clone()).collect(),
            ..seen
        };
        plan(valid, &observed, Timestamp::now())
    }
}

/// Namespaces that a Comune asks for.
pub fn wanted_namespaces(comune: &Comune) -> Vec<String> {
    let name = comune.name_any();
    comune.spec.environments.iter().map(|environment| names::namespace(&name, &environment.name)).collect()
}

/// The difference between the specifications of a Comune.
///
/// # Errors
/// When one of them cannot be written.
pub fn of_comune(before: Option<&Comune>, after: &Comune) -> Result<String, Failure> {
    let shown = |comune: &Comune| -> Result<String, Failure> {
        let spec = serde_json::to_value(&comune.spec).map_err(|error| Failure::Other(error.to_string()))?;
        render::yaml(&json!({"spec": spec}))
    };
    let old = before.map(shown).transpose()?;
    Ok(unified(&format!("Comune {}", after.name_any()), old.as_deref(), Some(&shown(after)?)))
}

/// The differences that a plan makes, and what it removes or keeps as an orphan. `asked_before` is what the operator asks
/// for by the manifest that is in force; `unknown` names the annotations of namespaces that cannot be told yet.
///
/// # Errors
/// When an object cannot be written.
pub fn of_plan(
    plan: &Plan,
    live: &Live,
    before: Option<&Comune>,
    asked_before: &[Desired],
    unknown: &[&str],
) -> Result<String, Failure> {
    let mut text = String::new();
    let shown = |kind: Kind, object: &Value| -> Result<String, Failure> {
        let mut object = object.clone();
        render::leave_out(&mut object, unknown);
        shown(kind, &object)
    };
    let is_seen =
        |action: &&Action| !live.unreadable.contains(&(action.at().home().to_owned(), action.at().kind));
    for action in plan.actions().filter(is_seen) {
        let label = action.at().to_string();
        let old = live.objects.get(action.at());
        match action {
            Action::Apply { desired, .. } => {
                let after = match old {
                    Some(old) => {
                        let earlier = asked_before.iter().find(|child| child.at == desired.at);
                        after_apply(desired.at.kind, old, &desired.body, earlier.map(|child| &child.body))
                    }
                    None => desired.body.clone(),
                };
                let (old, new) = (
                    old.map(|old| shown(desired.at.kind, old)).transpose()?,
                    shown(desired.at.kind, &after)?,
                );
                text.push_str(&unified(&label, old.as_deref(), Some(&new)));
            }
            Action::Delete { at, .. } => {
                let old = old.map(|old| shown(at.kind, old)).transpose()?;
                text.push_str(&unified(&label, old.as_deref(), None));
            }
        }
    }
    let known = |name: &str| {
        before
            .and_then(|comune| comune.status.as_ref())
            .is_some_and(|status| status.orphans.iter().any(|orphan| orphan.name == name))
    };
    for namespace in plan.orphans.keys().filter(|name| !known(name)) {
        let _ = writeln!(
            text,
            "# Namespace {namespace} would be kept as an orphan: its data stays, nothing new is admitted"
        );
    }
    for clash in &plan.clashes {
        let _ = writeln!(text, "# {}", clash.message);
    }
    Ok(text)
}

/// Databases that the manifest no longer declares: they stay where they are.
pub fn of_databases(before: Option<&Comune>, after: &Comune) -> String {
    let mut text = String::new();
    let declared =
        |comune: &Comune, name: &str| comune.spec.databases.iter().any(|database| database.name == name);
    for database in before.into_iter().flat_map(|before| &before.spec.databases) {
        if !declared(after, &database.name) {
            let _ = writeln!(text, "# Database {} would be kept as an orphan: its data stays", database.name);
        }
    }
    for database in &after.spec.databases {
        if !before.is_some_and(|before| declared(before, &database.name)) {
            let _ = writeln!(text, "# Database {} and its binding Secret would be made", database.name);
        }
    }
    text
}

/// A live object as it would be after the operator's apply: what is asked for is there; what was asked for `before`, or is
/// owned by a stranger, and is asked for no more is gone; what the cluster added stays.
fn after_apply(kind: Kind, live: &Value, asked: &Value, before: Option<&Value>) -> Value {
    let mut bare = live.clone();
    // When an object is created, the defaults that the cluster adds are noted as the creator's: they come back.
    if let Some(entries) = bare.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut) {
        entries.retain(|entry| entry["manager"] != keys::FIELD_MANAGER || entry["operation"] == "Apply");
    }
    let entries = child::take_over_fields(kind, &bare);
    let owned = entries
        .iter()
        .rev()
        .find(|entry| {
            entry["manager"] == keys::FIELD_MANAGER
                && entry["operation"] == "Apply"
                && entry["subresource"].is_null()
        })
        .map_or(Value::Null, |entry| entry["fieldsV1"].clone());
    let mut after = live.clone();
    if let Some(before) = before {
        withdraw(&mut after, before, asked);
    }
    overlay(&mut after, asked, &owned);
    after
}

/// Takes away what was asked for before and is not any more.
fn withdraw(live: &mut Value, before: &Value, asked: &Value) {
    let (Some(live), Some(before)) = (live.as_object_mut(), before.as_object()) else { return };
    for (key, value) in before {
        match asked.get(key) {
            Some(asked) => {
                if let Some(live) = live.get_mut(key) {
                    withdraw(live, value, asked);
                }
            }
            None => {
                live.remove(key);
            }
        }
    }
}

fn overlay(live: &mut Value, asked: &Value, owned: &Value) {
    match (live, asked) {
        (Value::Object(live), Value::Object(asked)) => {
            live.retain(|key, value| asked.contains_key(key) || !is_owned(value, &owned[format!("f:{key}")]));
            for (key, value) in asked {
                overlay(live.entry(key).or_insert(Value::Null), value, &owned[format!("f:{key}")]);
            }
        }
        (Value::Array(live), Value::Array(asked)) if live.len() == asked.len() => {
            for (live, asked) in live.iter_mut().zip(asked) {
                overlay(live, asked, &Value::Null);
            }
        }
        (live, asked) => *live = asked.clone(),
    }
}

/// Whether nothing of a value would be left if its owned fields went. Takes these away where others stay.
fn is_owned(value: &mut Value, owned: &Value) -> bool {
    let Some(fields) = owned.as_object() else { return false };
    let below: Vec<&String> = fields.keys().filter(|key| *key != ".").collect();
    match value {
        Value::Object(map) if !below.is_empty() => {
            map.retain(|key, value| !is_owned(value, &owned[format!("f:{key}")]));
            map.is_empty()
        }
        _ => true,
    }
}

/// An object as it is shown: without what changes by itself, the operator's own hash and the values of Secrets.
fn shown(kind: Kind, object: &Value) -> Result<String, Failure> {
    let mut object = object.clone();
    child::strip(kind, &mut object);
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(keys::APPLIED);
    }
    if kind == Kind::Secret
        && let Some(map) = object.as_object_mut()
    {
        map.remove("data");
        map.remove("stringData");
    }
    render::yaml(&sorted(object))
}

/// Maps in the order of their keys and without the empty ones, so that only what matters differs.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let entries: BTreeMap<String, Value> = map
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .filter(|(_, value)| !is_empty(value))
                .collect();
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn unified(label: &str, old: Option<&str>, new: Option<&str>) -> String {
    let name = |side: &str, text: Option<&str>| match text {
        Some(_) => format!("{side} {label}"),
        None => "/dev/null".to_owned(),
    };
    let (before, after) = (name("live:", old), name("manifest:", new));
    let diff = TextDiff::from_lines(old.unwrap_or_default(), new.unwrap_or_default());
    diff.unified_diff().context_radius(3).header(&before, &after).to_string()
}

/// With colours, as git shows them.
pub fn coloured(text: &str) -> String {
    let mut coloured = String::new();
    for line in text.lines() {
        let colour = match line.as_bytes().first() {
            _ if line.starts_with("+++") || line.starts_with("---") => "1",
            Some(b'+') => "32",
            Some(b'-') => "31",
            Some(b'@') => "36",
            Some(b'#') => "33",
            _ => "0",
        };
        let _ = writeln!(coloured, "\x1b[{colour}m{}\x1b[0m", visible(line));
    }
    coloured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operator_no_longer_asks_for_goes_and_what_the_cluster_added_stays() {
        let live = json!({
            "metadata": {
                "name": "x",
                "labels": {"ours": "1", "old": "1", "strange": "1"},
                "managedFields": [
                    {"manager": "conme", "operation": "Apply", "fieldsV1": {"f:metadata": {"f:labels": {"f:ours": {}, "f:old": {}}}, "f:spec": {"f:list": {}}}},
                    {"manager": "conme", "operation": "Update", "fieldsV1": {"f:spec": {"f:created": {}, "f:dropped": {}}}},
                    {"manager": "anna", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {"f:strange": {}}}}},
                ],
            },
            "spec": {"list": [{"a": 1, "added": 2}], "default": true, "dropped": 7, "created": 1},
        });
        let asked = json!({"metadata": {"name": "x", "labels": {"ours": "2"}}, "spec": {"list": [{"a": 3}]}});
        let before = json!({"metadata": {"labels": {"ours": "1"}}, "spec": {"list": [], "dropped": 7}});
        let after = after_apply(Kind::Service, &live, &asked, Some(&before));
        assert_eq!(after["metadata"]["labels"], json!({"ours": "2"}));
        assert_eq!(after["spec"], json!({"list": [{"a": 3, "added": 2}], "default": true, "created": 1}));
    }

    #[test]
    fn a_diff_reads_like_one() {
        let text = unified("Service a/b", Some("a: 1\nb: 2\n"), Some("a: 1\nb: 3\n"));
        assert_eq!(
            text,
            "--- live: Service a/b\n+++ manifest: Service a/b\n@@ -1,2 +1,2 @@\n a: 1\n-b: 2\n+b: 3\n"
        );
        assert_eq!(unified("x", Some("a: 1\n"), Some("a: 1\n")), "");
        assert!(unified("x", None, Some("a: 1\n")).starts_with("--- /dev/null\n+++ manifest: x\n"));
        assert!(coloured("+a\n-b\n").starts_with("\u{1b}[32m+a"));
    }
}
