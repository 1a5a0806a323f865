//! SIGKILL on either side, again and again, while somebody writes to the source.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Running, Site, noise, same};

const MIB: u64 = 16;

/// Writes 4 KiB somewhere in the disk, again and again, until told to stop. Says how often.
fn writer(disk: File, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut turn = 0;
        while !stop.load(Ordering::SeqCst) {
            turn += 1;
            let block = noise(turn, 4096);
            let place = u64::from_le_bytes(block[..8].try_into().unwrap()) % (MIB << 8);
            disk.write_all_at(&block, place << 12).unwrap();
            // A server syncs, too; and this is what paces it.
            disk.sync_data().unwrap();
        }
        turn
    })
}

#[test]
fn either_end_is_killed_again_and_again_while_the_source_is_written_to() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).map_or(otherwise, |value| value.parse().expect("a number of the environment"))
    };
    let (kills, seed) = (number("CONME_MOVER_KILLS", 20), number("CONME_SEED", 0));
    println!("again: CONME_SEED={seed} CONME_MOVER_KILLS={kills} cargo test -p conme-mover --test kills");
    let site = Site::enrolled();
    let disk = File::options().read(true).write(true).create_new(true).open(site.path("disk")).unwrap();
    disk.write_all_at(&noise(0, usize::try_from(MIB << 20).unwrap()), 0).unwrap();
    disk.sync_all().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = writer(disk.try_clone().unwrap(), Arc::clone(&stop));

    let mut receiver = site.receiver(&[]);
    let address = receiver.address();
    let again = || {
        let args =
            ["receive", "--identity", "receiver", "--state", "received", "--target", "copy", "--listen"];
        let mut receiver = Running::start(&site, &[&args[..], &[address.as_str()]].concat());
        receiver.event("listening");
        receiver
    };
    // Slow enough that most kills fall into a round; and a round follows the other.
    let send = || site.agent(&address, &["--rounds", "--every", "1s", "--cap", "40mbit"]);
    let mut agent = send();
    for kill in 0..kills {
        let chance = noise((seed << 32) + kill + 1_000_000, 2);
        // The moment is after some events of the agent, whatever they are.
        for _ in 0..=chance[0] % 4 {
            agent.any_event();
        }
        if chance[1].is_multiple_of(2) {
            agent.kill();
            agent = send();
        } else {
            receiver.kill();
            receiver = again();
        }
    }
    agent.kill();
    stop.store(true, Ordering::SeqCst);
    let writes = writing.join().unwrap();
    assert!(writes > kills, "nobody wrote: {writes}");

    let mut agent = site.agent(&address, &["--prove"]);
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(same(&site.path("disk"), &site.path("copy")));
    let proof = loop {
        let round = receiver.event("round");
        if round["purpose"] == "proof" {
            break round;
        }
    };
    let evidence = proof["evidence"].as_str().unwrap();
    site.ok(&["verify", "--authority", "ca/authority.pem", "--evidence", evidence, "--target", "copy"]);
}
