//! What a person sees: a line that moves on a terminal, plain lines elsewhere, events for programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use support::{Site, noise};

/// Runs the program with its standard error on a terminal; gives all that it drew there.
fn on_a_terminal(site: &Site, args: &[&str]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    tcsetwinsize(&terminal, Winsize { ws_row: 40, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut command = site.plain(args);
    let mut child =
        command.env("TERM", "xterm").stderr(Stdio::from(end)).stdout(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut drawn = Vec::new();
    // Ends with an error when nobody holds the other end any more.
    let _ = File::from(terminal).read_to_end(&mut drawn);
    assert!(child.wait().unwrap().success(), "{}", String::from_utf8_lossy(&drawn));
    String::from_utf8(drawn).unwrap()
}

#[test]
fn a_line_moves_on_a_terminal_and_goes_when_the_round_is_over() {
    let site = Site::enrolled();
    // More than what the sockets on the way take at once.
    std::fs::write(site.path("disk"), noise(1, 14 << 20)).unwrap();
    let receiver = site.receiver(&[]);
    let address = receiver.address();
    let args = ["agent", "--state", "agent", "--source", "disk", "--connect", &address, "--cap", "16mbit"];
    let drawn = on_a_terminal(&site, &args);
    for part in
        ["[=", " %  round 1: ", " of 14 MiB read, ", " sent, ", " saved, ", "/s", " s left", "\u{1b}["]
    {
        assert!(drawn.contains(part), "no {part:?} in {drawn:?}");
    }
    let end = drawn.trim_end().rsplit('\r').next().unwrap();
    assert!(end.contains("round 1 is over: both ends agree on "), "the line stays: {drawn:?}");
    drop(receiver);

    // Where there is no terminal, lines come now and then, without anything that moves.
    let verify = ["verify", "--state", "received", "--target", "copy"];
    let drawn = on_a_terminal(&site, &verify);
    assert!(drawn.contains("14 MiB read back"), "{drawn:?}");
    let plain = site.plain(&verify).output().unwrap();
    let plain = String::from_utf8(plain.stderr).unwrap();
    assert!(!plain.contains(['\u{1b}', '\r']), "{plain:?}");
    assert!(plain.contains("every unit received is what was written"), "{plain:?}");
}

#[test]
fn programs_hear_how_far_how_fast_and_how_long_at_both_ends() {
    let site = Site::enrolled();
    std::fs::write(site.path("disk"), noise(1, 14 << 20)).unwrap();
    let mut receiver = site.receiver(&["--until-proven"]);
    let mut agent = site.agent(&receiver.address(), &["--cap", "16mbit", "--prove"]);
    let told = loop {
        let told = agent.event("progress");
        if !told["secondsLeft"].is_null() && !told["rate"].is_null() {
            break told;
        }
    };
    assert_eq!((&told["stage"], &told["purpose"]), (&"sending".into(), &"copy".into()), "{told}");
    assert_eq!((&told["total"], &told["saved"].is_u64()), (&14.into(), &true), "{told}");
    let told = receiver.event("progress");
    assert_eq!((&told["stage"], &told["total"]), (&"receiving".into(), &14.into()), "{told}");
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(receiver.end().success());
}
