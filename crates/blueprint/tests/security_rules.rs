//! Every security rule holds now and has a test that is named after it and exists: docs/security/decisions.md against
//! the sources.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Rules 14 and up concern the migration of local servers and arrive with it.
const RULES: std::ops::RangeInclusive<u8> = 1..=13;
fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn decisions() -> String {
    fs::read_to_string(checkout().join("docs/security/decisions.md")).expect("docs/security/decisions.md")
}

/// The cells of each row of tables below the lines that are `from` and above those that are `to`.
fn rows<'a>(text: &'a str, from: &str, to: Option<&str>) -> Vec<Vec<&'a str>> {
    text.lines()
        .skip_while(|line| *line != from)
        .skip(1)
        .take_while(|line| to.is_none_or(|to| *line != to))
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|row| row.split(" | ").map(str::trim).collect())
        .collect()
}

const TESTS: &str = "## Tests that fail when a rule is broken";

/// The state of each rule, by the row that begins with its number.
fn states(text: &str) -> BTreeMap<u8, &str> {
    rows(text, "# Security rules and where they live", Some(TESTS))
        .iter()
        .filter_map(|row| Some((row.first()?.parse().ok()?, *row.get(2)?)))
        .collect()
}

/// File and name of the tests of each rule.
fn named(text: &str) -> BTreeMap<u8, Vec<(&str, &str)>> {
    rows(text, TESTS, None)
        .iter()
        .filter_map(|row| {
            let tests = row.get(1)?.split(", ").map(|test| {
                let path = test.trim_matches('`');
                path.split_once("::").unwrap_or_else(|| panic!("`file::name`, not {test}"))
            });
            Some((row.first()?.parse().ok()?, tests.collect()))
        })
        .collect()
}

/// Whether a function of this name is a test, or a case that a test of the same file runs.
fn runs(source: &str, name: &str) -> bool {
    let call = format!("{name}(");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let defined = lines.iter().position(|line| {
        !line.starts_with("//")
            && line
                .split_once("fn ")
                .is_some_and(|(before, rest)| rest.starts_with(&call) && ["", "async "].contains(&before))
    });
    let Some(defined) = defined else { return false };
    let attributes =
        || lines[..defined].iter().rev().take_while(|line| line.starts_with('#') || line.starts_with("//"));
    let is_test = attributes().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
    let is_ignored = attributes().any(|line| line.starts_with("#[ignore"));
    let is_called = lines
        .iter()
        .enumerate()
        .any(|(at, line)| at != defined && !line.starts_with("//") && line.contains(&call));
    !is_ignored && (is_test || is_called)
}

#[test]
fn every_rule_holds_now_and_has_tests_that_exist() {
    let text = decisions();
    let (states, named) = (states(&text), named(&text));
    let mut wrong = Vec::new();
    for rule in RULES {
        let prefix = format!("rule_{rule}_");
        let tests = named.get(&rule).map(Vec::as_slice).unwrap_or_default();
        match states.get(&rule).copied() {
            Some("now") if tests.is_empty() => wrong.push(format!("rule {rule} names no test")),
            Some("now") => {}
            state => wrong.push(format!("rule {rule} has to hold now, not {state:?}")),
        }
        for (file, name) in tests {
            if !name.starts_with(&prefix) {
                wrong.push(format!("{file}::{name} is not called after rule {rule}"));
            }
            match fs::read_to_string(checkout().join(file)) {
                Ok(source) if runs(&source, name) => {}
                Ok(_) => wrong.push(format!("{file} runs no {name}")),
                Err(error) => wrong.push(format!("{file}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "docs/security/decisions.md:\n{}", wrong.join("\n"));
}

#[test]
fn what_is_only_written_does_not_pass_for_a_test() {
    let source = "\
#[test]
#[should_panic]
fn rule_1_a() {}
#[tokio::test(flavor = \"multi_thread\")]
/// With words.
async fn rule_1_b() {}
fn rule_1_c() -> Rule {}
fn rules() { vec![rule_1_c()] }
fn rule_1_d() {}
// rule_1_d() is not called, fn rule_1_e() does not exist
#[test]
#[ignore]
fn rule_1_f() {}
";
    for (name, runs_it) in
        [("a", true), ("b", true), ("c", true), ("d", false), ("e", false), ("f", false), ("", false)]
    {
        assert_eq!(runs(source, &format!("rule_1_{name}")), runs_it, "{name}");
    }
}
