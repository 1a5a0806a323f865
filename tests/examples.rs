//! Whoever copies an example, installs the chart or applies the definitions gets what works: every example is
//! accepted and can be built, the codes of the 22 members are consistent, and what is generated is up to date.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::Result;
use conme_api::{Comune, DataCenter, EntityKind, ServiceTemplate};
use conme_blueprint::{
    Register, Site, Verdict,
    amount::Amount,
    capacity::{PROMISED, reserve_respecting_capacity},
    totals_of, validate,
};
use conme_stories::{DataCentre, checkout, installation, refusal};
use conme_testbed::install;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, ValidationDirective},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Every YAML document below a folder of the checkout, with its file.
fn documents(folder: &str) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    let mut folders = vec![checkout().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // What pipelines are made of is no manifest of Con.Me.
                if !path.ends_with("examples/pipelines") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                let text = std::fs::read_to_string(&path).unwrap();
                let all: Vec<Value> = serde_saphyr::from_multiple(&text)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                found.extend(all.into_iter().map(|document| (path.clone(), document)));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn of_kind<T: DeserializeOwned>(kind: &str) -> Vec<T> {
    documents("examples")
        .into_iter()
        .filter(|(_, document)| document["kind"] == kind)
        .map(|(path, document)| {
            serde_json::from_value(document).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect()
}

fn members() -> Vec<Comune> {
    let comuni = documents("examples/comuni");
    comuni.into_iter().map(|(_, document)| serde_json::from_value(document).unwrap()).collect()
}

/// What is left of a document in its type: everything that stands in the document.
fn loses_nothing<T: DeserializeOwned + Serialize>(document: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    let again = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    lost(document, &again, "")
}

fn lost(before: &Value, after: &Value, path: &str) -> Result<(), String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().try_for_each(|(key, value)| {
            let path = format!("{path}.{key}");
            // What is false is not written again.
            match after.get(key) {
                Some(found) => lost(value, found, &path),
                None if *value == json!(false) => Ok(()),
                None => Err(format!("{path} is not known")),
            }
        }),
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => before
            .iter()
            .zip(after)
            .enumerate()
            .try_for_each(|(index, (before, after))| lost(before, after, &format!("{path}[{index}]"))),
        // Quantities are kept as text.
        (Value::Number(number), Value::String(text)) if number.to_string() == *text => Ok(()),
        (before, after) if before == after => Ok(()),
        (before, after) => Err(format!("{path}: {before} became {after}")),
    }
}

async fn dry_apply(data_centre: &DataCentre, document: &Value) -> kube::Result<DynamicObject> {
    let kind = document["kind"].as_str().unwrap();
    let plural = match kind {
        "Comune" => "comuni",
        "DataCenter" => "datacenters",
        "ServiceTemplate" => "servicetemplates",
        other => panic!("an example of kind {other}"),
    };
    let gvk = GroupVersionKind::gvk("conme.venis.it", "v1alpha1", kind);
    let api: Api<DynamicObject> =
        Api::all_with(data_centre.client(), &ApiResource::from_gvk_with_plural(&gvk, plural));
    let name = document["metadata"]["name"].as_str().unwrap();
    let params = PatchParams {
        dry_run: true,
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply("examples").force()
    };
    api.patch(name, &params, &Patch::Apply(document)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_is_accepted_by_the_api_server_as_it_stands() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let documents = documents("examples");
    assert!(documents.len() >= 22 + 12 + 3, "only {} documents were found", documents.len());
    for (path, document) in &documents {
        let typed = match document["kind"].as_str() {
            Some("Comune") => loses_nothing::<Comune>(document),
            Some("DataCenter") => loses_nothing::<DataCenter>(document),
            Some("ServiceTemplate") => loses_nothing::<ServiceTemplate>(document),
            other => Err(format!("an example of kind {other:?}")),
        };
        typed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let accepted = dry_apply(&dc, document).await;
        let accepted = accepted.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(Some(accepted.name_any().as_str()), document["metadata"]["name"].as_str());
    }
    // The check would notice a slip of the pen.
    let (_, mut wrong) = documents.into_iter().find(|(_, document)| document["kind"] == "Comune").unwrap();
    wrong["spec"]["enviroments"] = json!([]);
    assert!(loses_nothing::<Comune>(&wrong).is_err());
    let (_, message) = refusal(dry_apply(&dc, &wrong).await);
    assert!(message.contains("enviroments"), "{message}");
    Ok(())
}

#[test]
fn the_members_are_twenty_one_municipalities_and_a_union_with_consistent_codes() {
    let members = members();
    assert_eq!(members.len(), 22);
    let unions: Vec<&Comune> =
        members.iter().filter(|member| member.spec.entity.kind == EntityKind::Unione).collect();
    let comuni: Vec<&Comune> =
        members.iter().filter(|member| member.spec.entity.kind == EntityKind::Comune).collect();
    assert_eq!((comuni.len(), unions.len()), (21, 1));
    assert_eq!(unions[0].spec.entity.istat, None);
    assert!(!unions[0].spec.entity.members.is_empty());

    let distinct = |field: &dyn Fn(&Comune) -> Option<String>| {
        let values: BTreeSet<String> = comuni.iter().filter_map(|comune| field(comune)).collect();
        values.len()
    };
    assert_eq!(distinct(&|comune| comune.spec.entity.istat.clone()), 21, "ISTAT codes");
    assert_eq!(distinct(&|comune| comune.spec.entity.belfiore.clone()), 21, "Belfiore codes");
    assert_eq!(distinct(&|comune| comune.spec.entity.ipa.clone()), 21, "IPA codes");
    assert_eq!(distinct(&|comune| comune.spec.entity.domain.clone()), 21, "domains");
    for comune in comuni {
        let (name, entity) = (comune.name_any(), &comune.spec.entity);
        let istat = entity.istat.as_deref().unwrap_or_default();
        assert!(
            istat.len() == 6 && istat.starts_with("027"),
            "{name}: {istat} is not in the province of Venezia"
        );
        let (ipa, belfiore) = (entity.ipa.as_deref().unwrap(), entity.belfiore.as_deref().unwrap());
        assert_eq!(ipa.to_lowercase(), format!("c_{}", belfiore.to_lowercase()), "{name}");
        assert!(entity.population.is_some_and(|population| population > 1000), "{name}");
        assert!(
            entity.display_name.starts_with("Comune di ") || name == "venezia",
            "{}",
            entity.display_name
        );
    }
    // The file is named after what is in it.
    for (path, document) in documents("examples/comuni") {
        assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), document["metadata"]["name"].as_str());
    }
}

/// Everything of the examples, as the operator would know it.
fn verdicts(comuni: &[Comune], data_center: &DataCenter) -> (BTreeMap<String, Verdict>, Register) {
    let templates: BTreeMap<String, Arc<ServiceTemplate>> = of_kind::<ServiceTemplate>("ServiceTemplate")
        .into_iter()
        .map(|template| (template.name_any(), Arc::new(template)))
        .collect();
    assert_eq!(templates.len(), 12);
    let mut register = Register::default();
    register.set_data_center(Some(data_center.clone()));
    for comune in comuni {
        register.put(comune);
    }
    let mut verdicts = BTreeMap::new();
    for comune in comuni {
        let mut site = Site {
            storage_classes: None,
            data_center: Some(data_center),
            templates: &templates,
            register: &mut register,
            operator: ("conme-system", "conme-operator"),
        };
        verdicts.insert(comune.name_any(), validate(comune, &mut site));
    }
    (verdicts, register)
}

#[test]
fn every_comune_of_the_examples_can_be_built_from_the_example_data_centre_and_catalogue() {
    let data_center = of_kind::<DataCenter>("DataCenter").remove(0);
    let mut comuni = of_kind::<Comune>("Comune");
    assert_eq!(comuni.len(), 24, "22 members, the shortest and the full one");
    let (found, mut register) = verdicts(&comuni, &data_center);
    for (name, verdict) in &found {
        assert_eq!(verdict.problems, [], "{name}");
        let valid = verdict.valid.as_ref().unwrap();
        assert_eq!(valid.missing, None, "{name}");
        assert_eq!(valid.services.len(), valid.spec.services.len(), "{name}");
        assert_eq!(valid.databases.len(), valid.spec.databases.len(), "{name}");
    }
    let (committed, admitted, known) = register.committed();
    assert_eq!((admitted, known), (24, 24));
    let capacity = reserve_respecting_capacity(&data_center.spec);
    for resource in PROMISED {
        let asked: Amount =
            comuni.iter().map(|comune| totals_of(&comune.spec, &data_center).unwrap().1[resource]).sum();
        assert_eq!(committed[resource], asked, "{resource}");
        assert!(asked <= capacity[resource], "{resource}: more is asked for than there is");
    }

    // What is wrong would be found: a template that does not exist, a data centre that is too small.
    let with_service = comuni.iter().position(|comune| !comune.spec.services.is_empty()).unwrap();
    comuni[with_service].spec.services[0].template = "che-non-esiste".into();
    let name = comuni[with_service].name_any();
    let mut small = data_center;
    small.spec.pools.truncate(1);
    small.spec.pools[0].hosts = 2;
    let (found, mut register) = verdicts(&comuni, &small);
    assert!(found[&name].problems.iter().any(|problem| problem.message.contains("che-non-esiste")));
    assert!(register.committed().1 < 24);
}

/// Runs the operator's program on a tree of files.
fn manifests_check(top: &Path) -> (bool, String) {
    let operator = installation().unwrap().operator;
    let output = Command::new(operator).args(["manifests", "--check"]).arg(top).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_generated_manifests_are_up_to_date() {
    let (is_current, said) = manifests_check(&checkout());
    assert!(is_current, "{said}");
    // A stale one would be noticed, by name.
    let copy = std::env::temp_dir().join(format!("conme-manifests-{}", std::process::id()));
    for file in [
        "manifests/crds.yaml",
        "manifests/clusterroles.yaml",
        "charts/conme/templates/crds.yaml",
        "charts/conme/templates/clusterroles.yaml",
        "docs/reference/resources.md",
    ] {
        let to = copy.join(file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(checkout().join(file), to).unwrap();
    }
    let fresh = manifests_check(&copy);
    let roles = copy.join("manifests/clusterroles.yaml");
    let text = std::fs::read_to_string(&roles).unwrap().replace("patch", "update");
    std::fs::write(&roles, text).unwrap();
    let stale = manifests_check(&copy);
    std::fs::remove_dir_all(&copy).unwrap();
    assert!(fresh.0, "{}", fresh.1);
    assert!(!stale.0);
    assert!(
        stale.1.contains("manifests/clusterroles.yaml") && stale.1.contains("make manifests"),
        "{}",
        stale.1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_definitions_and_the_chart_are_accepted_by_their_tools() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let apply = |file: PathBuf| async move {
        let file = file.to_string_lossy().into_owned();
        let args = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--filename", &file];
        install::run(DataCentre::shared().await?.instance(), "kubectl", &args, None).await
    };
    let said = apply(checkout().join("manifests/crds.yaml")).await?;
    for plural in ["comuni", "datacenters", "servicetemplates", "migrations"] {
        assert!(said.contains(&format!("{plural}.conme.venis.it")), "{said}");
    }
    apply(checkout().join("manifests/clusterroles.yaml")).await?;
    let served =
        install::run(dc.instance(), "kubectl", &["api-resources", "--api-group=conme.venis.it"], None)
            .await?;
    let kinds: BTreeSet<&str> =
        served.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(kinds, BTreeSet::from(["Comune", "DataCenter", "ServiceTemplate", "Migration"]));

    let chart = checkout().join("charts/conme").to_string_lossy().into_owned();
    let said = install::run(dc.instance(), "helm", &["lint", "--strict", &chart], None).await?;
    assert!(said.contains("0 chart(s) failed"), "{said}");
    let rendered = install::run(
        dc.instance(),
        "helm",
        &[
            "template",
            "conme",
            &chart,
            "--namespace",
            "conme-system",
            // Without a server helm takes itself for an ancient one.
            "--kube-version",
            "1.36.0",
            "--set",
            "operator.image.repository=registry.example/conme-operator",
        ],
        None,
    )
    .await?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
    let of = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).count();
    assert_eq!(of("CustomResourceDefinition"), 4);
    assert_eq!(of("Deployment"), 1);
    assert!(of("ClusterRole") >= 4 && of("ServiceAccount") == 1 && of("NetworkPolicy") == 1);
    for object in objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        assert_eq!(object["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap();
    assert!(image.starts_with("registry.example/conme-operator"), "{image}");
    // A value that the chart does not know is refused, not swallowed.
    let args = ["template", "conme", &chart, "--kube-version", "1.36.0", "--set", "operatr.x=1"];
    let wrong = install::run(dc.instance(), "helm", &args, None).await;
    assert!(wrong.unwrap_err().to_string().contains("operatr"));
    Ok(())
}
