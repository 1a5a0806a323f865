//! What one plan says in the cases that matter most: other people's namespaces, orphans, services that have a
//! problem or have to wait, and what may change nothing.

use std::collections::{BTreeMap, BTreeSet};

use conme_api::{keys, reasons};
use jiff::SignedDuration;
use serde_json::json;

use super::{
    OPERATOR, database_ready, edited, now, only_databases, valid, verdict,
    world::{Fate, GUARDS, World},
};
use crate::{
    Action, ChildRef, ChildState, DatabaseSeen, Desired, Kind, Observed, Plan, ValidComune, Wave, fixtures,
    plan::{plan, plan_abandoned},
};

const PRODUZIONE: &str = "dolo-produzione";
const COLLAUDO: &str = "dolo-collaudo";

fn settled(comune: &ValidComune) -> World {
    let mut world = World::with_databases(["protocollo"]);
    settle(&mut world, comune);
    world
}

fn settle(world: &mut World, comune: &ValidComune) {
    for _ in 0..5 {
        world.catch_up_everywhere();
        world.pass(comune, now(), || Fate::Fine);
    }
    assert!(plan(comune, &world.observe("dolo"), now()).is_empty());
}

fn planned(world: &World, comune: &ValidComune) -> Plan {
    plan(comune, &world.observe(&comune.name), now())
}

fn in_namespace(plan: &Plan, namespace: &str) -> Vec<String> {
    plan.actions().map(Action::at).filter(|at| at.home() == namespace).map(ToString::to_string).collect()
}

fn bodies(plan: &Plan) -> BTreeMap<ChildRef, Desired> {
    plan.actions()
        .filter_map(|action| match action {
            Action::Apply { desired, .. } => Some((desired.at.clone(), desired.clone())),
            Action::Delete { .. } => None,
        })
        .collect()
}

fn own_labels(istat: &str) -> serde_json::Value {
    json!({keys::MANAGED_BY: "conme", keys::COMUNE: "dolo", keys::ENVIRONMENT: "produzione", keys::ISTAT: istat})
}

#[test]
fn a_namespace_of_somebody_else_is_left_alone_and_the_rest_goes_on() {
    let comune = valid(&fixtures::full_comune());
    for (labels, expected) in [
        (json!({"team": "x"}), "exists and is not managed by Con.Me"),
        (json!({keys::COMUNE: "dolo"}), "exists and is not managed by Con.Me"),
        (json!({keys::MANAGED_BY: "helm", keys::COMUNE: "dolo"}), "exists and is not managed by Con.Me"),
        (json!({keys::MANAGED_BY: "conme", keys::COMUNE: "stra"}), "belongs to the Comune `stra`"),
        (own_labels("027099"), "ISTAT code 027099"),
    ] {
        let mut world = World::with_databases(["protocollo"]);
        world.put_foreign_namespace(PRODUZIONE, labels.clone(), json!({}));
        let plan = planned(&world, &comune);
        assert_eq!(plan.clashes.len(), 1, "{labels}");
        assert_eq!(plan.clashes[0].namespace, PRODUZIONE);
        assert!(plan.clashes[0].message.contains(expected), "{}", plan.clashes[0].message);
        assert_eq!(in_namespace(&plan, PRODUZIONE), Vec::<String>::new(), "{labels}");
        // The world panics when anything is written to it; the other environment gets everything.
        for _ in 0..4 {
            world.pass(&comune, now(), || Fate::Fine);
            world.catch_up_everywhere();
        }
        assert!(planned(&world, &comune).is_empty());
        for (kind, name) in GUARDS {
            assert!(world.objects.contains_key(&ChildRef::new(kind, COLLAUDO, name)));
        }
        assert!(world.objects.contains_key(&ChildRef::new(Kind::Deployment, COLLAUDO, "mappe")));
        let at = ChildRef::of_namespace(PRODUZIONE);
        assert_eq!(world.objects[&at].body["metadata"]["labels"], labels);
    }
}

#[test]
fn the_message_of_a_clash_names_the_command_that_hands_a_namespace_over() {
    let comune = valid(&fixtures::full_comune());
    let mut world = World::default();
    world.put_foreign_namespace(PRODUZIONE, json!({}), json!({}));
    let message = planned(&world, &comune).clashes[0].message.clone();
    assert!(
        message.contains("kubectl annotate namespace dolo-produzione conme.venis.it/adopt=dolo"),
        "{message}"
    );
}

#[test]
fn an_administration_without_istat_code_is_known_by_its_uid_or_else_by_kind_and_code_or_name() {
    let unione = |uid: &str, edit: fn(&mut serde_json::Value)| {
        let unione = edited(&fixtures::comune("dolo"), |comune| {
            comune["metadata"]["uid"] = json!(uid);
            comune["spec"]["entity"] =
                json!({"kind": "Unione", "displayName": "Unione A", "ipa": "UDA", "population": 9000});
            edit(comune);
        });
        valid(&unione)
    };
    let mut world = World::default();
    settle(&mut world, &unione("u1", |_| {}));
    let clashes = |comune: &ValidComune| planned(&world, comune).clashes;
    assert_eq!(clashes(&unione("u2", |_| {})), []);
    assert_eq!(clashes(&unione("u2", |u| u["spec"]["entity"]["displayName"] = json!("Unione B"))), []);
    assert_eq!(clashes(&unione("u2", |u| u["spec"]["entity"]["ipa"] = json!(null))), []);
    // Itself, whatever is corrected in its manifest.
    assert_eq!(clashes(&unione("u1", |u| u["spec"]["entity"]["ipa"] = json!("UDB"))), []);
    let others: [fn(&mut serde_json::Value); 4] = [
        |u| u["spec"]["entity"]["ipa"] = json!("UDB"),
        |u| {
            u["spec"]["entity"]["ipa"] = json!(null);
            u["spec"]["entity"]["displayName"] = json!("Unione B");
        },
        |u| u["spec"]["entity"]["kind"] = json!("CittaMetropolitana"),
        |u| {
            u["spec"]["entity"]["kind"] = json!("Comune");
            u["spec"]["entity"]["istat"] = json!("027012");
        },
    ];
    for (number, edit) in others.into_iter().enumerate() {
        let found = clashes(&unione("u2", edit));
        assert_eq!(found.len(), 1, "{number}");
        assert!(found[0].message.contains("\"Unione A\" (Unione)"), "{}", found[0].message);
        assert!(
            found[0].message.contains("kubectl annotate namespace dolo-produzione"),
            "{}",
            found[0].message
        );
    }

    // Applied again, it keeps the uid that its databases are marked with, and does not write it anew each time.
    settle(&mut world, &unione("u2", |_| {}));
    let at = ChildRef::of_namespace(PRODUZIONE);
    assert_eq!(world.objects[&at].body["metadata"]["annotations"][keys::COMUNE_UID], "u2,u1");
    settle(&mut world, &unione("u1", |_| {}));
    assert_eq!(world.objects[&at].body["metadata"]["annotations"][keys::COMUNE_UID], "u1,u2");
}

#[test]
fn cordoned_and_protected_are_written_on_every_namespace_and_come_off_again() {
    let mut world = settled(&valid(&fixtures::full_comune()));
    let marked = edited(&fixtures::full_comune(), |comune| {
        comune["spec"]["cordoned"] = json!(true);
        comune["spec"]["protected"] = json!(true);
    });
    let label = |world: &World, namespace: &str, key: &str| {
        world.objects[&ChildRef::of_namespace(namespace)].body["metadata"]["labels"][key].clone()
    };
    settle(&mut world, &valid(&marked));
    for namespace in [PRODUZIONE, COLLAUDO] {
        assert_eq!(label(&world, namespace, keys::CORDONED), "true");
        assert_eq!(label(&world, namespace, keys::PROTECTED), "true");
    }
    settle(&mut world, &valid(&fixtures::full_comune()));
    for namespace in [PRODUZIONE, COLLAUDO] {
        assert!(label(&world, namespace, keys::CORDONED).is_null());
        assert!(label(&world, namespace, keys::PROTECTED).is_null());
    }
}

#[test]
fn an_annotation_of_the_sad_hands_a_namespace_over() {
    let comune = valid(&fixtures::full_comune());
    for labels in
        [json!({"team": "x"}), json!({keys::MANAGED_BY: "conme", keys::COMUNE: "stra"}), own_labels("027099")]
    {
        let mut world = World::with_databases(["protocollo"]);
        world.put_foreign_namespace(PRODUZIONE, labels.clone(), json!({keys::ADOPT: "dolo"}));
        let at = ChildRef::of_namespace(PRODUZIONE);
        let uid = world.objects[&at].uid.clone();
        let plan = planned(&world, &comune);
        assert_eq!(plan.clashes, []);
        let action = plan.actions().find(|action| *action.at() == at).unwrap();
        let Action::Apply { uid: Some(asked), .. } = action else { panic!("{action:?}") };
        assert_eq!(*asked, uid, "exactly the namespace that was seen is taken over");
        settle(&mut world, &comune);
        assert_eq!(world.objects[&at].uid, uid);
    }
    // For another Comune the annotation means nothing.
    let mut world = World::default();
    world.put_foreign_namespace(PRODUZIONE, json!({}), json!({keys::ADOPT: "stra"}));
    assert_eq!(planned(&world, &comune).clashes.len(), 1);
}

#[test]
fn a_namespace_of_an_administration_that_had_the_same_name_is_never_taken_for_an_orphan() {
    // The old `dolo` had an environment that the new one, with another ISTAT code, does not declare.
    let old = settled(&valid(&fixtures::full_comune()));
    let new = edited(&fixtures::full_comune(), |comune| {
        comune["spec"]["entity"]["istat"] = json!("027099");
        comune["spec"]["environments"] = json!([{"name": "nuovo"}]);
        comune["spec"]["services"] = json!([]);
        comune["spec"]["databases"] = json!([]);
    });
    let new = valid(&new);
    let plan = planned(&old, &new);
    assert_eq!(in_namespace(&plan, PRODUZIONE), Vec::<String>::new());
    assert_eq!(in_namespace(&plan, COLLAUDO), Vec::<String>::new());
    assert!(!in_namespace(&plan, "dolo-nuovo").is_empty());
    assert_eq!(plan.clashes.len(), 2, "and a person is told: {:?}", plan.clashes);
    assert_eq!(plan.orphans, BTreeMap::new());
}

#[test]
fn an_environment_that_left_the_manifest_is_closed_kept_and_comes_back() {
    let full = fixtures::full_comune();
    let comune = valid(&full);
    let mut world = settled(&comune);
    let before = world.objects.clone();
    let shrunk = edited(&full, |comune| {
        comune["spec"]["environments"] = json!([{"name": "produzione", "share": 80}]);
        comune["spec"]["services"].as_array_mut().unwrap().pop();
    });
    let shrunk = valid(&shrunk);

    let plan = planned(&world, &shrunk);
    assert_eq!(plan.orphans, BTreeMap::from([(COLLAUDO.to_owned(), "2026-03-02T09:30:00Z".to_owned())]));
    settle(&mut world, &shrunk);
    let namespace = &world.objects[&ChildRef::of_namespace(COLLAUDO)].body["metadata"];
    assert_eq!(namespace["labels"][keys::ORPHANED], "true");
    assert_eq!(namespace["annotations"][keys::ORPHANED_AT], "2026-03-02T09:30:00Z");
    assert_eq!(namespace["labels"]["pod-security.kubernetes.io/enforce"], "baseline", "its level stays");
    let quota =
        &world.objects[&ChildRef::new(Kind::ResourceQuota, COLLAUDO, "conme-quota")].body["spec"]["hard"];
    assert!(quota.as_object().unwrap().len() > 10, "{quota}");
    assert!(quota.as_object().unwrap().values().all(|amount| amount == "0"), "{quota}");
    for (kind, name) in [
        (Kind::LimitRange, "conme-limits"),
        (Kind::NetworkPolicy, "conme-default-deny"),
        (Kind::NetworkPolicy, "conme-environment"),
        (Kind::RoleBinding, "conme-operator"),
        (Kind::RoleBinding, "conme-administrators"),
        (Kind::RoleBinding, "conme-viewers"),
    ] {
        let at = ChildRef::new(kind, COLLAUDO, name);
        assert_eq!(world.objects[&at].body, before[&at].body, "{at}");
    }
    assert!(!world.objects.contains_key(&ChildRef::new(Kind::Deployment, COLLAUDO, "mappe")));

    // Later, and after a restart: the same date, nothing to do.
    world.restart();
    let later = crate::plan::plan(&shrunk, &world.observe("dolo"), now() + SignedDuration::from_hours(50));
    assert!(later.is_empty());
    assert_eq!(later.orphans[COLLAUDO], "2026-03-02T09:30:00Z");

    settle(&mut world, &comune);
    let bodies = |objects: &BTreeMap<ChildRef, super::world::Live>| -> BTreeMap<ChildRef, serde_json::Value> {
        objects.iter().map(|(at, live)| (at.clone(), live.body.clone())).collect()
    };
    assert_eq!(bodies(&world.objects), bodies(&before));
}

#[test]
fn what_an_orphan_holds_is_not_waited_for_and_not_promised_twice() {
    let full = fixtures::full_comune();
    let world = settled(&valid(&full));
    let shrunk = valid(&edited(&full, |comune| {
        comune["spec"]["environments"] = json!([{"name": "produzione", "share": 100}]);
        comune["spec"]["services"].as_array_mut().unwrap().pop();
    }));
    // The orphan gave up its part, but for what stands in it.
    let mut observed = world.observe("dolo");
    let held =
        crate::capacity::Amounts::from([("count/configmaps".to_owned(), crate::amount::Amount::units(3))]);
    observed.quotas.insert(COLLAUDO.into(), crate::quota::QuotaSeen { used: held, ..Default::default() });
    let plan = plan(&shrunk, &observed, now());
    let at = ChildRef::new(Kind::ResourceQuota, PRODUZIONE, "conme-quota");
    let Some(Action::Apply { desired, .. }) = plan.actions().find(|action| *action.at() == at) else {
        panic!("the quota of the environment that is left grows: {plan:?}")
    };
    assert_eq!(desired.body["spec"]["hard"]["count/configmaps"], "197");
    assert_eq!(desired.body["spec"]["hard"]["count/jobs.batch"], "100");
    assert_eq!(plan.waits, []);
}

#[test]
fn an_orphan_that_is_seen_only_in_part_does_not_lose_its_isolation() {
    let full = fixtures::full_comune();
    let mut world = settled(&valid(&full));
    let shrunk = edited(&full, |comune| {
        comune["spec"]["environments"] = json!([{"name": "produzione", "share": 80}]);
        comune["spec"]["services"].as_array_mut().unwrap().pop();
    });
    let shrunk = valid(&shrunk);
    // Somebody has taken the label away that says which environment it is.
    let at = ChildRef::of_namespace(COLLAUDO);
    let labels = world.objects.get_mut(&at).unwrap().body["metadata"]["labels"].as_object_mut().unwrap();
    labels.remove(keys::ENVIRONMENT);
    let plan = planned(&world, &shrunk);
    let deleted: Vec<String> = plan
        .actions()
        .filter(|action| matches!(action, Action::Delete { .. }))
        .map(|action| action.at())
        .filter(|at| at.kind.is_guard())
        .map(ToString::to_string)
        .collect();
    assert_eq!(deleted, Vec::<String>::new());
    // The caches do not agree yet: the namespace is not in one of them.
    let mut observed = settled(&valid(&full)).observe("dolo");
    observed.namespaces.remove(COLLAUDO);
    let plan = crate::plan::plan(&shrunk, &observed, now());
    assert!(!plan.actions().any(|action| matches!(action, Action::Delete { at, .. } if at.kind.is_guard())));
}

#[test]
fn nothing_is_sent_into_a_namespace_that_is_being_deleted() {
    let comune = valid(&fixtures::full_comune());
    let mut world = settled(&comune);
    world.objects.get_mut(&ChildRef::of_namespace(PRODUZIONE)).unwrap().terminating = true;
    // Nor deleted from it: that happens by itself.
    let removed = edited(&fixtures::full_comune(), |comune| {
        comune["spec"]["services"].as_array_mut().unwrap().remove(0);
    });
    assert_eq!(in_namespace(&planned(&world, &valid(&removed)), PRODUZIONE), Vec::<String>::new());
    world.objects.retain(|at, _| at.kind == Kind::Namespace || at.namespace != PRODUZIONE);
    let plan = planned(&world, &comune);
    assert_eq!(in_namespace(&plan, PRODUZIONE), Vec::<String>::new(), "the API server would refuse it");
    for condition in [reasons::NAMESPACES_READY, reasons::NETWORK_ISOLATED, reasons::SERVICES_DEPLOYED] {
        assert!(plan.waits.iter().any(|wait| wait.condition == condition), "{condition}: {:?}", plan.waits);
    }
    assert!(plan.waits.len() < 6, "{:#?}", plan.waits);
    // When it is gone, everything is made again.
    world.objects.remove(&ChildRef::of_namespace(PRODUZIONE));
    world.enforced.remove(PRODUZIONE);
    settle(&mut world, &comune);
    assert!(world.objects.contains_key(&ChildRef::new(Kind::Deployment, PRODUZIONE, "portale")));
}

#[test]
fn an_orphan_that_is_being_deleted_is_let_go() {
    let full = fixtures::full_comune();
    let mut world = settled(&valid(&full));
    let shrunk = edited(&full, |comune| {
        comune["spec"]["environments"] = json!([{"name": "produzione", "share": 80}]);
        comune["spec"]["services"].as_array_mut().unwrap().pop();
    });
    let shrunk = valid(&shrunk);
    settle(&mut world, &shrunk);
    world.objects.get_mut(&ChildRef::of_namespace(COLLAUDO)).unwrap().terminating = true;
    let plan = planned(&world, &shrunk);
    assert!(plan.is_empty(), "{:?}", plan.actions().map(Action::at).collect::<Vec<_>>());
    assert_eq!((plan.waits, plan.orphans), (vec![], BTreeMap::new()));
}

#[test]
fn a_child_that_is_being_deleted_is_waited_for() {
    let comune = valid(&fixtures::full_comune());
    let mut world = settled(&comune);
    let at = ChildRef::new(Kind::Ingress, PRODUZIONE, "portale");
    world.objects.get_mut(&at).unwrap().terminating = true;
    let plan = planned(&world, &comune);
    assert!(plan.is_empty());
    assert_eq!(plan.waits.len(), 1);
    assert_eq!(plan.waits[0].condition, reasons::SERVICES_DEPLOYED);
    assert!(plan.waits[0].message.contains("Ingress dolo-produzione/portale is being deleted"));
}

#[test]
fn an_abandoned_comune_is_marked_once_and_nothing_else_is_touched() {
    let comune = valid(&fixtures::full_comune());
    let mut world = settled(&comune);
    world.put_foreign_namespace(
        "stra-produzione",
        json!({keys::MANAGED_BY: "conme", keys::COMUNE: "stra"}),
        json!({}),
    );
    world.put_foreign_namespace("x", json!({"team": "x"}), json!({}));
    // Not made by the operator, whatever its label says.
    world.put_foreign_namespace("y", json!({keys::COMUNE: "dolo"}), json!({}));
    let at = ChildRef::of_namespace(PRODUZIONE);
    let before = world.objects[&at].body.clone();
    let plan = plan_abandoned("dolo", &world.observe("dolo"), now());
    let touched: Vec<String> = plan.actions().map(|action| action.at().to_string()).collect();
    assert_eq!(touched, ["Namespace dolo-collaudo", "Namespace dolo-produzione"]);
    assert_eq!(plan.waves.keys().collect::<Vec<_>>(), [&Wave::Namespaces]);
    let desired = &bodies(&plan)[&at];
    let (metadata, before) = (&desired.body["metadata"], &before["metadata"]);
    for (key, value) in before["labels"].as_object().unwrap() {
        assert_eq!(&metadata["labels"][key], value, "{key} is given up");
    }
    assert_eq!(metadata["annotations"][keys::HOSTNAMES], "www.comune.dolo.ve.it");
    assert_eq!(metadata["labels"][keys::ORPHANED], "true");
    assert_eq!(metadata["annotations"][keys::ORPHANED_AT], "2026-03-02T09:30:00Z");

    for action in plan.actions() {
        let Action::Apply { desired, .. } = action else { panic!("{action:?}") };
        world.objects.get_mut(&desired.at).unwrap().body = desired.body.clone();
    }
    assert!(plan_abandoned("dolo", &world.observe("dolo"), now() + SignedDuration::from_hours(9)).is_empty());
}

#[test]
fn a_service_with_a_problem_keeps_what_it_has() {
    let full = fixtures::full_comune();
    let world = settled(&valid(&full));
    let objects: BTreeSet<&ChildRef> =
        world.objects.keys().filter(|at| at.name.starts_with("portale")).collect();
    assert_eq!(objects.len(), 9, "{objects:?}");
    for (what, edit) in [
        ("template", json!({"template": "ghost"})),
        ("version", json!({"version": "9.9"})),
        ("parameter", json!({"parameters": {"tema": "lago"}})),
    ] {
        let broken = edited(&full, |comune| {
            for (key, value) in edit.as_object().unwrap() {
                comune["spec"]["services"][0][key] = value.clone();
            }
        });
        let verdict = verdict(&broken);
        assert_eq!(verdict.problems.len(), 1, "{what}");
        let plan = planned(&world, &verdict.valid.unwrap());
        let touched: Vec<&ChildRef> =
            plan.actions().map(Action::at).filter(|at| objects.contains(at)).collect();
        assert_eq!(touched, Vec::<&ChildRef>::new(), "{what}");
    }
    // What is really gone from the manifest goes, but for its data.
    let removed = edited(&full, |comune| {
        comune["spec"]["services"].as_array_mut().unwrap().remove(0);
    });
    let plan = planned(&world, &valid(&removed));
    let deleted: BTreeSet<&ChildRef> =
        plan.actions().filter(|action| matches!(action, Action::Delete { .. })).map(Action::at).collect();
    let data = ChildRef::new(Kind::PersistentVolumeClaim, PRODUZIONE, "portale--dati");
    assert_eq!(deleted, objects.iter().copied().filter(|at| **at != data).collect());
}

#[test]
fn a_database_with_a_problem_does_not_cut_a_running_service_off() {
    let full = fixtures::full_comune();
    let world = settled(&valid(&full));
    let policy = ChildRef::new(Kind::NetworkPolicy, PRODUZIONE, "conme-databases");
    assert!(world.objects.contains_key(&policy));
    for edit in [
        json!({"extensions": ["plpython3u"]}),
        json!({"placement": {"shared": "ghost"}}),
        json!({"engine": "mariadb", "extensions": []}),
    ] {
        let broken = edited(&full, |comune| {
            for (key, value) in edit.as_object().unwrap() {
                comune["spec"]["databases"][0][key] = value.clone();
            }
        });
        let plan = planned(&world, &verdict(&broken).valid.unwrap());
        assert!(
            !plan.actions().any(|action| *action.at() == policy),
            "{edit}: the way to the database is closed"
        );
    }
    // A database that leaves the manifest takes the way to it along.
    let removed = edited(&full, |comune| {
        comune["spec"]["databases"] = json!([]);
        comune["spec"]["services"].as_array_mut().unwrap().remove(0);
    });
    let plan = planned(&world, &valid(&removed));
    assert!(plan.actions().any(|action| matches!(action, Action::Delete { at, .. } if *at == policy)));
}

#[test]
fn a_service_waits_for_its_database_but_a_deployed_one_does_not() {
    let comune = valid(&fixtures::full_comune());
    let portale = |plan: &Plan| plan.actions().any(|action| action.at().name == "portale");
    let failed = DatabaseSeen::Failed { reason: reasons::SERVER_UNREACHABLE, message: "no route".into() };
    for databases in [BTreeMap::new(), BTreeMap::from([("protocollo".to_owned(), failed)])] {
        let plan = plan(&comune, &Observed { databases, ..Observed::default() }, now());
        assert!(!portale(&plan));
        assert!(plan.actions().any(|action| action.at().name == "mappe"), "the others do not wait");
        let waits: Vec<(&str, &str)> = plan.waits.iter().map(|w| (w.condition, w.message.as_str())).collect();
        assert_eq!(
            waits,
            [(reasons::SERVICES_DEPLOYED, "the service `portale` waits for its database `protocollo`")]
        );
    }
    assert!(portale(&plan(&comune, &only_databases(&comune), now())));

    // The server dies: what is deployed stays, and still follows the manifest.
    let mut world = settled(&comune);
    world.databases.clear();
    let quiet = planned(&world, &comune);
    assert!(quiet.is_empty() && quiet.waits.is_empty(), "{:?}", quiet.waits);
    let more = edited(&recorded(1), |comune| comune["spec"]["services"][0]["replicas"] = json!(3));
    let plan = planned(&world, &valid(&more));
    assert!(portale(&plan));
    // Its pods are gone and the database, too: it keeps the rest and waits.
    world.objects.remove(&ChildRef::new(Kind::Deployment, PRODUZIONE, "portale"));
    let plan = planned(&world, &comune);
    assert!(plan.is_empty(), "{:?}", plan.actions().map(Action::at).collect::<Vec<_>>());
    assert_eq!(plan.waits.len(), 1);
}

/// A Comune with a database that is on record, with the generation of its credential.
fn recorded(generation: u32) -> conme_api::Comune {
    let mut comune = fixtures::full_comune();
    comune.status = Some(fixtures::parse(json!({"databases": [{
        "name": "protocollo", "ready": true, "reason": "AsDeclared", "message": "", "server": "pg-uno",
        "database": "dolo__protocollo", "secret": "dolo-produzione/db-protocollo",
        "provisionedAt": "2026-01-15T08:00:00Z",
        "credential": {"login": "dolo__protocollo__app", "issuedAt": "2026-01-15T08:00:00Z", "generation": generation},
    }]})));
    comune
}

#[test]
fn pods_restart_for_a_new_credential_and_for_nothing_else_about_it() {
    let at = ChildRef::new(Kind::Deployment, PRODUZIONE, "portale");
    let template = |comune: &ValidComune| {
        bodies(&plan(comune, &only_databases(comune), now()))[&at].body["spec"]["template"].clone()
    };
    let first = template(&valid(&fixtures::full_comune()));
    assert_eq!(template(&valid(&recorded(1))), first, "the first one is no reason to restart");
    let second = template(&valid(&recorded(2)));
    assert_ne!(second, first);
    assert_eq!(second["metadata"]["annotations"][keys::CREDENTIAL], "2");
    let mut without = second.clone();
    without["metadata"]["annotations"].as_object_mut().unwrap().remove(keys::CREDENTIAL);
    assert_eq!(without, first);
    // When it was issued, and what became of the one before, is nobody's business.
    let later = edited(&recorded(2), |comune| {
        let credential = &mut comune["status"]["databases"][0]["credential"];
        credential["issuedAt"] = json!("2026-05-05T08:00:00Z");
        credential["retiring"] = json!({"login": "x", "until": "2026-05-06T08:00:00Z"});
    });
    assert_eq!(template(&valid(&later)), second);
    // `mappe` reads no binding.
    let other = |comune: &ValidComune| {
        bodies(&plan(comune, &only_databases(comune), now()))
            [&ChildRef::new(Kind::Deployment, "dolo-collaudo", "mappe")]
            .body
            .clone()
    };
    assert_eq!(other(&valid(&recorded(2))), other(&valid(&recorded(1))));
}

#[test]
fn pods_are_left_alone_while_it_is_not_known_which_credential_they_hold() {
    let world = settled(&valid(&recorded(2)));
    let deployment = ChildRef::new(Kind::Deployment, PRODUZIONE, "portale");
    assert_eq!(
        world.objects[&deployment].body["spec"]["template"]["metadata"]["annotations"][keys::CREDENTIAL],
        "2"
    );
    // A backup was restored without the status, and the database has not been looked at yet.
    let mut unknown = world.observe("dolo");
    unknown.databases.clear();
    let lost = valid(&fixtures::full_comune());
    assert!(plan(&lost, &unknown, now()).is_empty());
    // It has been looked at, but is not on record yet.
    let mut seen = world.observe("dolo");
    if let Some(DatabaseSeen::Ready { details, .. }) = seen.databases.get_mut("protocollo") {
        let status = recorded(2).status.unwrap();
        details.credential.clone_from(&status.databases[0].credential);
    }
    assert!(plan(&lost, &seen, now()).is_empty());
    assert!(planned(&world, &valid(&recorded(2))).is_empty());
}

#[test]
fn the_same_manifest_gives_the_same_bytes() {
    let full = fixtures::full_comune();
    let all = |comune: &ValidComune| -> Vec<String> {
        bodies(&plan(comune, &only_databases(comune), now())).values().map(|d| d.body.to_string()).collect()
    };
    assert_eq!(all(&valid(&full)), all(&valid(&full)));
    // Nor does the instant matter, nor what the status says.
    let mut told = full.clone();
    told.status = Some(fixtures::parse(
        json!({"tier": "x", "orphans": [{"kind": "Namespace", "name": "x", "since": "y"}]}),
    ));
    told.metadata.generation = Some(99);
    told.metadata.resource_version = Some("77".into());
    assert_eq!(all(&valid(&full)), all(&valid(&told)));
}

#[test]
fn nothing_in_the_pods_depends_on_the_operator() {
    let comune = valid(&fixtures::full_comune());
    let everything = bodies(&plan(&comune, &only_databases(&comune), now()));
    let deployments: Vec<&Desired> = everything.values().filter(|d| d.at.kind == Kind::Deployment).collect();
    assert_eq!(deployments.len(), 2);
    for deployment in deployments {
        let template = deployment.body["spec"]["template"].to_string();
        for telling in [env!("CARGO_PKG_VERSION"), OPERATOR.0, OPERATOR.1, &deployment.hash, keys::APPLIED] {
            assert!(!template.contains(telling), "{telling} in {template}");
        }
    }
    // The operator moves to another namespace: its own bindings change and nothing else.
    let mut moved = comune.clone();
    moved.operator = ("elsewhere".into(), "somebody".into());
    let after = bodies(&plan(&moved, &only_databases(&moved), now()));
    let changed: Vec<String> = everything
        .iter()
        .filter(|(at, desired)| after[at].hash != desired.hash)
        .map(|(at, _)| at.to_string())
        .collect();
    assert_eq!(
        changed,
        ["RoleBinding dolo-collaudo/conme-operator", "RoleBinding dolo-produzione/conme-operator"]
    );
}

#[test]
fn a_change_of_one_service_changes_no_other_one() {
    let full = fixtures::full_comune();
    let before = bodies(&plan(&valid(&full), &only_databases(&valid(&full)), now()));
    for edit in [
        json!({"hostname": "nuovo.comune.dolo.ve.it"}),
        json!({"replicas": 5}),
        json!({"parameters": {"voci": "3"}}),
    ] {
        let changed = edited(&full, |comune| {
            for (key, value) in edit.as_object().unwrap() {
                comune["spec"]["services"][0][key] = value.clone();
            }
        });
        let changed = valid(&changed);
        let after = bodies(&plan(&changed, &only_databases(&changed), now()));
        let differ: BTreeSet<&ChildRef> =
            before.keys().filter(|at| after.get(at).is_none_or(|d| d.hash != before[at].hash)).collect();
        assert!(!differ.is_empty());
        for at in differ {
            let own = at.name == "portale" || *at == ChildRef::of_namespace(PRODUZIONE);
            assert!(own, "{edit} changes {at}");
        }
    }
}

#[test]
fn every_address_is_asked_for_once_and_carries_its_hash_and_labels() {
    let comune = valid(&fixtures::full_comune());
    let plan = plan(&comune, &only_databases(&comune), now());
    let all: Vec<&ChildRef> = plan.actions().map(Action::at).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    for (at, desired) in bodies(&plan) {
        let metadata = &desired.body["metadata"];
        assert_eq!(metadata["annotations"][keys::APPLIED], desired.hash.as_str(), "{at}");
        assert_eq!(metadata["labels"][keys::COMUNE], "dolo", "{at}");
        assert_eq!(metadata["labels"][keys::MANAGED_BY], "conme", "{at}");
        assert!(metadata["labels"][keys::COMPONENT].is_string(), "{at}");
        assert!(metadata.get("ownerReferences").is_none(), "{at}: a CRD that is deleted would take it along");
        assert_eq!(desired.body["kind"], at.kind.name());
        assert_eq!(
            desired.wave == Wave::Contents,
            !(at.kind.is_guard() && at.name.starts_with("conme-") || at.kind == Kind::Namespace)
                || is_access(&at),
            "{at}"
        );
    }
}

fn is_access(at: &ChildRef) -> bool {
    at.kind == Kind::RoleBinding && at.name != "conme-operator"
}

#[test]
fn a_hash_that_differs_is_one_apply_without_repair_and_a_change_by_somebody_is_one_with() {
    let comune = valid(&fixtures::full_comune());
    let world = settled(&comune);
    let mut observed = world.observe("dolo");
    let at = ChildRef::new(Kind::Service, PRODUZIONE, "portale");
    for (applied, state, repair) in [
        ("old", ChildState::Intact, false),
        ("", ChildState::Changed, true),
        ("old", ChildState::Changed, true),
    ] {
        let seen = observed.children.get_mut(&at).unwrap();
        (seen.applied, seen.state) = (applied.into(), state);
        let uid = seen.uid.clone();
        let plan = plan(&comune, &observed, now());
        let actions: Vec<&Action> = plan.actions().collect();
        let [Action::Apply { desired, uid: asked, repair: with }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!((&desired.at, asked, *with), (&at, &Some(uid), repair));
    }
}

#[test]
fn a_database_that_is_ready_lets_its_service_go() {
    let comune = valid(&fixtures::full_comune());
    let databases = BTreeMap::from([("protocollo".to_owned(), database_ready("protocollo"))]);
    let plan = plan(&comune, &Observed { databases, ..Observed::default() }, now());
    assert_eq!(plan.waits, []);
    let kinds: BTreeSet<Kind> = plan.actions().map(|action| action.at().kind).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), Kind::ALL, "the fixtures show every kind");
}
