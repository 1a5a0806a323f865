//! A hundred manifests with slips, each found where it stands, and told once; and what is right is not complained about.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use conme_api::keys;
use conme_kubectl::{
    input,
    manifest::Manifests,
    rules::Rules,
    site::Operator,
    validate::{Report, offline},
};
use serde_json::Value;

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(names: &[&str]) -> Vec<input::Source> {
    let paths: Vec<PathBuf> = names.iter().map(|name| checkout().join(name)).collect();
    input::read(&paths).unwrap()
}

fn surroundings() -> Vec<input::Source> {
    read(&["examples/datacenter.yaml", "examples/catalogue"])
}

fn validated(names: &[&str]) -> Report {
    offline(&read(names), &surroundings(), &Operator::default())
}

fn plugin(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-comune")).current_dir(checkout()).args(args).output().unwrap()
}

/// `# Expect: PATH line N` of a manifest's head.
fn expected(text: &str) -> BTreeSet<(String, usize)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# Expect: "));
    lines
        .map(|line| {
            let (path, line) = line.split_once(" line ").expect("PATH line N");
            (path.to_owned(), line.parse().unwrap())
        })
        .collect()
}

#[test]
fn every_slip_is_told_once_where_it_stands_and_nothing_else() {
    let sources = read(&["tests/manifests/broken"]);
    assert_eq!(sources.len(), 100);
    let report = validated(&["tests/manifests/broken"]);
    for source in &sources {
        let text = String::from_utf8(source.bytes.clone()).unwrap();
        let found: Vec<(String, usize)> = report
            .problems
            .iter()
            .filter(|problem| problem.file == source.name)
            .map(|problem| {
                let path = problem.path.to_string();
                (if path.is_empty() { "-".to_owned() } else { path }, problem.at.line)
            })
            .collect();
        let set: BTreeSet<(String, usize)> = found.iter().cloned().collect();
        assert_eq!(set.len(), found.len(), "{}: something is told twice: {found:?}", source.name);
        assert!(!expected(&text).is_empty(), "{} expects nothing", source.name);
        assert_eq!(set, expected(&text), "{}", source.name);
    }
    for problem in &report.problems {
        assert!(!problem.message.is_empty() && problem.at.line > 0 && problem.at.column > 0, "{problem:?}");
    }
}

#[test]
fn misspelt_words_come_with_the_right_one() {
    let report = validated(&["tests/manifests/broken"]);
    let suggestion = |path: &str, file: &str| {
        let found = report
            .problems
            .iter()
            .find(|problem| problem.file.contains(file) && problem.path.to_string() == path);
        found
            .and_then(|problem| problem.suggestion.clone())
            .unwrap_or_else(|| panic!("{file} {path} suggests nothing"))
    };
    for (file, path, word) in [
        ("environments-misspelt", "spec.enviroments", "`environments`"),
        ("display-name-misspelt", "spec.entity.dispalyName", "`displayName`"),
        ("engine-unknown", "spec.databases[0].engine", "`postgresql`"),
        ("pod-security-capital", "spec.environments[0].podSecurity", "`baseline`"),
        ("tier-unknown", "spec.tier", "`medio`"),
        ("template-unknown", "spec.services[0].template", "`gis`"),
        ("database-server-unknown", "spec.databases[0].placement.shared", "`pg-venis-1`"),
        ("extension-not-allowed", "spec.databases[0].extensions[1]", "`pg_trgm`"),
        ("parameter-unknown", "spec.services[0].parameters.projects", "`project`"),
        ("service-of-undeclared-database", "spec.services[0].database", "`archivio`"),
        ("database-in-unknown-environment", "spec.databases[0].environment", "`produzione`"),
        ("istat-octal", "spec.entity.istat", "\"027012\""),
        ("kind-plural", "kind", "`Comune`"),
        ("api-version-wrong", "apiVersion", "`conme.venis.it/v1alpha1`"),
    ] {
        let suggestion = suggestion(path, file);
        assert!(suggestion.contains(word), "{file}: {suggestion}");
    }
}

#[test]
fn the_examples_have_no_problem_and_every_rule_can_be_asked() {
    let report = validated(&["examples"]);
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
    assert!(report.objects >= 37, "only {} objects were read", report.objects);
    let rules = Rules::default();
    let mut manifests = Manifests::default();
    for source in read(&["examples", "tests/manifests/broken"]) {
        let is_example = source.name.contains("/examples/");
        manifests.add(&source.name, &source.bytes, &rules);
        if is_example {
            assert_eq!(rules.troubles(), Vec::<String>::new(), "{}", source.name);
        }
    }
}

#[test]
fn a_hundred_manifests_are_checked_quickly() {
    let args = [
        "validate",
        "tests/manifests/broken",
        "--site",
        "examples/datacenter.yaml",
        "--site",
        "examples/catalogue",
        "--output",
        "json",
    ];
    let output = plugin(&args);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let milliseconds = report["milliseconds"].as_f64().unwrap();
    // A quiet machine takes 0.2 s without optimisation. What else it does is not to fail a test, but a check that looks
    // at everything again for each file would.
    println!("100 manifests in {milliseconds:.0} ms");
    assert!(milliseconds < 20_000.0, "{milliseconds} ms");
}

#[test]
fn exit_codes_and_forms_are_as_documented() {
    let code = |args: &[&str]| plugin(args).status.code();
    assert_eq!(code(&["validate", "examples"]), Some(0));
    assert_eq!(code(&["validate", "examples", "nowhere.yaml"]), Some(2), "a file that is not there");
    assert_eq!(code(&["validate"]), Some(2));
    assert_eq!(code(&["validate", "--outptu", "x", "examples"]), Some(2));
    assert_eq!(
        code(&["--kubeconfig", "/nonexistent", "validate", "--server", "examples/minimal.yaml"]),
        Some(3)
    );
    assert_eq!(code(&["--kubeconfig", "/nonexistent", "diff", "examples/minimal.yaml"]), Some(3));

    assert_eq!(
        code(&["validate", "examples/comuni", "examples/comuni/dolo.yaml"]),
        Some(0),
        "one file named twice"
    );
    assert_eq!(code(&["validate", "docs/decisions"]), Some(2), "a folder without manifests");

    let broken = "tests/manifests/broken/014-istat-octal.yaml";
    let table = String::from_utf8(plugin(&["validate", broken]).stdout).unwrap();
    assert!(table.starts_with(&format!("{broken}:12:12 Comune prova-014 spec.entity.istat\n")), "{table}");
    assert!(table.ends_with("1 problem found: 1 object in 1 file\n"), "{table}");

    let sarif: Value = serde_json::from_slice(&plugin(&["validate", broken, "-o", "sarif"]).stdout).unwrap();
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(result["locations"][0]["physicalLocation"]["region"]["startLine"], 12);
    assert_eq!(result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"], broken);
    let index = result["ruleIndex"].as_u64().unwrap() as usize;
    assert_eq!(sarif["runs"][0]["tool"]["driver"]["rules"][index]["id"], result["ruleId"]);

    let junit =
        String::from_utf8(plugin(&["validate", broken, "examples/minimal.yaml", "-o", "junit"]).stdout)
            .unwrap();
    assert!(junit.contains("tests=\"2\" failures=\"1\""), "{junit}");
    assert!(junit.contains("put it in quotes: &quot;027012&quot;"), "{junit}");
}

#[test]
fn lists_json_and_foreign_kinds_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.json");
    let comune = |name: &str, istat: &str| {
        serde_json::json!({
            "apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune", "metadata": {"name": name},
            "spec": {"entity": {"kind": "Comune", "displayName": name, "istat": istat, "population": 4000}},
        })
    };
    let list = serde_json::json!({
        "apiVersion": "v1", "kind": "List",
        "items": [comune("a", "900001"), comune("b", "9"), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}],
    });
    std::fs::write(&file, serde_json::to_string_pretty(&list).unwrap()).unwrap();
    let report = offline(&input::read(&[file]).unwrap(), &[], &Operator::default());
    assert_eq!(report.objects, 2);
    let told: Vec<String> =
        report.problems.iter().map(|problem| format!("{} {}", problem.object, problem.path)).collect();
    assert_eq!(told, ["Comune b spec.entity.istat"]);
    let notes: Vec<&str> = report.notes.iter().map(|note| note.message.as_str()).collect();
    assert!(notes.iter().any(|note| note.starts_with("ConfigMap c")), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("no DataCenter was given")), "{notes:?}");
}

#[test]
fn what_is_rendered_holds_no_secret_and_is_complete() {
    let output = plugin(&[
        "render",
        "examples/full.yaml",
        "--site",
        "examples/datacenter.yaml",
        "--site",
        "examples/catalogue",
        "-o",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kinds: BTreeSet<&str> =
        list["items"].as_array().unwrap().iter().map(|item| item["kind"].as_str().unwrap()).collect();
    for kind in ["Namespace", "ResourceQuota", "NetworkPolicy", "RoleBinding", "Deployment", "Ingress"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    assert!(!kinds.contains("Secret"));
    // What only a cluster can know is left out, and the hash that would speak of it.
    let namespaces = list["items"].as_array().unwrap().iter().filter(|item| item["kind"] == "Namespace");
    for namespace in namespaces {
        let annotations = namespace["metadata"]["annotations"].as_object().unwrap();
        assert!(annotations.contains_key(keys::DISPLAY_NAME), "{annotations:?}");
        for key in [keys::COMUNE_UID, keys::ADMITTED_AT, keys::APPLIED] {
            assert!(!annotations.contains_key(key), "{annotations:?}");
        }
    }
    // A service waits for no database, neither on a shared server nor on one of its own.
    for placement in [
        serde_json::json!({"shared": "pg-venis-1"}),
        serde_json::json!({"dedicated": {"instances": 1, "storage": "9Gi"}}),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("comune.json");
        let comune = serde_json::json!({
            "apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune", "metadata": {"name": "prova"},
            "spec": {
                "entity": {"kind": "Comune", "displayName": "Prova", "istat": "900001", "population": 9000},
                "databases": [{"name": "dati", "engine": "postgresql", "placement": placement}],
                "services": [{"name": "pagamenti", "template": "pagopa", "database": "dati"}],
            },
        });
        std::fs::write(&file, comune.to_string()).unwrap();
        let file = file.display().to_string();
        let output = plugin(&[
            "render",
            &file,
            "--site",
            "examples/datacenter.yaml",
            "--site",
            "examples/catalogue",
            "-o",
            "json",
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let is_service =
            |item: &Value| item["kind"] == "Deployment" && item["metadata"]["name"] == "pagamenti";
        assert!(list["items"].as_array().unwrap().iter().any(is_service), "{placement}");
    }
    // Without the data centre nothing can be decided, and that is said.
    let output = plugin(&["render", "examples/full.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no DataCenter"));
}

#[test]
fn a_manifest_cannot_write_on_the_terminal_what_it_likes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("strano.yaml");
    let manifest = std::fs::read_to_string(checkout().join("examples/minimal.yaml")).unwrap();
    std::fs::write(&file, format!("{manifest}  tier: \"\\e[2J\\e[32mno problem found\\u009b0m\"\n")).unwrap();
    let site = ["--site", "examples/datacenter.yaml"];
    for words in [["validate"], ["render"]] {
        let output = plugin(&[words.as_slice(), &[file.to_str().unwrap()], &site].concat());
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!told.contains(|character: char| character.is_control() && character != '\n'), "{told:?}");
        assert!(told.contains(r"there is no tier `\u{1b}[2J\u{1b}[32mno problem found\u{9b}0m`"), "{told}");
    }
}

mod never_panics {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_bytes_come(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            offline(&[input::Source { name: "x".into(), bytes }], &[], &Operator::default());
        }

        /// A good manifest with one piece of it replaced by another.
        #[test]
        fn whatever_is_exchanged(from in 0_usize..3800, length in 0_usize..60, with in "[ a-z:\\-\\[\\]{}\"'#&*|>\n\t0-9]{0,20}") {
            let text = std::fs::read_to_string(checkout().join("examples/full.yaml")).unwrap();
            let mut characters: Vec<char> = text.chars().collect();
            let from = from.min(characters.len());
            let to = (from + length).min(characters.len());
            characters.splice(from..to, with.chars());
            let bytes = characters.into_iter().collect::<String>().into_bytes();
            offline(&[input::Source { name: "x".into(), bytes }], &[], &Operator::default());
        }
    }
}

/// What only spoilt manifests showed, in thousands of them: the API server answers each of these as it is said here.
#[test]
fn what_the_api_server_takes_is_taken_and_what_it_refuses_is_refused() {
    let minimal = std::fs::read_to_string(checkout().join("examples/minimal.yaml")).unwrap();
    let found = |more: &str| -> Vec<String> {
        let source = input::Source { name: "x".into(), bytes: format!("{minimal}{more}\n").into_bytes() };
        let manifests = conme_kubectl::validate::examine(&[source], &Rules::default());
        assert_eq!(manifests.objects.len(), 1, "{:?}", manifests.problems);
        manifests.objects[0].problems().map(|problem| problem.path.to_string()).collect()
    };
    let quota = |memory: &str| found(&format!("  quota: {{cpu: 2, memory: {memory}}}"));
    assert!(quota("4Gi").is_empty() && quota("4e9").is_empty());
    for wrong in ["[4Gi]", "{size: 4Gi}", "1e308", "18446744073709551615", "true"] {
        assert_eq!(quota(wrong), ["spec.quota.memory"], "{wrong}");
    }
    // A field that has no value is not there.
    assert!(found("  network:\n  tier: ~").is_empty());
    // More than any number can be: it is told, and nothing falls.
    let shares = |share: &str| {
        found(&format!("  environments: [{{name: a, share: {share}}}, {{name: b, share: {share}}}]"))
    };
    assert!(shares("50").is_empty());
    assert!(shares("9223372036854775807").contains(&"spec.environments[0].share".to_owned()));
}
