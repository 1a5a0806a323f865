//! A disk moves from one end to the other, whatever happens in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};

use support::{Running, Site, image, noise, same};

#[test]
fn a_disk_arrives_and_the_evidence_says_so_later() {
    let site = Site::enrolled();
    image(&site.path("disk"), 24);
    let mut receiver = site.receiver(&["--until-proven"]);
    let mut agent = site.agent(&receiver.address(), &["--prove"]);
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    assert!(same(&site.path("disk"), &site.path("copy")));
    let room = |name: &str| std::fs::metadata(site.path(name)).unwrap().blocks();
    assert!(room("copy") < room("disk"), "zeros took room: {} and {}", room("copy"), room("disk"));

    let proof = receiver.last("round");
    assert_eq!(proof["purpose"], "proof");
    let evidence = proof["evidence"].as_str().unwrap();
    let check = ["verify", "--authority", "ca/authority.pem", "--target", "copy", "--evidence", evidence];
    let checked = site.ok(&check);
    let sha256 = checked[0]["subject"]["sha256"].as_str().unwrap();
    let by_hand = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(site.path("disk")).unwrap());
    assert_eq!(sha256, by_hand.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    assert_eq!(checked[1]["same"], true);

    // Somebody writes to the copy, or into the evidence.
    let copy = std::fs::File::options().write(true).open(site.path("copy")).unwrap();
    copy.write_all_at(b"!", 5 << 20).unwrap();
    assert_eq!(site.run(&check).status.code(), Some(4));
    let forged = std::fs::read_to_string(site.path(evidence)).unwrap().replace("srv1", "srv2");
    std::fs::write(site.path("forged.json"), forged).unwrap();
    let found = site.run(&["verify", "--authority", "ca/authority.pem", "--evidence", "forged.json"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
}

#[test]
fn later_rounds_send_only_what_changed_and_repair_what_broke() {
    let site = Site::enrolled();
    let disk = image(&site.path("disk"), 16);
    let mut receiver = site.receiver(&[]);
    let address = receiver.address();
    assert!(site.agent(&address, &[]).end().success());
    receiver.event("round");

    // A scattered write of 4 KiB costs this much and not a unit.
    disk.write_all_at(&noise(99, 4096), (4 << 20) + 8192).unwrap();
    disk.sync_all().unwrap();
    let mut agent = site.agent(&address, &[]);
    assert!(agent.end().success());
    let tally = &agent.last("round")["tally"];
    assert_eq!((tally["units_sent"].as_u64(), tally["content"].as_u64()), (Some(1), Some(4096)), "{tally}");
    receiver.event("round");
    assert!(same(&site.path("disk"), &site.path("copy")));

    // A bit rots on the target: nobody notices until it is read back; then it is named, and the next round repairs it.
    receiver.kill();
    let copy = std::fs::File::options().read(true).write(true).open(site.path("copy")).unwrap();
    let mut byte = [0];
    copy.read_exact_at(&mut byte, (8 << 20) + 5).unwrap();
    copy.write_all_at(&[byte[0] ^ 1], (8 << 20) + 5).unwrap();
    let found = site.run(&["verify", "--state", "received", "--target", "copy"]);
    assert_eq!(found.status.code(), Some(4), "{found:?}");
    assert_eq!(support::events(&found.stdout)[0]["units"], serde_json::json!([8]));
    let mut receiver = site.receiver(&["--until-proven"]);
    let mut agent = site.agent(&receiver.address(), &["--prove"]);
    assert!(agent.end().success());
    assert_eq!(agent.seen.iter().filter(|event| event["event"] == "round").count(), 2);
    assert!(same(&site.path("disk"), &site.path("copy")));
    let manifest = site.run(&["manifest", "--state", "received"]);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.stdout).unwrap();
    assert_eq!(manifest["damage"][0]["units"], serde_json::json!([8]), "{manifest}");
    assert_eq!(manifest["damage"][0]["repaired_in"], manifest["round"], "{manifest}");
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    let evidence = receiver.last("round")["evidence"].as_str().unwrap();
    let check = ["verify", "--authority", "ca/authority.pem", "--target", "copy", "--evidence", evidence];
    let checked = site.ok(&check);
    let told = &checked[0]["target"]["damage"];
    assert_eq!(told[0]["place"], "target", "{told}");
    assert_eq!((&told[0]["units"], &told[0]["repaired_in"]), (&serde_json::json!([8]), &manifest["round"]));
    assert_eq!(checked[1]["same"], true, "{checked:?}");
}

#[test]
fn either_end_may_be_killed_and_nothing_acknowledged_is_sent_again() {
    let site = Site::enrolled();
    let mib = 24;
    let disk = std::fs::File::create(site.path("disk")).unwrap();
    disk.write_all_at(&noise(1, mib << 20), 0).unwrap();
    disk.sync_all().unwrap();
    let mut receiver = site.receiver(&[]);
    let mut address = receiver.address();
    let mut acknowledged = 0;
    // Slow enough that a kill falls into the transfer.
    let slow = ["--cap", "16mbit"];
    for kill_agent in [true, false, true] {
        let mut agent = site.agent(&address, &slow);
        acknowledged += agent.acknowledged();
        if kill_agent {
            agent.kill();
        } else {
            receiver.kill();
            receiver = site.receiver(&[]);
            address = receiver.address();
            agent.kill();
        }
    }
    let mut agent = site.agent(&address, &[]);
    assert!(agent.end().success(), "{:#?}", agent.seen);
    let tally = &agent.last("round")["tally"];
    let (before, sent) = (tally["units_before"].as_u64().unwrap(), tally["units_sent"].as_u64().unwrap());
    assert!(before >= acknowledged, "{acknowledged} were acknowledged, {tally}");
    assert_eq!(sent + before, mib as u64, "{tally}");
    assert!(same(&site.path("disk"), &site.path("copy")));
}

#[test]
fn a_token_works_once_and_a_certificate_for_one_target_only() {
    let site = Site::enrolled();
    image(&site.path("disk"), 1);
    let place = Running::start(&site, &["ca", "serve", "--dir", "ca", "--listen", "127.0.0.1:0"]);
    let address = place.address();
    // The token that the agent has used, from elsewhere.
    let stolen = site.run(&["enrol", "--token", "token.json", "--state", "thief"]);
    assert!(!stolen.status.success());
    let key = std::fs::metadata(site.path("agent/identity/key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    // A server of the same municipality, enrolled for another target.
    site.token("srv2", "other", &address, "other.json");
    site.ok(&["enrol", "--token", "other.json", "--state", "agent2"]);
    let receiver = site.receiver(&[]);
    let call = |address: &str| {
        let args =
            ["agent", "--state", "agent2", "--source", "disk", "--connect", address, "--give-up-after", "1s"];
        site.run(&args)
    };
    let refused = call(&receiver.address());
    assert!(!refused.status.success());
    assert!(!site.path("copy").exists(), "it was let in");
    drop(place);
}
