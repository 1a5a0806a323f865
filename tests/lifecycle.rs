//! The whole life of a municipality on the data centre: it is applied, cordoned, paused, removed and applied again, and
//! in the end retired. The rules are those of the security policy: data goes only on a person's word.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use conme_api::{Comune, DataCenter, PurgeItem, keys, reasons};
use conme_blueprint::Kind;
use conme_stories::{
    Credentials, DataCentre, Login, condition, entity, eventually, installation, is_current, operator_writes,
};
use conme_testbed::{
    Progress,
    install::{self, OPERATOR},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

const SERVER: &str = "pg-venis-1";

fn database(name: &str, policy: &str) -> Value {
    json!({"name": name, "engine": "postgresql", "placement": {"shared": SERVER}, "deletionPolicy": policy})
}

fn spec(name: &str, istat: u32, databases: Value) -> Value {
    json!({
        "entity": entity(name, istat),
        "quota": {"cpu": "2", "memory": "4Gi", "storage": "20Gi"},
        "databases": databases,
    })
}

fn with(mut spec: Value, field: &str, value: Value) -> Value {
    spec[field] = value;
    spec
}

async fn administrator(data_centre: &DataCentre) -> Result<Login> {
    Credentials::of_administrator(data_centre, SERVER)?.login(None).await
}

/// Databases and roles on the server whose names begin so.
async fn on_server(admin: &Login, prefix: &str) -> Result<String> {
    let like = format!("like '{}\\_\\_%'", prefix.replace('-', "_"));
    admin
        .value(&format!(
            "select coalesce(string_agg(n, ' ' order by n), '') from (select datname n from pg_database where datname \
             {like} union select rolname from pg_roles where rolname {like}) x"
        ))
        .await
}

async fn annotate(data_centre: &DataCentre, name: &str, key: &str, value: Value) -> Result<()> {
    let body = json!({"metadata": {"annotations": {key: value}}});
    data_centre.comuni().patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
    Ok(())
}

async fn set(data_centre: &DataCentre, name: &str, spec: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": spec}));
    data_centre.comuni().patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn delete(data_centre: &DataCentre, name: &str) -> Result<()> {
    data_centre.comuni().delete(name, &DeleteParams::default()).await?;
    Ok(())
}

async fn is_gone(data_centre: &DataCentre, name: &str) -> Result<()> {
    eventually(&format!("the Comune {name} is gone"), || async {
        Ok(data_centre.comuni().get_opt(name).await?.is_none())
    })
    .await
}

async fn namespace(data_centre: &DataCentre, name: &str) -> Result<Option<Namespace>> {
    Ok(Api::<Namespace>::all(data_centre.client()).get_opt(name).await?)
}

async fn is_orphaned(data_centre: &DataCentre, name: &str) -> Result<()> {
    eventually(&format!("{name} says that it is an orphan"), || async {
        let found = namespace(data_centre, name).await?.context("the namespace is there")?;
        Ok(found.labels().contains_key(keys::ORPHANED) && found.annotations().contains_key(keys::ORPHANED_AT))
    })
    .await
}

/// Waits until the deletion of a Comune is told of with this reason; returns it with the message.
async fn deleting(data_centre: &DataCentre, name: &str, reason: &str) -> Result<(Comune, String)> {
    let comune = data_centre
        .comune_where(name, reason, |comune| {
            is_current(comune)
                && condition(comune, reasons::DELETING).is_some_and(|(_, told, _)| told == reason)
        })
        .await?;
    let message = condition(&comune, reasons::DELETING).context("a condition")?.2.to_owned();
    Ok((comune, message))
}

/// Runs the command of a message that begins so, word by word.
async fn say_as_told(data_centre: &DataCentre, message: &str, begin: &str) -> Result<()> {
    let command = message.split_once(begin).with_context(|| format!("`{begin}` in {message}"))?.1;
    let end = command.find(". ").unwrap_or(command.len());
    let command = format!("{}{}", begin.trim_start_matches("kubectl "), &command[..end]);
    let words: Vec<String> = command.split_whitespace().map(|word| word.replace('\'', "")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    install::run(data_centre.instance(), "kubectl", &words, None).await.map(|_| ())
}

const ANNOTATE: &str = "kubectl annotate comune";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_1_deletion_acts_only_on_a_persons_word_and_after_the_grace_period() -> Result<()> {
    let data_centre = DataCentre::own("vita", &["--deletion-grace", "8s", "--recheck-seconds", "2"]).await?;
    let admin = administrator(&data_centre).await?;
    retain_keeps_everything_and_delete_needs_its_finalizer(&data_centre).await?;
    nothing_is_deleted_without_the_word_for_this_very_object(&data_centre, &admin).await?;
    the_grace_period_can_be_broken_off_and_survives_a_restart(&data_centre, &admin).await?;
    a_database_that_is_not_its_own_holds_up_the_end(&data_centre, &admin).await?;
    a_pause_holds_databases_too_and_nothing_is_forgotten_after_it(&data_centre, &admin).await?;
    a_definition_that_is_deleted_is_nobodys_word(&data_centre, &admin).await?;
    an_uninstalled_chart_takes_nothing_with_it(&data_centre).await
}

async fn retain_keeps_everything_and_delete_needs_its_finalizer(data_centre: &DataCentre) -> Result<()> {
    let name = "vit-resta";
    let retain = spec("Resta", 903_001, json!([]));
    data_centre.apply(name, retain.clone()).await?;
    assert!(data_centre.ready(name).await?.finalizers().is_empty());
    set(data_centre, name, json!({"deletionPolicy": "Delete"})).await?;
    data_centre.comune_where(name, "held", |comune| comune.finalizers() == [keys::DELETION]).await?;
    // Changed back: a word that nobody means any more must not act.
    set(data_centre, name, json!({"deletionPolicy": "Retain"})).await?;
    data_centre.comune_where(name, "free", |comune| comune.finalizers().is_empty()).await?;
    let before = namespace(data_centre, "vit-resta-produzione").await?.context("a namespace")?;
    delete(data_centre, name).await?;
    is_gone(data_centre, name).await?;
    is_orphaned(data_centre, "vit-resta-produzione").await?;
    let after = namespace(data_centre, "vit-resta-produzione").await?.context("a namespace")?;
    assert_eq!(after.metadata.uid, before.metadata.uid);
    Ok(())
}

async fn nothing_is_deleted_without_the_word_for_this_very_object(
    data_centre: &DataCentre,
    admin: &Login,
) -> Result<()> {
    let name = "vit-finisce";
    let databases = json!([database("via", "Delete"), database("resta", "Retain")]);
    data_centre
        .apply(name, with(spec("Finisce", 903_002, databases), "deletionPolicy", json!("Delete")))
        .await?;
    let comune = data_centre.ready(name).await?;
    let others = spec("Altro", 903_003, json!([database("via", "Delete")]));
    data_centre.apply("vit-finisce-x", with(others, "deletionPolicy", json!("Delete"))).await?;
    data_centre.ready("vit-finisce-x").await?;
    let both = Patch::Merge(json!({"metadata": {"finalizers": [keys::DELETION, "example.org/hold"]}}));
    data_centre.comuni().patch(name, &PatchParams::default(), &both).await?;
    delete(data_centre, name).await?;
    let (_, message) = deleting(data_centre, name, reasons::CONFIRMATION_MISSING).await?;
    assert!(message.contains("vit-finisce-produzione") && message.contains("databases via"), "{message}");
    assert!(message.contains("kept by their own deletionPolicy: resta"), "{message}");
    let (status, reason, _) = condition(&comune, "Ready").context("a condition")?;
    assert_eq!((status, reason), ("True", reasons::AS_DECLARED), "it had been as declared");

    // Words that speak of another object, or of an earlier one of the same name, count for nothing.
    for other in [name.to_owned(), format!("{name}/"), format!("{name}/other"), "true".to_owned()] {
        annotate(data_centre, name, keys::CONFIRM_DELETE, json!(other)).await?;
        let (_, message) = deleting(data_centre, name, reasons::CONFIRMATION_MISSING).await?;
        eventually("the wrong word is told of", || async {
            Ok(deleting(data_centre, name, reasons::CONFIRMATION_MISSING).await?.1.contains("another object"))
        })
        .await?;
        assert!(message.contains(ANNOTATE), "{message}");
    }
    // What runs is looked after meanwhile.
    data_centre
        .api(Kind::ResourceQuota, "vit-finisce-produzione")
        .delete("conme-quota", &DeleteParams::default())
        .await?;
    eventually("the quota is put back", || async {
        Ok(data_centre.read(Kind::ResourceQuota, "vit-finisce-produzione", "conme-quota").await?.is_some())
    })
    .await?;

    // Protected and paused hold everything up, also with the right word.
    set(data_centre, name, json!({"protected": true})).await?;
    let (_, message) = deleting(data_centre, name, reasons::PROTECTED).await?;
    assert!(message.contains("spec.protected"), "{message}");
    set(data_centre, name, json!({"protected": false, "paused": true})).await?;
    let right = format!("{name}/{}", comune.uid().context("a uid")?);
    annotate(data_centre, name, keys::CONFIRM_DELETE, json!(right)).await?;
    let (held, _) = deleting(data_centre, name, reasons::PAUSED).await?;
    assert_eq!(held.status.and_then(|status| status.deletion).and_then(|told| told.delete_after), None);
    annotate(data_centre, name, keys::CONFIRM_DELETE, Value::Null).await?;
    set(data_centre, name, json!({"paused": false})).await?;

    // Said as the message tells it, it is done, after the grace period and not before.
    let (_, message) = deleting(data_centre, name, reasons::CONFIRMATION_MISSING).await?;
    say_as_told(data_centre, &message, ANNOTATE).await?;
    let (told, message) = deleting(data_centre, name, reasons::GRACE_PERIOD).await?;
    let deletion = told.status.and_then(|status| status.deletion).context("the deletion is told of")?;
    let end = deletion.delete_after.context("an end")?;
    assert!(message.contains(&end) && message.contains("To stop it"), "{message}");
    // Somebody else's finalizer holds the empty shell: nothing is built in it again.
    let (.., message) = deleting(data_centre, name, reasons::WAITING).await?;
    assert!(message.contains("example.org/hold"), "{message}");
    assert!(namespace(data_centre, "vit-finisce-produzione").await?.is_none());
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    data_centre.comuni().patch(name, &PatchParams::default(), &free).await?;
    is_gone(data_centre, name).await?;
    assert!(Timestamp::now() >= end.parse::<Timestamp>()?, "not before the end of the grace period");
    assert!(namespace(data_centre, "vit-finisce-produzione").await?.is_none());
    let left = on_server(admin, name).await?;
    assert_eq!(left, "vit_finisce__resta vit_finisce__resta__app vit_finisce__resta__owner");
    // What it has left is on the list of the data centre until somebody drops it by hand.
    let kept =
        item(data_centre, "Database", "pg-venis-1/vit_finisce__resta", true).await?.context("an item")?;
    assert_eq!((kept.comune.as_str(), kept.istat.as_deref()), (name, Some("903002")));
    admin.run("drop database vit_finisce__resta").await?;
    item(data_centre, "Database", "pg-venis-1/vit_finisce__resta", false).await?;
    // A name that begins alike is another administration's.
    data_centre.ready("vit-finisce-x").await?;
    assert!(namespace(data_centre, "vit-finisce-x-produzione").await?.is_some());
    assert!(on_server(admin, "vit-finisce-x").await?.starts_with("vit_finisce_x__via "));
    Ok(())
}

async fn the_grace_period_can_be_broken_off_and_survives_a_restart(
    data_centre: &DataCentre,
    admin: &Login,
) -> Result<()> {
    let name = "vit-ripensa";
    let wanted = with(
        spec("Ripensa", 903_004, json!([database("dati", "Delete")])),
        "deletionPolicy",
        json!("Delete"),
    );
    data_centre.apply(name, wanted.clone()).await?;
    data_centre.ready(name).await?;
    delete(data_centre, name).await?;
    let (_, message) = deleting(data_centre, name, reasons::CONFIRMATION_MISSING).await?;
    say_as_told(data_centre, &message, ANNOTATE).await?;
    let (first, message) = deleting(data_centre, name, reasons::GRACE_PERIOD).await?;
    say_as_told(data_centre, &message, ANNOTATE).await?;
    let (held, message) = deleting(data_centre, name, reasons::CONFIRMATION_MISSING).await?;
    let deletion = |comune: &Comune| comune.status.clone().unwrap_or_default().deletion.unwrap_or_default();
    assert_eq!(deletion(&held).delete_after, None, "taken back");
    assert!(deletion(&first).delete_after.is_some());

    // Confirmed again it begins anew, and a restart changes nothing of its end.
    say_as_told(data_centre, &message, ANNOTATE).await?;
    let (second, _) = deleting(data_centre, name, reasons::GRACE_PERIOD).await?;
    assert!(deletion(&second).delete_after >= deletion(&first).delete_after);
    data_centre.instance().stop_program(OPERATOR).await?;
    data_centre.instance().start_program(OPERATOR).await?;
    data_centre.operator_gets_ready(async || Ok(())).await?;
    let found = data_centre.comuni().get(name).await?;
    let end = |comune: &Comune| (deletion(comune).confirmed_at, deletion(comune).delete_after);
    assert_eq!(end(&found), end(&second));
    // With Retain it may go at once, and everything stays.
    set(data_centre, name, json!({"deletionPolicy": "Retain"})).await?;
    is_gone(data_centre, name).await?;
    is_orphaned(data_centre, "vit-ripensa-produzione").await?;
    assert!(on_server(admin, name).await?.starts_with("vit_ripensa__dati "));
    Ok(())
}

async fn a_database_that_is_not_its_own_holds_up_the_end(
    data_centre: &DataCentre,
    admin: &Login,
) -> Result<()> {
    let name = "vit-meta";
    let databases = json!([database("via", "Delete"), database("altrui", "Delete")]);
    data_centre
        .apply(name, with(spec("Meta", 903_009, databases), "deletionPolicy", json!("Delete")))
        .await?;
    data_centre.ready(name).await?;
    let theirs = json!({"managed-by": "conme", "comune": "vit-altri", "database": "altrui"});
    admin.run(&format!("comment on database vit_meta__altrui is '{theirs}'")).await?;
    delete(data_centre, name).await?;
    let (_, message) = deleting(data_centre, name, reasons::CONFIRMATION_MISSING).await?;
    say_as_told(data_centre, &message, ANNOTATE).await?;
    let (_, message) = deleting(data_centre, name, reasons::DATABASE_FAILED).await?;
    assert!(message.contains("vit-altri") && message.contains("Nothing was dropped"), "{message}");
    eventually("the other one is dropped", || async {
        Ok(!on_server(admin, name).await?.contains("vit_meta__via"))
    })
    .await?;
    let live = namespace(data_centre, "vit-meta-produzione").await?.context("a namespace")?;
    assert!(live.metadata.deletion_timestamp.is_none(), "databases come first");

    // The word is taken back half way: what is gone is told, and never made anew.
    annotate(data_centre, name, keys::CONFIRM_DELETE, Value::Null).await?;
    data_centre
        .comune_where(name, "told of the missing data", |comune| {
            condition(comune, reasons::DATABASES_READY).is_some_and(|told| told.1 == reasons::DATA_MISSING)
        })
        .await?;
    assert!(!on_server(admin, name).await?.contains("vit_meta__via"));
    set(data_centre, name, json!({"deletionPolicy": "Retain"})).await?;
    is_gone(data_centre, name).await?;
    is_orphaned(data_centre, "vit-meta-produzione").await?;
    assert!(on_server(admin, name).await?.starts_with("vit_meta__altrui "));
    Ok(())
}

/// Waits until the data centre's purge list holds something, or holds it no more.
async fn item(data_centre: &DataCentre, kind: &str, name: &str, is_there: bool) -> Result<Option<PurgeItem>> {
    let find = || async {
        let status =
            Api::<DataCenter>::all(data_centre.client()).get("venis").await?.status.unwrap_or_default();
        let list = status.purge.unwrap_or_default();
        ensure!(list.count as usize >= list.items.len(), "a count that is too small");
        Ok(list.items.into_iter().find(|item| item.kind == kind && item.name == name))
    };
    let what = format!("{kind} {name} on the purge list: {is_there}");
    eventually(&what, || async { Ok(find().await?.is_some() == is_there) }).await?;
    find().await
}

async fn a_pause_holds_databases_too_and_nothing_is_forgotten_after_it(
    data_centre: &DataCentre,
    admin: &Login,
) -> Result<()> {
    // One whose database cannot be had, because somebody else's is in the way.
    admin.run("create database vit_ferma__altrui").await?;
    for (name, istat, databases) in [
        ("vit-ferma", 903_007, json!([database("dati", "Retain"), database("altrui", "Retain")])),
        ("vit-corre", 903_008, json!([database("dati", "Retain")])),
    ] {
        data_centre.apply(name, spec(name, istat, databases)).await?;
    }
    data_centre.ready("vit-corre").await?;
    let is = |reason: &'static str| {
        move |comune: &Comune| {
            is_current(comune)
                && condition(comune, reasons::DATABASES_READY).is_some_and(|told| told.1 == reason)
        }
    };
    data_centre.comune_where("vit-ferma", "told of the conflict", is(reasons::CONFLICT)).await?;
    set(data_centre, "vit-ferma", json!({"paused": true, "cordoned": true})).await?;
    data_centre
        .comune_where("vit-ferma", "paused", |comune| {
            is_current(comune) && condition(comune, "Ready").is_some_and(|told| told.1 == reasons::PAUSED)
        })
        .await?;
    // What is wrong with both databases is put right for the one that is not paused.
    for name in ["vit_ferma", "vit_corre"] {
        admin.run(&format!("alter role {name}__dati__owner createdb")).await?;
    }
    admin.run("drop database vit_ferma__altrui").await?;
    let may = |name: &'static str| async move {
        let sql = format!("select rolcreatedb from pg_roles where rolname = '{name}__dati__owner'");
        Ok::<_, anyhow::Error>(admin.value(&sql).await? == "t")
    };
    for _ in 0..2 {
        eventually("the other one is repaired", || async { Ok(!may("vit_corre").await?) }).await?;
        admin.run("alter role vit_corre__dati__owner createdb").await?;
    }
    assert!(may("vit_ferma").await?, "nothing of a paused Comune is touched");
    assert!(!on_server(admin, "vit-ferma").await?.contains("altrui__app"));
    let live = namespace(data_centre, "vit-ferma-produzione").await?.context("a namespace")?;
    assert!(!live.labels().contains_key(keys::CORDONED), "not even a label");

    set(data_centre, "vit-ferma", json!({"paused": false})).await?;
    let comune = data_centre.ready("vit-ferma").await?;
    let (_, _, message) = condition(&comune, "Ready").context("a condition")?;
    assert!(message.contains("cordoned"), "{message}");
    eventually("the pause is over", || async { Ok(!may("vit_ferma").await?) }).await?;
    let live = namespace(data_centre, "vit-ferma-produzione").await?.context("a namespace")?;
    assert_eq!(live.labels().get(keys::CORDONED).map(String::as_str), Some("true"));
    for name in ["vit-ferma", "vit-corre"] {
        data_centre.tidy_up(name).await?;
    }
    Ok(())
}

async fn an_uninstalled_chart_takes_nothing_with_it(data_centre: &DataCentre) -> Result<()> {
    let namespaces = ["vit-portale-produzione", "vit-semplice-produzione", "vit-unione-produzione"];
    let names = ["vit-portale", "vit-semplice", "vit-unione"];
    let before = inventory(data_centre, &namespaces).await?;
    let uids = || async {
        let mut uids = Vec::new();
        for name in names {
            uids.push(data_centre.ready(name).await?.uid());
        }
        Ok::<_, anyhow::Error>(uids)
    };
    let comuni = uids().await?;
    let since = Timestamp::now();
    let uninstall = ["uninstall", "conme", "--namespace", install::NAMESPACE, "--wait"];
    install::run(data_centre.instance(), "helm", &uninstall, None).await?;
    assert_eq!(uids().await?, comuni, "definitions and Comuni stay");
    assert_eq!(inventory(data_centre, &namespaces).await?, before);

    install::install(data_centre.instance(), &installation()?, &Progress::silent()).await?;
    data_centre.operator_gets_ready(async || Ok(())).await?;
    // An edit shows that it is at work again.
    set(data_centre, "vit-semplice", json!({"cordoned": true})).await?;
    eventually("the label is there", || async {
        let live = namespace(data_centre, "vit-semplice-produzione").await?.context("a namespace")?;
        Ok(live.labels().contains_key(keys::CORDONED))
    })
    .await?;
    assert_eq!(uids().await?, comuni);
    assert_eq!(inventory(data_centre, &namespaces).await?, before, "nothing was made anew");
    nothing_was_deleted_or_made(data_centre, since)
}

/// By the API server's own record of the operator's calls.
fn nothing_was_deleted_or_made(data_centre: &DataCentre, since: Timestamp) -> Result<()> {
    let calls: Vec<String> = operator_writes(data_centre, since)?
        .into_iter()
        .filter(|call| {
            call.verb.starts_with("delete") || call.verb == "create" && call.resource() != "events"
        })
        .map(|call| format!("{} {}", call.verb, call.uri))
        .collect();
    ensure!(calls.is_empty(), "nothing was to be deleted or made: {calls:#?}");
    Ok(())
}

/// Every object of some Comuni with its uid, and the rows of their databases.
async fn inventory(data_centre: &DataCentre, namespaces: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for name in namespaces {
        let live = namespace(data_centre, name).await?.with_context(|| format!("the namespace {name}"))?;
        found.insert((*name).to_owned(), live.uid().unwrap_or_default());
        let kinds = Kind::ALL.into_iter().chain([Kind::Secret]).filter(|kind| *kind != Kind::Namespace);
        for kind in kinds {
            for object in data_centre.api(kind, name).list(&Default::default()).await? {
                let at = format!("{name} {} {}", kind.name(), object.name_any());
                found.insert(at, object.uid().unwrap_or_default());
            }
        }
    }
    Ok(found)
}

async fn a_definition_that_is_deleted_is_nobodys_word(data_centre: &DataCentre, admin: &Login) -> Result<()> {
    data_centre.two_templates("vit").await?;
    let mut portale = with(
        spec("Portale", 903_005, json!([database("dati", "Delete")])),
        "deletionPolicy",
        json!("Delete"),
    );
    portale["services"] = json!([{"name": "portale", "template": "vit-portale", "database": "dati"}]);
    let manifests = [
        ("vit-portale", portale),
        ("vit-semplice", with(spec("Semplice", 903_006, json!([])), "deletionPolicy", json!("Retain"))),
    ];
    let unione = json!({
        "entity": {"kind": "Unione", "displayName": "Unione di prova", "ipa": "UDPROVA"},
        "quota": {"cpu": "1", "memory": "2Gi", "storage": "10Gi"},
        "databases": [database("atti", "Retain")],
    });
    let apply_all = || async {
        for (name, spec) in &manifests {
            data_centre.apply(name, spec.clone()).await?;
        }
        data_centre.apply("vit-unione", unione.clone()).await
    };
    apply_all().await?;
    let names = ["vit-portale", "vit-semplice", "vit-unione"];
    let mut seniority = BTreeMap::new();
    for name in names {
        let comune = data_centre.ready(name).await?;
        seniority.insert(name, comune.status.and_then(|status| status.seniority));
    }
    let credentials = Credentials::of(data_centre, "vit-portale-produzione", "dati").await?;
    credentials.login(None).await?.run("create table t (a text); insert into t values ('resta')").await?;
    let of_unione = Credentials::of(data_centre, "vit-unione-produzione", "atti").await?;
    of_unione.login(None).await?.run("create table t (a text); insert into t values ('atto')").await?;
    let namespaces = ["vit-portale-produzione", "vit-semplice-produzione", "vit-unione-produzione"];
    let before = inventory(data_centre, &namespaces).await?;
    let on_the_server = on_server(admin, "vit-portale").await?;

    // One of them is in its grace period: not even that counts when the definition goes.
    delete(data_centre, "vit-portale").await?;
    let (_, message) = deleting(data_centre, "vit-portale", reasons::CONFIRMATION_MISSING).await?;
    say_as_told(data_centre, &message, ANNOTATE).await?;
    deleting(data_centre, "vit-portale", reasons::GRACE_PERIOD).await?;
    let since = Timestamp::now();
    // Whoever does that by mistake has to say so twice.
    let definition = "customresourcedefinition/comuni.conme.venis.it";
    let uid = ["get", definition, "--output", "jsonpath={.metadata.uid}"];
    let uid = install::run(data_centre.instance(), "kubectl", &uid, None).await?;
    let word = format!("{}=comuni.conme.venis.it/{uid}", keys::CONFIRM_DELETE);
    install::run(data_centre.instance(), "kubectl", &["annotate", definition, &word], None).await?;
    let definition = ["delete", "customresourcedefinition", "comuni.conme.venis.it", "--timeout", "60s"];
    install::run(data_centre.instance(), "kubectl", &definition, None).await?;
    eventually("the operator knows that it sees no Comuni", || async {
        Ok(!data_centre.operator_is_ready().await?)
    })
    .await?;
    assert_eq!(inventory(data_centre, &namespaces).await?, before);
    assert_eq!(on_server(admin, "vit-portale").await?, on_the_server);

    // The chart puts the definition back, as a person would do it; the operator has been running all the time.
    let chart = conme_stories::checkout().join("charts/conme").to_string_lossy().into_owned();
    let upgrade = ["upgrade", "conme", &chart, "--namespace", install::NAMESPACE, "--reuse-values"];
    install::run(data_centre.instance(), "helm", &upgrade, None).await?;
    eventually("Comuni can be listed again", || async {
        Ok(install::run(data_centre.instance(), "kubectl", &["get", "comuni"], None).await.is_ok())
    })
    .await?;
    data_centre.operator_gets_ready(async || Ok(())).await?;
    apply_all().await?;
    for name in names {
        let comune = data_centre.ready(name).await?;
        let status = comune.status.unwrap_or_default();
        assert_eq!(Some(status.seniority), seniority.remove(name), "{name} keeps its place among the others");
        assert!(status.orphans.is_empty(), "{:?}", status.orphans);
    }
    assert_eq!(inventory(data_centre, &namespaces).await?, before, "everything is the same object as before");
    for name in namespaces {
        let live = namespace(data_centre, name).await?.context("a namespace")?;
        assert!(!live.labels().contains_key(keys::ORPHANED), "{name}");
    }
    assert_eq!(credentials.login(None).await?.value("select a from t").await?, "resta");
    assert_eq!(of_unione.login(None).await?.value("select a from t").await?, "atto");
    nothing_was_deleted_or_made(data_centre, since)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_2_adoption_what_a_removed_comune_has_left_is_listed_and_taken_back() -> Result<()> {
    let data_centre = DataCentre::shared().await?;
    let admin = administrator(&data_centre).await?;
    let (name, namespace_name) = ("vit-torna", "vit-torna-produzione");
    // What an earlier run on the same data centre has left would be taken back, too.
    admin.run("drop database if exists vit_torna__dati with (force)").await?;
    admin.run("drop database if exists vit_torna__vecchia with (force)").await?;
    let both = json!([database("dati", "Retain"), database("vecchia", "Retain")]);
    data_centre.apply(name, spec("Torna", 903_011, both)).await?;
    let first = data_centre.ready(name).await?;
    let first_seniority = first.status.clone().unwrap_or_default().seniority;
    let credentials = Credentials::of(&data_centre, namespace_name, "dati").await?;
    credentials.login(None).await?.run("create table t (a text); insert into t values ('resta')").await?;
    let live = namespace(&data_centre, namespace_name).await?.context("a namespace")?;
    assert_eq!(live.annotations().get(keys::ADMITTED_AT), first_seniority.as_ref());

    // A database leaves the manifest: it is on both lists.
    let one = spec("Torna", 903_011, json!([database("dati", "Retain")]));
    data_centre.apply(name, one.clone()).await?;
    let orphan = "pg-venis-1/vit_torna__vecchia";
    let lists_it = |comune: &Comune| {
        let status = comune.status.clone().unwrap_or_default();
        let counted = status.summary.unwrap_or_default().orphans as usize == status.orphans.len();
        counted && status.orphans.iter().any(|known| known.kind == "Database" && known.name == orphan)
    };
    data_centre.comune_where(name, "told of the orphan", lists_it).await?;
    let listed = item(&data_centre, "Database", orphan, true).await?.context("an item")?;
    assert_eq!((listed.comune.as_str(), listed.istat.as_deref()), (name, Some("903011")));

    // The Comune goes: so does its status, and the list of the data centre knows it all.
    delete(&data_centre, name).await?;
    is_gone(&data_centre, name).await?;
    is_orphaned(&data_centre, namespace_name).await?;
    let dati = "pg-venis-1/vit_torna__dati";
    for (kind, what) in [("Namespace", namespace_name), ("Database", dati), ("Database", orphan)] {
        let listed = item(&data_centre, kind, what, true).await?.context("an item")?;
        assert_eq!((listed.comune.as_str(), listed.istat.as_deref()), (name, Some("903011")));
        assert!(listed.since.parse::<Timestamp>().is_ok(), "{listed:?}");
    }

    // The same administration under another name gets nothing of it, and is told.
    data_centre.apply("vit-altronome", spec("Torna", 903_011, json!([]))).await?;
    let renamed = data_centre.ready("vit-altronome").await?;
    let (_, _, message) = condition(&renamed, reasons::ADMITTED).context("a condition")?;
    assert!(message.contains(namespace_name) && message.contains("`vit-torna` again"), "{message}");
    data_centre.tidy_up("vit-altronome").await?;
    is_gone(&data_centre, "vit-altronome").await?;

    // Applied again under its own name, it goes on where it was.
    data_centre.apply(name, one).await?;
    let again = data_centre.ready(name).await?;
    assert_ne!(again.uid(), first.uid());
    assert_eq!(again.status.clone().unwrap_or_default().seniority, first_seniority);
    let taken_back = namespace(&data_centre, namespace_name).await?.context("a namespace")?;
    assert_eq!(taken_back.uid(), live.uid());
    assert!(!taken_back.labels().contains_key(keys::ORPHANED));
    assert_eq!(credentials.login(None).await?.value("select a from t").await?, "resta");
    item(&data_centre, "Namespace", namespace_name, false).await?;
    item(&data_centre, "Database", dati, false).await?;
    // What its new status cannot remember, the server does.
    data_centre.comune_where(name, "told of the orphan again", lists_it).await?;
    // Declared again it is an orphan no more.
    let both = json!([database("dati", "Retain"), database("vecchia", "Retain")]);
    data_centre.apply(name, spec("Torna", 903_011, both)).await?;
    let comune = data_centre.ready(name).await?;
    assert!(!lists_it(&comune), "{:?}", comune.status);
    item(&data_centre, "Database", orphan, false).await?;
    data_centre.tidy_up(name).await
}
