//! The examples of pipelines do what they say: their commands run, their scripts and expressions judge a status as a
//! person would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use conme_api::reasons;
use kube_cel::{
    KubeCelExt as _,
    cel::{Context, Program, Value as Cel},
};
use mlua::{Lua, LuaSerdeExt as _};
use serde_json::{Value, json};

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn pipeline(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(checkout().join("examples/pipelines").join(name)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A repository as the pipelines expect it.
fn repository() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let examples = checkout().join("examples");
    for (from, to) in [("comuni", "comuni"), ("catalogue", "datacenter")] {
        std::fs::create_dir_all(folder.path().join(to)).unwrap();
        for entry in std::fs::read_dir(examples.join(from)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(to).join(entry.file_name())).unwrap();
        }
    }
    std::fs::copy(examples.join("datacenter.yaml"), folder.path().join("datacenter/datacenter.yaml"))
        .unwrap();
    folder
}

/// Runs a line of a pipeline in a repository, and returns its exit code.
fn run(line: &str, folder: &Path) -> Option<i32> {
    let program = Path::new(env!("CARGO_BIN_EXE_kubectl-comune"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(program.parent().unwrap().to_path_buf()).chain(std::env::split_paths(&path));
    let status = Command::new("sh")
        .args(["-e", "-c", line])
        .current_dir(folder)
        .env("PATH", std::env::join_paths(path).unwrap())
        .status();
    status.unwrap().code()
}

fn lines_of(pipeline: &Value, found: &mut Vec<String>) {
    match pipeline {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(line) if key == "run" => found.push(line.clone()),
                    Value::Array(lines) if key == "script" => {
                        found.extend(lines.iter().map(|line| line.as_str().unwrap().to_owned()));
                    }
                    other => lines_of(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| lines_of(item, found)),
        _ => {}
    }
}

#[test]
fn a_slip_stops_the_pipeline_and_is_in_its_report() {
    for (name, report) in [("gitlab-ci.yml", "comune.xml"), ("github-actions.yaml", "comune.sarif")] {
        let mut lines = Vec::new();
        pipeline(name).iter().for_each(|document| lines_of(document, &mut lines));
        let check = lines.iter().find(|line| line.contains(" validate ")).expect("a line that validates");
        let folder = repository();
        assert_eq!(run(check, folder.path()), Some(0), "{name}");
        let slip = checkout().join("tests/manifests/broken/014-istat-octal.yaml");
        std::fs::copy(slip, folder.path().join("comuni/slip.yaml")).unwrap();
        assert_eq!(run(check, folder.path()), Some(1), "{name}");
        let report = std::fs::read_to_string(folder.path().join(report)).unwrap();
        assert!(report.contains("comuni/slip.yaml") && report.contains("027012"), "{report}");
        // Every other line names commands and flags that there are.
        for line in lines.iter().filter(|line| line.contains("kubectl comune ")) {
            let words = line.split("||").next().unwrap().trim().strip_prefix("kubectl comune ").unwrap();
            assert_eq!(
                run(&format!("kubectl-comune {words} --help > /dev/null"), folder.path()),
                Some(0),
                "{line}"
            );
        }
    }
}

/// Objects with the conditions that the operator writes, and what a person would call them.
fn judged() -> Vec<(Value, &'static str)> {
    let object = |kind: &str, generation: u32, status: Value| {
        json!({
            "apiVersion": "conme.venis.it/v1alpha1", "kind": kind,
            "metadata": {"name": "prova", "generation": generation}, "spec": {}, "status": status,
        })
    };
    let told = |kind: &str, ready: (&str, &str), available: (&str, &str)| {
        let condition = |type_: &str, (status, reason): (&str, &str)| json!({"type": type_, "status": status, "reason": reason, "message": "words", "observedGeneration": 2, "lastTransitionTime": "2026-03-02T09:30:00Z"});
        let mut conditions = vec![condition(reasons::READY, ready)];
        if kind == "Comune" {
            conditions.push(condition(reasons::AVAILABLE, available));
        }
        object(kind, 2, json!({"observedGeneration": 2, "conditions": conditions}))
    };
    let up = ("True", reasons::PODS_READY);
    let mut all = vec![
        (json!({"kind": "Comune", "metadata": {"name": "prova", "generation": 1}}), "Progressing"),
        (json!({"kind": "DataCenter", "metadata": {"name": "prova", "generation": 1}}), "Progressing"),
        (json!({"kind": "ServiceTemplate", "metadata": {"name": "prova", "generation": 1}}), "Progressing"),
        (told("Comune", ("True", reasons::AS_DECLARED), up), "Healthy"),
        (told("Comune", ("True", reasons::OVER_LIMIT), up), "Healthy"),
        (told("Comune", ("True", reasons::AS_DECLARED), ("False", reasons::PODS_NOT_READY)), "Progressing"),
        (told("Comune", ("False", reasons::IN_PROGRESS), up), "Progressing"),
        (told("Comune", ("False", reasons::WAITING), up), "Progressing"),
        (told("Comune", ("False", reasons::PAUSED), up), "Suspended"),
        (told("DataCenter", ("True", reasons::AS_DECLARED), up), "Healthy"),
        (told("DataCenter", ("False", reasons::NOT_SELECTED), up), "Suspended"),
        (told("DataCenter", ("False", reasons::INSUFFICIENT_CAPACITY), up), "Degraded"),
        (told("ServiceTemplate", ("True", reasons::AS_DECLARED), up), "Healthy"),
        (told("ServiceTemplate", ("False", reasons::INVALID), up), "Degraded"),
    ];
    for reason in [
        reasons::INVALID,
        reasons::CONFLICT,
        reasons::INSUFFICIENT_CAPACITY,
        reasons::NO_DATA_CENTER,
        reasons::API_ERROR,
        reasons::DATABASE_FAILED,
        reasons::DATA_MISSING,
        reasons::SERVER_UNREACHABLE,
    ] {
        all.push((told("Comune", ("False", reason), up), "Degraded"));
    }
    // As the operator's own tests have it, for a Comune that is settled and one that nothing exists of yet.
    for (name, verdict) in [("nothing-yet", "Progressing"), ("a-settled-comune", "Healthy")] {
        let file = checkout().join(format!("crates/blueprint/src/tests/snapshots/status-of-{name}.snap"));
        let text = std::fs::read_to_string(file).unwrap();
        let status: Value = serde_saphyr::from_str(text.splitn(3, "---\n").nth(2).unwrap()).unwrap();
        all.push((object("Comune", 3, status.clone()), verdict));
        all.push((object("Comune", 4, status), "Progressing"));
    }
    all
}

#[test]
fn argo_cd_judges_every_state_as_a_person_would() {
    let document = pipeline("argocd-health.yaml").remove(0);
    for (object, verdict) in judged() {
        let key =
            format!("resource.customizations.health.conme.venis.it_{}", object["kind"].as_str().unwrap());
        let script = document["data"][&key].as_str().unwrap_or_else(|| panic!("no {key}"));
        let lua = Lua::new();
        lua.globals().set("obj", lua.to_value(&object).unwrap()).unwrap();
        let health: Value = lua.from_value(lua.load(script).eval().unwrap()).unwrap();
        assert_eq!(health["status"], verdict, "{object:#}\n{health}");
        assert!(health["message"].as_str().is_some_and(|message| !message.is_empty()), "{health}");
    }
}

#[test]
fn flux_judges_every_state_as_a_person_would() {
    let document = pipeline("flux.yaml").remove(1);
    let expressions = &document["spec"]["healthCheckExprs"][0];
    let holds = |which: &str, object: &Value| {
        let program = Program::compile(expressions[which].as_str().unwrap()).unwrap();
        let mut context = Context::default().with_all();
        for field in ["metadata", "status"] {
            context.add_variable(field, object.get(field).cloned().unwrap_or_else(|| json!({}))).unwrap();
        }
        matches!(program.execute(&context), Ok(Cel::Bool(true)))
    };
    for (object, verdict) in judged().into_iter().filter(|(object, _)| object["kind"] == "Comune") {
        // In the order in which Flux asks.
        let told = ["inProgress", "failed", "current"].into_iter().find(|which| holds(which, &object));
        let ready = &object["status"]["conditions"][0];
        let expected = match verdict {
            "Degraded" => "failed",
            "Healthy" => "current",
            // Flux waits for the manifest, not for the pods.
            "Progressing" if ready["type"] == "Ready" && ready["status"] == "True" => "current",
            _ => "inProgress",
        };
        assert_eq!(told, Some(expected), "{object:#}");
    }
}
