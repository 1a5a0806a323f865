//! When everything is as declared, the operator is silent: it writes nothing and asks for nothing, also right after a
//! restart. The API server's own record of every call is the witness.
//!
//! `CONME_QUIET_SECONDS` sets how long is listened (120).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use conme_blueprint::Kind;
use conme_stories::{DataCentre, Entry, OPERATOR_USER, audit_entries, checkout, eventually, operator_writes};
use conme_testbed::{
    Options, Signal,
    install::{NAMESPACE, OPERATOR, apply_files, run},
};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt, api::ListParams};

/// Members of Con.Me in examples/comuni.
const MEMBERS: usize = 22;

/// What the operator has asked the API server since a moment: not watches, not its lease, not its own rights.
fn operator_reads(data_centre: &DataCentre, since: Timestamp) -> Result<Vec<Entry>> {
    let mut entries = audit_entries(data_centre, since)?;
    entries.retain(|entry| {
        entry.user() == OPERATOR_USER
            && !entry.is_write()
            && entry.verb != "watch"
            && entry.resource() != "leases"
    });
    Ok(entries)
}

fn in_words(entries: &[Entry]) -> String {
    let line = |entry: &Entry| {
        let (namespace, name) = entry.object();
        format!("{} {} {} {namespace}/{name} {}", entry.at(), entry.verb, entry.resource(), entry.code())
    };
    entries.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Listens for a while; the time is what is measured.
async fn listen(data_centre: &DataCentre, since: Timestamp, duration: Duration, what: &str) -> Result<()> {
    tokio::time::sleep(duration).await;
    let writes = operator_writes(data_centre, since)?;
    assert!(writes.is_empty(), "{what}, and yet the operator wrote:\n{}", in_words(&writes));
    Ok(())
}

/// Waits until the operator, which has just been started, has looked at every Comune and every database.
async fn has_looked_at_everything(data_centre: &DataCentre, databases: f64) -> Result<()> {
    eventually("the operator has looked at everything", || async {
        if !data_centre.operator_is_ready().await? {
            return Ok(false);
        }
        let metrics = data_centre.metrics().await?;
        let passes = |controller: &str| {
            metrics.sum("controller_runtime_reconcile_total", &[&format!("controller=\"{controller}\"")])
        };
        Ok(metrics.sum("leader_election_master_status", &[]) == 1.0
            && metrics.sum("conme_comuni", &["ready=\"true\""]) == MEMBERS as f64
            && passes("comune") >= MEMBERS as f64
            && metrics.sum("conme_database_ensure_total", &["result=\"ready\""]) >= databases
            && passes("catalogue") >= 1.0
            && metrics.sum("workqueue_depth", &[]) == 0.0)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_data_centre_is_left_in_peace_also_after_a_restart() -> Result<()> {
    let seconds = std::env::var("CONME_QUIET_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(120);
    let window = Duration::from_secs(seconds);
    let options = Options { mariadb: 1, ..Options::new(Options::unique_name("quiet")?) };
    let data_centre = DataCentre::own_as(options, &[]).await?;
    let instance = data_centre.instance();
    let begin = Timestamp::now();
    apply_files(instance, &checkout().join("examples/comuni")).await?;
    for condition in ["Ready", "Available"] {
        let wanted = format!("--for=condition={condition}");
        run(instance, "kubectl", &["wait", &wanted, "comuni", "--all", "--timeout", "180s"], None).await?;
    }
    data_centre.operator_at_rest().await?;
    let comuni = data_centre.comuni().list(&ListParams::default()).await?.items;
    assert_eq!(comuni.len(), MEMBERS);
    let databases: usize = comuni.iter().map(|comune| comune.spec.databases.len()).sum();
    the_way_there_took_few_writes(&data_centre, begin, databases).await?;

    // Silence.
    let since = Timestamp::now();
    listen(&data_centre, since, window, "everything is as declared").await?;
    let reads = operator_reads(&data_centre, since)?;
    assert!(reads.is_empty(), "nothing has changed, and yet the operator asked:\n{}", in_words(&reads));
    let lease = |entry: &Entry| entry.user() == OPERATOR_USER && entry.resource() == "leases";
    let renewals =
        audit_entries(&data_centre, since)?.iter().filter(|entry| lease(entry) && entry.is_write()).count();
    assert!(renewals > 0, "the operator was alive, and the record of calls shows it");

    // A restart in good order, and one without any order.
    for signal in [Signal::Term, Signal::Kill] {
        let what = format!("it was only restarted ({signal:?})");
        let since = Timestamp::now();
        if signal == Signal::Kill {
            assert!(instance.kill(OPERATOR, signal).await?);
        } else {
            instance.stop_program_with(OPERATOR, Some(signal)).await?;
        }
        let started = Instant::now();
        instance.start_program(OPERATOR).await?;
        has_looked_at_everything(&data_centre, databases as f64).await?;
        let took = started.elapsed();
        println!("{what}: everything looked at again after {took:.1?}");
        let lease: Api<Lease> = Api::namespaced(data_centre.client(), NAMESPACE);
        let lease = lease.get("conme-operator").await?.spec.unwrap();
        assert_eq!(lease.holder_identity.as_deref(), Some("conme-operator"));
        assert!(
            took < Duration::from_secs(u64::try_from(lease.lease_duration_seconds.unwrap())?),
            "the lease was its own: nothing had to end first"
        );
        listen(&data_centre, since, window.min(Duration::from_secs(20)), &what).await?;
        everything_was_listed_once(&data_centre, since)?;
    }
    Ok(())
}

/// One list a kind after a start; one that comes in pages counts as one.
fn everything_was_listed_once(data_centre: &DataCentre, since: Timestamp) -> Result<()> {
    let mut lists: BTreeMap<String, u32> = BTreeMap::new();
    for entry in audit_entries(data_centre, since)? {
        let is_next_page = entry.uri.contains("continue=");
        // A watch that begins by sending all there is takes the place of a list.
        let is_list = entry.verb == "list" || entry.uri.contains("sendInitialEvents=true");
        if entry.user() == OPERATOR_USER && is_list && !is_next_page {
            *lists.entry(entry.resource()).or_default() += 1;
        }
    }
    let own = ["comuni", "datacenters", "servicetemplates", "storageclasses"].map(str::to_owned);
    let watched: BTreeSet<String> =
        Kind::ALL.iter().map(|kind| kind.plural().to_owned()).chain(own).collect();
    assert_eq!(lists.keys().cloned().collect::<BTreeSet<_>>(), watched);
    assert!(lists.values().all(|times| *times == 1), "listed more than once: {lists:?}");
    let reads = operator_reads(data_centre, since)?;
    // The credentials of the server and the binding Secret of each database, as no watch shows Secrets.
    let others: Vec<Entry> =
        reads.into_iter().filter(|entry| entry.verb != "list" && entry.resource() != "secrets").collect();
    assert!(others.is_empty(), "asked for one by one:\n{}", in_words(&others));
    Ok(())
}

/// From nothing to everything: hardly more writes than there are objects, and few of status.
async fn the_way_there_took_few_writes(
    data_centre: &DataCentre,
    begin: Timestamp,
    databases: usize,
) -> Result<()> {
    let labels = ListParams::default().labels("app.kubernetes.io/managed-by=conme");
    let mut objects = databases;
    for kind in Kind::ALL {
        let api: Api<kube::api::DynamicObject> = Api::all_with(data_centre.client(), &kind.api_resource());
        objects += api.list(&labels).await?.items.len();
    }
    let writes = operator_writes(data_centre, begin)?;
    let (status, rest): (Vec<Entry>, Vec<Entry>) =
        writes.into_iter().partition(|entry| entry.resource() == "comuni/status");
    let (events, rest): (Vec<Entry>, Vec<Entry>) =
        rest.into_iter().partition(|entry| entry.resource() == "events");
    let (catalogue, rest): (Vec<Entry>, Vec<Entry>) = rest.into_iter().partition(|entry| {
        ["datacenters/status", "servicetemplates/status"].contains(&entry.resource().as_str())
    });
    let mut refused: BTreeMap<(u16, String), usize> = BTreeMap::new();
    for entry in rest.iter().filter(|entry| entry.code() >= 400) {
        *refused.entry((entry.code(), entry.resource())).or_default() += 1;
    }
    let mut by_kind: BTreeMap<String, usize> = BTreeMap::new();
    for entry in &rest {
        *by_kind.entry(entry.resource()).or_default() += 1;
    }
    println!(
        "{objects} objects of {MEMBERS} Comuni took {} writes (refused: {refused:?}) and {} of status ({:.1} each), {} events, \
         {} writes of the catalogue's status\n{by_kind:?}",
        rest.len(),
        status.len(),
        status.len() as f64 / MEMBERS as f64,
        events.len(),
        catalogue.len(),
    );
    let mut again: BTreeMap<(String, (String, String)), Vec<&Entry>> = BTreeMap::new();
    for entry in &rest {
        again.entry((entry.resource(), entry.object())).or_default().push(entry);
    }
    for entries in again.values().filter(|entries| entries.len() > 1).take(5) {
        let entries: Vec<Entry> = entries.iter().map(|entry| (*entry).clone()).collect();
        println!("written more than once:\n{}", in_words(&entries));
    }
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for entry in &status {
        *told.entry(entry.object().1).or_default() += 1;
    }
    assert_eq!(told.len(), MEMBERS, "each of them was told of");
    // Two each is the target of the benchmark (Ready, Available), and one more with databases, which come later. On a slow
    // machine databases become ready one after the other, and pods take longer than figures are put off: half of them
    // again. Each pass that writes a status of its own would take more.
    assert!(2 * status.len() <= 7 * MEMBERS, "{} writes of status: {told:?}", status.len());
    let most = objects + objects / 10 + 2 * MEMBERS;
    assert!(rest.len() >= objects, "the record of calls is complete: {} of {objects}", rest.len());
    assert!(rest.len() + status.len() <= most, "{} + {} writes, at most {most}", rest.len(), status.len());
    let names: BTreeSet<String> = data_centre
        .comuni()
        .list(&ListParams::default())
        .await?
        .items
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    assert_eq!(told.keys().cloned().collect::<BTreeSet<_>>(), names);
    Ok(())
}
