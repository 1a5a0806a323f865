//! The program moves a directory, whoever is killed on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;
mod trees;

use std::os::unix::fs::{PermissionsExt, symlink};

use support::{Running, Site, events, noise};
use trees::snapshot;

fn receiver(site: &Site, more: &[&str]) -> Running {
    site.receiving("--into", "copy", more)
}

fn agent(site: &Site, address: &str, more: &[&str]) -> Running {
    let args = ["agent", "--state", "agent", "--tree", "tree", "--connect", address];
    Running::start(site, &[&args, more].concat())
}

fn tree(site: &Site) {
    std::fs::create_dir_all(site.path("tree/uffici/tributi")).unwrap();
    for n in 0..40 {
        std::fs::write(site.path(&format!("tree/uffici/tributi/{n}")), noise(n, 20_000)).unwrap();
    }
    std::fs::write(site.path("tree/archive"), noise(99, 8 << 20)).unwrap();
    std::fs::hard_link(site.path("tree/archive"), site.path("tree/second name")).unwrap();
    symlink("../outside", site.path("tree/link")).unwrap();
    std::fs::set_permissions(site.path("tree/uffici"), PermissionsExt::from_mode(0o750)).unwrap();
}

#[test]
fn a_directory_arrives_is_proven_verified_and_repaired() {
    let site = Site::enrolled();
    tree(&site);
    let mut there = receiver(&site, &[]);
    let address = there.address();
    let mut here = agent(&site, &address, &["--prove"]);
    assert!(here.end().success(), "{:#?}", here.seen);
    assert_eq!(snapshot(&site.path("tree")), snapshot(&site.path("copy")));
    there.event("round");
    let proof = there.event("round");
    assert_eq!(proof["purpose"], "proof");
    let evidence = proof["evidence"].as_str().unwrap();
    let checked = site.ok(&["verify", "--authority", "ca/authority.pem", "--evidence", evidence]);
    assert_eq!(checked[0]["subject"]["purpose"], "proof");
    let forged = std::fs::read_to_string(site.path(evidence)).unwrap().replace("srv1", "srv2");
    std::fs::write(site.path("forged.json"), forged).unwrap();
    let found = site.run(&["verify", "--authority", "ca/authority.pem", "--evidence", "forged.json"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");

    // A bit rots: it is named by its path, and the next round repairs it.
    there.kill();
    let mut rotten = std::fs::read(site.path("copy/archive")).unwrap();
    rotten[3 << 20] ^= 1;
    std::fs::write(site.path("copy/archive"), rotten).unwrap();
    let verify = ["verify", "--state", "received", "--target", "copy"];
    let found = site.run(&verify);
    assert_eq!(found.status.code(), Some(4), "{found:?}");
    let verified = events(&found.stdout).into_iter().find(|event| event["event"] == "verified").unwrap();
    assert!(verified["paths"].as_array().unwrap().contains(&"archive".into()), "{verified}");
    let there = receiver(&site, &["--until-proven"]);
    let mut here = agent(&site, &there.address(), &["--prove"]);
    assert!(here.end().success(), "{:#?}", here.seen);
    assert_eq!(snapshot(&site.path("tree")), snapshot(&site.path("copy")));
    let mut there = there;
    assert!(there.end().success());
    site.ok(&verify);
    let manifest = site.run(&["manifest", "--state", "received"]);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.stdout).unwrap();
    assert_eq!((&manifest["entries"], &manifest["complete"]), (&46.into(), &true.into()), "{manifest}");
}

#[test]
fn whoever_is_killed_both_ends_go_on_where_they_were() {
    let site = Site::enrolled();
    tree(&site);
    let mut there = receiver(&site, &[]);
    let mut here = agent(&site, &there.address(), &["--cap", "24mbit", "--level", "0"]);
    let (mut acknowledged, mut kills) = (0, 0);
    while kills < 3 {
        // On a slow machine a session may come to its end before anybody gets round to killing it.
        let Some(progress) = here.event_or_end("progress") else { break };
        let now = progress["tally"]["acknowledged"].as_u64().unwrap();
        if now < 800_000 {
            continue;
        }
        acknowledged += now;
        kills += 1;
        // Both of them, or only one: the other finds out by itself.
        if kills % 2 == 0 {
            here.kill();
        }
        there.kill();
        there = receiver(&site, &[]);
        if kills % 2 != 0 {
            // It still calls at the old address.
            here.kill();
        }
        here = agent(&site, &there.address(), &["--cap", "24mbit", "--level", "0"]);
    }
    assert!(here.end().success(), "{:#?}", here.seen);
    assert!(kills > 0, "{:#?}", here.seen);
    let last = here.last("round")["tally"]["content"].as_u64().unwrap();
    let total = 40 * 20_000 + (8 << 20);
    assert!(acknowledged + last <= total, "{acknowledged} were acknowledged, then {last} sent, of {total}");
    assert_eq!(snapshot(&site.path("tree")), snapshot(&site.path("copy")));
}

#[test]
fn a_disk_and_a_directory_do_not_meet() {
    let site = Site::enrolled();
    std::fs::write(site.path("disk"), noise(1, 1 << 20)).unwrap();
    let there = receiver(&site, &[]);
    let mut here = site.agent(&there.address(), &["--give-up-after", "60s"]);
    assert_eq!(here.end().code(), Some(1), "{:#?}", here.seen);
    let why = here.last("error")["text"].as_str().unwrap();
    assert!(why.contains("one end moves a disk, the other a directory"), "{why}");
    assert!(!site.path("copy").exists());
}
