//! A child as it should be, and how to tell whether a live object is that child unchanged.

use std::fmt;

use conme_api::keys;
use serde_json::{Map, Value, json};

use crate::kind::{Kind, Wave};

/// Address of a child.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildRef {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for a Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ChildRef {
    /// A child in a namespace.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// A Namespace itself.
    pub fn of_namespace(name: impl Into<String>) -> Self {
        Self::new(Kind::Namespace, "", name)
    }

    /// The namespace that it is or lives in.
    pub fn home(&self) -> &str {
        if self.kind == Kind::Namespace { &self.name } else { &self.namespace }
    }
}

impl fmt::Display for ChildRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.name(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
        }
    }
}

/// A child as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Its address.
    pub at: ChildRef,
    /// When it may be written.
    pub wave: Wave,
    /// The whole object, as it is sent to the API server.
    pub body: Value,
    /// Hash of what is asked for; also in the body, as an annotation.
    pub hash: String,
}

impl Desired {
    /// Puts a child together.
    ///
    /// `meta` may hold `labels` and `annotations` beyond the common ones; `content` is everything but `apiVersion`,
    /// `kind` and `metadata`.
    pub fn new(at: ChildRef, wave: Wave, comune: &str, component: &str, meta: Value, content: Value) -> Self {
        let mut metadata = match meta {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        metadata.insert("name".into(), json!(at.name));
        if !at.namespace.is_empty() {
            metadata.insert("namespace".into(), json!(at.namespace));
        }
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        labels[keys::COMUNE] = json!(comune);
        labels[keys::COMPONENT] = json!(component);
        labels[keys::MANAGED_BY] = json!(keys::MANAGER);

        let mut object = match content {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        object.insert("apiVersion".into(), json!(at.kind.api_version()));
        object.insert("kind".into(), json!(at.kind.name()));
        object.insert("metadata".into(), Value::Object(metadata));
        let mut body = Value::Object(object);
        let hash = hash(&body);
        let annotations = &mut body["metadata"]["annotations"];
        if annotations.is_null() {
            *annotations = json!({});
        }
        annotations[keys::APPLIED] = json!(hash);
        Self { at, wave, body, hash }
    }
}

/// Short hash of a JSON value whose maps are sorted.
pub fn hash(value: &Value) -> String {
    blake3::hash(value.to_string().as_bytes()).to_hex()[..16].to_owned()
}

/// Whether a live object holds everything that is asked for. What the API server added by itself does not disturb;
/// in lists, neither missing nor further elements are accepted.
pub fn holds(asked: &Value, live: &Value) -> bool {
    match (asked, live) {
        (Value::Object(asked), Value::Object(live)) => asked.iter().all(|(key, value)| match live.get(key) {
            Some(found) => holds(value, found),
            None => is_empty(value),
        }),
        (Value::Array(asked), Value::Array(live)) => {
            asked.len() == live.len() && asked.iter().zip(live).all(|(asked, live)| holds(asked, live))
        }
        (asked, live) => asked == live,
    }
}

/// The API server does not store empty lists, maps and texts.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::String(text) => text.is_empty(),
        Value::Null => true,
        _ => false,
    }
}

/// Takes away from a live object what changes by itself: status, bookkeeping, and what the cluster's own
/// controllers write into the specification.
pub fn strip(kind: Kind, object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    map.remove("status");
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink"]
        {
            metadata.remove(key);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|key, _| !belongs_to_cluster(kind, key));
        }
    }
    let autoscaled =
        map.get("metadata").is_some_and(|meta| meta["annotations"].get(keys::AUTOSCALED).is_some());
    if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) {
        match kind {
            Kind::PersistentVolumeClaim => {
                spec.remove("volumeName");
            }
            Kind::Deployment if autoscaled => {
                spec.remove("replicas");
            }
            _ => {}
        }
    }
}

/// Annotations that the cluster's own controllers keep on a kind, and the SAD's word that a namespace may be deleted:
/// taken off as a foreign addition, it would be gone before the deletion comes.
fn belongs_to_cluster(kind: Kind, annotation: &str) -> bool {
    match kind {
        Kind::Namespace => annotation == keys::CONFIRM_DELETE,
        Kind::Deployment => annotation == "deployment.kubernetes.io/revision",
        Kind::PersistentVolumeClaim => {
            annotation.starts_with("pv.kubernetes.io/") || annotation.starts_with("volume.")
        }
        _ => false,
    }
}

/// Whether anyone but the operator and the cluster's own controllers owns a field outside `status`.
///
/// Such a field may stand beside the operator's without being in conflict with it: an added label, an added rule.
pub fn has_foreign_fields(kind: Kind, object: &Value) -> bool {
    owners(kind, object).any(|owner| owner == Owner::Foreign)
}

/// Whether a server-side apply of the operator would leave fields behind that it does not ask for: those of others, and
/// those that it wrote itself when it created the object.
pub fn has_fields_to_take_over(kind: Kind, object: &Value) -> bool {
    owners(kind, object).any(|owner| matches!(owner, Owner::Foreign | Owner::Creation))
}

/// Whether the operator has written this object, whatever labels it carries.
pub fn is_of_operator(kind: Kind, object: &Value) -> bool {
    owners(kind, object).any(|owner| matches!(owner, Owner::Operator | Owner::Creation))
}

/// Whom an entry of `managedFields` belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The operator, by server-side apply.
    Operator,
    /// The operator, when it created the object.
    Creation,
    /// The cluster's own controllers, or a subresource.
    Cluster,
    /// Somebody who has no business there.
    Foreign,
}

fn owners(kind: Kind, object: &Value) -> impl Iterator<Item = Owner> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.into_iter().flatten().map(move |entry| owner(kind, entry))
}

fn owner(kind: Kind, entry: &Value) -> Owner {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    match (text("subresource"), text("manager"), text("operation")) {
        ("", keys::FIELD_MANAGER, "Apply") => Owner::Operator,
        ("", keys::FIELD_MANAGER, _) => Owner::Creation,
        ("", ..) if !entry.get("fieldsV1").is_some_and(|fields| only_cluster_fields(kind, fields)) => {
            Owner::Foreign
        }
        _ => Owner::Cluster,
    }
}

fn only_cluster_fields(kind: Kind, fields: &Value) -> bool {
    let mut rest = fields.clone();
    remove_cluster_fields(kind, &mut rest);
    fields.is_object() && is_bare(&rest)
}

/// Nothing is named below: only maps, and the marks of maps and lists themselves.
fn is_bare(fields: &Value) -> bool {
    fields.as_object().is_some_and(|map| map.iter().all(|(key, below)| key == "." || is_branch(key, below)))
}

fn is_branch(key: &str, below: &Value) -> bool {
    matches!(key, "f:metadata" | "f:annotations" | "f:finalizers" | "f:spec") && is_bare(below)
}

/// Takes the cluster's own fields out of a set of fields.
fn remove_cluster_fields(kind: Kind, fields: &mut Value) {
    if let Some(map) = fields.as_object_mut() {
        map.remove("f:status");
    }
    let below = |fields: &mut Value, pointer: &str, is_cluster: &dyn Fn(&str) -> bool| {
        if let Some(map) = fields.pointer_mut(pointer).and_then(Value::as_object_mut) {
            map.retain(|key, _| !is_cluster(key));
        }
    };
    below(fields, "/f:metadata/f:annotations", &|key| {
        key.strip_prefix("f:").is_some_and(|annotation| belongs_to_cluster(kind, annotation))
    });
    if kind == Kind::PersistentVolumeClaim {
        below(fields, "/f:metadata/f:finalizers", &|key| key == "v:\"kubernetes.io/pvc-protection\"");
        below(fields, "/f:spec", &|key| key == "f:volumeName");
    }
}

/// Takes out what must not be removed from the object although the operator does not ask for it.
fn remove_fields_that_stay(kind: Kind, object: &Value, fields: &mut Value) {
    remove_cluster_fields(kind, fields);
    let Some(spec) = fields.pointer_mut("/f:spec").and_then(Value::as_object_mut) else { return };
    match kind {
        // Fixed for ever: an apply that removed them would be refused.
        Kind::PersistentVolumeClaim => spec.retain(|key, _| key == "f:resources"),
        Kind::Deployment if object["metadata"]["annotations"].get(keys::AUTOSCALED).is_some() => {
            spec.remove("f:replicas");
        }
        _ => {}
    }
}

/// What takes away again the fields that others have added beside everybody else's, as a JSON merge patch; `None` where
/// there are none of them.
///
/// It names nothing that it does not remove, so it is right whatever happens to the rest of the object meanwhile. Elements
/// of a list that others use, too, cannot be named in such a patch: see [`take_over_fields`].
pub fn removal_of_additions(kind: Kind, object: &Value) -> Option<Value> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array)?;
    let (mut added, mut others) = (json!({}), json!({}));
    for entry in entries {
        let into = if owner(kind, entry) == Owner::Foreign { &mut added } else { &mut others };
        merge(into, &entry["fieldsV1"]);
    }
    remove_fields_that_stay(kind, object, &mut added);
    let patch = removal(&added, &others);
    patch.as_object().is_some_and(|fields| !fields.is_empty()).then_some(patch)
}

/// Null for each field that only the first set has.
fn removal(added: &Value, others: &Value) -> Value {
    let mut patch = Map::new();
    for (key, below) in added.as_object().into_iter().flatten() {
        let Some(field) = key.strip_prefix("f:") else { continue };
        match others.get(key) {
            // The cluster's controllers may be writing into these right now.
            None if !matches!(field, "metadata" | "annotations" | "labels") => {
                patch.insert(field.to_owned(), Value::Null);
            }
            theirs => {
                let below = removal(below, theirs.unwrap_or(&Value::Null));
                if below.as_object().is_some_and(|fields| !fields.is_empty()) {
                    patch.insert(field.to_owned(), below);
                }
            }
        }
    }
    Value::Object(patch)
}

/// Makes the operator the owner of every foreign field: the entries of an object's `managedFields` with everything
/// foreign moved into the operator's own. The next server-side apply then removes whatever it does not ask for.
pub fn take_over_fields(kind: Kind, object: &Value) -> Vec<Value> {
    let entries =
        object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut own, mut kept, mut owned) = (None, Vec::new(), json!({}));
    for entry in entries {
        match owner(kind, &entry) {
            Owner::Cluster => kept.push(entry),
            owner => {
                merge(&mut owned, &entry["fieldsV1"]);
                if owner == Owner::Operator || own.is_none() {
                    own = Some(entry);
                }
            }
        }
    }
    if let Some(mut own) = own {
        own["manager"] = json!(keys::FIELD_MANAGER);
        own["operation"] = json!("Apply");
        own["apiVersion"] = json!(kind.api_version());
        remove_fields_that_stay(kind, object, &mut owned);
        own["fieldsV1"] = owned;
        kept.push(own);
    }
    kept
}

fn merge(into: &mut Value, from: &Value) {
    if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
        for (key, value) in from {
            merge(into.entry(key).or_insert_with(|| json!({})), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_sorted_so_that_hashes_are_stable() {
        let a: Value = serde_json::from_str(r#"{"b":1,"a":{"d":1,"c":2}}"#).unwrap();
        assert_eq!(a.to_string(), r#"{"a":{"c":2,"d":1},"b":1}"#);
    }

    #[test]
    fn what_the_server_adds_does_not_disturb_but_list_elements_do() {
        let asked = json!({"spec": {"egress": [], "ports": [{"port": 80}]}});
        assert!(holds(&asked, &json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}], "x": 1}})));
        assert!(!holds(&asked, &json!({"spec": {"egress": [{}], "ports": [{"port": 80}]}})));
        assert!(!holds(&asked, &json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}})));
        assert!(!holds(&asked, &json!({"spec": {"ports": []}})));
        // The API server leaves `value: ""` of a variable out.
        assert!(holds(&json!([{"name": "IPA", "value": ""}]), &json!([{"name": "IPA"}])));
        assert!(!holds(&json!([{"name": "IPA", "value": "c_d325"}]), &json!([{"name": "IPA"}])));
        assert!(!holds(&json!({"replicas": 0}), &json!({})));
    }

    #[test]
    fn fields_of_others_are_told_from_those_of_the_cluster() {
        let entry = |manager: &str, operation: &str, fields: Value| json!({"manager": manager, "operation": operation, "fieldsV1": fields});
        let label = json!({"f:metadata": {"f:labels": {"f:x": {}}}});
        assert_eq!(owner(Kind::Service, &entry("conme", "Apply", label.clone())), Owner::Operator);
        assert_eq!(owner(Kind::Service, &entry("conme", "Update", label.clone())), Owner::Creation);
        assert_eq!(owner(Kind::Service, &entry("kubectl", "Update", label)), Owner::Foreign);
        let revision =
            json!({"f:metadata": {"f:annotations": {".": {}, "f:deployment.kubernetes.io/revision": {}}}});
        let of_cluster = entry("kube-controller-manager", "Update", revision);
        assert_eq!(owner(Kind::Deployment, &of_cluster), Owner::Cluster);
        assert_eq!(owner(Kind::Service, &of_cluster), Owner::Foreign);
    }

    #[test]
    fn rule_5_a_field_that_somebody_has_added_beside_ours_is_seen() {
        let entry = |manager: &str, operation: &str, fields: Value| json!({"manager": manager, "operation": operation, "fieldsV1": fields});
        let ours = entry("conme", "Apply", json!({"f:spec": {"f:ingress": {}, "f:egress": {}}}));
        let object = |others: &[Value]| {
            let entries = [std::slice::from_ref(&ours), others].concat();
            json!({"metadata": {"managedFields": entries}})
        };
        assert!(!has_foreign_fields(Kind::NetworkPolicy, &object(&[])));
        for other in [
            entry("kubectl-edit", "Update", json!({"f:spec": {"f:egress": {}}})),
            entry("somebody", "Apply", json!({"f:metadata": {"f:labels": {"f:x": {}}}})),
        ] {
            assert!(has_foreign_fields(Kind::NetworkPolicy, &object(&[other])));
        }
        let mut status = entry("kube-controller-manager", "Update", json!({"f:status": {"f:used": {}}}));
        status["subresource"] = json!("status");
        assert!(!has_foreign_fields(Kind::ResourceQuota, &object(&[status])));
    }

    #[test]
    fn a_take_over_leaves_the_cluster_what_is_its_own() {
        let protection = "v:\"kubernetes.io/pvc-protection\"";
        let bound = json!({
            "f:metadata": {
                "f:annotations": {"f:pv.kubernetes.io/bind-completed": {}},
                "f:finalizers": {".": {}, protection: {}},
            },
            "f:spec": {"f:volumeName": {}},
        });
        let entry = json!({"manager": "kcm", "operation": "Update", "fieldsV1": bound});
        assert_eq!(owner(Kind::PersistentVolumeClaim, &entry), Owner::Cluster);
        assert_eq!(owner(Kind::ConfigMap, &entry), Owner::Foreign);
        // All of it together with something foreign, as after a clearance of `managedFields`.
        let mut mixed = entry.clone();
        mixed["fieldsV1"]["f:metadata"]["f:labels"] = json!({"f:x": {}});
        mixed["fieldsV1"]["f:spec"]["f:volumeMode"] = json!({});
        let object = json!({"metadata": {"managedFields": [mixed]}});
        let entries = take_over_fields(Kind::PersistentVolumeClaim, &object);
        let taken = &entries[0]["fieldsV1"];
        assert_eq!(taken["f:metadata"]["f:labels"], json!({"f:x": {}}));
        assert!(taken["f:metadata"]["f:finalizers"].get(protection).is_none());
        assert_eq!(taken["f:spec"], json!({}));
    }

    #[test]
    fn the_word_that_a_namespace_may_be_deleted_stays_on_it() {
        let confirmed = json!({"f:metadata": {"f:annotations": {"f:conme.venis.it/confirm-delete": {}}}});
        let entry = json!({"manager": "kubectl-annotate", "operation": "Update", "fieldsV1": confirmed});
        assert_eq!(owner(Kind::Namespace, &entry), Owner::Cluster);
        assert_eq!(owner(Kind::Service, &entry), Owner::Foreign);
        let adopted = json!({"f:metadata": {"f:annotations": {"f:conme.venis.it/adopt": {}}}});
        let entry = json!({"manager": "kubectl-annotate", "operation": "Update", "fieldsV1": adopted});
        assert_eq!(owner(Kind::Namespace, &entry), Owner::Foreign);
    }

    #[test]
    fn what_others_have_added_is_removed_by_name_and_nothing_else() {
        let entry = |manager: &str, operation: &str, fields: Value| json!({"manager": manager, "operation": operation, "fieldsV1": fields});
        let ours = json!({"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {
            "f:replicas": {}, "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {"f:image": {}}}}}}});
        let revision =
            json!({"f:metadata": {"f:annotations": {".": {}, "f:deployment.kubernetes.io/revision": {}}}});
        let deployment = |theirs: Value| {
            let entries = [
                entry("conme", "Apply", ours.clone()),
                entry("kube-controller-manager", "Update", revision.clone()),
                entry("kubectl", "Update", theirs),
            ];
            json!({"metadata": {"managedFields": entries}})
        };
        let removed = |theirs: Value| removal_of_additions(Kind::Deployment, &deployment(theirs));
        assert_eq!(
            removed(json!({
                "f:metadata": {"f:annotations": {"f:example.org/a": {}}, "f:labels": {".": {}, "f:app": {}, "f:b/c": {}}},
                "f:spec": {"f:replicas": {}, "f:paused": {}, "f:template": {"f:spec": {"f:nodeSelector": {".": {}, "f:disk": {}}}}},
            })),
            Some(json!({
                "metadata": {"annotations": {"example.org/a": null}, "labels": {"b/c": null}},
                "spec": {"paused": null, "template": {"spec": {"nodeSelector": null}}},
            }))
        );
        // Ours as well, the cluster's, or an element of a list: nothing that could be named.
        assert_eq!(removed(json!({"f:spec": {"f:replicas": {}}, "f:status": {"f:replicas": {}}})), None);
        assert_eq!(removed(revision.clone()), None);
        let container = json!({"f:containers": {"k:{\"name\":\"spy\"}": {".": {}, "f:image": {}}}});
        assert_eq!(removed(json!({"f:spec": {"f:template": {"f:spec": container}}})), None);
        // Also where nobody else has any, annotations are removed one by one.
        let alone =
            entry("kubectl", "Update", json!({"f:metadata": {"f:annotations": {".": {}, "f:a": {}}}}));
        let object = json!({"metadata": {"managedFields": [alone]}});
        let patch = json!({"metadata": {"annotations": {"a": null}}});
        assert_eq!(removal_of_additions(Kind::Service, &object), Some(patch));
        // What stays in spite of its owner.
        let mut autoscaled = deployment(json!({"f:spec": {"f:paused": {}, "f:minReadySeconds": {}}}));
        autoscaled["metadata"]["annotations"] = json!({keys::AUTOSCALED: "true"});
        autoscaled["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]
            .as_object_mut()
            .unwrap()
            .remove("f:replicas");
        autoscaled["metadata"]["managedFields"][2]["fieldsV1"]["f:spec"]["f:replicas"] = json!({});
        let patch = json!({"spec": {"minReadySeconds": null, "paused": null}});
        assert_eq!(removal_of_additions(Kind::Deployment, &autoscaled), Some(patch));
    }

    #[test]
    fn a_take_over_leaves_the_number_of_pods_to_the_autoscaler() {
        let fields = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let entry = json!({"manager": "argocd", "operation": "Apply", "fieldsV1": fields});
        let mut object =
            json!({"metadata": {"annotations": {keys::AUTOSCALED: "true"}, "managedFields": [entry]}});
        let taken =
            |object: &Value| take_over_fields(Kind::Deployment, object)[0]["fieldsV1"]["f:spec"].clone();
        assert_eq!(taken(&object), json!({"f:paused": {}}));
        object["metadata"]["annotations"] = json!({});
        assert_eq!(taken(&object), json!({"f:paused": {}, "f:replicas": {}}));
    }

    #[test]
    fn a_take_over_leaves_one_entry_that_owns_everything() {
        let object = json!({"metadata": {"managedFields": [
            {"manager": "conme", "operation": "Apply", "apiVersion": "v1", "fieldsV1": {"f:data": {"f:a": {}}}},
            {"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "fieldsV1": {"f:data": {"f:b": {}}}},
            {"manager": "kcm", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}},
        ]}});
        let entries = take_over_fields(Kind::ConfigMap, &object);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1]["fieldsV1"], json!({"f:data": {"f:a": {}, "f:b": {}}}));
        assert!(!has_fields_to_take_over(Kind::ConfigMap, &json!({"metadata": {"managedFields": entries}})));
    }
}
