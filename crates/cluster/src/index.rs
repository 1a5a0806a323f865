//! What is known of every child, as small as possible.
//!
//! A child that arrives from a watch is reduced to its identity, a digest of everything that does not change by
//! itself, and a few figures. A child that has been checked against what should be is remembered by its digest:
//! whatever anybody changes afterwards changes the digest, whoever they claim to be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use conme_api::keys;
use conme_blueprint::{
    ChildRef, ChildSeen, ChildState, Kind, NamespaceSeen, Observed, PodsSeen, child,
    shelf::{Shelf, Stored},
};
use serde_json::Value;

use crate::compact::{At, Pairs, Pool, Quota, Token};

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
    uid: Token,
    applied: Token,
    version: u64,
    digest: [u8; 16],
    foreign: bool,
    terminating: bool,
    check: Check,
}

#[derive(Debug)]
enum Check {
    /// As it is by its digest, it is as it should be.
    Passed,
    /// Not checked since the start: the stripped object.
    Pending(Box<Stored>),
    /// Changed since it was checked.
    Failed(Box<Wrong>),
}

/// What is known of a child that is not as it should be.
#[derive(Debug)]
struct Wrong {
    /// The digest that it had when it was right.
    right: [u8; 16],
    /// The merge patch that makes it right again, where something was only added to it.
    removal: Option<Value>,
}

/// A namespace, as small as possible.
#[derive(Debug, PartialEq)]
struct Namespace {
    uid: Token,
    labels: Pairs,
    annotations: Pairs,
    terminating: bool,
}

impl Namespace {
    fn seen(&self) -> NamespaceSeen {
        NamespaceSeen {
            uid: self.uid.to_string(),
            labels: self.labels.to_map(),
            annotations: self.annotations.to_map(),
            terminating: self.terminating,
        }
    }

    /// The Comune that the operator made it for. None: it is not the operator's.
    fn maker(&self) -> Option<&str> {
        self.labels.get(keys::MANAGED_BY).filter(|by| *by == keys::MANAGER)?;
        self.labels.get(keys::COMUNE)
    }
}

/// Children that were forgotten last, each with the version that ended it.
#[derive(Default)]
struct Departed {
    versions: HashMap<At, u64>,
    order: VecDeque<At>,
}

/// Far more than can be forgotten while one call of the operator is under way.
const DEPARTED: usize = 4096;

impl Departed {
    fn put(&mut self, at: &At, version: u64) {
        if self.versions.insert(at.clone(), version).is_none() {
            self.order.push_back(at.clone());
        }
        if self.order.len() > DEPARTED
            && let Some(oldest) = self.order.pop_front()
        {
            self.versions.remove(&oldest);
        }
    }

    fn is_after(&self, at: &At, version: u64) -> bool {
        self.versions.get(at).is_some_and(|ended| *ended > version)
    }
}

/// The children of one Comune, sorted by address. A tree of so few would be half empty.
#[derive(Default)]
struct Children(Vec<(At, Record)>);

/// Places that are made at once when there is none left.
const PLACES: usize = 4;

impl Children {
    fn place(&self, at: &At) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(at))
    }

    fn get(&self, at: &At) -> Option<&Record> {
        self.place(at).ok().map(|place| &self.0[place].1)
    }

    fn get_mut(&mut self, at: &At) -> Option<&mut Record> {
        self.place(at).ok().map(|place| &mut self.0[place].1)
    }

    fn contains(&self, at: &At) -> bool {
        self.place(at).is_ok()
    }

    fn insert(&mut self, at: At, record: Record) {
        match self.place(&at) {
            Ok(place) => self.0[place].1 = record,
            Err(place) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(PLACES);
                }
                self.0.insert(place, (at, record));
            }
        }
    }

    fn remove(&mut self, at: &At) {
        if let Ok(place) = self.place(at) {
            self.0.remove(place);
        }
    }

    fn keys(&self) -> impl Iterator<Item = &At> {
        self.0.iter().map(|(at, _)| at)
    }
}

/// What is known of every child.
#[derive(Default)]
pub struct Index {
    pool: Pool,
    shelves: HashMap<Kind, Shelf>,
    children: HashMap<Arc<str>, Children>,
    /// By namespace, the Comuni that have children in it, or it itself: hardly ever more than one.
    owners: HashMap<Arc<str>, Vec<Arc<str>>>,
    namespaces: BTreeMap<Arc<str>, (u64, Namespace)>,
    /// Namespaces that the operator made, by the ISTAT code on them.
    by_istat: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    quotas: HashMap<Arc<str>, Quota>,
    pods: HashMap<At, PodsSeen>,
    relisting: HashMap<Kind, HashSet<At>>,
    departed: Departed,
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
        let Some(name) = object.pointer("/metadata/name").and_then(Value::as_str) else {
            return Touched::default();
        };
        let at = self.pool.at(kind, text(&object, "/metadata/namespace"), name);
        if let Some(listed) = self.relisting.get_mut(&kind) {
            listed.insert(at.clone());
        }
        let version = text(&object, "/metadata/resourceVersion").parse().unwrap_or(0);
        // The answer to an own write can come after the news of what somebody did next.
        if own && self.departed.is_after(&at, version) {
            return Touched::default();
        }
        let mut touched = Touched::default();
        if kind == Kind::Namespace {
            match self.note_namespace(&at.name, version, &object) {
                Some(changed) => touched.namespace = changed.then(|| at.name.to_string()),
                None => return touched,
            }
        }
        let comune = text(&object, "/metadata/labels/conme.venis.it~1comune");
        let managed = text(&object, "/metadata/labels/app.kubernetes.io~1managed-by") == keys::MANAGER;
        let previous_owner = self.owner(&at);
        if comune.is_empty() || !managed {
            // Somebody took the labels off a child: its Comune has to put them back.
            if let Some(owner) = previous_owner {
                self.forget(&at, &owner);
                self.departed.put(&at, version);
                touched.comune = Some(owner.to_string());
                touched.drift = true;
            }
            return touched;
        }
        let comune = self.pool.shared(comune);
        if let Some(owner) = previous_owner.filter(|owner| *owner != comune) {
            self.forget(&at, &owner);
            touched.former = Some(owner.to_string());
        }
        let known = self.children.get(&comune).and_then(|children| children.get(&at));
        if known.is_some_and(|record| record.version > version) {
            return Touched::default();
        }
        let figures_changed = self.note_figures(&at, &object);
        let uid = Token::from(text(&object, "/metadata/uid"));
        let applied = Token::from(text(&object, "/metadata/annotations/conme.venis.it~1applied"));
        let terminating = !text(&object, "/metadata/deletionTimestamp").is_empty();
        let foreign = child::has_foreign_fields(kind, &object);
        let removal = if foreign && !own { child::removal_of_additions(kind, &object) } else { None };
        child::strip(kind, &mut object);
        let stripped = object.to_string();
        let digest = digest(&stripped);

        let known = self.children.get(&comune).and_then(|children| children.get(&at));
        let check = match known {
            _ if own => Check::Passed,
            Some(record) if record.uid == uid => match &record.check {
                Check::Passed if record.digest == digest && (record.foreign || !foreign) => Check::Passed,
                Check::Passed => Check::Failed(Box::new(wrong(record.digest, object, removal))),
                Check::Failed(known) => Check::Failed(Box::new(wrong(known.right, object, removal))),
                Check::Pending(_) => {
                    Check::Pending(Box::new(self.shelves.entry(kind).or_default().put(&stripped)))
                }
            },
            _ => Check::Pending(Box::new(self.shelves.entry(kind).or_default().put(&stripped))),
        };
        let failed = matches!(check, Check::Failed(_));
        touched.drift = failed && known.is_some_and(|record| !matches!(record.check, Check::Failed(_)));
        let changed = known.is_none_or(|record| {
            record.uid != uid || record.digest != digest || record.terminating != terminating || touched.drift
        });
        let record = Record { uid, applied, version, digest, foreign, terminating, check };
        let owners = self.owners.entry(at.home().clone()).or_default();
        if !owners.contains(&comune) {
            owners.reserve_exact(1);
            owners.push(comune.clone());
        }
        self.children.entry(comune.clone()).or_default().insert(at, record);
        if changed || figures_changed {
            touched.comune = Some(comune.to_string());
        }
        touched
    }

    /// The Comune that a child is known to belong to.
    fn owner(&self, at: &At) -> Option<Arc<str>> {
        let has = |owner: &&Arc<str>| self.children.get(*owner).is_some_and(|children| children.contains(at));
        self.owners.get(at.home())?.iter().find(has).cloned()
    }

    /// Returns None for news that are older than what is known, else whether ownership has changed.
    fn note_namespace(&mut self, name: &Arc<str>, version: u64, object: &Value) -> Option<bool> {
        let seen = Namespace {
            uid: Token::from(text(object, "/metadata/uid")),
            labels: self.pool.pairs(object.pointer("/metadata/labels"), |_| true),
            annotations: self
                .pool
                .pairs(object.pointer("/metadata/annotations"), |key| key.starts_with("conme.venis.it/")),
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
                if let (Some(_), Some(istat)) = (seen.maker(), seen.labels.get(keys::ISTAT)) {
                    self.by_istat.entry(self.pool.shared(istat)).or_default().insert(name.clone());
                }
                self.namespaces.insert(name.clone(), (version, seen));
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

    fn note_figures(&mut self, at: &At, object: &Value) -> bool {
        match at.kind {
            Kind::ResourceQuota => {
                let seen = Quota::of(&mut self.pool, object);
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
                let before = self.pods.insert(at.clone(), seen);
                before != Some(seen)
            }
            _ => false,
        }
    }

    /// Whether a child that somebody had changed is exactly as it was when it was right the last time, and nobody else
    /// owns any of it.
    pub fn is_as_it_was(&mut self, kind: Kind, object: &Value) -> bool {
        let at = self.pool.at(kind, text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let Some(owner) = self.owner(&at) else { return false };
        let Some(record) = self.children.get(&owner).and_then(|children| children.get(&at)) else {
            return false;
        };
        let Check::Failed(wrong) = &record.check else { return false };
        if record.uid != Token::from(text(object, "/metadata/uid")) || child::has_foreign_fields(kind, object)
        {
            return false;
        }
        let mut object = object.clone();
        child::strip(kind, &mut object);
        digest(&object.to_string()) == wrong.right
    }

    /// The merge patch that makes a child right again to which somebody has only added something.
    pub fn removal(&mut self, at: &ChildRef) -> Option<Value> {
        let at = self.pool.at(at.kind, &at.namespace, &at.name);
        let owner = self.owner(&at)?;
        match &self.children.get(&owner)?.get(&at)?.check {
            Check::Failed(wrong) => wrong.removal.clone(),
            Check::Passed | Check::Pending(_) => None,
        }
    }

    /// Takes note that an object is gone.
    pub fn gone(&mut self, kind: Kind, object: &Value) -> Touched {
        let Some(name) = object.pointer("/metadata/name").and_then(Value::as_str) else {
            return Touched::default();
        };
        let at = self.pool.at(kind, text(object, "/metadata/namespace"), name);
        let version: u64 = text(object, "/metadata/resourceVersion").parse().unwrap_or(0);
        let mut touched = Touched::default();
        if kind == Kind::Namespace
            && self.namespaces.get(&at.name).is_some_and(|(known, _)| *known <= version)
        {
            self.drop_namespace(&at.name);
            touched.namespace = Some(at.name.to_string());
        }
        if let Some(owner) = self.owner(&at) {
            let newer =
                self.children.get(&owner).and_then(|c| c.get(&at)).is_some_and(|r| r.version > version);
            if !newer {
                self.forget(&at, &owner);
                self.departed.put(&at, version);
                touched.comune = Some(owner.to_string());
                touched.drift = true;
            }
        }
        touched
    }

    /// Takes note that the operator itself has had an object deleted. What is still there shows in the watch.
    pub fn deleted(&mut self, at: &ChildRef) {
        let at = self.pool.at(at.kind, &at.namespace, &at.name);
        let Some(owner) = self.owner(&at) else { return };
        if let Some(record) = self.children.get_mut(&owner).and_then(|children| children.get_mut(&at)) {
            record.terminating = true;
        }
    }

    /// A watch begins anew: what is not listed until [`Self::relisted`] is gone.
    pub fn relist(&mut self, kind: Kind) {
        self.relisting.insert(kind, HashSet::new());
    }

    /// The list is complete. Returns what turned out to be gone.
    pub fn relisted(&mut self, kind: Kind) -> Vec<Touched> {
        let Some(listed) = self.relisting.remove(&kind) else { return Vec::new() };
        let mut touched = Vec::new();
        if kind == Kind::Namespace {
            let names: HashSet<&str> = listed.iter().map(|at| &*at.name).collect();
            let gone: Vec<Arc<str>> =
                self.namespaces.keys().filter(|name| !names.contains(&***name)).cloned().collect();
            for name in gone {
                self.drop_namespace(&name);
                touched.push(Touched { namespace: Some(name.to_string()), ..Touched::default() });
            }
        }
        let all =
            self.children.iter().flat_map(|(owner, children)| children.keys().map(move |at| (at, owner)));
        let gone: Vec<(At, Arc<str>)> = all
            .filter(|(at, _)| at.kind == kind && !listed.contains(*at))
            .map(|(at, owner)| (at.clone(), owner.clone()))
            .collect();
        for (at, owner) in gone {
            self.forget(&at, &owner);
            touched.push(Touched { comune: Some(owner.to_string()), drift: true, ..Touched::default() });
        }
        touched
    }

    fn forget(&mut self, at: &At, owner: &Arc<str>) {
        match at.kind {
            Kind::ResourceQuota => {
                self.quotas.remove(&at.namespace);
            }
            Kind::Deployment => {
                self.pods.remove(at);
            }
            _ => {}
        }
        let Some(children) = self.children.get_mut(owner) else { return };
        children.remove(at);
        if children.0.is_empty() {
            self.children.remove(owner);
        }
        let home = at.home();
        let has_more = self.children.get(owner).is_some_and(|left| left.keys().any(|at| at.home() == home));
        if !has_more && let Some(owners) = self.owners.get_mut(home) {
            owners.retain(|known| known != owner);
            if owners.is_empty() {
                self.owners.remove(home);
            }
        }
    }

    /// Children that a plan has found to be as they should be.
    pub fn confirm(&mut self, comune: &str, confirmed: &[ChildRef]) {
        let Some(children) = self.children.get_mut(comune) else { return };
        for at in confirmed {
            let at = self.pool.at(at.kind, &at.namespace, &at.name);
            if let Some(record) = children.get_mut(&at) {
                record.check = Check::Passed;
            }
        }
    }

    /// What is seen of one Comune. `wanted` are the namespaces that its manifest asks for.
    pub fn observe(&self, comune: &str, wanted: &[String]) -> Observed {
        let mut observed = Observed::default();
        for (at, record) in self.children.get(comune).into_iter().flat_map(|children| &children.0) {
            let state = match &record.check {
                Check::Passed => ChildState::Intact,
                Check::Failed(_) => ChildState::Changed,
                Check::Pending(stored) => ChildState::Unchecked {
                    live: serde_json::from_str(&stored.text()).unwrap_or_default(),
                    foreign: record.foreign,
                },
            };
            let seen = ChildSeen {
                uid: record.uid.to_string(),
                applied: record.applied.to_string(),
                state,
                terminating: record.terminating,
            };
            match at.kind {
                Kind::ResourceQuota => {
                    if let Some(quota) = self.quotas.get(&at.namespace) {
                        observed.quotas.insert(at.namespace.to_string(), quota.seen());
                    }
                }
                Kind::Deployment => {
                    if let Some(pods) = self.pods.get(at) {
                        observed.pods.insert((at.namespace.to_string(), at.name.to_string()), *pods);
                    }
                }
                Kind::Namespace => {
                    if let Some(namespace) = self.namespace(&at.name) {
                        observed.namespaces.insert(at.name.to_string(), namespace);
                    }
                }
                _ => {}
            }
            observed.children.insert(at.to_ref(), seen);
        }
        for name in wanted {
            if let Some(namespace) = self.namespace(name) {
                observed.namespaces.insert(name.clone(), namespace);
            }
        }
        observed
    }

    /// Namespaces that the operator made, with the names of the Comuni that they belong to.
    pub fn namespaces_made(&self) -> impl Iterator<Item = (&str, &str, NamespaceSeen)> {
        self.namespaces.iter().filter_map(|(name, (_, known))| Some((&**name, known.maker()?, known.seen())))
    }

    /// Namespaces that the operator made for the administration with an ISTAT code, with the names of the Comuni that they
    /// belong to.
    pub fn namespaces_of(&self, istat: &str) -> impl Iterator<Item = (&str, &str)> {
        let names = self.by_istat.get(istat).into_iter().flatten();
        names.filter_map(|name| Some((&**name, self.namespaces.get(name)?.1.maker()?)))
    }

    /// A namespace, whoever it belongs to.
    pub fn namespace(&self, name: &str) -> Option<NamespaceSeen> {
        self.namespaces.get(name).map(|(_, known)| known.seen())
    }

    /// Names of all Comuni that have children, whether they still exist or not.
    pub fn comuni(&self) -> impl Iterator<Item = &str> {
        self.children.keys().map(|name| &**name)
    }

    /// Number of children known.
    pub fn len(&self) -> usize {
        self.children.values().map(|children| children.0.len()).sum()
    }

    /// No child is known.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A stripped object that is not as it was, and what might make it so.
fn wrong(right: [u8; 16], mut object: Value, removal: Option<Value>) -> Wrong {
    let removal = removal.filter(|patch| {
        json_patch::merge(&mut object, patch);
        digest(&object.to_string()) == right
    });
    Wrong { right, removal }
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
    fn what_is_as_it_was_before_somebody_changed_it_is_told_from_what_is_not() {
        let mut index = Index::default();
        let right = config(5, |_| {});
        assert!(!index.is_as_it_was(Kind::ConfigMap, &right), "unknown");
        index.written(Kind::ConfigMap, right);
        index.seen(Kind::ConfigMap, config(6, |o| o["data"]["a"] = json!("2")));
        index.seen(Kind::ConfigMap, config(7, |o| o["data"]["b"] = json!("3")));
        let mut is_as_it_was = |edit: &dyn Fn(&mut Value)| {
            let mut object = config(8, |o| o["status"] = json!({"x": 1}));
            edit(&mut object);
            index.is_as_it_was(Kind::ConfigMap, &object)
        };
        assert!(is_as_it_was(&|_| {}));
        assert!(!is_as_it_was(&|o| o["data"]["b"] = json!("3")));
        assert!(
            !is_as_it_was(&|o| o["metadata"]["annotations"][keys::APPLIED] = json!("h2")),
            "not asked for then"
        );
        assert!(!is_as_it_was(&|o| o["metadata"]["uid"] = json!("u2")), "another of this name");
        let foreign = json!({"manager": "k", "operation": "Update", "fieldsV1": {"f:data": {"f:a": {}}}});
        assert!(!is_as_it_was(&|o| o["metadata"]["managedFields"]
            .as_array_mut()
            .unwrap()
            .push(foreign.clone())));
        index.written(Kind::ConfigMap, config(9, |_| {}));
        assert!(!index.is_as_it_was(Kind::ConfigMap, &config(9, |_| {})), "nobody has changed it");
    }

    #[test]
    fn what_was_only_added_to_is_made_right_by_one_patch() {
        let mut index = Index::default();
        let at = ChildRef::new(Kind::ConfigMap, "dolo-produzione", "portale");
        index.written(Kind::ConfigMap, config(5, |_| {}));
        assert_eq!(index.removal(&at), None);
        let added = |object: &mut Value| {
            object["metadata"]["annotations"]["x"] = json!("1");
            let fields = json!({"f:metadata": {"f:annotations": {"f:x": {}}}});
            let entry = json!({"manager": "k", "operation": "Update", "fieldsV1": fields});
            object["metadata"]["managedFields"].as_array_mut().unwrap().push(entry);
        };
        index.seen(Kind::ConfigMap, config(6, added));
        assert_eq!(index.removal(&at), Some(json!({"metadata": {"annotations": {"x": null}}})));
        // Something of the operator's own was changed as well.
        let changed = |object: &mut Value| {
            added(object);
            object["data"]["a"] = json!("2");
        };
        index.seen(Kind::ConfigMap, config(7, changed));
        assert_eq!(index.removal(&at), None);
        index.seen(Kind::ConfigMap, config(8, added));
        assert!(index.removal(&at).is_some());
        index.written(Kind::ConfigMap, config(9, |_| {}));
        assert_eq!(index.removal(&at), None);
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

    #[test]
    fn an_answer_that_comes_after_the_news_of_what_followed_brings_nothing_back() {
        let unmarked = |version| config(version, |o| o["metadata"]["labels"] = json!({}));
        let mut index = Index::default();
        index.seen(Kind::ConfigMap, config(5, |_| {}));
        assert!(index.seen(Kind::ConfigMap, unmarked(6)).drift);
        // Else it would be taken for intact, and nobody would look again.
        index.written(Kind::ConfigMap, config(5, |_| {}));
        assert!(index.is_empty());
        index.written(Kind::ConfigMap, config(7, |_| {}));
        assert_eq!(state(&index), ChildState::Intact);
        assert!(index.gone(Kind::ConfigMap, &config(9, |_| {})).drift);
        index.written(Kind::ConfigMap, config(8, |_| {}));
        assert!(index.is_empty());
    }
}
