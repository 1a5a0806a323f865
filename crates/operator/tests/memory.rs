//! What a further Comune takes of the operator's memory, where nearly all of it is: in the index and in the register.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use conme_api::{Comune, DataCenter, ServiceTemplate};
use conme_blueprint::{Action, Register, Site, plan, report, validate};
use conme_cluster::Index;
use jiff::Timestamp;
use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The target is 20 KiB of the process: queues, figures and holes between pieces have the rest.
const AT_MOST: usize = 16 << 10;

fn read<T: DeserializeOwned>(path: &Path) -> T {
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Memory that is in use, with what the allocator adds to each piece, in bytes.
#[expect(unsafe_code, reason = "a call of the C library that only reads")]
fn in_use() -> usize {
    // SAFETY: it takes nothing and answers by value.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// As the API server has one, with two environments, people and three services.
fn comune(number: usize) -> Comune {
    let name = format!("comune-{number:04}");
    serde_json::from_value(json!({
        "apiVersion": "conme.venis.it/v1alpha1",
        "kind": "Comune",
        "metadata": {
            "name": name,
            "uid": format!("00000000-0000-4000-8000-{number:012}"),
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "entity": {"kind": "Comune", "displayName": format!("Comune {number}"),
                       "istat": (900_000 + number).to_string(), "population": 4000},
            "environments": [
                {"name": "produzione", "share": 60, "podSecurity": "baseline"},
                {"name": "collaudo", "share": 40, "podSecurity": "baseline"},
            ],
            "administrators": [{"kind": "Group", "name": format!("{name}-ced")},
                               {"kind": "User", "name": format!("tecnico@{name}.example")}],
            "viewers": [{"kind": "Group", "name": format!("{name}-segreteria")}],
            "services": [
                {"name": "accesso", "template": "spid-proxy", "environment": "produzione", "parameters": {
                    "contactEmail": format!("tecnico@{name}.example"),
                    "organizationUrl": format!("https://{name}.example")}},
                {"name": "prova", "template": "spid-check", "environment": "collaudo", "replicas": 2},
                {"name": "mappe", "template": "gis", "environment": "collaudo"},
            ],
        },
    }))
    .unwrap()
}

/// What the API server adds to an object.
fn live(mut body: Value, version: usize) -> Value {
    body["metadata"]["uid"] = format!("11111111-0000-4000-8000-{version:012}").into();
    body["metadata"]["resourceVersion"] = version.to_string().into();
    body["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    if body["kind"] == "ResourceQuota" {
        body["status"] = json!({"hard": body["spec"]["hard"], "used": body["spec"]["hard"]});
    }
    body
}

struct Operator {
    data_center: DataCenter,
    templates: BTreeMap<String, Arc<ServiceTemplate>>,
    register: Register,
    index: Index,
    written: usize,
}

impl Operator {
    /// Brings a Comune about: objects, status, and what the watch tells of it.
    fn converge(&mut self, mut comune: Comune) {
        self.register.put(&comune);
        for pass in 0..2 {
            let mut site = Site {
                data_center: Some(&self.data_center),
                templates: &self.templates,
                storage_classes: Some(&BTreeSet::from(["venis-standard".to_owned()])),
                register: &mut self.register,
                operator: ("conme-system", "conme-operator"),
            };
            let mut verdict = validate(&comune, &mut site);
            assert!(verdict.problems.is_empty(), "{:?}", verdict.problems);
            let valid = verdict.valid.as_mut().unwrap();
            valid.admitted_at = Some("2026-01-01T00:00:00Z".into());
            let observed = self.index.observe(&comune.name_any(), &[]);
            let planned = plan(valid, &observed, Timestamp::UNIX_EPOCH);
            let writes = planned.actions().filter(|action| matches!(action, Action::Apply { .. })).count();
            assert_eq!(writes > 0, pass == 0, "everything is written once: {writes} in pass {pass}");
            for action in planned.actions() {
                if let Action::Apply { desired, .. } = action {
                    self.written += 1;
                    let object = live(desired.body.clone(), self.written);
                    self.index.written(desired.at.kind, object.clone());
                    self.index.seen(desired.at.kind, object);
                }
            }
            let status = report(&comune, &verdict, &planned, &[], &observed, Timestamp::UNIX_EPOCH);
            comune.status = Some(status);
            self.register.put(&comune);
        }
    }
}

#[test]
fn a_further_comune_takes_no_more_memory_than_it_may() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let data_center: DataCenter = read(&examples.join("datacenter.yaml"));
    let templates = std::fs::read_dir(examples.join("catalogue")).unwrap().map(|entry| {
        let template: ServiceTemplate = read(&entry.unwrap().path());
        (template.name_any(), Arc::new(template))
    });
    let mut operator = Operator {
        templates: templates.collect(),
        data_center,
        register: Register::default(),
        index: Index::default(),
        written: 0,
    };
    // Room for all.
    let pools = &mut operator.data_center.spec.pools;
    pools.iter_mut().for_each(|pool| pool.hosts *= 1000);
    operator.register.set_data_center(Some(operator.data_center.clone()));
    let mut comuni = (0..300).map(comune);
    comuni.by_ref().take(100).for_each(|comune| operator.converge(comune));
    let (before, objects) = (in_use(), operator.index.len());
    comuni.for_each(|comune| operator.converge(comune));
    let each = (in_use() - before) / 200;
    let objects = (operator.index.len() - objects) / 200;
    println!("{objects} objects and {each} bytes for each further Comune");
    assert!(objects >= 30, "{objects}");
    assert!(each <= AT_MOST, "{each} bytes, at most {AT_MOST}");
    // Told apart for whoever has to find where it goes.
    let index = {
        let before = in_use();
        drop(std::mem::take(&mut operator.index));
        before - in_use()
    };
    println!("{} bytes of each are in the index", index / 300);
}
