//! What was measured, what it is measured against, and both in words.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    drift::{Repairs, percentile},
    operator::{Converged, Crowd, Databases, Quiet, QuotaChange, Restart},
};

/// Everything of one run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Where and when.
    pub machine: Machine,
    /// The limit's time for a small sample at each number of requests under way, in seconds.
    pub calibration: BTreeMap<usize, f64>,
    /// The one that it was fastest with.
    pub concurrency: usize,
    /// By number of Comuni.
    pub sizes: Vec<Size>,
}

/// The machine.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// When the run began (RFC 3339).
    pub at: String,
    /// Processors.
    pub cores: usize,
    /// Model of the processor.
    pub processor: String,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Version of the kernel.
    pub kernel: String,
    /// Load of the last minute before the run began: somebody else's work.
    pub load: String,
    /// Version of Kubernetes.
    pub kubernetes: String,
    /// Version of Con.Me.
    pub conme: String,
}

impl Machine {
    /// This one, now.
    ///
    /// # Errors
    /// When Linux does not tell.
    pub fn this() -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
        };
        let memory = value(&read("/proc/meminfo")?, "MemTotal");
        let kibibytes: u64 = memory.trim_end_matches("kB").trim().parse().context("MemTotal")?;
        Ok(Self {
            at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            cores: std::thread::available_parallelism()?.get(),
            processor: value(&read("/proc/cpuinfo")?, "model name"),
            memory_mib: kibibytes / 1024,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load: read("/proc/loadavg")?.split_whitespace().next().unwrap_or_default().to_owned(),
            kubernetes: conme_testbed::version_of("kube-apiserver").unwrap_or("unknown").to_owned(),
            conme: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

/// One write of the same objects by a plain client.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Objects.
    pub objects: usize,
    /// From the first request to the last answer, in seconds.
    pub seconds: f64,
    /// Objects that the API server refused for a moment, and took later.
    pub refused_for_a_moment: usize,
    /// Processor time of the API server, in seconds.
    pub api_server_cpu_seconds: f64,
}

/// Everything of one number of Comuni.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    /// Comuni.
    pub comuni: usize,
    /// The operator, each time on a fresh control plane.
    pub operator: Vec<Converged>,
    /// The limit, each time on a fresh control plane.
    pub limit: Vec<Limit>,
    /// Drift by kind.
    pub drift: BTreeMap<String, Repairs>,
    /// A quota changed for all.
    pub quota_change: QuotaChange,
    /// A restart with nothing to do.
    pub restart: Restart,
    /// Nothing to do.
    pub quiet: Quiet,
    /// One Comune in a busy crowd, where it was measured.
    pub crowd: Option<Crowd>,
    /// Databases, where they were measured.
    pub databases: Option<Databases>,
}

/// The median; of an even number the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

impl Size {
    /// The last of the runs went on to the other measures.
    fn converged(&self) -> Result<&Converged> {
        self.operator.last().context("the operator was not measured")
    }

    fn last_object(&self) -> f64 {
        median(self.operator.iter().map(|run| run.last_object_seconds))
    }

    fn limit(&self) -> f64 {
        median(self.limit.iter().map(|run| run.seconds))
    }

    fn ratio(&self) -> f64 {
        self.last_object() / self.limit()
    }

    fn peak_mib(&self) -> Result<f64> {
        Ok(mib(self.converged()?.after.peak_kib.max(self.restart.cost.peak_kib)))
    }
}

fn mib(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}

/// A figure beside what it should be.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// What is measured.
    pub figure: String,
    /// Number of Comuni.
    pub comuni: usize,
    /// The most that it may be.
    pub at_most: f64,
    /// What it is.
    pub is: f64,
    /// Unit of both.
    pub unit: &'static str,
}

impl Target {
    /// Whether it is what it should be. What could not be measured is not.
    pub fn is_met(&self) -> bool {
        self.is <= self.at_most
    }
}

/// Size from which on the targets for memory and readiness hold.
const LARGE: usize = 1000;
/// Size of the crowd that the target speaks of.
pub const CROWD: usize = 200;

/// Every target that these measures speak of.
///
/// # Errors
/// When a measure is missing.
pub fn targets(run: &Run) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for size in &run.sizes {
        of_size(size, &mut targets)?;
    }
    let at = |comuni: usize| run.sizes.iter().find(|size| size.comuni == comuni);
    if let (Some(small), Some(large)) = (at(CROWD), at(LARGE)) {
        let mut add = |figure: &str, at_most: f64, is: f64, unit: &'static str| {
            targets.push(Target { figure: figure.to_owned(), comuni: LARGE, at_most, is, unit });
        };
        add("ratio to the limit, against that at 200", 1.1, large.ratio() / small.ratio(), "×");
        let more = large.converged()?.after.rss_kib as f64 - small.converged()?.after.rss_kib as f64;
        let each = more / (LARGE - CROWD) as f64;
        add("memory per further Comune, from 200 to 1000", 20.0, each, "KiB");
    }
    Ok(targets)
}

fn of_size(size: &Size, targets: &mut Vec<Target>) -> Result<()> {
    let comuni = size.comuni;
    let mut add = |figure: &str, at_most: f64, is: f64, unit: &'static str| {
        targets.push(Target { figure: figure.to_owned(), comuni, at_most, is, unit });
    };
    let converged = size.converged()?;
    add("first apply → last object, against the limit", 1.3, size.ratio(), "×");
    let most = 1.1 * converged.objects as f64;
    add("writes of objects", most.floor(), converged.calls.object_writes() as f64, "");
    add("writes of status per Comune", 2.0, converged.calls.comune_status() as f64 / comuni as f64, "");
    add("events per Comune", 1.0, converged.calls.events as f64 / comuni as f64, "");
    add("reads on the way", 0.0, converged.calls.all_reads() as f64, "");
    let share = 100.0 * converged.operator_cpu_seconds / converged.api_server_cpu_seconds;
    add("processor time, against that of the API server", 15.0, share, "%");
    add("idle: writes", 0.0, size.quiet.calls.writes() as f64, "");
    add("idle: reads", 0.0, size.quiet.calls.all_reads() as f64, "");
    add("restart: writes", 0.0, size.restart.calls.writes() as f64, "");
    let lists = size.restart.calls.lists.values().max().copied().unwrap_or(usize::MAX);
    add("restart: lists of one kind", 1.0, lists as f64, "");
    add("restart: ready", 3.0, size.restart.ready_seconds, "s");
    if comuni <= LARGE {
        add("memory at rest", 60.0, mib(converged.after.rss_kib), "MiB");
        add("memory at most, restart included", 90.0, size.peak_mib()?, "MiB");
    }
    for (kind, repairs) in &size.drift {
        add(&format!("drift, {kind}: median"), 50.0, repairs.percentile(50) * 1000.0, "ms");
        add(&format!("drift, {kind}: 99 %"), 500.0, repairs.percentile(99) * 1000.0, "ms");
    }
    if let Some(crowd) = &size.crowd {
        let ratio = percentile(&crowd.ready_seconds, 99) / size.limit();
        add("one Comune in a busy crowd: apply → Ready, 99 %, against the crowd's limit", 2.0, ratio, "×");
    }
    Ok(())
}

/// Writes both files. Returns the targets that were missed.
///
/// # Errors
/// When they cannot be written.
pub fn write(run: &Run, directory: &Path) -> Result<Vec<Target>> {
    let targets = targets(run)?;
    std::fs::create_dir_all(directory)?;
    let raw = serde_json::json!({"run": run, "targets": targets});
    std::fs::write(directory.join("operator.json"), serde_json::to_string_pretty(&raw)? + "\n")?;
    std::fs::write(directory.join("operator.md"), markdown(run, &targets)?)?;
    Ok(targets.into_iter().filter(|target| !target.is_met()).collect())
}

fn number(value: f64) -> String {
    match value {
        value if value == value.trunc() && value.abs() < 1e9 => format!("{value:.0}"),
        value if value.abs() >= 100.0 => format!("{value:.0}"),
        value if value.abs() >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

const INTRODUCTION: &str = "\
# What the operator costs

Written by `make bench-operator`; the raw figures are in [operator.json](operator.json), why things are as they are in
[0017](../decisions/0017-cheap-by-design.md).

Seconds say little on a machine that others use too. So the operator is measured against **the limit**, in the same run
and on the same kind of fresh control plane (store, hosts, volumes, controllers, admission policies, audit log): a plain
client that writes the very same objects by server-side apply, namespaces first, then everything else, and does nothing
else. Both write over HTTP/1.1 with a connection for each request under way. The limit's client is an administrator, whom
the API server asks less than the operator's account, and it does not write the manifests.

Each Comune has two environments, administrators and viewers and three services of the catalogue. Databases are added
afterwards and told apart. \"Converged\" is the last object; pods are the scheduler's.
";

const PEER: &str = "
## The best peer

Capsule 0.14 (Go), measured earlier on a machine of this kind and **not in this run**, each tenant with 26 objects, as
its own stress kit runs it (4 workers, 500 requests a second, all its webhooks):

| | 22 tenants | 200 tenants | 1000 tenants |
| --- | --- | --- | --- |
| first apply → last object, against the limit | 12 × | 11 × | 12 × |
| writes / reads by the operator | 1,244 / 16,370 | 12,082 / 155,027 | 61,050 / 779,798 |
| peak memory | 100 MiB | 216 MiB | 674 MiB |
| idle: writes / reads a minute | 66 / 585 | 600 / 5,302 | 2,656 / 22,577 |
| restart with nothing to do | – | 3,408 writes, 80 s until quiet | 9,970 writes in 180 s |
| processor time against the API server's | 34 % | 32 % | 29 % |
| drift repaired: ResourceQuota / NetworkPolicy / replicated Service | 27 / 32 ms / 38 s | 35 / 43 ms / 68 s | 45 / 47 ms / 94 s |
";

fn markdown(run: &Run, targets: &[Target]) -> Result<String> {
    let mut text = String::from(INTRODUCTION);
    let machine = &run.machine;
    writeln!(
        text,
        "\nMachine: {} cores ({}), {} MiB, Linux {}, load {} before the run; Kubernetes {}, etcd without fsync, Con.Me {}; {}.",
        machine.cores,
        machine.processor,
        machine.memory_mib,
        machine.kernel,
        machine.load,
        machine.kubernetes,
        machine.conme,
        machine.at
    )?;
    let tried: Vec<String> =
        run.calibration.iter().map(|(at_once, seconds)| format!("{at_once}: {seconds:.2} s")).collect();
    writeln!(
        text,
        "The limit keeps {} requests under way, {}.",
        run.concurrency,
        if tried.is_empty() {
            "as it was told to".to_owned()
        } else {
            format!("the best of {} for a sample of 22 Comuni", tried.join(", "))
        }
    )?;
    let missed = targets.iter().filter(|target| !target.is_met()).count();
    writeln!(text, "\n## Targets\n\n{} of {} are met.\n", targets.len() - missed, targets.len())?;
    writeln!(text, "| figure | Comuni | at most | is | |\n| --- | ---: | ---: | ---: | --- |")?;
    for target in targets {
        let Target { figure, comuni, unit, .. } = target;
        let verdict = if target.is_met() { "met" } else { "**missed**" };
        let (at_most, is) = (number(target.at_most), number(target.is));
        let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
        writeln!(text, "| {figure} | {comuni} | {at_most}{unit} | {is}{unit} | {verdict} |")?;
    }
    figures(run, &mut text)?;
    text.push_str(PEER);
    Ok(text)
}

fn figures(run: &Run, text: &mut String) -> Result<()> {
    let sizes = &run.sizes;
    let heads: Vec<String> = sizes.iter().map(|size| format!("{} Comuni", size.comuni)).collect();
    writeln!(text, "\n## Figures\n\n| | {} |", heads.join(" | "))?;
    writeln!(text, "| --- |{}", " ---: |".repeat(sizes.len()))?;
    let mut row = |name: &str, cell: &dyn Fn(&Size) -> Result<String>| -> Result<()> {
        let cells = sizes.iter().map(cell).collect::<Result<Vec<_>>>()?;
        writeln!(text, "| {name} | {} |", cells.join(" | "))?;
        Ok(())
    };
    row("objects", &|size| Ok(size.converged()?.objects.to_string()))?;
    row("runs of the operator / of the limit; medians are told", &|size| {
        Ok(format!("{} / {}", size.operator.len(), size.limit.len()))
    })?;
    row("first apply → last object", &|size| Ok(format!("{:.1} s", size.last_object())))?;
    row("the limit", &|size| Ok(format!("{:.1} s", size.limit())))?;
    row("first apply → last Ready", &|size| {
        Ok(format!("{:.1} s", median(size.operator.iter().map(|run| run.last_ready_seconds))))
    })?;
    row("writes: objects / status of Comuni / other status / events", &|size| {
        let calls = &size.converged()?.calls;
        let status = calls.comune_status();
        let other = calls.status.values().sum::<usize>() - status;
        Ok(format!("{} / {status} / {other} / {}", calls.object_writes(), calls.events))
    })?;
    row("writes that were refused", &|size| {
        Ok(size.converged()?.calls.refused.values().sum::<usize>().to_string())
    })?;
    row("memory: before / at rest / at most / at most after a restart", &|size| {
        let converged = size.converged()?;
        let (idle, rest) = (mib(converged.idle.rss_kib), mib(converged.after.rss_kib));
        let (peak, again) = (mib(converged.after.peak_kib), mib(size.restart.cost.peak_kib));
        Ok(format!("{idle:.0} / {rest:.0} / {peak:.0} / {again:.0} MiB"))
    })?;
    row("processor time: operator / API server", &|size| {
        let converged = size.converged()?;
        Ok(format!("{:.1} / {:.1} s", converged.operator_cpu_seconds, converged.api_server_cpu_seconds))
    })?;
    row("idle: listened for / processor time of the operator", &|size| {
        Ok(format!("{:.0} s / {:.2} s", size.quiet.seconds, size.quiet.operator_cpu_seconds))
    })?;
    row("restart: ready / every Comune looked at again", &|size| {
        Ok(format!("{:.2} / {:.2} s", size.restart.ready_seconds, size.restart.looked_at_seconds))
    })?;
    row("restart: writes / reads (lists and their pages)", &|size| {
        Ok(format!("{} / {}", size.restart.calls.writes(), size.restart.calls.all_reads()))
    })?;
    row("drift, all kinds: median / 99 %", &|size| {
        let mut all: Vec<f64> =
            size.drift.values().flat_map(|repairs| repairs.seconds.iter().copied()).collect();
        all.sort_by(f64::total_cmp);
        let (half, most) = (percentile(&all, 50) * 1000.0, percentile(&all, 99) * 1000.0);
        Ok(format!("{half:.0} / {most:.0} ms of {}", all.len()))
    })?;
    row("a band's quota changed → last quota right", &|size| {
        Ok(format!("{:.1} s for {}", size.quota_change.seconds, size.quota_change.quotas))
    })?;
    row("one Comune in a crowd of 200: median / 99 %; the crowd", &|size| {
        Ok(size.crowd.as_ref().map_or_else(
            || "–".to_owned(),
            |crowd| {
                let at = |percent| percentile(&crowd.ready_seconds, percent);
                format!(
                    "{:.1} / {:.1} s of {}; {:.1} s",
                    at(50),
                    at(99),
                    crowd.ready_seconds.len(),
                    crowd.all_ready_seconds
                )
            },
        ))
    })?;
    row("one database added to each → last Ready", &|size| {
        let databases = size.databases.as_ref();
        Ok(databases.map_or_else(|| "–".to_owned(), |all| format!("{:.1} s", all.last_ready_seconds)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_could_not_be_measured_misses_its_target() {
        let target = |is| Target { figure: "x".into(), comuni: 22, at_most: 1.3, is, unit: "×" };
        assert!(target(1.3).is_met());
        assert!(!target(1.31).is_met());
        assert!(!target(f64::NAN).is_met());
        assert!(median([]).is_nan() && percentile(&[], 99).is_nan());
    }

    #[test]
    fn medians_and_percentiles_are_those_of_the_books() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 50), 50.0);
        assert_eq!(percentile(&hundred, 99), 99.0);
        assert_eq!(percentile(&[7.0, 9.0], 99), 9.0);
    }
}
