//! All problems of manifests at once.

use std::time::{Duration, Instant};

use crate::{
    input::Source,
    manifest::{Manifests, OurKind},
    problem::{Note, Problem},
    rules::Rules,
    site::{Operator, Site},
};

/// What there is to say of manifests.
#[derive(Debug, Default)]
pub struct Report {
    /// Files that were read.
    pub files: Vec<String>,
    /// Number of objects of Con.Me.
    pub objects: usize,
    /// What is wrong, by file and line.
    pub problems: Vec<Problem>,
    /// What is worth knowing besides.
    pub notes: Vec<Note>,
    /// How long it took.
    pub took: Duration,
}

/// Reads and checks manifests, each against its own definition.
pub fn examine(sources: &[Source], rules: &Rules) -> Manifests {
    let mut manifests = Manifests::default();
    for source in sources {
        manifests.add(&source.name, &source.bytes, rules);
    }
    manifests
}

/// Checks manifests against their definitions and against the site: `surroundings` are manifests of a folder that are not
/// checked themselves, `live` is what a cluster has.
pub fn validate(
    sources: &[Source],
    surroundings: &[Source],
    live: Site,
    rules: &Rules,
) -> (Report, Manifests) {
    let begin = Instant::now();
    let mut manifests = examine(sources, rules);
    let mut site = live;
    let around = examine(surroundings, rules);
    let slips =
        around.problems.len() + around.objects.iter().map(|object| object.findings.len()).sum::<usize>();
    if slips > 0 {
        let message =
            format!("the manifests of --site have {slips} problems of their own: validate them, too");
        manifests.notes.push(Note { file: String::new(), message });
    }
    site.add(&around);
    site.add(&manifests);
    site.settle();
    site.check(&mut manifests);
    (report(sources, &manifests, begin), manifests)
}

/// Offline, with nothing but the manifests and those of a folder.
pub fn offline(sources: &[Source], surroundings: &[Source], operator: &Operator) -> Report {
    validate(sources, surroundings, Site::new(operator), &Rules::default()).0
}

/// What was found, in the order in which it stands in the files.
pub fn report(sources: &[Source], manifests: &Manifests, begin: Instant) -> Report {
    let mut problems: Vec<Problem> = manifests.problems.clone();
    problems.extend(manifests.objects.iter().flat_map(|object| object.problems()));
    let order = |file: &str| sources.iter().position(|source| source.name == file);
    problems
        .sort_by_cached_key(|problem| (order(&problem.file), problem.at, problem.path.clone(), problem.code));
    problems.dedup_by(|a, b| {
        a.file == b.file && a.object == b.object && a.path == b.path && a.message == b.message
    });
    let mut notes = manifests.notes.clone();
    if manifests
        .objects
        .iter()
        .any(|object| object.kind == OurKind::Comune && !object.root.to_json()["status"].is_null())
    {
        notes.push(Note {
            file: String::new(),
            message: "status is written by the operator; in a manifest it does nothing".into(),
        });
    }
    Report {
        files: sources.iter().map(|source| source.name.clone()).collect(),
        objects: manifests.objects.len(),
        problems,
        notes,
        took: begin.elapsed(),
    }
}
