//! Free space of real file systems: what `--skip-free` takes for free is what e2fsprogs says, and what was in use arrives.
//!
//! Needs mke2fs, dumpe2fs, e2fsck and debugfs; what mounts needs root and loop devices. Says so when it cannot run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use conme_mover::core::ext4::{Ext4, Found};
use conme_mover::core::frame::RoundKind;
use conme_mover::core::free::Free;
use conme_mover::core::ports::Source as _;
use conme_mover::disk::Disk;
use crc::{CRC_32_ISO_HDLC, Crc};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use support::{Running, Site, noise, same, seed};

/// Feature sets as they are found on servers, from ext2 of long ago to what is new.
const FORMS: [&str; 12] = [
    "-t ext2",
    "-t ext3",
    "-t ext4",
    "-t ext4 -b 1024",
    "-t ext4 -b 4096 -O ^64bit,^metadata_csum,uninit_bg",
    "-t ext4 -O ^has_journal",
    "-t ext4 -b 1024 -O ^flex_bg,^resize_inode,meta_bg",
    "-t ext4 -b 1024 -O meta_bg,^resize_inode,^64bit",
    "-t ext4 -O bigalloc -C 16384",
    "-t ext4 -b 1024 -O ^sparse_super,^resize_inode",
    "-t ext4 -b 1024 -O sparse_super2 -E num_backup_sb=2",
    "-t ext4 -O ^flex_bg,inline_data,metadata_csum_seed,quota,encrypt,mmp",
];

fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("LC_ALL", "C").env("TZ", "UTC").output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn possible(test: &str) -> bool {
    let tools = ["mke2fs", "dumpe2fs", "e2fsck", "debugfs"];
    let is_there = tools.iter().all(|tool| Command::new(tool).arg("-V").output().is_ok());
    support::possible(test, "e2fsprogs (mke2fs, dumpe2fs, e2fsck, debugfs)", is_there)
}

fn mountable(test: &str) -> bool {
    support::possible(test, "root and loop devices (losetup, mount)", support::has_loops()) && possible(test)
}

/// A directory to be put into a file system.
fn content(dir: &Path) {
    std::fs::create_dir_all(dir.join("uffici/anagrafe")).unwrap();
    for n in 0..30 {
        std::fs::write(dir.join(format!("uffici/anagrafe/{n}")), noise(n, 3000 * n as usize)).unwrap();
    }
    std::fs::write(dir.join("archive"), noise(99, 3 << 20)).unwrap();
}

/// Makes a file system in a part of an image, with that content.
fn make(image: &Path, at: u64, mib: u64, form: &str, content: Option<&Path>) {
    let offset = format!("offset={at}");
    // Later options of the same name would take the place of the first.
    let (form, extended) = match form.split_once(" -E ") {
        Some((form, extended)) => (form, format!("{offset},{extended}")),
        None => (form, offset),
    };
    let size = format!("{}k", mib << 10);
    let mut args = vec!["-q", "-F", "-E", &extended];
    args.extend(form.split(' '));
    if let Some(content) = content {
        args.extend(["-d", content.to_str().unwrap()]);
    }
    args.extend([image.to_str().unwrap(), &size]);
    tool("mke2fs", &args);
}

/// What dumpe2fs says is free, in bytes of the file system.
fn by_dumpe2fs(image: &Path) -> Vec<Range<u64>> {
    let dump = tool("dumpe2fs", &[image.to_str().unwrap()]);
    let number = |name: &str| {
        let line = dump.lines().find_map(|line| line.strip_prefix(name));
        line.map(|line| line.trim().parse::<u64>().unwrap())
    };
    let block = number("Block size:").unwrap();
    let cluster = number("Cluster size:").unwrap_or(block);
    let end = number("Block count:").unwrap() * block;
    let mut free: Vec<Range<u64>> = Vec::new();
    for line in dump.lines().filter_map(|line| line.strip_prefix("  Free blocks:")) {
        for run in line.split(',').map(str::trim).filter(|run| !run.is_empty()) {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            // Of a cluster it names the first block.
            let run = first * block..(last * block + cluster).min(end);
            match free.last_mut() {
                Some(before) if before.end == run.start => before.end = run.end,
                _ => free.push(run),
            }
        }
    }
    free
}

/// What we take for free, likewise; every group has to agree with itself.
fn by_us(image: &Path) -> Vec<Range<u64>> {
    let mut disk = Disk::source(image).unwrap();
    let len = disk.len();
    let found = Ext4::find(&mut disk, len, &(0..len)).unwrap();
    let Found::Ext4(ext4) = found else { panic!("{found:?}") };
    assert!(ext4.is_clean());
    let mut free: Vec<Range<u64>> = Vec::new();
    for group in 0..ext4.groups() {
        let runs = ext4.free(&mut disk, group).unwrap();
        for run in runs.unwrap_or_else(|| panic!("group {group} is not believed")) {
            match free.last_mut() {
                Some(before) if before.end == run.start => before.end = run.end,
                _ => free.push(run),
            }
        }
    }
    let survey = ext4.survey(&mut disk).unwrap();
    assert_eq!((survey.doubtful, survey.free), (0, free.iter().map(|run| run.end - run.start).sum()));
    free
}

#[test]
fn what_is_free_is_what_e2fsprogs_says() {
    if !possible("what_is_free_is_what_e2fsprogs_says") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    content(&dir.path().join("content"));
    for form in FORMS {
        let image = dir.path().join("image");
        make(&image, 0, 300, form, Some(&dir.path().join("content")));
        assert_eq!(by_us(&image), by_dumpe2fs(&image), "{form}");
        std::fs::remove_file(&image).unwrap();
    }
}

fn cases() -> u32 {
    std::env::var("CONME_FORMS").map_or(16, |cases| cases.parse().expect("CONME_FORMS is a number"))
}

fn forms() -> ProptestConfig {
    let seed = RngSeed::Fixed(seed("--test free what_is_free_is_what_e2fsprogs_says_of_any_form"));
    ProptestConfig { cases: cases(), rng_seed: seed, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(forms())]

    #[test]
    fn what_is_free_is_what_e2fsprogs_says_of_any_form(
        features in proptest::sample::subsequence(
            vec!["64bit", "metadata_csum", "flex_bg", "has_journal", "sparse_super", "inline_data", "quota"], 0..=7),
        layout in proptest::sample::select(vec!["resize_inode,^meta_bg", "^resize_inode,meta_bg", "^resize_inode,^meta_bg"]),
        sums in any::<bool>(),
        block in proptest::sample::select(vec![1024_u64, 2048, 4096]),
        inode in proptest::sample::select(vec![128, 256, 512]),
        group in proptest::option::of(32_u64..=256),
        flex in proptest::sample::select(vec![1, 4, 16, 64]),
        kib in 6000_u64..60_000,
        holes in proptest::collection::vec(any::<u16>(), 0..8),
    ) {
        if !possible("what_is_free_is_what_e2fsprogs_says_of_any_form") {
            return Ok(());
        }
        // Without mmp: every tool waits ten seconds for another user.
        let all = ["64bit", "metadata_csum", "flex_bg", "has_journal", "sparse_super", "inline_data", "quota"];
        let mut form: Vec<String> = all
            .iter()
            .map(|name| if features.contains(name) { (*name).to_owned() } else { format!("^{name}") })
            .collect();
        if !features.contains(&"metadata_csum") && sums {
            form.push("uninit_bg".into());
        }
        let inode = if features.contains(&"inline_data") { inode.max(256) } else { inode };
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let mut args: Vec<String> = ["-q", "-F", "-t", "ext4", "-O"].map(String::from).into();
        args.extend([format!("{},{layout}", form.join(",")), "-b".into(), block.to_string()]);
        args.extend(["-I".into(), inode.to_string()]);
        if features.contains(&"flex_bg") {
            args.extend(["-G".into(), flex.to_string()]);
        }
        if let Some(group) = group {
            args.extend(["-g".into(), (group * 8).to_string()]);
        }
        args.extend([image.to_str().unwrap().into(), format!("{kib}k")]);
        let made = Command::new("mke2fs").args(&args).output().unwrap();
        // Not every combination exists.
        prop_assume!(made.status.success());
        let mut commands = String::new();
        for (n, hole) in holes.iter().enumerate() {
            std::fs::write(dir.path().join(n.to_string()), noise(n as u64, usize::from(*hole))).unwrap();
            commands.push_str(&format!("write {0}/{n} {n}\n", dir.path().display()));
            if n % 3 == 2 {
                commands.push_str(&format!("rm {}\n", n - 1));
            }
        }
        std::fs::write(dir.path().join("commands"), commands).unwrap();
        tool("debugfs", &["-w", "-f", dir.path().join("commands").to_str().unwrap(), image.to_str().unwrap()]);
        prop_assert_eq!(by_us(&image), by_dumpe2fs(&image), "{:?}", args);
    }
}

/// Fills all that is free in a part of an image with what nobody needs; says how much that was.
fn soil(image: &Path, at: u64, alone: &Path) -> u64 {
    let file = File::options().write(true).open(image).unwrap();
    let mut soiled = 0;
    for (n, run) in by_dumpe2fs(alone).into_iter().enumerate() {
        file.write_all_at(&noise(n as u64, (run.end - run.start) as usize), at + run.start).unwrap();
        soiled += run.end - run.start;
    }
    file.sync_all().unwrap();
    soiled
}

/// The image of a disk with these partitions, of this type each: an MBR, or a GPT.
fn partitioned(path: &Path, mib: u64, parts: &[Range<u64>], gpt: bool) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(mib << 20).unwrap();
    let mut first = [0; 512];
    first[510..].copy_from_slice(&[0x55, 0xAA]);
    let mut entry = |n: usize, kind: u8, start: u32, sectors: u32| {
        let entry = &mut first[446 + 16 * n..][..16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    };
    if gpt {
        entry(0, 0xEE, 1, u32::try_from((mib << 11) - 1).unwrap());
        let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
        let mut table = vec![0; 128 * 128];
        for (n, part) in parts.iter().enumerate() {
            let entry = &mut table[128 * n..][..128];
            entry[..16].fill(7);
            entry[32..40].copy_from_slice(&(part.start / 512).to_le_bytes());
            entry[40..48].copy_from_slice(&(part.end / 512 - 1).to_le_bytes());
        }
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = 92;
        header[72] = 2;
        header[80] = 128;
        header[84] = 128;
        header[88..].copy_from_slice(&crc.checksum(&table).to_le_bytes());
        let sum = crc.checksum(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&header, 512).unwrap();
        file.write_all_at(&table, 1024).unwrap();
    } else {
        // The first one as it is, all others in an extended one.
        let sector = |at: u64| u32::try_from(at / 512).unwrap();
        entry(0, 0x83, sector(parts[0].start), sector(parts[0].end - parts[0].start));
        if let Some(second) = parts.get(1) {
            let base = second.start - (1 << 20);
            entry(1, 0x05, sector(base), sector((mib << 20) - base));
            let mut record = [0; 512];
            record[510..].copy_from_slice(&[0x55, 0xAA]);
            record[446 + 4] = 0x83;
            record[446 + 8..][..4].copy_from_slice(&sector(1 << 20).to_le_bytes());
            record[446 + 12..][..4].copy_from_slice(&sector(second.end - second.start).to_le_bytes());
            file.write_all_at(&record, base).unwrap();
        }
    }
    file.write_all_at(&first, 0).unwrap();
    file
}

/// Sends `disk` with its proof and gives what the agent told.
fn send(site: &Site, address: &str, more: &[&str]) -> Running {
    let mut agent = site.agent(address, &[&["--skip-free"], more].concat());
    assert!(agent.end().success(), "{:#?}", agent.seen);
    agent
}

#[test]
fn file_systems_in_partitions_arrive_without_their_free_space() {
    if !possible("file_systems_in_partitions_arrive_without_their_free_space") {
        return;
    }
    for gpt in [true, false] {
        let site = Site::enrolled();
        content(&site.path("content"));
        let parts = [1 << 20..41 << 20, 48 << 20..80 << 20];
        drop(partitioned(&site.path("disk"), 96, &parts, gpt));
        let mut free = 0;
        for (part, form) in parts.iter().zip(["-t ext4", "-t ext4 -b 1024 -O ^64bit"]) {
            let mib = (part.end - part.start) >> 20;
            make(&site.path("disk"), part.start, mib, form, Some(&site.path("content")));
            // dumpe2fs looks at whole files only.
            let mut alone = vec![0; (mib << 20) as usize];
            File::open(site.path("disk")).unwrap().read_exact_at(&mut alone, part.start).unwrap();
            std::fs::write(site.path("alone"), alone).unwrap();
            free += soil(&site.path("disk"), part.start, &site.path("alone"));
        }
        // Behind the partitions is what no file system says anything about.
        let disk = File::options().write(true).open(site.path("disk")).unwrap();
        disk.write_all_at(&noise(77, 1 << 20), 85 << 20).unwrap();

        let mut receiver = site.receiver(&["--until-proven"]);
        let agent = send(&site, &receiver.address(), &["--prove"]);
        assert!(receiver.end().success(), "{:#?}", receiver.seen);
        let content = agent.seen.iter().find(|event| event["event"] == "round").unwrap();
        assert!(content["tally"]["content"].as_u64().unwrap() < 18 << 20, "gpt {gpt}: {content}");

        let evidence = receiver.last("round")["evidence"].as_str().unwrap();
        let check = ["verify", "--authority", "ca/authority.pem", "--target", "copy", "--evidence", evidence];
        let checked = site.ok(&check);
        assert_eq!(checked[1]["skipped"]["bytes"], free, "{checked:#?}");
        assert_eq!(checked[1]["skipped"]["file_systems"].as_array().unwrap().len(), 2);
        assert_eq!(checked[2]["same"], true);
        let (copy, mut behind) = (File::open(site.path("copy")).unwrap(), vec![0; 1 << 20]);
        copy.read_exact_at(&mut behind, 85 << 20).unwrap();
        assert!(behind == noise(77, 1 << 20), "what lies behind the partitions is lost");
        for part in &parts {
            let there = format!("{}?offset={}", site.path("copy").display(), part.start);
            tool("e2fsck", &["-fn", &there]);
            tool("debugfs", &["-R", &format!("dump /archive {}", site.path("dumped").display()), &there]);
            assert!(same(&site.path("dumped"), &site.path("content/archive")), "another content");
        }
    }
}

#[test]
fn whatever_is_not_known_for_sure_is_read() {
    if !possible("whatever_is_not_known_for_sure_is_read") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let fresh = |form: &str| {
        let _ = std::fs::remove_file(&image);
        make(&image, 0, 40, form, None);
    };
    let write = |at: u64, bytes: &[u8]| {
        let file = File::options().write(true).open(&image).unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    let skipping = |kind: RoundKind| {
        let disk = Disk::source(&image).unwrap();
        let len = disk.len();
        let (free, words) = Free::skipping(disk, len, kind).unwrap();
        (free.skipped().map_or(0, |skipped| skipped.bytes), words.join("\n"))
    };
    // A file system without checksums is trusted as far as its counts go, and shows each of these one by one.
    fresh("-t ext2");
    let all = skipping(RoundKind::Proof).0;
    assert!(all > 30 << 20, "{all}");
    let spoilt: [(&str, u64, &[u8], &str); 7] = [
        ("a feature that nobody knows", 1024 + 0x60, &[0, 0, 0, 0x80], "features (incompat 0x80000000)"),
        ("errors", 1024 + 0x3A, &[3, 0], "mounted for writing"),
        ("mounted without a journal", 1024 + 0x3A, &[0, 0], "mounted for writing"),
        ("a journal to be replayed", 1024 + 0x60, &[6, 0, 0, 0], "mounted for writing"),
        ("more blocks than the disk has", 1024 + 4, &[0xFF, 0xFF, 0xFF, 0x7F], "do not fit together"),
        ("an xfs over it", 0, b"XFSB", "like xfs"),
        ("a partition table over it", 446, &[0x80, 1, 2, 3, 0x83, 1, 2, 3, 8, 0, 0, 0, 8, 0, 0, 0], ""),
    ];
    for (what, at, bytes, why) in spoilt {
        fresh("-t ext2");
        write(at, bytes);
        if at == 446 {
            write(510, &[0x55, 0xAA]);
        }
        let (skipped, words) = skipping(RoundKind::Proof);
        assert_eq!(skipped, 0, "{what}: {words}");
        assert!(words.contains(why), "{what}: {words}");
        // While people work, a mounted file system is what there is: the last round puts right what it hides.
        assert_eq!(skipping(RoundKind::Copy).0 > 0, why.starts_with("mounted"), "{what}");
    }
    // A bit of a bitmap is another; with checksums as without, its group is read and the others are not.
    for form in ["-t ext4 -b 1024", "-t ext2 -b 1024"] {
        fresh(form);
        let all = skipping(RoundKind::Proof).0;
        let dump = tool("dumpe2fs", &[image.to_str().unwrap()]);
        let bitmap = dump.lines().find_map(|line| line.trim().strip_prefix("Block bitmap at ")).unwrap();
        let block: u64 = bitmap.split([' ', ',']).next().unwrap().parse().unwrap();
        let mut byte = [0];
        File::open(&image).unwrap().read_exact_at(&mut byte, (block << 10) + 1000).unwrap();
        write((block << 10) + 1000, &[byte[0] ^ 4]);
        let (skipped, words) = skipping(RoundKind::Proof);
        assert!(skipped > 0 && skipped < all, "{form}: {skipped} of {all}");
        assert!(words.contains("1 of its 5 groups are read whole"), "{form}: {words}");
    }
}

#[test]
fn a_file_system_that_is_written_to_during_the_proof_ends_it() {
    if !possible("a_file_system_that_is_written_to_during_the_proof_ends_it") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    make(&image, 0, 40, "-t ext4", None);
    let open = || {
        let disk = Disk::source(&image).unwrap();
        let len = disk.len();
        (Free::skipping(disk, len, RoundKind::Proof).unwrap().0, len)
    };
    let (mut free, len) = open();
    let mut block = vec![0; 1 << 20];
    free.read(0, &mut block).unwrap();
    assert_eq!(free.changed(len).unwrap(), None);
    std::fs::write(dir.path().join("new"), noise(1, 9000)).unwrap();
    let write = format!("write {} new", dir.path().join("new").display());
    tool("debugfs", &["-w", "-R", &write, image.to_str().unwrap()]);
    assert!(free.changed(len).unwrap().is_some(), "a file that came meanwhile went unnoticed");
    let (mut free, len) = open();
    // One bit of the superblock: when it was written last.
    let file = File::options().read(true).write(true).open(&image).unwrap();
    file.write_all_at(&[1], 1024 + 0x30).unwrap();
    assert!(free.changed(len).unwrap().is_some());
}

/// A loop device over a file.
struct Loop(String);

impl Loop {
    fn new(file: &Path, offset: u64) -> Self {
        let args = ["--offset", &offset.to_string(), "--find", "--show", file.to_str().unwrap()];
        Self(tool("losetup", &args))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}

struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(device: &str, at: &'a Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        tool("mount", &["-o", options, device, at.to_str().unwrap()]);
        Self(at)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).output();
    }
}

#[test]
fn a_mounted_file_system_that_is_written_to_between_rounds_arrives_whole_without_its_free_space() {
    if !mountable(
        "a_mounted_file_system_that_is_written_to_between_rounds_arrives_whole_without_its_free_space",
    ) {
        return;
    }
    for form in [
        "-t ext4",
        "-t ext3 -b 1024",
        "-t ext4 -O ^has_journal",
        "-t ext4 -O bigalloc,^resize_inode -C 16384",
    ] {
        let site = Site::enrolled();
        make(&site.path("image"), 0, 64, form, None);
        let disk = Loop::new(&site.path("image"), 0);
        let at = site.path("d");
        let mounted = Mount::new(&disk.0, &at, "rw");
        let mut receiver = site.receiver(&["--until-proven"]);
        let address = receiver.address();
        let agent = |more: &[&str]| {
            let args =
                ["agent", "--state", "agent", "--source", &disk.0, "--connect", &address, "--skip-free"];
            let mut agent = Running::start(&site, &[&args, more].concat());
            assert!(agent.end().success(), "{form}: {:#?}", agent.seen);
            agent
        };
        // What was there and is deleted is not sent; what comes where it was, is.
        std::fs::write(at.join("gone"), noise(1, 20 << 20)).unwrap();
        std::fs::write(at.join("first"), noise(2, 2 << 20)).unwrap();
        tool("sync", &["-f", at.to_str().unwrap()]);
        std::fs::remove_file(at.join("gone")).unwrap();
        tool("sync", &["-f", at.to_str().unwrap()]);
        agent(&[]);
        for round in 3..6 {
            std::fs::write(at.join(format!("round {round}")), noise(round, 5 << 20)).unwrap();
            std::fs::remove_file(at.join(format!("round {}", round - 1))).ok();
            // Nobody syncs: the bitmap on the disk may be behind.
            agent(&[]);
        }
        // Mounted: nothing is believed, and all is read, with a word about it.
        let proof = agent(&["--prove"]);
        let note = proof.last("note")["text"].as_str().unwrap_or_default();
        assert!(note.contains("mounted for writing"), "{form}: {:#?}", proof.seen);
        assert!(receiver.end().success(), "{:#?}", receiver.seen);
        // The kernel may write to it at any moment, so that both are not compared now.
        let evidence = receiver.last("round")["evidence"].as_str().unwrap();
        let checked = site.ok(&["verify", "--authority", "ca/authority.pem", "--evidence", evidence]);
        assert_eq!(checked[0]["event"], "evidence", "{form}: {checked:#?}");
        assert!(checked.iter().all(|told| told["skipped"].is_null()), "{form}: {checked:#?}");

        std::fs::write(at.join("last"), noise(9, 4 << 20)).unwrap();
        drop(mounted);
        let mut receiver = {
            let args =
                ["receive", "--identity", "receiver", "--state", "received", "--target", "copy", "--listen"];
            let mut receiver = Running::start(&site, &[&args[..], &[&address, "--until-proven"]].concat());
            receiver.event("listening");
            receiver
        };
        agent(&["--prove"]);
        assert!(receiver.end().success(), "{form}: {:#?}", receiver.seen);
        let evidence = receiver.last("round")["evidence"].as_str().unwrap();
        let checked = site.ok(&["verify", "--authority", "ca/authority.pem", "--evidence", evidence]);
        let skipped = &checked[1]["skipped"];
        assert!(skipped["bytes"].as_u64().unwrap() > 20 << 20, "{form}: {checked:#?}");
        assert_eq!(skipped["file_systems"][0]["clean"], true);

        tool("e2fsck", &["-fn", site.path("copy").to_str().unwrap()]);
        // What is free there is zeros, and takes no room.
        let (copy, mut dirty) = (File::open(site.path("copy")).unwrap(), 0);
        for run in by_dumpe2fs(&site.path("image")) {
            let mut free = vec![0; (run.end - run.start) as usize];
            copy.read_exact_at(&mut free, run.start).unwrap();
            dirty += free.iter().filter(|byte| **byte != 0).count();
        }
        assert_eq!(dirty, 0, "{form}");
        let (device, there) = (Loop::new(&site.path("copy"), 0), site.path("there"));
        let arrived = Mount::new(&device.0, &there, "ro");
        for (name, seed, len) in [("first", 2, 2 << 20), ("round 5", 5, 5 << 20), ("last", 9, 4 << 20)] {
            assert!(
                std::fs::read(arrived.0.join(name)).unwrap() == noise(seed, len),
                "{form}: {name} is another"
            );
        }
        assert!(!arrived.0.join("gone").exists());
    }
}
