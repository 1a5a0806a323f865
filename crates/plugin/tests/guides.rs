//! What the documents tell people to write is right: their manifests have no problem, their commands are understood.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use clap::{Parser as _, error::ErrorKind};
use conme_kubectl::{
    cli::Cli,
    input::{self, Source},
    site::Operator,
    validate::offline,
};

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Name and text of every document that people read, in a folder and below.
fn documents(folder: &Path, found: &mut Vec<(String, String)>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

fn guides() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["docs/guide", "docs/guida"] {
        documents(&checkout().join(folder), &mut found);
    }
    found
}

/// What stands between fences, each with the word behind the first fence; the fences of lists are indented.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            open = !open;
            if open {
                blocks.push((kind.to_owned(), String::new()));
            }
        } else if let Some((_, block)) = blocks.last_mut().filter(|_| open) {
            block.push_str(line);
            block.push('\n');
        }
    }
    blocks
}

#[test]
fn the_manifests_of_the_guides_have_no_problem() {
    let site = input::read(&[checkout().join("examples")]).unwrap();
    let mut manifests = 0;
    for (name, text) in guides() {
        for (kind, block) in blocks(&text) {
            if kind != "yaml" || !block.contains("apiVersion:") {
                continue;
            }
            manifests += 1;
            // Each by itself: two in a guide are the same Comune, first short and then with more.
            let source = Source { name: name.clone(), bytes: block.into_bytes() };
            let report = offline(&[source], &site, &Operator::default());
            assert_eq!(report.objects, 1, "{name}");
            assert!(report.problems.is_empty() && report.notes.is_empty(), "{report:#?}");
        }
    }
    assert!(manifests >= 4, "only {manifests} manifests were found");
}

/// The words of all commands of a text that begin with `kubectl comune`.
fn commands(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().map(str::to_owned);
    // In a sentence a command stands in backticks.
    let spans = text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    let spans = spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "));
    let pieces = lines.filter(|line| !line.contains('`')).chain(spans);
    let mut commands = Vec::new();
    for piece in pieces {
        for command in piece.split(" && ").flat_map(|piece| piece.split(['|', '>', ';'])) {
            let command = command.split(" #").next().unwrap_or_default().trim();
            if let Some(words) = command.strip_prefix("kubectl comune ") {
                commands.push(words.split_whitespace().map(|word| word.replace('\'', "")).collect());
            }
        }
    }
    commands
}

#[test]
fn commands_that_documents_name_are_understood() {
    let mut texts = guides();
    documents(&checkout().join("docs"), &mut texts);
    documents(&checkout().join("examples"), &mut texts);
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        texts.push((name.into(), std::fs::read_to_string(checkout().join(name)).unwrap()));
    }
    let mut in_guides = 0;
    for (name, text) in &texts {
        // The reference is made of the commands themselves: its usage lines and headings are no commands.
        if name.ends_with("docs/kubectl-comune.md") {
            continue;
        }
        for words in commands(text) {
            in_guides += usize::from(name.contains("/guid"));
            let line = ["kubectl comune".to_owned()].into_iter().chain(words.iter().cloned());
            if let Err(error) = Cli::try_parse_from(line) {
                // A command may be spoken of without all that it needs.
                assert_eq!(
                    error.kind(),
                    ErrorKind::MissingRequiredArgument,
                    "{name}: kubectl comune {}: {error}",
                    words.join(" ")
                );
            }
        }
    }
    assert!(in_guides >= 16, "only {in_guides} commands were found in the guides");
}

#[test]
fn commands_are_found_where_people_write_them() {
    let text = "Run `kubectl comune validate` and `kubectl\ncomune list`:\n\n```\nkubectl comune diff a.yaml   # why\n\
                x && kubectl comune wait a | cat\n```\nkubectl comune status a\n";
    let found: Vec<String> = commands(text).into_iter().map(|words| words.join(" ")).collect();
    assert_eq!(found, ["diff a.yaml", "wait a", "status a", "validate", "list"]);
}
