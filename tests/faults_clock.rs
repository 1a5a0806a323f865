//! The clock of the operator's machine jumps, forwards and back, while it runs and while it does not: nobody is deleted too
//! early, shut out, or put behind those who came later, and the operator keeps its lease.
//!
//! The operator alone is told another time, by libfaketime; the clock that counts for how long it has run is right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use conme_api::{Comune, CredentialStatus, keys, reasons};
use conme_stories::{
    Credentials, DataCentre, condition, entity, eventually, installation, leads, proxy::direct_kubeconfig,
};
use conme_testbed::{
    Dirs, Progress, ensure_faketime,
    install::{NAMESPACE, OPERATOR, operator_url, start_operator},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

const SERVER: &str = "pg-venis-1";
const GRACE: Duration = Duration::from_secs(20);
const ARGS: [&str; 4] = ["--deletion-grace", "20s", "--recheck-seconds", "2"];

/// What the operator takes for the time.
struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Starts the operator anew with a clock that can be set; it is right for now.
    async fn of_operator(data_centre: &DataCentre) -> Result<Self> {
        let instance = data_centre.instance();
        let library = ensure_faketime(&Dirs::from_env()?, &Progress::silent()).await?;
        let clock = Self { file: instance.dir().join("clock") };
        clock.set(0)?;
        let mut what = installation()?;
        let script = instance.dir().join("operator-with-clock");
        // The monotonic clock is left alone: the kernel never sets it.
        let text = format!(
            "#!/bin/sh\nexport LD_PRELOAD='{}' FAKETIME_TIMESTAMP_FILE='{}' FAKETIME_NO_CACHE=1\n\
             export FAKETIME_DONT_FAKE_MONOTONIC=1\nexec '{}' \"$@\"\n",
            library.display(),
            clock.file.display(),
            what.operator.display()
        );
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        what.operator = script;
        what.operator_args = ARGS.map(str::to_owned).to_vec();
        start_operator(instance, &what, &Progress::silent()).await?;
        Ok(clock)
    }

    /// Sets it so many days before or after the right time.
    fn set(&self, days: i64) -> Result<()> {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{:+}\n", days * 86_400))?;
        Ok(std::fs::rename(next, &self.file)?)
    }
}

/// Waits until the operator has renewed its lease by a clock that is so many days off, and says that it leads.
async fn leads_by_clock(data_centre: &DataCentre, days: i64) -> Result<()> {
    let api: Api<Lease> = Api::namespaced(data_centre.client(), NAMESPACE);
    eventually(&format!("the lease is renewed with a clock that is {days} days off"), || async {
        let spec = api.get("conme-operator").await?.spec.unwrap_or_default();
        // Given back by one that has ended in good order, and not taken up again yet.
        let Some(holder) = spec.holder_identity else { return Ok(false) };
        ensure!(holder == OPERATOR, "{holder} leads");
        let renewed = spec.renew_time.context("a time")?.0;
        let off = renewed.duration_since(Timestamp::now());
        Ok((off - SignedDuration::from_hours(24 * days)).abs() < SignedDuration::from_hours(1))
    })
    .await?;
    // It learns a moment later than the API server that it has renewed.
    let url = operator_url(data_centre.instance())?;
    eventually("it says that it leads", || async { Ok(leads(&url).await == Some(true)) }).await
}

fn spec(name: &str, istat: u32, cpu: &str) -> Value {
    json!({
        "entity": entity(name, istat),
        "quota": {"cpu": cpu, "memory": "4Gi", "storage": "20Gi"},
        "deletionPolicy": "Delete",
        "databases": [{
            "name": "dati", "engine": "postgresql", "placement": {"shared": SERVER}, "deletionPolicy": "Delete",
        }],
    })
}

fn credential(comune: &Comune) -> Option<&CredentialStatus> {
    comune.status.as_ref()?.databases.first()?.credential.as_ref()
}

fn seniority(comune: &Comune) -> Timestamp {
    let told = comune.status.as_ref().and_then(|status| status.seniority.as_ref());
    told.expect("a place among the others").parse().expect("a time")
}

/// Deletes a Comune and says the word for it. Returns when that was done.
async fn delete(data_centre: &DataCentre, name: &str) -> Result<Instant> {
    let uid = data_centre.comuni().get(name).await?.metadata.uid.context("a uid")?;
    data_centre.comuni().delete(name, &DeleteParams::default()).await?;
    let said = Instant::now();
    let word = json!({"metadata": {"annotations": {keys::CONFIRM_DELETE: format!("{name}/{uid}")}}});
    data_centre.comuni().patch(name, &PatchParams::default(), &Patch::Merge(word)).await?;
    data_centre
        .comune_where(name, "in its grace period", |comune| {
            condition(comune, reasons::DELETING).is_some_and(|(_, reason, _)| reason == reasons::GRACE_PERIOD)
        })
        .await?;
    Ok(said)
}

async fn is_gone(data_centre: &DataCentre, name: &str) -> Result<()> {
    eventually(&format!("{name} is gone"), || async {
        Ok(data_centre.comuni().get_opt(name).await?.is_none())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_clock_says_nobody_is_deleted_early_shut_out_or_overtaken() -> Result<()> {
    let data_centre = DataCentre::own("ora", &ARGS).await?;
    let instance = data_centre.instance();
    let clock = Clock::of_operator(&data_centre).await?;
    std::fs::copy(instance.dir().join("operator.kubeconfig"), direct_kubeconfig(&data_centre))?;
    data_centre
        .edit_servers(|servers| servers.iter_mut().for_each(|s| s.credential_max_age = Some("90d".into())))
        .await?;
    for (number, name) in (904_601..).zip(["ora-uno", "ora-corre", "ora-ferma"]) {
        data_centre.apply(name, spec(name, number, "2")).await?;
    }
    let first = data_centre.ready("ora-uno").await?;
    let before = Credentials::of(&data_centre, "ora-uno-produzione", "dati").await?;
    before.login(None).await?.run("create table segno (di text); insert into segno values ('qui')").await?;
    assert_eq!(credential(&first).context("a credential")?.generation, 1);
    data_centre.ready("ora-corre").await?;
    data_centre.ready("ora-ferma").await?;

    // Forwards, while it runs: over the end of a grace period, and of the age of a password.
    let said = delete(&data_centre, "ora-corre").await?;
    clock.set(400)?;
    leads_by_clock(&data_centre, 400).await?;
    data_centre
        .comune_where("ora-uno", "told of a new password", |comune| {
            credential(comune).is_some_and(|credential| credential.generation > 1)
        })
        .await?;
    // And while it does not run, with part of both behind them.
    let other = delete(&data_centre, "ora-ferma").await?;
    instance.stop_program(OPERATOR).await?;
    let ran = [said.elapsed(), other.elapsed()];
    clock.set(800)?;
    let again = Instant::now();
    instance.start_program(OPERATOR).await?;
    leads_by_clock(&data_centre, 800).await?;
    for (name, ran) in ["ora-corre", "ora-ferma"].into_iter().zip(ran) {
        is_gone(&data_centre, name).await?;
        let ran = ran + again.elapsed();
        assert!(ran >= GRACE, "{name} was deleted after operators had run for {ran:.1?}");
    }

    // One password has been replaced, once; nobody is shut out, though the time of the one before is over by the clock.
    data_centre.apply("ora-uno", spec("ora-uno", 904_601, "3")).await?;
    let comune = data_centre.ready("ora-uno").await?;
    let made = credential(&comune).context("a credential")?.clone();
    assert_eq!(made.generation, 2);
    let until: Timestamp = made.retiring.context("one that retires")?.until.parse()?;
    assert!(until < Timestamp::now() + SignedDuration::from_hours(24 * 799), "over by the clock: {until}");
    looked_at(&data_centre).await?;
    assert_eq!(before.login(None).await?.value("select di from segno").await?, "qui");
    let after = Credentials::of(&data_centre, "ora-uno-produzione", "dati").await?;
    after.login(None).await?;

    // Back, behind the right time, while another operator stands by whose clock is right.
    let second = data_centre.start_second_operator(&direct_kubeconfig(&data_centre)).await?;
    clock.set(-30)?;
    leads_by_clock(&data_centre, -30).await?;
    data_centre.apply("ora-uno", spec("ora-uno", 904_601, "4")).await?;
    data_centre.ready("ora-uno").await?;
    let comune = data_centre
        .comune_where("ora-uno", "told of times that can be", |comune| {
            credential(comune).is_some_and(|credential| {
                credential.issued_at.parse::<Timestamp>().is_ok_and(|issued| issued < Timestamp::now())
            })
        })
        .await?;
    let made = credential(&comune).context("a credential")?.clone();
    assert_eq!(made.generation, 2, "it was not made anew");
    let until: Timestamp = made.retiring.context("one that retires")?.until.parse()?;
    assert!(until < Timestamp::now(), "it does not stay open for years: {until}");
    for credentials in [&before, &after] {
        assert_eq!(credentials.login(None).await?.value("select di from segno").await?, "qui");
    }
    // Who comes now comes after those who are there.
    data_centre.apply("ora-tardi", spec("ora-tardi", 904_609, "2")).await?;
    let late = data_centre.ready("ora-tardi").await?;
    assert!(seniority(&late) >= seniority(&first), "{} before {}", seniority(&late), seniority(&first));
    assert_eq!(leads(&second).await, Some(false));

    // A grace period that begins by a clock that is set back once more ends neither early nor in a storm of passes.
    let said = delete(&data_centre, "ora-tardi").await?;
    clock.set(-60)?;
    leads_by_clock(&data_centre, -60).await?;
    let passes = async || -> Result<f64> {
        let label = "controller=\"comune\"";
        Ok(data_centre.metrics().await?.sum("controller_runtime_reconcile_total", &[label]))
    };
    eventually("all of the grace period has been seen", || async {
        let comune = data_centre.comuni().get("ora-tardi").await?;
        let told = comune.status.and_then(|status| status.deletion).and_then(|told| told.seen_seconds);
        Ok(told == Some(GRACE.as_secs() as i64))
    })
    .await?;
    let (begin, since) = (passes().await?, Instant::now());
    eventually("some passes more", || async { Ok(passes().await? >= begin + 4.0) }).await?;
    let pace = (passes().await? - begin) / since.elapsed().as_secs_f64();
    assert!(pace < 5.0, "{pace:.1} passes a second");
    assert!(
        data_centre.comuni().get_opt("ora-tardi").await?.is_some(),
        "by this clock its time has not come"
    );
    // It is right again.
    clock.set(0)?;
    leads_by_clock(&data_centre, 0).await?;
    println!("left alone for {:.0?} by then", said.elapsed());
    data_centre.ready("ora-uno").await?;
    assert_eq!(leads(&second).await, Some(false), "in all this the same one has led");
    assert_eq!(before.login(None).await?.value("select di from segno").await?, "qui");
    Ok(())
}

/// Waits until databases have been looked at three times more.
async fn looked_at(data_centre: &DataCentre) -> Result<()> {
    let looks = async || -> Result<f64> {
        Ok(data_centre.metrics().await?.sum("conme_database_ensure_total", &["result=\"ready\""]))
    };
    let before = looks().await?;
    eventually("databases are looked at again", || async { Ok(looks().await? >= before + 3.0) }).await
}
