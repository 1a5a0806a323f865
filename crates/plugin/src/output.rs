//! What `validate` found, for people and for pipelines.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use crate::{
    problem::{Code, Problem},
    validate::Report,
};

/// For people: one problem a paragraph.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let _ = writeln!(text, "{}", heading(problem));
        let _ = writeln!(text, "    {}", problem.message);
        if let Some(suggestion) = &problem.suggestion {
            let _ = writeln!(text, "    → {suggestion}");
        }
    }
    let _ = writeln!(text, "{}", summary(report));
    visible(&text)
}

/// Text of somebody else's manifest for a terminal or the log of a pipeline: control characters, which could colour,
/// move and erase what stands there, are shown as escapes.
pub fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\n' {
            visible.extend(character.escape_default());
        } else {
            visible.push(character);
        }
    }
    visible
}

fn heading(problem: &Problem) -> String {
    let mut text = format!("{}:{}:{}", problem.file, problem.at.line, problem.at.column);
    if !problem.object.is_empty() {
        let _ = write!(text, " {}", problem.object);
    }
    let path = problem.path.to_string();
    if !path.is_empty() {
        let _ = write!(text, " {path}");
    }
    text
}

fn summary(report: &Report) -> String {
    let count =
        |number: usize, one: &str, many: &str| format!("{number} {}", if number == 1 { one } else { many });
    let looked = format!(
        "{} in {}",
        count(report.objects, "object", "objects"),
        count(report.files.len(), "file", "files")
    );
    match report.problems.len() {
        0 => format!("no problem found: {looked}"),
        number => format!("{} found: {looked}", count(number, "problem", "problems")),
    }
}

/// All of it as one JSON object.
pub fn json(report: &Report) -> Value {
    json!({
        "files": report.files,
        "objects": report.objects,
        "problems": report.problems,
        "notes": report.notes,
        "milliseconds": report.took.as_secs_f64() * 1000.0,
    })
}

/// SARIF 2.1.0, as code-scanning pages read it.
pub fn sarif(report: &Report) -> Value {
    let rules: Vec<Value> = Code::ALL
        .iter()
        .map(|(code, words)| json!({"id": code.name(), "shortDescription": {"text": words}}))
        .collect();
    let results: Vec<Value> = report
        .problems
        .iter()
        .map(|problem| {
            json!({
                "ruleId": problem.code.name(),
                "ruleIndex": Code::ALL.iter().position(|(code, _)| *code == problem.code),
                "level": "error",
                "message": {"text": sentence(problem)},
                "locations": [{
                    "physicalLocation": {
                        "artifactLocation": {"uri": uri(&problem.file)},
                        "region": {"startLine": problem.at.line, "startColumn": problem.at.column},
                    },
                    "logicalLocations": [{"fullyQualifiedName": format!("{} {}", problem.object, problem.path).trim()}],
                }],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "kubectl-comune",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

/// A file name as part of an address.
fn uri(file: &str) -> String {
    let file = file.strip_prefix("./").unwrap_or(file);
    let mut text = String::new();
    for byte in file.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// JUnit: a test suite, a test case a file.
pub fn junit(report: &Report) -> String {
    let mut by_file: BTreeMap<&str, Vec<&Problem>> =
        report.files.iter().map(|file| (file.as_str(), Vec::new())).collect();
    for problem in &report.problems {
        by_file.entry(&problem.file).or_default().push(problem);
    }
    let failures = by_file.values().filter(|problems| !problems.is_empty()).count();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuites>\n  <testsuite name=\"kubectl comune validate\" tests=\"{}\" failures=\"{failures}\" time=\"{:.3}\">",
        by_file.len(),
        report.took.as_secs_f64()
    );
    for (file, problems) in by_file {
        let name = escaped(file);
        if problems.is_empty() {
            let _ = writeln!(text, "    <testcase classname=\"manifest\" name=\"{name}\"/>");
            continue;
        }
        let _ = writeln!(text, "    <testcase classname=\"manifest\" name=\"{name}\">");
        let all: Vec<String> =
            problems.iter().map(|problem| format!("{}: {}", heading(problem), sentence(problem))).collect();
        let first = problems.first().map(|problem| sentence(problem)).unwrap_or_default();
        let _ = writeln!(
            text,
            "      <failure message=\"{}\">{}</failure>\n    </testcase>",
            escaped(&first),
            escaped(&all.join("\n"))
        );
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

fn sentence(problem: &Problem) -> String {
    let path = problem.path.to_string();
    let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
    let hint = problem.suggestion.as_ref().map_or_else(String::new, |suggestion| format!(" ({suggestion})"));
    format!("{place}{}{hint}", problem.message)
}

/// Text within XML. Characters that XML cannot hold are left out.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push('\t'),
            character if character.is_control() => {}
            character => escaped.push(character),
        }
    }
    escaped
}
