//! What breaks around the operator: the API server and etcd go away, requests are refused or their answers lost, watches
//! fall silent, leadership is taken away in the middle of a pass. Whatever it is, it ends by itself, and then everything is
//! exactly as declared.
//!
//! `CONME_SEED` repeats a run with the same choices (it is printed); `CONME_OUTAGES` and `CONME_WINDOW_SECONDS` make it
//! longer. The Deployment starts an operator that has ended again; where a fault may end it, these stories do the same and
//! say so. Elsewhere it has to stay alive.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use conme_blueprint::Kind;
use conme_cluster::lease;
use conme_stories::{
    DataCentre, SECOND, entity, eventually, leads,
    load::{Cast, Dice, LOOKS_AGAIN, Load, last_words, number, seed},
    proxy::{Fault, Proxy, direct_kubeconfig},
};
use conme_testbed::{
    Signal,
    install::{OPERATOR, operator_url},
};
use http::Method;
use kube::api::DeleteParams;
use serde_json::{Value, json};

/// Nothing of this ends the operator: nobody has to start it again.
async fn is_still_there(data_centre: &DataCentre) -> Result<()> {
    if !data_centre.instance().is_alive(OPERATOR)? {
        bail!("the operator has ended; {}", last_words(data_centre.instance())?);
    }
    Ok(())
}

/// Longer than a leader may be without its lease, in milliseconds.
const LONG: u64 = 1000 * (lease::RENEW_DEADLINE.as_secs() + 3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_and_etcd_go_away_and_come_back_while_people_work() -> Result<()> {
    let seed = seed();
    let rounds = number("CONME_OUTAGES", 1);
    let mut dice = Dice(seed);
    let cast = Cast { prefix: "via", istat: 904_100, comuni: 4 };
    let mut load = Load::begin(DataCentre::own("via", &LOOKS_AGAIN).await?, cast, dice.throw()).await?;
    load.has_something_to_lose().await?;
    for _ in 0..rounds {
        for (program, signal, away) in [
            ("kube-apiserver", Signal::Term, dice.below(2000)),
            ("etcd", Signal::Kill, dice.below(2000)),
            ("kube-apiserver", Signal::Kill, LONG),
            ("etcd", Signal::Term, dice.below(2000)),
        ] {
            // In the middle of whatever goes on.
            tokio::time::sleep(dice.pause(3000)).await;
            let instance = load.data_centre().instance();
            instance.stop_program_with(program, Some(signal)).await?;
            tokio::time::sleep(Duration::from_millis(away)).await;
            instance.start_program(program).await?;
            is_still_there(load.data_centre()).await?;
            load.goes_on().await?;
        }
    }
    load.end(is_still_there).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifth_of_all_requests_fail_in_every_way_and_nothing_is_lost_or_doubled() -> Result<()> {
    let seed = seed();
    let window = Duration::from_secs(number("CONME_WINDOW_SECONDS", 20));
    let mut dice = Dice(seed);
    let data_centre = DataCentre::own("fal", &LOOKS_AGAIN).await?;
    let proxy = Proxy::start(&data_centre, dice.throw()).await?;
    proxy.stand_before_operator(&data_centre).await?;
    proxy.break_requests(20, &Fault::ALL);
    let cast = Cast { prefix: "fal", istat: 904_200, comuni: 4 };
    let mut load = Load::begin(data_centre, cast, dice.throw()).await?;
    load.has_something_to_lose().await?;
    let begin = Instant::now();
    while begin.elapsed() < window {
        tokio::time::sleep(Duration::from_millis(200)).await;
        is_still_there(load.data_centre()).await?;
        load.goes_on().await?;
    }
    // It gets there while requests go on failing.
    load.end(is_still_there).await?;
    let (told, passed) = proxy.told();
    println!("{told:?}, and {passed} requests passed");
    assert!(Fault::ALL.iter().all(|fault| told.contains_key(fault)), "seed {seed}: {told:?}");
    Ok(())
}

fn spec(name: &str, istat: u32, cpu: &str) -> Value {
    json!({"entity": entity(name, istat), "quota": {"cpu": cpu, "memory": "4Gi", "storage": "20Gi"}})
}

/// An edit of this story's one Comune has come to its quota.
async fn an_edit_converges(data_centre: &DataCentre, name: &str, istat: u32, cpu: &str) -> Result<()> {
    data_centre.apply(name, spec(name, istat, cpu)).await?;
    data_centre.ready(name).await?;
    let quota = data_centre.read(Kind::ResourceQuota, &format!("{name}-produzione"), "conme-quota").await?;
    assert_eq!(quota.context("a quota")?["spec"]["hard"]["requests.cpu"], cpu);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_is_noticed_and_nothing_is_missed() -> Result<()> {
    let (name, istat) = ("muto-uno", 904_301);
    let data_centre = DataCentre::own("muto", &["--watch-seconds", "5"]).await?;
    let instance = data_centre.instance();
    let proxy = Proxy::start(&data_centre, 0).await?;
    proxy.stand_before_operator(&data_centre).await?;
    an_edit_converges(&data_centre, name, istat, "2").await?;

    // Both what the SAD declares and what somebody changes by hand would be told by a watch only.
    proxy.silence_watches();
    let guard = data_centre.api(Kind::LimitRange, &format!("{name}-produzione"));
    guard.delete("conme-limits", &DeleteParams::default()).await?;
    an_edit_converges(&data_centre, name, istat, "3").await?;
    eventually("what was deleted by hand is back", || async {
        Ok(guard.get_opt("conme-limits").await?.is_some())
    })
    .await?;

    // A list whose answer never comes, at the start of the operator.
    instance.stop_program(OPERATOR).await?;
    let mut held = proxy.hold_answer(|seen| seen.path.starts_with("/api/v1/resourcequotas"));
    instance.start_program(OPERATOR).await?;
    println!("no answer to {}", held.caught().await?.path);
    data_centre.operator_gets_ready(async || Ok(())).await?;
    an_edit_converges(&data_centre, name, istat, "4").await?;
    assert!(instance.is_alive(OPERATOR)?, "nobody had to start it again");
    drop(held);
    Ok(())
}

/// Waits until the operator waits for the answer that is held back and for nothing else. What it sends beside that, such
/// as status, would otherwise be stopped half-way, and nobody can call back a request that has been sent.
async fn nothing_is_on_its_way(proxy: &Proxy) -> Result<()> {
    let last = Cell::new((u32::MAX, Instant::now()));
    eventually("nothing but the held answer is waited for", || async {
        if proxy.writes() != last.get().0 {
            last.set((proxy.writes(), Instant::now()));
        }
        Ok(last.get().1.elapsed() > Duration::from_secs(1))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_10_a_leader_that_is_overtaken_between_two_writes_of_one_pass_does_not_make_the_second()
-> Result<()> {
    let (name, istat) = ("capo-uno", 904_302);
    let data_centre = DataCentre::own("capo", &[]).await?;
    let instance = data_centre.instance();
    let proxy = Proxy::start(&data_centre, 0).await?;
    proxy.stand_before_operator(&data_centre).await?;
    let first = operator_url(instance)?;
    eventually("the first leads", || async { Ok(leads(&first).await == Some(true)) }).await?;
    let second = data_centre.start_second_operator(&direct_kubeconfig(&data_centre)).await?;

    // The namespace is made; the first does not learn of it, and is stopped before it could go on to what guards it.
    let mut held =
        proxy.hold_answer(|seen| seen.method == Method::POST && seen.path.starts_with("/api/v1/namespaces?"));
    data_centre.apply(name, spec(name, istat, "2")).await?;
    held.caught().await?;
    nothing_is_on_its_way(&proxy).await?;
    assert!(instance.kill(OPERATOR, Signal::Stop).await?);
    assert!(data_centre.read(Kind::Namespace, "", &format!("{name}-produzione")).await?.is_some());
    eventually("the second leads", || async { Ok(leads(&second).await == Some(true)) }).await?;
    an_edit_converges(&data_centre, name, istat, "5").await?;
    let writes = proxy.writes();

    // It goes on with an answer in its hands that asks for the next write.
    held.release();
    assert!(instance.kill(OPERATOR, Signal::Cont).await?);
    eventually("the first ends", || async { Ok(!instance.is_alive(OPERATOR)?) }).await?;
    assert_eq!(proxy.writes(), writes, "it has written after it was overtaken");
    // The Deployment starts it again: it stands by.
    instance.start_program(OPERATOR).await?;
    data_centre.operator_gets_ready(async || Ok(())).await?;
    an_edit_converges(&data_centre, name, istat, "4").await?;
    assert_eq!(proxy.writes(), writes, "it writes while it does not lead");
    // It would have been counted.
    assert!(instance.kill(SECOND, Signal::Kill).await?);
    an_edit_converges(&data_centre, name, istat, "3").await?;
    assert!(proxy.writes() > writes);
    Ok(())
}
