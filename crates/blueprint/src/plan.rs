//! What has to be done for one Comune: a value that can be printed, compared and tested.

use std::collections::{BTreeMap, BTreeSet};

use conme_api::{CredentialStatus, Entity, PodSecurity, keys};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    amount::Amount,
    build::{self, Plot},
    capacity::Amounts,
    child::{ChildRef, Desired, holds},
    kind::{Kind, Wave},
    quota::{QuotaSeen, Share, next_step},
    validate::{ValidComune, ValidEnvironment, environments},
};

/// Whether a live child is as the operator left it.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildState {
    /// Unchanged since the operator wrote or checked it.
    Intact,
    /// Somebody else has changed it.
    Changed,
    /// Not checked yet, as after a restart: the live object without what changes by itself, and whether somebody
    /// else owns fields of it.
    Unchecked {
        /// The live object, stripped.
        live: Value,
        /// Whether somebody else owns fields of it.
        foreign: bool,
    },
}

/// A live child that carries the labels of this Comune.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildSeen {
    /// Unique id.
    pub uid: String,
    /// Hash of what the operator last asked for.
    pub applied: String,
    /// Whether it is as the operator left it.
    pub state: ChildState,
    /// It is being deleted.
    pub terminating: bool,
}

/// A live namespace, whoever it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceSeen {
    /// Unique id.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// It is being deleted.
    pub terminating: bool,
}

/// Pods of a Deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodsSeen {
    /// Pods wanted.
    pub desired: i32,
    /// Pods ready and of the current template.
    pub ready: i32,
}

/// What is known of a declared database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseSeen {
    /// It is as declared.
    Ready {
        /// Identifier of the server's data directory.
        system_identifier: String,
        /// When it was provisioned.
        provisioned_at: Timestamp,
        /// Its name on the server.
        database: String,
        /// What else is told of it.
        details: Box<DatabaseDetails>,
    },
    /// It could not be brought to the declared state.
    Failed {
        /// CamelCase reason.
        reason: &'static str,
        /// In words.
        message: String,
    },
}

/// What a database server holds that carries the mark of one Comune.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// When it was looked at.
    pub at: Timestamp,
    /// Names on the server, each with the name in the manifest.
    pub databases: BTreeMap<String, String>,
}

/// What is told of a database beside where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseDetails {
    /// It has not been looked at since the operator started: what was told of it still holds, word by word.
    pub as_told: bool,
    /// The credential in force.
    pub credential: Option<CredentialStatus>,
    /// What the credential before it waits for, in words.
    pub retirement: Option<String>,
    /// Size on disk, in bytes.
    pub size_bytes: u64,
    /// The size at which growth is stopped, in bytes.
    pub max_bytes: Option<u64>,
    /// Whether growth has been stopped.
    pub stopped: Stopped,
    /// Extensions that are installed and not declared.
    pub undeclared_extensions: Vec<String>,
}

/// Whether the growth of a database has been stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stopped {
    /// No.
    #[default]
    No,
    /// Sessions are read-only unless they say otherwise.
    ReadOnly,
    /// Its logins may read, delete and drop, and nothing else.
    DeleteOnly,
    /// It went on growing: nobody can log in.
    Closed,
}

/// What is seen of one Comune and its children.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Children with this Comune's label.
    pub children: BTreeMap<ChildRef, ChildSeen>,
    /// Namespaces that it wants or has.
    pub namespaces: BTreeMap<String, NamespaceSeen>,
    /// Quotas by namespace.
    pub quotas: BTreeMap<String, QuotaSeen>,
    /// Pods of its Deployments by namespace and name.
    pub pods: BTreeMap<(String, String), PodsSeen>,
    /// Its databases by name in the manifest.
    pub databases: BTreeMap<String, DatabaseSeen>,
    /// Unique ids of the namespaces that are on record as its own: they stay its own whatever labels they carry.
    pub own_namespaces: BTreeSet<String>,
    /// What was last found of its on each database server.
    pub surveys: BTreeMap<String, Survey>,
    /// Namespaces of a Comune of another name that is gone and had the same ISTAT code: by namespace, that name.
    pub left_by_namesakes: BTreeMap<String, String>,
}

/// One call to the API server.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Server-side apply.
    Apply {
        /// The object.
        desired: Desired,
        /// Unique id of the live object; None when there is none, and then nothing of anybody else is overwritten.
        uid: Option<String>,
        /// Somebody else has changed the live object: what they added has to go, too.
        repair: bool,
    },
    /// Deletion of exactly this object.
    Delete {
        /// Its address.
        at: ChildRef,
        /// Its unique id.
        uid: String,
    },
}

impl Action {
    /// The child that it is about.
    pub fn at(&self) -> &ChildRef {
        match self {
            Self::Apply { desired, .. } => &desired.at,
            Self::Delete { at, .. } => at,
        }
    }
}

/// Something that has to happen elsewhere first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Condition that it holds up, one of [`conme_api::reasons`].
    pub condition: &'static str,
    /// In words.
    pub message: String,
}

/// What stands in the way of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// Name of the namespace.
    pub namespace: String,
    /// In words, with what to do.
    pub message: String,
}

/// What has to be done for one Comune.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Calls in the order of their waves; within a wave in any order.
    pub waves: BTreeMap<Wave, Vec<Action>>,
    /// Unchecked children that turned out to be as they should be.
    pub confirmed: Vec<ChildRef>,
    /// What has to happen elsewhere first.
    pub waits: Vec<Wait>,
    /// Namespaces that belong to somebody else.
    pub clashes: Vec<Clash>,
    /// Namespaces of environments that the manifest no longer has, with the date.
    pub orphans: BTreeMap<String, String>,
}

impl Plan {
    /// Nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.waves.values().all(Vec::is_empty)
    }

    /// All calls, in order.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.waves.values().flatten()
    }

    fn push(&mut self, wave: Wave, action: Action) {
        self.waves.entry(wave).or_default().push(action);
    }
}

/// The plan for a Comune that is valid.
pub fn plan(comune: &ValidComune, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan { clashes: clashes(comune, observed), ..Plan::default() };
    let blocked: BTreeSet<String> = plan.clashes.iter().map(|clash| clash.namespace.clone()).collect();

    let orphaned = orphaned_environments(comune, &blocked, observed, now);
    plan.orphans =
        orphaned.iter().map(|(environment, since)| (environment.namespace.clone(), since.clone())).collect();
    let hard = quota_steps(comune, &orphaned, observed, &mut plan.waits);
    let plots: Vec<Plot<'_>> = comune
        .environments
        .iter()
        .map(|environment| (environment, None))
        .chain(orphaned.iter().map(|(environment, since)| (environment, Some(since.clone()))))
        .filter(|(environment, _)| !blocked.contains(&environment.namespace))
        .map(|(environment, orphaned_at)| {
            let hard = hard.get(&environment.namespace).cloned().unwrap_or_default();
            let uids = uids(comune, observed.namespaces.get(&environment.namespace));
            Plot { environment, hard, orphaned_at, uids }
        })
        .collect();
    let waiting = services_that_wait(comune, observed, &mut plan.waits);
    let desired = build::children(comune, &plots, &waiting);
    let ways_kept = ways_to_databases_kept(comune, observed);

    let wanted: BTreeSet<ChildRef> = desired.iter().map(|child| child.at.clone()).collect();
    for child in desired.into_iter().filter(|child| !blocked.contains(child.at.home())) {
        if !ways_kept.contains(&child.at) {
            compare(child, observed, &mut plan);
        }
    }
    // What is in the way of being built is not what the manifest no longer asks for: a service that has a problem
    // or has to wait keeps what it has.
    let kept: BTreeSet<String> = comune
        .spec
        .services
        .iter()
        .filter(|service| !comune.services.iter().any(|valid| valid.spec.name == service.name))
        .map(|service| service.name.as_str())
        .chain(waiting.iter().copied())
        .map(str::to_owned)
        .collect();
    // Only in namespaces that were built just now: where one is seen in part, or going, nothing is taken away.
    let built: BTreeSet<&str> = plots
        .iter()
        .map(|plot| plot.environment.namespace.as_str())
        .filter(|namespace| !is_going(namespace, observed))
        .collect();
    for (at, seen) in &observed.children {
        let prunable = at.kind.may_be_pruned() && !wanted.contains(at) && !seen.terminating;
        let is_kept = ways_kept.contains(at) || kept.iter().any(|service| is_of_service(at, service));
        if prunable && !is_kept && built.contains(at.home()) {
            plan.push(Wave::Contents, Action::Delete { at: at.clone(), uid: seen.uid.clone() });
        }
    }
    plan
}

/// The plan for a Comune that is gone: its namespaces stay, and say since when.
pub fn plan_abandoned(comune: &str, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    for (name, seen) in &observed.namespaces {
        if seen.labels.get(keys::COMUNE).map(String::as_str) != Some(comune)
            || seen.labels.get(keys::MANAGED_BY).map(String::as_str) != Some(keys::MANAGER)
            || seen.labels.contains_key(keys::ORPHANED)
            || seen.terminating
        {
            continue;
        }
        let since = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let desired = build::abandoned_namespace(comune, name, &seen.labels, &seen.annotations, &since);
        plan.push(Wave::Namespaces, Action::Apply { desired, uid: Some(seen.uid.clone()), repair: false });
    }
    plan
}

fn is_of_service(at: &ChildRef, service: &str) -> bool {
    !at.name.starts_with(crate::names::PREFIX) && at.name == service
}

/// The namespace is being deleted: the API server takes nothing new into it.
fn is_going(namespace: &str, observed: &Observed) -> bool {
    observed.namespaces.get(namespace).is_some_and(|seen| seen.terminating)
}

/// Network policies that stay as they are, because a database that they lead to has a problem in the manifest: a
/// running service is not cut off from its data by a slip of the pen.
fn ways_to_databases_kept(comune: &ValidComune, observed: &Observed) -> BTreeSet<ChildRef> {
    comune
        .spec
        .databases
        .iter()
        .filter(|database| matches!(database.placement, conme_api::Placement::Shared(_)))
        .filter(|database| !comune.databases.iter().any(|valid| valid.spec.name == database.name))
        .map(|database| crate::names::namespace(&comune.name, &database.environment))
        .map(|namespace| ChildRef::new(Kind::NetworkPolicy, namespace, build::DATABASES_POLICY))
        .filter(|at| observed.children.contains_key(at))
        .collect()
}

fn compare(child: Desired, observed: &Observed, plan: &mut Plan) {
    if child.at.kind != Kind::Namespace && is_going(child.at.home(), observed) {
        let namespace = ChildRef::of_namespace(child.at.home());
        let wait = being_deleted(condition_of(&child.at), &namespace);
        if !plan.waits.contains(&wait) {
            plan.waits.push(wait);
        }
        return;
    }
    let Some(seen) = observed.children.get(&child.at) else {
        // A namespace that is being taken over exists without the operator's labels.
        let uid = observed.namespaces.get(&child.at.name).filter(|_| child.at.kind == Kind::Namespace);
        let uid = uid.map(|namespace| namespace.uid.clone());
        plan.push(child.wave, Action::Apply { desired: child, uid, repair: false });
        return;
    };
    if seen.terminating {
        plan.waits.push(being_deleted(condition_of(&child.at), &child.at));
        return;
    }
    let same = seen.applied == child.hash;
    let intact = match &seen.state {
        ChildState::Intact => true,
        ChildState::Changed => false,
        ChildState::Unchecked { live, foreign } => !foreign && holds(&child.body, live),
    };
    // The specification of a volume claim cannot be changed once it is there: what is asked for by now (another class,
    // another size) holds for new claims only.
    let settled = child.at.kind == Kind::PersistentVolumeClaim && !same;
    if settled || (same && intact) {
        if matches!(seen.state, ChildState::Unchecked { .. }) {
            plan.confirmed.push(child.at);
        }
        return;
    }
    let repair = !intact;
    plan.push(child.wave, Action::Apply { desired: child, uid: Some(seen.uid.clone()), repair });
}

fn being_deleted(condition: &'static str, at: &ChildRef) -> Wait {
    Wait { condition, message: format!("{at} is being deleted; it is made again when it is gone") }
}

/// The condition that speaks of a child.
pub fn condition_of(at: &ChildRef) -> &'static str {
    use conme_api::reasons;
    match at.kind {
        Kind::Namespace | Kind::ResourceQuota | Kind::LimitRange | Kind::RoleBinding => {
            reasons::NAMESPACES_READY
        }
        Kind::NetworkPolicy if at.name.starts_with(crate::names::PREFIX) => reasons::NETWORK_ISOLATED,
        _ => reasons::SERVICES_DEPLOYED,
    }
}

fn clashes(comune: &ValidComune, observed: &Observed) -> Vec<Clash> {
    let mut clashes = Vec::new();
    // Also those that are not declared: another administration of the same name may have left them behind.
    let known = observed.children.keys().filter(|at| at.kind == Kind::Namespace).map(|at| &at.name);
    let names: BTreeSet<&String> = comune.environments.iter().map(|e| &e.namespace).chain(known).collect();
    for namespace in names {
        let Some(seen) = observed.namespaces.get(namespace) else { continue };
        let label = |key: &str| seen.labels.get(key).map(String::as_str);
        let namespace = namespace.clone();
        let adopted = seen.annotations.get(keys::ADOPT).map(String::as_str) == Some(comune.name.as_str());
        let message = match (label(keys::MANAGED_BY), label(keys::COMUNE)) {
            _ if adopted || observed.own_namespaces.contains(&seen.uid) => continue,
            (Some(keys::MANAGER), Some(owner)) if owner == comune.name => {
                // The same name with another code is another administration: its data is not handed over.
                match identity_clash(&comune.spec.entity, &comune.uid, &comune.name, seen) {
                    Some(other) => format!(
                        "the namespace {namespace} holds the data of {other}; correct spec.entity, or choose another \
                         name for this Comune. If it is the same administration: kubectl annotate namespace \
                         {namespace} {}={}",
                        keys::ADOPT,
                        comune.name
                    ),
                    None => continue,
                }
            }
            (Some(keys::MANAGER), Some(owner)) => {
                format!(
                    "the namespace {namespace} belongs to the Comune `{owner}`; choose another name for the environment"
                )
            }
            _ => format!(
                "the namespace {namespace} exists and is not managed by Con.Me; rename the environment, or let it be \
                 taken over: kubectl annotate namespace {namespace} {}={}",
                keys::ADOPT,
                comune.name
            ),
        };
        clashes.push(Clash { namespace, message });
    }
    clashes
}

/// Whom a namespace belongs to that carries the name of a Comune and is not provably this administration's; None: it is.
///
/// The ISTAT code decides. Without one it is the unique id of the resource, and for a resource that was applied again
/// the kind of body together with its IPA code, or its official name where one of the two has no code.
pub(crate) fn identity_clash(entity: &Entity, uid: &str, name: &str, seen: &NamespaceSeen) -> Option<String> {
    let label = |key: &str| seen.labels.get(key).map(String::as_str);
    let annotation = |key: &str| seen.annotations.get(key).map(String::as_str);
    match (label(keys::ISTAT), entity.istat.as_deref()) {
        (Some(theirs), ours) if Some(theirs) != ours => {
            return Some(format!("the administration with ISTAT code {theirs}"));
        }
        (Some(_), _) => return None,
        (None, _) => {}
    }
    let (Some(uids), Some(kind)) = (annotation(keys::COMUNE_UID), annotation(keys::ENTITY_KIND)) else {
        // Made before these were written down: the name has to do.
        return None;
    };
    if !uid.is_empty() && uids.split(',').any(|known| known == uid) {
        return None;
    }
    let ipa = entity.ipa.as_ref().map(|code| code.to_lowercase());
    let display_name = annotation(keys::DISPLAY_NAME).unwrap_or_default();
    let same = entity.istat.is_none()
        && kind == entity.kind.to_string()
        && match (label(keys::IPA), ipa.as_deref()) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => display_name == entity.display_name,
        };
    (!same).then(|| format!("another administration of the name `{name}`, \"{display_name}\" ({kind})"))
}

/// The unique ids by which a namespace and its databases are known as this Comune's. An administration without ISTAT code
/// keeps those that its resource had before it was applied again.
fn uids(comune: &ValidComune, seen: Option<&NamespaceSeen>) -> String {
    const MOST: usize = 8;
    let owned = |seen: &&NamespaceSeen| seen.labels.get(keys::COMUNE) == Some(&comune.name);
    let before = seen.filter(owned).and_then(|seen| seen.annotations.get(keys::COMUNE_UID));
    let before = before.filter(|_| comune.spec.entity.istat.is_none()).map_or("", String::as_str);
    let former = before.split(',').filter(|uid| !uid.is_empty() && *uid != comune.uid);
    std::iter::once(comune.uid.as_str()).chain(former).take(MOST).collect::<Vec<_>>().join(",")
}

/// Namespaces of this Comune that the manifest no longer asks for: they keep their data, their isolation and their
/// people, and admit nothing new.
fn orphaned_environments(
    comune: &ValidComune,
    blocked: &BTreeSet<String>,
    observed: &Observed,
    now: Timestamp,
) -> Vec<(ValidEnvironment, String)> {
    let declared: BTreeSet<&str> = comune.environments.iter().map(|e| e.namespace.as_str()).collect();
    observed
        .children
        .keys()
        .filter(|at| at.kind == Kind::Namespace && !declared.contains(at.name.as_str()))
        .filter_map(|at| Some((at, observed.namespaces.get(&at.name)?)))
        .filter(|(at, seen)| !seen.terminating && !blocked.contains(&at.name))
        .filter_map(|(at, seen)| {
            let environment = seen.labels.get(keys::ENVIRONMENT)?;
            let level = seen.labels.get("pod-security.kubernetes.io/enforce").map(String::as_str);
            let since = seen
                .annotations
                .get(keys::ORPHANED_AT)
                .cloned()
                .unwrap_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            let environment = ValidEnvironment {
                name: environment.clone(),
                namespace: at.name.clone(),
                pod_security: if level == Some("baseline") {
                    PodSecurity::Baseline
                } else {
                    PodSecurity::Restricted
                },
                part: comune.totals.keys().map(|resource| (resource.clone(), Amount::ZERO)).collect(),
            };
            Some((environment, since))
        })
        .collect()
}

/// What the declared environments may share: the totals without what orphaned namespaces hold. Nobody is going to give
/// that up, so it is no use waiting for it.
fn left_by_orphans(
    comune: &ValidComune,
    orphaned: &[(ValidEnvironment, String)],
    observed: &Observed,
) -> Amounts {
    let held = |in_quota: &String| -> Amount {
        let quotas =
            orphaned.iter().filter_map(|(environment, _)| observed.quotas.get(&environment.namespace));
        quotas.filter_map(|quota| quota.used.get(in_quota).copied()).sum()
    };
    comune
        .totals
        .iter()
        .map(|(resource, total)| {
            let in_quota = build::hard(&Amounts::from([(resource.clone(), *total)]));
            let held = in_quota.keys().map(held).max().unwrap_or_default();
            (resource.clone(), total.saturating_sub(held))
        })
        .collect()
}

fn quota_steps(
    comune: &ValidComune,
    orphaned: &[(ValidEnvironment, String)],
    observed: &Observed,
    waits: &mut Vec<Wait>,
) -> BTreeMap<String, Amounts> {
    let declared = environments(&comune.name, &comune.spec, &left_by_orphans(comune, orphaned, observed));
    let all = declared.iter().chain(orphaned.iter().map(|(environment, _)| environment));
    let shares: BTreeMap<String, Share> = all
        .map(|environment| {
            let seen = observed.quotas.get(&environment.namespace).cloned().unwrap_or_default();
            (environment.namespace.clone(), Share { target: build::hard(&environment.part), seen })
        })
        .collect();
    next_step(&build::hard(&comune.totals), &shares)
        .into_iter()
        .map(|(namespace, step)| {
            if !step.waiting.is_empty() {
                waits.push(Wait {
                    condition: conme_api::reasons::NAMESPACES_READY,
                    message: format!(
                        "the quota of {namespace} grows when another namespace of this Comune has given up {}",
                        step.waiting.join(", ")
                    ),
                });
            }
            (namespace, step.hard)
        })
        .collect()
}

/// Whether a database that has been looked at has never had another credential.
fn is_first_credential(seen: Option<&DatabaseSeen>) -> bool {
    match seen {
        Some(DatabaseSeen::Ready { details, .. }) => {
            details.credential.as_ref().is_none_or(|credential| credential.generation <= 1)
        }
        Some(DatabaseSeen::Failed { .. }) | None => false,
    }
}

/// Services whose database has never been provisioned: their pods could only fail.
fn services_that_wait<'a>(
    comune: &'a ValidComune,
    observed: &Observed,
    waits: &mut Vec<Wait>,
) -> Vec<&'a str> {
    let mut waiting = Vec::new();
    for service in &comune.services {
        let Some(database) = &service.spec.database else { continue };
        let deployed = observed.pods.contains_key(&(service.namespace.clone(), service.spec.name.clone()));
        let ready = matches!(observed.databases.get(database), Some(DatabaseSeen::Ready { .. }));
        if deployed && service.credential.is_none() && !is_first_credential(observed.databases.get(database))
        {
            // A status was lost: the pods would restart, and again when the credential is on record.
            waiting.push(service.spec.name.as_str());
        }
        if !ready && !deployed {
            waits.push(Wait {
                condition: conme_api::reasons::SERVICES_DEPLOYED,
                message: format!("the service `{}` waits for its database `{database}`", service.spec.name),
            });
            waiting.push(service.spec.name.as_str());
        }
    }
    waiting
}
