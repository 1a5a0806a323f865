//! A directory moves from one end to the other, with all that can be in it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trees;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt, symlink};

use conme_mover::core::frame::RoundKind;
use conme_mover::core::tree::lists::Budget;
use conme_mover::core::tree::ports::{Fault, Trouble};
use conme_mover::tree::{Excludes, Owners};
use rustix::fs::{FileType, Mode, XattrFlags, setxattr};
use trees::{Cut, Site, age, noise, snapshot};

const ACL: &[u8] = &[
    2, 0, 0, 0, // version
    1, 0, 7, 0, 255, 255, 255, 255, // the owner
    2, 0, 6, 0, 232, 3, 0, 0, // user 1000
    4, 0, 4, 0, 255, 255, 255, 255, // the group
    16, 0, 6, 0, 255, 255, 255, 255, // the mask
    32, 0, 4, 0, 255, 255, 255, 255, // others
];

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One of everything.
fn strange(site: &Site) {
    let from = |path: &str| site.from(path);
    for dir in ["a", "a/b", "a-b", "empty", "closed"] {
        std::fs::create_dir(from(dir)).unwrap();
    }
    std::fs::write(from("a/b/file"), noise(1, 300_000)).unwrap();
    std::fs::write(from("a.txt"), b"").unwrap();
    std::fs::write(from("a/x"), b"x").unwrap();
    std::fs::hard_link(from("a/b/file"), from("z-second-name")).unwrap();
    std::fs::hard_link(from("a/b/file"), from("a/third-name")).unwrap();
    symlink("../../../etc/passwd", from("a/b/link")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\xfe"), from("link that is not text")).unwrap();
    std::fs::write(from("").join(OsStr::from_bytes(b"caff\xe8\n")), b"latin1").unwrap();
    std::fs::write(from("perch\u{e9}"), b"composed").unwrap();
    std::fs::write(from("perche\u{301}"), b"decomposed").unwrap();
    std::fs::write(from("README"), b"upper").unwrap();
    std::fs::write(from("readme"), b"lower").unwrap();
    std::fs::write(from(&"n".repeat(255)), b"long name").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, from("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from("socket")).unwrap();
    let sparse = std::fs::File::create(from("sparse")).unwrap();
    sparse.write_all_at(&noise(2, 70_000), 5 << 20).unwrap();
    sparse.write_all_at(b"end", (20 << 20) - 3).unwrap();
    let hole = std::fs::File::create(from("only a hole")).unwrap();
    hole.set_len(64 << 20).unwrap();
    setxattr(from("a/x"), "user.nota", b"valore", XattrFlags::empty()).unwrap();
    setxattr(from("a/x"), "system.posix_acl_access", ACL, XattrFlags::empty()).unwrap();
    setxattr(from("a"), "system.posix_acl_default", ACL, XattrFlags::empty()).unwrap();
    std::fs::set_permissions(from("closed"), PermissionsExt::from_mode(0o1555)).unwrap();
    std::fs::set_permissions(from("readme"), PermissionsExt::from_mode(0o4755)).unwrap();
    for path in ["a/x", "closed", "a/b", "sparse"] {
        age(&from(path));
    }
    if is_root() {
        std::os::unix::fs::lchown(from("a/b/link"), Some(33), Some(44)).unwrap();
        std::os::unix::fs::chown(from("README"), Some(1000), Some(3_000_000_000)).unwrap();
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        setxattr(from("README"), "security.capability", &capability, XattrFlags::empty()).unwrap();
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(rustix::fs::CWD, from("null"), FileType::CharacterDevice, Mode::RUSR, null)
            .unwrap();
    } else {
        eprintln!("SKIPPED, since not root: owners, capabilities, device nodes");
    }
}

#[test]
fn a_tree_with_everything_strange_arrives_as_it_is() {
    let mut site = Site::new();
    strange(&site);
    let first = site.copy();
    let left_out: Vec<_> =
        first.troubles.iter().map(|(path, trouble)| (path.to_string(), trouble.clone())).collect();
    assert!(left_out.iter().all(|(_, trouble)| matches!(trouble, Trouble::LeftOut(_))), "{left_out:?}");
    let names: Vec<_> = left_out.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(names, if is_root() { &["null", "socket"][..] } else { &["socket"] });
    for (path, _) in left_out {
        assert!(std::fs::symlink_metadata(site.to(&path)).is_err());
        std::fs::remove_file(site.from(&path)).unwrap();
    }
    // Taking something out of the root has changed its time.
    let second = site.copy();
    site.assert_same();
    assert_eq!((second.tally.content, second.fetched), (0, 0));
    // Three names are one file, and holes take no room.
    assert_eq!(std::fs::metadata(site.to("z-second-name")).unwrap().nlink(), 3);
    assert!(std::fs::metadata(site.to("only a hole")).unwrap().blocks() < 64);
    assert!(std::fs::metadata(site.to("sparse")).unwrap().blocks() * 512 < 1 << 20);
    // The content of the three names went once.
    // The ends of what is not a hole are filled up to a page.
    assert!(first.tally.content < 300_000 + 70_000 + 3 * 4096, "{}", first.tally.content);
    let proof = site.round(RoundKind::Proof);
    assert!(proof.result.unwrap().agreed);
    assert_eq!(proof.verified.unwrap().damaged, 0);
    site.assert_same();
}

#[test]
fn what_was_moved_or_shifted_costs_its_description() {
    let mut site = Site::new();
    std::fs::create_dir(site.from("archive")).unwrap();
    let content = noise(3, 2 << 20);
    std::fs::write(site.from("archive/mail"), &content).unwrap();
    std::fs::write(site.from("database"), noise(4, 3 << 20)).unwrap();
    site.copy();
    std::fs::rename(site.from("archive"), site.from("zz-archive")).unwrap();
    std::fs::copy(site.from("database"), site.from("aa-copy")).unwrap();
    let shifted = [b"in front".to_vec(), content].concat();
    std::fs::write(site.from("shifted"), shifted).unwrap();
    let second = site.copy();
    site.assert_same();
    // The first chunk of the shifted file, and at most the one behind it.
    assert!(second.tally.content < 520 << 10, "{:?}", second.tally);
    assert!(second.tally.wire < 600 << 10, "{:?}", second.tally);
    std::fs::set_permissions(site.from("database"), PermissionsExt::from_mode(0o600)).unwrap();
    let third = site.copy();
    site.assert_same();
    assert_eq!(third.tally.content, 0);
    assert!(third.tally.wire < 500, "{:?}", third.tally);
}

#[test]
fn a_kind_may_become_any_other() {
    let mut site = Site::new();
    std::fs::create_dir_all(site.from("was-dir/deep")).unwrap();
    std::fs::write(site.from("was-dir/deep/file"), b"1").unwrap();
    std::fs::write(site.from("was-file"), b"2").unwrap();
    symlink("was-file", site.from("was-link")).unwrap();
    std::fs::write(site.from("first"), b"3").unwrap();
    std::fs::hard_link(site.from("first"), site.from("second")).unwrap();
    site.copy();
    std::fs::remove_dir_all(site.from("was-dir")).unwrap();
    std::fs::write(site.from("was-dir"), b"now a file").unwrap();
    std::fs::remove_file(site.from("was-file")).unwrap();
    std::fs::create_dir_all(site.from("was-file/deep")).unwrap();
    std::fs::write(site.from("was-file/deep/er"), b"new").unwrap();
    std::fs::remove_file(site.from("was-link")).unwrap();
    std::fs::write(site.from("was-link"), b"now a file").unwrap();
    // Written to through one name: the other one must not keep the old content.
    std::fs::write(site.from("first"), b"changed for both").unwrap();
    site.copy();
    site.assert_same();
    std::fs::remove_file(site.from("first")).unwrap();
    std::fs::write(site.from("first"), b"parted").unwrap();
    site.copy();
    site.assert_same();
}

#[test]
fn a_cut_costs_nothing_that_was_acknowledged() {
    let mut site = Site::new();
    std::fs::create_dir(site.from("d")).unwrap();
    for n in 0..6 {
        std::fs::write(site.from(&format!("d/{n}")), noise(100 + n, 400_000)).unwrap();
    }
    std::fs::write(site.from("large"), noise(99, 6 << 20)).unwrap();
    let total = 6 * 400_000 + (6 << 20);
    let (mut sent, mut lost, mut most) = (0, 0, 4);
    let mut sessions = 0;
    loop {
        sessions += 1;
        assert!(sessions < 60, "it gets nowhere");
        let session = site.session(RoundKind::Copy, Some(Cut::Kill(most))).unwrap();
        sent += session.received;
        assert!(session.fetched <= 2, "{} blocks of the list were fetched", session.fetched);
        if session.result.is_some() {
            break;
        }
        lost += session.unacknowledged;
        most += 1;
    }
    assert!(sessions > 5, "{sessions} sessions");
    assert!(sent - lost <= total, "{sent} sent, {lost} never acknowledged, {total} there");
    site.assert_same();
}

#[test]
fn a_file_that_was_cut_goes_on_where_it_was_without_being_read_again() {
    let mut site = Site::new();
    // Nothing changes here: so what was read a moment ago counts.
    site.source.settles_after = std::time::Duration::ZERO;
    std::fs::write(site.from("a"), noise(1, 300_000)).unwrap();
    std::fs::write(site.from("large"), noise(2, 8 << 20)).unwrap();
    let cut = site.session(RoundKind::Copy, Some(Cut::Kill(12))).unwrap();
    assert!(cut.result.is_none() && cut.received > 3 << 20, "{} received", cut.received);
    // What the dead session wrote behind its last acknowledgement is not relied on.
    site.receiver.cut();
    let rest = site.copy();
    assert!(rest.tally.read + cut.received - cut.unacknowledged < (8 << 20) + 600_000, "{:?}", rest.tally);
    assert_eq!(rest.tally.files_read, 1);
    assert_eq!(rest.fetched, 0);
    site.assert_same();
    let idle = site.copy();
    assert_eq!((idle.tally.files_read, idle.tally.content), (0, 0));
    assert!(idle.tally.wire < 100, "{:?}", idle.tally);
    // A proof reads everything.
    let proof = site.round(RoundKind::Proof);
    assert_eq!((proof.tally.files_read, proof.tally.content), (2, 0));
    assert!(proof.result.unwrap().agreed);
}

#[test]
fn a_rename_in_the_middle_of_a_cut_round_finds_its_content_again() {
    let mut site = Site::new();
    std::fs::write(site.from("aa"), noise(5, 3 << 20)).unwrap();
    std::fs::write(site.from("mm"), noise(6, 1 << 20)).unwrap();
    site.copy();
    std::fs::rename(site.from("aa"), site.from("zz")).unwrap();
    std::fs::write(site.from("mm"), noise(7, 3 << 20)).unwrap();
    let cut = site.session(RoundKind::Copy, Some(Cut::Kill(6))).unwrap();
    assert!(cut.result.is_none());
    let rest = site.copy();
    site.assert_same();
    assert!(
        cut.received + rest.received <= (3 << 20) + cut.unacknowledged,
        "{} {}",
        cut.received,
        rest.received
    );
}

#[test]
fn an_agent_that_has_lost_its_memory_is_told_by_the_receiver() {
    let mut site = Site::new();
    for n in 0..200 {
        std::fs::write(site.from(&format!("file {n}")), noise(n, 3000)).unwrap();
    }
    site.copy();
    site.agent.lose();
    std::fs::write(site.from("file 7"), b"changed").unwrap();
    let session = site.copy();
    assert!(session.fetched > 0);
    assert_eq!(session.tally.content, 7);
    site.assert_same();
}

#[test]
fn damage_at_the_target_is_named_and_the_next_round_repairs_it() {
    let mut site = Site::new();
    std::fs::create_dir(site.from("dir")).unwrap();
    let content = noise(8, 1 << 20);
    std::fs::write(site.from("dir/large"), &content).unwrap();
    for name in ["gone", "mode", "short", "good"] {
        std::fs::write(site.from(name), noise(9, 5000)).unwrap();
    }
    symlink("good", site.from("link")).unwrap();
    site.copy();
    let file = std::fs::File::options().write(true).open(site.to("dir/large")).unwrap();
    file.write_all_at(&[content[600_000] ^ 1], 600_000).unwrap();
    age(&site.to("dir/large"));
    std::fs::remove_file(site.to("gone")).unwrap();
    std::fs::set_permissions(site.to("mode"), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::File::options().write(true).open(site.to("short")).unwrap().set_len(17).unwrap();
    std::fs::remove_file(site.to("link")).unwrap();
    symlink("/etc/passwd", site.to("link")).unwrap();
    let verified = site.receiver().verify(|_, _| {}).unwrap();
    let named: Vec<_> = verified.named.iter().map(|difference| difference.path.to_string()).collect();
    // Taking one away has changed the time of the root, too.
    assert_eq!(named, [".", "dir/large", "gone", "link", "mode", "short"], "{:?}", verified.named);
    let repair = site.copy();
    site.assert_same();
    // Of the large file only the chunk that is damaged goes again; the small ones have their content from one another.
    assert!(repair.tally.content <= 256 << 10, "{:?}", repair.tally);
    assert_eq!(site.receiver().verify(|_, _| {}).unwrap().damaged, 0);
}

#[test]
fn a_proof_finds_what_nobody_has_touched_by_the_rules() {
    let mut site = Site::new();
    std::fs::write(site.from("file"), noise(10, 200_000)).unwrap();
    age(&site.from("file"));
    site.copy();
    let file = std::fs::File::options().write(true).open(site.to("file")).unwrap();
    file.write_all_at(b"rot", 100_000).unwrap();
    age(&site.to("file"));
    let proof = site.round(RoundKind::Proof);
    assert!(!proof.result.unwrap().agreed);
    assert_eq!(proof.verified.unwrap().named[0].path.to_string(), "file");
    let proof = site.round(RoundKind::Proof);
    assert!(proof.result.unwrap().agreed);
    site.assert_same();
}

#[test]
fn what_somebody_else_has_put_there_is_kept_and_named() {
    let mut site = Site::new();
    std::fs::create_dir(site.from("dir")).unwrap();
    std::fs::write(site.from("dir/ours"), b"ours").unwrap();
    std::fs::write(site.from("edited"), b"as it was").unwrap();
    site.copy();
    std::fs::write(site.to("dir/theirs"), b"theirs").unwrap();
    std::fs::write(site.to("edited"), b"changed by somebody").unwrap();
    std::fs::write(site.to("in-the-way"), b"theirs, too").unwrap();
    std::fs::remove_dir_all(site.from("dir")).unwrap();
    std::fs::remove_file(site.from("edited")).unwrap();
    std::fs::write(site.from("in-the-way"), b"of the source").unwrap();
    let session = site.round(RoundKind::Copy);
    assert!(!session.result.unwrap().agreed);
    let named: Vec<_> = session.foreign.iter().map(|foreign| foreign.path.to_string()).collect();
    assert_eq!(named, ["edited", "dir", "in-the-way"], "{:?}", session.foreign);
    assert_eq!(std::fs::read(site.to("dir/theirs")).unwrap(), b"theirs");
    assert!(!site.to("dir/ours").exists());
    assert_eq!(std::fs::read(site.to("edited")).unwrap(), b"changed by somebody");
    assert_eq!(std::fs::read(site.to("in-the-way")).unwrap(), b"theirs, too");
    // Once it has been moved away, the next session brings ours.
    std::fs::remove_file(site.to("in-the-way")).unwrap();
    site.copy();
    assert_eq!(std::fs::read(site.to("in-the-way")).unwrap(), b"of the source");
}

#[test]
fn no_link_in_the_target_leads_the_writer_out() {
    let mut site = Site::new();
    // On the same file system, or the kernel would stop it for another reason.
    let outside = site.from("../outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(site.from("dir")).unwrap();
    std::fs::write(site.from("dir/file"), b"first").unwrap();
    site.copy();
    // Somebody with rights in the target swaps the directory for a link.
    std::fs::rename(site.to("dir"), outside.join("dir")).unwrap();
    symlink(outside.join("dir"), site.to("dir")).unwrap();
    std::fs::write(site.from("dir/file"), b"second").unwrap();
    std::fs::write(site.from("dir/new"), b"new").unwrap();
    let before = snapshot(&outside);
    let session = site.round(RoundKind::Copy);
    assert!(!session.result.unwrap().agreed);
    assert!(!session.foreign.is_empty());
    assert_eq!(snapshot(&outside), before);
    std::fs::remove_file(site.from("dir/file")).unwrap();
    let session = site.round(RoundKind::Copy);
    assert!(!session.result.unwrap().agreed);
    assert_eq!(snapshot(&outside), before);
}

#[test]
fn what_cannot_be_read_is_named_and_not_taken_away() {
    let mut site = Site::new();
    std::fs::create_dir(site.from("dir")).unwrap();
    std::fs::write(site.from("dir/file"), b"precious").unwrap();
    site.copy();
    // A path that is too long to be read stands for anything that fails: it fails for root, too.
    let mut deep = site.from("dir");
    let name = "d".repeat(200);
    let mut fd = rustix::fs::open(&deep, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..21 {
        rustix::fs::mkdirat(&fd, &name, Mode::RWXU).unwrap();
        fd = rustix::fs::openat(&fd, &name, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
        deep.push(&name);
    }
    let session = site.copy();
    assert_eq!(session.tally.lacking, 1, "{:?}", session.troubles);
    assert!(matches!(session.troubles[0].1, Trouble::Unreadable(_)));
    assert_eq!(std::fs::read(site.to("dir/file")).unwrap(), b"precious");
    assert!(matches!(site.session(RoundKind::Proof, None), Err(Fault::Unproven { .. })));
}

#[test]
fn excluded_names_stay_behind() {
    let mut site = Site::new();
    site.source.excludes = Excludes::new(["*.tmp", "/cache/", "var/log/*.old"]).unwrap();
    for dir in ["cache", "sub/cache", "var/log"] {
        std::fs::create_dir_all(site.from(dir)).unwrap();
    }
    for file in ["cache/x", "sub/cache/x", "a.tmp", "sub/b.tmp", "var/log/1.old", "var/log/1.new", "1.old"] {
        std::fs::write(site.from(file), b"1").unwrap();
    }
    site.copy();
    let mut found: Vec<_> =
        snapshot(&site.to("")).into_keys().map(|path| path.display().to_string()).collect();
    found.sort();
    assert_eq!(found, ["", "1.old", "sub", "sub/cache", "sub/cache/x", "var", "var/log", "var/log/1.new"]);
}

#[test]
fn owners_are_mapped_and_privileges_left_behind_unless_allowed() {
    if !is_root() {
        eprintln!("SKIPPED, since not root: mapping of owners");
        return;
    }
    let mut site = Site::new();
    site.target.privileges = false;
    site.target.owners = Owners::Same { users: vec![(1000, 51_000)], groups: vec![(100, 50_100)] };
    std::fs::write(site.from("program"), b"#!").unwrap();
    std::os::unix::fs::chown(site.from("program"), Some(1000), Some(100)).unwrap();
    setxattr(site.from("program"), "system.posix_acl_access", ACL, XattrFlags::empty()).unwrap();
    std::fs::set_permissions(site.from("program"), PermissionsExt::from_mode(0o6775)).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    setxattr(site.from("program"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    site.copy();
    let there = std::fs::metadata(site.to("program")).unwrap();
    assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), (51_000, 50_100, 0o775));
    let mut value = vec![0_u8; 256];
    assert!(rustix::fs::getxattr(site.to("program"), "security.capability", value.as_mut_slice()).is_err());
    let len =
        rustix::fs::getxattr(site.to("program"), "system.posix_acl_access", value.as_mut_slice()).unwrap();
    assert_eq!(value[16..20], 51_000_u32.to_le_bytes(), "{:?}", &value[..len]);
    // Read back, that is as it should be.
    assert_eq!(site.receiver().verify(|_, _| {}).unwrap().named, []);
    assert!(site.round(RoundKind::Proof).result.unwrap().agreed);
}

#[test]
fn a_tree_beyond_its_budget_is_refused() {
    let mut site = Site::new();
    site.budget = Budget { entries: 3, bytes: 1 << 20 };
    std::fs::write(site.from("1"), noise(1, 700_000)).unwrap();
    std::fs::write(site.from("2"), noise(1, 700_000)).unwrap();
    assert!(matches!(site.session(RoundKind::Copy, None), Err(Fault::Budget("bytes"))));
    std::fs::write(site.from("2"), b"").unwrap();
    std::fs::write(site.from("3"), b"").unwrap();
    assert!(matches!(site.session(RoundKind::Copy, None), Err(Fault::Budget("number of entries"))));
    std::fs::remove_file(site.from("3")).unwrap();
    site.copy();
    site.assert_same();
}

#[test]
fn a_file_that_is_written_to_is_never_silently_half_of_it() {
    let mut site = Site::new();
    std::fs::write(site.from("busy"), noise(12, 3 << 20)).unwrap();
    std::fs::write(site.from("calm"), noise(11, 100_000)).unwrap();
    // Another thread writes to it between any two pieces that are read.
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let (done, written) = std::sync::mpsc::channel::<()>();
    let path = site.from("busy");
    let writer = std::thread::spawn(move || {
        use std::io::Write as _;
        let mut file = std::fs::File::options().append(true).open(path).unwrap();
        for () in asked {
            file.write_all(b"one more line\n").unwrap();
            done.send(()).unwrap();
        }
    });
    site.while_reading = Some(Box::new(move |path| {
        if path.bytes() == b"busy" {
            ask.send(()).unwrap();
            written.recv().unwrap();
        }
    }));
    let session = site.round(RoundKind::Copy);
    writer.join().unwrap();
    assert!(session.result.unwrap().agreed);
    let named: Vec<_> =
        session.troubles.iter().map(|(path, trouble)| (path.to_string(), trouble.clone())).collect();
    assert_eq!(named, [("busy".to_owned(), Trouble::Changing)]);
    assert_eq!(std::fs::read(site.to("calm")).unwrap(), noise(11, 100_000));
    // Nobody writes any more: the next round makes it right, and sends no more than the end.
    let calm = site.copy();
    assert_eq!(calm.tally.lacking, 0);
    assert!(calm.tally.content < 300_000, "{:?}", calm.tally);
    site.assert_same();
}

#[test]
fn a_file_that_changes_during_a_proof_ends_it() {
    let mut site = Site::new();
    std::fs::write(site.from("busy"), noise(12, 3 << 20)).unwrap();
    site.copy();
    let path = site.from("busy");
    site.while_reading = Some(Box::new(move |_| std::fs::write(&path, b"something else").unwrap()));
    let proof = site.session(RoundKind::Proof, None);
    assert!(matches!(proof, Err(Fault::Disturbed(path)) if path.to_string() == "busy"));
}

#[test]
fn a_file_that_vanishes_between_two_looks_is_counted_and_no_lack() {
    let mut site = Site::new();
    std::fs::write(site.from("a"), b"first").unwrap();
    std::fs::write(site.from("b"), b"second").unwrap();
    let path = site.from("b");
    site.while_reading = Some(Box::new(move |_| {
        let _ = std::fs::remove_file(&path);
    }));
    let session = site.copy();
    assert_eq!((session.tally.vanished, session.tally.lacking), (1, 0));
    assert!(site.to("a").exists() && !site.to("b").exists());
}

#[test]
fn a_tree_arrives_on_a_real_file_system() {
    if !is_root() {
        eprintln!("SKIPPED, since not root: a mounted ext4");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let run = |program: &str, args: &[&OsStr]| {
        std::process::Command::new(program).args(args).output().is_ok_and(|ran| ran.status.success())
    };
    if !run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_os_str()])
        || !run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), mount.as_os_str()])
    {
        eprintln!("SKIPPED, since mkfs.ext4 or a loop device is not to be had: a mounted ext4");
        return;
    }
    let mut site = Site::at(tempfile::tempdir_in(&mount).unwrap());
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        strange(&site);
        for name in ["null", "socket"] {
            std::fs::remove_file(site.from(name)).unwrap();
        }
        let cut = site.session(RoundKind::Copy, Some(Cut::Kill(4))).unwrap();
        assert!(cut.result.is_none());
        site.copy();
        site.assert_same();
        let proof = site.round(RoundKind::Proof);
        assert_eq!(proof.verified.unwrap().named, []);
        site.assert_same();
    }));
    drop(site);
    assert!(run("umount", &["-l".as_ref(), mount.as_os_str()]));
    tried.unwrap();
}
