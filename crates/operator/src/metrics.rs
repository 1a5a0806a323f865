//! Metrics under the names that dashboards for controllers know.

use std::{
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::queue::Queue;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    code: String,
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    name: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Controller {
    controller: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconciled {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result_ {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ready {
    ready: &'static str,
}

/// All metrics of the operator.
pub struct OperatorMetrics {
    registry: Mutex<Registry>,
    calls: Family<Call, Counter>,
    call_seconds: Family<Named, Histogram>,
    reconciled: Family<Reconciled, Counter>,
    errors: Family<Controller, Counter>,
    reconcile_seconds: Family<Controller, Histogram>,
    active: Family<Controller, Gauge>,
    depth: Family<Named, Gauge>,
    put_off: Family<Named, Gauge>,
    leader: Family<Named, Gauge>,
    comuni: Family<Ready, Gauge>,
    children: Gauge,
    drift: Family<OfKind, Counter>,
    databases: Family<Result_, Counter>,
    passes: AtomicU64,
}

fn seconds() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl OperatorMetrics {
    /// Everything at zero, for a program of this version.
    pub fn new(version: &'static str) -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(seconds),
            reconciled: Family::default(),
            errors: Family::default(),
            reconcile_seconds: Family::new_with_constructor(seconds),
            active: Family::default(),
            depth: Family::default(),
            put_off: Family::default(),
            leader: Family::default(),
            comuni: Family::default(),
            children: Gauge::default(),
            drift: Family::default(),
            databases: Family::default(),
            passes: AtomicU64::default(),
        };
        metrics.register(version);
        metrics
    }

    fn register(&self, version: &'static str) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.register("conme_build", "Version of this program", Info::new([("version", version)]));
        registry.register(
            "rest_client_requests",
            "Calls to the API server by code and method",
            self.calls.clone(),
        );
        registry.register(
            "rest_client_request_duration_seconds",
            "Time of calls by method",
            self.call_seconds.clone(),
        );
        registry.register(
            "controller_runtime_reconcile",
            "Passes by controller and result",
            self.reconciled.clone(),
        );
        registry.register("controller_runtime_reconcile_errors", "Passes that failed", self.errors.clone());
        registry.register(
            "controller_runtime_reconcile_time_seconds",
            "Time of passes",
            self.reconcile_seconds.clone(),
        );
        registry.register("controller_runtime_active_workers", "Passes under way", self.active.clone());
        registry.register("workqueue_depth", "Names that wait for a pass", self.depth.clone());
        registry.register("conme_put_off", "Names whose pass has been put off", self.put_off.clone());
        registry.register("leader_election_master_status", "1 while this process leads", self.leader.clone());
        registry.register("conme_comuni", "Comuni by readiness", self.comuni.clone());
        registry.register("conme_children", "Children known", self.children.clone());
        registry.register("conme_drift_repaired", "Children put back as they should be", self.drift.clone());
        registry.register("conme_database_ensure", "Databases looked at by result", self.databases.clone());
    }

    /// Passes that have ended, of all controllers.
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// A pass of a controller has ended.
    pub fn reconciled(&self, controller: &'static str, result: &'static str, took: Duration) {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.reconciled.get_or_create(&Reconciled { controller, result }).inc();
        if result == "error" {
            self.errors.get_or_create(&Controller { controller }).inc();
        }
        self.reconcile_seconds.get_or_create(&Controller { controller }).observe(took.as_secs_f64());
    }

    /// State of a queue.
    pub fn queue(&self, name: &'static str, queue: &Queue) {
        self.depth.get_or_create(&Named { name }).set(queue.depth() as i64);
        self.put_off.get_or_create(&Named { name }).set(queue.put_off() as i64);
        self.active.get_or_create(&Controller { controller: name }).set(queue.active() as i64);
    }

    /// Whether this process leads.
    pub fn leading(&self, leads: bool) {
        self.leader.get_or_create(&Named { name: "conme-operator" }).set(i64::from(leads));
    }

    /// Comuni by readiness, and number of children known.
    pub fn comuni(&self, ready: usize, not_ready: usize, children: usize) {
        self.comuni.get_or_create(&Ready { ready: "true" }).set(ready as i64);
        self.comuni.get_or_create(&Ready { ready: "false" }).set(not_ready as i64);
        self.children.set(children as i64);
    }

    /// A child that somebody had changed is as it should be again.
    pub fn drift_repaired(&self, kind: &'static str) {
        self.drift.get_or_create(&OfKind { kind }).inc();
    }

    /// A database was looked at.
    pub fn database(&self, result: &'static str) {
        self.databases.get_or_create(&Result_ { result }).inc();
    }

    /// Everything in the text format of Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if encode(&mut text, &registry).is_err() {
            text.clear();
        }
        // The process itself goes before the end mark.
        let end = text.rfind("# EOF").unwrap_or(text.len());
        let mut process = String::new();
        if let Some((resident, seconds)) = process_figures() {
            let _ = write!(
                process,
                "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {resident}\n\
                 # TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total {seconds}\n"
            );
        }
        text.insert_str(end, &process);
        text
    }
}

impl conme_cluster::Metrics for OperatorMetrics {
    fn call(&self, method: &'static str, code: u16, took: Duration) {
        let code = if code == 0 { "<error>".to_owned() } else { code.to_string() };
        self.calls.get_or_create(&Call { code, method }).inc();
        self.call_seconds.get_or_create(&Named { name: method }).observe(took.as_secs_f64());
    }
}

/// Resident memory in bytes and CPU time in seconds of this process, as Linux tells them (proc(5)).
fn process_figures() -> Option<(u64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some((kibibytes * 1024, ticks as f64 / 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_that_dashboards_know() {
        let metrics = OperatorMetrics::new("1.2.3");
        metrics.reconciled("comune", "error", Duration::from_millis(3));
        let queue = Queue::default();
        queue.add("a");
        queue.add("b");
        queue.add_after("c", Duration::from_secs(5));
        metrics.queue("comune", &queue);
        metrics.leading(true);
        metrics.comuni(21, 1, 600);
        metrics.drift_repaired("ResourceQuota");
        metrics.database("ready");
        conme_cluster::Metrics::call(&metrics, "PATCH", 200, Duration::from_millis(1));
        let text = metrics.text();
        for line in [
            "controller_runtime_reconcile_total{controller=\"comune\",result=\"error\"} 1",
            "controller_runtime_reconcile_errors_total{controller=\"comune\"} 1",
            "workqueue_depth{name=\"comune\"} 2",
            "conme_put_off{name=\"comune\"} 1",
            "rest_client_requests_total{code=\"200\",method=\"PATCH\"} 1",
            "leader_election_master_status{name=\"conme-operator\"} 1",
            "conme_comuni{ready=\"true\"} 21",
            "conme_drift_repaired_total{kind=\"ResourceQuota\"} 1",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} is missing from\n{text}");
        }
        assert!(text.trim_end().ends_with("# EOF"));
    }
}
