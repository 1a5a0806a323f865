//! A Comune that somebody has deleted: its finalizer, its grace period, and the end of what it has.
//!
//! Whatever cannot be undone is asked for once more right before: the Comune itself and the definition of Comuni are read
//! from the API server, because a cache may be late.

use std::time::{Duration, Instant};

use conme_api::{Comune, keys, reasons};
use conme_blueprint::{
    Circumstances, Departure, Estate, Told, departure, estate, finalizers_to_write, grace_left, grace_step,
    held_by_others, is_departing, names, plan_departure, tell_departure, without_finalizer,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, CustomResourceExt, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{comune, context::Context, dedicated, removals};

/// A Comune that waits is looked at again after this time: nothing tells when its definition is being deleted.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// And not sooner than after this time.
const SOON: Duration = Duration::from_secs(1);

/// A grace period as this process has seen it run.
#[derive(Debug)]
pub struct Grace {
    delete_after: String,
    since: Instant,
    left_then: SignedDuration,
}

/// What becomes of a pass over a Comune.
pub enum Way {
    /// It is looked after as ever; what is to be told of its deletion beside.
    On(Option<Told>),
    /// It is on its way out: nothing is built any more.
    Out,
}

/// Looks whether a Comune is to go, and brings that forward.
///
/// # Errors
/// When a call failed and the pass has to be repeated.
pub async fn attend(context: &Context, comune: &Comune) -> anyhow::Result<Way> {
    let name = comune.name_any();
    if comune.metadata.deletion_timestamp.is_none() {
        context.world().stays(&name);
        return Ok(Way::On(None));
    }
    if !is_departing(comune) {
        // The operator has let go of it, or never held it. Nothing may be built again in what was just cleared.
        context.world().leaves(&name);
        if let Some(told) = held_by_others(comune) {
            return told_only(context, comune, &told).await;
        }
        return Ok(Way::Out);
    }
    let estate = estate_of(context, comune);
    match decide(context, comune, &estate).await? {
        Departure::LetGo(why) => {
            let_go(context, comune, why).await?;
            Ok(Way::Out)
        }
        Departure::Hold(told) => {
            let left = {
                let mut world = context.world();
                world.stays(&name);
                world.note_grace(&name, &told, context.deletion_grace)
            };
            // The end may be far off by the wall clock, which was set back, when nothing is left by the other.
            let step = Duration::try_from(grace_step(context.deletion_grace)).unwrap_or(LOOK_AGAIN);
            context.comuni.add_after(&name, left.clamp(SOON, step.min(LOOK_AGAIN).max(SOON)));
            Ok(Way::On(Some(told)))
        }
        Departure::CleanUp(told) => {
            clean_up(context, comune, &estate, told).await?;
            Ok(Way::Out)
        }
    }
}

/// Puts the finalizer on a Comune whose policy is Delete, and takes it off one whose policy is Retain again.
///
/// # Errors
/// What the API server answers; that somebody was faster is none.
pub async fn keep_finalizer(context: &Context, comune: &Comune) -> anyhow::Result<()> {
    match finalizers_to_write(comune) {
        Some(finalizers) => write_finalizers(context, comune, &finalizers).await,
        None => Ok(()),
    }
}

fn estate_of(context: &Context, comune: &Comune) -> Estate {
    estate(comune, &comune::observed(context, comune))
}

async fn decide(context: &Context, comune: &Comune, estate: &Estate) -> anyhow::Result<Departure> {
    let definition_is_going = definition_is_going(context).await?;
    let now = Timestamp::now();
    let (known_for, left_then) = context.world().grace_of(comune, context.deletion_grace);
    let circumstances =
        Circumstances { definition_is_going, grace: context.deletion_grace, known_for, left_then };
    Ok(departure(comune, estate, &circumstances, now))
}

/// Whether, by the API server's own word at this instant, this Comune is still to be cleaned up.
///
/// # Errors
/// When the API server does not answer; nothing may be deleted then.
pub async fn is_still_wanted(context: &Context, name: &str, uid: Option<&str>) -> anyhow::Result<bool> {
    let api: Api<Comune> = Api::all(context.client.clone());
    let read = context.calls.make("GET", api.get_opt(name)).await;
    let Some(comune) = read.map_err(|error| anyhow::anyhow!("{}", conme_cluster::words(&error)))? else {
        return Ok(false);
    };
    if comune.metadata.uid.as_deref() != uid || !is_departing(&comune) || !context.leadership.holds() {
        return Ok(false);
    }
    let estate = estate_of(context, &comune);
    Ok(matches!(decide(context, &comune, &estate).await?, Departure::CleanUp(_)))
}

async fn definition_is_going(context: &Context) -> anyhow::Result<bool> {
    let api: Api<CustomResourceDefinition> = Api::all(context.client.clone());
    let name = Comune::crd_name();
    match context.calls.make("GET", api.get_metadata_opt(name)).await {
        Ok(Some(definition)) => Ok(definition.metadata.deletion_timestamp.is_some()),
        Ok(None) => Ok(true),
        Err(error) => anyhow::bail!(
            "whether the definition {name} is being deleted is not known, so nothing is: {}",
            conme_cluster::words(&error)
        ),
    }
}

/// Tells of a departure and leaves the rest of the status as it is.
async fn told_only(context: &Context, comune: &Comune, told: &Told) -> anyhow::Result<Way> {
    let mut status = comune.status.clone().unwrap_or_default();
    tell_departure(&mut status, comune, told, Timestamp::now());
    comune::write_status(context, comune, &status).await?;
    Ok(Way::Out)
}

/// Databases first, then namespaces; the Comune itself goes when both are gone.
async fn clean_up(context: &Context, comune: &Comune, estate: &Estate, mut told: Told) -> anyhow::Result<()> {
    let name = comune.name_any();
    context.world().leaves(&name);
    let mut estate = estate.clone();
    for namespace in estate.namespaces.keys().cloned().collect::<Vec<_>>() {
        let servers = dedicated::servers_in(context, &namespace).await?;
        let given_up: Vec<String> =
            estate.with_namespace.iter().map(|name| names::binding_secret(name)).collect();
        if servers.iter().any(|server| !given_up.contains(server)) {
            estate.namespaces.remove(&namespace);
            told.message +=
                &format!("; {namespace} stays: it holds a database server that no manifest gives up");
        }
    }
    let estate = &estate;
    let drops = removals::submit(context, comune, &estate.drop);
    for (database, words) in &drops.failed {
        told.message += &format!("; the database {database} could not be dropped: {words}");
    }
    if !drops.failed.is_empty() {
        told.reason = reasons::DATABASE_FAILED;
    }
    told_only(context, comune, &told).await?;
    if drops.pending {
        return Ok(());
    }
    if !estate.namespaces.is_empty() {
        if !is_still_wanted(context, &name, comune.metadata.uid.as_deref()).await? {
            context.comuni.add_after(&name, Duration::from_secs(1));
            return Ok(());
        }
        let outcome = context.executor.execute(&plan_departure(estate)).await;
        let failed: Vec<&str> = outcome.failures.iter().map(|failure| failure.at.home()).collect();
        let names: Vec<&str> =
            estate.namespaces.keys().map(String::as_str).filter(|name| !failed.contains(name)).collect();
        if !names.is_empty() {
            let note = format!("deleted as confirmed: {}", names.join(", "));
            tracing::info!(comune = %name, namespaces = names.join(", "), "deleted as confirmed");
            context.events.normal(comune.object_ref(&()), "NamespacesDeleted", "Delete", &note);
        }
        if let Some(failure) = outcome.failures.first() {
            anyhow::bail!("{} could not be deleted: {}", failure.at, failure.message);
        }
    }
    if estate.namespaces.is_empty() && estate.terminating.is_empty() {
        return let_go(context, comune, "everything that was to be deleted is gone").await;
    }
    context.comuni.add_after(&name, LOOK_AGAIN);
    Ok(())
}

async fn let_go(context: &Context, comune: &Comune, why: &str) -> anyhow::Result<()> {
    write_finalizers(context, comune, &without_finalizer(comune)).await?;
    tracing::info!(comune = %comune.name_any(), why, "the Comune may go");
    context.events.normal(comune.object_ref(&()), "Released", "Delete", why);
    Ok(())
}

async fn write_finalizers(context: &Context, comune: &Comune, finalizers: &[String]) -> anyhow::Result<()> {
    let api: Api<Comune> = Api::all(context.client.clone());
    // With the version: the list is written as a whole, and somebody else may have changed it.
    let body = json!({"metadata": {
        "uid": comune.metadata.uid,
        "resourceVersion": comune.metadata.resource_version,
        "finalizers": finalizers,
    }});
    let params = PatchParams { field_manager: Some(keys::FIELD_MANAGER.into()), ..PatchParams::default() };
    let name = comune.name_any();
    match context.calls.make("PATCH", api.patch(&name, &params, &Patch::Merge(&body))).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            // The watch is about to tell what is newer.
            context.comuni.add_after(&name, Duration::from_secs(1));
            Ok(())
        }
        Err(error) => anyhow::bail!("its finalizer could not be written: {}", conme_cluster::words(&error)),
    }
}

impl Grace {
    /// The grace period of what is told, if one runs.
    pub fn of(told: &Told, grace: SignedDuration) -> Option<Self> {
        let delete_after = told.deletion.delete_after.clone()?;
        let left_then = grace_left(&told.deletion, grace);
        Some(Self { delete_after, since: Instant::now(), left_then })
    }

    /// Whether it is the one that ends at this time.
    pub fn ends(&self, delete_after: Option<&String>) -> bool {
        Some(&self.delete_after) == delete_after
    }

    /// For how long it has been known, and what was left of it then.
    pub fn run(&self) -> (SignedDuration, SignedDuration) {
        let known_for = SignedDuration::try_from(self.since.elapsed()).unwrap_or(SignedDuration::MAX);
        (known_for, self.left_then)
    }

    /// What is left of it by a clock that does not jump.
    pub fn left(&self) -> Duration {
        let (known_for, left_then) = self.run();
        Duration::try_from(left_then.saturating_sub(known_for)).unwrap_or_default()
    }
}
