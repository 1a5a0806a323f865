//! One byte is flipped on the way, where TLS does not protect it any more: in the memory of a machine, say. It is found,
//! named and put right, and the evidence tells of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

#[path = "support/relay.rs"]
mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use conme_mover::core::frame::{Packing, Part, ToReceiver, ToSender, UnitHead};
use conme_mover::core::geometry::{Geometry, LEAF, UNIT};
use conme_mover::core::pack;
use conme_mover::core::tree::frame as tree;
use relay::{Relay, Watch};
use serde_json::{Value, json};
use support::{Running, Site, noise, same};

const UNITS: u64 = 8;

/// Where the byte is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Blow {
    /// In content that goes as it is: only its hash can tell.
    Raw,
    /// In packed content that still unpacks, to as many bytes.
    Packed,
    /// In the first byte of packed content: nothing of it unpacks any more.
    Unpackable,
}

/// Flips one byte of the content of one frame, and writes down what passes.
struct Flipper {
    blow: Blow,
    geometry: Geometry,
    copy: PathBuf,
    /// Whether the byte is still to be flipped.
    armed: bool,
    /// The units whose content is wrong, once it is flipped.
    hit: BTreeSet<u64>,
    /// How often each unit went.
    sent: BTreeMap<u64, u32>,
    /// Units that the receiver has refused, with what the target had in their place at that moment.
    refused: Vec<(u64, Vec<u8>)>,
}

impl Flipper {
    fn carried(&self, head: &UnitHead) -> usize {
        let leaves = head.changed.iter().filter(|leaf| !head.zero.contains(*leaf));
        leaves.map(|leaf| self.geometry.leaf_range(head.unit, leaf).len()).sum()
    }

    /// The payload with one byte flipped, and the units that this spoils; `None` when this payload is not of the kind.
    fn flip(&self, heads: &[UnitHead], packing: Packing, payload: &[u8]) -> Option<(Vec<u8>, BTreeSet<u64>)> {
        let len = heads.iter().map(|head| self.carried(head)).sum();
        let fits = match self.blow {
            Blow::Raw => packing == Packing::Raw,
            Blow::Packed | Blow::Unpackable => packing == Packing::Zstd,
        };
        let whole = pack::unpack(packing, payload.to_vec(), len).filter(|whole| fits && !whole.is_empty())?;
        let flipped = |at: usize| {
            let mut payload = payload.to_vec();
            payload[at] ^= 1;
            payload
        };
        if self.blow == Blow::Unpackable {
            assert_eq!(pack::unpack(packing, flipped(0), len), None);
            return Some((flipped(0), heads.iter().map(|head| head.unit).collect()));
        }
        (payload.len() / 2..payload.len()).find_map(|at| {
            let spoilt = pack::unpack(packing, flipped(at), len).filter(|spoilt| *spoilt != whole)?;
            let mut end = 0;
            let hit = heads.iter().filter(|head| {
                let part = end..end + self.carried(head);
                end = part.end;
                spoilt[part.clone()] != whole[part]
            });
            let hit: BTreeSet<_> = hit.map(|head| head.unit).collect();
            (hit.len() == 1).then(|| (flipped(at), hit))
        })
    }
}

impl Watch for Flipper {
    type ToReceiver = ToReceiver;
    type ToSender = ToSender;

    fn to_receiver(&mut self, frame: ToReceiver) -> Option<ToReceiver> {
        let (heads, packing, payload) = match &frame {
            ToReceiver::Unit(unit) => (vec![unit.head], unit.packing, &unit.payload),
            ToReceiver::Bundle(bundle) => {
                let heads = bundle.parts.iter().filter_map(|part| match part {
                    Part::Unit(head) => Some(*head),
                    Part::Zeros { .. } => None,
                });
                (heads.collect(), bundle.packing, &bundle.payload)
            }
            _ => return None,
        };
        for head in &heads {
            *self.sent.entry(head.unit).or_default() += 1;
        }
        let (payload, hit) = self.flip(&heads, packing, payload).filter(|_| self.armed)?;
        self.armed = false;
        self.hit = hit;
        Some(match frame {
            ToReceiver::Unit(mut unit) => {
                unit.payload = payload;
                ToReceiver::Unit(unit)
            }
            ToReceiver::Bundle(mut bundle) => {
                bundle.payload = payload;
                ToReceiver::Bundle(bundle)
            }
            other => other,
        })
    }

    fn to_sender(&mut self, frame: ToSender) {
        if let ToSender::Nack { unit, .. } = frame {
            let mut there = vec![0; self.geometry.unit_len(unit)];
            File::open(&self.copy).unwrap().read_exact_at(&mut there, self.geometry.offset(unit)).unwrap();
            self.refused.push((unit, there));
        }
    }
}

/// Content that goes raw or packed, different in each unit.
fn content(blow: Blow, seed: u64) -> Vec<u8> {
    let len = UNIT as usize;
    match blow {
        Blow::Raw => noise(seed, len),
        // What repeats is packed, and what it repeats lies in it as it is.
        Blow::Packed | Blow::Unpackable => noise(seed, 64 << 10).repeat(len / (64 << 10)),
    }
}

fn evidence(site: &Site, round: u64) -> Value {
    let file = format!("received/evidence/round-{round:04}.json");
    let check = ["verify", "--authority", "ca/authority.pem", "--evidence", &file];
    site.ok(&check)[0].clone()
}

fn a_byte_is_flipped(blow: Blow) {
    let site = Site::enrolled();
    let len = UNITS * u64::from(UNIT);
    let disk = File::options().read(true).write(true).create_new(true).open(site.path("disk")).unwrap();
    for unit in 0..UNITS {
        disk.write_all_at(&content(blow, unit), unit * u64::from(UNIT)).unwrap();
    }
    disk.sync_all().unwrap();
    let mut receiver = site.receiver(&["--until-proven"]);
    let flipper = Flipper {
        blow,
        geometry: Geometry::new(len, UNIT, LEAF).unwrap(),
        copy: site.path("copy"),
        armed: true,
        hit: BTreeSet::new(),
        sent: BTreeMap::new(),
        refused: Vec::new(),
    };
    let relay = Relay::start(&site, &receiver.address(), flipper);

    // In the first round there is nothing on the target yet, and nothing but that stays there.
    let mut agent = site.agent(&relay.address, &[]);
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(same(&site.path("disk"), &site.path("copy")));
    let first = {
        let mut watch = relay.watch.lock().unwrap();
        assert!(!watch.armed, "no such content went by");
        let refused: Vec<_> = watch.refused.iter().map(|(unit, _)| *unit).collect();
        assert_eq!(refused.iter().copied().collect::<BTreeSet<_>>(), watch.hit);
        assert_eq!(refused.len(), watch.hit.len(), "refused again: {refused:?}");
        for (unit, there) in &watch.refused {
            assert!(there.iter().all(|byte| *byte == 0), "something was written to unit {unit}");
        }
        for unit in 0..UNITS {
            let times = 1 + u32::from(watch.hit.contains(&unit));
            assert_eq!(watch.sent.get(&unit), Some(&times), "unit {unit} went so often");
        }
        watch.refused.clear();
        watch.sent.clear();
        refused
    };
    // It is named where people look.
    let warned = receiver.event("warning");
    assert_eq!(warned["arrivedDamaged"][0], first[0], "{warned}");
    assert_eq!(agent.last("round")["tally"]["damaged"], first.len(), "{:#?}", agent.seen);
    let told = evidence(&site, 1);
    let found = &told["target"]["damage"][0];
    assert_eq!((&found["place"], &found["repaired_in"]), (&json!("arrival"), &json!(1)), "{told}");
    assert_eq!((&found["count"], &found["units"]), (&json!(first.len()), &json!(first)), "{told}");
    assert_eq!(told["target"]["tally"]["refused"], first.len(), "{told}");

    // In a later round the old content stays until the right one has come.
    let changed = 3;
    let before = content(blow, changed);
    disk.write_all_at(&content(blow, 100)[..256 << 10], changed * u64::from(UNIT)).unwrap();
    disk.sync_all().unwrap();
    relay.watch.lock().unwrap().armed = true;
    let mut agent = site.agent(&relay.address, &["--prove"]);
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    assert!(same(&site.path("disk"), &site.path("copy")));
    let watch = relay.watch.lock().unwrap();
    assert_eq!(watch.hit, BTreeSet::from([changed]));
    assert!(watch.refused == [(changed, before)], "the target had something else");
    assert_eq!(watch.sent, BTreeMap::from([(changed, 2)]), "other units went, too");
    let proof = receiver.last("round");
    assert_eq!(proof["purpose"], "proof");
    let told = evidence(&site, proof["round"].as_u64().unwrap());
    let damage = &told["target"]["damage"];
    assert_eq!(damage.as_array().map(Vec::len), Some(2), "{told}");
    assert_eq!((&damage[1]["units"], &damage[1]["repaired_in"]), (&json!([changed]), &json!(2)), "{told}");

    // Root and SHA-256 are the same at both ends, and of what is on both disks now.
    let file = proof["evidence"].as_str().unwrap();
    let check = ["verify", "--authority", "ca/authority.pem", "--evidence", file, "--target"];
    for whole in ["copy", "disk"] {
        let checked = site.ok(&[&check[..], &[whole]].concat());
        assert_eq!(checked[1]["same"], true, "{checked:?}");
    }
    let sha256 = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(site.path("disk")).unwrap());
    let sha256: String = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(told["subject"]["sha256"], sha256, "{told}");
    let file: Value = serde_json::from_slice(&std::fs::read(site.path(file)).unwrap()).unwrap();
    let subject = |end: &str| -> Value {
        let statement: Value = serde_json::from_str(file[end]["statement"].as_str().unwrap()).unwrap();
        statement["subject"].clone()
    };
    assert_eq!(subject("source"), subject("target"));
}

#[test]
fn a_byte_of_raw_content_is_flipped_and_only_the_hash_can_tell() {
    a_byte_is_flipped(Blow::Raw);
}

#[test]
fn a_byte_of_packed_content_is_flipped_and_it_still_unpacks() {
    a_byte_is_flipped(Blow::Packed);
}

#[test]
fn a_byte_of_packed_content_is_flipped_and_nothing_unpacks() {
    a_byte_is_flipped(Blow::Unpackable);
}

/// Flips one byte in the middle of the first raw steps of a tree that hold much content.
struct TreeFlipper {
    flipped: u32,
}

impl Watch for TreeFlipper {
    type ToReceiver = tree::ToReceiver;
    type ToSender = tree::ToSender;

    fn to_receiver(&mut self, frame: tree::ToReceiver) -> Option<tree::ToReceiver> {
        match frame {
            tree::ToReceiver::Steps { len, packing: Packing::Raw, mut payload }
                if self.flipped == 0 && payload.len() > 256 << 10 =>
            {
                self.flipped += 1;
                let middle = payload.len() / 2;
                payload[middle] ^= 1;
                Some(tree::ToReceiver::Steps { len, packing: Packing::Raw, payload })
            }
            _ => None,
        }
    }

    fn to_sender(&mut self, _: tree::ToSender) {}
}

#[test]
fn a_byte_of_a_file_is_flipped_and_the_next_session_sends_it_again() {
    let site = Site::enrolled();
    std::fs::create_dir(site.path("tree")).unwrap();
    std::fs::write(site.path("tree/registro"), noise(1, 4 << 20)).unwrap();
    let mut receiver = site.receiving("--into", "copy", &[]);
    let relay = Relay::start(&site, &receiver.address(), TreeFlipper { flipped: 0 });
    let args = ["agent", "--state", "agent", "--tree", "tree", "--connect", &relay.address, "--prove"];
    let mut agent = Running::start(&site, &args);
    // It goes on by itself.
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert_eq!(relay.watch.lock().unwrap().flipped, 1, "no such content went by");
    for told in [agent.last("waiting")["why"].clone(), receiver.event("warning")["text"].clone()] {
        assert!(told.as_str().unwrap().contains("did not arrive as it was sent"), "{told}");
    }
    assert!(same(&site.path("tree/registro"), &site.path("copy/registro")));
}
