//! A manifest against the structure of its definition: fields, types, bounds, names.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::{Map, Number, Value};

use crate::{
    path::Path,
    problem::{Code, Position},
    suggest,
    yaml::{Data, Node},
};

/// A problem before it is known which file and object it belongs to.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Field.
    pub path: Path,
    /// Where to look.
    pub at: Position,
    /// Sort of rule.
    pub code: Code,
    /// In words.
    pub message: String,
    /// What to write instead.
    pub suggestion: Option<String>,
    /// Fields that are in order as soon as this one is.
    pub covers: Vec<Path>,
}

impl Finding {
    fn new(path: &Path, at: Position, code: Code, message: String) -> Self {
        Self { path: path.clone(), at, code, message, suggestion: None, covers: Vec::new() }
    }

    fn suggesting(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }
}

/// Checks a value, and returns it as the API server would see it: with defaults, without nulls.
pub fn check(
    node: &Node,
    place: Position,
    schema: &JSONSchemaProps,
    path: &Path,
    found: &mut Vec<Finding>,
) -> Value {
    if !has_type(node, schema) {
        found.push(wrong_type(node, place, schema, path));
        return node.to_json();
    }
    match &node.data {
        Data::Scalar { value, .. } => {
            check_scalar(value, node.at, schema, path, found);
            value.clone()
        }
        Data::List(items) => check_list(items, place, schema, path, found),
        Data::Map(_) => check_map(node, place, schema, path, found),
    }
}

fn check_list(
    items: &[Node],
    place: Position,
    schema: &JSONSchemaProps,
    path: &Path,
    found: &mut Vec<Finding>,
) -> Value {
    let of = |count: usize| if count == 1 { "element" } else { "elements" };
    if let Some(most) = schema.max_items.filter(|most| items.len() as i64 > *most) {
        let message = format!("the list has {} elements; at most {most} are allowed", items.len());
        found.push(Finding::new(path, place, Code::OutOfRange, message));
    }
    if let Some(least) = schema.min_items.filter(|least| (items.len() as i64) < *least) {
        let message = format!("the list has {} {}; at least {least} needed", items.len(), of(items.len()));
        found.push(Finding::new(path, place, Code::OutOfRange, message));
    }
    check_unique(items, schema, path, found);
    let Some(JSONSchemaPropsOrArray::Schema(below)) = &schema.items else {
        return items.iter().map(Node::to_json).collect();
    };
    let each = items.iter().enumerate();
    each.map(|(index, item)| check(item, item.at, below, &path.index(index), found)).collect()
}

/// In a list that is a map, no two elements have the same name; in a set, no two are equal.
fn check_unique(items: &[Node], schema: &JSONSchemaProps, path: &Path, found: &mut Vec<Finding>) {
    let keys = schema.x_kubernetes_list_map_keys.as_deref().unwrap_or_default();
    let identity = |item: &Node| match schema.x_kubernetes_list_type.as_deref() {
        Some("map") => keys.iter().map(|key| item.get(key).map(Node::to_json)).collect::<Option<Vec<_>>>(),
        Some("set") => Some(vec![item.to_json()]),
        _ => None,
    };
    let mut known: Vec<(Vec<Value>, usize)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let Some(identity) = identity(item) else { continue };
        let Some((_, line)) = known.iter().find(|(other, _)| *other == identity) else {
            known.push((identity, item.at.line));
            continue;
        };
        let words: Vec<String> = identity.iter().map(shown).collect();
        let message = format!("{} stands in this list a second time; first in line {line}", words.join(" "));
        let at = keys.first().and_then(|key| item.get(key)).map_or(item.at, |node| node.at);
        let finding = Finding::new(&path.index(index), at, Code::DuplicateElement, message);
        found.push(finding.suggesting(Some("choose another name, or remove one of the two".into())));
    }
}

fn check_map(
    node: &Node,
    place: Position,
    schema: &JSONSchemaProps,
    path: &Path,
    found: &mut Vec<Finding>,
) -> Value {
    let Data::Map(entries) = &node.data else { return node.to_json() };
    let none = Default::default();
    let properties = schema.properties.as_ref().unwrap_or(&none);
    let mut seen = Map::new();
    let mut misspelt: Vec<String> = Vec::new();
    let others = match &schema.additional_properties {
        Some(JSONSchemaPropsOrBool::Schema(schema)) => Some(schema.as_ref()),
        _ => None,
    };
    let open = schema.x_kubernetes_preserve_unknown_fields == Some(true)
        || matches!(schema.additional_properties, Some(JSONSchemaPropsOrBool::Bool(true)));
    for entry in entries {
        let below = path.field(&entry.key);
        let is_null = matches!(&entry.value.data, Data::Scalar { value: Value::Null, .. });
        let Some(schema) = properties.get(&entry.key).or(others) else {
            if !open {
                let missing = properties.keys().map(String::as_str).filter(|key| node.get(key).is_none());
                let near = suggest::closest(&entry.key, missing.clone());
                let suggestion = suggest::did_you_mean(&entry.key, missing);
                let message = format!("there is no field `{}` here", entry.key);
                let mut finding =
                    Finding::new(&below, entry.at, Code::UnknownField, message).suggesting(suggestion);
                if let Some(near) = near {
                    finding.covers.push(path.field(near));
                    misspelt.push(near.to_owned());
                }
                found.push(finding);
            }
            continue;
        };
        // The API server takes a field without a value for one that is not there, and where it may be null the operator
        // does.
        if is_null {
            continue;
        }
        let place = match &entry.value.data {
            Data::Scalar { .. } => entry.value.at,
            _ => entry.at,
        };
        let value = check(&entry.value, place, schema, &below, found);
        seen.insert(entry.key.clone(), value);
    }
    for (name, property) in properties {
        if let (None, Some(default)) = (seen.get(name), &property.default) {
            seen.insert(name.clone(), with_defaults(default.0.clone(), property));
        }
    }
    for name in schema.required.iter().flatten() {
        if seen.contains_key(name) || misspelt.contains(name) {
            continue;
        }
        let words = properties.get(name).and_then(|property| property.description.as_deref());
        let words = words.map_or_else(String::new, |words| format!(": {}", first_sentence(words)));
        let empty = node.entry(name);
        let message = match empty {
            Some(_) => format!("`{name}` has no value{words}"),
            None => format!("`{name}` is missing{words}"),
        };
        let at = empty.map_or(place, |entry| entry.at);
        found.push(Finding::new(&path.field(name), at, Code::MissingField, message));
    }
    if let Some(most) = schema.max_properties.filter(|most| entries.len() as i64 > *most) {
        let message = format!("there are {} entries; at most {most} are allowed", entries.len());
        found.push(Finding::new(path, place, Code::OutOfRange, message));
    }
    Value::Object(seen)
}

/// Fills the defaults of a schema into a value that comes from a default itself.
fn with_defaults(mut value: Value, schema: &JSONSchemaProps) -> Value {
    match &mut value {
        Value::Object(map) => {
            for (name, property) in schema.properties.iter().flatten() {
                match map.get_mut(name) {
                    Some(below) => *below = with_defaults(below.take(), property),
                    None => {
                        if let Some(default) = &property.default {
                            map.insert(name.clone(), with_defaults(default.0.clone(), property));
                        }
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(JSONSchemaPropsOrArray::Schema(below)) = &schema.items {
                for item in items {
                    *item = with_defaults(item.take(), below);
                }
            }
        }
        _ => {}
    }
    value
}

fn has_type(node: &Node, schema: &JSONSchemaProps) -> bool {
    let is_amount = schema.x_kubernetes_int_or_string == Some(true);
    let value = match &node.data {
        Data::List(_) => return !is_amount && matches!(schema.type_.as_deref(), Some("array") | None),
        Data::Map(_) => return !is_amount && matches!(schema.type_.as_deref(), Some("object") | None),
        Data::Scalar { value, .. } => value,
    };
    if is_amount {
        return value.is_string() || is_whole(value);
    }
    match schema.type_.as_deref() {
        Some("string") => value.is_string(),
        Some("integer") => is_whole(value),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("array" | "object") => false,
        _ => true,
    }
}

/// Also what is written with a point or an exponent, as far as it is a number that the API server can hold.
fn is_whole(value: &Value) -> bool {
    let is_held = |number: f64| number.fract() == 0.0 && number.abs() < i64::MAX as f64;
    value.is_i64() || value.as_f64().is_some_and(is_held)
}

fn wrong_type(node: &Node, place: Position, schema: &JSONSchemaProps, path: &Path) -> Finding {
    let wanted = match schema.type_.as_deref() {
        _ if schema.x_kubernetes_int_or_string == Some(true) => "an amount: a text or a whole number",
        Some("string") => "a text",
        Some("integer") => "a whole number",
        Some("number") => "a number",
        Some("boolean") => "true or false",
        Some("array") => "a list",
        Some("object") => "a map of fields",
        _ => "something else",
    };
    let (found, suggestion) = match &node.data {
        Data::List(_) => ("a list".to_owned(), None),
        Data::Map(_) => {
            let hint = (schema.type_.as_deref() == Some("array"))
                .then(|| "begin every element with `- `".to_owned());
            ("a map of fields".to_owned(), hint)
        }
        Data::Scalar { value, raw } => {
            let found = match value {
                Value::Null => "nothing".to_owned(),
                Value::Bool(truth) if *raw != truth.to_string() => {
                    format!("`{raw}`, which YAML reads as {truth}")
                }
                Value::Bool(truth) => format!("the truth value {truth}"),
                Value::Number(number) if *raw != number.to_string() => {
                    format!("`{raw}`, which YAML reads as the number {number}")
                }
                Value::Number(number) => format!("the number {number}"),
                _ => format!("the text `{raw}`"),
            };
            let suggestion = match (schema.type_.as_deref(), value) {
                (Some("string"), Value::Number(_) | Value::Bool(_)) => {
                    Some(format!("put it in quotes: \"{raw}\""))
                }
                (Some("integer"), Value::String(text)) if text.parse::<i64>().is_ok() => {
                    Some(format!("take the quotes away: {text}"))
                }
                (Some("boolean"), Value::String(text)) if matches!(text.as_str(), "true" | "false") => {
                    Some(format!("take the quotes away: {text}"))
                }
                (Some("array"), Value::String(_) | Value::Number(_)) => {
                    Some(format!("as a list of one: [{raw}]"))
                }
                _ => None,
            };
            (found, suggestion)
        }
    };
    let message = format!("here belongs {wanted}, and there is {found}");
    Finding::new(path, place, Code::WrongType, message).suggesting(suggestion)
}

fn check_scalar(
    value: &Value,
    at: Position,
    schema: &JSONSchemaProps,
    path: &Path,
    found: &mut Vec<Finding>,
) {
    let mut add = |code: Code, message: String, suggestion: Option<String>| {
        found.push(Finding::new(path, at, code, message).suggesting(suggestion));
    };
    if let Some(allowed) = &schema.enum_
        && !allowed.iter().any(|allowed| allowed.0 == *value)
    {
        let words: Vec<String> = allowed.iter().map(|allowed| shown(&allowed.0)).collect();
        let near = suggest::closest(&shown(value), words.iter().map(String::as_str));
        add(
            Code::NotAllowed,
            format!("{} is not allowed here; allowed are: {}", quoted(value), words.join(", ")),
            near.map(|near| format!("did you mean `{near}`?")),
        );
    }
    if let Value::String(text) = value {
        let length = text.chars().count() as i64;
        if let Some(most) = schema.max_length.filter(|most| length > *most) {
            add(
                Code::OutOfRange,
                format!("the text has {length} characters; at most {most} are allowed"),
                None,
            );
        }
        if let Some(least) = schema.min_length.filter(|least| length < *least) {
            let message = match length {
                0 => "the text is empty".to_owned(),
                _ => format!("the text has {length} characters; at least {least} are needed"),
            };
            add(Code::OutOfRange, message, None);
        }
    }
    if let Some(number) = value.as_number().and_then(Number::as_f64) {
        let shown = shown(value);
        if let Some(most) = schema.maximum.filter(|most| number > *most) {
            add(Code::OutOfRange, format!("{shown} is too large; at most {most} is allowed"), None);
        }
        if let Some(least) = schema.minimum.filter(|least| number < *least) {
            add(Code::OutOfRange, format!("{shown} is too small; at least {least} is needed"), None);
        }
    }
}

/// A value as people write it.
pub fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn quoted(value: &Value) -> String {
    format!("`{}`", shown(value))
}

fn first_sentence(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = flat.find(". ").unwrap_or(flat.len());
    flat[..end].trim_end_matches('.').to_owned()
}
