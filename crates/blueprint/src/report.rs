//! What is told of a Comune: conditions, figures, orphans.

use std::collections::{BTreeMap, BTreeSet};

use conme_api::{
    Comune, ComuneStatus, DatabaseStatus, NamespaceStatus, Orphan, QuotaStatus, ServerStatus, ServiceStatus,
    Summary, VolumeKind, reasons,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{
    amount::{Amount, Notation, notation},
    child::ChildRef,
    credential,
    kind::Kind,
    plan::{DatabaseDetails, DatabaseSeen, Observed, Plan, Stopped, condition_of},
    validate::{Problem, Scope, ValidComune, Verdict},
};

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The child that it was about.
    pub at: ChildRef,
    /// The API server's own words.
    pub message: String,
}

struct Verdicts<'a> {
    verdict: &'a Verdict,
    plan: &'a Plan,
    failures: &'a [Failure],
    observed: &'a Observed,
    paused: bool,
}

impl Verdicts<'_> {
    fn problem_of(&self, database: &str) -> Option<&Problem> {
        let scope = Scope::Database(database.into());
        self.verdict.problems.iter().find(|problem| problem.scope == scope)
    }
}

type Finding = (bool, &'static str, String);

/// The status of a Comune after a pass. `plan` is what is still left to do.
pub fn report(
    comune: &Comune,
    verdict: &Verdict,
    plan: &Plan,
    failures: &[Failure],
    observed: &Observed,
    now: Timestamp,
) -> ComuneStatus {
    let previous = comune.status.clone().unwrap_or_default();
    let facts = Verdicts { verdict, plan, failures, observed, paused: comune.spec.paused };
    let valid = verdict.valid.as_ref();

    let mut status =
        ComuneStatus { observed_generation: comune.metadata.generation, ..ComuneStatus::default() };
    let admitted_at = valid.and_then(|valid| valid.admitted_at.clone());
    status.seniority = previous.seniority.clone().or(admitted_at).or_else(|| valid.map(|_| rfc3339(now)));
    status.tier = valid.map(|valid| valid.tier.clone()).or_else(|| previous.tier.clone());
    status.namespaces = match valid {
        Some(valid) => namespaces(valid, plan, observed),
        None => previous.namespaces.clone(),
    };
    status.databases = databases(comune, &previous, &facts);
    status.services = match valid {
        Some(valid) => services(valid, observed),
        None => previous.services.clone(),
    };
    status.servers = servers(comune);
    status.quota = match valid {
        Some(valid) => Some(quota(valid, observed)),
        None => previous.quota.clone(),
    };
    status.orphans = orphans(comune, &previous, &facts, now);
    status.summary = Some(summary(comune, &status, &facts));

    let findings = findings(comune, &status, &facts);
    status.conditions = reasons::COMUNE_CONDITIONS
        .iter()
        .filter_map(|type_| {
            findings.get(type_).map(|finding| condition(type_, finding, comune, &previous, now))
        })
        .collect();
    status
}

/// The status as far as people have to know at once: without the figures that move by themselves.
pub fn without_volatile(status: &ComuneStatus) -> ComuneStatus {
    let mut steady = status.clone();
    if let Some(summary) = &mut steady.summary {
        summary.cpu.clear();
        summary.memory.clear();
    }
    if let Some(quota) = &mut steady.quota {
        quota.used.clear();
    }
    for service in &mut steady.services {
        service.ready = 0;
        service.desired = 0;
    }
    for database in steady.databases.iter_mut().filter(|database| database.ready) {
        database.size = None;
    }
    for condition in &mut steady.conditions {
        if condition.type_ == reasons::AVAILABLE {
            condition.message.clear();
        }
        // What is missing changes whenever another one is admitted or leaves.
        if condition.reason == reasons::INSUFFICIENT_CAPACITY {
            condition.message = without_amounts(&condition.message);
        }
    }
    steady
}

fn without_amounts(message: &str) -> String {
    let words = message.split(' ').filter(|word| !word.starts_with(|first: char| first.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

fn findings(comune: &Comune, status: &ComuneStatus, facts: &Verdicts<'_>) -> BTreeMap<&'static str, Finding> {
    let mut findings = BTreeMap::new();
    findings.insert(reasons::ADMITTED, admitted(facts));
    let children = [reasons::NAMESPACES_READY, reasons::NETWORK_ISOLATED, reasons::SERVICES_DEPLOYED];
    for type_ in children {
        findings.insert(type_, of_children(type_, comune, facts));
    }
    findings.insert(reasons::DATABASES_READY, databases_ready(comune, status));
    findings.insert(reasons::AVAILABLE, available(comune, status));
    findings.insert(reasons::SERVERS_MIGRATED, servers_migrated(status));
    findings.insert(reasons::READY, ready(comune, status, facts, &findings));
    findings
}

fn ready(
    comune: &Comune,
    status: &ComuneStatus,
    facts: &Verdicts<'_>,
    others: &BTreeMap<&'static str, Finding>,
) -> Finding {
    if facts.paused {
        let message = "spec.paused is set: nothing is changed until it is taken away";
        return (false, reasons::PAUSED, message.into());
    }
    // The most fundamental cause first: it usually explains the others.
    let order = [
        reasons::ADMITTED,
        reasons::NAMESPACES_READY,
        reasons::NETWORK_ISOLATED,
        reasons::DATABASES_READY,
        reasons::SERVICES_DEPLOYED,
    ];
    for type_ in order {
        if let Some((false, reason, message)) = others.get(type_) {
            let reason = match (type_, *reason) {
                (reasons::DATABASES_READY, reasons::SERVER_UNREACHABLE) => reasons::DATABASE_FAILED,
                (_, reason) => reason,
            };
            return (false, reason, format!("{type_}: {message}"));
        }
    }
    let over = status.quota.as_ref().map(|quota| quota.over_limit.join(", ")).unwrap_or_default();
    let generation = comune.metadata.generation.unwrap_or(0);
    let cordoned =
        if comune.spec.cordoned { "; cordoned: the administration's people cannot write" } else { "" };
    if over.is_empty() {
        let message = format!("everything is as declared at generation {generation}{cordoned}");
        (true, reasons::AS_DECLARED, message)
    } else {
        let message = format!(
            "everything is as declared at generation {generation}{cordoned}; more is in use than the quota allows ({over}): what \
             runs goes on, nothing new is admitted"
        );
        (true, reasons::OVER_LIMIT, message)
    }
}

fn admitted(facts: &Verdicts<'_>) -> Finding {
    let whole: Vec<&Problem> = facts.verdict.problems.iter().filter(|p| p.scope == Scope::Comune).collect();
    if let Some(first) = whole.first() {
        return (false, first.reason, join(&whole));
    }
    match facts.verdict.valid.as_ref().and_then(|valid| valid.missing.as_ref()) {
        Some(missing) => (
            false,
            reasons::INSUFFICIENT_CAPACITY,
            format!(
                "the old quota stays in force: the data centre would lose its reserve by the new one, {missing} missing; it is granted by itself when there is room"
            ),
        ),
        None => (true, reasons::AS_DECLARED, format!("the data centre has room for it{}", namesakes(facts))),
    }
}

/// A Comune that was renamed: what it had under its old name is not handed over by itself.
fn namesakes(facts: &Verdicts<'_>) -> String {
    let left = &facts.observed.left_by_namesakes;
    let Some(former) = left.values().next() else { return String::new() };
    let namespaces: Vec<&str> = left.keys().map(String::as_str).collect();
    format!(
        "; the same ISTAT code is on namespaces that the removed Comune `{former}` has left: {}. Their data is kept and is \
         not moved here: apply the Comune under the name `{former}` again to go on with them, or delete them when they are \
         not needed any more",
        namespaces.join(", ")
    )
}

/// The fields of a Comune that decide whether an object is admitted which the API server refused for want of quota. None:
/// it was refused for something else. Its words, as Kubernetes' admission of quotas has them in
/// `plugin/pkg/admission/resourcequota/controller.go`: `exceeded quota: NAME, requested: A=1,B=2, used: ..., limited: ...`.
fn exceeded(comune: &Comune, message: &str) -> Option<String> {
    let (_, about) = message.split_once("exceeded quota: conme-quota, requested: ")?;
    if comune.spec.quota.is_none() {
        return Some("spec.tier".into());
    }
    let (requested, _) = about.split_once(", used: ")?;
    // Requests and limits of a resource are one field.
    let fields: BTreeSet<String> = requested
        .split(',')
        .filter_map(|item| item.split_once('='))
        .map(|(resource, _)| match resource.trim_start_matches("requests.").trim_start_matches("limits.") {
            resource @ ("cpu" | "memory" | "storage" | "pods" | "services") => {
                format!("spec.quota.{resource}")
            }
            "ephemeral-storage" => "spec.quota.ephemeralStorage".into(),
            "services.loadbalancers" => "spec.quota.loadBalancers".into(),
            other => format!("spec.quota.objects[{}]", other.trim_start_matches("count/")),
        })
        .collect();
    Some(Vec::from_iter(fields).join(", "))
}

fn of_children(type_: &'static str, comune: &Comune, facts: &Verdicts<'_>) -> Finding {
    if type_ == reasons::SERVICES_DEPLOYED {
        let of_services: Vec<&Problem> =
            facts.verdict.problems.iter().filter(|p| matches!(p.scope, Scope::Service(_))).collect();
        if let Some(first) = of_services.first() {
            return (false, first.reason, join(&of_services));
        }
    }
    let Some(valid) = &facts.verdict.valid else {
        return (
            false,
            reasons::INVALID,
            "nothing is changed until the problems of the manifest are solved".into(),
        );
    };
    // Nothing is built in a namespace that belongs to somebody else.
    let clashes: Vec<&str> = facts
        .plan
        .clashes
        .iter()
        .filter(|clash| {
            type_ != reasons::SERVICES_DEPLOYED
                || valid.services.iter().any(|service| service.namespace == clash.namespace)
        })
        .map(|clash| clash.message.as_str())
        .collect();
    if !clashes.is_empty() {
        return (false, reasons::CONFLICT, clashes.join("; "));
    }
    let failed: Vec<(&Failure, Option<String>)> = facts
        .failures
        .iter()
        .filter(|failure| condition_of(&failure.at) == type_)
        .map(|failure| (failure, exceeded(comune, &failure.message)))
        .take(3)
        .collect();
    if !failed.is_empty() {
        let is_quota = failed.iter().all(|(_, fields)| fields.is_some());
        let told = failed.into_iter().map(|(failure, fields)| match fields {
            Some(fields) => format!("{fields}: raise it, no room for {}: {}", failure.at, failure.message),
            None => format!("{}: {}", failure.at, failure.message),
        });
        let reason = if is_quota { reasons::QUOTA_EXCEEDED } else { reasons::API_ERROR };
        return (false, reason, told.collect::<Vec<_>>().join("; "));
    }
    let waits: Vec<&str> = facts
        .plan
        .waits
        .iter()
        .filter(|wait| wait.condition == type_)
        .map(|wait| wait.message.as_str())
        .collect();
    let left = facts.plan.actions().filter(|action| condition_of(action.at()) == type_).count();
    let differ = format!("{left} objects differ from the manifest");
    // While paused, nobody but a person is waited for.
    if facts.paused && left > 0 {
        return (false, reasons::PAUSED, differ);
    }
    if !waits.is_empty() {
        return (false, reasons::WAITING, waits.join("; "));
    }
    if left > 0 {
        return (false, reasons::IN_PROGRESS, differ);
    }
    match type_ {
        reasons::SERVICES_DEPLOYED if comune.spec.services.is_empty() => {
            (true, reasons::NONE_DECLARED, "no services are declared".into())
        }
        reasons::SERVICES_DEPLOYED => {
            (true, reasons::AS_DECLARED, format!("{} services are as declared", comune.spec.services.len()))
        }
        reasons::NETWORK_ISOLATED => (
            true,
            reasons::AS_DECLARED,
            "closed in both directions but for DNS, the own environment, the ingress controller, its database servers and what the manifest allows".into(),
        ),
        _ => {
            let count = comune.spec.environments.len();
            let mut message = format!("{count} namespaces with quota, limits and role bindings");
            if !facts.plan.orphans.is_empty() {
                let kept: Vec<&str> = facts.plan.orphans.keys().map(String::as_str).collect();
                message += &format!("; what is kept in {} counts against the quota", kept.join(", "));
            }
            (true, reasons::AS_DECLARED, message)
        }
    }
}

fn databases_ready(comune: &Comune, status: &ComuneStatus) -> Finding {
    if comune.spec.databases.is_empty() {
        return (true, reasons::NONE_DECLARED, "no databases are declared".into());
    }
    let mut failed: Vec<&DatabaseStatus> =
        status.databases.iter().filter(|database| !database.ready).collect();
    // The worst news is not hidden behind the others.
    failed.sort_by_key(|database| database.reason != reasons::DATA_MISSING);
    let in_words = |database: &DatabaseStatus| format!("{}: {}", database.name, database.message);
    match failed.first() {
        None => {
            let nearly_full =
                status.databases.iter().filter(|database| database.reason == reasons::DATABASE_NEARLY_FULL);
            let mut messages = vec![format!("{} databases are as declared", status.databases.len())];
            messages.extend(nearly_full.map(in_words));
            messages.extend(credential::not_understood(comune));
            (true, reasons::AS_DECLARED, messages.join("; "))
        }
        Some(first) => {
            let mut messages: Vec<String> = failed.iter().map(|database| in_words(database)).collect();
            messages.extend(credential::not_understood(comune));
            (false, known_reason(&first.reason), messages.join("; "))
        }
    }
}

/// From this share of its size on, a database is told to be nearly full.
const NEARLY_FULL_PERCENT: u128 = 90;

/// Whether a database that is otherwise as declared has room, why not, and what to do.
fn room(at: &str, details: &DatabaseDetails) -> (bool, &'static str, String) {
    let text = |bytes: u64| Amount::units(bytes).short(Notation::Binary);
    let used = details.max_bytes.map(|max| format!("{} of {}", text(details.size_bytes), text(max)));
    let used = used.unwrap_or_else(|| text(details.size_bytes));
    let nearly_full = details
        .max_bytes
        .is_some_and(|max| u128::from(details.size_bytes) * 100 >= u128::from(max) * NEARLY_FULL_PERCENT);
    match details.stopped {
        Stopped::No if nearly_full => (
            true,
            reasons::DATABASE_NEARLY_FULL,
            format!("{at} holds {used}, then growth is stopped: clear up, or raise maxSize"),
        ),
        Stopped::No => (true, reasons::AS_DECLARED, at.to_owned()),
        Stopped::ReadOnly => (
            false,
            reasons::DATABASE_FULL,
            format!(
                "{at} holds {used}, so growth is stopped: sessions are read-only, and nothing new can be made. Raise maxSize, \
                 or clear up: SET default_transaction_read_only = off in a session, then DELETE, TRUNCATE or DROP, and \
                 VACUUM FULL; below 95 % it goes on by itself"
            ),
        ),
        Stopped::DeleteOnly => (
            false,
            reasons::DATABASE_FULL,
            format!(
                "{at} holds {used}, so growth is stopped: the application may read and delete, and nothing else. Raise maxSize, \
                 or clear up: DELETE, TRUNCATE or DROP TABLE; below 95 % it goes on by itself"
            ),
        ),
        Stopped::Closed => (
            false,
            reasons::DATABASE_FULL,
            format!(
                "{at} holds {used} and went on growing after it had been stopped, so its application cannot log in any \
                 more: raise maxSize, or have the data centre clear up"
            ),
        ),
    }
}

/// Size and limit. What was told before stays as long as it is about right: a size moves by itself.
fn size(details: &DatabaseDetails, before: Option<&str>) -> String {
    let text = |bytes: u64| Amount::units(bytes).short(Notation::Binary);
    let limit = details.max_bytes.map(|max| format!("/{}", text(max))).unwrap_or_default();
    let (bytes, told) =
        (Amount::units(details.size_bytes), before.and_then(|told| told.strip_suffix(&*limit)));
    let still_right = |told: &&str| {
        let one = told.trim_start_matches(|c: char| c.is_ascii_digit());
        let (Ok(least), Ok(unit)) = (Amount::parse(told), Amount::parse(&format!("1{one}"))) else {
            return false;
        };
        bytes >= least.percent(95, 1) && bytes <= (least + unit).percent(105, 1)
    };
    let size = told.filter(still_right).map_or_else(|| text(details.size_bytes), str::to_owned);
    format!("{size}{limit}")
}

/// Reasons of databases are stored as text in status; conditions need the constant.
fn known_reason(reason: &str) -> &'static str {
    [
        reasons::IN_PROGRESS,
        reasons::INVALID,
        reasons::CONFLICT,
        reasons::DATA_MISSING,
        reasons::MOVED,
        reasons::DATABASE_FULL,
        reasons::SERVER_UNREACHABLE,
        reasons::WAITING,
        reasons::PAUSED,
    ]
    .into_iter()
    .find(|known| *known == reason)
    .unwrap_or(reasons::DATABASE_FAILED)
}

fn available(comune: &Comune, status: &ComuneStatus) -> Finding {
    if comune.spec.services.is_empty() {
        return (true, reasons::NONE_DECLARED, "no services are declared".into());
    }
    let down: Vec<String> = comune
        .spec
        .services
        .iter()
        .filter_map(|service| match status.services.iter().find(|seen| seen.name == service.name) {
            Some(seen) if seen.ready >= seen.desired && seen.desired >= 0 => None,
            Some(seen) => Some(format!("{} has {} of {} pods ready", seen.name, seen.ready, seen.desired)),
            None => Some(format!("{} is not deployed yet", service.name)),
        })
        .collect();
    if down.is_empty() {
        (true, reasons::PODS_READY, "the pods of every service are up".into())
    } else {
        (false, reasons::PODS_NOT_READY, down.join("; "))
    }
}

fn servers_migrated(status: &ComuneStatus) -> Finding {
    let (done, all) = migrated(status);
    let unclassified: u32 = status.servers.iter().map(|server| server.unclassified).sum();
    match (done, all) {
        (_, 0) => (true, reasons::NONE_DECLARED, "no local servers are declared".into()),
        (done, all) if done == all => (true, reasons::AS_DECLARED, format!("{all} workloads are taken over")),
        (done, all) if unclassified > 0 => (
            false,
            reasons::NOT_STARTED,
            format!(
                "{done} of {all} workloads are taken over; {unclassified} have no classification and may not migrate"
            ),
        ),
        (done, all) => (false, reasons::NOT_STARTED, format!("{done} of {all} workloads are taken over")),
    }
}

pub(crate) fn condition(
    type_: &str,
    (is_true, reason, message): &Finding,
    comune: &Comune,
    previous: &ComuneStatus,
    now: Timestamp,
) -> Condition {
    let value = if *is_true { "True" } else { "False" };
    let before = previous.conditions.iter().find(|condition| condition.type_ == type_);
    let changed = match before {
        Some(before) if before.status == value => before.last_transition_time.clone(),
        _ => Time(seconds(now)),
    };
    Condition {
        type_: type_.into(),
        status: value.into(),
        reason: (*reason).into(),
        message: truncated(message),
        last_transition_time: changed,
        observed_generation: comune.metadata.generation,
    }
}

fn truncated(message: &str) -> String {
    const MOST: usize = 2000;
    match message.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &message[..end]),
        None => message.to_owned(),
    }
}

fn join(problems: &[&Problem]) -> String {
    let texts: Vec<String> = problems
        .iter()
        .map(|problem| {
            if problem.path.is_empty() {
                problem.message.clone()
            } else {
                format!("{}: {}", problem.path, problem.message)
            }
        })
        .collect();
    texts.join("; ")
}

fn namespaces(valid: &ValidComune, plan: &Plan, observed: &Observed) -> Vec<NamespaceStatus> {
    let is_own = |namespace: &str| !plan.clashes.iter().any(|clash| clash.namespace == namespace);
    let of_environment = |namespace: &str, environment: &str| {
        let at = ChildRef::of_namespace(namespace);
        let seen = observed.children.get(&at)?;
        Some(NamespaceStatus {
            name: namespace.into(),
            environment: environment.into(),
            uid: seen.uid.clone(),
        })
    };
    let own = valid.environments.iter().filter(|environment| is_own(&environment.namespace));
    own.filter_map(|e| of_environment(&e.namespace, &e.name)).collect()
}

fn databases(comune: &Comune, previous: &ComuneStatus, facts: &Verdicts<'_>) -> Vec<DatabaseStatus> {
    let name = comune.metadata.name.clone().unwrap_or_default();
    comune
        .spec
        .databases
        .iter()
        .map(|database| {
            let before = previous.databases.iter().find(|before| before.name == database.name);
            let server = place(&name, database);
            let secret = format!(
                "{}/{}",
                crate::names::namespace(&name, &database.environment),
                crate::names::binding_secret(&database.name)
            );
            let seen = facts.observed.databases.get(&database.name);
            let problem = facts.problem_of(&database.name);
            // Right after a start nothing has been seen yet: what was told of this very manifest still holds, and
            // that data are missing holds until they have been seen.
            let same = previous.observed_generation == comune.metadata.generation;
            let told = before.filter(|before| {
                before.reason == reasons::DATA_MISSING
                    || (problem.is_none() && before.reason == reasons::DATABASE_FULL)
                    || (before.ready && same && problem.is_none())
            });
            let not_looked_at = match seen {
                Some(DatabaseSeen::Ready { details, .. }) => details.as_told,
                Some(DatabaseSeen::Failed { .. }) => false,
                None => true,
            };
            if let (true, Some(told)) = (not_looked_at, told) {
                return told.clone();
            }
            match seen.filter(|_| problem.is_none()) {
                Some(DatabaseSeen::Ready {
                    system_identifier,
                    provisioned_at,
                    database: on_server,
                    details,
                }) => {
                    let (ready, reason, mut message) = room(&format!("{on_server} on {server}"), details);
                    if let Some(retirement) = &details.retirement {
                        message += &format!("; {retirement}");
                    }
                    DatabaseStatus {
                        name: database.name.clone(),
                        ready,
                        reason: reason.into(),
                        message,
                        server,
                        database: on_server.clone(),
                        secret,
                        system_identifier: Some(system_identifier.clone()),
                        provisioned_at: Some(rfc3339(*provisioned_at)),
                        size: (details.size_bytes > 0)
                            .then(|| size(details, before.and_then(|before| before.size.as_deref()))),
                        credential: details.credential.clone(),
                        undeclared_extensions: details.undeclared_extensions.clone(),
                    }
                }
                _ => failed_database(&database.name, before, facts, server, secret),
            }
        })
        .collect()
}

/// Where a database lives, in words: a server of the data centre, or a CloudNativePG Cluster by namespace and name.
fn place(comune: &str, database: &conme_api::Database) -> String {
    match &database.placement {
        conme_api::Placement::Shared(server) => server.clone(),
        conme_api::Placement::Dedicated(_) => {
            let namespace = crate::names::namespace(comune, &database.environment);
            format!("{namespace}/{}", crate::names::binding_secret(&database.name))
        }
    }
}

/// A database that is not as declared. What was provisioned before stays on record: by it is known what is missing.
fn failed_database(
    name: &str,
    before: Option<&DatabaseStatus>,
    facts: &Verdicts<'_>,
    server: String,
    secret: String,
) -> DatabaseStatus {
    let (reason, message) = match (facts.problem_of(name), facts.observed.databases.get(name)) {
        (_, Some(DatabaseSeen::Failed { reason, message })) if *reason == reasons::DATA_MISSING => {
            (*reason, message.clone())
        }
        (Some(problem), _) => (problem.reason, format!("{}: {}", problem.path, problem.message)),
        (None, Some(DatabaseSeen::Failed { reason, message })) => (*reason, message.clone()),
        _ if facts.paused => (reasons::PAUSED, "spec.paused is set".into()),
        _ => (reasons::IN_PROGRESS, "it is being provisioned".into()),
    };
    let provisioned = before.filter(|before| before.provisioned_at.is_some());
    DatabaseStatus {
        name: name.into(),
        ready: false,
        reason: reason.into(),
        message,
        // Where the data is, and not where an edit says that it should be.
        server: provisioned.map_or(server, |before| before.server.clone()),
        database: before.map(|before| before.database.clone()).unwrap_or_default(),
        secret,
        system_identifier: before.and_then(|before| before.system_identifier.clone()),
        provisioned_at: before.and_then(|before| before.provisioned_at.clone()),
        size: before.and_then(|before| before.size.clone()),
        credential: before.and_then(|before| before.credential.clone()),
        undeclared_extensions: before.map(|before| before.undeclared_extensions.clone()).unwrap_or_default(),
    }
}

fn services(valid: &ValidComune, observed: &Observed) -> Vec<ServiceStatus> {
    valid
        .services
        .iter()
        .filter_map(|service| {
            let key = (service.namespace.clone(), service.spec.name.clone());
            let pods = observed.pods.get(&key)?;
            let scheme = if valid.ingress.cluster_issuer.is_some() { "https" } else { "http" };
            Some(ServiceStatus {
                name: service.spec.name.clone(),
                namespace: service.namespace.clone(),
                url: (!service.version.ports.is_empty()).then(|| format!("{scheme}://{}/", service.hostname)),
                version: service.version.version.clone(),
                ready: pods.ready,
                desired: pods.desired,
            })
        })
        .collect()
}

fn servers(comune: &Comune) -> Vec<ServerStatus> {
    comune
        .spec
        .servers
        .iter()
        .map(|server| ServerStatus {
            name: server.name.clone(),
            migrated: 0,
            workloads: server.workloads.len() as u32,
            unclassified: server.workloads.iter().filter(|workload| workload.classification.is_none()).count()
                as u32,
        })
        .collect()
}

/// Use of a resource by its name in the totals: for vCPU and memory what is requested.
fn used_of(observed: &Observed, resource: &str) -> Amount {
    let in_quota = match resource {
        "cpu" | "memory" | "storage" | "ephemeral-storage" => format!("requests.{resource}"),
        _ => resource.to_owned(),
    };
    observed.quotas.values().filter_map(|quota| quota.used.get(&in_quota).copied()).sum()
}

fn quota(valid: &ValidComune, observed: &Observed) -> QuotaStatus {
    let mut status = QuotaStatus::default();
    for (resource, total) in &valid.totals {
        let used = used_of(observed, resource);
        status.limit.insert(resource.clone(), total.text(notation(resource)));
        status.used.insert(resource.clone(), used.text(notation(resource)));
        if used > *total {
            status.over_limit.push(resource.clone());
        }
    }
    status
}

fn orphans(comune: &Comune, previous: &ComuneStatus, facts: &Verdicts<'_>, now: Timestamp) -> Vec<Orphan> {
    let since_when = |kind: &str, name: &str| {
        let known = previous.orphans.iter().find(|orphan| orphan.kind == kind && orphan.name == name);
        known.map_or_else(|| rfc3339(now), |orphan| orphan.since.clone())
    };
    // What a manifest that is invalid asks for is not known: nothing is added, and nothing forgotten.
    let known_before = |kind: Kind| {
        let of_kind = previous.orphans.iter().filter(move |orphan| orphan.kind == kind.name());
        of_kind.cloned().collect::<Vec<_>>()
    };
    let mut orphans: Vec<Orphan> = match &facts.verdict.valid {
        Some(_) => facts
            .plan
            .orphans
            .iter()
            .map(|(name, since)| Orphan {
                kind: "Namespace".into(),
                name: name.clone(),
                since: since.clone(),
            })
            .collect(),
        None => known_before(Kind::Namespace),
    };

    let name = comune.metadata.name.clone().unwrap_or_default();
    let declared: BTreeSet<&str> =
        comune.spec.databases.iter().map(|database| database.name.as_str()).collect();
    let gone_now = previous
        .databases
        .iter()
        .filter(|before| !declared.contains(before.name.as_str()) && before.provisioned_at.is_some())
        .map(|before| format!("{}/{}", before.server, before.database));
    let in_use: BTreeSet<String> = comune
        .spec
        .databases
        .iter()
        .filter_map(|database| match facts.observed.databases.get(&database.name) {
            Some(DatabaseSeen::Ready { database: on_server, .. }) => {
                Some(format!("{}/{on_server}", place(&name, database)))
            }
            _ => None,
        })
        .collect();
    // One that was dropped by hand since is no orphan any more.
    let is_still_there = |orphan: &&Orphan| {
        let Some((server, on_server)) = orphan.name.split_once('/') else { return true };
        facts.observed.surveys.get(server).is_none_or(|survey| {
            survey.databases.contains_key(on_server)
                || orphan.since.parse::<Timestamp>().is_ok_and(|since| survey.at <= since)
        })
    };
    let gone_before = previous
        .orphans
        .iter()
        .filter(|orphan| orphan.kind == "Database")
        .filter(is_still_there)
        .map(|orphan| orphan.name.clone());
    // What no status remembers, as that of a Comune that was applied again, the server does.
    let found = facts.observed.surveys.iter().flat_map(|(server, survey)| {
        let is_declared = |name: &String| {
            comune.spec.databases.iter().any(|declared| {
                declared.name == *name && declared.placement == conme_api::Placement::Shared(server.clone())
            })
        };
        let undeclared = survey.databases.iter().filter(move |(_, name)| !is_declared(name));
        undeclared.map(move |(on_server, _)| format!("{server}/{on_server}"))
    });
    let databases: BTreeSet<String> =
        gone_now.chain(gone_before).chain(found).filter(|name| !in_use.contains(name)).collect();
    for name in databases {
        let since = since_when("Database", &name);
        orphans.push(Orphan { kind: "Database".into(), name, since });
    }

    let Some(valid) = &facts.verdict.valid else {
        orphans.extend(known_before(Kind::PersistentVolumeClaim));
        return orphans;
    };
    let wanted: BTreeSet<(String, String)> = valid
        .services
        .iter()
        .flat_map(|service| {
            let volumes = service.version.volumes.iter();
            volumes.filter(|volume| volume.kind == VolumeKind::Persistent).map(|volume| {
                (service.namespace.clone(), crate::names::volume_claim(&service.spec.name, &volume.name))
            })
        })
        .collect();
    let built: BTreeSet<&str> = valid.services.iter().map(|service| service.spec.name.as_str()).collect();
    let everything_is_built =
        comune.spec.services.iter().all(|service| built.contains(service.name.as_str()));
    for at in facts.observed.children.keys().filter(|at| at.kind == Kind::PersistentVolumeClaim) {
        if everything_is_built && !wanted.contains(&(at.namespace.clone(), at.name.clone())) {
            let name = format!("{}/{}", at.namespace, at.name);
            let since = since_when(at.kind.name(), &name);
            orphans.push(Orphan { kind: at.kind.name().into(), name, since });
        }
    }
    orphans
}

fn migrated(status: &ComuneStatus) -> (u32, u32) {
    let sum = |field: fn(&ServerStatus) -> u32| status.servers.iter().map(field).sum();
    (sum(|server| server.migrated), sum(|server| server.workloads))
}

fn summary(comune: &Comune, status: &ComuneStatus, facts: &Verdicts<'_>) -> Summary {
    let deployed = comune
        .spec
        .services
        .iter()
        .filter(|service| {
            status.services.iter().any(|seen| seen.name == service.name)
                && !facts.plan.actions().any(|action| action.at().name == service.name)
                && !facts.verdict.problems.iter().any(|p| p.scope == Scope::Service(service.name.clone()))
        })
        .count();
    let ready = status.databases.iter().filter(|database| database.ready).count();
    let (done, all) = migrated(status);
    let of_quota = |resource: &str| {
        let quota = status.quota.as_ref()?;
        let read = |texts: &BTreeMap<String, String>| Amount::parse(texts.get(resource)?).ok();
        let (used, limit) = (read(&quota.used)?, read(&quota.limit)?);
        Some(format!("{}/{}", used.short(notation(resource)), limit.short(notation(resource))))
    };
    Summary {
        environments: status.namespaces.len().to_string(),
        databases: format!("{ready}/{}", comune.spec.databases.len()),
        services: format!("{deployed}/{}", comune.spec.services.len()),
        migrated: format!("{done}/{all}"),
        cpu: of_quota("cpu").unwrap_or_default(),
        memory: of_quota("memory").unwrap_or_default(),
        orphans: status.orphans.len() as u32,
    }
}

fn seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

pub(crate) fn rfc3339(time: Timestamp) -> String {
    seconds(time).to_string()
}
