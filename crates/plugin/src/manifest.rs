//! The objects in manifests, each held against its definition.

use std::{collections::BTreeMap, sync::LazyLock};

use conme_api::{GROUP, VERSION, crds};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrBool,
};
use serde_json::Value;

use crate::{
    path::Path,
    problem::{Code, Note, Position, Problem},
    rules::Rules,
    schema::{self, Finding},
    suggest,
    yaml::{self, Data, Document, Node},
};

/// The kinds that are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OurKind {
    /// One administration.
    Comune,
    /// The shared capacity.
    DataCenter,
    /// One entry of the catalogue.
    ServiceTemplate,
}

impl OurKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Comune, Self::DataCenter, Self::ServiceTemplate];

    /// `kind` as it stands in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Comune => "Comune",
            Self::DataCenter => "DataCenter",
            Self::ServiceTemplate => "ServiceTemplate",
        }
    }

    /// Resource name in addresses.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Comune => "comuni",
            Self::DataCenter => "datacenters",
            Self::ServiceTemplate => "servicetemplates",
        }
    }
}

/// An object of a manifest.
pub struct Object {
    /// File as it was named.
    pub file: String,
    /// Kind.
    pub kind: OurKind,
    /// Its top.
    pub root: Node,
    /// As the API server would see it, with defaults.
    pub value: Value,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

impl Object {
    /// Its name, as far as it has one.
    pub fn name(&self) -> &str {
        self.root.get("metadata").and_then(|metadata| metadata.text("name")).unwrap_or_default()
    }

    /// Kind and name, for people.
    pub fn label(&self) -> String {
        format!("{} {}", self.kind.name(), self.name()).trim_end().to_owned()
    }

    /// Its problems, as they are told.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let (file, object) = (&self.file, self.label());
        self.findings.iter().map(move |finding| Problem {
            file: file.clone(),
            at: finding.at,
            object: object.clone(),
            path: finding.path.clone(),
            code: finding.code,
            message: finding.message.clone(),
            suggestion: finding.suggestion.clone(),
            covers: finding.covers.clone(),
        })
    }
}

/// What was read.
#[derive(Default)]
pub struct Manifests {
    /// Objects of our kinds.
    pub objects: Vec<Object>,
    /// What stands in the way of reading others.
    pub problems: Vec<Problem>,
    /// What was passed over.
    pub notes: Vec<Note>,
}

impl Manifests {
    /// Takes the contents of a file in.
    pub fn add(&mut self, file: &str, bytes: &[u8], rules: &Rules) {
        let (documents, problems) = yaml::read(file, bytes);
        self.problems.extend(problems);
        for Document { file, root } in documents {
            self.add_object(&file, root, rules);
        }
    }

    fn add_object(&mut self, file: &str, root: Node, rules: &Rules) {
        if !matches!(root.data, Data::Map(_)) {
            let message = "the document is no manifest: it has no fields".to_owned();
            self.problem(file, root.at, Path::default(), Code::WrongType, message, None);
            return;
        }
        let version = root.text("apiVersion").unwrap_or_default().to_owned();
        let kind = root.text("kind").unwrap_or_default().to_owned();
        if kind == "List" || (kind.ends_with("List") && root.get("items").is_some()) {
            if let Some(Node { data: Data::List(items), .. }) = root.get("items") {
                for item in items.clone() {
                    self.add_object(file, item, rules);
                }
            }
            return;
        }
        let ours = format!("{GROUP}/{VERSION}");
        let known = OurKind::ALL.into_iter().find(|known| known.name() == kind);
        let is_of_group = version.split('/').next() == Some(GROUP);
        // Folders hold other YAML too, such as the pipeline itself.
        if ["apiVersion", "kind", "metadata", "spec"].iter().all(|field| root.get(field).is_none()) {
            let message =
                "a document without apiVersion, kind, metadata and spec is no manifest and was passed over";
            self.notes.push(Note { file: file.to_owned(), message: message.into() });
            return;
        }
        let missing = ["apiVersion", "kind"].into_iter().find(|field| root.text(field).is_none());
        match (known, missing) {
            (_, Some(field)) => {
                let suggestion = match field {
                    "apiVersion" => format!("apiVersion: {ours}"),
                    _ => "kind: Comune (or DataCenter, ServiceTemplate)".to_owned(),
                };
                let path = Path::default().field(field);
                let at = root.locate(&path);
                let message = format!("`{field}` is missing: it says what the document is");
                self.problem(file, at, path, Code::MissingField, message, Some(suggestion));
            }
            (Some(kind), None) if version == ours => self.objects.push(examine(file, kind, root, rules)),
            (Some(kind), None)
                if is_of_group
                    || !version.contains('.')
                    || suggest::closest(&version, [ours.as_str()]).is_some() =>
            {
                let path = Path::default().field("apiVersion");
                let at = root.locate(&path);
                let message = format!("`{version}` has no {}", kind.name());
                let suggestion = Some(format!("did you mean `{ours}`?"));
                self.problem(file, at, path, Code::NotAllowed, message, suggestion);
            }
            (None, None) if is_of_group => {
                let path = Path::default().field("kind");
                let at = root.locate(&path);
                let names = OurKind::ALL.map(OurKind::name);
                let plural = OurKind::ALL.into_iter().find(|known| known.plural() == kind.to_lowercase());
                let suggestion = match plural {
                    Some(known) => Some(format!("did you mean `{}`?", known.name())),
                    None => suggest::did_you_mean(&kind, names),
                };
                let message = format!("there is no kind `{kind}` in {ours}");
                self.problem(file, at, path, Code::NotAllowed, message, suggestion);
            }
            _ => {
                let name =
                    root.get("metadata").and_then(|metadata| metadata.text("name")).unwrap_or_default();
                let message = format!("{kind} {name} ({version}) is not of Con.Me and was passed over");
                self.notes.push(Note { file: file.to_owned(), message });
            }
        }
    }

    fn problem(
        &mut self,
        file: &str,
        at: Position,
        path: Path,
        code: Code,
        message: String,
        suggestion: Option<String>,
    ) {
        self.problems.push(Problem {
            file: file.to_owned(),
            at,
            object: String::new(),
            path,
            code,
            message,
            suggestion,
            covers: Vec::new(),
        });
    }
}

/// Holds an object against its definition.
fn examine(file: &str, kind: OurKind, root: Node, rules: &Rules) -> Object {
    let mut findings = Vec::new();
    let mut value = Value::Null;
    if let Some(schema) = SCHEMAS.get(&kind) {
        value = schema::check(&root, root.at, schema, &Path::default(), &mut findings);
        rules.check(&root, &value, schema, &mut findings);
    }
    check_metadata(&root, kind, &mut findings);
    Object { file: file.to_owned(), kind, root, value, findings }
}

/// The schema of each kind from its `apiVersion` down.
static SCHEMAS: LazyLock<BTreeMap<OurKind, JSONSchemaProps>> = LazyLock::new(|| {
    let mut schemas = BTreeMap::new();
    for crd in crds() {
        let kind = OurKind::ALL.into_iter().find(|kind| kind.name() == crd.spec.names.kind);
        let version = crd.spec.versions.into_iter().find(|version| version.name == VERSION);
        let schema = version.and_then(|version| version.schema?.open_api_v3_schema);
        if let (Some(kind), Some(mut schema)) = (kind, schema) {
            let properties = schema.properties.get_or_insert_default();
            properties.insert("apiVersion".into(), of_type("string"));
            properties.insert("kind".into(), of_type("string"));
            properties.insert("metadata".into(), metadata());
            // Written by the operator only; the API server takes it out of what others write.
            properties.insert("status".into(), anything());
            schema.required.get_or_insert_default().push("metadata".into());
            schemas.insert(kind, schema);
        }
    }
    schemas
});

fn of_type(name: &str) -> JSONSchemaProps {
    JSONSchemaProps { type_: Some(name.into()), ..JSONSchemaProps::default() }
}

fn anything() -> JSONSchemaProps {
    JSONSchemaProps { x_kubernetes_preserve_unknown_fields: Some(true), ..JSONSchemaProps::default() }
}

fn metadata() -> JSONSchemaProps {
    let texts = || JSONSchemaProps {
        additional_properties: Some(JSONSchemaPropsOrBool::Schema(Box::new(of_type("string")))),
        ..of_type("object")
    };
    let mut properties = BTreeMap::from([
        (
            "name".to_owned(),
            JSONSchemaProps {
                description: Some("how it is called, such as dolo".into()),
                ..of_type("string")
            },
        ),
        ("generateName".to_owned(), of_type("string")),
        ("namespace".to_owned(), of_type("string")),
        ("labels".to_owned(), texts()),
        ("annotations".to_owned(), texts()),
    ]);
    for written_by_server in [
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "finalizers",
        "managedFields",
        "selfLink",
    ] {
        properties.insert(written_by_server.to_owned(), anything());
    }
    JSONSchemaProps {
        properties: Some(properties),
        required: Some(vec!["name".into()]),
        description: Some("name and labels".into()),
        ..of_type("object")
    }
}

/// What the API server asks of the metadata of every object.
fn check_metadata(root: &Node, kind: OurKind, findings: &mut Vec<Finding>) {
    let Some(metadata) = root.get("metadata") else { return };
    let top = Path::default().field("metadata");
    let mut add = |path: Path, at: Position, message: String| {
        if !findings.iter().any(|known| known.path == path) {
            findings.push(Finding {
                path,
                at,
                code: Code::Rule,
                message,
                suggestion: None,
                covers: Vec::new(),
            });
        }
    };
    if let Some(name) = metadata.text("name") {
        let path = top.field("name");
        let at = root.locate(&path);
        // The definition of a Comune is stricter and has said what is wrong.
        if kind != OurKind::Comune && !is_subdomain(name) {
            add(
                path,
                at,
                "a name is lower-case letters, digits, hyphens and dots, at most 253, such as sito-web"
                    .into(),
            );
        }
    }
    for map in ["labels", "annotations"] {
        let Some(Node { data: Data::Map(entries), .. }) = metadata.get(map) else { continue };
        for entry in entries {
            let path = top.field(map).field(&entry.key);
            if !is_qualified(&entry.key) {
                add(
                    path.clone(),
                    entry.at,
                    format!(
                        "`{}` is no key: [domain/]name with at most 63 letters, digits, hyphens, underscores and dots",
                        entry.key
                    ),
                );
            }
            if let (Data::Scalar { value: Value::String(text), .. }, "labels") = (&entry.value.data, map)
                && !(text.is_empty() || is_label(text))
            {
                add(
                    path,
                    entry.value.at,
                    "the value of a label has at most 63 letters, digits, hyphens, underscores and dots, and begins and ends with a letter or digit".into(),
                );
            }
        }
    }
}

fn is_label(text: &str) -> bool {
    let ends = [text.chars().next(), text.chars().last()];
    text.len() <= 63
        && ends.into_iter().all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric()))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, name)) => is_subdomain(domain) && is_label(name),
        None => is_label(key),
    }
}

fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}
