//! Real block devices and a mounted file system. Needs root and loop devices; says so when it cannot run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Running, Site, noise};

fn tool(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device over a file of its own.
struct Loop(String);

impl Loop {
    fn new(file: &Path, mib: u64) -> Self {
        std::fs::File::create(file).unwrap().set_len(mib << 20).unwrap();
        Self(tool("losetup", &["--find", "--show", file.to_str().unwrap()]))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}

/// A mounted file system.
struct Mount(PathBuf);

impl Mount {
    fn new(device: &str, at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        tool("mount", &["-o", options, device, at.to_str().unwrap()]);
        Self(at.into())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

fn possible(test: &str) -> bool {
    support::possible(test, "root and loop devices (losetup, mkfs.ext4, mount)", support::has_loops())
}

fn send(site: &Site, device: &str, address: &str, more: &[&str]) -> Running {
    let args = ["agent", "--state", "agent", "--source", device, "--connect", address];
    let mut agent = Running::start(site, &[&args, more].concat());
    assert!(agent.end().success(), "{:#?}", agent.seen);
    agent
}

#[test]
fn a_mounted_file_system_that_is_written_to_between_rounds_arrives_whole() {
    if !possible("a_mounted_file_system_that_is_written_to_between_rounds_arrives_whole") {
        return;
    }
    let site = Site::enrolled();
    let (old, new) = (Loop::new(&site.path("old"), 64), Loop::new(&site.path("new"), 80));
    tool("mkfs.ext4", &["-q", "-b", "4096", &old.0]);
    let mounted = Mount::new(&old.0, &site.path("old.d"), "rw");
    std::fs::write(mounted.0.join("first"), noise(1, 9 << 20)).unwrap();
    tool("sync", &["-f", mounted.0.to_str().unwrap()]);

    let mut receiver = site.receiving("--target", &new.0, &["--until-proven"]);
    let address = receiver.address();
    send(&site, &old.0, &address, &[]);
    // The cache of the device has seen these blocks; a file system writes past it.
    std::fs::read(&old.0).unwrap();
    for round in 2..5 {
        std::fs::write(mounted.0.join(format!("round {round}")), noise(round, 3 << 20)).unwrap();
        std::fs::write(mounted.0.join("first"), noise(round + 10, 9 << 20)).unwrap();
        tool("sync", &["-f", mounted.0.to_str().unwrap()]);
        let agent = send(&site, &old.0, &address, &[]);
        assert!(agent.last("round")["tally"]["content"].as_u64().unwrap() >= 3 << 20, "{:#?}", agent.seen);
    }
    let expected = noise(14, 9 << 20);
    drop(mounted);
    send(&site, &old.0, &address, &["--prove"]);
    assert!(receiver.end().success());
    assert_eq!(receiver.last("round")["purpose"], "proof");

    tool("e2fsck", &["-fn", &new.0]);
    let arrived = Mount::new(&new.0, &site.path("new.d"), "ro");
    assert!(std::fs::read(arrived.0.join("first")).unwrap() == expected, "another content");
    assert!(std::fs::read(arrived.0.join("round 4")).unwrap() == noise(4, 3 << 20), "another content");
}

#[test]
fn a_device_that_is_mounted_or_holds_something_is_not_written_to() {
    if !possible("a_device_that_is_mounted_or_holds_something_is_not_written_to") {
        return;
    }
    let site = Site::enrolled();
    support::image(&site.path("disk"), 2);
    let device = Loop::new(&site.path("held"), 16);
    tool("mkfs.ext4", &["-q", &device.0]);
    let before = std::fs::read(site.path("held")).unwrap();
    let refused = |more: &[&str], why: &str| {
        let receiver = site.receiving("--target", &device.0, more);
        let output = site.run(&[
            "agent",
            "--state",
            "agent",
            "--source",
            "disk",
            "--connect",
            &receiver.address(),
            "--give-up-after",
            "1s",
        ]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(why), "{output:?}");
    };
    refused(&[], "is not empty");
    let mounted = Mount::new(&device.0, &site.path("held.d"), "ro");
    refused(&["--overwrite"], "is in use");
    drop(mounted);
    assert!(std::fs::read(site.path("held")).unwrap() == before, "it was written to");
}

#[test]
fn a_full_disk_is_told_at_both_ends_and_the_transfer_goes_on_when_there_is_room() {
    if !possible("a_full_disk_is_told_at_both_ends_and_the_transfer_goes_on_when_there_is_room") {
        return;
    }
    let site = Site::enrolled();
    let mib = 12;
    std::fs::write(site.path("disk"), noise(5, mib << 20)).unwrap();
    let device = Loop::new(&site.path("small"), 32);
    tool("mkfs.ext4", &["-q", &device.0]);
    let mounted = Mount::new(&device.0, &site.path("small.d"), "rw");
    std::fs::write(mounted.0.join("in the way"), noise(6, 18 << 20)).unwrap();
    let mut receiver = site.receiving("--target", "small.d/copy", &["--until-proven"]);
    let mut agent = site.agent(&receiver.address(), &["--prove"]);
    let told = agent.event("waiting");
    assert!(told["why"].as_str().unwrap().contains("No space left"), "{told}");
    assert!(receiver.event("warning")["text"].as_str().unwrap().contains("No space left"));
    std::fs::remove_file(mounted.0.join("in the way")).unwrap();
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    assert!(support::same(&site.path("disk"), &mounted.0.join("copy")));
}
