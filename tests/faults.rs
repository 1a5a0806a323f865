//! What breaks around the operator: the API server and etcd go away, requests are refused or their answers lost, watches
//! fall silent, leadership is taken away in the middle of a pass. Whatever it is, it ends by itself, and then everything is
//! exactly as declared.
//!
//! `CONME_SEED` repeats a run with the same choices (it is printed). The Deployment starts an operator that has ended
//! again; where a fault ends it, these stories do the same and say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use anyhow::Result;
use conme_stories::{
    DataCentre,
    load::{Cast, Dice, Load, number, seed},
    proxy::{Fault, Proxy},
};
use conme_testbed::{Signal, install::OPERATOR};

/// What the kubelet does for a container that has ended.
async fn restart_if_ended(data_centre: &DataCentre) -> Result<()> {
    if !data_centre.instance().is_alive(OPERATOR)? {
        println!("the operator had ended");
        data_centre.instance().start_program(OPERATOR).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_and_etcd_go_away_and_come_back_while_people_work() -> Result<()> {
    let seed = seed();
    let rounds = number("CONME_OUTAGES", 1);
    let mut dice = Dice(seed);
    let cast = Cast { prefix: "via", istat: 904_100, comuni: 4 };
    let mut load = Load::begin(DataCentre::own("via", &[]).await?, cast, dice.throw()).await?;
    for _ in 0..rounds {
        for (program, signal) in [
            ("kube-apiserver", Signal::Term),
            ("etcd", Signal::Kill),
            ("kube-apiserver", Signal::Kill),
            ("etcd", Signal::Term),
        ] {
            // In the middle of whatever goes on.
            tokio::time::sleep(dice.pause(3000)).await;
            let instance = load.data_centre().instance();
            instance.stop_program_with(program, Some(signal)).await?;
            tokio::time::sleep(dice.pause(2000)).await;
            instance.start_program(program).await?;
            restart_if_ended(load.data_centre()).await?;
            load.goes_on().await?;
        }
    }
    load.end(restart_if_ended).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifth_of_all_requests_fail_in_every_way_and_nothing_is_lost_or_doubled() -> Result<()> {
    let seed = seed();
    let window = Duration::from_secs(number("CONME_WINDOW_SECONDS", 20));
    let mut dice = Dice(seed);
    let data_centre = DataCentre::own("fal", &[]).await?;
    let proxy = Proxy::start(&data_centre, dice.throw()).await?;
    proxy.stand_before_operator(&data_centre).await?;
    proxy.break_requests(20, &Fault::ALL);
    let cast = Cast { prefix: "fal", istat: 904_200, comuni: 4 };
    let mut load = Load::begin(data_centre, cast, dice.throw()).await?;
    let begin = std::time::Instant::now();
    while begin.elapsed() < window {
        tokio::time::sleep(Duration::from_millis(200)).await;
        restart_if_ended(load.data_centre()).await?;
        load.goes_on().await?;
    }
    // It gets there while requests go on failing.
    load.end(restart_if_ended).await?;
    let (told, passed) = proxy.told();
    println!("{told:?}, and {passed} requests passed");
    assert!(Fault::ALL.iter().all(|fault| told.contains_key(fault)), "seed {seed}: {told:?}");
    Ok(())
}
