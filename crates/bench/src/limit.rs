//! The limit: how fast a plain client can write the very same objects. It watches nothing, decides nothing and reads no
//! answer; only what the API server refuses for a moment is sent again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use conme_blueprint::Kind;
use futures::{StreamExt, stream};
use http::{Method, Request, header::CONTENT_TYPE};
use kube::{Client, client::Body};

use crate::sample::Object;

/// How long the API server may need until it has counted what a new quota limits.
const QUOTA_DELAY: Duration = Duration::from_secs(60);
/// Pause of the whole client when all that is left has been refused for a moment.
const BREATH: Duration = Duration::from_millis(20);

/// Requests under way at the same time, each on a connection of its own, of which the best is taken.
pub const CANDIDATES: [usize; 4] = [8, 16, 32, 64];

/// Writes namespaces first, then everything else, by server-side apply. Returns the time taken and how often the API
/// server refused something for a moment.
///
/// # Errors
/// When something cannot be written.
pub async fn write(client: &Client, objects: &[Object], concurrency: usize) -> Result<(Duration, usize)> {
    // Comune by Comune, so that the cluster's controllers are at work meanwhile: with all Deployments at the end, their
    // pods would be made when the clock has stopped.
    let (namespaces, rest): (Vec<&Object>, Vec<&Object>) =
        objects.iter().partition(|object| object.at.kind == Kind::Namespace);
    let begin = Instant::now();
    let mut refusals = 0;
    for phase in [namespaces, rest] {
        let mut left = phase;
        while !left.is_empty() {
            let results: Vec<Result<Option<&Object>>> = stream::iter(left)
                .map(|object| async move { Ok((!apply(client, object).await?).then_some(object)) })
                .buffer_unordered(concurrency)
                .collect()
                .await;
            left = results.into_iter().filter_map(Result::transpose).collect::<Result<_>>()?;
            refusals += left.len();
            if !left.is_empty() {
                if begin.elapsed() > crate::plane::PATIENCE + QUOTA_DELAY {
                    bail!("{} objects are refused again and again", left.len());
                }
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    Ok((begin.elapsed(), refusals))
}

/// Returns false when the API server has not counted yet what the namespace's quota limits.
async fn apply(client: &Client, object: &Object) -> Result<bool> {
    let at = &object.at;
    let api = conme_stories::api_with(client.clone(), at.kind, &at.namespace);
    let uri =
        format!("{}/{}?fieldManager=conme&force=true&fieldValidation=Strict", api.resource_url(), at.name);
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(uri)
        .header(CONTENT_TYPE, "application/apply-patch+yaml")
        .body(Body::from(serde_json::to_vec(&object.body)?))?;
    let response = client.send(request).await.with_context(|| at.to_string())?;
    let status = response.status();
    let body = response.into_body().collect_bytes().await?;
    if status.is_success() {
        return Ok(true);
    }
    let words = String::from_utf8_lossy(&body);
    if status.as_u16() == 403 && words.contains("status unknown for quota") {
        return Ok(false);
    }
    bail!("{at}: {status}: {words}")
}
