//! What Con.Me costs, measured on a real control plane of the local data centre.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod audit;
mod drift;
mod eyes;
mod limit;
mod mover;
mod operator;
mod plane;
mod report;
mod sample;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use conme_testbed::{Progress, complain};
use serde_json::Value;

use crate::{
    mover::{MoverArgs, RelayArgs},
    plane::Plane,
    report::{Limit, Machine, Run, Size},
    sample::Surroundings,
};

/// What Con.Me costs, measured on a real control plane of the local data centre.
#[derive(Parser)]
#[command(name = "conme-bench", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the operator against a plain client that writes the same objects.
    ///
    /// Build it and the operator in the release profile first, as `make bench-operator` does. Nothing else should run on
    /// the machine meanwhile. 22, 200 and 1000 Comuni together take about half an hour.
    #[command(after_help = "Examples:\n  make bench-operator\n  make bench-operator N=\"22 200\"\n  \
                            conme-bench operator --comuni 22 --repeat 1 --quiet-seconds 20 --output /tmp/bench\n\n\
                            Exit status: 0 when every target is met, 1 when one is missed, 2 when it could not be \
                            measured.")]
    Operator(OperatorArgs),
    /// Measure the mover side by side with rsync, borg, casync and nbdcopy, on one image and one shaped link.
    ///
    /// Needs root for network namespaces. Build the mover in the release profile first, as `make bench-mover` does.
    #[command(after_help = "Examples:\n  make bench-mover\n  make bench-mover LINKS=\"100 0\"\n  \
                            conme-bench mover --links 100 --only first --peers mover rsync --disks 0 --output /tmp/bench\n\n\
                            Exit status: 0 when every target is met, 1 when one is missed, 2 when it could not be \
                            measured.")]
    Mover(MoverArgs),
    /// Carries connections for `mover`.
    #[command(hide = true)]
    Relay(RelayArgs),
}

#[derive(Args)]
struct OperatorArgs {
    /// Numbers of Comuni, each on fresh control planes.
    #[arg(long, num_args = 1.., value_delimiter = ',', default_values_t = [22, 200, 1000],
          value_parser = clap::value_parser!(u16).range(1..=5000))]
    comuni: Vec<u16>,
    /// How often both sides are measured, one after the other, up to 50 Comuni; the median is told. More are measured once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    repeat: u16,
    /// Seconds for which the operator is listened to when there is nothing to do.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u16).range(1..=3600))]
    quiet_seconds: u16,
    /// Changes by hand of each kind.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=500))]
    drift_samples: u16,
    /// The most Comuni for which databases are measured: each takes some megabytes of disk.
    #[arg(long, default_value_t = 200)]
    databases_up_to: u16,
    /// Requests that the limit keeps under way; the best of a few when not given.
    #[arg(long)]
    concurrency: Option<usize>,
    /// Where operator.md and operator.json are written.
    #[arg(long, default_value = "docs/benchmarks")]
    output: PathBuf,
    /// Top of the checkout: chart and examples are there.
    #[arg(long, default_value = ".")]
    checkout: PathBuf,
}

/// Comuni in the sample with which the limit looks for its best concurrency.
const CALIBRATION: usize = 22;
/// Up to so many Comuni a measurement is short enough to be repeated.
const REPEATED_UP_TO: usize = 50;
/// Single Comuni that are applied into the crowd.
const SINGLES: u32 = 20;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| match cli.command {
            Command::Operator(args) => runtime.block_on(measure_operator(&args)),
            Command::Mover(args) => runtime.block_on(mover::measure(&args)),
            Command::Relay(args) => mover::relay(&args).map(|()| true),
        });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Returns whether every target is met.
async fn measure_operator(args: &OperatorArgs) -> Result<bool> {
    let begin = Instant::now();
    let progress = Progress::stderr();
    if cfg!(debug_assertions) {
        progress.note("this is a debug build: its figures say nothing; use `make bench-operator`");
    }
    let checkout = std::path::absolute(&args.checkout)?;
    let mut run =
        Run { machine: Machine::this()?, calibration: BTreeMap::new(), concurrency: 0, sizes: Vec::new() };
    run.concurrency = match args.concurrency {
        Some(concurrency) => concurrency,
        None => {
            run.calibration = calibrate(&checkout, &progress).await?;
            let best = run.calibration.iter().min_by(|a, b| a.1.total_cmp(b.1));
            *best.context("nothing was tried")?.0
        }
    };
    let mut missed = Vec::new();
    for comuni in &args.comuni {
        let size = measure_size(args, &checkout, usize::from(*comuni), run.concurrency, &progress).await?;
        run.sizes.push(size);
        // After each, so that a run that is broken off has told something.
        missed = report::write(&run, &args.output)?;
    }
    for target in &missed {
        let report::Target { figure, comuni, at_most, is, unit } = target;
        progress.note(&format!("missed at {comuni}: {figure}: {is:.2} {unit}, at most {at_most:.2} {unit}"));
    }
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    progress.note(&format!(
        "{} in {minutes:.1} minutes: {}",
        if missed.is_empty() {
            "every target is met".to_owned()
        } else {
            format!("{} targets are missed", missed.len())
        },
        args.output.join("operator.md").display()
    ));
    Ok(missed.is_empty())
}

/// How long the limit takes for a small sample with each number of requests under way, in seconds. Each on a control
/// plane of its own: the pods of one would slow the next.
async fn calibrate(checkout: &Path, progress: &Progress) -> Result<BTreeMap<usize, f64>> {
    let step = progress.long_step("the limit looks for its best concurrency", "about a minute");
    let manifests: Vec<Value> = (0..CALIBRATION).map(|number| sample::comune("comune", number)).collect();
    let objects = Surroundings::of_checkout(checkout)?.objects(&manifests)?;
    let mut tried = BTreeMap::new();
    for concurrency in limit::CANDIDATES {
        let plane = Plane::up(checkout, CALIBRATION, false).await?;
        let (took, _) = limit::write(&plane.client(), &objects, concurrency).await?;
        tried.insert(concurrency, operator::seconds(took));
    }
    step.done(&format!("{tried:?}"));
    Ok(tried)
}

async fn measure_limit(
    checkout: &Path,
    manifests: &[Value],
    concurrency: usize,
    progress: &Progress,
) -> Result<Limit> {
    let comuni = manifests.len();
    let step = progress.long_step(&format!("{comuni} Comuni: the limit"), &expectation(comuni));
    let objects = Surroundings::of_checkout(checkout)?.objects(manifests)?;
    let plane = Plane::up(checkout, room(comuni), false).await?;
    let before = plane.cost("kube-apiserver").await?;
    let (took, refused) = limit::write(&plane.client(), &objects, concurrency).await?;
    let after = plane.cost("kube-apiserver").await?;
    let limit = Limit {
        objects: objects.len(),
        seconds: operator::seconds(took),
        refused_for_a_moment: refused,
        api_server_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
    };
    step.done(&format!("{} objects in {:.1} s", limit.objects, limit.seconds));
    Ok(limit)
}

/// Comuni that a control plane has to have room for.
fn room(comuni: usize) -> usize {
    if comuni == report::CROWD { 2 * comuni + SINGLES as usize } else { comuni }
}

fn expectation(comuni: usize) -> String {
    format!("about {} s", 30 + comuni / 4)
}

async fn measure_size(
    args: &OperatorArgs,
    checkout: &Path,
    comuni: usize,
    concurrency: usize,
    progress: &Progress,
) -> Result<Size> {
    let manifests: Vec<Value> = (0..comuni).map(|number| sample::comune("comune", number)).collect();
    let times = if comuni <= REPEATED_UP_TO { args.repeat } else { 1 };
    let (mut of_operator, mut of_limit) = (Vec::new(), Vec::new());
    let mut last = None;
    // One after the other, so that whoever else uses the machine slows both down.
    for _ in 0..times {
        drop(last.take());
        of_limit.push(measure_limit(checkout, &manifests, concurrency, progress).await?);
        let step = progress.long_step(&format!("{comuni} Comuni: the operator"), &expectation(comuni));
        let plane = Plane::up(checkout, room(comuni), true).await?;
        let converged = operator::converge(&plane, &manifests).await?;
        let of_last = of_limit.last().map_or(f64::NAN, |limit| limit.seconds);
        step.done(&format!(
            "{} objects in {:.1} s, {:.2} × the limit",
            converged.objects,
            converged.last_object_seconds,
            converged.last_object_seconds / of_last
        ));
        let asked = of_limit.last().map_or(0, |limit| limit.objects);
        ensure!(converged.objects == asked, "the operator made {} objects, not {asked}", converged.objects);
        of_operator.push(converged);
        last = Some(plane);
    }
    let plane = last.context("nothing was measured")?;

    let step = progress.long_step(&format!("{comuni} Comuni: drift"), "seconds");
    let drift = drift::repairs(&plane, usize::from(args.drift_samples)).await?;
    step.done(&format!("{} kinds", drift.len()));

    let step = progress.long_step(&format!("{comuni} Comuni: a band gets another quota"), "seconds");
    let mut surroundings = Surroundings::of_checkout(checkout)?;
    let quota_change = operator::change_quota(&plane, &mut surroundings, &manifests).await?;
    step.done(&format!("{} quotas in {:.1} s", quota_change.quotas, quota_change.seconds));

    plane.at_rest().await?;
    let step = progress.long_step(&format!("{comuni} Comuni: a restart with nothing to do"), "seconds");
    let restart = operator::restart(&plane, comuni).await?;
    step.done(&format!("ready in {:.2} s", restart.ready_seconds));

    let window = Duration::from_secs(args.quiet_seconds.into());
    let expect = format!("{} s", window.as_secs() + 40);
    let step = progress.long_step(&format!("{comuni} Comuni: nothing to do"), &expect);
    let quiet = operator::listen(&plane, window).await?;
    step.done(&format!("{} writes, {} reads", quiet.calls.writes(), quiet.calls.all_reads()));

    let mut crowd = None;
    if comuni == report::CROWD {
        let step = progress.long_step("one Comune in a busy crowd of 200", &expectation(2 * comuni));
        let limit = report::median(of_limit.iter().map(|limit| limit.seconds));
        let pace = Duration::from_secs_f64(limit / f64::from(SINGLES));
        crowd = Some(operator::crowd(&plane, comuni, SINGLES as usize, pace).await?);
        step.done("");
    }
    let mut databases = None;
    if comuni <= usize::from(args.databases_up_to) {
        let step = progress.long_step(&format!("{comuni} Comuni: a database each"), &expectation(2 * comuni));
        databases = Some(operator::add_databases(&plane, &manifests).await?);
        step.done("");
    }
    Ok(Size {
        comuni,
        operator: of_operator,
        limit: of_limit,
        drift,
        quota_change,
        restart,
        quiet,
        crowd,
        databases,
    })
}
