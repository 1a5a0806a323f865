//! One Comune through the five steps: observe, validate, plan, execute, report.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use conme_api::{Comune, ComuneStatus, DatabaseStatus, keys, reasons};
use conme_blueprint::{
    ChildRef, DatabaseSeen, Failure, Kind, NamespaceSeen, Observed, Plan, Told, Verdict, Wave, names, plan,
    plan_abandoned, report, tell_departure, without_volatile,
};
use conme_cluster::Index;
use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt, api::PatchParams};
use serde_json::json;

use crate::{
    context::Context,
    databases::{self, Behind},
    dedicated,
    departure::{self, Way},
};

/// A Comune that waits for something outside is looked at again after this time even if no event tells.
const WAIT: Duration = Duration::from_secs(30);
/// A pass that found a cache incomplete is made again after this time.
const INCOMPLETE: Duration = Duration::from_millis(100);
/// A status that could not be written because of another write is written after this time.
const OVERTAKEN: Duration = Duration::from_secs(1);
/// Rounds of plan and execution in one pass. The second sees what the first made; more are needed only when somebody
/// else is at work on the same objects.
const ROUNDS: usize = 3;

/// One pass over one Comune.
///
/// # Errors
/// When a call failed and the pass has to be repeated; what happened is told in the status already.
pub async fn reconcile(context: &Context, name: &str) -> anyhow::Result<()> {
    if !context.caches_are_complete() {
        context.comuni.add_after(name, INCOMPLETE);
        return Ok(());
    }
    let comune = context.world().comune(name);
    match comune {
        Some(comune) => present(context, &comune).await,
        None => absent(context, name).await,
    }
}

async fn present(context: &Context, comune: &Arc<Comune>) -> anyhow::Result<()> {
    let name = comune.name_any();
    let departing = match departure::attend(context, comune).await? {
        Way::On(told) => told,
        Way::Out => return Ok(()),
    };
    let finalizer = departure::keep_finalizer(context, comune).await;
    let mut failures: Vec<Failure> = Vec::new();
    let mut sight = look(context, comune);
    for _ in 0..ROUNDS {
        if comune.spec.paused || sight.plan.is_empty() {
            break;
        }
        let outcome = context.executor.execute(&sight.plan).await;
        for repaired in &outcome.repaired {
            context.metrics.drift_repaired(repaired.kind.name());
            let note = format!("{repaired} had been changed by hand and is as declared again");
            context.events.normal(comune.object_ref(&()), "DriftRepaired", "Repair", &note);
        }
        failures = outcome.failures;
        sight = look(context, comune);
        if !failures.is_empty() {
            break;
        }
    }
    if !comune.spec.paused {
        submit_databases(context, comune, &sight);
    }
    let told = tell(context, comune, &sight, &failures, departing.as_ref()).await;
    if !sight.plan.waits.is_empty() {
        context.comuni.add_after(&name, WAIT);
    }
    told?;
    finalizer?;
    if let Some(first) = failures.first() {
        anyhow::bail!(
            "{} of its objects could not be written; {}: {}",
            failures.len(),
            first.at,
            first.message
        );
    }
    Ok(())
}

/// Everything that is seen and decided of a Comune at one instant.
struct Sight {
    verdict: Verdict,
    observed: Observed,
    plan: Plan,
}

fn look(context: &Context, comune: &Comune) -> Sight {
    let name = comune.name_any();
    let now = Timestamp::now();
    let mut world = context.world();
    let mut verdict = world.validate(comune, (&context.namespace, &context.service_account));
    if let Some(valid) = &mut verdict.valid {
        valid.admitted_at = Some(world.admitted_at(comune, now));
    }
    let mut index = context.index();
    let mut observed = of_index(&index, comune);
    observed.databases = world.databases_seen(comune, Instant::now());
    observed.surveys = world.surveys_of(comune);
    if let Some(istat) = &comune.spec.entity.istat {
        let of_code = index.namespaces_of(istat);
        let left = of_code.filter(|(_, owner)| *owner != name && !world.comune_exists(owner));
        observed.left_by_namesakes =
            left.map(|(namespace, owner)| (namespace.to_owned(), owner.to_owned())).collect();
    }
    for database in verdict.valid.iter().flat_map(|valid| &valid.databases) {
        // What was found before an edit says nothing of what is declared now.
        if databases::is_outdated(&world, comune, database)
            && let Some(DatabaseSeen::Ready { .. }) = observed.databases.get(&database.spec.name)
        {
            observed.databases.remove(&database.spec.name);
        }
    }
    let plan = match &verdict.valid {
        Some(valid) => plan(valid, &observed, now),
        None => Plan::default(),
    };
    index.confirm(&name, &plan.confirmed);
    Sight { verdict, observed, plan }
}

/// What the caches show of a Comune and its children, without its databases.
pub fn observed(context: &Context, comune: &Comune) -> Observed {
    of_index(&context.index(), comune)
}

fn of_index(index: &Index, comune: &Comune) -> Observed {
    let name = comune.name_any();
    let wanted: Vec<String> = comune
        .spec
        .environments
        .iter()
        .map(|environment| names::namespace(&name, &environment.name))
        .collect();
    let mut observed = index.observe(&name, &wanted);
    let on_record = comune.status.iter().flat_map(|status| &status.namespaces);
    observed.own_namespaces = on_record.map(|namespace| namespace.uid.clone()).collect();
    observed
}

/// Unique ids that a Comune had before it was applied again, as its namespaces tell.
pub fn former_uids_of_all(context: &Context, comune: &Comune) -> Vec<String> {
    let observed = observed(context, comune);
    let own = observed.children.keys().filter(|at| at.kind == Kind::Namespace);
    let mut uids: Vec<String> = own
        .filter_map(|at| observed.namespaces.get(&at.name))
        .flat_map(|seen| former_uids(comune, seen))
        .collect();
    uids.sort_unstable();
    uids.dedup();
    uids
}

/// An administration with an ISTAT code is known by that.
fn former_uids(comune: &Comune, seen: &NamespaceSeen) -> Vec<String> {
    let uids = seen.annotations.get(keys::COMUNE_UID).filter(|_| comune.spec.entity.istat.is_none());
    let uids = uids.into_iter().flat_map(|uids| uids.split(','));
    uids.filter(|uid| !uid.is_empty() && Some(*uid) != comune.metadata.uid.as_deref())
        .map(str::to_owned)
        .collect()
}

/// Databases are provisioned once their namespace stands and is guarded: their Secret goes there.
fn submit_databases(context: &Context, comune: &Comune, sight: &Sight) {
    let Some(valid) = &sight.verdict.valid else { return };
    for database in &valid.databases {
        if let Some(home) = guarded_home(sight, &database.namespace) {
            let behind = behind(comune, sight, &database.spec.name);
            databases::submit(context, comune, database, &home.uid, former_uids(comune, home), behind);
        }
    }
    for database in &valid.dedicated {
        if guarded_home(sight, &database.namespace).is_some() {
            dedicated::submit(context, comune, valid, database);
        }
    }
}

/// A namespace that stands, is guarded and belongs to nobody else.
fn guarded_home<'a>(sight: &'a Sight, namespace: &str) -> Option<&'a NamespaceSeen> {
    let stands = sight.observed.children.keys().any(|at| at.kind == Kind::Namespace && at.name == namespace);
    let unguarded = [Wave::Namespaces, Wave::Guards]
        .iter()
        .filter_map(|wave| sight.plan.waves.get(wave))
        .flatten()
        .any(|action| action.at().home() == namespace);
    let clashes = sight.plan.clashes.iter().any(|clash| clash.namespace == namespace);
    sight.observed.namespaces.get(namespace).filter(|_| stands && !unguarded && !clashes)
}

/// The services of a database whose pods do not all work with the credential that is on record.
fn behind(comune: &Comune, sight: &Sight, database: &str) -> Behind {
    let services =
        comune.spec.services.iter().filter(|service| service.database.as_deref() == Some(database));
    let has_gone_over = |service: &conme_api::Service| {
        // One with a problem keeps the pods that it has.
        let valid = sight.verdict.valid.iter().flat_map(|valid| &valid.services);
        let Some(valid) = valid.into_iter().find(|valid| valid.spec.name == service.name) else {
            return false;
        };
        let at = ChildRef::new(Kind::Deployment, &valid.namespace, &service.name);
        let is_planned = sight.plan.actions().any(|action| *action.at() == at);
        let pods = sight.observed.pods.get(&(valid.namespace.clone(), service.name.clone()));
        !is_planned && pods.is_some_and(|pods| pods.ready >= pods.desired)
    };
    let told = comune.status.iter().flat_map(|status| &status.databases).find(|told| told.name == database);
    Behind {
        generation: told
            .and_then(|told| told.credential.as_ref())
            .map_or(0, |credential| credential.generation),
        services: services
            .filter(|service| !has_gone_over(service))
            .map(|service| service.name.clone())
            .collect(),
    }
}

async fn tell(
    context: &Context,
    comune: &Comune,
    sight: &Sight,
    failures: &[Failure],
    departing: Option<&Told>,
) -> anyhow::Result<()> {
    let name = comune.name_any();
    let now = Timestamp::now();
    let mut status = report(comune, &sight.verdict, &sight.plan, failures, &sight.observed, now);
    if let Some(told) = departing {
        tell_departure(&mut status, comune, told, now);
    }
    let previous = comune.status.clone().unwrap_or_default();
    if status == previous {
        return Ok(());
    }
    if without_volatile(&status) == without_volatile(&previous)
        && let Err(wait) = context.may_tell(&name, digest(&status))
    {
        context.comuni.add_after(&name, wait);
        return Ok(());
    }
    write_status(context, comune, &status).await
}

/// Another one for nearly every other status, within one process.
fn digest(status: &ComuneStatus) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{status:?}").hash(&mut hasher);
    hasher.finish()
}

/// Writes the status of a Comune, unless it is the one that it has.
///
/// # Errors
/// When the API server refuses it.
pub async fn write_status(context: &Context, comune: &Comune, status: &ComuneStatus) -> anyhow::Result<()> {
    let name = comune.name_any();
    let previous = comune.status.clone().unwrap_or_default();
    if *status == previous {
        return Ok(());
    }
    let api: Api<Comune> = Api::all(context.client.clone());
    let body = conme_cluster::apply(&json!({
        "apiVersion": Comune::api_version(&()),
        "kind": Comune::kind(&()),
        "metadata": {"name": name, "uid": comune.metadata.uid},
        "status": status,
    }))?;
    let params = PatchParams::apply(keys::STATUS_MANAGER).force();
    let written = context.calls.make("PATCH", api.patch_status(&name, &params, &body)).await;
    match written {
        Ok(written) => {
            context.has_told(&name);
            announce(context, comune, &previous, status);
            context.world().put_comune(written);
            if !new_credentials(&previous, status).is_empty() {
                // Pods follow what is on record.
                context.comuni.add(&name);
            }
            Ok(())
        }
        // Gone: the watch tells.
        Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
        // Another of the same name, of which the watch tells; or somebody was faster, of which nothing may tell.
        Err(kube::Error::Api(error)) if error.code == 409 => {
            context.comuni.add_after(&name, OVERTAKEN);
            Ok(())
        }
        Err(error) => anyhow::bail!("its status could not be written: {}", conme_cluster::words(&error)),
    }
}

/// Databases whose credential is of another generation than before, the first one included.
fn new_credentials<'a>(previous: &ComuneStatus, status: &'a ComuneStatus) -> Vec<&'a DatabaseStatus> {
    let generation = |database: &DatabaseStatus| database.credential.as_ref().map(|known| known.generation);
    let before =
        |name: &str| previous.databases.iter().find(|before| before.name == name).and_then(generation);
    let is_new = |database: &&DatabaseStatus| generation(database) != before(&database.name);
    status.databases.iter().filter(is_new).collect()
}

/// Events about single databases.
fn announce_databases(context: &Context, comune: &Comune, previous: &ComuneStatus, status: &ComuneStatus) {
    for database in new_credentials(previous, status) {
        if let Some(credential) = database.credential.as_ref().filter(|credential| credential.generation > 1)
        {
            let note = format!(
                "{}: a new password is in the Secret {}, for the login {}; its services are restarted",
                database.name, database.secret, credential.login
            );
            context.events.normal(comune.object_ref(&()), reasons::CREDENTIALS_ROTATED, "Rotate", &note);
        }
    }
    for database in &status.databases {
        let before = previous.databases.iter().find(|before| before.name == database.name);
        let is_new = before.is_none_or(|before| before.reason != database.reason);
        if is_new && database.reason == reasons::DATABASE_NEARLY_FULL {
            let note = format!("{}: {}", database.name, database.message);
            let about = comune.object_ref(&());
            context.events.warning(about, reasons::DATABASE_NEARLY_FULL, "Measure", &note);
        }
    }
}

fn announce(context: &Context, comune: &Comune, previous: &ComuneStatus, status: &ComuneStatus) {
    announce_databases(context, comune, previous, status);
    fn ready(status: &ComuneStatus) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
        status.conditions.iter().find(|condition| condition.type_ == reasons::READY)
    }
    let (before, after) = (ready(previous), ready(status));
    let Some(after) = after else { return };
    if before.is_some_and(|before| before.status == after.status && before.reason == after.reason) {
        return;
    }
    let about = comune.object_ref(&());
    match (after.status.as_str(), after.reason.as_str()) {
        ("True", reason) => context.events.normal(about, reason, "Reconcile", &after.message),
        (_, reasons::IN_PROGRESS | reasons::WAITING | reasons::PAUSED) => {}
        (_, reason) => context.events.warning(about, reason, "Reconcile", &after.message),
    }
}

/// A Comune that is gone: its namespaces stay and say since when.
async fn absent(context: &Context, name: &str) -> anyhow::Result<()> {
    if context.world().comune_exists(name) {
        return Ok(());
    }
    let plan = {
        let observed = context.index().observe(name, &[]);
        plan_abandoned(name, &observed, Timestamp::now())
    };
    if plan.is_empty() {
        return Ok(());
    }
    let outcome = context.executor.execute(&plan).await;
    match outcome.failures.first() {
        Some(failure) => anyhow::bail!("{} could not be marked as orphaned: {}", failure.at, failure.message),
        None => {
            tracing::info!(
                comune = name,
                namespaces = outcome.changed,
                "the Comune is gone; its namespaces stay"
            );
            Ok(())
        }
    }
}
