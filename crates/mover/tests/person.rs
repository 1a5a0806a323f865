//! What a person on the local server says to a running agent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use support::{Site, noise, same};

#[test]
fn an_agent_pauses_at_once_stays_paused_when_killed_and_goes_on_when_told() {
    let site = Site::enrolled();
    std::fs::write(site.path("disk"), noise(1, 12 << 20)).unwrap();
    let receiver = site.receiver(&[]);
    let address = receiver.address();
    let tell = |args: &[&str]| {
        let output = site.run(&[args, &["--state", "agent"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let mut agent = site.agent(&address, &["--cap", "8mbit"]);
    agent.event("progress");
    let socket = std::fs::metadata(site.path("agent/control.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    assert_eq!(tell(&["status"])["cap"], "8 Mbit/s");
    assert_eq!(tell(&["pause"])["paused"], true);

    agent.kill();
    let silent = site.run(&["status", "--state", "agent"]);
    assert_eq!(silent.status.code(), Some(1), "{silent:?}");
    let mut agent = site.agent(&address, &[]);
    let told = agent.event("warning");
    assert!(told["text"].as_str().unwrap().contains("resume"), "{told}");
    let status = tell(&["status"]);
    assert_eq!(
        (status["paused"].as_bool(), status["cap"].as_str()),
        (Some(true), Some("0 bit/s")),
        "{status}"
    );

    // A word with an end, instead of the pause; then none, and no --cap either.
    let capped = tell(&["cap", "1 Gbit/s", "--for", "1h"]);
    assert_eq!((capped["paused"].as_bool(), capped["cap"].as_str()), (Some(false), Some("1 Gbit/s")));
    assert!(capped["until"].is_string(), "{capped}");
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(same(&site.path("disk"), &site.path("copy")));
    let mut agent = site.agent(&address, &["--rounds"]);
    agent.event("pause");
    assert!(tell(&["resume"])["cap"].is_null());
    tell(&["round"]);
    assert_eq!(agent.event("round")["round"], 2);
}
