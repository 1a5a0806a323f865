//! Many files take time, and no memory. This file has one test only: the peak of memory is that of the process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trees;

use conme_mover::core::frame::{self, RoundEnd, RoundKind};
use conme_mover::core::tree::frame::{ToReceiver, ToSender};
use conme_mover::core::tree::lists::Budget;
use conme_mover::core::tree::receiver::{Ending, Receiver};
use conme_mover::core::tree::sender::{Order, Sender, Step};
use conme_mover::tree::{SourceSettings, TreeSource, TreeTarget};
use trees::{Memory, Site};

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn seventy_thousand_files_fit_into_the_memory_of_both_ends() {
    let site = Site::new();
    let files = std::env::var("CONME_MANY_FILES").map_or(70_000, |many| many.parse().unwrap());
    // Most of them in one directory: its names are more than are held at once.
    std::fs::create_dir(site.from("one")).unwrap();
    for n in 0..files {
        std::fs::write(site.from(&format!("one/a name of a usual length {n}.pdf")), (n as u64).to_le_bytes())
            .unwrap();
    }
    let (agent, receiver) = (site.from("../agent"), site.from("../receiver"));
    let shelf = Memory::on_disk(&agent);
    let source = TreeSource::open(&site.from(""), SourceSettings::default()).unwrap();
    let order = Order { kind: RoundKind::Copy, begun: None, software: "test".into(), level: 1 };
    let mut sender = Sender::new(order, source, shelf);
    let target = TreeTarget::open(&site.to(""), site.target.clone(), false, false).unwrap();
    let shelf = Memory::on_disk(&receiver);
    let mut receiver = Receiver::open(target, shelf, [1; 16], 32 << 20, Budget::NONE).unwrap();
    loop {
        let answers = match sender.step().unwrap() {
            Step::Send(ToReceiver::Common(frame::ToReceiver::Hello(_))) => receiver.welcome("test").to_vec(),
            Step::Send(frame) => receiver.handle(frame).unwrap(),
            Step::Wait => receiver.commit().unwrap().into_iter().collect(),
            Step::Conclude(end) => {
                let (statement, signature) = (Vec::new(), Vec::new());
                let end = RoundEnd { round: end.round, root: end.root, sha256: None, statement, signature };
                let end = ToReceiver::Common(frame::ToReceiver::RoundEnd(end));
                let mut answers = receiver.handle(end).unwrap();
                loop {
                    if let Ending::Result(result) = receiver.end().unwrap() {
                        answers.push(ToSender::Common(frame::ToSender::RoundResult(result)));
                        break answers;
                    }
                }
            }
            Step::Over { result, .. } => {
                assert!(result.unwrap().agreed);
                break;
            }
        };
        for answer in answers {
            sender.receive(answer).unwrap();
        }
    }
    let tally = sender.tally();
    assert_eq!(tally.entries, files as u64 + 2);
    let there = std::fs::read_dir(site.to("one")).unwrap().count();
    assert_eq!(there, files);
    let peak = peak_kib();
    eprintln!("{files} files: {peak} KiB at most, {} bytes sent", tally.wire);
    assert!(peak < 64 << 10, "{peak} KiB for both ends together");
}
