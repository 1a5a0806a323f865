//! What is written: Comuni, and the objects that they become by the operator's own functions.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use conme_api::{Comune, DataCenter, ServiceTemplate};
use conme_blueprint::{Action, ChildRef, Observed, Register, Site, plan, validate};
use conme_testbed::install::NAMESPACE;
use jiff::Timestamp;
use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Storage class of the local data centre.
const STORAGE_CLASS: &str = "venis-standard";
/// ISTAT codes from here on belong to no municipality.
const FIRST_ISTAT: usize = 900_000;

/// Volumes that a Comune claims.
pub const VOLUMES_EACH: usize = 2;
/// Pods that a Comune has.
pub const PODS_EACH: usize = 4;

/// A Comune of invention: two environments, administrators and viewers, three services of the catalogue. The databases
/// come later, as they are measured apart.
pub fn comune(prefix: &str, number: usize) -> Value {
    let name = format!("{prefix}-{number:04}");
    json!({
        "apiVersion": "conme.venis.it/v1alpha1",
        "kind": "Comune",
        "metadata": {"name": name},
        "spec": {
            "entity": {
                "kind": "Comune",
                "displayName": format!("Comune {prefix} {number}"),
                "istat": (FIRST_ISTAT + offset(prefix) + number).to_string(),
                "population": 4000,
            },
            "environments": [
                {"name": "produzione", "share": 60, "podSecurity": "baseline"},
                {"name": "collaudo", "share": 40, "podSecurity": "baseline"},
            ],
            "administrators": [
                {"kind": "Group", "name": format!("{name}-ced")},
                {"kind": "User", "name": format!("tecnico@{name}.example")},
            ],
            "viewers": [{"kind": "Group", "name": format!("{name}-segreteria")}],
            "services": [
                {"name": "accesso", "template": "spid-proxy", "environment": "produzione", "parameters": {
                    "contactEmail": format!("tecnico@{name}.example"),
                    "organizationUrl": format!("https://{name}.example"),
                }},
                {"name": "prova", "template": "spid-check", "environment": "collaudo", "replicas": 2},
                {"name": "mappe", "template": "gis", "environment": "collaudo"},
            ],
        },
    })
}

/// Each prefix has codes of its own.
fn offset(prefix: &str) -> usize {
    match prefix {
        "comune" => 0,
        "folla" => 20_000,
        "prova" => 40_000,
        _ => 60_000,
    }
}

/// One shared PostgreSQL database, as it is added to a Comune.
pub fn databases() -> Value {
    json!([{
        "name": "archivio",
        "engine": "postgresql",
        "placement": {"shared": "pg-venis-1"},
        "environment": "produzione",
        "connectionLimit": 10,
        "maxSize": "1Gi",
    }])
}

/// The data centre and the catalogue that Comuni are built with.
pub struct Surroundings {
    data_center: DataCenter,
    templates: BTreeMap<String, Arc<ServiceTemplate>>,
}

/// One object to be written.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its address.
    pub at: ChildRef,
    /// The whole of it.
    pub body: Value,
}

impl Surroundings {
    /// As the checkout's examples have them.
    ///
    /// # Errors
    /// When an example cannot be read.
    pub fn of_checkout(checkout: &Path) -> Result<Self> {
        let data_center = read(&checkout.join("examples/datacenter.yaml"))?;
        let mut templates = BTreeMap::new();
        for entry in std::fs::read_dir(checkout.join("examples/catalogue"))? {
            let template: ServiceTemplate = read(&entry?.path())?;
            templates.insert(template.name_any(), Arc::new(template));
        }
        Ok(Self { data_center, templates })
    }

    /// The data centre, to be changed.
    pub fn data_center_mut(&mut self) -> &mut DataCenter {
        &mut self.data_center
    }

    /// Everything that the operator makes of Comuni that nothing exists of yet.
    ///
    /// # Errors
    /// When a Comune would not be built as a whole.
    pub fn objects(&self, comuni: &[Value]) -> Result<Vec<Object>> {
        let storage_classes = BTreeSet::from([STORAGE_CLASS.to_owned()]);
        let mut objects = Vec::new();
        for (number, manifest) in comuni.iter().enumerate() {
            let mut comune: Comune = serde_json::from_value(manifest.clone())?;
            comune.metadata.uid = Some(format!("00000000-0000-4000-8000-{number:012}"));
            comune.metadata.generation = Some(1);
            // Alone in the register: there is room for all, and none asks for what another has.
            let mut register = Register::default();
            register.set_data_center(Some(self.data_center.clone()));
            register.put(&comune);
            let mut site = Site {
                data_center: Some(&self.data_center),
                templates: &self.templates,
                storage_classes: Some(&storage_classes),
                register: &mut register,
                operator: (NAMESPACE, "conme-operator"),
            };
            let verdict = validate(&comune, &mut site);
            ensure!(verdict.problems.is_empty(), "{}: {:?}", comune.name_any(), verdict.problems);
            let mut valid = verdict.valid.context("nothing is valid")?;
            valid.admitted_at = Some("2026-01-01T00:00:00Z".into());
            let plan = plan(&valid, &Observed::default(), Timestamp::UNIX_EPOCH);
            for action in plan.actions() {
                if let Action::Apply { desired, .. } = action {
                    objects.push(Object { at: desired.at.clone(), body: desired.body.clone() });
                }
            }
        }
        Ok(objects)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

/// Volumes for `comuni` Comuni beyond those that the local data centre has: no provisioner runs on simulated hosts.
pub fn volumes(comuni: usize) -> Vec<Value> {
    let volume = |number: usize| {
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": format!("bench-{number:05}")},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "500Gi"},
                "storageClassName": STORAGE_CLASS,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": format!("/var/empty/bench-{number:05}")},
            },
        })
    };
    (0..comuni * VOLUMES_EACH).map(volume).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use conme_blueprint::Kind;

    #[test]
    fn the_sample_has_every_kind_that_needs_no_database_and_about_thirty_objects_each() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let surroundings = Surroundings::of_checkout(&checkout).unwrap();
        let objects = surroundings.objects(&[comune("comune", 1), comune("comune", 2)]).unwrap();
        let kinds: BTreeSet<Kind> = objects.iter().map(|object| object.at.kind).collect();
        let missing: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| !kinds.contains(kind)).collect();
        // In the catalogue, what has files of its own or scales by itself needs a database.
        assert_eq!(missing, [Kind::ConfigMap, Kind::HorizontalPodAutoscaler]);
        assert!((50..80).contains(&objects.len()), "{}", objects.len());
        let claims = objects.iter().filter(|object| object.at.kind == Kind::PersistentVolumeClaim).count();
        assert_eq!(claims, 2 * VOLUMES_EACH);
    }
}
