//! A server is stopped, fenced, proven and committed; or it works again. Needs root, since hooks have to be root's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use support::{LIMIT, Running, Site, image, same};

fn possible(test: &str) -> bool {
    support::possible(test, "root", support::is_root())
}

/// Hooks that write down what they do; `fence` does this besides.
fn hooks(site: &Site, fence: &str) {
    let log = site.path("log");
    let say = |word: &str| format!("[/bin/sh, -c, \"echo {word} >> {}\"]", log.display());
    let fence = format!("[/bin/sh, -c, \"echo fence >> {}; {fence}\"]", log.display());
    let text = format!(
        "hooks:\n  stop: {{run: {}, undo: {}}}\n  fence: {{run: {fence}, undo: {}, timeout: 100s}}\n  \
         still: {{run: {}, undo: {}}}\ncut-over: {{stop: [stop], fence: [fence], freeze: [still]}}\n",
        say("stop"),
        say("start"),
        say("unfence"),
        say("freeze"),
        say("thaw"),
    );
    std::fs::write(site.path("hooks.yaml"), text).unwrap();
}

fn log(site: &Site) -> String {
    std::fs::read_to_string(site.path("log")).unwrap_or_default().replace('\n', " ")
}

fn cut_over(site: &Site, address: &str) -> Running {
    site.agent(address, &["--cut-over", "--hooks", "hooks.yaml"])
}

/// Waits until the hooks have written this.
fn written(site: &Site, word: &str) {
    let until = Instant::now() + LIMIT;
    while !log(site).contains(word) {
        assert!(Instant::now() < until, "no {word}: {}", log(site));
        std::thread::yield_now();
    }
}

#[test]
fn a_server_is_cut_over_and_stays_closed_until_a_person_opens_it() {
    if !possible("a_server_is_cut_over_and_stays_closed_until_a_person_opens_it") {
        return;
    }
    let site = Site::enrolled();
    image(&site.path("disk"), 6);
    hooks(&site, "true");
    let mut receiver = site.receiver(&["--until-proven"]);
    let address = receiver.address();

    let mut dry = site.agent("127.0.0.1:1", &["--cut-over", "--hooks", "hooks.yaml", "--dry-run"]);
    assert!(dry.end().success(), "{:#?}", dry.seen);
    assert!(dry.last("note")["text"].as_str().unwrap().contains("unfence"));
    assert_eq!(log(&site), "");

    let mut agent = cut_over(&site, &address);
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    assert_eq!(log(&site), "stop fence freeze thaw ");
    let told: Vec<_> = agent.seen.iter().filter_map(|event| event["event"].as_str()).collect();
    let place = |name: &str| told.iter().position(|told| *told == name).unwrap();
    assert!(place("round") < place("hook"), "people waited for the copy: {told:?}");
    assert_eq!(told.last(), Some(&"cutOver"), "{told:?}");
    assert!(same(&site.path("disk"), &site.path("copy")));
    assert_eq!(receiver.last("round")["purpose"], "proof");

    // The copy may be in use by now.
    let again = site.run(&["agent", "--state", "agent", "--source", "disk", "--connect", &address]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stdout).contains("reopen"), "{again:?}");
    site.ok(&["reopen", "--state", "agent"]);
    assert_eq!(log(&site), "stop fence freeze thaw unfence start ");
    assert!(!site.run(&["reopen", "--state", "agent"]).status.success(), "there is nothing to open any more");
}

#[test]
fn a_hook_that_fails_is_taken_back_with_all_before_it() {
    if !possible("a_hook_that_fails_is_taken_back_with_all_before_it") {
        return;
    }
    let site = Site::enrolled();
    image(&site.path("disk"), 2);
    hooks(&site, "exit 3");
    let receiver = site.receiver(&[]);
    let mut agent = cut_over(&site, &receiver.address());
    assert_eq!(agent.end().code(), Some(6), "{:#?}", agent.seen);
    assert_eq!(log(&site), "stop fence unfence start ");
    assert!(agent.last("error")["text"].as_str().unwrap().contains("exit status: 3"), "{:#?}", agent.seen);
}

#[test]
fn a_server_that_loses_its_link_while_it_stands_still_works_again_in_time() {
    if !possible("a_server_that_loses_its_link_while_it_stands_still_works_again_in_time") {
        return;
    }
    let site = Site::enrolled();
    image(&site.path("disk"), 2);
    let gone = site.path("gone");
    hooks(&site, &format!("while [ ! -e {} ]; do sleep 0.1; done", gone.display()));
    let mut receiver = site.receiver(&[]);
    let more = ["--cut-over", "--hooks", "hooks.yaml", "--within", "20s"];
    let mut agent = site.agent(&receiver.address(), &more);
    written(&site, "fence");
    receiver.kill();
    std::fs::write(gone, "").unwrap();
    assert_eq!(agent.end().code(), Some(6), "{:#?}", agent.seen);
    assert!(log(&site).ends_with("unfence start "), "{}", log(&site));
}

#[test]
fn an_agent_that_is_killed_in_a_hook_opens_the_server_when_it_starts_again() {
    if !possible("an_agent_that_is_killed_in_a_hook_opens_the_server_when_it_starts_again") {
        return;
    }
    let site = Site::enrolled();
    image(&site.path("disk"), 2);
    let id = site.path("id");
    let fence = format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 300; echo late >> {0}", id.display());
    hooks(&site, &fence);
    let receiver = site.receiver(&[]);
    let address = receiver.address();
    let mut agent = cut_over(&site, &address);
    written(&site, "fence");
    while !id.exists() {
        std::thread::yield_now();
    }
    // Killed before it has noted the process, it would know of the hook, but not what to end of it.
    let noted = |id: i32| {
        let text = std::fs::read(site.path("agent/cut-over.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        state["begun"].as_array().is_some_and(|begun| begun.iter().any(|begun| begun["process"]["id"] == id))
    };
    let until = Instant::now() + LIMIT;
    while !noted(number(&id).as_raw_pid()) {
        assert!(Instant::now() < until, "the process of the hook is never noted");
        std::thread::yield_now();
    }
    agent.kill();
    let hook = number(&id);
    assert!(test_kill_process(hook).is_ok(), "the hook works on without its agent");
    // Whatever is asked of it next, and if it cannot be done: first the server works again, and nothing of the hook does.
    std::fs::remove_file(site.path("hooks.yaml")).unwrap();
    let mut agent = cut_over(&site, &address);
    assert_eq!(agent.end().code(), Some(1), "{:#?}", agent.seen);
    assert_eq!(log(&site), "stop fence unfence start ");
    let state = std::fs::read_to_string(format!("/proc/{}/stat", hook.as_raw_pid())).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "the hook still runs: {state}");

    // Asked to end, it opens the server by itself.
    hooks(&site, &fence);
    std::fs::remove_file(&id).unwrap();
    let mut agent = cut_over(&site, &address);
    while !id.exists() {
        assert!(agent.is_running(), "it ended before");
        std::thread::yield_now();
    }
    kill_process(Pid::from_raw(agent.id()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(agent.end().code(), Some(6), "{:#?}", agent.seen);
    assert_eq!(log(&site), "stop fence unfence start stop fence unfence start ");
}

#[test]
fn a_directory_is_cut_over_like_a_disk_and_opened_again_when_it_cannot_be_proven() {
    if !possible("a_directory_is_cut_over_like_a_disk_and_opened_again_when_it_cannot_be_proven") {
        return;
    }
    let site = Site::enrolled();
    std::fs::create_dir_all(site.path("tree/uffici")).unwrap();
    std::fs::write(site.path("tree/uffici/atti"), support::noise(1, 900_000)).unwrap();
    // While people work this is still written to; the fence ends that, with a last word.
    hooks(&site, &format!("echo ultimo > {}", site.path("tree/uffici/registro").display()));
    let receiver = site.receiving("--into", "copy", &[]);
    let address = receiver.address();
    let agent = |more: &[&str]| {
        let args = ["agent", "--state", "agent", "--tree", "tree", "--connect", &address];
        let cut = ["--cut-over", "--hooks", "hooks.yaml"];
        let mut agent = Running::start(&site, &[&args[..], &cut, more].concat());
        let code = agent.end().code();
        (agent, code)
    };

    // A fence that fails: the server works again, and the directory can go on.
    let broken =
        std::fs::read_to_string(site.path("hooks.yaml")).unwrap().replace("; echo ultimo", "; false");
    let good = std::fs::read_to_string(site.path("hooks.yaml")).unwrap();
    std::fs::write(site.path("hooks.yaml"), broken).unwrap();
    let (told, code) = agent(&[]);
    assert_eq!(code, Some(6), "{:#?}", told.seen);
    assert_eq!(log(&site), "stop fence unfence start ");
    assert!(!told.seen.iter().any(|event| event["event"] == "cutOver"));

    std::fs::remove_file(site.path("log")).unwrap();
    std::fs::write(site.path("hooks.yaml"), good).unwrap();
    let (told, code) = agent(&[]);
    assert_eq!(code, Some(0), "{:#?}", told.seen);
    assert_eq!(log(&site), "stop fence freeze thaw ");
    let names: Vec<_> = told.seen.iter().filter_map(|event| event["event"].as_str()).collect();
    let place = |name: &str| names.iter().position(|told| *told == name).unwrap();
    assert!(place("round") < place("hook"), "people waited for the copy: {names:?}");
    assert_eq!(names.last(), Some(&"cutOver"), "{names:?}");
    assert_eq!(told.last("round")["purpose"], "proof");
    for name in ["uffici/atti", "uffici/registro"] {
        assert!(same(&site.path("tree").join(name), &site.path("copy").join(name)), "{name}");
    }

    // The copy may be in use by now; a person opens the source again.
    let (told, code) = agent(&[]);
    assert_eq!(code, Some(1), "{:#?}", told.seen);
    site.ok(&["reopen", "--state", "agent"]);
    assert_eq!(log(&site), "stop fence freeze thaw unfence start ");
}

fn number(path: &Path) -> Pid {
    Pid::from_raw(std::fs::read_to_string(path).unwrap().trim().parse().unwrap()).unwrap()
}

#[test]
fn rounds_follow_one_another_and_begin_when_asked_for() {
    let site = Site::enrolled();
    let disk = image(&site.path("disk"), 2);
    let receiver = site.receiver(&[]);
    let address = receiver.address();
    let mut agent = site.agent(&address, &["--rounds"]);
    assert_eq!(agent.event("round")["round"], 1);
    let pause = agent.event("pause");
    assert!(pause["changedEachDay"].is_null(), "{pause}");
    std::os::unix::fs::FileExt::write_all_at(&disk, &support::noise(7, 4096), 8192).unwrap();
    disk.sync_all().unwrap();
    let id = Pid::from_raw(agent.id()).unwrap();
    kill_process(id, Signal::USR1).unwrap();
    let round = agent.event("round");
    assert_eq!(
        (round["round"].as_u64(), round["tally"]["content"].as_u64()),
        (Some(2), Some(4096)),
        "{round}"
    );
    // Some 4 KiB within a minute are some MiB a day.
    let churn = agent.event("pause")["changedEachDay"].as_u64().unwrap();
    assert!(churn > 4 << 20, "{churn}");
    kill_process(id, Signal::TERM).unwrap();
    assert!(agent.end().success());
    assert!(same(&site.path("disk"), &site.path("copy")));
    // An hour has not passed: started again, it waits for the rest of it.
    let mut agent = site.agent(&address, &["--rounds"]);
    agent.event("pause");
}
