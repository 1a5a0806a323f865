//! The program as a person calls it, and how it behaves when it is broken off.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use conme_testbed::{Identity, Member, Signal, members};

struct Place {
    state: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { state: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conme-testbed"));
        command.arg("--state-dir").arg(self.state.path()).args(args);
        command.env_remove("CONME_TESTBED_NAME").stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn state_file(&self, name: &str) -> PathBuf {
        self.state.path().join(name).join("state.json")
    }

    /// Starts the program and waits until its instance has recorded the process of the API server.
    fn begin(&self, name: &str, args: &[&str]) -> Child {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let file = self.state_file(name);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("\"name\": \"kube-apiserver\""))
        {
            assert!(Instant::now() < deadline, "no API server is started");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // After a failed test.
        for entry in std::fs::read_dir(self.state.path()).unwrap().flatten() {
            if entry.path().join("state.json").exists() {
                let name = entry.file_name().into_string().unwrap();
                self.run(&["--name", &name, "down", "--purge"]);
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    let process = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
    assert!(process.signal(signal).unwrap());
}

fn found(file: &Path) -> Vec<Member> {
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let home = state["servers"]["dir"].as_str().map(PathBuf::from);
    members(state["id"].as_str().unwrap(), home.as_slice())
}

#[test]
fn ctrl_c_in_the_middle_of_up_leaves_no_process() {
    let place = Place::new();
    let child = place.begin("demo", &["up", "--nodes", "1"]);
    assert!(!found(&place.state_file("demo")).is_empty());
    signal(&child, Signal::Int);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(found(&place.state_file("demo")), []);
    assert_eq!(place.run(&["status"]).status.code(), Some(3));

    // Killed without any chance to tidy up: what it left is found and stopped.
    let mut child = place.begin("killed", &["--name", "killed", "up", "--nodes", "1"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!found(&place.state_file("killed")).is_empty());
    let file = place.state_file("killed");
    let output = place.run(&["-n", "killed", "down"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(found(&file), []);
}

#[test]
fn run_gives_the_exit_code_and_removes_the_instance() {
    let place = Place::new();
    let script =
        r#"test -n "$PGPASSFILE" && test "$CONME_STATE_DIR" && command -v psql >/dev/null && exit 7"#;
    let output = place.run(&["run", "--no-cluster", "--", "/bin/sh", "-c", script]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");

    // Ended from outside while the command runs.
    let mark = place.state.path().join("mark");
    let script = format!("echo > '{}'; exec sleep 600", mark.display());
    let mut child = place.command(&["run", "--no-cluster", "--", "/bin/sh", "-c", &script]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !mark.exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&child, Signal::Term);
    assert_eq!(child.wait().unwrap().code(), Some(143));

    std::fs::remove_file(mark).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(place.state.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn the_commands_of_a_person() {
    let place = Place::new();
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(place.run(&["status"]).status.code(), Some(1), "there is none yet");
    assert!(place.run(&["down"]).status.success());
    assert!(place.run(&["up", "--no-cluster"]).status.success());

    let output = place.run(&["status", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["condition"], "Running");
    let password_file = status["databases"][0]["adminPasswordFile"].as_str().unwrap();
    let password = std::fs::read_to_string(password_file).unwrap();
    for output in ["table", "json", "yaml"] {
        let shown = text(&place.run(&["status", "-o", output]));
        assert!(shown.contains(password_file) && !shown.contains(&password), "{shown}");
    }
    assert!(text(&place.run(&["list"])).contains("demo"));
    assert!(text(&place.run(&["env"])).contains("export PGPASSFILE='"));
    assert!(text(&place.run(&["completion", "bash"])).contains("conme-testbed"));
    assert!(!place.run(&["kubeconfig"]).status.success(), "it has no cluster");

    // A further program, stopped, started again as it was, and ended with the instance.
    let output = place.run(&[
        "start",
        "echo",
        "--env",
        "WHO=mondo",
        "--",
        "sh",
        "-c",
        "echo ciao $WHO; exec sleep 600",
    ]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&place.run(&["logs", "echo"])), "ciao mondo\n");
    assert!(place.run(&["stop", "echo", "--signal", "KILL"]).status.success());
    assert!(place.run(&["status"]).status.success(), "stopped on purpose, so not missed");
    assert!(place.run(&["start", "echo"]).status.success());
    assert!(!place.run(&["start", "wrong", "--", "sh", "-c", "exit 1"]).status.success());
    let file = place.state_file("demo");
    assert!(found(&file).iter().any(|member| member.program == "sleep"));
    assert!(place.run(&["down"]).status.success());
    assert_eq!(found(&file), []);
    assert_eq!(place.run(&["status"]).status.code(), Some(3));
    // Nobody reads what it says: it does its work all the same.
    let mut child = place.command(&["down", "--purge"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(place.state.path()).unwrap().count(), 0, "the lock is gone too");
}
