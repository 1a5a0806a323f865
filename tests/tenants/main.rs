//! The checks of the public benchmark for multi-tenancy by namespaces, those that it planned, and what other projects
//! test on themselves, asked of a real API server by a municipality's own administrators. What comes of it is written
//! down in `docs/security/isolation.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod benchmark;
mod beyond;
mod report;
mod requests;
mod world;

use std::time::Instant;

use anyhow::{Result, ensure};
use futures::future::BoxFuture;
use report::{Check, Tally};
use world::World;

/// What a check does.
type Run = for<'a> fn(&'a World, &'a mut Tally) -> BoxFuture<'a, Result<()>>;

async fn carry_out(world: &World, checks: Vec<(Check, Run)>) -> Result<Vec<(Check, Tally)>> {
    let mut done = Vec::new();
    for (check, run) in checks {
        let begin = Instant::now();
        let mut tally = Tally::default();
        run(world, &mut tally).await?;
        println!(
            "{} {}: {} refused, {} let through, {} wrong, {:?}",
            check.id,
            check.title,
            tally.refused,
            tally.passed,
            tally.wrong.len(),
            begin.elapsed()
        );
        // A check without its control, or one that is said to refuse and has refused nothing, says nothing.
        ensure!(tally.passed > 0, "{} has no control", check.id);
        done.push((check, tally));
    }
    Ok(done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_check_is_answered_as_the_document_says() -> Result<()> {
    let world = World::settle().await?;
    let benchmark = carry_out(&world, benchmark::checks()).await?;
    let drafts = carry_out(&world, benchmark::drafts()).await?;
    let own = carry_out(&world, beyond::checks()).await?;
    let wrong: Vec<String> = [&benchmark, &drafts, &own]
        .into_iter()
        .flatten()
        .flat_map(|(check, tally)| tally.wrong.iter().map(|what| format!("{}: {what}", check.id)))
        .collect();
    ensure!(wrong.is_empty(), "{} requests were answered wrongly:\n{}", wrong.len(), wrong.join("\n"));
    report::compare(&report::document(&benchmark, &drafts, &own))?;
    world.tidy_up().await
}

/// The benchmark's own list. `MTB-PL1-BC-HI-1` stands for two of its checks.
const LIST: [(&str, &str); 19] = [
    ("MTB-PL1-CC-CPI-1", "Block access to cluster resources"),
    ("MTB-PL1-BC-CPI-2", "Block multitenant resources"),
    ("MTB-PL1-BC-CPI-3", "Block add capabilities"),
    ("MTB-PL1-BC-CPI-4", "Require run as non-root user"),
    ("MTB-PL1-BC-CPI-5", "Block privileged containers"),
    ("MTB-PL1-BC-CPI-6", "Block privilege escalation"),
    ("MTB-PL1-CC-DI-1", "Require always imagePullPolicy"),
    ("MTB-PL1-CC-FNS-1", "Configure namespace resource quotas"),
    ("MTB-PL1-CC-FNS-2", "Configure namespace object limits"),
    ("MTB-PL1-BC-HI-1", "Block use of host path volumes"),
    ("MTB-PL1-BC-HI-1", "Block use of NodePort services"),
    ("MTB-PL1-BC-HI-3", "Block use of host networking and ports"),
    ("MTB-PL1-BC-HI-4", "Block use of host PID"),
    ("MTB-PL1-BC-HI-5", "Block use of host IPC"),
    ("MTB-PL1-CC-TI-1", "Block modification of resource quotas"),
    ("MTB-PL1-CC-TI-2", "Block access to other tenant resources"),
    ("MTB-PL2-BC-OPS-3", "Create role bindings"),
    ("MTB-PL2-BC-OPS-4", "Create network policies"),
    ("MTB-PL2-CC-TI-1", "Block role privilege escalation"),
];

#[test]
fn all_checks_of_the_benchmark_are_there_by_name_and_in_the_document() {
    let ours: Vec<(&str, &str)> =
        benchmark::checks().iter().map(|(check, _)| (check.id, check.title)).collect();
    assert_eq!(ours, LIST);
    let document = std::fs::read_to_string(conme_stories::checkout().join("docs/security/isolation.md"))
        .expect("the document is there: `make isolation-report` writes it");
    for (id, title) in LIST {
        assert!(document.contains(&format!("| `{id}` | {title} |")), "{id} {title} is not in the document");
    }
}
