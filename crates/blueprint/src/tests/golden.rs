//! Golden files: the whole of what is made for the full Comune of the fixtures, and what is told of it.
//!
//! After a wanted change: `INSTA_UPDATE=always cargo test -p conme-blueprint`, then read the difference.

use std::collections::BTreeMap;

use conme_api::Engine;
use insta::{Settings, assert_snapshot, assert_yaml_snapshot};
use serde_json::Value;

use super::{
    database_ready, now, only_databases, valid, verdict,
    world::{Fate, World},
};
use crate::{
    Action, Kind, Observed, Plan,
    build::{Binding, binding_secret},
    fixtures,
    plan::{plan, plan_abandoned},
    report,
};

fn golden(check: impl FnOnce()) {
    let mut settings = Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(check);
}

/// A plan as a person reads it.
fn listing(plan: &Plan) -> String {
    let mut lines = Vec::new();
    for (wave, actions) in &plan.waves {
        lines.push(format!("{wave:?}"));
        lines.extend(actions.iter().map(|action| match action {
            Action::Apply { desired, uid, repair } => {
                let what = match (uid, repair) {
                    (None, _) => "create",
                    (Some(_), false) => "change",
                    (Some(_), true) => "repair",
                };
                format!("  {what} {}", desired.at)
            }
            Action::Delete { at, .. } => format!("  delete {at}"),
        }));
    }
    lines.extend(plan.waits.iter().map(|wait| format!("wait ({}): {}", wait.condition, wait.message)));
    lines.extend(plan.clashes.iter().map(|clash| format!("clash: {}", clash.message)));
    lines.extend(plan.orphans.iter().map(|(name, since)| format!("orphan: {name} since {since}")));
    lines.join("\n")
}

#[test]
fn every_object_of_the_full_comune() {
    let comune = valid(&fixtures::full_comune());
    let mut by_kind: BTreeMap<Kind, Vec<Value>> = BTreeMap::new();
    for action in plan(&comune, &only_databases(&comune), now()).actions() {
        let Action::Apply { desired, .. } = action else { panic!("{action:?}") };
        by_kind.entry(desired.at.kind).or_default().push(desired.body.clone());
    }
    for (kind, bodies) in by_kind {
        golden(|| assert_yaml_snapshot!(format!("object-{}", kind.name()), bodies));
    }
}

#[test]
fn the_binding_secret() {
    let binding = Binding {
        engine: Engine::Postgresql,
        host: "db.example",
        port: 5433,
        database: "dolo__protocollo",
        username: "dolo__protocollo__app",
        password: "s3gret0",
        ca: Some("-----BEGIN CERTIFICATE-----\n"),
        credential: None,
    };
    let mariadb = Binding { engine: Engine::Mariadb, port: 3306, ..binding };
    for (name, binding) in [("object-Secret", binding), ("object-Secret-mariadb", mariadb)] {
        golden(|| {
            assert_yaml_snapshot!(name, binding_secret("dolo", "dolo-produzione", "protocollo", &binding));
        });
    }
}

#[test]
fn the_first_plan_and_the_plan_of_a_change_and_of_an_end() {
    let full = fixtures::full_comune();
    let comune = valid(&full);
    golden(|| assert_snapshot!("plan-of-nothing-yet", listing(&plan(&comune, &Observed::default(), now()))));

    let world = settled();
    let changed = super::edited(&full, |comune| {
        let spec = &mut comune["spec"];
        spec["environments"] =
            serde_json::json!([{"name": "produzione", "share": 30}, {"name": "formazione", "share": 70}]);
        spec["services"].as_array_mut().unwrap().remove(1);
        spec["services"][0]["replicas"] = serde_json::json!(1);
        spec.as_object_mut().unwrap().remove("viewers");
    });
    golden(|| {
        assert_snapshot!("plan-of-a-change", listing(&plan(&valid(&changed), &world.observe("dolo"), now())))
    });
    golden(|| {
        assert_snapshot!("plan-of-the-end", listing(&plan_abandoned("dolo", &world.observe("dolo"), now())))
    });
}

fn settled() -> World {
    let comune = valid(&fixtures::full_comune());
    let mut world = World::with_databases(["protocollo"]);
    for _ in 0..4 {
        world.catch_up_everywhere();
        world.pass(&comune, now(), || Fate::Fine);
    }
    world
}

#[test]
fn the_status_before_and_after() {
    let comune = fixtures::full_comune();
    let verdict = verdict(&comune);
    let valid = verdict.valid.as_ref().unwrap();
    let told =
        |observed: &Observed| report(&comune, &verdict, &plan(valid, observed, now()), &[], observed, now());
    golden(|| assert_yaml_snapshot!("status-of-nothing-yet", told(&Observed::default())));

    let mut observed = settled().observe("dolo");
    observed.databases = BTreeMap::from([("protocollo".to_owned(), database_ready("protocollo"))]);
    golden(|| assert_yaml_snapshot!("status-of-a-settled-comune", told(&observed)));
}
