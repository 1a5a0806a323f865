//! A small API server: what of it matters to the operator, with faults on demand. It refuses, by panicking, what
//! the operator must never do.

use std::collections::{BTreeMap, BTreeSet};

use conme_api::keys;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    Action, ChildRef, ChildSeen, ChildState, DatabaseDetails, DatabaseSeen, Desired, Kind, NamespaceSeen,
    Observed, Plan, PodsSeen, ValidComune, Wave, amount::Amount, capacity::Amounts, plan::plan,
    quota::QuotaSeen,
};

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It succeeds.
    Fine,
    /// It fails and nothing has happened.
    Refused,
    /// It succeeds, but the answer is lost.
    AnswerLost,
}

/// A stored object.
#[derive(Clone, Debug)]
pub struct Live {
    pub uid: String,
    pub body: Value,
    /// Somebody else owns fields of it.
    pub foreign: bool,
    /// Changed by somebody else since the operator wrote or checked it.
    pub changed: bool,
    pub terminating: bool,
}

impl Live {
    fn text(&self, section: &str, key: &str) -> Option<&str> {
        self.body["metadata"][section].get(key).and_then(Value::as_str)
    }

    fn texts(&self, section: &str) -> BTreeMap<String, String> {
        let map = self.body["metadata"][section].as_object().cloned().unwrap_or_default();
        map.into_iter().map(|(key, value)| (key, value.as_str().unwrap_or_default().to_owned())).collect()
    }
}

/// The server, and what the operator remembers of it.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub objects: BTreeMap<ChildRef, Live>,
    pub enforced: BTreeMap<String, Amounts>,
    pub used: BTreeMap<String, Amounts>,
    pub databases: BTreeSet<String>,
    /// Children that the operator holds a fingerprint of: lost at a restart.
    remembered: BTreeSet<ChildRef>,
    uids: u32,
    /// Totals of the Comune at this instant; no set of quotas may grow beyond them.
    total: Amounts,
    /// Every volume claim that was ever made.
    pub claims: BTreeSet<ChildRef>,
    /// Calls that changed something.
    pub writes: usize,
}

/// What guards every namespace of a Comune.
pub const GUARDS: [(Kind, &str); 5] = [
    (Kind::ResourceQuota, "conme-quota"),
    (Kind::LimitRange, "conme-limits"),
    (Kind::NetworkPolicy, "conme-default-deny"),
    (Kind::NetworkPolicy, "conme-environment"),
    (Kind::RoleBinding, "conme-operator"),
];

impl World {
    /// A world in which these databases are ready.
    pub fn with_databases<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { databases: names.into_iter().map(str::to_owned).collect(), ..Self::default() }
    }

    /// Somebody else makes a namespace, unless there is one of this name.
    pub fn put_foreign_namespace(&mut self, name: &str, labels: Value, annotations: Value) {
        let uid = self.uid();
        let body = json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}});
        let live = Live { uid, body, foreign: true, changed: false, terminating: false };
        self.objects.entry(ChildRef::of_namespace(name)).or_insert(live);
    }

    /// A person deletes a namespace: its contents go at once, the namespace itself when it is let go.
    pub fn begin_deletion(&mut self, namespace: &str) {
        let Some(live) = self.objects.get_mut(&ChildRef::of_namespace(namespace)) else { return };
        live.terminating = true;
        self.objects.retain(|at, _| at.namespace != namespace);
        self.claims.retain(|at| at.namespace != namespace);
        self.enforced.remove(namespace);
    }

    /// Namespaces that are being deleted, and those of nobody, are gone.
    pub fn clear_the_way(&mut self) {
        self.objects.retain(|at, live| {
            at.kind != Kind::Namespace || (!live.terminating && live.text("labels", keys::COMUNE).is_some())
        });
        let objects = &self.objects;
        self.remembered.retain(|at| objects.contains_key(at));
    }

    fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    /// The operator starts again: its memory is gone.
    pub fn restart(&mut self) {
        self.remembered.clear();
    }

    /// The quota controller brings `status.hard` up to date.
    pub fn catch_up(&mut self, namespace: &str) {
        let spec = self.quota_spec(namespace);
        if self.enforced.get(namespace) == Some(&spec) {
            return;
        }
        let before = self.promised();
        self.enforced.insert(namespace.into(), spec);
        self.check_total(&before);
    }

    pub fn catch_up_everywhere(&mut self) {
        let namespaces: Vec<String> =
            self.objects.keys().filter(|at| at.kind == Kind::Namespace).map(|at| at.name.clone()).collect();
        for namespace in namespaces {
            self.catch_up(&namespace);
        }
    }

    fn quota_spec(&self, namespace: &str) -> Amounts {
        let at = ChildRef::new(Kind::ResourceQuota, namespace, "conme-quota");
        let hard = self.objects.get(&at).map(|live| live.body["spec"]["hard"].clone()).unwrap_or_default();
        hard.as_object()
            .into_iter()
            .flatten()
            .map(|(resource, text)| (resource.clone(), Amount::parse(text.as_str().unwrap()).unwrap()))
            .collect()
    }

    /// What all namespaces together may take at this instant: `max(spec, status)` of each.
    fn promised(&self) -> Amounts {
        let mut sum = Amounts::new();
        for at in self.objects.keys().filter(|at| at.kind == Kind::ResourceQuota) {
            let mut most = self.quota_spec(&at.namespace);
            for (resource, amount) in self.enforced.get(&at.namespace).into_iter().flatten() {
                let entry = most.entry(resource.clone()).or_default();
                *entry = (*entry).max(*amount);
            }
            for (resource, amount) in most {
                *sum.entry(resource).or_default() += amount;
            }
        }
        sum
    }

    /// Nothing may grow beyond the total. Where a total was lowered, what is beyond it may only shrink.
    fn check_total(&self, before: &Amounts) {
        for (resource, amount) in self.promised() {
            let total = self.total.get(&resource).copied().unwrap_or_default();
            let limit = total.max(before.get(&resource).copied().unwrap_or_default());
            assert!(amount <= limit, "{resource}: {amount:?} promised at once, at most {limit:?} allowed");
        }
    }

    /// Somebody changes a child: by a value of its own (`foreign`), or by taking away one of the operator's.
    pub fn tamper(&mut self, index: usize, foreign: bool) {
        let children: Vec<ChildRef> = self
            .objects
            .iter()
            .filter(|(at, live)| {
                at.kind != Kind::Namespace
                    && at.kind != Kind::ResourceQuota
                    && live.text("labels", keys::COMUNE).is_some()
            })
            .map(|(at, _)| at.clone())
            .collect();
        let Some(at) = children.get(index % children.len().max(1)) else { return };
        let live = self.objects.get_mut(at).unwrap();
        live.changed = true;
        live.foreign |= foreign;
        live.body["metadata"]["labels"][keys::COMPONENT] = json!("elsewhere");
    }

    /// What the operator's caches say of a Comune.
    pub fn observe(&self, comune: &str) -> Observed {
        let mut observed = Observed::default();
        for (at, live) in &self.objects {
            if at.kind == Kind::Namespace {
                let seen = NamespaceSeen {
                    uid: live.uid.clone(),
                    labels: live.texts("labels"),
                    annotations: live.texts("annotations"),
                    terminating: live.terminating,
                };
                observed.namespaces.insert(at.name.clone(), seen);
            }
            let managed = live.text("labels", keys::MANAGED_BY) == Some(keys::MANAGER);
            if !managed || live.text("labels", keys::COMUNE) != Some(comune) {
                continue;
            }
            let state = if live.changed && self.remembered.contains(at) {
                ChildState::Changed
            } else if self.remembered.contains(at) {
                ChildState::Intact
            } else {
                ChildState::Unchecked { live: live.body.clone(), foreign: live.foreign }
            };
            let applied = live.text("annotations", keys::APPLIED).unwrap_or_default().to_owned();
            let seen = ChildSeen { uid: live.uid.clone(), applied, state, terminating: live.terminating };
            observed.children.insert(at.clone(), seen);
            match at.kind {
                Kind::ResourceQuota => {
                    let of =
                        |map: &BTreeMap<String, Amounts>| map.get(&at.namespace).cloned().unwrap_or_default();
                    let seen = QuotaSeen {
                        spec: self.quota_spec(&at.namespace),
                        enforced: of(&self.enforced),
                        used: of(&self.used),
                    };
                    observed.quotas.insert(at.namespace.clone(), seen);
                }
                Kind::Deployment => {
                    let key = (at.namespace.clone(), at.name.clone());
                    observed.pods.insert(key, PodsSeen { desired: 1, ready: 1 });
                }
                _ => {}
            }
        }
        for database in &self.databases {
            let ready = DatabaseSeen::Ready {
                system_identifier: "7301".into(),
                provisioned_at: Timestamp::UNIX_EPOCH,
                database: format!("{comune}__{database}"),
                details: Box::new(DatabaseDetails::default()),
            };
            observed.databases.insert(database.clone(), ready);
        }
        observed
    }

    /// One pass of the operator: plan, and execute wave by wave. A wave whose calls did not all succeed is the last.
    pub fn pass(&mut self, comune: &ValidComune, now: Timestamp, mut fate: impl FnMut() -> Fate) -> Plan {
        self.total = crate::build::hard(&comune.totals);
        let plan = plan(comune, &self.observe(&comune.name), now);
        self.remembered.extend(plan.confirmed.iter().cloned());
        for (wave, actions) in &plan.waves {
            let mut failed = false;
            for action in actions {
                let fate = fate();
                let before = (action.at().kind == Kind::ResourceQuota).then(|| self.promised());
                let done = fate != Fate::Refused && self.call(comune, *wave, action);
                failed |= fate != Fate::Fine || !done;
                if let Some(before) = before {
                    self.check_total(&before);
                }
            }
            if failed {
                break;
            }
        }
        plan
    }

    /// Executes one call. False when the server refuses it.
    fn call(&mut self, comune: &ValidComune, wave: Wave, action: &Action) -> bool {
        match action {
            Action::Delete { at, uid } => {
                assert!(at.kind.may_be_pruned(), "{at} may hold data and was to be deleted");
                self.check_owner(at, comune);
                let same = self.objects.get(at).is_some_and(|live| live.uid == *uid);
                if same {
                    self.objects.remove(at);
                    self.remembered.remove(at);
                    self.writes += 1;
                }
                same
            }
            Action::Apply { desired, uid, repair } => {
                self.apply(comune, wave, desired, uid.as_deref(), *repair)
            }
        }
    }

    fn apply(
        &mut self,
        comune: &ValidComune,
        wave: Wave,
        desired: &Desired,
        uid: Option<&str>,
        repair: bool,
    ) -> bool {
        let at = &desired.at;
        self.check_owner(at, comune);
        assert_eq!(wave, desired.wave, "{at} is in the wrong wave");
        if at.kind != Kind::Namespace && !self.objects.contains_key(&ChildRef::of_namespace(&at.namespace)) {
            return false;
        }
        if wave == Wave::Contents {
            for (kind, name) in GUARDS {
                let guard = ChildRef::new(kind, &at.namespace, name);
                assert!(self.objects.contains_key(&guard), "{at} is written before {guard}");
            }
        }
        if self.objects.get(at).map(|live| live.uid.as_str()) != uid {
            return false;
        }
        let new_uid = self.uid();
        let live = self.objects.entry(at.clone()).or_insert_with(|| Live {
            uid: new_uid,
            body: Value::Null,
            foreign: false,
            changed: false,
            terminating: false,
        });
        // Without a take-over of fields, what others have added stays.
        live.foreign &= !repair;
        live.changed = false;
        live.body = desired.body.clone();
        if at.kind == Kind::PersistentVolumeClaim {
            self.claims.insert(at.clone());
        }
        self.remembered.insert(at.clone());
        self.writes += 1;
        true
    }

    /// Nothing is written into a namespace that is somebody else's.
    fn check_owner(&self, at: &ChildRef, comune: &ValidComune) {
        let Some(namespace) = self.objects.get(&ChildRef::of_namespace(at.home())) else { return };
        assert!(!namespace.terminating, "{at} is in a namespace that is being deleted");
        let label = |key| namespace.text("labels", key);
        let adopted = namespace.text("annotations", keys::ADOPT) == Some(&comune.name);
        let own = label(keys::COMUNE) == Some(&comune.name)
            && label(keys::MANAGED_BY) == Some(keys::MANAGER)
            && label(keys::ISTAT) == comune.spec.entity.istat.as_deref();
        assert!(own || adopted, "{at} is in a namespace of somebody else: {}", namespace.body);
    }
}
