//! Manifests that nobody would write on purpose: thousands of them, each a good one spoilt in one or two places, put to
//! the API server, to the offline validation and to the operator.
//!
//! Whatever is refused is refused with the field; whatever is accepted is carried out or told with the field; nothing is
//! half built, and the operator neither falls nor runs in circles. What the API server refuses, `kubectl comune validate`
//! refuses as well, and the other way round.
//!
//! `CONME_SEED` sets the seed (it is printed), `CONME_MUTANTS` how many are made (1,500), `CONME_SOAK=1` asks for the long
//! form (20,000). `CONME_BATCH` leaves out the batches before this one of those that live with the operator.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use conme_api::{Comune, DataCenter, ServiceTemplate, reasons};
use conme_blueprint::{Kind, Scope};
use conme_kubectl::{
    input::Source,
    rules::Rules,
    site::{Operator, Site},
    validate::examine,
};
use conme_stories::{DataCentre, checkout, condition, eventually, is_current, operator_writes};
use conme_testbed::{Options, install::OPERATOR};
use futures::{FutureExt, StreamExt, stream};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Namespace, storage::v1::StorageClass};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams},
    client::Body,
};
use serde_json::{Value, json};

const SEED: u64 = 20_261_122;
/// How many accepted ones the operator gets at once.
const BATCH: usize = 40;
const DRY: &str = "&dryRun=All";

// ---------------------------------------------------------------------------------------------- chance

/// A row of numbers that depends on the seed alone, on every machine and with every version of every library
/// (SplitMix64): a seed in a log stays good for ever.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

// ---------------------------------------------------------------------------------------------- good ones

/// The members, the two examples, and one with every field that there is.
fn good_ones() -> Result<Vec<Value>> {
    let examples = checkout().join("examples");
    let mut files: Vec<_> =
        std::fs::read_dir(examples.join("comuni"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    files.push(examples.join("full.yaml"));
    files.push(examples.join("minimal.yaml"));
    let mut good: Vec<Value> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        good.push(serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?);
    }
    ensure!(good.len() >= 24, "only {} examples", good.len());
    good.push(rich());
    Ok(good)
}

fn rich() -> Value {
    let classification = json!({"class": "ordinario", "act": "det. 1/2026", "date": "2026-03-02"});
    json!({
        "apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune", "metadata": {"name": "mut-ricco"},
        "spec": {
            "entity": {
                "kind": "Comune", "displayName": "Comune Ricco", "istat": "900100", "ipa": "c_z100",
                "belfiore": "Z100", "population": 4000, "domain": "comune.ricco.example",
            },
            "quota": {
                "cpu": 8, "memory": "16Gi", "storage": "40Gi", "ephemeralStorage": "5Gi", "pods": 50, "services": 10,
                "objects": {"secrets": 50},
            },
            "environments": [
                {"name": "produzione", "share": 60},
                {"name": "collaudo", "share": 40, "podSecurity": "baseline"},
            ],
            "administrators": [
                {"kind": "Group", "name": "mut-ricco-ced"},
                {"kind": "ServiceAccount", "name": "pipeline", "namespace": "mut-ricco-collaudo"},
            ],
            "viewers": [{"kind": "User", "name": "mut-ricco-vede"}],
            "network": {
                "ingress": [{"description": "x", "environment": "produzione", "cidrs": ["192.0.2.0/24"], "ports": [80]}],
                "egress": [{"description": "x", "environment": "produzione", "cidrs": ["192.0.2.0/24"], "ports": [80]}],
            },
            "databases": [
                {
                    "name": "archivio", "engine": "postgresql", "placement": {"shared": "pg-venis-1"},
                    "environment": "produzione", "extensions": ["pg_trgm"], "connectionLimit": 10, "maxSize": "5Gi",
                    "deletionPolicy": "Retain", "classification": classification,
                },
                {
                    "name": "propria", "engine": "postgresql", "environment": "collaudo",
                    "placement": {"dedicated": {"instances": 1, "storage": "1Gi", "cpu": "1", "memory": "2Gi"}},
                },
            ],
            "services": [
                {
                    "name": "mappe", "template": "gis", "environment": "produzione",
                    "hostname": "mappe.mut-ricco.example", "replicas": 1, "classification": classification,
                },
                {"name": "mappe-prove", "template": "gis", "environment": "collaudo"},
            ],
            "sites": [{
                "name": "municipio", "uplinkMbps": 20,
                "windows": [{"days": ["Mon"], "from": "19:00", "to": "07:00", "capMbps": 18}],
            }],
            "servers": [{
                "name": "srv", "site": "municipio", "kind": "physical",
                "os": {"product": "ubuntu", "version": "14.04"}, "vcpus": 4, "memory": "16Gi",
                "disks": [{"name": "sda", "size": "500Gi"}],
                "workloads": [
                    {"name": "macchina", "mode": "A", "disk": {"disk": "sda"}, "classification": classification},
                    {
                        "name": "documenti", "mode": "A",
                        "files": {"path": "/srv/documenti", "volume": "documenti", "environment": "produzione"},
                    },
                    {"name": "pg", "mode": "B", "postgresql": {"database": "archivio", "sourceDatabase": "archivio"}},
                ],
            }],
            "deletionPolicy": "Retain", "protected": false, "paused": false, "cordoned": false,
        },
    })
}

/// The same under a name of its own, so that none of them asks for what another has.
fn personal(good: &Value, number: usize) -> Value {
    let old = good["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let new = format!("mut-{number}");
    let mut value: Value = serde_json::from_str(&good.to_string().replace(&old, &new)).unwrap();
    value["metadata"]["name"] = json!(new);
    if value["spec"]["entity"]["istat"].is_string() {
        value["spec"]["entity"]["istat"] = json!(format!("9{number:05}"));
    }
    for service in value["spec"]["services"].as_array_mut().into_iter().flatten() {
        if let Some(host) = service["hostname"].as_str() {
            service["hostname"] = json!(format!("m{number}.{host}"));
        }
    }
    value["spec"]["protected"] = json!(false);
    value
}

// ---------------------------------------------------------------------------------------------- spoiling

/// Every place of a manifest: pointers to values, of metadata and spec.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    if at.starts_with("/spec") || at.starts_with("/metadata") {
        found.push(at.to_owned());
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                pointers(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                pointers(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// The place without the numbers of elements and without names that people choose.
fn sort_of(pointer: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pointer.split('/') {
        let free = matches!(parts.last(), Some(&("parameters" | "objects" | "labels" | "annotations")));
        parts.push(if free || part.parse::<usize>().is_ok() { "*" } else { part });
    }
    parts.join("/")
}

const OPERATIONS: [&str; 17] = [
    "drop",
    "null",
    "duplicate",
    "copy",
    "swap",
    "retype",
    "enlarge",
    "text",
    "text",
    "number",
    "amount",
    "typo",
    "stranger",
    "deep",
    "reference",
    "empty",
    "cycle",
];

const TEXTS: [&str; 48] = [
    "",
    " ",
    "a ",
    "\n",
    "a\nb: c",
    "\t",
    "\u{0}",
    "\u{7f}",
    "\u{200b}",
    "\u{202e}oigel",
    "\u{feff}a",
    "à",
    "ß",
    "İ",
    "日本",
    "🏛️",
    "no",
    "yes",
    "null",
    "~",
    "true",
    "1e3",
    "0x10",
    "0o17",
    ".inf",
    ".nan",
    "2026-13-45",
    "---",
    "...",
    "{}",
    "[]",
    "&a *a",
    "!!binary x",
    "*",
    "*.example",
    ".",
    "..",
    "../../etc/passwd",
    "a.b",
    "-a",
    "a-",
    "a--b",
    "A",
    "a_b",
    "'; DROP DATABASE postgres; --",
    "$(reboot)",
    "${PATH}",
    "{{ .Values }}",
];

const AMOUNTS: [&str; 20] = [
    "0",
    "0Gi",
    "-1",
    "-1Gi",
    "+1",
    "1.5",
    "1.5.5",
    "1,5Gi",
    "1 Gi",
    "1e3",
    "1e1000",
    "9223372036854775807",
    "9223372036854775807Ei",
    "99999999999999999999999999",
    "0.0000000000001",
    "1m",
    "1Ki",
    "1KiB",
    "Gi",
    "1000Ti",
];

fn numbers(chance: &mut Chance) -> Value {
    match chance.below(11) {
        0 => json!(0),
        1 => json!(-1),
        2 => json!(1),
        3 => json!(i64::MAX),
        4 => json!(i64::MIN),
        5 => json!(u64::MAX),
        6 => json!(0.5),
        7 => json!(1e308),
        8 => json!(i64::from(i32::MAX) + 1),
        9 => json!(65_536),
        _ => json!(chance.below(1000)),
    }
}

/// Spoils one place; false when the operation does not fit there.
fn spoil(manifest: &mut Value, pointer: &str, operation: &str, chance: &mut Chance) -> bool {
    let before = manifest.clone();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let key = last.replace("~1", "/").replace("~0", "~");
    match operation {
        "drop" | "typo" | "swap" | "duplicate" | "copy" => match manifest.pointer_mut(parent) {
            Some(Value::Object(map)) => match operation {
                "drop" => drop(map.remove(&key)),
                "typo" => {
                    if let Some(value) = map.remove(&key) {
                        let wrong = if chance.below(2) == 0 { format!("{key}s") } else { key.to_uppercase() };
                        map.insert(wrong, value);
                    }
                }
                "swap" => {
                    let keys: Vec<String> = map.keys().cloned().collect();
                    let other = chance.one_of(&keys).clone();
                    let (a, b) = (map[&key].clone(), map[&other].clone());
                    map.insert(key, b);
                    map.insert(other, a);
                }
                _ => return false,
            },
            Some(Value::Array(list)) => {
                let Ok(index) = last.parse::<usize>() else { return false };
                let element = list[index].clone();
                match operation {
                    "drop" => drop(list.remove(index)),
                    "duplicate" => list.push(element),
                    "copy" => {
                        let mut another = element;
                        if another["name"].is_string() {
                            another["name"] = json!("copia");
                        }
                        list.push(another);
                    }
                    "swap" => {
                        let other = chance.below(list.len());
                        list.swap(index, other);
                    }
                    _ => return false,
                }
            }
            _ => return false,
        },
        _ => {
            // Other values of the same manifest stand for what refers to the wrong thing.
            let mut others = Vec::new();
            pointers(manifest, "", &mut others);
            let borrowed = manifest.pointer(chance.one_of(&others).as_str()).cloned().unwrap_or_default();
            let own_name = manifest["metadata"]["name"].clone();
            let Some(value) = manifest.pointer_mut(pointer) else { return false };
            *value = match operation {
                "null" => Value::Null,
                "empty" => match value {
                    Value::Object(_) => json!({}),
                    Value::Array(_) => json!([]),
                    Value::String(_) => json!(""),
                    _ => return false,
                },
                "retype" => match (&*value, chance.below(3)) {
                    (Value::String(text), 0) => text.parse::<i64>().map_or_else(|_| json!(7), |n| json!(n)),
                    (Value::String(text), 1) => json!([text]),
                    (Value::String(text), _) => json!({"value": text}),
                    (Value::Number(number), 0) => json!(number.to_string()),
                    (Value::Number(_), 1) => json!(true),
                    (Value::Number(number), _) => json!([number]),
                    (Value::Bool(value), 0) => json!(value.to_string()),
                    (Value::Bool(value), _) => json!(u8::from(*value)),
                    (Value::Array(list), 0) => list.first().cloned().unwrap_or_default(),
                    (Value::Array(_), _) => json!("one"),
                    (Value::Object(map), 0) => json!([map]),
                    (Value::Object(_), _) => json!("one"),
                    (Value::Null, _) => return false,
                },
                "enlarge" => match &*value {
                    Value::String(text) => json!(text.repeat(*chance.one_of(&[2, 20, 70, 5000]))),
                    Value::Number(number) => {
                        json!(number.as_i64().unwrap_or(1).saturating_mul(1_000_000_007))
                    }
                    Value::Array(list) => {
                        let many = list.iter().cycle().take(list.len() * *chance.one_of(&[3, 100]));
                        Value::Array(
                            many.enumerate()
                                .map(|(index, element)| {
                                    let mut element = element.clone();
                                    if element["name"].is_string() {
                                        element["name"] = json!(format!("n{index}"));
                                    }
                                    element
                                })
                                .collect(),
                        )
                    }
                    _ => return false,
                },
                "text" => json!(chance.one_of(&TEXTS)),
                "number" => numbers(chance),
                "amount" => json!(chance.one_of(&AMOUNTS)),
                "stranger" => match &*value {
                    Value::Object(map) => {
                        let mut map = map.clone();
                        map.insert(
                            (*chance.one_of(&["extra", "x.y/z", "", "__proto__", "Name"])).into(),
                            json!("x"),
                        );
                        Value::Object(map)
                    }
                    _ => return false,
                },
                "deep" => {
                    (0..*chance.one_of(&[3, 40, 200])).fold(value.clone(), |inner, _| json!({"a": inner}))
                }
                "reference" => borrowed,
                "cycle" => own_name,
                other => panic!("{other}"),
            };
        }
    }
    *manifest != before
}

/// A manifest that was spoilt.
struct Mutant {
    what: String,
    manifest: Value,
}

impl Mutant {
    fn name(&self) -> String {
        self.manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned()
    }
}

fn mutants(good: &[Value], count: usize, seed: u64) -> Vec<Mutant> {
    let mut chance = Chance(seed);
    let mut places: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for (base, manifest) in good.iter().enumerate() {
        let mut found = Vec::new();
        pointers(manifest, "", &mut found);
        for pointer in found {
            places.entry(sort_of(&pointer)).or_default().push((base, pointer));
        }
    }
    let sorts: Vec<&String> = places.keys().collect();
    assert!(sorts.len() > 100, "only {} sorts of places", sorts.len());
    let mut mutants = Vec::new();
    // Each sort of place in turn, so that a short run, too, goes everywhere.
    while mutants.len() < count {
        let sort = sorts[mutants.len() % sorts.len()];
        let (base, pointer) = chance.one_of(&places[sort]).clone();
        let mut manifest = personal(&good[base], mutants.len());
        let mut what = Vec::new();
        let operation = chance.one_of(&OPERATIONS);
        if !spoil(&mut manifest, &pointer, operation, &mut chance) {
            continue;
        }
        what.push(format!("{operation} {pointer}"));
        if chance.below(5) == 0 {
            let mut all = Vec::new();
            pointers(&manifest, "", &mut all);
            let (pointer, operation) = (chance.one_of(&all).clone(), chance.one_of(&OPERATIONS));
            if spoil(&mut manifest, &pointer, operation, &mut chance) {
                what.push(format!("{operation} {pointer}"));
            }
        }
        mutants.push(Mutant { what: what.join(", "), manifest });
    }
    mutants
}

// ---------------------------------------------------------------------------------------------- asking

/// Status code and message of a creation that takes no unknown fields; `more` are parameters besides.
async fn create(client: &Client, manifest: &Value, more: &str) -> Result<(u16, String)> {
    let request = Request::post(format!("/apis/conme.venis.it/v1alpha1/comuni?fieldValidation=Strict{more}"))
        .header("content-type", "application/json")
        .body(Body::from(serde_json::to_vec(manifest)?))?;
    let (head, body) = client.send(request).await?.into_parts();
    let body: Value = serde_json::from_slice(&body.collect_bytes().await?)?;
    Ok((head.status.as_u16(), body["message"].as_str().unwrap_or_default().to_owned()))
}

/// What is wrong by the manifest's own definition, as `kubectl comune validate` finds it offline.
fn offline(manifest: &Value, rules: &Rules) -> Vec<String> {
    // JSON is YAML but for one character, which only the former takes as it is.
    let text = manifest.to_string().replace('\u{7f}', "\\u007f");
    let source = Source { name: "mutant".into(), bytes: text.into_bytes() };
    let manifests = examine(&[source], rules);
    let stray = manifests.problems.iter().map(|problem| format!("{:?} {}", problem.path, problem.message));
    let objects = manifests.objects.iter().flat_map(|object| object.problems());
    stray.chain(objects.map(|problem| format!("{:?} {}", problem.path, problem.message))).collect()
}

/// Whether a person learns from a refusal where to look.
fn names_a_field(message: &str) -> bool {
    // The last are Kubernetes' own, for what is no metadata or no manifest at all.
    [
        "spec.",
        "spec:",
        "spec[",
        "\"spec\"",
        "metadata.",
        "metadata:",
        "unknown field",
        "ObjectMeta",
        ".apiVersion",
        ".kind of",
    ]
    .iter()
    .any(|mark| message.contains(mark))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spoilt_manifests_are_refused_or_told_with_the_field_and_never_half_built() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let long = std::env::var_os("CONME_SOAK").is_some();
    let seed = number("CONME_SEED").unwrap_or(SEED);
    let count = usize::try_from(number("CONME_MUTANTS").unwrap_or(if long { 20_000 } else { 1_500 }))?;
    let lived = if long { 25 * BATCH } else { BATCH };
    println!("CONME_SEED={seed} CONME_MUTANTS={count}");

    let begin = Instant::now();
    let good = good_ones()?;
    let mutants = mutants(&good, count, seed);
    let data_centre = DataCentre::own_as(Options::new(Options::unique_name("mutated")?), &[]).await?;
    println!("begun after {:?}", begin.elapsed());

    // The control: what is spoilt was good.
    let client = data_centre.client();
    let rules = Rules::default();
    for (number, manifest) in good.iter().enumerate() {
        let manifest = personal(manifest, 90_000 + number);
        let (code, message) = create(&client, &manifest, DRY).await?;
        ensure!(code == 201, "{}: {code} {message}", manifest["metadata"]["name"]);
        let found = offline(&manifest, &rules);
        ensure!(found.is_empty(), "{}: {found:?}", manifest["metadata"]["name"]);
    }

    let sent: Vec<_> = mutants.iter().map(|mutant| create(&client, &mutant.manifest, DRY).boxed()).collect();
    let answers: Vec<Result<(u16, String)>> = stream::iter(sent).buffered(8).collect().await;
    println!("asked after {:?}", begin.elapsed());
    let (mut accepted, mut wrong) = (Vec::new(), Vec::new());
    for (mutant, answer) in mutants.iter().zip(answers) {
        let (code, message) = answer?;
        let found = offline(&mutant.manifest, &rules);
        match code {
            201 => {
                if !found.is_empty() {
                    wrong.push(format!(
                        "{}: accepted, and refused offline: {}",
                        mutant.what,
                        found.join("; ")
                    ));
                }
                accepted.push(mutant);
            }
            400 | 422 => {
                if !names_a_field(&message) {
                    wrong.push(format!("{}: refused without a field: {message}", mutant.what));
                }
                if found.is_empty() {
                    wrong.push(format!("{}: not refused offline: {message}", mutant.what));
                }
            }
            _ => wrong.push(format!("{}: {code} {message}", mutant.what)),
        }
    }
    println!("compared after {:?}: {} accepted of {count}", begin.elapsed(), accepted.len());
    ensure!(wrong.is_empty(), "seed {seed}, {} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    ensure!(accepted.len() > count / 20 && accepted.len() < count / 2, "the mutator is too tame or too wild");

    // Small ones, so that there is time for many; half of them such as the operator has something to say to, if there are
    // so many; and not one after the other from the same place.
    accepted.retain(|mutant| mutant.manifest["spec"]["services"].as_array().map_or(0, Vec::len) <= 3);
    let surroundings = Surroundings::of(&data_centre).await?;
    let (questionable, plain): (Vec<&Mutant>, Vec<&Mutant>) =
        accepted.into_iter().partition(|mutant| surroundings.find_fault(&mutant.manifest));
    println!("{} of the small ones are questionable, {} are not", questionable.len(), plain.len());
    ensure!(!questionable.is_empty(), "nothing is left for the operator to refuse");
    let mut chosen = spread(questionable, lived / 2);
    chosen.extend(spread(plain, lived - chosen.len()));
    let first = usize::try_from(number("CONME_BATCH").unwrap_or(0))?;
    let batches = chosen.len().div_ceil(BATCH);
    ensure!(first < batches, "CONME_BATCH: there is no batch {first}");
    let mut failed = Vec::new();
    for (number, batch) in chosen.chunks(BATCH).enumerate().skip(first) {
        // What one batch shows should not hide what the next ones would.
        if let Err(error) = live(&data_centre, batch).await {
            println!("batch {number}: {error:#}");
            failed.push(number);
            ensure!(failed.len() < 5, "seed {seed}, batches {failed:?}: see above");
        }
        println!("batch {number} of {batches} after {:?}", begin.elapsed());
        if number + 1 < batches {
            clear(&data_centre, batch).await?;
        }
    }
    ensure!(failed.is_empty(), "seed {seed}, batches {failed:?}: see above");
    Ok(())
}

// ---------------------------------------------------------------------------------------------- living

/// Mutants that the API server accepts, in the hands of the operator.
async fn live(data_centre: &DataCentre, batch: &[&Mutant]) -> Result<()> {
    let comuni = data_centre.comuni();
    let begin = Timestamp::now();
    let passes = async || -> Result<f64> {
        Ok(data_centre.metrics().await?.sum("controller_runtime_reconcile_total", &["controller=\"comune\""]))
    };
    let before = passes().await?;
    for mutant in batch {
        let (code, message) = create(&data_centre.client(), &mutant.manifest, "").await?;
        ensure!(code == 201, "{}: {code} {message}", mutant.what);
    }
    let is_told = |comune: &Comune| is_current(comune) && condition(comune, "Ready").is_some();
    let waited = eventually("every Comune has been looked at", async || {
        let all = comuni.list(&ListParams::default()).await?;
        Ok(all.iter().all(is_told))
    })
    .await;
    if let Err(error) = waited {
        let log = std::fs::read_to_string(data_centre.instance().log(OPERATOR))?;
        let words: Vec<&str> = log.lines().rev().take(20).collect();
        let all = comuni.list(&ListParams::default()).await?;
        let missing: Vec<String> = all
            .iter()
            .filter(|comune| !is_told(comune))
            .map(|comune| {
                let what = batch.iter().find(|mutant| mutant.name() == comune.name_any());
                format!("{} ({:?}): {:?}", comune.name_any(), what.map(|mutant| &mutant.what), comune.status)
            })
            .collect();
        return Err(error.context(format!(
            "not looked at:\n{}\nthe operator says, last words first:\n{}",
            missing.join("\n"),
            words.join("\n")
        )));
    }
    let since = comes_to_rest(data_centre).await?;
    // Figures that move by themselves are told half a minute later, once, and events follow what they tell of; nothing
    // else is left to write.
    let mut late: BTreeMap<(String, String), usize> = BTreeMap::new();
    for entry in operator_writes(data_centre, since)? {
        let (resource, (_, name)) = (entry.resource(), entry.object());
        ensure!(
            resource.ends_with("/status") || resource == "events",
            "written after it had come to rest at {since}: {} {resource} {name} at {}",
            entry.verb,
            entry.at()
        );
        // An event is called as what it tells of, with a point and its time.
        let name = name.split('.').next().unwrap_or_default().to_owned();
        *late.entry((resource, name)).or_default() += 1;
    }
    ensure!(
        late.values().all(|count| *count == 1),
        "told again and again after it had come to rest: {late:?}"
    );

    let all = comuni.list(&ListParams::default()).await?.items;
    let mut site = Surroundings::of(data_centre).await?.with(&all);
    let mut wrong = Vec::new();
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for mutant in batch {
        let comune = all.iter().find(|comune| comune.name_any() == mutant.name()).context("it is stored")?;
        let (status, reason, message) = condition(comune, "Ready").context("a condition")?;
        *told.entry(reason.to_owned()).or_default() += 1;
        // What waits for something outside is not badly declared.
        if status != "True" && reason != reasons::WAITING && !names_a_field(message) {
            wrong.push(format!("{}: told without a field: {reason} {message}", mutant.what));
        }
        for what in half_built(data_centre, comune, &mut site).await? {
            wrong.push(format!("{}: {what} ({reason}: {message})", mutant.what));
        }
    }
    println!("told: {told:?}");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    let spent = passes().await? - before;
    let bound = 25.0 * batch.len() as f64;
    ensure!(spent <= bound, "{spent} passes for {} Comuni", batch.len());
    let statuses = writes_of_status(data_centre, begin)?;
    ensure!(!statuses.is_empty(), "the record of calls is being read");
    // Who waits for room is told anew how much is missing whenever another one gets some.
    let waits = |name: &str| {
        all.iter().any(|comune| {
            comune.name_any() == name
                && condition(comune, "Ready")
                    .is_some_and(|(_, reason, _)| reason == reasons::INSUFFICIENT_CAPACITY)
        })
    };
    let most = |name: &str| if waits(name) { 15 + 2 * batch.len() } else { 15 };
    let busy: Vec<_> = statuses.iter().filter(|(name, count)| **count > most(name)).collect();
    ensure!(busy.is_empty(), "these were written again and again: {busy:?}");
    ensure!(data_centre.instance().is_alive(OPERATOR)?, "the operator has ended");
    let log = std::fs::read_to_string(data_centre.instance().log(OPERATOR))?;
    ensure!(!log.contains("panicked at"), "the operator has panicked:\n{log}");
    let most = statuses.iter().max_by_key(|(_, count)| **count);
    let what = batch.iter().find(|mutant| most.is_some_and(|(name, _)| *name == mutant.name()));
    println!(
        "{spent} passes; the status written most often: {most:?} ({:?})",
        what.map(|mutant| &mutant.what)
    );
    Ok(())
}

/// Waits until the operator has written nothing for a while, its lease aside, and tells since when. It may look again at
/// what waits for something outside.
async fn comes_to_rest(data_centre: &DataCentre) -> Result<Timestamp> {
    let last = Cell::new((f64::NAN, Instant::now(), Timestamp::now()));
    eventually("the operator writes no more", async || {
        let metrics = data_centre.metrics().await?;
        // The lease is renewed by PUT, and nothing else is.
        let writes = ["POST", "PATCH", "DELETE"]
            .map(|method| metrics.sum("rest_client_requests_total", &[&format!("method=\"{method}\"")]));
        let writes: f64 = writes.iter().sum();
        if writes != last.get().0 {
            last.set((writes, Instant::now(), Timestamp::now()));
        }
        Ok(writes > 0.0 && last.get().1.elapsed() > Duration::from_secs(6))
    })
    .await?;
    Ok(last.get().2)
}

/// How often the status of each Comune was written since a moment.
fn writes_of_status(data_centre: &DataCentre, begin: Timestamp) -> Result<BTreeMap<String, usize>> {
    let mut writes: BTreeMap<String, usize> = BTreeMap::new();
    for entry in operator_writes(data_centre, begin)? {
        if entry.resource() == "comuni/status" {
            *writes.entry(entry.object().1).or_default() += 1;
        }
    }
    Ok(writes)
}

/// So many of them, from all over the list.
fn spread(all: Vec<&Mutant>, count: usize) -> Vec<&Mutant> {
    let step = (all.len() / count.max(1)).max(1);
    all.into_iter().step_by(step).take(count).collect()
}

/// What the operator knows beside the Comuni themselves.
struct Surroundings {
    data_centers: Vec<DataCenter>,
    templates: Vec<ServiceTemplate>,
    classes: BTreeSet<String>,
}

impl Surroundings {
    async fn of(data_centre: &DataCentre) -> Result<Self> {
        let client = data_centre.client();
        let all = ListParams::default();
        let classes = Api::<StorageClass>::all(client.clone()).list(&all).await?;
        Ok(Self {
            data_centers: Api::all(client.clone()).list(&all).await?.items,
            templates: Api::all(client).list(&all).await?.items,
            classes: classes.iter().map(ResourceExt::name_any).collect(),
        })
    }

    fn with(&self, comuni: &[Comune]) -> Site {
        let mut site = Site::new(&Operator::default());
        let (data_centers, templates) = (self.data_centers.clone(), self.templates.clone());
        site.add_live(data_centers, templates, comuni.to_vec(), Some(self.classes.clone()));
        site.settle();
        site
    }

    /// Whether the operator's own rules find something wrong with it, were it alone.
    fn find_fault(&self, manifest: &Value) -> bool {
        // What only the API server can read stays for it to put in order.
        let Ok(comune) = serde_json::from_value::<Comune>(manifest.clone()) else { return true };
        !self.with(std::slice::from_ref(&comune)).verdict(&comune).problems.is_empty()
    }
}

/// What is there and should not be, or is missing: a Comune that is refused has nothing, and a problem of one service
/// or database stops nothing else.
async fn half_built(data_centre: &DataCentre, comune: &Comune, site: &mut Site) -> Result<Vec<String>> {
    let name = comune.name_any();
    let verdict = site.verdict(comune);
    let stopped = verdict.problems.iter().any(|problem| problem.scope == Scope::Comune);
    let selector = format!("conme.venis.it/comune={name}");
    let namespaces: Api<Namespace> = Api::all(data_centre.client());
    let there: BTreeSet<String> = namespaces
        .list(&ListParams::default().labels(&selector))
        .await?
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    let (status, ..) = condition(comune, "Ready").context("a condition")?;
    let mut wrong = Vec::new();
    if stopped || comune.spec.paused {
        if !there.is_empty() {
            wrong.push(format!("it was refused, and yet there is {there:?}"));
        }
        if status == "True" && !comune.spec.paused {
            wrong.push("it is said to be ready".to_owned());
        }
        return Ok(wrong);
    }
    let declared: BTreeSet<String> =
        comune.spec.environments.iter().map(|environment| format!("{name}-{}", environment.name)).collect();
    if there != declared {
        wrong.push(format!("there is {there:?} instead of {declared:?}"));
    }
    for service in &comune.spec.services {
        let namespace = format!("{name}-{}", service.environment);
        let is_stopped =
            verdict.problems.iter().any(|problem| problem.scope == Scope::Service(service.name.clone()));
        let built = data_centre.read(Kind::Deployment, &namespace, &service.name).await?.is_some();
        let waits = service.database.is_some() && status != "True";
        if built && is_stopped {
            wrong.push(format!("the service {} was refused, and yet it is there", service.name));
        } else if !built && !is_stopped && !waits {
            wrong.push(format!("the service {} is missing", service.name));
        }
    }
    for guard in [Kind::ResourceQuota, Kind::NetworkPolicy, Kind::LimitRange] {
        for namespace in &there {
            if data_centre.api(guard, namespace).list(&ListParams::default()).await?.items.is_empty() {
                wrong.push(format!("{namespace} has no {guard:?}"));
            }
        }
    }
    Ok(wrong)
}

/// Room for the next ones.
async fn clear(data_centre: &DataCentre, batch: &[&Mutant]) -> Result<()> {
    for mutant in batch {
        let name = mutant.name();
        data_centre.comuni().delete(&name, &DeleteParams::default()).await?;
    }
    eventually("they are gone", async || {
        Ok(data_centre.comuni().list(&ListParams::default()).await?.items.is_empty())
    })
    .await?;
    let namespaces: Api<Namespace> = Api::all(data_centre.client());
    let selector = ListParams::default().labels("app.kubernetes.io/managed-by=conme");
    for namespace in namespaces.list(&selector).await? {
        data_centre.delete_namespace(&namespace.name_any()).await?;
    }
    eventually("their namespaces are gone", async || Ok(namespaces.list(&selector).await?.items.is_empty()))
        .await
}
