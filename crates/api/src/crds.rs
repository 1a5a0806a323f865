//! The CustomResourceDefinitions, as they are shipped.
//!
//! What is derived from the types is correct but speaks in regular expressions. Here every pattern and every
//! choice between alternatives becomes a CEL rule with a message in words, because the message is what a sysadmin
//! gets to read when `kubectl apply` refuses a manifest.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use kube::CustomResourceExt;

use crate::{
    Comune, DataCenter, Migration, ServiceTemplate,
    common::{
        DATE_PATTERN, DURATION_PATTERN, HOSTNAME_PATTERN, NAME_PATTERN, POSITIVE_DURATION_PATTERN,
        QUANTITY_PATTERN, TIME_PATTERN,
    },
};

/// What each pattern of the schema asks for, in words.
const PATTERNS_IN_WORDS: &[(&str, &str)] = &[
    (
        NAME_PATTERN,
        "is lower-case letters, digits and single hyphens and begins with a letter, such as san-stino",
    ),
    (HOSTNAME_PATTERN, "is a full host name in lower case without a wildcard, such as www.comune.dolo.ve.it"),
    (DATE_PATTERN, "is a date written YYYY-MM-DD, in quotes"),
    (TIME_PATTERN, "is a time of the day written HH:MM, in quotes"),
    (QUANTITY_PATTERN, "is an amount without a sign, such as 8, 500m, 512Mi, 16Gi"),
    (DURATION_PATTERN, "is a span of time, a whole number with s, m, h or d, such as 24h"),
    (POSITIVE_DURATION_PATTERN, "is a span of time that is not nothing, such as 90d or 2160h"),
    ("^[0-9]{6}$", "is an ISTAT code of 6 digits, in quotes: \"027012\""),
    ("^[A-Za-z0-9_]+$", "is an IPA code: letters, digits and underscores, such as c_d325"),
    ("^[A-Z][0-9]{3}$", "is a Belfiore code: a capital letter and three digits, such as D325"),
    ("^[A-Za-z0-9_/-]+$", "is the name of a disk without /dev/, such as sda"),
    ("^/", "is an absolute path: it begins with /"),
    ("^/([A-Za-z0-9._-]+/)*[A-Za-z0-9._-]+$", "is an absolute path of a file, without spaces"),
    ("^[a-z][a-zA-Z0-9]*$", "is a parameter name: letters and digits, beginning with a lower-case letter"),
    ("^[A-Za-z_][A-Za-z0-9_]*$", "is the name of an environment variable: letters, digits and underscores"),
];

/// All CustomResourceDefinitions, in the order in which they are applied.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![Comune::crd(), DataCenter::crd(), ServiceTemplate::crd(), Migration::crd()];
    for crd in &mut crds {
        // A Helm uninstall must never take the definitions, and with them every object, away.
        crd.metadata
            .annotations
            .get_or_insert_default()
            .insert("helm.sh/resource-policy".into(), "keep".into());
        for version in &mut crd.spec.versions {
            if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
                in_words(schema);
            }
        }
    }
    crds
}

/// Replaces patterns and `oneOf` alternatives by CEL rules with messages, and formats unknown to Kubernetes by none.
fn in_words(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    if let Some(pattern) = schema.pattern.take() {
        let words = PATTERNS_IN_WORDS.iter().find(|(known, _)| *known == pattern).map(|(_, words)| *words);
        let quoted = pattern.replace('\\', r"\\").replace('\'', r"\'");
        let matches = format!("self.matches('{quoted}')");
        let rule = match schema.x_kubernetes_int_or_string {
            Some(true) => format!("type(self) == string ? {matches} : self >= 0"),
            _ => matches,
        };
        let message =
            words.map_or_else(|| format!("must match {pattern}"), |words| format!("a value here {words}"));
        add_rule(schema, rule, message);
    }
    if let Some(names) = alternatives(schema) {
        schema.one_of = None;
        let present: Vec<String> = names.iter().map(|name| format!("has(self.{name})")).collect();
        let rule = format!("[{}].filter(x, x).size() == 1", present.join(", "));
        add_rule(schema, rule, format!("give exactly one of {}", names.join(", ")));
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        in_words(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = schema.items.as_mut() {
        in_words(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = schema.additional_properties.as_mut() {
        in_words(values);
    }
}

/// The names of the alternatives, when the schema says "one of these properties is required" and nothing else.
fn alternatives(schema: &JSONSchemaProps) -> Option<Vec<String>> {
    let one_of = schema.one_of.as_ref()?;
    one_of
        .iter()
        .map(|option| option.required.as_ref().filter(|r| r.len() == 1).and_then(|r| r.first().cloned()))
        .collect()
}

fn add_rule(schema: &mut JSONSchemaProps, rule: String, message: String) {
    let rule = ValidationRule { rule, message: Some(message), ..ValidationRule::default() };
    schema.x_kubernetes_validations.get_or_insert_default().push(rule);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(schema: &JSONSchemaProps, path: &str, visit: &mut impl FnMut(&JSONSchemaProps, &str)) {
        visit(schema, path);
        for (name, property) in schema.properties.iter().flatten() {
            each(property, &format!("{path}.{name}"), visit);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            each(items, &format!("{path}[]"), visit);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
            each(values, &format!("{path}[]"), visit);
        }
    }

    fn each_schema(visit: &mut impl FnMut(&JSONSchemaProps, &str)) {
        for crd in crds() {
            let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
            each(&schema, &crd.spec.names.kind, visit);
        }
    }

    #[test]
    fn every_rule_speaks_in_words() {
        let mut rules = 0;
        each_schema(&mut |schema, path| {
            assert!(schema.pattern.is_none() && schema.one_of.is_none(), "{path} is refused without words");
            for rule in schema.x_kubernetes_validations.iter().flatten() {
                rules += 1;
                let message = rule.message.as_deref().unwrap_or_default();
                assert!(!message.is_empty() && !message.contains("must match"), "{path}: {}", rule.rule);
            }
        });
        assert!(rules > 60, "only {rules} rules were seen: the walk is broken");
    }

    #[test]
    fn every_field_of_spec_and_status_is_explained() {
        let mut fields = 0;
        each_schema(&mut |schema, path| {
            if path.contains(".spec.") || path.contains(".status.") {
                if path.ends_with("[]") || path.contains(".conditions") {
                    return;
                }
                fields += 1;
                assert!(schema.description.is_some(), "{path} has no description");
            }
        });
        assert!(fields > 150, "only {fields} fields were seen: the walk is broken");
    }

    #[test]
    fn whatever_a_manifest_says_is_bounded() {
        let mut numbers = 0;
        each_schema(&mut |schema, path| {
            if !path.contains(".spec.") {
                return;
            }
            match schema.type_.as_deref() {
                Some("array") => assert!(schema.max_items.is_some(), "{path} has no maxItems"),
                Some("string") => {
                    assert!(schema.max_length.is_some() || schema.enum_.is_some(), "{path} has no maxLength");
                }
                Some("object") if schema.additional_properties.is_some() => {
                    assert!(schema.max_properties.is_some(), "{path} has no maxProperties");
                }
                // A number that the operator's type does not hold would make the whole resource unreadable for it.
                Some("integer") if schema.format.as_deref() != Some("int64") => {
                    numbers += 1;
                    let (least, most) =
                        (schema.minimum.unwrap_or(f64::MIN), schema.maximum.unwrap_or(f64::MAX));
                    assert!(least >= 0.0, "{path} has no minimum");
                    assert!(
                        most <= f64::from(u32::MAX),
                        "{path} has no maximum, or one that 32 bits do not hold"
                    );
                }
                _ => {}
            }
        });
        assert!(numbers > 20, "only {numbers} numbers were seen: the walk is broken");
    }
}
