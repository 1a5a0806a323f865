//! The operator's side: what it takes from the first manifest to the last object, and afterwards.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use conme_blueprint::Kind;
use conme_testbed::install::OPERATOR;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    runtime::watcher,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    audit::Calls,
    eyes::{Eye, hard, ready_at},
    plane::{Cost, Plane},
    sample::{self, Surroundings},
};

/// Manifests that are applied at the same time: a person's `kubectl apply` takes one after the other, a pipeline more.
const APPLIED_AT_ONCE: usize = 8;
const FIELD_MANAGER: &str = "sad";

/// Seconds with milliseconds.
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

fn between(from: Timestamp, to: Timestamp) -> f64 {
    let duration: SignedDuration = to.duration_since(from);
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// From nothing to everything.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Converged {
    /// Comuni.
    pub comuni: usize,
    /// Objects that the operator has made.
    pub objects: usize,
    /// From the first manifest to the last object, in seconds.
    pub last_object_seconds: f64,
    /// From the first manifest until the last Comune was Ready, in seconds.
    pub last_ready_seconds: f64,
    /// From the first manifest until the API server had taken the last one, in seconds.
    pub last_manifest_seconds: f64,
    /// What the operator has asked the API server for until it was at rest.
    pub calls: Calls,
    /// Memory of the operator before the first manifest.
    pub idle: Cost,
    /// Memory of the operator at rest afterwards, with its peak.
    pub after: Cost,
    /// Processor time of the operator until it was at rest, in seconds.
    pub operator_cpu_seconds: f64,
    /// Processor time of the API server meanwhile, in seconds.
    pub api_server_cpu_seconds: f64,
}

/// The Comuni as the generic client sees them.
pub fn comuni(plane: &Plane) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("conme.venis.it", "v1alpha1", "Comune");
    Api::all_with(plane.client(), &ApiResource::from_gvk_with_plural(&kind, "comuni"))
}

/// A watch on when Comuni become Ready.
pub fn ready_watch(plane: &Plane) -> Eye<Option<i64>> {
    Eye::open(comuni(plane), watcher::Config::default(), ready_at)
}

/// Applies manifests as the SAD. Returns the generation of each by its key in a watch.
///
/// # Errors
/// What the API server answers.
pub async fn apply(plane: &Plane, manifests: &[Value]) -> Result<BTreeMap<String, Option<i64>>> {
    let api = comuni(plane);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    stream::iter(manifests)
        .map(|manifest| {
            let (api, params) = (&api, &params);
            async move {
                let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
                let written = api.patch(name, params, &Patch::Apply(manifest)).await?;
                Ok((format!("/{name}"), written.metadata.generation))
            }
        })
        .buffer_unordered(APPLIED_AT_ONCE)
        .try_collect()
        .await
}

/// Applies Comuni and waits until everything is as declared and the operator at rest.
///
/// # Errors
/// When that does not happen.
pub async fn converge(plane: &Plane, manifests: &[Value]) -> Result<Converged> {
    let eye = ready_watch(plane);
    let before = plane.costs().await?;
    let record = plane.record()?;
    let begin = Timestamp::now();
    let wanted = apply(plane, manifests).await?;
    let applied = Timestamp::now();
    let last_ready = eye.all("Ready", &wanted).await?;
    plane.idle().await?;
    let after = plane.costs().await?;
    // What was put off is part of the work.
    plane.at_rest().await?;
    let at_rest = plane.cost(OPERATOR).await?;
    let calls = record.of_operator()?;
    Ok(Converged {
        comuni: manifests.len(),
        objects: calls.created,
        last_object_seconds: between(begin, calls.last_object.context("nothing was written")?),
        last_ready_seconds: between(begin, last_ready),
        last_manifest_seconds: between(begin, applied),
        calls,
        idle: before.operator,
        after: at_rest,
        operator_cpu_seconds: after.operator.cpu_seconds - before.operator.cpu_seconds,
        api_server_cpu_seconds: after.api_server.cpu_seconds - before.api_server.cpu_seconds,
    })
}

/// When nothing is to be done.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quiet {
    /// How long was listened, in seconds.
    pub seconds: f64,
    /// What the operator has asked for meanwhile.
    pub calls: Calls,
    /// Processor time of the operator meanwhile, in seconds.
    pub operator_cpu_seconds: f64,
}

/// Listens to an operator that is at rest.
///
/// # Errors
/// When it does not come to rest first.
pub async fn listen(plane: &Plane, window: Duration) -> Result<Quiet> {
    plane.at_rest().await?;
    let (record, before, begin) = (plane.record()?, plane.cost(OPERATOR).await?, Instant::now());
    tokio::time::sleep(window).await;
    let after = plane.cost(OPERATOR).await?;
    Ok(Quiet {
        seconds: seconds(begin.elapsed()),
        calls: record.of_operator()?,
        operator_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
    })
}

/// A restart with nothing to do.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// Until it said that it was ready, in seconds.
    pub ready_seconds: f64,
    /// Until it had looked at every Comune again, in seconds.
    pub looked_at_seconds: f64,
    /// What it has asked for.
    pub calls: Calls,
    /// What it has cost until it was at rest, with its peak.
    pub cost: Cost,
}

/// Starts the operator again.
///
/// # Errors
/// When it does not get ready, or does not come to rest.
pub async fn restart(plane: &Plane, comuni: usize) -> Result<Restart> {
    let record = plane.record()?;
    let begin = Instant::now();
    let ready = plane.restart_operator().await?;
    let mut looked_at = None;
    while looked_at.is_none() && begin.elapsed() < crate::plane::PATIENCE {
        let metrics = plane.metrics().await?;
        let passes = metrics.sum("controller_runtime_reconcile_total", &["controller=\"comune\""]);
        if passes >= comuni as f64 && metrics.sum("workqueue_depth", &["comune"]) == 0.0 {
            looked_at = Some(begin.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    plane.idle().await?;
    Ok(Restart {
        ready_seconds: seconds(ready),
        looked_at_seconds: seconds(looked_at.context("it has not looked at every Comune")?),
        calls: record.of_operator()?,
        cost: plane.cost(OPERATOR).await?,
    })
}

/// A quota that is changed for all.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaChange {
    /// Quotas that had to change.
    pub quotas: usize,
    /// From the edit until the last of them was right, in seconds.
    pub seconds: f64,
    /// What the operator has asked for.
    pub calls: Calls,
}

/// Gives the band of all Comuni more of everything, and waits until every quota is right.
///
/// # Errors
/// When that does not happen.
pub async fn change_quota(
    plane: &Plane,
    surroundings: &mut Surroundings,
    manifests: &[Value],
) -> Result<QuotaChange> {
    let api: Api<conme_api::DataCenter> = Api::all(plane.client());
    let mut live = api.get("venis").await?;
    for data_center in [&mut live, surroundings.data_center_mut()] {
        let tier = data_center.spec.tiers.iter_mut().find(|tier| tier.name == "piccolo");
        let quota = &mut tier.context("no tier piccolo")?.quota;
        let edited = json!({"cpu": "6", "memory": "12Gi"});
        let mut value = serde_json::to_value(&*quota)?;
        for (resource, amount) in edited.as_object().into_iter().flatten() {
            value[resource] = amount.clone();
        }
        *quota = serde_json::from_value(value)?;
    }
    let wanted: BTreeMap<String, _> = surroundings
        .objects(manifests)?
        .into_iter()
        .filter(|object| object.at.kind == Kind::ResourceQuota)
        .map(|object| (format!("{}/{}", object.at.namespace, object.at.name), hard(&object.body)))
        .collect();
    let quotas = Api::all_with(plane.client(), &Kind::ResourceQuota.api_resource());
    let eye = Eye::open(quotas, watcher::Config::default(), |quota| hard(&quota.data));
    let record = plane.record()?;
    let begin = Timestamp::now();
    let patch = json!({"spec": {"tiers": live.spec.tiers}});
    api.patch("venis", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let right = eye.all("every quota is right", &wanted).await?;
    ensure!(right > begin, "no quota had to change");
    plane.idle().await?;
    Ok(QuotaChange { quotas: wanted.len(), seconds: between(begin, right), calls: record.of_operator()? })
}

/// Databases that are added to all Comuni.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Databases {
    /// How many.
    pub databases: usize,
    /// From the first manifest until the last Comune was Ready with its database, in seconds.
    pub last_ready_seconds: f64,
    /// What the operator has asked for.
    pub calls: Calls,
    /// Memory of the operator afterwards.
    pub after: Cost,
}

/// Adds one database to each Comune.
///
/// # Errors
/// When they do not become Ready.
pub async fn add_databases(plane: &Plane, manifests: &[Value]) -> Result<Databases> {
    let mut manifests = manifests.to_vec();
    for manifest in &mut manifests {
        manifest["spec"]["databases"] = sample::databases();
    }
    let eye = ready_watch(plane);
    let record = plane.record()?;
    let begin = Timestamp::now();
    let wanted = apply(plane, &manifests).await?;
    let ready = eye.all("Ready with databases", &wanted).await?;
    plane.idle().await?;
    Ok(Databases {
        databases: manifests.len(),
        last_ready_seconds: between(begin, ready),
        calls: record.of_operator()?,
        after: plane.cost(OPERATOR).await?,
    })
}

/// Single Comuni that are applied while a crowd converges.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Crowd {
    /// Comuni in the crowd.
    pub others: usize,
    /// From its manifest until it was Ready, of each single Comune, in seconds, sorted.
    pub ready_seconds: Vec<f64>,
    /// Until the last of all was Ready, in seconds.
    pub all_ready_seconds: f64,
}

/// Applies a crowd and, at an even pace meanwhile, single Comuni.
///
/// # Errors
/// When they do not become Ready.
pub async fn crowd(plane: &Plane, others: usize, singles: usize, pace: Duration) -> Result<Crowd> {
    let eye = ready_watch(plane);
    let begin = Timestamp::now();
    let crowd: Vec<Value> = (0..others).map(|number| sample::comune("folla", number)).collect();
    let applied_singles = async {
        let mut applied = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        let mut ticks = tokio::time::interval(pace);
        for number in 0..singles {
            ticks.tick().await;
            let at = Timestamp::now();
            let written = apply(plane, &[sample::comune("prova", number)]).await?;
            applied.extend(written.keys().map(|key| (key.clone(), at)));
            wanted.extend(written);
        }
        anyhow::Ok((applied, wanted))
    };
    let (of_crowd, singles) = tokio::join!(apply(plane, &crowd), applied_singles);
    let (applied, mut wanted) = singles?;
    wanted.extend(of_crowd?);
    let all_ready = eye.all("Ready in the crowd", &wanted).await?;
    let mut ready_seconds: Vec<f64> =
        applied.iter().filter_map(|(key, at)| Some(between(*at, eye.since(key)?))).collect();
    ensure!(ready_seconds.len() == applied.len(), "a single Comune was not seen");
    ready_seconds.sort_by(f64::total_cmp);
    Ok(Crowd { others, ready_seconds, all_ready_seconds: between(begin, all_ready) })
}
