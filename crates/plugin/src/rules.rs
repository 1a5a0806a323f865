//! The CEL rules of the definitions, evaluated here.
//!
//! A rule is asked only when what it speaks of is in order: what is misspelt is told once, not again as a broken rule.
//! Rules on changes (`oldSelf`) need the stored object and are left to the API server.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use kube_cel::{
    KubeCelExt,
    cel::{
        Context, Program, Value as Cel,
        objects::{Key, Map as CelMap},
    },
};
use serde_json::Value;

use crate::{
    path::{Path, Segment},
    problem::Code,
    schema::Finding,
    suggest,
    yaml::Node,
};

/// Evaluates rules; keeps what it has compiled.
pub struct Rules {
    context: Context<'static>,
    programs: RefCell<HashMap<String, Arc<Compiled>>>,
    /// Rules that could not be compiled or evaluated, with the reason.
    troubles: RefCell<BTreeSet<String>>,
}

struct Compiled {
    program: Option<Program>,
    words: BTreeSet<String>,
}

impl Default for Rules {
    fn default() -> Self {
        let mut context = Context::default().with_all();
        // The evaluator knows no types as values; rules on amounts ask whether they are texts.
        context.add_function("type", |value: Cel| type_name(&value).to_owned());
        for name in ["string", "int", "uint", "double", "bool", "list", "map", "null_type"] {
            context.add_variable_from_value(name, name);
        }
        Self { context, programs: RefCell::default(), troubles: RefCell::default() }
    }
}

/// Fields of elements of a list that name elements of another list of the same manifest.
const REFERENCES: [(&str, &[&str], &str); 5] = [
    ("databases", &["environment"], "environments"),
    ("services", &["environment"], "environments"),
    ("services", &["database"], "databases"),
    ("servers", &["site"], "sites"),
    ("workloads", &["disk", "disk"], "disks"),
];

impl Rules {
    /// Holds a value, as [`schema::check`](crate::schema::check) returned it, against every rule of its schema. `found`
    /// holds what is wrong already and takes what is wrong besides.
    pub fn check(&self, root: &Node, value: &Value, schema: &JSONSchemaProps, found: &mut Vec<Finding>) {
        let known = found.clone();
        self.walk(root, value, schema, &Path::default(), &known, found);
    }

    /// Rules that could not be evaluated here, in words.
    pub fn troubles(&self) -> Vec<String> {
        self.troubles.borrow().iter().cloned().collect()
    }

    fn walk(
        &self,
        root: &Node,
        value: &Value,
        schema: &JSONSchemaProps,
        path: &Path,
        known: &[Finding],
        found: &mut Vec<Finding>,
    ) {
        let rules = schema.x_kubernetes_validations.as_deref().unwrap_or_default();
        let is_whole = !known.iter().any(|finding| finding.path == *path && finding.code == Code::WrongType);
        if !rules.is_empty() && is_whole {
            let this = to_cel(value);
            for rule in rules {
                if let Some(finding) = self.broken(root, rule, value, &this, path, known) {
                    found.push(finding);
                }
            }
        }
        match value {
            Value::Object(map) => {
                let others = match &schema.additional_properties {
                    Some(JSONSchemaPropsOrBool::Schema(schema)) => Some(schema.as_ref()),
                    _ => None,
                };
                for (name, value) in map {
                    let below = schema.properties.as_ref().and_then(|properties| properties.get(name));
                    if let Some(below) = below.or(others) {
                        self.walk(root, value, below, &path.field(name), known, found);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(JSONSchemaPropsOrArray::Schema(below)) = &schema.items {
                    for (index, item) in items.iter().enumerate() {
                        self.walk(root, item, below, &path.index(index), known, found);
                    }
                }
            }
            _ => {}
        }
    }

    fn broken(
        &self,
        root: &Node,
        rule: &ValidationRule,
        value: &Value,
        this: &Cel,
        path: &Path,
        known: &[Finding],
    ) -> Option<Finding> {
        let compiled = self.compiled(&rule.rule);
        let program = compiled.program.as_ref()?;
        if compiled.words.contains("oldSelf")
            || known.iter().any(|finding| speaks_of(&compiled.words, path, finding))
        {
            return None;
        }
        if self.holds(program, this.clone(), &rule.rule)? {
            return None;
        }
        let message =
            rule.message.clone().unwrap_or_else(|| format!("the rule does not hold: {}", rule.rule));
        let mut suggestion = None;
        let mut place = path.clone();
        for word in rule.field_path.as_deref().unwrap_or_default().split('.').filter(|word| !word.is_empty())
        {
            place = place.field(word);
        }
        let mut message = message;
        if let Some((field, words)) = message.clone().split_once(": ")
            && field == "metadata.name"
        {
            place = Path::default().field("metadata").field("name");
            message = words.to_owned();
        }
        if let Some(index) = self.culprit(program, &rule.rule, value, path, &place) {
            let list = place.0.last().cloned();
            place = place.index(index);
            if let Some(Segment::Field(list)) = list {
                let (below, hint) = reference(value, &list, index, &compiled.words);
                for word in below {
                    place = place.field(word);
                }
                suggestion = hint;
            }
        }
        let at = root.locate(&place);
        Some(Finding { path: place, at, code: Code::Rule, message, suggestion, covers: Vec::new() })
    }

    /// The element of the list that a rule speaks of which breaks it by itself.
    fn culprit(
        &self,
        program: &Program,
        rule: &str,
        value: &Value,
        path: &Path,
        place: &Path,
    ) -> Option<usize> {
        let [Segment::Field(list)] = place.0.get(path.0.len()..)? else { return None };
        let items = value.get(list)?.as_array()?;
        let with = |items: Vec<Value>| {
            let mut changed = value.clone();
            changed[list] = Value::Array(items);
            self.holds(program, to_cel(&changed), rule)
        };
        // A list that may not even be there has no element to blame.
        if with(Vec::new()) != Some(true) {
            return None;
        }
        (0..items.len()).find(|index| with(vec![items[*index].clone()]) == Some(false))
    }

    /// None: it cannot be told here.
    fn holds(&self, program: &Program, this: Cel, rule: &str) -> Option<bool> {
        let mut scope = self.context.new_inner_scope();
        scope.add_variable_from_value("self", this);
        match program.execute(&scope) {
            Ok(Cel::Bool(holds)) => Some(holds),
            Ok(other) => {
                self.troubles.borrow_mut().insert(format!("{rule}: the outcome is {other:?}"));
                None
            }
            Err(error) => {
                self.troubles.borrow_mut().insert(format!("{rule}: {error}"));
                None
            }
        }
    }

    fn compiled(&self, rule: &str) -> Arc<Compiled> {
        if let Some(known) = self.programs.borrow().get(rule) {
            return known.clone();
        }
        let program = Program::compile(rule);
        if let Err(error) = &program {
            self.troubles.borrow_mut().insert(format!("{rule}: {error}"));
        }
        let words = rule.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect();
        let compiled = Arc::new(Compiled { program: program.ok(), words });
        self.programs.borrow_mut().insert(rule.to_owned(), compiled.clone());
        compiled
    }
}

/// Whether a rule at `path` speaks of what a finding says is not in order.
fn speaks_of(words: &BTreeSet<String>, path: &Path, finding: &Finding) -> bool {
    let mentions = |place: &Path| {
        place.0.get(path.0.len()..).is_some_and(|below| {
            place.is_within(path)
                && below.iter().all(|segment| match segment {
                    Segment::Field(name) => words.contains(name),
                    Segment::Index(_) => true,
                })
        })
    };
    // A value of the right type that is too long or too many can be spoken of.
    let is_readable = matches!(finding.code, Code::OutOfRange | Code::DuplicateElement);
    !is_readable && (mentions(&finding.path) || finding.covers.iter().any(mentions))
}

/// The field of an element that names what is not there, and what it may have meant.
fn reference(
    value: &Value,
    list: &str,
    index: usize,
    words: &BTreeSet<String>,
) -> (&'static [&'static str], Option<String>) {
    for (of, field, target) in REFERENCES {
        if of != list || !words.contains(target) || !field.iter().all(|word| words.contains(*word)) {
            continue;
        }
        let element = &value[list][index];
        let named = field.iter().try_fold(element, |value, word| value.get(*word)).and_then(Value::as_str);
        let known: Vec<&str> = value[target]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item.get("name").and_then(Value::as_str))
            .collect();
        if let Some(named) = named.filter(|named| !known.contains(named)) {
            return (field, suggest::did_you_mean(named, known));
        }
    }
    (&[], None)
}

fn type_name(value: &Cel) -> &'static str {
    match value {
        Cel::String(_) => "string",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::Bool(_) => "bool",
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        _ => "null_type",
    }
}

/// The largest whole number that every reader of JSON can tell from its neighbours.
const LARGEST: i64 = 1 << 53;

/// A JSON value as CEL sees it.
fn to_cel(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(truth) => Cel::Bool(*truth),
        // The evaluator's `sum` overflows on the largest numbers; no rule tells these apart.
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Cel::Int(number.clamp(-LARGEST, LARGEST)),
            (None, Some(_)) => Cel::Int(LARGEST),
            _ => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| (Key::String(Arc::new(key.clone())), to_cel(value)));
            Cel::Map(CelMap { map: Arc::new(entries.collect()) })
        }
    }
}
