//! The operator is killed again and again, at moments that nobody chose, while manifests change and people interfere
//! by hand. In the end the cluster is exactly as declared, and nothing of what it held has been lost on the way.
//!
//! `CONME_SEED` repeats a run with the same edits and pauses (it is printed), `CONME_KILLS` sets how often (20).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Result, bail};
use conme_blueprint::Kind;
use conme_stories::{
    DataCentre, eventually,
    load::{Cast, Dice, LOOKS_AGAIN, Load, last_words, left_to_do, number, seed},
};
use conme_testbed::{Signal, install::OPERATOR};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

const CAST: Cast = Cast { prefix: "kil", istat: 902_100, comuni: 8 };

/// With the operator stopped, what is changed by hand is found; started again, it is put right.
async fn that_look_finds_what_is_wrong(data_centre: &DataCentre) -> Result<()> {
    let instance = data_centre.instance();
    instance.stop_program(OPERATOR).await?;
    let namespace = "kil-0-produzione";
    data_centre
        .api(Kind::NetworkPolicy, namespace)
        .delete("conme-environment", &DeleteParams::default())
        .await?;
    let label = Patch::Merge(json!({"metadata": {"labels": {"by-hand": "1"}}}));
    data_centre
        .api(Kind::LimitRange, namespace)
        .patch("conme-limits", &PatchParams::default(), &label)
        .await?;
    let left = left_to_do(data_centre).await?;
    assert_eq!(left.len(), 2, "{left:#?}");
    instance.start_program(OPERATOR).await?;
    eventually("it is put right", || async { Ok(left_to_do(data_centre).await?.is_empty()) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_the_operator_brings_about_exactly_what_is_declared() -> Result<()> {
    let seed = seed();
    let kills = number("CONME_KILLS", 20);
    println!("{kills} kills");
    let mut dice = Dice(seed);
    let mut load = Load::begin(DataCentre::own("kil", &LOOKS_AGAIN).await?, CAST, dice.throw()).await?;
    for kill in 0..kills {
        // The first ones while everything is being made, the others while there is something to be lost.
        if kill == kills / 2 {
            load.has_something_to_lose().await?;
        }
        // Sometimes in the middle of its start, sometimes in the middle of its work.
        tokio::time::sleep(dice.pause(2500)).await;
        let instance = load.data_centre().instance();
        if !instance.kill(OPERATOR, Signal::Kill).await? {
            bail!("seed {seed}: the operator had ended by itself; {}", last_words(instance)?);
        }
        instance.start_program(OPERATOR).await?;
        load.goes_on().await?;
    }
    let day = load.end(async |_| Ok(())).await?;
    that_look_finds_what_is_wrong(load.data_centre()).await?;
    assert!(u64::from(day.edits) >= kills && u64::from(day.samples) >= kills, "seed {seed}: {day:?}");
    Ok(())
}
