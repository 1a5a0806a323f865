//! What is known of every child, as small as possible.
//!
//! A child that arrives from a watch is reduced to its identity, a digest of everything that does not change by
//! itself, and a few figures. A child that has been checked against what should be is remembered by its digest:
//! whatever anybody changes afterwards changes the digest, whoever they claim to be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use conme_api::keys;
use conme_blueprint::{
    ChildRef, ChildSeen, ChildState, Kind, NamespaceSeen, Observed, PodsSeen, amount::Amount, child,
    quota::QuotaSeen,
};
use serde_json::Value;

/// What an event has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The Comune that has to be looked at.
    pub comune: Option<String>,
    /// The Comune that the object belonged to until somebody gave it to another.
    pub former: Option<String>,
    /// A namespace that appeared, vanished or changed its owner.
    pub namespace: Option<String>,
    /// The change is one that somebody else made to a child that was as it should be.
    pub drift: bool,
}

#[derive(Debug)]
struct Record {
    uid: String,
    applied: String,
    version: u64,
    digest: [u8; 16],
    foreign: bool,
    terminating: bool,
    check: Check,
}

#[derive(Debug)]
enum Check {
    /// The digest that was found to be as it should be.
    Passed([u8; 16]),
    /// Not checked since the start: the stripped object.
    Pending(Box<str>),
    /// Changed since it was checked.
    Failed,
}

/// What is known of every child.
#[derive(Default)]
pub struct Index {
    children: HashMap<String, BTreeMap<ChildRef, Record>>,
    owners: HashMap<ChildRef, String>,
    namespaces: BTreeMap<String, (u64, NamespaceSeen)>,
    /// Namespaces that the operator made, by the ISTAT code on them.
    by_istat: HashMap<String, BTreeSet<String>>,
    quotas: HashMap<String, QuotaSeen>,
    pods: HashMap<(String, String), PodsSeen>,
    relisting: HashMap<Kind, BTreeSet<ChildRef>>,
}

impl Index {
    /// Takes note of an object as a watch shows it.
    pub fn seen(&mut self, kind: Kind, object: Value) -> Touched {
        self.note(kind, object, false)
    }

    /// Takes note of an object as the API server answered to the operator's own write: it is as it should be.
    pub fn written(&mut self, kind: Kind, object: Value) {
        self.note(kind, object, true);
    }

    fn note(&mut self, kind: Kind, mut object: Value, own: bool) -> Touched {
        let Some(at) = address(kind, &object) else { return Touched::default() };
        if let Some(listed) = self.relisting.get_mut(&kind) {
            listed.insert(at.clone());
        }
        let version = text(&object, "/metadata/resourceVersion").parse().unwrap_or(0);
        let mut touched = Touched::default();
        if kind == Kind::Namespace {
            match self.note_namespace(&at.name, version, &object) {
                Some(changed) => touched.namespace = changed.then(|| at.name.clone()),
                None => return touched,
            }
        }
        let comune = text(&object, "/metadata/labels/conme.venis.it~1comune").to_owned();
        let managed = text(&object, "/metadata/labels/app.kubernetes.io~1managed-by") == keys::MANAGER;
        let previous_owner = self.owners.get(&at).cloned();
        if comune.is_empty() || !managed {
            // Somebody took the labels off a child: its Comune has to put them back.
            touched.comune = previous_owner.and_then(|owner| self.forget(&at, &owner).then_some(owner));
            touched.drift = touched.comune.is_some();
            return touched;
        }
        if let Some(owner) = previous_owner.filter(|owner| *owner != comune) {
            touched.former = self.forget(&at, &owner).then_some(owner);
        }
        let known = self.children.get(&comune).and_then(|children| children.get(&at));
        if known.is_some_and(|record| record.version > version) {
            return Touched::default();
        }
        let figures_changed = self.note_figures(&at, &object);
        let uid = text(&object, "/metadata/uid").to_owned();
        let applied = text(&object, "/metadata/annotations/conme.venis.it~1applied").to_owned();
        let terminating = !text(&object, "/metadata/deletionTimestamp").is_empty();
        let foreign = child::has_foreign_fields(kind, &object);
        child::strip(kind, &mut object);
        let stripped = object.to_string();
        let digest = digest(&stripped);

        let known = self.children.get(&comune).and_then(|children| children.get(&at));
        let check = match known {
            _ if own => Check::Passed(digest),
            Some(record) if record.uid == uid => match &record.check {
                Check::Passed(passed) if *passed == digest && (record.foreign || !foreign) => {
                    Check::Passed(digest)
                }
                Check::Passed(_) | Check::Failed => Check::Failed,
                Check::Pending(_) => Check::Pending(stripped.into()),
            },
            _ => Check::Pending(stripped.into()),
        };
        let failed = matches!(check, Check::Failed);
        touched.drift = failed && known.is_some_and(|record| !matches!(record.check, Check::Failed));
        let changed = known.is_none_or(|record| {
            record.uid != uid || record.digest != digest || record.terminating != terminating || touched.drift
        });
        let record = Record { uid, applied, version, digest, foreign, terminating, check };
        self.children.entry(comune.clone()).or_default().insert(at.clone(), record);
        self.owners.insert(at, comune.clone());
        if changed || figures_changed {
            touched.comune = Some(comune);
        }
        touched
    }

    /// Returns None for news that are older than what is known, else whether ownership has changed.
    fn note_namespace(&mut self, name: &str, version: u64, object: &Value) -> Option<bool> {
        let seen = NamespaceSeen {
            uid: text(object, "/metadata/uid").to_owned(),
            labels: texts(object.pointer("/metadata/labels")),
            annotations: texts(object.pointer("/metadata/annotations"))
                .into_iter()
                .filter(|(key, _)| key.starts_with("conme.venis.it/"))
                .collect(),
            terminating: !text(object, "/metadata/deletionTimestamp").is_empty(),
        };
        match self.namespaces.get_mut(name) {
            Some((known, _)) if *known > version => None,
            Some((known, before)) if *before == seen => {
                *known = version;
                Some(false)
            }
            _ => {
                self.drop_namespace(name);
                if let (Some(_), Some(istat)) = (maker(&seen), seen.labels.get(keys::ISTAT)) {
                    self.by_istat.entry(istat.clone()).or_default().insert(name.to_owned());
                }
                self.namespaces.insert(name.to_owned(), (version, seen));
                Some(true)
            }
        }
    }

    fn drop_namespace(&mut self, name: &str) {
        let Some((_, seen)) = self.namespaces.remove(name) else { return };
        let Some(istat) = seen.labels.get(keys::ISTAT) else { return };
        if let Some(names) = self.by_istat.get_mut(istat) {
            names.remove(name);
            if names.is_empty() {
                self.by_istat.remove(istat);
            }
        }
    }

    fn note_figures(&mut self, at: &ChildRef, object: &Value) -> bool {
        match at.kind {
            Kind::ResourceQuota => {
                let seen = QuotaSeen {
                    spec: amounts(object.pointer("/spec/hard")),
                    enforced: amounts(object.pointer("/status/hard")),
                    used: amounts(object.pointer("/status/used")),
                };
                let before = self.quotas.insert(at.namespace.clone(), seen.clone());
                before.as_ref() != Some(&seen)
            }
            Kind::Deployment => {
                let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0) as i32;
                // Pods of an older template do not count as ready.
                let current = number("/status/observedGeneration") >= number("/metadata/generation");
                let ready = number("/status/readyReplicas").min(number("/status/updatedReplicas"));
                let desired = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1) as i32;
                let seen = PodsSeen { desired, ready: if current { ready } else { 0 } };
                let before = self.pods.insert((at.namespace.clone(), at.name.clone()), seen);
                before != Some(seen)
            }
            _ => false,
        }
    }

    /// Takes note that an object is gone.
    pub fn gone(&mut self, kind: Kind, object: &Value) -> Touched {
        let Some(at) = address(kind, object) else { return Touched::default() };
        let version: u64 = text(object, "/metadata/resourceVersion").parse().unwrap_or(0);
        let mut touched = Touched::default();
        if kind == Kind::Namespace
            && self.namespaces.get(&at.name).is_some_and(|(known, _)| *known <= version)
        {
            self.drop_namespace(&at.name);
            touched.namespace = Some(at.name.clone());
        }
        if let Some(owner) = self.owners.get(&at).cloned() {
            let newer =
                self.children.get(&owner).and_then(|c| c.get(&at)).is_some_and(|r| r.version > version);
            if !newer {
                self.forget(&at, &owner);
                touched.comune = Some(owner);
                touched.drift = true;
            }
        }
        touched
    }

    /// Takes note that the operator itself has had an object deleted. What is still there shows in the watch.
    pub fn deleted(&mut self, at: &ChildRef) {
        let Some(owner) = self.owners.get(at) else { return };
        if let Some(record) = self.children.get_mut(owner).and_then(|children| children.get_mut(at)) {
            record.terminating = true;
        }
    }

    /// A watch begins anew: what is not listed until [`Self::relisted`] is gone.
    pub fn relist(&mut self, kind: Kind) {
        self.relisting.insert(kind, BTreeSet::new());
    }

    /// The list is complete. Returns what turned out to be gone.
    pub fn relisted(&mut self, kind: Kind) -> Vec<Touched> {
        let Some(listed) = self.relisting.remove(&kind) else { return Vec::new() };
        let mut touched = Vec::new();
        if kind == Kind::Namespace {
            let gone: Vec<String> = self
                .namespaces
                .keys()
                .filter(|name| !listed.contains(&ChildRef::of_namespace(name.as_str())))
                .cloned()
                .collect();
            for name in gone {
                self.drop_namespace(&name);
                touched.push(Touched { namespace: Some(name), ..Touched::default() });
            }
        }
        let gone: Vec<(ChildRef, String)> = self
            .owners
            .iter()
            .filter(|(at, _)| at.kind == kind && !listed.contains(at))
            .map(|(at, owner)| (at.clone(), owner.clone()))
            .collect();
        for (at, owner) in gone {
            self.forget(&at, &owner);
            touched.push(Touched { comune: Some(owner), drift: true, ..Touched::default() });
        }
        touched
    }

    fn forget(&mut self, at: &ChildRef, owner: &str) -> bool {
        self.owners.remove(at);
        match at.kind {
            Kind::ResourceQuota => {
                self.quotas.remove(&at.namespace);
            }
            Kind::Deployment => {
                self.pods.remove(&(at.namespace.clone(), at.name.clone()));
            }
            _ => {}
        }
        let Some(children) = self.children.get_mut(owner) else { return false };
        let known = children.remove(at).is_some();
        if children.is_empty() {
            self.children.remove(owner);
        }
        known
    }

    /// Children that a plan has found to be as they should be.
    pub fn confirm(&mut self, comune: &str, confirmed: &[ChildRef]) {
        let Some(children) = self.children.get_mut(comune) else { return };
        for at in confirmed {
            if let Some(record) = children.get_mut(at) {
                record.check = Check::Passed(record.digest);
            }
        }
    }

    /// What is seen of one Comune. `wanted` are the namespaces that its manifest asks for.
    pub fn observe(&self, comune: &str, wanted: &[String]) -> Observed {
        let mut observed = Observed::default();
        for (at, record) in self.children.get(comune).into_iter().flatten() {
            let state = match &record.check {
                Check::Passed(_) => ChildState::Intact,
                Check::Failed => ChildState::Changed,
                Check::Pending(live) => ChildState::Unchecked {
                    live: serde_json::from_str(live).unwrap_or_default(),
                    foreign: record.foreign,
                },
            };
            let seen = ChildSeen {
                uid: record.uid.clone(),
                applied: record.applied.clone(),
                state,
                terminating: record.terminating,
            };
            match at.kind {
                Kind::ResourceQuota => {
                    if let Some(quota) = self.quotas.get(&at.namespace) {
                        observed.quotas.insert(at.namespace.clone(), quota.clone());
                    }
                }
                Kind::Deployment => {
                    let key = (at.namespace.clone(), at.name.clone());
                    if let Some(pods) = self.pods.get(&key) {
                        observed.pods.insert(key, *pods);
                    }
                }
                Kind::Namespace => {
                    if let Some((_, namespace)) = self.namespaces.get(&at.name) {
                        observed.namespaces.insert(at.name.clone(), namespace.clone());
                    }
                }
                _ => {}
            }
            observed.children.insert(at.clone(), seen);
        }
        for name in wanted {
            if let Some((_, namespace)) = self.namespaces.get(name) {
                observed.namespaces.insert(name.clone(), namespace.clone());
            }
        }
        observed
    }

    /// Namespaces that the operator made, with the names of the Comuni that they belong to.
    pub fn namespaces_made(&self) -> impl Iterator<Item = (&str, &str, &NamespaceSeen)> {
        self.namespaces.iter().filter_map(|(name, (_, seen))| Some((name.as_str(), maker(seen)?, seen)))
    }

    /// Namespaces that the operator made for the administration with an ISTAT code, with the names of the Comuni that they
    /// belong to.
    pub fn namespaces_of(&self, istat: &str) -> impl Iterator<Item = (&str, &str)> {
        let names = self.by_istat.get(istat).into_iter().flatten();
        names.filter_map(|name| Some((name.as_str(), maker(&self.namespaces.get(name)?.1)?)))
    }

    /// A namespace, whoever it belongs to.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceSeen> {
        self.namespaces.get(name).map(|(_, seen)| seen)
    }

    /// Names of all Comuni that have children, whether they still exist or not.
    pub fn comuni(&self) -> impl Iterator<Item = &str> {
        self.children.keys().map(String::as_str)
    }

    /// Number of children known.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// No child is known.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}

/// The Comune that the operator made a namespace for. None: it is not the operator's.
fn maker(seen: &NamespaceSeen) -> Option<&str> {
    let managed = seen.labels.get(keys::MANAGED_BY).is_some_and(|by| by == keys::MANAGER);
    seen.labels.get(keys::COMUNE).filter(|_| managed).map(String::as_str)
}

fn address(kind: Kind, object: &Value) -> Option<ChildRef> {
    let name = object.pointer("/metadata/name")?.as_str()?;
    Some(ChildRef::new(kind, text(object, "/metadata/namespace"), name))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn texts(map: Option<&Value>) -> BTreeMap<String, String> {
    map.and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn amounts(map: Option<&Value>) -> BTreeMap<String, Amount> {
    texts(map)
        .into_iter()
        .filter_map(|(resource, text)| Some((resource, Amount::parse(&text).ok()?)))
        .collect()
}

fn digest(text: &str) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(version: u64, edit: impl FnOnce(&mut Value)) -> Value {
        let mut object = json!({
            "metadata": {
                "name": "portale", "namespace": "dolo-produzione", "uid": "u1", "resourceVersion": version.to_string(),
                "labels": {"conme.venis.it/comune": "dolo", "app.kubernetes.io/managed-by": "conme"},
                "annotations": {"conme.venis.it/applied": "h1"},
                "managedFields": [{"manager": "conme", "operation": "Apply", "fieldsV1": {"f:data": {}}}],
            },
            "data": {"a": "1"},
        });
        edit(&mut object);
        object
    }

    fn state(index: &Index) -> ChildState {
        index.observe("dolo", &[]).children.into_values().next().unwrap().state
    }

    #[test]
    fn what_the_operator_wrote_is_intact_until_somebody_changes_it() {
        let mut index = Index::default();
        index.written(Kind::ConfigMap, config(5, |_| {}));
        assert_eq!(state(&index), ChildState::Intact);
        // The echo of the own write, and news older than it, change nothing.
        assert_eq!(index.seen(Kind::ConfigMap, config(5, |_| {})), Touched::default());
        assert_eq!(index.seen(Kind::ConfigMap, config(4, |o| o["data"] = json!({}))), Touched::default());
        // A status or a bare touch is no drift.
        assert!(!index.seen(Kind::ConfigMap, config(6, |o| o["status"] = json!({"x": 1}))).drift);
        assert_eq!(state(&index), ChildState::Intact);
        // A value edited by somebody who claims to be the operator is.
        let touched = index.seen(Kind::ConfigMap, config(7, |o| o["data"]["a"] = json!("2")));
        assert!(touched.drift && touched.comune.as_deref() == Some("dolo"));
        assert_eq!(state(&index), ChildState::Changed);
    }

    #[test]
    fn rule_5_foreign_ownership_of_equal_values_is_drift_too() {
        let mut index = Index::default();
        index.written(Kind::ConfigMap, config(5, |_| {}));
        let touched = index.seen(
            Kind::ConfigMap,
            config(6, |o| {
                o["metadata"]["managedFields"].as_array_mut().unwrap().push(
                    json!({"manager": "k", "operation": "Update", "fieldsV1": {"f:data": {"f:a": {}}}}),
                );
            }),
        );
        assert!(touched.drift);
    }

    #[test]
    fn after_a_start_everything_is_to_be_checked_and_confirmed_once() {
        let mut index = Index::default();
        index.relist(Kind::ConfigMap);
        index.seen(Kind::ConfigMap, config(5, |_| {}));
        assert!(index.relisted(Kind::ConfigMap).is_empty());
        assert!(matches!(state(&index), ChildState::Unchecked { foreign: false, .. }));
        let at = ChildRef::new(Kind::ConfigMap, "dolo-produzione", "portale");
        index.confirm("dolo", std::slice::from_ref(&at));
        assert_eq!(state(&index), ChildState::Intact);
        // What is missing from a later list is gone.
        index.relist(Kind::ConfigMap);
        let gone = index.relisted(Kind::ConfigMap);
        assert_eq!(gone.len(), 1);
        assert!(index.is_empty());
    }

    #[test]
    fn labels_taken_off_a_child_wake_its_comune() {
        let mut index = Index::default();
        index.written(Kind::ConfigMap, config(5, |_| {}));
        let touched = index.seen(Kind::ConfigMap, config(6, |o| o["metadata"]["labels"] = json!({})));
        assert_eq!(touched.comune.as_deref(), Some("dolo"));
        assert!(touched.drift);
    }

    #[test]
    fn a_child_given_to_another_comune_wakes_the_one_it_belongs_to() {
        let mut index = Index::default();
        index.written(Kind::ConfigMap, config(5, |_| {}));
        let touched =
            index.seen(Kind::ConfigMap, config(6, |o| o["metadata"]["labels"][keys::COMUNE] = json!("mira")));
        assert_eq!(touched.former.as_deref(), Some("dolo"));
        assert_eq!(touched.comune.as_deref(), Some("mira"));
    }

    #[test]
    fn a_deletion_older_than_the_present_object_is_ignored() {
        let mut index = Index::default();
        index.written(Kind::ConfigMap, config(9, |_| {}));
        assert_eq!(index.gone(Kind::ConfigMap, &config(8, |_| {})), Touched::default());
        assert!(index.gone(Kind::ConfigMap, &config(10, |_| {})).drift);
    }

    #[test]
    fn the_namespaces_of_an_administration_are_found_by_its_code_as_it_stands_now() {
        let namespace = |version: u64, istat: &str, managed: &str| {
            json!({"metadata": {
                "name": "dolo-produzione", "uid": "n1", "resourceVersion": version.to_string(),
                "labels": {"conme.venis.it/comune": "dolo", "conme.venis.it/istat": istat,
                           "app.kubernetes.io/managed-by": managed},
            }})
        };
        let mut index = Index::default();
        let found = |index: &Index, istat: &str| {
            index.namespaces_of(istat).map(|(name, by)| (name.to_owned(), by.to_owned())).collect::<Vec<_>>()
        };
        let own = [("dolo-produzione".to_owned(), "dolo".to_owned())];
        index.seen(Kind::Namespace, namespace(1, "027012", "conme"));
        assert_eq!(found(&index, "027012"), own);
        index.seen(Kind::Namespace, namespace(2, "027099", "conme"));
        assert_eq!((found(&index, "027012"), found(&index, "027099")), (vec![], own.to_vec()));
        index.seen(Kind::Namespace, namespace(3, "027099", "somebody"));
        assert!(found(&index, "027099").is_empty());
        index.seen(Kind::Namespace, namespace(4, "027012", "conme"));
        index.gone(Kind::Namespace, &namespace(5, "027012", "conme"));
        assert!(found(&index, "027012").is_empty() && index.by_istat.is_empty());
    }
}
