//! What people are told, and that the news that matter are never hidden.

use std::collections::BTreeMap;

use conme_api::{Comune, ComuneStatus, reasons};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};

use super::{
    Bench, database_ready, edited, now, verdict,
    world::{Fate, World},
};
use crate::{
    ChildRef, DatabaseDetails, DatabaseSeen, Failure, Kind, Observed, Plan, PodsSeen, Stopped, Survey,
    Verdict, amount::Amount, fixtures, plan::plan, report, without_volatile,
};

/// One look at a Comune: everything that a report is made of.
struct Look {
    comune: Comune,
    verdict: Verdict,
    observed: Observed,
    failures: Vec<Failure>,
    now: Timestamp,
}

impl Look {
    /// A Comune for which everything has been made.
    fn settled(comune: Comune) -> Self {
        let verdict = verdict(&comune);
        let mut world = World::with_databases(["protocollo"]);
        for _ in 0..5 {
            world.catch_up_everywhere();
            world.pass(verdict.valid.as_ref().unwrap(), now(), || Fate::Fine);
        }
        let mut observed = world.observe("dolo");
        observed.databases = BTreeMap::from([("protocollo".to_owned(), database_ready("protocollo"))]);
        Self { comune, verdict, observed, failures: Vec::new(), now: now() }
    }

    fn plan(&self) -> Plan {
        self.verdict.valid.as_ref().map(|valid| plan(valid, &self.observed, self.now)).unwrap_or_default()
    }

    fn report(&self) -> ComuneStatus {
        report(&self.comune, &self.verdict, &self.plan(), &self.failures, &self.observed, self.now)
    }

    /// Stores a status, as the operator does, and lets time pass.
    fn store(&mut self) -> ComuneStatus {
        let status = self.report();
        self.comune.status = Some(status.clone());
        self.now += SignedDuration::from_mins(10);
        status
    }

    /// The manifest is changed.
    fn edit(&mut self, edit: impl FnOnce(&mut Value)) {
        self.comune = edited(&self.comune, |comune| {
            edit(comune);
            comune["metadata"]["generation"] = json!(comune["metadata"]["generation"].as_i64().unwrap() + 1);
        });
        self.verdict = verdict(&self.comune);
    }

    fn fail(&mut self, kind: Kind, name: &str) {
        let at = ChildRef::new(kind, "dolo-produzione", name);
        self.failures = vec![Failure { at, message: "etcdserver: request timed out".into() }];
    }

    fn fail_for_quota(&mut self, kind: Kind, name: &str, asked: &str) {
        self.fail(kind, name);
        self.failures[0].message = format!(
            "persistentvolumeclaims \"{name}\" is forbidden: exceeded quota: conme-quota, requested: {asked}, used: \
             requests.storage=0, limited: requests.storage=0"
        );
    }

    fn database(&mut self, reason: &'static str, message: &str) {
        let failed = DatabaseSeen::Failed { reason, message: message.into() };
        self.observed.databases.insert("protocollo".into(), failed);
    }
}

fn full() -> Look {
    Look::settled(fixtures::full_comune())
}

fn condition<'a>(status: &'a ComuneStatus, type_: &str) -> &'a Condition {
    status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
}

/// What holds for every report, whatever happened.
fn well_formed(status: &ComuneStatus) {
    let types: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(types, reasons::COMUNE_CONDITIONS);
    for condition in &status.conditions {
        assert!(["True", "False"].contains(&condition.status.as_str()), "{condition:?}");
        assert!(!condition.message.trim().is_empty(), "{condition:?}");
        assert!(condition.message.len() < 32_768, "{condition:?}");
        let reason = &condition.reason;
        let camel =
            reason.starts_with(|c: char| c.is_ascii_uppercase()) && reason.chars().all(char::is_alphanumeric);
        assert!(camel, "{condition:?}");
        assert_eq!(condition.observed_generation, status.observed_generation, "{condition:?}");
    }
    // Ready speaks for all that has to be as declared.
    let declared = [
        reasons::ADMITTED,
        reasons::NAMESPACES_READY,
        reasons::NETWORK_ISOLATED,
        reasons::DATABASES_READY,
        reasons::SERVICES_DEPLOYED,
    ];
    if declared.iter().any(|type_| condition(status, type_).status == "False") {
        assert_eq!(condition(status, reasons::READY).status, "False");
    }
}

fn ready(status: &ComuneStatus) -> (&str, &str, &str) {
    let ready = condition(status, reasons::READY);
    (&ready.status, &ready.reason, &ready.message)
}

#[test]
fn a_settled_comune_is_ready_and_stays_so_without_a_write() {
    let mut look = full();
    let status = look.store();
    well_formed(&status);
    assert_eq!(ready(&status), ("True", reasons::AS_DECLARED, "everything is as declared at generation 3"));
    assert!(status.conditions.iter().all(|condition| condition.status == "True"), "{:#?}", status.conditions);
    let summary = status.summary.clone().unwrap();
    assert_eq!((summary.environments.as_str(), summary.databases.as_str()), ("2", "1/1"));
    assert_eq!((summary.services.as_str(), summary.migrated.as_str()), ("2/2", "0/0"));
    assert_eq!((summary.cpu.as_str(), summary.memory.as_str()), ("0/8", "0/16Gi"));
    // Ten minutes later: not one character differs.
    assert_eq!(look.report(), status);
    // After a restart, before the databases have been looked at, nothing is known that would be news.
    look.observed.databases.clear();
    assert_eq!(look.report(), status);
    // But a manifest that has changed since is not confirmed by what was seen before it.
    look.edit(|comune| comune["spec"]["databases"][0]["extensions"] = json!(["unaccent"]));
    let status = look.report();
    assert_eq!(condition(&status, reasons::DATABASES_READY).reason, reasons::IN_PROGRESS);
}

#[test]
fn the_time_of_a_transition_moves_only_with_the_status() {
    let mut look = full();
    let first = look.store();
    let begin = condition(&first, reasons::SERVICES_DEPLOYED).last_transition_time.clone();
    assert_eq!(begin.0.to_string(), "2026-03-02T09:30:00Z", "whole seconds");
    look.fail(Kind::Deployment, "portale");
    let second = look.store();
    let broken = condition(&second, reasons::SERVICES_DEPLOYED);
    assert_eq!(broken.status, "False");
    assert_eq!(broken.last_transition_time.0.duration_since(begin.0), SignedDuration::from_mins(10));
    assert_eq!(
        condition(&second, reasons::NETWORK_ISOLATED).last_transition_time,
        begin,
        "it did not change"
    );
    // Another reason, the same status.
    look.failures.clear();
    look.edit(|comune| comune["spec"]["services"][0]["template"] = json!("ghost"));
    let third = look.store();
    let invalid = condition(&third, reasons::SERVICES_DEPLOYED);
    assert_eq!(
        (invalid.reason.as_str(), &invalid.last_transition_time),
        (reasons::INVALID, &broken.last_transition_time)
    );
    assert_eq!(invalid.observed_generation, Some(4));
}

#[test]
fn every_cause_shows_in_its_condition_and_in_ready() {
    type Edit = Box<dyn Fn(&mut Look)>;
    let foreign = |look: &mut Look| {
        let namespace = look.observed.namespaces.get_mut("dolo-produzione").unwrap();
        namespace.labels.insert(conme_api::keys::COMUNE.into(), "stra".into());
        look.observed.children.retain(|at, _| at.home() != "dolo-produzione");
        look.observed.pods.retain(|(namespace, _), _| namespace != "dolo-produzione");
    };
    let cases: Vec<(&str, Edit, &str, &str)> = vec![
        (
            reasons::ADMITTED,
            Box::new(|l| l.edit(|c| c["spec"]["tier"] = json!("enorme"))),
            reasons::INVALID,
            "spec.tier: there is no tier `enorme`",
        ),
        (
            reasons::ADMITTED,
            Box::new(|l| l.edit(|c| c["spec"]["quota"] = json!({"cpu": "999", "memory": "1Gi"}))),
            reasons::INSUFFICIENT_CAPACITY,
            "spec.quota: the data centre would lose its reserve: 871 cpu missing",
        ),
        (
            reasons::ADMITTED,
            Box::new(|l| {
                let mut bench = Bench::new();
                bench.set_data_center(None);
                l.verdict = bench.verdict(&l.comune);
            }),
            reasons::NO_DATA_CENTER,
            "no DataCenter",
        ),
        (
            reasons::ADMITTED,
            Box::new(|l| {
                l.store();
                l.edit(|c| c["spec"]["quota"] = json!({"cpu": "999", "memory": "16Gi", "storage": "200Gi"}));
            }),
            reasons::INSUFFICIENT_CAPACITY,
            "the old quota stays in force",
        ),
        (reasons::NAMESPACES_READY, Box::new(foreign), reasons::CONFLICT, "belongs to the Comune `stra`"),
        (reasons::NETWORK_ISOLATED, Box::new(foreign), reasons::CONFLICT, "belongs to the Comune `stra`"),
        (reasons::SERVICES_DEPLOYED, Box::new(foreign), reasons::CONFLICT, "belongs to the Comune `stra`"),
        (
            reasons::NAMESPACES_READY,
            Box::new(|l| l.fail(Kind::ResourceQuota, "conme-quota")),
            reasons::API_ERROR,
            "ResourceQuota dolo-produzione/conme-quota: etcdserver: request timed out",
        ),
        (
            reasons::NETWORK_ISOLATED,
            Box::new(|l| l.fail(Kind::NetworkPolicy, "conme-default-deny")),
            reasons::API_ERROR,
            "etcdserver",
        ),
        (
            reasons::SERVICES_DEPLOYED,
            Box::new(|l| l.fail(Kind::NetworkPolicy, "portale")),
            reasons::API_ERROR,
            "etcdserver",
        ),
        (
            reasons::SERVICES_DEPLOYED,
            Box::new(|l| l.fail(Kind::Ingress, "portale")),
            reasons::API_ERROR,
            "etcdserver",
        ),
        (
            reasons::SERVICES_DEPLOYED,
            Box::new(|l| {
                l.edit(|c| c["spec"]["quota"] = json!({"cpu": "8", "memory": "16Gi", "storage": "200Gi"}));
                let asked = "count/persistentvolumeclaims=1,limits.cpu=1,limits.memory=1Gi,requests.cpu=1,requests.storage=20Gi";
                l.fail_for_quota(Kind::PersistentVolumeClaim, "portale--dati", asked);
            }),
            reasons::QUOTA_EXCEEDED,
            "spec.quota.cpu, spec.quota.memory, spec.quota.objects[persistentvolumeclaims], spec.quota.storage: raise it, \
             no room for PersistentVolumeClaim dolo-produzione/portale--dati: ",
        ),
        (
            reasons::SERVICES_DEPLOYED,
            Box::new(|l| {
                l.fail_for_quota(Kind::PersistentVolumeClaim, "portale--dati", "requests.storage=20Gi")
            }),
            reasons::QUOTA_EXCEEDED,
            "spec.tier: raise it",
        ),
        (
            reasons::SERVICES_DEPLOYED,
            Box::new(|l| {
                l.fail_for_quota(Kind::PersistentVolumeClaim, "portale--dati", "requests.storage=20Gi");
                let other = l.failures[0].clone();
                l.fail(Kind::Ingress, "portale");
                l.failures.push(other);
            }),
            reasons::API_ERROR,
            "etcdserver: request timed out; spec.tier: raise it",
        ),
        (
            reasons::SERVICES_DEPLOYED,
            Box::new(|l| l.edit(|c| c["spec"]["services"][0]["template"] = json!("ghost"))),
            reasons::INVALID,
            "spec.services[portale].template: there is no ServiceTemplate `ghost`",
        ),
        (
            reasons::SERVICES_DEPLOYED,
            Box::new(|l| l.edit(|c| c["spec"]["services"][0]["replicas"] = json!(3))),
            reasons::IN_PROGRESS,
            "2 objects differ from the manifest",
        ),
        (
            reasons::NAMESPACES_READY,
            Box::new(|l| l.observed.namespaces.get_mut("dolo-collaudo").unwrap().terminating = true),
            reasons::WAITING,
            "dolo-collaudo is being deleted",
        ),
        (
            reasons::NETWORK_ISOLATED,
            Box::new(|l| l.edit(|c| c["spec"]["network"] = Value::Null)),
            reasons::IN_PROGRESS,
            "1 objects differ",
        ),
        (
            reasons::DATABASES_READY,
            Box::new(|l| l.database(reasons::DATABASE_FAILED, "role exists")),
            reasons::DATABASE_FAILED,
            "protocollo: role exists",
        ),
        (
            reasons::DATABASES_READY,
            Box::new(|l| l.database(reasons::DATA_MISSING, "it is gone")),
            reasons::DATA_MISSING,
            "protocollo: it is gone",
        ),
        (
            reasons::DATABASES_READY,
            Box::new(|l| l.observed.databases.clear()),
            reasons::IN_PROGRESS,
            "protocollo: it is being provisioned",
        ),
        (
            reasons::DATABASES_READY,
            Box::new(|l| l.edit(|c| c["spec"]["databases"][0]["extensions"] = json!(["postgis"]))),
            reasons::INVALID,
            "`postgis`",
        ),
    ];
    for (type_, edit, reason, words) in cases {
        let mut look = full();
        edit(&mut look);
        let status = look.report();
        well_formed(&status);
        let found = condition(&status, type_);
        assert_eq!(
            (found.status.as_str(), found.reason.as_str()),
            ("False", reason),
            "{type_}: {}",
            found.message
        );
        assert!(found.message.contains(words), "{type_}: {}", found.message);
        let (value, _, message) = ready(&status);
        assert_eq!(value, "False");
        // Ready tells the most fundamental cause, which is this one or explains it.
        if message.starts_with(type_) {
            assert_eq!(ready(&status).1, reason);
            assert!(message.contains(words), "{message}");
        } else {
            let fundamental = reasons::COMUNE_CONDITIONS.iter().position(|t| message.starts_with(t)).unwrap();
            assert!(
                fundamental < reasons::COMUNE_CONDITIONS.iter().position(|t| *t == type_).unwrap(),
                "{message}"
            );
        }
    }
}

#[test]
fn a_server_that_does_not_answer_is_told_in_its_own_words() {
    let mut look = full();
    look.store();
    look.database(reasons::SERVER_UNREACHABLE, "connection to pg-uno timed out");
    let status = look.report();
    well_formed(&status);
    assert_eq!(condition(&status, reasons::DATABASES_READY).reason, reasons::SERVER_UNREACHABLE);
    assert_eq!(
        ready(&status),
        ("False", reasons::DATABASE_FAILED, "DatabasesReady: protocollo: connection to pg-uno timed out")
    );
    // What is known of it stays on record: by it vanished data is told.
    let database = &status.databases[0];
    assert_eq!(database.system_identifier.as_deref(), Some("7301"));
    assert_eq!(database.provisioned_at.as_deref(), Some("2026-01-15T08:00:00Z"));
    assert_eq!(database.database, "dolo__protocollo");
    // Everything else goes on.
    for type_ in
        [reasons::NAMESPACES_READY, reasons::NETWORK_ISOLATED, reasons::SERVICES_DEPLOYED, reasons::AVAILABLE]
    {
        assert_eq!(condition(&status, type_).status, "True", "{type_}");
    }
}

/// Four databases, one of which has lost its data.
fn many_databases(look: &mut Look) {
    look.edit(|comune| {
        let databases: Vec<Value> = ["anagrafe", "tributi", "protocollo", "zone"]
            .into_iter()
            .map(|name| json!({"name": name, "engine": "postgresql", "placement": {"shared": "pg-uno"}}))
            .collect();
        comune["spec"]["databases"] = json!(databases);
    });
    for name in ["anagrafe", "tributi", "zone"] {
        let failed =
            DatabaseSeen::Failed { reason: reasons::SERVER_UNREACHABLE, message: "no answer ".repeat(120) };
        look.observed.databases.insert(name.into(), failed);
    }
    look.database(reasons::DATA_MISSING, "the database that was provisioned is gone");
}

#[test]
fn vanished_data_are_never_hidden() {
    type Edit = fn(&mut Look);
    let cases: [(&str, Edit); 7] = [
        ("nothing else", |_| {}),
        ("behind other databases, with long messages", many_databases),
        ("paused", |look| look.edit(|comune| comune["spec"]["paused"] = json!(true))),
        ("not admitted", |look| look.edit(|comune| comune["spec"]["tier"] = json!("enorme"))),
        ("a mistake in the same database", |look| {
            look.edit(|comune| comune["spec"]["databases"][0]["extensions"] = json!(["postgis"]));
        }),
        ("an API server that fails", |look| look.fail(Kind::Deployment, "portale")),
        ("a restart", |look| {
            look.store();
            look.observed.databases.clear();
        }),
    ];
    for (what, edit) in cases {
        let mut look = full();
        look.store();
        look.database(reasons::DATA_MISSING, "the database that was provisioned is gone");
        edit(&mut look);
        let status = look.report();
        well_formed(&status);
        let databases = condition(&status, reasons::DATABASES_READY);
        assert_eq!(
            (databases.status.as_str(), databases.reason.as_str()),
            ("False", reasons::DATA_MISSING),
            "{what}"
        );
        assert!(
            databases.message.contains("the database that was provisioned is gone"),
            "{what}: {}",
            databases.message
        );
        let database = status.databases.iter().find(|database| database.name == "protocollo").unwrap();
        assert_eq!((database.ready, database.reason.as_str()), (false, reasons::DATA_MISSING), "{what}");
        assert!(database.system_identifier.is_some(), "{what}: what is missing is not known any more");
    }
}

#[test]
fn a_paused_comune_is_told_as_it_is() {
    let mut look = full();
    look.store();
    look.edit(|comune| {
        comune["spec"]["paused"] = json!(true);
        comune["spec"]["services"][0]["replicas"] = json!(3);
    });
    let status = look.report();
    well_formed(&status);
    let (value, reason, message) = ready(&status);
    assert_eq!((value, reason), ("False", reasons::PAUSED));
    assert!(message.contains("spec.paused"), "{message}");
    let services = condition(&status, reasons::SERVICES_DEPLOYED);
    assert_eq!((services.status.as_str(), services.reason.as_str()), ("False", reasons::PAUSED));
    assert!(services.message.contains("2 objects differ"), "{}", services.message);
    assert_eq!(condition(&status, reasons::AVAILABLE).status, "True", "what runs is still told");
}

#[test]
fn a_namespace_of_somebody_else_is_not_counted_as_an_environment() {
    let mut look = full();
    let namespace = look.observed.namespaces.get_mut("dolo-produzione").unwrap();
    namespace.labels.insert(conme_api::keys::ISTAT.into(), "027099".into());
    let status = look.report();
    well_formed(&status);
    let names: Vec<&str> = status.namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
    assert_eq!(names, ["dolo-collaudo"]);
    assert_eq!(status.summary.unwrap().environments, "1");
}

#[test]
fn more_in_use_than_allowed_is_told_and_does_not_make_anything_unready() {
    let mut look = full();
    for (namespace, used) in [("dolo-produzione", 7), ("dolo-collaudo", 2)] {
        let quota = look.observed.quotas.get_mut(namespace).unwrap();
        quota.used = BTreeMap::from([
            ("requests.cpu".to_owned(), Amount::units(used)),
            ("limits.cpu".to_owned(), Amount::units(used + 1)),
            ("pods".to_owned(), Amount::units(20)),
        ]);
    }
    let status = look.report();
    well_formed(&status);
    let quota = status.quota.clone().unwrap();
    assert_eq!(quota.over_limit, ["cpu"], "9 of 8; 40 of 40 pods is not over");
    assert_eq!((quota.used["cpu"].as_str(), quota.limit["cpu"].as_str()), ("9", "8"));
    assert_eq!(quota.used["pods"], "40");
    assert_eq!(status.summary.clone().unwrap().cpu, "9/8");
    let (value, reason, message) = ready(&status);
    assert_eq!((value, reason), ("True", reasons::OVER_LIMIT));
    assert!(message.contains("more is in use than the quota allows (cpu)"), "{message}");
    assert!(message.contains("nothing new is admitted"), "{message}");
}

fn orphans(status: &ComuneStatus) -> Vec<(&str, &str, &str)> {
    status
        .orphans
        .iter()
        .map(|orphan| (orphan.kind.as_str(), orphan.name.as_str(), orphan.since.as_str()))
        .collect()
}

#[test]
fn what_is_kept_is_listed_with_its_first_date() {
    let mut look = full();
    look.store();
    let first = "2026-03-02T09:40:00Z";
    look.edit(|comune| {
        comune["spec"]["databases"] = json!([]);
        comune["spec"]["services"] = json!([]);
        comune["spec"]["environments"] = json!([{"name": "produzione"}]);
    });
    look.observed.databases.clear();
    let expected = [
        ("Namespace", "dolo-collaudo", first),
        ("Database", "pg-uno/dolo__protocollo", first),
        ("PersistentVolumeClaim", "dolo-produzione/portale--dati", first),
    ];
    assert_eq!(orphans(&look.store()), expected);
    // The namespace's own date is on the namespace; here nobody has written it yet.
    look.observed
        .namespaces
        .get_mut("dolo-collaudo")
        .unwrap()
        .annotations
        .insert(conme_api::keys::ORPHANED_AT.into(), first.into());
    for _ in 0..3 {
        let status = look.store();
        well_formed(&status);
        assert_eq!(orphans(&status), expected);
    }
    // The manifest is invalid for a while: the list stays.
    look.edit(|comune| comune["spec"]["tier"] = json!("enorme"));
    assert_eq!(orphans(&look.store()), expected);
    look.edit(|comune| {
        comune["spec"].as_object_mut().unwrap().remove("tier");
    });
    // The database comes back: it is no orphan as soon as it is there again, and not before.
    look.edit(|comune| {
        comune["spec"]["databases"] =
            json!([{"name": "protocollo", "engine": "postgresql", "placement": {"shared": "pg-uno"}}]);
    });
    assert_eq!(orphans(&look.store()), expected);
    look.observed.databases.insert("protocollo".into(), database_ready("protocollo"));
    let status = look.store();
    assert_eq!(orphans(&status), [expected[0], expected[2]]);
}

#[test]
fn a_database_that_leaves_while_the_manifest_is_invalid_is_still_listed() {
    let mut look = full();
    look.store();
    look.edit(|comune| {
        comune["spec"]["databases"] = json!([]);
        comune["spec"]["services"].as_array_mut().unwrap().remove(0);
        comune["spec"]["tier"] = json!("enorme");
    });
    look.observed.databases.clear();
    look.store();
    look.edit(|comune| {
        comune["spec"].as_object_mut().unwrap().remove("tier");
    });
    let status = look.store();
    let database = ("Database", "pg-uno/dolo__protocollo", "2026-03-02T09:40:00Z");
    assert!(orphans(&status).contains(&database), "{:?}", status.orphans);
}

#[test]
fn the_server_remembers_what_a_new_status_cannot_and_forgets_what_was_dropped() {
    let mut look = full();
    look.store();
    look.edit(|comune| {
        comune["spec"]["databases"] = json!([]);
        comune["spec"]["services"].as_array_mut().unwrap().remove(0);
        comune["status"] = json!(null);
    });
    look.observed.databases.clear();
    let survey = |at: Timestamp, databases: &[&str]| {
        let databases = databases.iter().map(|name| (format!("dolo__{name}"), (*name).to_owned()));
        BTreeMap::from([("pg-uno".to_owned(), Survey { at, databases: databases.collect() })])
    };
    let databases = |status: &ComuneStatus| {
        let names = orphans(status).into_iter().filter(|(kind, ..)| *kind == "Database");
        names.map(|(_, name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(databases(&look.report()), Vec::<String>::new(), "nobody remembers");
    look.observed.surveys = survey(now(), &["protocollo"]);
    assert_eq!(databases(&look.store()), ["pg-uno/dolo__protocollo"]);
    // A look from before it became an orphan proves nothing; a later one does.
    look.observed.surveys = survey(now(), &[]);
    assert_eq!(databases(&look.store()), ["pg-uno/dolo__protocollo"]);
    look.observed.surveys.clear();
    assert_eq!(databases(&look.store()), ["pg-uno/dolo__protocollo"], "a server that is down");
    look.observed.surveys = survey(look.now, &[]);
    assert_eq!(databases(&look.store()), Vec::<String>::new());
    // What is declared on this server is none; what has stayed on another one is.
    let declared = |server: &str| json!([{"name": "protocollo", "engine": "postgresql", "placement": {"shared": server}}]);
    look.observed.surveys = survey(look.now, &["protocollo"]);
    look.edit(|comune| comune["spec"]["databases"] = declared("pg-uno"));
    assert_eq!(databases(&look.report()), Vec::<String>::new());
    look.edit(|comune| comune["spec"]["databases"] = declared("pg-due"));
    assert_eq!(databases(&look.report()), ["pg-uno/dolo__protocollo"]);
}

#[test]
fn a_database_that_never_was_leaves_no_orphan() {
    let mut look = full();
    look.observed.databases.clear();
    look.store();
    look.edit(|comune| {
        comune["spec"]["databases"] = json!([]);
        comune["spec"]["services"].as_array_mut().unwrap().remove(0);
    });
    assert!(!orphans(&look.store()).iter().any(|(kind, ..)| *kind == "Database"));
}

#[test]
fn the_claim_of_a_service_that_cannot_be_built_is_no_orphan() {
    let mut look = full();
    look.edit(|comune| comune["spec"]["services"][0]["template"] = json!("ghost"));
    assert_eq!(orphans(&look.report()), []);
    // A claim that is no volume claim any more, but scratch space, is one.
    let mut look = full();
    let sito =
        look.verdict.valid.as_mut().unwrap().services.iter_mut().find(|s| s.spec.name == "portale").unwrap();
    sito.version.volumes[0].kind = conme_api::VolumeKind::Ephemeral;
    assert_eq!(
        orphans(&look.report()),
        [("PersistentVolumeClaim", "dolo-produzione/portale--dati", "2026-03-02T09:30:00Z")]
    );
}

#[test]
fn pods_that_are_not_up_are_named_and_do_not_make_anything_undeclared() {
    let mut look = full();
    let key = ("dolo-produzione".to_owned(), "portale".to_owned());
    look.observed.pods.insert(key.clone(), PodsSeen { desired: 3, ready: 1 });
    let status = look.report();
    well_formed(&status);
    let available = condition(&status, reasons::AVAILABLE);
    assert_eq!((available.status.as_str(), available.reason.as_str()), ("False", reasons::PODS_NOT_READY));
    assert_eq!(available.message, "portale has 1 of 3 pods ready");
    assert_eq!(ready(&status).0, "True");
    // Scaled to nothing is what was asked for.
    look.observed.pods.insert(key, PodsSeen { desired: 0, ready: 0 });
    assert_eq!(condition(&look.report(), reasons::AVAILABLE).status, "True");
}

#[test]
fn a_service_is_reached_under_its_address() {
    let status = full().report();
    let urls: Vec<Option<&str>> = status.services.iter().map(|service| service.url.as_deref()).collect();
    assert_eq!(
        urls,
        [Some("https://www.comune.dolo.ve.it/"), Some("https://mappe.collaudo.dolo.servizi.example/")]
    );
    let mut look = full();
    look.verdict.valid.as_mut().unwrap().ingress.cluster_issuer = None;
    assert_eq!(look.report().services[0].url.as_deref(), Some("http://www.comune.dolo.ve.it/"));
}

#[test]
fn workloads_without_a_classification_are_counted() {
    let mut look = full();
    look.edit(|comune| {
        comune["spec"]["sites"] = json!([{"name": "municipio", "uplinkMbps": 20}]);
        comune["spec"]["servers"] = json!([{
            "name": "srv", "site": "municipio", "kind": "physical", "os": {"product": "ubuntu", "version": "14.04"},
            "vcpus": 4, "memory": "16Gi", "disks": [{"name": "sda", "size": "500Gi"}],
            "workloads": [
                {"name": "a", "mode": "A", "disk": {"disk": "sda"}},
                {"name": "b", "mode": "A", "disk": {"disk": "sda"},
                    "classification": {"class": "ordinario", "act": "det. 12/2026", "date": "2026-03-02"}},
            ],
        }]);
    });
    let status = look.report();
    well_formed(&status);
    assert_eq!(status.summary.clone().unwrap().migrated, "0/2");
    let migrated = condition(&status, reasons::SERVERS_MIGRATED);
    assert_eq!((migrated.status.as_str(), migrated.reason.as_str()), ("False", reasons::NOT_STARTED));
    assert!(
        migrated.message.contains("1 have no classification and may not migrate"),
        "{}",
        migrated.message
    );
    assert_eq!(ready(&status).0, "True", "it is apart from what is declared");
}

#[test]
fn what_moves_by_itself_is_ignored_and_nothing_else() {
    let settled = full().report();
    let value = serde_json::to_value(&settled).unwrap();
    let moving: Vec<String> = leaves(&value, "")
        .into_iter()
        .filter(|path| {
            let mut changed = value.clone();
            let leaf = changed.pointer_mut(path).unwrap();
            *leaf = match leaf {
                Value::String(text) if text.ends_with('Z') => json!("1999-01-01T00:00:00Z"),
                Value::String(_) => json!("another"),
                Value::Number(_) => json!(77),
                Value::Bool(value) => json!(!*value),
                other => panic!("{other}"),
            };
            let changed: ComuneStatus = fixtures::parse(changed);
            without_volatile(&changed) == without_volatile(&settled)
        })
        .filter(|path| !path.starts_with("/quota/used/"))
        .collect();
    assert_eq!(
        moving,
        [
            "/conditions/6/message",
            "/services/0/desired",
            "/services/0/ready",
            "/services/1/desired",
            "/services/1/ready",
            "/summary/cpu",
            "/summary/memory",
        ]
    );
    assert_eq!(settled.conditions[6].type_, reasons::AVAILABLE);
    // Use moves; that it is beyond the limit is news.
    let mut more = settled.clone();
    more.quota.as_mut().unwrap().used.insert("cpu".into(), "3".into());
    assert_eq!(without_volatile(&more), without_volatile(&settled));
    more.quota.as_mut().unwrap().over_limit.push("cpu".into());
    assert_ne!(without_volatile(&more), without_volatile(&settled));
}

#[test]
fn how_much_is_missing_moves_by_itself_and_what_is_missing_does_not() {
    let waiting = |cpu: &str, memory: &str| {
        let mut look = full();
        look.edit(|c| c["spec"]["quota"] = json!({"cpu": cpu, "memory": memory}));
        look.report()
    };
    let (before, after) = (waiting("999", "1Gi"), waiting("998", "1Gi"));
    assert_eq!(ready(&before).1, reasons::INSUFFICIENT_CAPACITY);
    assert!(ready(&before).2.contains("871 cpu missing"), "{}", ready(&before).2);
    assert_ne!(before, after);
    assert_eq!(without_volatile(&before), without_volatile(&after));
    assert_ne!(without_volatile(&before), without_volatile(&waiting("999", "99999Gi")));
}

fn leaves(value: &Value, path: &str) -> Vec<String> {
    let below = |key: String, value: &Value| {
        leaves(value, &format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")))
    };
    match value {
        Value::Object(map) => map.iter().flat_map(|(key, value)| below(key.clone(), value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(i, value)| below(i.to_string(), value)).collect()
        }
        _ => vec![path.to_owned()],
    }
}

#[test]
fn the_first_admission_is_remembered() {
    let mut look = full();
    assert_eq!(look.store().seniority.as_deref(), Some("2026-03-02T09:30:00Z"));
    assert_eq!(look.store().seniority.as_deref(), Some("2026-03-02T09:30:00Z"));
    // Who is not admitted has none, but does not lose the one it has.
    look.edit(|comune| comune["spec"]["tier"] = json!("enorme"));
    let status = look.store();
    assert_eq!(status.seniority.as_deref(), Some("2026-03-02T09:30:00Z"));
    assert_eq!(status.tier.as_deref(), Some("medio"), "the one in force");
    assert!(status.quota.is_some() && status.namespaces.len() == 2 && status.services.len() == 2);
    let refused = edited(&fixtures::full_comune(), |comune| comune["spec"]["tier"] = json!("enorme"));
    let verdict = verdict(&refused);
    let status = report(&refused, &verdict, &Plan::default(), &[], &Observed::default(), now());
    well_formed(&status);
    assert_eq!(status.seniority, None);
}

#[test]
fn problems_of_services_are_told_also_when_the_whole_is_stopped() {
    let comune = edited(&fixtures::full_comune(), |comune| {
        comune["spec"]["tier"] = json!("enorme");
        comune["spec"]["services"][1]["template"] = json!("ghost");
    });
    let status = report(&comune, &verdict(&comune), &Plan::default(), &[], &Observed::default(), now());
    well_formed(&status);
    assert!(condition(&status, reasons::ADMITTED).message.contains("`enorme`"));
    assert!(condition(&status, reasons::SERVICES_DEPLOYED).message.contains("`ghost`"));
}

fn with_details(look: &mut Look, details: DatabaseDetails) {
    let Some(DatabaseSeen::Ready { details: known, .. }) = look.observed.databases.get_mut("protocollo")
    else {
        panic!("not ready")
    };
    **known = details;
}

#[test]
fn a_database_is_told_before_it_is_full_and_when_it_is() {
    const GIB: u64 = 1 << 30;
    let mut look = full();
    let of = |size_bytes: u64, stopped: Stopped| DatabaseDetails {
        size_bytes,
        max_bytes: Some(50 * GIB),
        stopped,
        ..DatabaseDetails::default()
    };
    with_details(&mut look, of(44 * GIB, Stopped::No));
    let status = look.report();
    assert_eq!(
        (status.databases[0].reason.as_str(), status.databases[0].size.as_deref()),
        ("AsDeclared", Some("44Gi/50Gi"))
    );
    with_details(&mut look, of(45 * GIB, Stopped::No));
    let status = look.report();
    let told = condition(&status, reasons::DATABASES_READY);
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("True", reasons::AS_DECLARED));
    assert!(
        told.message.contains("45Gi of 50Gi") && told.message.contains("raise maxSize"),
        "{}",
        told.message
    );
    assert_eq!(status.databases[0].reason, reasons::DATABASE_NEARLY_FULL);
    for (stopped, word) in [
        (Stopped::ReadOnly, "VACUUM FULL"),
        (Stopped::DeleteOnly, "may read and delete"),
        (Stopped::Closed, "cannot log in"),
    ] {
        with_details(&mut look, of(51 * GIB, stopped));
        let status = look.report();
        well_formed(&status);
        for type_ in [reasons::DATABASES_READY, reasons::READY] {
            let told = condition(&status, type_);
            assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", reasons::DATABASE_FULL));
            assert!(told.message.contains(word) && told.message.contains("51Gi of 50Gi"), "{}", told.message);
        }
    }
    // Right after a start that still holds.
    let before = look.store();
    look.observed.databases.clear();
    assert_eq!(look.report().databases, before.databases);
}

#[test]
fn a_size_is_told_anew_only_when_it_is_another() {
    const MIB: u64 = 1 << 20;
    let mut look = full();
    let mut told = |bytes: u64, max_bytes: Option<u64>| {
        with_details(
            &mut look,
            DatabaseDetails { size_bytes: bytes, max_bytes, ..DatabaseDetails::default() },
        );
        look.store().databases[0].size.clone().unwrap()
    };
    assert_eq!(told(8 * MIB - 1, None), "7Mi");
    assert_eq!(told(8 * MIB + 1, None), "7Mi", "it has hardly moved");
    assert_eq!(told(9 * MIB, None), "9Mi");
    assert_eq!(told(8 * MIB, None), "8Mi");
    assert_eq!(told(8 * MIB, Some(50 * MIB)), "8Mi/50Mi");
    assert_eq!(told(8 * MIB, Some(60 * MIB)), "8Mi/60Mi");
}

#[test]
fn the_credential_stays_on_record_whatever_happens() {
    let mut look = full();
    let credential: conme_api::CredentialStatus = fixtures::parse(json!({
        "login": "dolo__protocollo__app2", "issuedAt": "2026-03-01T00:00:00Z", "generation": 2,
        "retiring": {"login": "dolo__protocollo__app", "until": "2026-03-02T00:00:00Z"},
    }));
    with_details(
        &mut look,
        DatabaseDetails {
            credential: Some(credential.clone()),
            retirement: Some("the login before ends soon".into()),
            ..DatabaseDetails::default()
        },
    );
    let before = look.store();
    assert_eq!(before.databases[0].credential.as_ref(), Some(&credential));
    assert!(
        before.databases[0].message.ends_with("; the login before ends soon"),
        "{:?}",
        before.databases[0]
    );
    look.database(reasons::SERVER_UNREACHABLE, "no route");
    assert_eq!(look.store().databases[0].credential.as_ref(), Some(&credential));
    look.observed.databases.clear();
    assert_eq!(look.store().databases[0].credential.as_ref(), Some(&credential));
    // Known from the status only: word by word what was told.
    let mut look = full();
    look.comune.status = Some(before.clone());
    with_details(&mut look, DatabaseDetails { as_told: true, ..DatabaseDetails::default() });
    assert_eq!(look.report().databases, before.databases);
}

#[test]
fn rule_3_where_the_data_is_stays_on_record_when_the_manifest_names_another_server() {
    let mut look = full();
    let before = look.store();
    look.edit(|comune| comune["spec"]["databases"][0]["placement"]["shared"] = json!("pg-altro"));
    look.database(reasons::MOVED, "it is elsewhere");
    for _ in 0..2 {
        let status = look.store();
        let told = &status.databases[0];
        assert_eq!((told.ready, told.server.as_str()), (false, "pg-uno"));
        assert_eq!(told.provisioned_at, before.databases[0].provisioned_at);
        look.observed.databases.clear();
    }
}
