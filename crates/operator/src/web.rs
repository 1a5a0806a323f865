//! Health, readiness and metrics over HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use conme_cluster::WatchHealth;

use crate::{context::Context, metrics::OperatorMetrics};

/// What health and readiness are told from.
pub struct Vitals {
    /// Every watch.
    pub watches: Vec<WatchHealth>,
    /// False once a worker or the leader's loop has ended.
    pub loops_alive: Arc<AtomicBool>,
    /// Metrics.
    pub metrics: Arc<OperatorMetrics>,
    /// For figures that are taken when asked for.
    pub context: Arc<Context>,
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, vitals: Arc<Vitals>) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthy))
        .route("/livez", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(vitals);
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("cannot listen on {address}: {error}; choose another with --listen")
    })?;
    tracing::info!(address = %listener.local_addr()?, "health and metrics");
    axum::serve(listener, router).await?;
    Ok(())
}

fn answer(wrong: Vec<String>) -> (StatusCode, String) {
    if wrong.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, wrong.join("\n") + "\n")
    }
}

/// Alive: no loop has ended.
async fn healthy(State(vitals): State<Arc<Vitals>>) -> (StatusCode, String) {
    answer(dead(&vitals))
}

/// Ready: alive, and every cache has seen all there is. Does not depend on leadership.
async fn ready(State(vitals): State<Arc<Vitals>>) -> (StatusCode, String) {
    let mut wrong = dead(&vitals);
    let behind = vitals.watches.iter().filter(|watch| !watch.is_synced());
    wrong.extend(behind.map(|watch| format!("the cache of {} is not complete yet", watch.name)));
    answer(wrong)
}

fn dead(vitals: &Vitals) -> Vec<String> {
    let watches = vitals.watches.iter().filter(|watch| !watch.is_alive());
    let mut wrong: Vec<String> =
        watches.map(|watch| format!("the watch of {} has ended", watch.name)).collect();
    if !vitals.loops_alive.load(Ordering::Acquire) {
        wrong.push("a worker has ended".into());
    }
    wrong
}

async fn metrics(State(vitals): State<Arc<Vitals>>) -> String {
    let context = &vitals.context;
    vitals.metrics.queue("comune", &context.comuni);
    vitals.metrics.queue("database", &context.databases);
    vitals.metrics.queue("catalogue", &context.catalogue);
    let (ready, all) = context.world().ready_and_all();
    let children = context.index().len();
    vitals.metrics.comuni(ready, all - ready, children);
    vitals.metrics.text()
}
