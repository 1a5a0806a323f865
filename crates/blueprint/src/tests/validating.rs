//! Every kind of problem: where it is, what it stops, and that its message says what to do.

use std::{collections::BTreeMap, sync::Arc};

use conme_api::{Comune, ServiceTemplate, reasons};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Bench, edited, only_databases, valid};
use crate::{
    Action, Problem, Scope, fixtures, fixtures::parse, names, plan::plan, totals_of, validate::ValidService,
};

/// Scope, reason, path and what the message has to say, in this order.
type Expected<'a> = (Scope, &'a str, &'a str, &'a [&'a str]);

fn check(problems: &[Problem], expected: &[Expected<'_>]) {
    let found: Vec<(&Scope, &str, &str)> =
        problems.iter().map(|p| (&p.scope, p.reason, p.path.as_str())).collect();
    let wanted: Vec<(&Scope, &str, &str)> =
        expected.iter().map(|(scope, reason, path, _)| (scope, *reason, *path)).collect();
    assert_eq!(found, wanted, "{problems:#?}");
    for (problem, (.., words)) in problems.iter().zip(expected) {
        for word in *words {
            assert!(problem.message.contains(word), "{word:?} is not in: {}", problem.message);
        }
    }
}

fn service(name: &str) -> Scope {
    Scope::Service(name.into())
}

fn database(name: &str) -> Scope {
    Scope::Database(name.into())
}

/// The full Comune with some fields of one service changed; `null` takes a field away.
fn with_service(index: usize, fields: Value) -> Comune {
    edited(&fixtures::full_comune(), |comune| merge(&mut comune["spec"]["services"][index], fields))
}

fn with_database(fields: Value) -> Comune {
    edited(&fixtures::full_comune(), |comune| merge(&mut comune["spec"]["databases"][0], fields))
}

fn merge(object: &mut Value, fields: Value) {
    for (key, value) in fields.as_object().unwrap().clone() {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(&key);
        } else {
            object[key] = value;
        }
    }
}

/// The fixtures' templates with the first version of one of them changed.
fn with_version(bench: &mut Bench, template: &str, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::to_value(&*bench.templates[template]).unwrap();
    edit(&mut value["spec"]);
    let changed: ServiceTemplate = parse(value);
    bench.templates.insert(template.into(), Arc::new(changed));
}

#[test]
fn a_problem_of_a_service_says_where_and_what_there_is_and_stops_only_it() {
    let path = "spec.services[portale]";
    let cases: &[(Value, &str, &str, &[&str])] = &[
        (json!({"template": "portal"}), "template", reasons::INVALID, &["`portal`", "there are: gis, sito"]),
        (json!({"version": "2"}), "version", reasons::INVALID, &["`sito` has no version `2`", "it has: 2.0"]),
        (
            json!({"database": null}),
            "database",
            reasons::INVALID,
            &["`sito`", "needs a postgresql database", "spec.databases"],
        ),
        (
            json!({"parameters": {"colore": "blu"}}),
            "parameters",
            reasons::INVALID,
            &["`colore`", "there are: tema, voci"],
        ),
        (
            json!({"parameters": {"tema": "lago"}}),
            "parameters",
            reasons::INVALID,
            &["`tema` is `lago`", "mare, monte"],
        ),
        (
            json!({"parameters": {"voci": "0"}}),
            "parameters",
            reasons::INVALID,
            &["`voci` is 0", "less than 1"],
        ),
        (
            json!({"parameters": {"voci": "10"}}),
            "parameters",
            reasons::INVALID,
            &["`voci` is 10", "more than 9"],
        ),
        (
            json!({"parameters": {"voci": "sette"}}),
            "parameters",
            reasons::INVALID,
            &["`voci` is `sette`", "whole number"],
        ),
    ];
    for (fields, field, reason, words) in cases {
        let comune = with_service(0, fields.clone());
        let verdict = Bench::new().verdict(&comune);
        check(&verdict.problems, &[(service("portale"), reason, &format!("{path}.{field}"), words)]);
        let valid = verdict.valid.unwrap();
        let built: Vec<&str> = valid.services.iter().map(|service| service.spec.name.as_str()).collect();
        assert_eq!(built, ["mappe"], "{fields}");
        assert_eq!(valid.databases.len(), 1, "{fields}");
        assert_eq!(valid.environments.len(), 2, "{fields}");
    }
}

#[test]
fn the_bounds_of_a_parameter_are_allowed_values() {
    for voci in ["1", "9"] {
        let comune = with_service(0, json!({"parameters": {"voci": voci}}));
        assert_eq!(valid(&comune).services[0].values["voci"], voci);
    }
    let values = &valid(&fixtures::full_comune()).services[0].values;
    assert_eq!((values["tema"].as_str(), values["voci"].as_str()), ("mare", "7"), "given, and by default");
}

#[test]
fn a_required_parameter_and_a_truth_value_are_checked() {
    let mut bench = Bench::new();
    with_version(&mut bench, "gis", |spec| {
        spec["parameters"] = json!([
            {"name": "fonte", "type": "string", "description": "Indirizzo delle mappe", "required": true},
            {"name": "aperto", "type": "boolean", "description": "Senza accesso"},
        ]);
        spec["versions"][0]["env"] = json!([{"name": "FONTE", "value": "$(fonte) $(aperto)"}]);
    });
    let at = "spec.services[mappe].parameters";
    let verdict = bench.verdict(&with_service(1, json!({"parameters": {"aperto": "yes"}})));
    check(
        &verdict.problems,
        &[
            (service("mappe"), reasons::INVALID, at, &["`fonte` is required", "Indirizzo delle mappe"]),
            (service("mappe"), reasons::INVALID, at, &["`aperto` is `yes`", "true or false"]),
        ],
    );
    for aperto in ["true", "false"] {
        let comune = with_service(1, json!({"parameters": {"aperto": aperto, "fonte": "x"}}));
        assert_eq!(bench.verdict(&comune).problems, []);
    }
    let comune = with_service(1, json!({"parameters": {"fonte": "x"}}));
    assert_eq!(
        bench.verdict(&comune).valid.unwrap().services[1].values["aperto"],
        "",
        "neither given nor required"
    );
}

#[test]
fn what_a_template_needs_around_it_has_to_be_there() {
    // A template that takes another engine.
    let mut bench = Bench::new();
    with_version(&mut bench, "sito", |spec| spec["versions"][0]["requires"]["database"] = json!(["mariadb"]));
    let verdict = bench.verdict(&fixtures::full_comune());
    let words: &[&str] = &["`sito` needs a mariadb database", "`protocollo` is postgresql"];
    check(
        &verdict.problems,
        &[(service("portale"), reasons::INVALID, "spec.services[portale].database", words)],
    );

    // Either of two engines.
    with_version(&mut bench, "sito", |spec| {
        spec["versions"][0]["requires"]["database"] = json!(["mariadb", "postgresql"]);
    });
    assert_eq!(bench.verdict(&fixtures::full_comune()).problems, []);
    let verdict = bench.verdict(&with_service(0, json!({"database": null})));
    assert!(verdict.problems[0].message.contains("mariadb or postgresql"), "{:?}", verdict.problems);

    // One that reads a binding without saying that it needs a database.
    with_version(&mut bench, "sito", |spec| merge(&mut spec["versions"][0], json!({"requires": null})));
    let verdict = bench.verdict(&with_service(0, json!({"database": null})));
    let words: &[&str] = &["`sito` reads a database binding", "spec.databases"];
    check(
        &verdict.problems,
        &[(service("portale"), reasons::INVALID, "spec.services[portale].database", words)],
    );

    // One that has to run with more rights than its environment gives.
    let verdict = Bench::new().verdict(&with_service(1, json!({"environment": "produzione"})));
    let words: &[&str] = &["`gis` needs podSecurity: baseline", "`produzione` is restricted"];
    check(
        &verdict.problems,
        &[(service("mappe"), reasons::INVALID, "spec.services[mappe].environment", words)],
    );

    // One that speaks of something that nothing defines.
    let mut bench = Bench::new();
    with_version(&mut bench, "gis", |spec| {
        spec["versions"][0]["args"] = json!(["--porta=$(porta)", "$$(POD)"])
    });
    let verdict = bench.verdict(&fixtures::full_comune());
    let words: &[&str] = &["`gis` speaks of $(porta)", "correct the template"];
    check(&verdict.problems, &[(service("mappe"), reasons::INVALID, "spec.services[mappe].template", words)]);
}

#[test]
fn a_storage_class_that_does_not_exist_stops_what_keeps_data_and_nothing_else() {
    let mut bench = Bench::new();
    bench.storage_classes = Some(["lenta".to_owned(), "veloce".to_owned()].into());
    assert_eq!(bench.verdict(&fixtures::full_comune()).problems, []);
    bench.storage_classes = Some(["lenta".to_owned()].into());
    let verdict = bench.verdict(&fixtures::full_comune());
    let words = &["storage class `veloce`", "there are: lenta"];
    check(
        &verdict.problems,
        &[(service("portale"), reasons::INVALID, "spec.services[portale].template", words)],
    );
    let built: Vec<String> = verdict.valid.unwrap().services.into_iter().map(|s| s.spec.name).collect();
    assert_eq!(built, ["mappe"], "what keeps no data goes on");
}

#[test]
fn a_problem_of_a_database_stops_it_and_the_services_that_are_bound_to_it() {
    let bound: Expected<'_> = (
        service("portale"),
        reasons::INVALID,
        "spec.services[portale].database",
        &["`protocollo`", "cannot be provisioned"],
    );
    let cases: &[(Value, &str, &[&str])] = &[
        (json!({"placement": {"shared": "pg-due"}}), "placement.shared", &["`pg-due`", "there are: pg-uno"]),
        (
            json!({"placement": {"dedicated": {"instances": 3, "storage": "9Gi"}}}),
            "placement.dedicated",
            &["spec.network.apiServer in the DataCenter"],
        ),
        (
            json!({"extensions": ["pg_trgm", "postgis"]}),
            "extensions",
            &["`pg-uno`", "`postgis`", "it allows: pg_trgm, unaccent"],
        ),
        (json!({"maxSize": "50"}), "maxSize", &["`50` leaves no room", "at least 16Mi", "write 50Gi"]),
        (json!({"maxSize": 0}), "maxSize", &["`0` leaves no room"]),
        (json!({"maxSize": 16_777_215}), "maxSize", &["at least 16Mi"]),
    ];
    for (fields, field, words) in cases {
        let verdict = Bench::new().verdict(&with_database(fields.clone()));
        let path = format!("spec.databases[protocollo].{field}");
        check(&verdict.problems, &[(database("protocollo"), reasons::INVALID, &path, words), bound.clone()]);
        let valid = verdict.valid.unwrap();
        assert!(valid.databases.is_empty());
        assert_eq!(valid.services.len(), 1, "the other service is not concerned");
    }
    // The engine of the server and of the manifest differ; the template does not take this engine, either.
    let verdict = Bench::new().verdict(&with_database(json!({"engine": "mariadb", "extensions": null})));
    check(
        &verdict.problems,
        &[
            (
                database("protocollo"),
                reasons::INVALID,
                "spec.databases[protocollo].engine",
                &["`pg-uno` is postgresql, not mariadb"],
            ),
            (
                service("portale"),
                reasons::INVALID,
                "spec.services[portale].database",
                &["needs a postgresql database"],
            ),
        ],
    );
}

#[test]
fn rule_3_data_does_not_move_to_another_server_by_an_edit() {
    let mut bench = Bench::new();
    let mut data_center = fixtures::data_center();
    let mut second = data_center.spec.database_servers[0].clone();
    second.name = "pg-due".into();
    data_center.spec.database_servers.push(second);
    bench.set_data_center(Some(data_center));
    let mut comune = with_database(json!({"placement": {"shared": "pg-due"}}));
    assert_eq!(bench.verdict(&comune).problems, [], "what has never been provisioned may be anywhere");
    let told = |server: &str, provisioned: Option<&str>| -> Option<conme_api::ComuneStatus> {
        Some(parse(json!({"databases": [{
            "name": "protocollo", "ready": true, "reason": "AsDeclared", "message": "", "server": server,
            "database": "dolo__protocollo", "secret": "", "provisionedAt": provisioned,
        }]})))
    };
    comune.status = told("pg-uno", None);
    assert_eq!(bench.verdict(&comune).problems, []);
    comune.status = told("pg-uno", Some("2026-01-15T08:00:00Z"));
    let problems = bench.verdict(&comune).problems;
    let moved = problems.iter().find(|problem| problem.scope == database("protocollo")).unwrap();
    assert_eq!(
        (moved.reason, moved.path.as_str()),
        (reasons::MOVED, "spec.databases[protocollo].placement.shared")
    );
    assert!(
        moved.message.contains("`shared: pg-uno`") && moved.message.contains("migration"),
        "{}",
        moved.message
    );
    // A server that is not listed any more may have got another name: its identity decides, when it is asked.
    comune.status = told("pg-vecchio", Some("2026-01-15T08:00:00Z"));
    assert_eq!(bench.verdict(&comune).problems, []);
}

#[test]
fn a_host_name_has_one_service_within_a_comune() {
    for (index, name, hostname) in [
        (1, "mappe", "www.comune.dolo.ve.it"),
        // The name that the other one has by default.
        (0, "portale", "mappe.collaudo.dolo.servizi.example"),
    ] {
        let verdict = Bench::new().verdict(&with_service(index, json!({"hostname": hostname})));
        assert_eq!(verdict.valid.unwrap().services.len(), 0, "{name}");
        check(
            &verdict.problems,
            &[
                (
                    service("portale"),
                    reasons::CONFLICT,
                    "spec.services[portale].hostname",
                    &["`mappe`", "same host name"],
                ),
                (
                    service("mappe"),
                    reasons::CONFLICT,
                    "spec.services[mappe].hostname",
                    &["`portale`", "same host name"],
                ),
            ],
        );
    }
}

#[test]
fn two_services_never_share_the_claim_of_a_volume() {
    let comune = edited(&fixtures::full_comune(), |comune| {
        let services = &mut comune["spec"]["services"];
        let mut second = services[0].clone();
        second["name"] = json!("portale-dati");
        second["hostname"] = json!("due.comune.dolo.ve.it");
        services[1] = second;
    });
    let mut bench = Bench::new();
    // `portale` + `dati-x`, `portale-dati` + `x`.
    with_version(&mut bench, "sito", |spec| {
        let volumes = spec["versions"][0]["volumes"].as_array_mut().unwrap();
        volumes.push(json!({"name": "dati-x", "path": "/x", "kind": "Persistent", "size": "1Gi"}));
        volumes.push(json!({"name": "x", "path": "/y", "kind": "Persistent", "size": "1Gi"}));
    });
    let verdict = bench.verdict(&comune);
    let valid = verdict.valid.unwrap();
    let claims: Vec<String> = valid.services.iter().flat_map(persistent_claims).collect();
    let distinct: std::collections::BTreeSet<&String> = claims.iter().collect();
    assert_eq!(distinct.len(), claims.len(), "{claims:?}");
    assert_eq!((valid.services.len(), claims.len()), (2, 6));
    assert_eq!(verdict.problems, []);
}

fn persistent_claims(service: &ValidService) -> Vec<String> {
    let volumes = service.version.volumes.iter().filter(|v| v.kind == conme_api::VolumeKind::Persistent);
    volumes
        .map(|v| format!("{}/{}", service.namespace, names::volume_claim(&service.spec.name, &v.name)))
        .collect()
}

/// A Comune with a place in the order of seniority.
fn admitted(name: &str, istat: &str, when: &str) -> Comune {
    edited(&fixtures::comune(name), |comune| {
        comune["spec"]["entity"]["istat"] = json!(istat);
        comune["status"] = json!({"seniority": when});
    })
}

#[test]
fn what_another_comune_has_is_not_given_twice() {
    // Host names: only the service is concerned.
    let mut bench = Bench::new();
    let senior = edited(&admitted("stra", "027040", "2025-01-01T00:00:00Z"), |comune| {
        comune["spec"]["services"] =
            json!([{"name": "sito", "template": "gis", "hostname": "www.comune.dolo.ve.it"}]);
    });
    bench.register.put(&senior);
    let verdict = bench.verdict(&fixtures::full_comune());
    let words: &[&str] = &["www.comune.dolo.ve.it", "`stra`", "had it first"];
    check(
        &verdict.problems,
        &[(service("portale"), reasons::CONFLICT, "spec.services[portale].hostname", words)],
    );
    assert_eq!(verdict.valid.unwrap().services.len(), 1);
    // The senior one is not bothered.
    assert_eq!(bench.verdict(&senior).problems.iter().filter(|p| p.reason == reasons::CONFLICT).count(), 0);

    // A default host name is a claim, too.
    let mut bench = Bench::new();
    let senior = edited(&admitted("stra", "027040", "2025-01-01T00:00:00Z"), |comune| {
        comune["spec"]["services"] =
            json!([{"name": "x", "template": "gis", "hostname": "mappe.collaudo.dolo.servizi.example"}]);
    });
    bench.register.put(&senior);
    let verdict = bench.verdict(&fixtures::full_comune());
    let words: &[&str] = &["mappe.collaudo.dolo.servizi.example", "`stra`"];
    check(
        &verdict.problems,
        &[(service("mappe"), reasons::CONFLICT, "spec.services[mappe].hostname", words)],
    );

    // ISTAT code: everything stops.
    let mut bench = Bench::new();
    bench.register.put(&admitted("fosso", "027012", "2025-01-01T00:00:00Z"));
    let verdict = bench.verdict(&fixtures::full_comune());
    let words: &[&str] = &["027012", "`fosso`", "correct the code"];
    check(&verdict.problems, &[(Scope::Comune, reasons::CONFLICT, "spec.entity.istat", words)]);
    assert!(verdict.valid.is_none());

    // Namespace: `dolo-nuovo` + `x` and `dolo` + `nuovo-x`.
    let mut bench = Bench::new();
    let senior = edited(&admitted("dolo-nuovo", "027099", "2025-01-01T00:00:00Z"), |comune| {
        comune["spec"]["environments"] = json!([{"name": "x"}]);
    });
    bench.register.put(&senior);
    let junior = edited(&fixtures::comune("dolo"), |comune| {
        comune["spec"]["environments"] = json!([{"name": "produzione"}, {"name": "nuovo-x"}]);
    });
    let verdict = bench.verdict(&junior);
    let words: &[&str] = &["`dolo-nuovo-x`", "`dolo-nuovo`", "choose another name"];
    check(&verdict.problems, &[(Scope::Comune, reasons::CONFLICT, "spec.environments[nuovo-x]", words)]);
    assert!(verdict.valid.is_none());
}

#[test]
fn the_size_has_to_be_known_and_to_fit() {
    let of_spec = |fields: Value| {
        edited(&fixtures::comune("dolo"), |comune| {
            let entity = fields.get("population").cloned();
            if let Some(population) = entity {
                merge(&mut comune["spec"]["entity"], json!({"population": population}));
            }
            let mut rest = fields;
            rest.as_object_mut().unwrap().remove("population");
            merge(&mut comune["spec"], rest);
        })
    };
    let cases: &[(Value, &str, &str, &[&str])] = &[
        (
            json!({"tier": "enorme"}),
            reasons::INVALID,
            "spec.tier",
            &["`enorme`", "there are: piccolo, medio"],
        ),
        (
            json!({"population": 20001}),
            reasons::INVALID,
            "spec.entity.population",
            &["20001", "piccolo, medio"],
        ),
        (
            json!({"population": null}),
            reasons::INVALID,
            "spec.tier",
            &["size is unknown", "spec.entity.population", "piccolo, medio"],
        ),
        (
            json!({"quota": {"cpu": "1x", "memory": "1Gi"}}),
            reasons::INVALID,
            "spec.quota",
            &["`1x` is not an amount"],
        ),
        (
            json!({"quota": {"cpu": "130", "memory": "300Gi"}}),
            reasons::INSUFFICIENT_CAPACITY,
            "spec.quota",
            &["2 cpu, 44Gi memory missing", "lose its reserve"],
        ),
    ];
    for (fields, reason, path, words) in cases {
        let verdict = Bench::new().verdict(&of_spec(fields.clone()));
        check(&verdict.problems, &[(Scope::Comune, reason, path, words)]);
        assert!(verdict.valid.is_none(), "{fields}");
    }
    // Exactly what there is fits: 2 hosts of 16 cores, fourfold, beside the reserve.
    let verdict =
        Bench::new().verdict(&of_spec(json!({"quota": {"cpu": "128", "memory": "256Gi", "storage": "4Ti"}})));
    assert_eq!(verdict.problems, []);
    assert_eq!(verdict.valid.unwrap().tier, "explicit");
    for (population, tier) in [(1, "piccolo"), (5000, "piccolo"), (5001, "medio"), (20000, "medio")] {
        assert_eq!(
            Bench::new().verdict(&of_spec(json!({"population": population}))).valid.unwrap().tier,
            tier
        );
    }
    // A tier without an upper bound takes the rest.
    let mut data_center = fixtures::data_center();
    data_center.spec.tiers[1].max_population = None;
    let spec = of_spec(json!({"population": 900_000})).spec;
    assert_eq!(totals_of(&spec, &data_center).unwrap().0, "medio");
}

#[test]
fn without_a_data_centre_nothing_can_be_decided() {
    let mut bench = Bench::new();
    bench.set_data_center(None);
    let verdict = bench.verdict(&fixtures::full_comune());
    check(
        &verdict.problems,
        &[(Scope::Comune, reasons::NO_DATA_CENTER, "", &["no DataCenter", "apply one"])],
    );
    assert!(verdict.valid.is_none());
}

#[test]
fn all_problems_are_told_at_once() {
    let comune = edited(&fixtures::full_comune(), |comune| {
        comune["spec"]["tier"] = json!("enorme");
        merge(&mut comune["spec"]["databases"][0], json!({"extensions": ["postgis", "hstore"]}));
        merge(
            &mut comune["spec"]["services"][0],
            json!({"parameters": {"tema": "lago", "voci": "0", "x": "y"}}),
        );
        merge(&mut comune["spec"]["services"][1], json!({"template": "ghost"}));
    });
    let mut bench = Bench::new();
    bench.register.put(&admitted("fosso", "027012", "2025-01-01T00:00:00Z"));
    let verdict = bench.verdict(&comune);
    assert!(verdict.valid.is_none());
    check(
        &verdict.problems,
        &[
            (Scope::Comune, reasons::CONFLICT, "spec.entity.istat", &["`fosso`"]),
            (Scope::Comune, reasons::INVALID, "spec.tier", &["`enorme`"]),
            (
                database("protocollo"),
                reasons::INVALID,
                "spec.databases[protocollo].extensions",
                &["`postgis`"],
            ),
            (
                database("protocollo"),
                reasons::INVALID,
                "spec.databases[protocollo].extensions",
                &["`hstore`"],
            ),
            (
                service("portale"),
                reasons::INVALID,
                "spec.services[portale].database",
                &["cannot be provisioned"],
            ),
            (service("portale"), reasons::INVALID, "spec.services[portale].parameters", &["`x`"]),
            (service("portale"), reasons::INVALID, "spec.services[portale].parameters", &["`lago`"]),
            (service("portale"), reasons::INVALID, "spec.services[portale].parameters", &["`voci` is 0"]),
            (service("mappe"), reasons::INVALID, "spec.services[mappe].template", &["`ghost`"]),
        ],
    );
}

#[test]
fn an_increase_that_does_not_fit_is_told_and_the_old_quota_stays() {
    let comune = edited(&fixtures::comune("dolo"), |comune| {
        comune["spec"]["quota"] = json!({"cpu": "200", "memory": "16Gi", "storage": "200Gi"});
        comune["status"] = json!({
            "seniority": "2025-01-01T00:00:00Z",
            "quota": {"limit": {"cpu": "8", "memory": "16Gi", "storage": "200Gi"}},
        });
    });
    let verdict = Bench::new().verdict(&comune);
    assert_eq!(verdict.problems, []);
    let valid = verdict.valid.unwrap();
    assert_eq!(valid.missing.as_deref(), Some("72 cpu"));
    assert_eq!(valid.totals["cpu"], crate::amount::Amount::units(8));
}

#[test]
fn what_an_admitted_comune_was_promised_is_not_given_away_while_its_manifest_is_wrong() {
    let mut bench = Bench::new();
    let wrong = edited(&fixtures::comune("dolo"), |comune| {
        comune["spec"]["tier"] = json!("ghost");
        comune["status"] = json!({
            "seniority": "2025-01-01T00:00:00Z",
            "quota": {"limit": {"cpu": "100", "memory": "16Gi", "storage": "200Gi"}},
        });
    });
    bench.register.put(&wrong);
    let newcomer = edited(&fixtures::comune("stra"), |comune| {
        comune["spec"]["entity"]["istat"] = json!("027040");
        comune["spec"]["quota"] = json!({"cpu": "100", "memory": "16Gi"});
    });
    let verdict = bench.verdict(&newcomer);
    let words: &[&str] = &["72 cpu missing"];
    check(&verdict.problems, &[(Scope::Comune, reasons::INSUFFICIENT_CAPACITY, "spec.quota", words)]);
    // Its own manifest is still what is wrong with it.
    assert_eq!(bench.verdict(&wrong).problems[0].path, "spec.tier");
}

#[test]
fn environments_share_by_percentage_or_equally() {
    let cpu = |comune: &Comune| -> Vec<String> {
        let environments = valid(comune).environments;
        environments.iter().map(|e| e.part["cpu"].text(crate::amount::Notation::Decimal)).collect()
    };
    assert_eq!(cpu(&fixtures::full_comune()), ["6400m", "1600m"]);
    let equal = edited(&fixtures::comune("dolo"), |comune| {
        comune["spec"]["environments"] = json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]);
    });
    assert_eq!(cpu(&equal), ["2660m", "2660m", "2660m"], "rounded down to ten millicores");
}

/// What the kubelet makes of `$(NAME)` in a variable or an argument
/// (<https://github.com/kubernetes/kubernetes/blob/v1.36.0/third_party/forked/golang/expansion/expand.go>).
fn expanded_by_kubelet(text: &str, variables: &BTreeMap<&str, &str>) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < characters.len() {
        match (characters[at], characters.get(at + 1)) {
            ('$', Some('$')) => {
                out.push('$');
                at += 2;
            }
            ('$', Some('(')) => match characters[at..].iter().position(|c| *c == ')') {
                Some(length) => {
                    let name: String = characters[at + 2..at + length].iter().collect();
                    match variables.get(name.as_str()) {
                        Some(value) => out.push_str(value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    at += length + 1;
                }
                None => {
                    out.push_str("$(");
                    at += 2;
                }
            },
            (c, _) => {
                out.push(c);
                at += 1;
            }
        }
    }
    out
}

proptest! {
    /// Whatever an administration writes into a parameter, its container gets exactly this, and nothing of the
    /// container's other variables, such as its password.
    #[test]
    fn a_parameter_reaches_the_container_as_it_was_written(value in r"([$()A-Z]|DB_PASSWORD|\$\(DB_PASSWORD\)){0,6}") {
        let mut bench = Bench::new();
        with_version(&mut bench, "sito", |spec| {
            spec["parameters"][0] = json!({"name": "tema", "type": "string", "description": "Colori"});
            spec["versions"][0]["args"] = json!(["$(tema)", "--tema=$(tema)."]);
        });
        let comune = with_service(0, json!({"parameters": {"tema": value}}));
        let comune = bench.verdict(&comune).valid.unwrap();
        let plan = plan(&comune, &only_databases(&comune), super::now());
        let container = plan
            .actions()
            .find_map(|action| match action {
                Action::Apply { desired, .. } if desired.at.to_string() == "Deployment dolo-produzione/portale" => {
                    Some(desired.body["spec"]["template"]["spec"]["containers"][0].clone())
                }
                _ => None,
            })
            .unwrap();
        let variables = BTreeMap::from([("DB_PASSWORD", "secret")]);
        let expanded = |value: &Value| expanded_by_kubelet(value.as_str().unwrap(), &variables);
        prop_assert_eq!(expanded(&container["env"][0]["value"]), format!("{value} di Comune di Dolo"));
        prop_assert_eq!(expanded(&container["args"][0]), value.clone());
        prop_assert_eq!(expanded(&container["args"][1]), format!("--tema={value}."));
    }
}
