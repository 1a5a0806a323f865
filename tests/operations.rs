//! The operator as those meet it who run it: it tells how it is, two of it never work at the same time, and a restart of
//! the API server or of etcd leaves nothing to be done by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use conme_api::{keys, reasons};
use conme_blueprint::Kind;
use conme_stories::{
    DataCentre, Metrics, SECOND, at_rest, checkout, condition, entity, eventually, http_get, installation,
    is_current, leads, operator_writes,
};
use conme_testbed::{
    Signal,
    install::{self, NAMESPACE, OPERATOR, operator_url},
};
use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret, events::v1::Event};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

fn spec(name: &str, istat: u32) -> Value {
    json!({"entity": entity(name, istat), "quota": {"cpu": "2", "memory": "4Gi", "storage": "20Gi"}})
}

fn with_database(mut spec: Value, name: &str) -> Value {
    spec["databases"] =
        json!([{"name": name, "engine": "postgresql", "placement": {"shared": "pg-venis-1"}}]);
    spec
}

/// Names of the metrics in the table of docs/operations.md.
fn documented_metrics() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(checkout().join("docs/operations.md"))?;
    let section = text.split_once("## Health and metrics").context("the section on metrics")?.1;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let names = section.lines().filter_map(|line| {
        let name = line.strip_prefix("| `")?.split('`').next()?;
        Some(name.split(['{', '*']).next()?.to_owned())
    });
    Ok(names.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_readiness_and_every_documented_metric_are_told() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let url = operator_url(data_centre.instance())?;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(http_get(&url, path).await?, (200, "ok\n".to_owned()), "{path}");
    }
    assert_eq!(http_get(&url, "/other").await?.0, 404);

    // One of everything that is counted: a database, drift, and a pass that fails.
    let name = "ops-misura";
    data_centre.apply(name, spec("Misura", 902_301)).await?;
    data_centre.ready(name).await?;
    let namespace = "ops-misura-produzione";
    let secrets: Api<Secret> = Api::namespaced(data_centre.client(), namespace);
    // A name that no earlier run on the same data centre has used.
    let database = format!("dati-{}", Timestamp::now().as_millisecond());
    let secret = format!("db-{database}");
    let stranger = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": &secret}});
    secrets.create(&PostParams::default(), &serde_json::from_value(stranger)?).await?;
    data_centre.apply(name, with_database(spec("Misura", 902_301), &database)).await?;
    data_centre
        .comune_where(name, "told of the Secret in its way", |comune| {
            is_current(comune)
                && condition(comune, reasons::DATABASES_READY).is_some_and(|(_, reason, message)| {
                    reason == reasons::CONFLICT && message.contains(&format!("{namespace}/{secret}"))
                })
        })
        .await?;
    secrets.delete(&secret, &DeleteParams::default()).await?;
    data_centre.ready(name).await?;
    let by_hand = Patch::Merge(json!({"spec": {"limits": []}}));
    data_centre
        .api(Kind::LimitRange, namespace)
        .patch("conme-limits", &PatchParams::default(), &by_hand)
        .await?;
    eventually("the repair is counted", || async {
        Ok(data_centre.metrics().await?.sum("conme_drift_repaired_total", &["kind=\"LimitRange\""]) >= 1.0)
    })
    .await?;

    let (code, text) = http_get(&url, "/metrics").await?;
    assert_eq!(code, 200);
    let metrics = Metrics::parse(&text)?;
    let documented = documented_metrics()?;
    assert!(documented.len() >= 11, "the table of docs/operations.md was read: {documented:?}");
    for name in &documented {
        assert!(
            metrics.0.keys().any(|series| series.starts_with(name.as_str())),
            "{name} is not there:\n{text}"
        );
    }
    for (name, labels) in [
        ("conme_comuni", &["ready=\"true\""][..]),
        ("conme_drift_repaired_total", &["kind=\"LimitRange\""]),
        ("conme_database_ensure_total", &["result=\"ready\""]),
        ("controller_runtime_reconcile_total", &["controller=\"comune\"", "result=\"success\""]),
        ("controller_runtime_reconcile_errors_total", &["controller=\"database\""]),
        ("controller_runtime_reconcile_time_seconds_count", &["controller=\"comune\""]),
        ("rest_client_requests_total", &["code=\"200\"", "method=\"PATCH\""]),
        ("leader_election_master_status", &["name=\"conme-operator\""]),
        ("process_resident_memory_bytes", &[]),
    ] {
        assert!(metrics.sum(name, labels) >= 1.0, "{name} {labels:?}:\n{text}");
    }
    // The reader of metrics would have noticed what no scraper understands.
    for wrong in ["no value\n", "a{b=c} 1\n", "1a 1\n", "a 1", "a 1\na 2\n", "# words\n"] {
        assert!(Metrics::parse(wrong).is_err(), "{wrong:?}");
    }
    data_centre.tidy_up(name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drift_again_and_again_makes_few_events() -> Result<()> {
    const TIMES: u32 = 12;
    let data_centre = DataCentre::shared().await?;
    let name = "ops-eventi";
    data_centre.apply(name, spec("Eventi", 902_302)).await?;
    // Events outlive what they speak of: only those of this very object count.
    let uid = data_centre.ready(name).await?.metadata.uid;
    let quotas = data_centre.api(Kind::ResourceQuota, "ops-eventi-produzione");
    for time in 0..TIMES {
        let body = json!({"metadata": {"labels": {"by-hand": time.to_string()}}});
        quotas.patch("conme-quota", &PatchParams::default(), &Patch::Merge(body)).await?;
        eventually("the label is off again", || async {
            let labels = quotas.get("conme-quota").await?.metadata.labels.unwrap_or_default();
            Ok(!labels.contains_key("by-hand") && labels.contains_key(keys::COMUNE))
        })
        .await?;
    }
    let events: Api<Event> = Api::all(data_centre.client());
    let of = async |reason: &str| -> Result<Vec<Event>> {
        let found = events.list(&ListParams::default()).await?.items;
        let is_it = |event: &Event| {
            event.reason.as_deref() == Some(reason)
                && event.regarding.as_ref().is_some_and(|object| object.uid == uid)
        };
        Ok(found.into_iter().filter(is_it).collect())
    };
    eventually("the event of being Ready is there", || async {
        Ok(!of(reasons::AS_DECLARED).await?.is_empty())
    })
    .await?;
    eventually("the repairs are folded into one series", || async {
        let series = of("DriftRepaired").await?;
        let counts = series.iter().map(|event| event.series.as_ref().map_or(1, |series| series.count));
        Ok(counts.sum::<i32>() >= TIMES as i32)
    })
    .await?;
    let series = of("DriftRepaired").await?;
    assert!(series.len() <= 2, "{TIMES} repairs made {} events", series.len());
    let note = series[0].note.clone().unwrap_or_default();
    assert!(note.contains("ResourceQuota") && note.contains("as declared again"), "{note}");
    data_centre.tidy_up(name).await
}

fn operator(args: &[&str]) -> Result<Output> {
    Ok(std::process::Command::new(installation()?.operator)
        .args(args)
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .output()?)
}

#[test]
fn the_program_explains_itself() -> Result<()> {
    let text = |output: Output| {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let help = text(operator(&["--help"])?);
    for word in ["Comune", "run", "crd", "completion", "Usage: conme-operator <COMMAND>"] {
        assert!(help.contains(word), "{word} is missing from\n{help}");
    }
    let run = text(operator(&["run", "--help"])?);
    for word in ["--identity", "[env: POD_NAME", "--recheck-seconds", "[default: 600]", "/readyz", "Example:"]
    {
        assert!(run.contains(word), "{word} is missing from\n{run}");
    }
    assert!(text(operator(&["--version"])?).starts_with("conme-operator "));

    let completion = text(operator(&["completion", "bash"])?);
    let script = format!(
        "{completion}\nCOMP_WORDS=(conme-operator run --rech) COMP_CWORD=2\n\
         complete=$(complete -p conme-operator) && complete=${{complete##*-F }} && \
         ${{complete%% *}} conme-operator --rech run && printf '%s ' \"${{COMPREPLY[@]}}\""
    );
    let reply = std::process::Command::new("bash").args(["-c", &script]).output()?;
    assert!(String::from_utf8_lossy(&reply.stdout).contains("--recheck-seconds"), "{reply:?}");

    for (args, word) in [
        (&["run", "--no-such-flag"][..], "--no-such-flag"),
        (&["no-such-command"], "no-such-command"),
        (&["run", "--workers", "0"], "1..=256"),
        (&["run", "--deletion-grace", "0s"], "for a second at least"),
        (&["run", "--deletion-grace", "tomorrow"], "--deletion-grace"),
        (&["run", "--listen", "nowhere"], "--listen"),
        (&[], "Usage"),
    ] {
        let output = operator(args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_prints_can_be_applied_as_it_is() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let args = ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", "-"];
    for (command, kinds) in [("crd", 3), ("roles", 5)] {
        let printed = String::from_utf8(operator(&[command])?.stdout)?;
        let said = install::run(data_centre.instance(), "kubectl", &args, Some(&printed)).await?;
        let applied: Vec<&str> = said.lines().filter(|line| line.contains("serverside-applied")).collect();
        assert!(applied.len() >= kinds, "{said}");
        if command == "crd" {
            assert!(
                said.contains("customresourcedefinition.apiextensions.k8s.io/comuni.conme.venis.it"),
                "{said}"
            );
        }
    }
    Ok(())
}

/// An edit, and everything that follows from it.
async fn an_edit_converges(data_centre: &DataCentre, name: &str, istat: u32, cpu: u32) -> Result<()> {
    let mut edited = spec(name, istat);
    edited["quota"]["cpu"] = json!(cpu.to_string());
    data_centre.apply(name, edited).await?;
    data_centre.ready(name).await?;
    let quota = data_centre.read(Kind::ResourceQuota, &format!("{name}-produzione"), "conme-quota").await?;
    let quota = quota.context("a quota")?;
    assert_eq!(quota["spec"]["hard"]["requests.cpu"], cpu.to_string());
    Ok(())
}

/// What the kubelet does for a container that has ended.
async fn restart_if_ended(data_centre: &DataCentre) -> Result<()> {
    if !data_centre.instance().is_alive(OPERATOR)? {
        println!("the operator had ended, as it does when it cannot keep its lease");
        data_centre.instance().start_program(OPERATOR).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_the_api_server_and_of_etcd_leave_nothing_to_be_done_by_hand() -> Result<()> {
    let data_centre = DataCentre::own("ops", &[]).await?;
    let instance = data_centre.instance();
    let url = operator_url(instance)?;
    let name = "ops-saldo";
    an_edit_converges(&data_centre, name, 902_303, 2).await?;

    for (program, cpu) in [("kube-apiserver", 3), ("etcd", 4)] {
        data_centre.operator_at_rest().await?;
        let since = Timestamp::now();
        instance.stop_program(program).await?;
        instance.start_program(program).await?;
        data_centre.operator_gets_ready(|| restart_if_ended(&data_centre)).await?;
        eventually("the API server answers", || async { Ok(data_centre.comuni().get(name).await.is_ok()) })
            .await?;
        data_centre.operator_at_rest().await?;
        let writes = operator_writes(&data_centre, since)?;
        assert!(writes.is_empty(), "nothing was changed but {program} restarted: {writes:#?}");
        an_edit_converges(&data_centre, name, 902_303, cpu)
            .await
            .with_context(|| format!("after {program}"))?;
        assert!(!operator_writes(&data_centre, since)?.is_empty(), "an edit shows in the record of calls");
    }

    // Started while there is no API server: alive, not ready, and ready by itself when there is one.
    instance.stop_program(OPERATOR).await?;
    instance.stop_program("kube-apiserver").await?;
    instance.start_program(OPERATOR).await?;
    eventually("the operator answers", || async { Ok(http_get(&url, "/healthz").await.is_ok()) }).await?;
    assert_eq!(http_get(&url, "/healthz").await?.0, 200, "killing it would not help");
    let (code, words) = http_get(&url, "/readyz").await?;
    assert_eq!(code, 503);
    assert!(words.contains("the cache of comuni is not complete yet"), "{words}");
    assert_eq!(data_centre.metrics().await?.sum("leader_election_master_status", &[]), 0.0);
    instance.start_program("kube-apiserver").await?;
    data_centre.operator_gets_ready(async || Ok(())).await?;
    assert!(instance.is_alive(OPERATOR)?);
    an_edit_converges(&data_centre, name, 902_303, 5).await
}

fn kubeconfig(data_centre: &DataCentre) -> std::path::PathBuf {
    data_centre.instance().dir().join("operator.kubeconfig")
}

/// Number of calls that a process has made which could change something, but for its lease.
async fn calls_that_write(url: &str) -> Result<f64> {
    let metrics = Metrics::of(url).await?;
    let of = |method: &str| metrics.sum("rest_client_requests_total", &[&format!("method=\"{method}\"")]);
    Ok(of("PATCH") + of("DELETE"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_10_a_leader_that_was_paused_and_overtaken_writes_nothing_any_more() -> Result<()> {
    let data_centre = DataCentre::own("ops-pause", &[]).await?;
    let instance = data_centre.instance();
    let name = "ops-pausa";
    an_edit_converges(&data_centre, name, 902_305, 2).await?;
    let second = data_centre.start_second_operator(&kubeconfig(&data_centre)).await?;
    assert_eq!(leads(&operator_url(instance)?).await, Some(true), "the first leads");

    // Frozen with work in its hands: what it was about to write is out of date when it goes on.
    let mut edited = spec(name, 902_305);
    edited["quota"]["cpu"] = json!("3");
    data_centre.apply(name, edited).await?;
    assert!(instance.kill(OPERATOR, Signal::Stop).await?);
    eventually("the second leads", || async { Ok(leads(&second).await == Some(true)) }).await?;
    an_edit_converges(&data_centre, name, 902_305, 5).await?;
    assert!(calls_that_write(&second).await? > 0.0, "the second has done it");
    at_rest(&second).await?;

    let since = Timestamp::now();
    assert!(instance.kill(OPERATOR, Signal::Cont).await?);
    eventually("the first ends", || async { Ok(!instance.is_alive(OPERATOR)?) }).await?;
    let writes = operator_writes(&data_centre, since)?;
    assert!(writes.is_empty(), "nobody had anything to write: {writes:#?}");
    let quota = data_centre.read(Kind::ResourceQuota, &format!("{name}-produzione"), "conme-quota").await?;
    assert_eq!(quota.context("a quota")?["spec"]["hard"]["requests.cpu"], "5");
    an_edit_converges(&data_centre, name, 902_305, 4).await?;
    assert!(!operator_writes(&data_centre, since)?.is_empty(), "an edit shows in the record of calls");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_operators_one_works_and_the_other_takes_over() -> Result<()> {
    let data_centre = DataCentre::own("ops-two", &[]).await?;
    let instance = data_centre.instance();
    let name = "ops-cambio";
    an_edit_converges(&data_centre, name, 902_304, 2).await?;
    let first = operator_url(instance)?;
    let second = data_centre.start_second_operator(&kubeconfig(&data_centre)).await?;

    // From now on: never both. The first is asked before and after the second, so that a change between does not count.
    let over = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (first, second, over) = (first.clone(), second.clone(), over.clone());
        tokio::spawn(async move {
            let (mut looks, mut leaders) = (0_u32, BTreeSet::new());
            while !over.load(Ordering::Acquire) {
                let seen = (leads(&first).await, leads(&second).await, leads(&first).await);
                ensure!(seen != (Some(true), Some(true), Some(true)), "both lead");
                looks += 1;
                leaders.extend((seen.0 == Some(true)).then_some("first"));
                leaders.extend((seen.1 == Some(true)).then_some("second"));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok((looks, leaders))
        })
    };

    // The second sees everything and writes nothing.
    assert_eq!((leads(&first).await, leads(&second).await), (Some(true), Some(false)));
    let before = calls_that_write(&first).await?;
    an_edit_converges(&data_centre, name, 902_304, 3).await?;
    assert!(calls_that_write(&first).await? > before, "the first has done it");
    assert_eq!(calls_that_write(&second).await?, 0.0);

    // Stopped in good order, the first hands over: nobody waits for the end of its lease.
    let lease: Api<Lease> = Api::namespaced(data_centre.client(), NAMESPACE);
    let duration = lease.get("conme-operator").await?.spec.and_then(|spec| spec.lease_duration_seconds);
    let duration = Duration::from_secs(u64::try_from(duration.context("a duration")?)?);
    let begin = Instant::now();
    instance.stop_program(OPERATOR).await?;
    eventually("the second leads", || async { Ok(leads(&second).await == Some(true)) }).await?;
    println!("handed over after {:.1?}; a lease lasts {duration:?}", begin.elapsed());
    assert!(begin.elapsed() < duration, "{:?}", begin.elapsed());
    an_edit_converges(&data_centre, name, 902_304, 4).await?;
    assert!(calls_that_write(&second).await? > 0.0);

    // The first comes back and stands by; killed without a word, the second is followed when its lease has ended.
    instance.start_program(OPERATOR).await?;
    data_centre.operator_gets_ready(async || Ok(())).await?;
    assert_eq!((leads(&first).await, leads(&second).await), (Some(false), Some(true)));
    an_edit_converges(&data_centre, name, 902_304, 5).await?;
    assert_eq!(calls_that_write(&first).await?, 0.0);
    let begin = Instant::now();
    assert!(instance.kill(SECOND, Signal::Kill).await?);
    let renewed =
        lease.get("conme-operator").await?.spec.and_then(|spec| spec.renew_time).context("a time")?.0;
    eventually("the first leads", || async { Ok(leads(&first).await == Some(true)) }).await?;
    println!("taken over {:.1?} after a kill", begin.elapsed());
    let waited = Timestamp::now().duration_since(renewed);
    assert!(waited.unsigned_abs() >= duration, "it took the lease of another before its end: {waited:?}");
    an_edit_converges(&data_centre, name, 902_304, 2).await?;
    let holder = lease.get("conme-operator").await?.spec.and_then(|spec| spec.holder_identity);
    assert_eq!(holder.as_deref(), Some(OPERATOR));

    over.store(true, Ordering::Release);
    let (looks, leaders) = watcher.await??;
    assert_eq!(
        leaders,
        BTreeSet::from(["first", "second"]),
        "the look for two leaders knows one when it sees it"
    );
    assert!(looks > 20, "{looks}");
    Ok(())
}
