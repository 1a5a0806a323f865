//! Two machines as the README has them: two network namespaces, a line between them, and nothing else in common. Needs
//! root and `ip`; says so when it cannot run.
//!
//! `CONME_MOVER_MIB=4096` moves an image of 4 GiB.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

use support::{Running, Site, noise, same};

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).output().is_ok_and(|output| output.status.success())
}

/// The data centre and the office, and a line between them.
struct Line {
    centre: String,
    office: String,
}

impl Line {
    /// None where this machine does not allow it.
    fn new() -> Option<Self> {
        let id = std::process::id();
        let line = Self { centre: format!("conme-c{id}"), office: format!("conme-o{id}") };
        if !ip(&["netns", "add", &line.centre]) || !ip(&["netns", "add", &line.office]) {
            return None;
        }
        // From here on a step that fails is a defect, and no reason to leave the test out.
        let (from, to) = (["name", "wan", "netns", &line.centre], ["name", "wan", "netns", &line.office]);
        assert!(ip(&[&["link", "add"], &from[..], &["type", "veth", "peer"], &to[..]].concat()));
        for (name, address) in [(&line.centre, "10.77.0.1/24"), (&line.office, "10.77.0.2/24")] {
            assert!(ip(&["-n", name, "address", "add", address, "dev", "wan"]));
            assert!(ip(&["-n", name, "link", "set", "wan", "up"]));
            assert!(ip(&["-n", name, "link", "set", "lo", "up"]));
        }
        Some(line)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.centre]);
        ip(&["netns", "delete", &self.office]);
    }
}

/// The program, in a namespace. `ip netns exec` becomes it, so its process is the one that is killed.
fn start(site: &Site, namespace: &str, args: &[&str]) -> Running {
    let inner = site.command(args);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(inner.get_program()).args(inner.get_args());
    command.current_dir(inner.get_current_dir().unwrap());
    Running::spawn(command)
}

#[test]
fn a_server_moves_between_two_machines_whichever_of_them_is_killed() {
    let line = rustix::process::geteuid().is_root().then(Line::new).flatten();
    let Some(line) = line else {
        println!("SKIPPED: two machines need root and network namespaces (ip netns)");
        return;
    };
    let mib: u64 = match std::env::var("CONME_MOVER_MIB") {
        Ok(mib) => mib.parse().expect("CONME_MOVER_MIB is a number"),
        Err(_) => 48,
    };
    let site = Site::new();
    let disk = File::options().write(true).create_new(true).open(site.path("disk")).unwrap();
    for at in 0..mib {
        disk.write_all_at(&noise(at, 1 << 20), at << 20).unwrap();
    }
    disk.sync_all().unwrap();

    // As in the README.
    let receive = ["receive", "--identity", "receiver", "--state", "received", "--listen", "10.77.0.1:7443"];
    let receive = [&receive[..], &["--target", "copy", "--until-proven"]].concat();
    let receiving = || {
        let mut receiver = start(&site, &line.centre, &receive);
        receiver.event("listening");
        receiver
    };
    let mut receiver = receiving();
    let mut place = start(&site, &line.centre, &["ca", "serve", "--dir", "ca", "--listen", "10.77.0.1:7444"]);
    place.event("listening");
    site.token_for("10.77.0.1:7444", "10.77.0.1:7443");
    let enrol = ["enrol", "--token", "token.json", "--state", "agent"];
    assert!(start(&site, &line.office, &enrol).end().success());

    // Slow enough that a kill falls into the transfer.
    let cap = format!("{}mbit", (mib / 3).max(32));
    // Programs that are not optimised read and hash an image of gibibytes for minutes.
    let limit = support::LIMIT + Duration::from_secs(mib / 5);
    let mut acknowledged = 0;
    for kill_agent in [true, false] {
        let args = ["agent", "--state", "agent", "--source", "disk", "--cap", &cap];
        let mut agent = start(&site, &line.office, &args);
        acknowledged += agent.acknowledged();
        if kill_agent {
            agent.kill();
            continue;
        }
        receiver.kill();
        receiver = receiving();
        // It calls again by itself.
        assert!(agent.end_within(limit).success(), "{:#?}", agent.seen);
        let tally = &agent.last("round")["tally"];
        let (before, sent) = (tally["units_before"].as_u64().unwrap(), tally["units_sent"].as_u64().unwrap());
        assert!(before >= acknowledged, "{acknowledged} were acknowledged, {tally}");
        assert_eq!(sent + before, mib, "{tally}");
    }
    assert!(
        start(&site, &line.office, &["agent", "--state", "agent", "--source", "disk", "--prove"])
            .end_within(limit)
            .success()
    );
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    assert!(same(&site.path("disk"), &site.path("copy")));
    let evidence = receiver.last("round")["evidence"].as_str().unwrap();
    site.ok(&["verify", "--authority", "ca/authority.pem", "--target", "copy", "--evidence", evidence]);
}

/// The most memory that a process ever had, in KiB.
fn peak(process: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_disk_of_64_gib_takes_no_more_memory_than_64_mib_at_either_end() {
    let site = Site::enrolled();
    let disk = File::options().write(true).create_new(true).open(site.path("disk")).unwrap();
    disk.set_len(64 << 30).unwrap();
    // Content all over it: whole units, and single blocks with zeros around them.
    for at in 0..40 {
        disk.write_all_at(&noise(at, 1 << 20), at * (1600 << 20)).unwrap();
        disk.write_all_at(&noise(at, 4096), at * (1600 << 20) + (700 << 20) + 8192).unwrap();
    }
    disk.sync_all().unwrap();
    let receiver = site.receiver(&[]);
    let mut agent = site.agent(&receiver.address(), &["--rounds"]);
    agent.event("pause");
    // Once more, with tables of all 64 GiB at both ends.
    let tally = agent.last("round")["tally"].clone();
    assert_eq!(tally["units_done"], 65536, "{tally}");
    site.ok(&["round", "--state", "agent"]);
    agent.event("pause");
    assert_eq!(agent.last("round")["tally"]["content"], 0, "{:#?}", agent.seen);
    for (who, peak) in [("agent", peak(&agent)), ("receiver", peak(&receiver))] {
        println!("{who}: {} MiB", peak >> 10);
        assert!(peak <= 64 << 10, "the {who} took {peak} KiB");
    }
}
