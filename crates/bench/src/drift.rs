//! Drift: somebody adds to an object by hand, and the bench's own watch sees when that is gone again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use conme_blueprint::Kind;
use futures::TryStreamExt;
use kube::{
    Api,
    api::{DynamicObject, ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use serde::Serialize;
use serde_json::json;

use crate::{operator::seconds, plane::Plane};

/// An annotation that no operator knows.
const MARK: &str = "example.org/by-hand";
const LIMIT: Duration = Duration::from_secs(60);

/// Times of repairs of one kind, in seconds, sorted.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repairs {
    /// Each repair.
    pub seconds: Vec<f64>,
}

impl Repairs {
    /// The time that `percent` of the repairs did not exceed (nearest rank).
    pub fn percentile(&self, percent: usize) -> f64 {
        percentile(&self.seconds, percent)
    }
}

/// The value that `percent` of sorted values do not exceed (nearest rank); NaN of none.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Changes objects of every kind of some Comuni by hand, one after the other; `samples` of each kind.
///
/// # Errors
/// When a change is not taken back, or an object is missing.
pub async fn repairs(plane: &Plane, samples: usize) -> Result<BTreeMap<String, Repairs>> {
    let mut repairs = BTreeMap::new();
    for kind in Kind::ALL {
        let api: Api<DynamicObject> = Api::all_with(plane.client(), &kind.api_resource());
        let params = ListParams::default().labels("app.kubernetes.io/managed-by=conme").limit(samples as u32);
        let objects = api.list(&params).await?.items;
        if objects.is_empty() {
            continue;
        }
        let mut times = Vec::new();
        // Where there are fewer objects than samples, some are changed again.
        for object in objects.iter().cycle().take(samples) {
            times.push(seconds(repair(plane, kind, object).await?));
        }
        times.sort_by(f64::total_cmp);
        repairs.insert(kind.name().to_owned(), Repairs { seconds: times });
    }
    Ok(repairs)
}

async fn repair(plane: &Plane, kind: Kind, object: &DynamicObject) -> Result<Duration> {
    let name = object.metadata.name.as_deref().context("no name")?;
    let api = plane.api(kind, object.metadata.namespace.as_deref().unwrap_or_default());
    let only = format!("metadata.name={name}");
    let listed = api.list_metadata(&ListParams::default().fields(&only)).await?;
    let version = listed.metadata.resource_version.context("no version")?;
    let params = WatchParams::default().fields(&only).timeout(290);
    let mut events = std::pin::pin!(api.watch(&params, &version).await?);
    let mark = json!({"metadata": {"annotations": {MARK: "1"}}});
    let begin = Instant::now();
    api.patch(name, &PatchParams::default(), &Patch::Merge(&mark)).await?;
    let seen = async {
        let mut was_marked = false;
        while let Some(event) = events.try_next().await? {
            let object = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => object,
                WatchEvent::Error(error) => bail!("{}: {}", error.reason, error.message),
                WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => continue,
            };
            let is_marked = object.metadata.annotations.is_some_and(|all| all.contains_key(MARK));
            if was_marked && !is_marked {
                return Ok(begin.elapsed());
            }
            was_marked |= is_marked;
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(LIMIT, seen)
        .await
        .map_err(|_| anyhow::anyhow!("{} {name}: not repaired after {} s", kind.name(), LIMIT.as_secs()))?
}
