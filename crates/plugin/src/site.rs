//! What manifests name: does it exist, does somebody else hold it, is there room.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use conme_api::{Comune, DataCenter, ServiceTemplate, reasons};
use conme_blueprint::{Register, Verdict};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    manifest::{Manifests, Object, OurKind},
    path::{Path, Segment},
    problem::{Code, Note},
    schema::{Finding, shown},
    suggest,
    yaml::{Data, Node},
};

/// What there is beside the manifest itself: from the same input, from a folder, from a cluster.
#[derive(Default)]
pub struct Site {
    data_centers: BTreeMap<String, DataCenter>,
    templates: BTreeMap<String, Arc<ServiceTemplate>>,
    comuni: Vec<Comune>,
    storage_classes: Option<BTreeSet<String>>,
    /// The DataCenter that the operator serves.
    serves: String,
    /// The operator's namespace and ServiceAccount.
    operator: (String, String),
    register: Register,
}

/// Who the operator is, and what it serves.
#[derive(Clone, Debug)]
pub struct Operator {
    /// Name of the DataCenter.
    pub data_center: String,
    /// Namespace that it runs in.
    pub namespace: String,
    /// Its ServiceAccount.
    pub service_account: String,
}

impl Default for Operator {
    fn default() -> Self {
        Self {
            data_center: "venis".into(),
            namespace: "conme-system".into(),
            service_account: "conme-operator".into(),
        }
    }
}

impl Site {
    /// Knows nothing yet.
    pub fn new(operator: &Operator) -> Self {
        Self {
            serves: operator.data_center.clone(),
            operator: (operator.namespace.clone(), operator.service_account.clone()),
            ..Self::default()
        }
    }

    /// Takes what a cluster has.
    pub fn add_live(
        &mut self,
        data_centers: Vec<DataCenter>,
        templates: Vec<ServiceTemplate>,
        comuni: Vec<Comune>,
        storage_classes: Option<BTreeSet<String>>,
    ) {
        self.data_centers.extend(data_centers.into_iter().map(|object| (object.name_any(), object)));
        self.templates.extend(templates.into_iter().map(|object| (object.name_any(), Arc::new(object))));
        for comune in comuni {
            self.put(comune);
        }
        self.storage_classes = storage_classes;
    }

    /// Takes what manifests declare. What cannot be read is left out: it is told elsewhere.
    pub fn add(&mut self, manifests: &Manifests) {
        for object in &manifests.objects {
            match object.kind {
                OurKind::DataCenter => {
                    if let Ok(read) = serde_json::from_value::<DataCenter>(object.value.clone()) {
                        self.data_centers.insert(read.name_any(), read);
                    }
                }
                OurKind::ServiceTemplate => {
                    if let Ok(read) = serde_json::from_value::<ServiceTemplate>(object.value.clone()) {
                        self.templates.insert(read.name_any(), Arc::new(read));
                    }
                }
                OurKind::Comune => {
                    if let Some(read) = comune_of(object) {
                        self.put(read);
                    }
                }
            }
        }
    }

    /// A later manifest of a Comune takes the place of an earlier one, and its status.
    fn put(&mut self, mut comune: Comune) {
        let known = self.comuni.iter_mut().find(|known| known.metadata.name == comune.metadata.name);
        match known {
            Some(known) => {
                comune.status = known.status.take();
                comune.metadata.uid = known.metadata.uid.take();
                comune.metadata.creation_timestamp = known.metadata.creation_timestamp.take();
                *known = comune;
            }
            None => self.comuni.push(comune),
        }
    }

    /// The DataCenter in service. One alone serves whatever it is called.
    pub fn data_center(&self) -> Option<&DataCenter> {
        match self.data_centers.get(&self.serves) {
            None if self.data_centers.len() == 1 => self.data_centers.values().next(),
            found => found,
        }
    }

    /// Decides who has what, once everything is known.
    pub fn settle(&mut self) {
        self.register = Register::default();
        self.register.set_data_center(self.data_center().cloned());
        for (order, comune) in self.comuni.iter_mut().enumerate() {
            // Who is not in a cluster yet comes after those who are, in the order of the files.
            if comune.metadata.creation_timestamp.is_none() {
                let place = Timestamp::MAX.as_second() - 1_000_000 + order as i64;
                comune.metadata.creation_timestamp = Timestamp::from_second(place).ok().map(Time);
            }
            self.register.put(comune);
        }
    }

    /// The verdict on a Comune, by the operator's own rules.
    pub fn verdict(&mut self, comune: &Comune) -> Verdict {
        let data_center = self.data_center().cloned();
        let mut site = conme_blueprint::Site {
            data_center: data_center.as_ref(),
            templates: &self.templates,
            storage_classes: self.storage_classes.as_ref(),
            register: &mut self.register,
            operator: (&self.operator.0, &self.operator.1),
        };
        conme_blueprint::validate(comune, &mut site)
    }

    /// The Comune of a name, as it was taken in.
    pub fn comune(&self, name: &str) -> Option<&Comune> {
        self.comuni.iter().find(|comune| comune.name_any() == name)
    }

    /// What is wrong with the objects beyond each one's own definition. Adds to their findings.
    pub fn check(&mut self, manifests: &mut Manifests) {
        check_twins(manifests);
        let mut unchecked = BTreeSet::new();
        for object in &mut manifests.objects {
            if object.kind == OurKind::Comune {
                inner_references(object);
                self.check_comune(object, &mut unchecked);
            }
        }
        let add = |message: &str| Note { file: String::new(), message: message.into() };
        if unchecked.contains("DataCenter") {
            manifests.notes.push(add(
                "no DataCenter was given: whether tiers, templates and database servers exist was not checked \
                 (add its file, --site DIR or --server)",
            ));
        } else if unchecked.contains("ServiceTemplate") {
            manifests.notes.push(add(
                "no ServiceTemplate was given: whether the templates of services exist was not checked (add their \
                 files, --site DIR or --server)",
            ));
        }
    }

    fn check_comune(&mut self, object: &mut Object, unchecked: &mut BTreeSet<&'static str>) {
        let Some((comune, removed)) = sound_part(object) else { return };
        if self.data_center().is_none() {
            unchecked.insert("DataCenter");
        }
        let no_templates = self.templates.is_empty();
        for problem in self.verdict(&comune).problems {
            let is_no_template = problem.message.starts_with("there is no ServiceTemplate");
            if problem.reason == reasons::NO_DATA_CENTER || problem.path.starts_with("DataCenter") {
                continue;
            }
            if no_templates && is_no_template {
                unchecked.insert("ServiceTemplate");
                continue;
            }
            // What follows from another problem is told there.
            if problem.message.contains("that it is bound to cannot be provisioned") {
                continue;
            }
            let path = exact(Path::parse(&problem.path, &object.root), &problem.message, &object.root);
            let is_echo = problem.message.starts_with("the service `")
                && twin_comes_later(&problem.message, &path, &object.value);
            let about_removed = removed.iter().any(|database| {
                let at = path.0.get(..3).map(|head| Path(head.to_vec()));
                let bound = at.and_then(|at| Some(object.root.at_path(&at)?.text("database")? == database));
                bound == Some(true) && path.to_string().ends_with(".database")
            });
            let is_known = object
                .findings
                .iter()
                .any(|known| known.path.is_within(&path) || path.is_within(&known.path));
            if is_echo || about_removed || is_known {
                continue;
            }
            let code = match problem.reason {
                reasons::CONFLICT => Code::Conflict,
                reasons::INSUFFICIENT_CAPACITY => Code::Capacity,
                _ if problem.message.starts_with("there is no")
                    || problem.message.contains("has no version") =>
                {
                    Code::NotFound
                }
                _ => Code::Rule,
            };
            let at = object.root.locate(&path);
            let suggestion = suggestion_from(&problem.message);
            object.findings.push(Finding {
                path,
                at,
                code,
                message: problem.message,
                suggestion,
                covers: Vec::new(),
            });
        }
    }
}

/// Two manifests of one name: the later one would overwrite the earlier.
fn check_twins(manifests: &mut Manifests) {
    let mut seen: BTreeMap<(OurKind, String), String> = BTreeMap::new();
    let name_path = Path::default().field("metadata").field("name");
    for object in &mut manifests.objects {
        let name = object.name().to_owned();
        if name.is_empty() {
            continue;
        }
        let at = object.root.locate(&name_path);
        let here = format!("{}:{}", object.file, at.line);
        match seen.get(&(object.kind, name.clone())) {
            None => {
                seen.insert((object.kind, name), here);
            }
            Some(first) => object.findings.push(Finding {
                path: name_path.clone(),
                at,
                code: Code::Conflict,
                message: format!(
                    "the {} `{name}` is declared a second time: applying this one would overwrite the one in {first}",
                    object.kind.name()
                ),
                suggestion: Some("choose another name, or remove one of the two".into()),
                covers: Vec::new(),
            }),
        }
    }
}

/// Names within one manifest that neither the definition nor the operator asks about, and that do nothing when they are
/// misspelt.
fn inner_references(object: &mut Object) {
    let spec = object.value["spec"].clone();
    let names = |list: &str| -> Vec<String> {
        let items = spec[list].as_array().into_iter().flatten();
        items.filter_map(|item| item["name"].as_str().map(str::to_owned)).collect()
    };
    let (environments, databases) = (names("environments"), names("databases"));
    let mut wanted: Vec<(String, &Value, &[String], &str)> = Vec::new();
    for way in ["ingress", "egress"] {
        for (index, rule) in spec["network"][way].as_array().into_iter().flatten().enumerate() {
            let path = format!("spec.network.{way}[{index}].environment");
            wanted.push((path, &rule["environment"], &environments, "environment"));
        }
    }
    for (server, below) in spec["servers"].as_array().into_iter().flatten().enumerate() {
        for (index, workload) in below["workloads"].as_array().into_iter().flatten().enumerate() {
            let path = |rest: &str| format!("spec.servers[{server}].workloads[{index}].{rest}");
            wanted.push((
                path("files.environment"),
                &workload["files"]["environment"],
                &environments,
                "environment",
            ));
            for engine in ["postgresql", "mariadb"] {
                let rest = format!("{engine}.database");
                wanted.push((path(&rest), &workload[engine]["database"], &databases, "database"));
            }
        }
    }
    for (path, value, known, what) in wanted {
        let Some(name) = value.as_str() else { continue };
        let list = Path::default().field("spec").field(&format!("{what}s"));
        let is_sound = !object.findings.iter().any(|finding| {
            let places = std::iter::once(&finding.path).chain(&finding.covers);
            finding.code != Code::OutOfRange && places.into_iter().any(|place| place.is_within(&list))
        });
        if !is_sound || known.iter().any(|known| known == name) {
            continue;
        }
        let path = Path::parse(&path, &object.root);
        if object.findings.iter().any(|known| known.path == path) {
            continue;
        }
        object.findings.push(Finding {
            at: object.root.locate(&path),
            path,
            code: Code::NotFound,
            message: format!("there is no {what} `{name}` in spec.{what}s"),
            suggestion: suggest::did_you_mean(name, known.iter().map(String::as_str)),
            covers: Vec::new(),
        });
    }
}

/// The Comune of an object, if it can be read as it stands.
pub fn comune_of(object: &Object) -> Option<Comune> {
    sound_part(object).map(|(comune, _)| comune)
}

/// The part of a Comune that is sound enough to be held against the site, and the databases that were left out.
fn sound_part(object: &Object) -> Option<(Comune, Vec<String>)> {
    let mut value = object.value.clone();
    value.as_object_mut()?.remove("status");
    let mut removed = Vec::new();
    let mut places: Vec<&Path> = object
        .findings
        .iter()
        .filter(|finding| {
            matches!(
                finding.code,
                Code::WrongType | Code::NotAllowed | Code::MissingField | Code::UnknownField
            )
        })
        .map(|finding| &finding.path)
        .collect();
    // From the back, so that the numbers of what is still to be removed stay right; each element once.
    places.sort();
    places.dedup_by(|a, b| matches!((a.0.get(..3), b.0.get(..3)), (Some(a), Some(b)) if a == b && matches!(a[2], Segment::Index(_))));
    for path in places.into_iter().rev() {
        match path.0.as_slice() {
            [Segment::Field(spec), Segment::Field(list), Segment::Index(index), ..] if spec == "spec" => {
                if let Some(items) = value["spec"][list].as_array_mut().filter(|items| *index < items.len()) {
                    let gone = items.remove(*index);
                    if list == "databases" {
                        removed.extend(gone["name"].as_str().map(str::to_owned));
                    }
                }
            }
            [Segment::Field(spec), Segment::Field(entity), Segment::Field(field), ..]
                if spec == "spec" && entity == "entity" =>
            {
                let entity = value["spec"]["entity"].as_object_mut()?;
                match field.as_str() {
                    "kind" => entity.insert("kind".into(), json!("Comune")),
                    "displayName" => entity.insert("displayName".into(), json!("?")),
                    "population" => entity.insert("population".into(), json!(1)),
                    other => entity.remove(other),
                };
            }
            [Segment::Field(spec), Segment::Field(field), ..] if spec == "spec" => {
                value["spec"].as_object_mut()?.remove(field);
                // Which size it would have is not to be asked as well.
                if let ("tier" | "quota", Some(entity)) =
                    (field.as_str(), value["spec"]["entity"].as_object_mut())
                {
                    entity.entry("population").or_insert_with(|| json!(1));
                }
            }
            _ => {}
        }
    }
    let comune: Comune = serde_json::from_value(value).ok()?;
    comune.metadata.name.as_ref()?;
    Some((comune, removed))
}

/// The service that a message names as having the same host name stands behind this one: it is told there.
fn twin_comes_later(message: &str, path: &Path, value: &Value) -> bool {
    let Some(other) = backticked(message) else { return false };
    let [_, _, Segment::Index(own), ..] = path.0.as_slice() else { return false };
    let services = value["spec"]["services"].as_array().map(Vec::as_slice).unwrap_or_default();
    services.iter().position(|service| service["name"] == other).is_some_and(|other| other > *own)
}

/// The first word of a message in backticks.
fn backticked(message: &str) -> Option<&str> {
    message.split('`').nth(1)
}

/// A path that leads to a list or a map goes on to the element that the message speaks of.
fn exact(path: Path, message: &str, root: &Node) -> Path {
    let mut words = message.split('`').skip(1).step_by(2);
    match root.at_path(&path).map(|node| &node.data) {
        Some(Data::Map(entries)) => {
            let named = words.find(|word| entries.iter().any(|entry| entry.key == *word));
            named.map_or_else(|| path.clone(), |word| path.field(word))
        }
        Some(Data::List(items)) => {
            let is = |item: &Node, word: &str| match &item.data {
                Data::Scalar { value, .. } => shown(value) == word,
                _ => false,
            };
            let found = words.find_map(|word| items.iter().position(|item| is(item, word)));
            found.map_or_else(|| path.clone(), |index| path.index(index))
        }
        _ => path,
    }
}

/// Messages of the operator end with what there is; the nearest of it may be what was meant.
fn suggestion_from(message: &str) -> Option<String> {
    let word = backticked(message)?;
    let known = ["there are: ", "it has: ", "it may be: ", "it allows: "]
        .into_iter()
        .find_map(|words| message.split_once(words))
        .map(|(_, known)| known)?;
    // `the server X does not allow the extension Y`: what was mistyped is the last word.
    let word = if message.contains("does not allow")
        || message.contains("; it may be")
        || message.contains("has no version")
    {
        message.split('`').skip(1).step_by(2).last().unwrap_or(word)
    } else {
        word
    };
    suggest::closest(word, known.split(", ")).map(|near| format!("did you mean `{near}`?"))
}
