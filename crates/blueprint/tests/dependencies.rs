//! The pure crates stay pure: they know of no runtime, no network, no client and no chance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{collections::BTreeSet, process::Command};

/// What a decision must not be able to reach.
const FORBIDDEN: [&str; 12] = [
    "tokio",
    "hyper",
    "hyper-util",
    "tower",
    "kube-client",
    "kube-runtime",
    "reqwest",
    "rustls",
    "mio",
    "rand",
    "getrandom",
    "fastrand",
];

fn dependencies(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(["--package", package, "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_pure_crates_reach_no_runtime_no_network_and_no_chance() {
    for (package, expected) in [("conme-api", "schemars"), ("conme-blueprint", "conme-api")] {
        let found = dependencies(package);
        assert!(
            found.contains(package) && found.contains(expected),
            "the listing is not read right: {found:?}"
        );
        let forbidden: Vec<&str> = FORBIDDEN.into_iter().filter(|name| found.contains(*name)).collect();
        assert_eq!(forbidden, [""; 0], "of {package}");
    }
}

#[test]
fn the_resources_know_nothing_of_the_decisions() {
    let found = dependencies("conme-api");
    let own: Vec<&String> = found.iter().filter(|name| name.starts_with("conme-")).collect();
    assert_eq!(own, ["conme-api"]);
    let found = dependencies("conme-blueprint");
    let own: Vec<&String> = found.iter().filter(|name| name.starts_with("conme-")).collect();
    assert_eq!(own, ["conme-api", "conme-blueprint"]);
}
