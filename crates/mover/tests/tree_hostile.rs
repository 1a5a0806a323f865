//! An agent or a receiver that has been taken over speaks the protocol of trees.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trees;

use conme_mover::core::frame::{self, Frame, HEADER, Packing, RoundKind, header};
use conme_mover::core::hash;
use conme_mover::core::pack::Packer;
use conme_mover::core::tree::bytes::put_counted;
use conme_mover::core::tree::frame::{ToReceiver, ToSender};
use conme_mover::core::tree::item::{Kind, Meta};
use conme_mover::core::tree::lists::Budget;
use conme_mover::core::tree::op::Op;
use conme_mover::core::tree::path::TreePath;
use conme_mover::core::tree::ports::Fault;
use conme_mover::core::tree::sender::{Order, Sender, Step};
use conme_mover::tree::{SourceSettings, TreeSource};
use proptest::prelude::*;
use trees::{Site, noise, snapshot};

fn path(text: &str) -> TreePath {
    TreePath::new(text.into()).unwrap()
}

fn put(text: &str, kind: Kind) -> Op {
    Op::Put { path: path(text), kind, meta: Meta { mode: 0o755, ..Meta::default() } }
}

fn root() -> Op {
    put("", Kind::Dir)
}

fn open(text: &str) -> Op {
    Op::Open { path: path(text), goes_on: false }
}

fn close() -> Op {
    Op::Close { meta: Meta::default() }
}

fn chunk(content: &[u8]) -> Op {
    Op::Chunk { hash: hash::leaf(content), content: content.to_vec() }
}

fn encode(ops: &[Op]) -> Vec<u8> {
    let mut steps = Vec::new();
    ops.iter().for_each(|op| op.put(&mut steps));
    steps
}

/// What a receiver says to these steps; and nothing but its own directory may have changed.
fn tell(site: &Site, steps: Vec<u8>) -> Result<(), Fault> {
    tell_packed(site, steps.len(), Packing::Raw, steps)
}

fn tell_packed(site: &Site, len: usize, packing: Packing, payload: Vec<u8>) -> Result<(), Fault> {
    let mut receiver = site.receiver();
    let begin = frame::ToReceiver::RoundBegin { round: 1, kind: RoundKind::Copy };
    receiver.handle(ToReceiver::Common(begin)).unwrap();
    receiver.handle(ToReceiver::Steps { len: len as u32, packing, payload })?;
    receiver.commit().map(|_| ())
}

#[test]
fn entries_that_no_tree_can_have_are_refused() {
    let link = || put("a", Kind::Symlink(b"/etc".to_vec()));
    let cases: Vec<(&str, Vec<Op>)> = vec![
        ("something through a link", vec![root(), link(), open("a/passwd")]),
        ("something in a file", vec![root(), open("a"), close(), open("a/b")]),
        ("the same name twice", vec![root(), open("a"), close(), open("a"), close()]),
        ("a link and a directory of one name", vec![root(), link(), put("a", Kind::Dir)]),
        ("names out of their order", vec![root(), open("b"), close(), open("a")]),
        ("no root", vec![open("a")]),
        ("a root that is a file", vec![open("")]),
        ("a root that is a link", vec![put("", Kind::Symlink(b"/".to_vec()))]),
        ("a directory that was not named", vec![root(), open("a/b")]),
        ("a file in a file", vec![root(), open("a"), open("b")]),
        ("content without a file", vec![root(), chunk(b"x")]),
        ("the end of no file", vec![root(), close()]),
        ("another name of nothing", vec![root(), put("b", Kind::Link(path("a")))]),
        ("another name of what comes later", vec![root(), put("a", Kind::Link(path("b")))]),
        ("another name of a directory", vec![root(), put("a", Kind::Dir), put("b", Kind::Link(path("a")))]),
        ("what is not there", vec![Op::Keep { count: 1 }]),
        ("endless nothing", vec![Op::Pass { count: u64::MAX }]),
        ("content from nowhere", vec![root(), open("a"), Op::Copy { work: false, row: 0, count: 1 }]),
        (
            "content from afar",
            vec![root(), open("a"), Op::Copy { work: true, row: u64::MAX, count: u64::MAX }],
        ),
        ("a file that cannot go on", vec![root(), Op::Open { path: path("a"), goes_on: true }]),
        ("a description of nothing", vec![root(), Op::Restate { meta: Meta::default() }]),
    ];
    for (what, ops) in cases {
        let site = Site::new();
        let told = tell(&site, encode(&ops));
        assert!(matches!(told, Err(Fault::Peer(_))), "{what}: {told:?}");
    }
}

#[test]
fn no_name_leads_out_of_the_target() {
    for name in ["../x", "/etc/x", "a/../../x", ".", "..", "a//b", "x\0y", ".conme-mover", ".conme-mover/0/0"]
    {
        let site = Site::new();
        let mut steps = encode(&[root()]);
        steps.push(5);
        put_counted(&mut steps, name.as_bytes());
        let told = tell(&site, steps);
        assert!(matches!(told, Err(Fault::Peer(_))), "{name:?}: {told:?}");
    }
}

#[test]
fn sizes_beyond_all_bounds_are_refused() {
    let mut site = Site::new();
    site.budget = Budget { entries: 100, bytes: 1 << 20 };
    let zeros = Op::Zeros { len: 1 << 60 };
    assert!(matches!(tell(&site, encode(&[root(), open("a"), zeros.clone(), zeros])), Err(Fault::Budget(_))));
    // The same chunk over and over costs nothing on the wire, but it would fill the disk.
    let mut bomb = vec![root(), open("a"), chunk(&noise(1, 200_000))];
    bomb.push(Op::Copy { work: true, row: 0, count: 1 << 40 });
    assert!(matches!(tell(&site, encode(&bomb)), Err(Fault::Budget(_))));
    let many: Vec<_> =
        std::iter::once(root()).chain((100..300).map(|n| put(&n.to_string(), Kind::Dir))).collect();
    assert!(matches!(tell(&site, encode(&many)), Err(Fault::Budget(_))));
    let rows: Vec<_> = [root(), open("a")].into_iter().chain((0..2000).map(|_| chunk(b"x"))).collect();
    assert!(matches!(tell(&site, encode(&rows)), Err(Fault::Budget(_))));
}

#[test]
fn content_that_is_not_what_its_hash_says_is_refused() {
    let site = Site::new();
    let op = Op::Chunk { hash: hash::leaf(b"one thing"), content: b"another".to_vec() };
    assert!(matches!(tell(&site, encode(&[root(), open("a"), op])), Err(Fault::Damaged)));
}

#[test]
fn steps_that_cannot_be_unpacked_have_arrived_damaged() {
    let site = Site::new();
    let steps = encode(&[root(), open("a"), chunk(&[7; 9000]), close()]);
    let (packing, mut payload) = Packer::new(3).pack(steps.clone()).unwrap();
    assert_eq!(packing, Packing::Zstd);
    tell_packed(&site, steps.len(), packing, payload.clone()).unwrap();
    // The first bytes say that it is a frame of zstd.
    payload[0] ^= 1;
    let told = tell_packed(&Site::new(), steps.len(), packing, payload);
    assert!(matches!(told, Err(Fault::Damaged)), "{told:?}");
}

/// A number that is the same each time.
fn random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below.max(1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_an_agent_says_nothing_happens_outside(seed: u64, flips in 1..12_usize) {
        let mut seed = seed;
        let site = Site::new();
        std::fs::write(site.from("outside"), b"outside").unwrap();
        let before = snapshot(&site.from(""));
        let ops = [
            root(), put("a", Kind::Symlink(b"../from".to_vec())), put("b", Kind::Dir), open("b/a"),
            chunk(&noise(1, 500)), Op::Copy { work: true, row: 0, count: 1 }, Op::Zeros { len: 70_000 }, close(),
            put("b/b", Kind::Link(path("b/a"))), put("b/c", Kind::Fifo), open("c"), Op::Abandon, open("c"), close(),
        ];
        let mut steps = encode(&ops);
        for _ in 0..flips {
            let at = random(&mut seed, steps.len() as u64) as usize;
            steps[at] ^= 1 << random(&mut seed, 8);
        }
        // Refused or taken: both are well.
        let _ = tell(&site, steps);
        prop_assert_eq!(snapshot(&site.from("")), before);
    }

    #[test]
    fn whatever_a_receiver_says_the_source_stays_as_it_is(seed: u64) {
        let mut seed = seed;
        let mut site = Site::new();
        for n in 0..4 {
            std::fs::write(site.from(&n.to_string()), noise(n, 50_000)).unwrap();
        }
        site.copy();
        std::fs::write(site.from("1"), noise(77, 50_000)).unwrap();
        let before = snapshot(&site.from(""));
        let source = TreeSource::open(&site.from(""), SourceSettings::default()).unwrap();
        let order = Order { kind: RoundKind::Copy, begun: None, software: "test".into(), level: 1 };
        if random(&mut seed, 2) == 0 {
            site.agent.lose();
        }
        let mut sender = Sender::new(order, source, site.agent.clone());
        let mut receiver = site.receiver();
        for _ in 0..200 {
            let Ok(step) = sender.step() else { break };
            let answers = match step {
                Step::Send(ToReceiver::Common(frame::ToReceiver::Hello(_))) => receiver.welcome("test").to_vec(),
                Step::Send(frame) => match receiver.handle(frame) {
                    Ok(answers) => answers,
                    // What it was told has made the agent ask for the impossible.
                    Err(_) => break,
                },
                Step::Wait => receiver.commit().unwrap().into_iter().collect(),
                Step::Conclude(_) | Step::Over { .. } => break,
            };
            if answers.is_empty() {
                continue;
            }
            for answer in answers {
                let mut bytes = answer.encode();
                if random(&mut seed, 3) == 0 {
                    let at = HEADER as u64 + random(&mut seed, (bytes.len() - HEADER) as u64);
                    if let Some(byte) = bytes.get_mut(at as usize) {
                        *byte ^= 1 << random(&mut seed, 8);
                    }
                }
                let Ok(head) = header::<ToSender>(*bytes.first_chunk().unwrap()) else { break };
                let Ok(frame) = ToSender::decode(head.kind, &bytes[HEADER..]) else { break };
                let _ = sender.receive(frame);
            }
        }
        prop_assert_eq!(snapshot(&site.from("")), before);
    }
}
