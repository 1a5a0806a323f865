//! Random trees, edited at random, moved with cuts at random places, end up alike at both ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trees;

use std::os::unix::fs::{FileExt as _, PermissionsExt, symlink};

use conme_mover::core::frame::RoundKind;
use conme_mover::core::tree::ports::Fault;
use proptest::prelude::*;
use trees::{Cut, Site, noise};

#[derive(Debug, Clone)]
enum Edit {
    Write(String, u8, u32),
    Overwrite(String, u32),
    Insert(String, u32),
    Sparse(String, u32),
    Dir(String),
    Remove(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String, String),
    Mode(String, u32),
}

fn path() -> impl Strategy<Value = String> {
    // Few names, so that they meet; some of them sort differently as bytes and as paths.
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a-", "a.b", "é"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (path(), 0..6_u8, 0..600_000_u32).prop_map(|(path, seed, len)| Edit::Write(path, seed, len)),
        2 => (path(), any::<u32>()).prop_map(|(path, at)| Edit::Overwrite(path, at)),
        2 => (path(), any::<u32>()).prop_map(|(path, at)| Edit::Insert(path, at)),
        1 => (path(), 0..3_000_000_u32).prop_map(|(path, at)| Edit::Sparse(path, at)),
        4 => path().prop_map(Edit::Dir),
        2 => path().prop_map(Edit::Remove),
        3 => (path(), path()).prop_map(|(from, to)| Edit::Rename(from, to)),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Link(from, to)),
        1 => (path(), path()).prop_map(|(from, to)| Edit::Symlink(from, to)),
        1 => (path(), 0..0o1000_u32).prop_map(|(path, mode)| Edit::Mode(path, mode)),
    ]
}

/// What is not possible in this tree is left.
fn apply(site: &Site, edit: &Edit) {
    let file = |path: &str| {
        let path = site.from(path);
        let is_file = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
        is_file.then(|| std::fs::File::options().read(true).write(true).open(path).ok()).flatten()
    };
    match edit {
        Edit::Write(path, seed, len) => {
            if !site.from(path).is_symlink() {
                let _ = std::fs::write(site.from(path), noise((*seed).into(), *len as usize));
            }
        }
        Edit::Overwrite(path, at) => {
            if let Some(file) = file(path) {
                let len = file.metadata().unwrap().len().max(1);
                file.write_all_at(b"overwritten", u64::from(*at) % len).unwrap();
            }
        }
        Edit::Insert(path, at) => {
            if let Some(file) = file(path) {
                let mut content = vec![0; file.metadata().unwrap().len() as usize];
                file.read_exact_at(&mut content, 0).unwrap();
                let at = *at as usize % (content.len() + 1);
                content.splice(at..at, *b"inserted");
                file.write_all_at(&content, 0).unwrap();
            }
        }
        Edit::Sparse(path, at) => {
            if let Some(file) = file(path) {
                file.set_len(u64::from(*at) + 9).unwrap();
                file.write_all_at(b"far away", (*at).into()).unwrap();
            }
        }
        Edit::Dir(path) => {
            let _ = std::fs::create_dir(site.from(path));
        }
        Edit::Remove(path) => {
            let path = site.from(path);
            let _ = if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
        }
        Edit::Rename(from, to) => {
            let _ = std::fs::rename(site.from(from), site.from(to));
        }
        Edit::Link(from, to) => {
            let _ = std::fs::hard_link(site.from(from), site.from(to));
        }
        Edit::Symlink(to, path) => {
            let _ = symlink(to, site.from(path));
        }
        Edit::Mode(path, mode) => {
            if !site.from(path).is_symlink() {
                // The owner has to be able to go on with it.
                let _ = std::fs::set_permissions(site.from(path), PermissionsExt::from_mode(mode | 0o700));
            }
        }
    }
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![(2..14_usize).prop_map(Cut::Kill), (2..14_usize).prop_map(Cut::Power)]
}

/// Whether two changes right after one another leave different times: then unchanged files need not be read again.
fn times_are_fine(site: &Site) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let path = site.from("../times");
    let mut before = (0, 0);
    (0..50).all(|n| {
        std::fs::write(&path, [n]).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        let other = before != (meta.ctime(), meta.ctime_nsec());
        before = (meta.ctime(), meta.ctime_nsec());
        other
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_are_alike_after_any_edits_and_any_cuts(
        trusting: bool,
        days in prop::collection::vec((prop::collection::vec(edit(), 0..25), prop::collection::vec(cut(), 0..4)), 1..4),
    ) {
        let mut site = Site::new();
        site.window = 1 << 16;
        if trusting && times_are_fine(&site) {
            site.source.settles_after = std::time::Duration::ZERO;
        }
        for (edits, cuts) in days {
            let (first, later) = edits.split_at(edits.len() / 2);
            first.iter().for_each(|edit| apply(&site, edit));
            for (number, cut) in cuts.iter().enumerate() {
                match site.session(RoundKind::Copy, Some(*cut)) {
                    Ok(_) => {}
                    Err(fault) => prop_assert!(matches!(fault, Fault::Spoilt), "{fault}"),
                }
                // The source goes on while nobody is connected.
                later.iter().skip(number).step_by(cuts.len()).for_each(|edit| apply(&site, edit));
            }
            let copy = site.copy();
            prop_assert_eq!(copy.tally.lacking, 0, "{:?}", copy.troubles);
            site.assert_same();
        }
        let proof = site.round(RoundKind::Proof);
        prop_assert_eq!(proof.verified.unwrap().named, vec![]);
        prop_assert!(proof.result.unwrap().agreed);
        site.assert_same();
    }
}
