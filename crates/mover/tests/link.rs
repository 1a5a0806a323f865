//! A link that cuts, shortens and damages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::{Site, noise, same};

/// What becomes of one connection.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It works.
    Works,
    /// It ends after so many bytes from the agent.
    Cut(usize),
    /// One bit is another after so many bytes from the agent.
    Flipped(usize),
    /// The same from the receiver.
    FlippedBack(usize),
}

/// Carries connections to the receiver, each with its fate; the last fate is that of all others.
fn link(to: String, fates: Vec<Fate>) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for agent in listener.incoming() {
            let number = counted.fetch_add(1, Ordering::SeqCst) as usize;
            let fate = fates[number.min(fates.len() - 1)];
            let (agent, receiver) = (agent.unwrap(), TcpStream::connect(&to).unwrap());
            let (cut, up, down) = match fate {
                Fate::Works => (None, None, None),
                Fate::Cut(at) => (Some(at), None, None),
                Fate::Flipped(at) => (None, Some(at), None),
                Fate::FlippedBack(at) => (None, None, Some(at)),
            };
            carry(agent.try_clone().unwrap(), receiver.try_clone().unwrap(), cut, up);
            carry(receiver, agent, None, down);
        }
    });
    (address, count)
}

fn carry(mut from: TcpStream, mut to: TcpStream, cut: Option<usize>, flip: Option<usize>) {
    std::thread::spawn(move || {
        let (mut carried, mut buffer) = (0, [0; 4096]);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let keep = cut.map_or(count, |cut| count.min(cut.saturating_sub(carried)));
            if let Some(at) = flip.and_then(|at| at.checked_sub(carried)).filter(|at| *at < count) {
                buffer[at] ^= 1;
            }
            if to.write_all(&buffer[..keep]).is_err() || keep < count {
                break;
            }
            carried += count;
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[test]
fn a_link_that_cuts_and_damages_delays_a_disk_and_changes_nothing() {
    let site = Site::enrolled();
    let mib = 16;
    std::fs::write(site.path("disk"), noise(3, mib << 20)).unwrap();
    let mut receiver = site.receiver(&["--until-proven"]);
    let fates = vec![
        Fate::Cut(0),
        Fate::Cut(700),
        Fate::Cut(4 << 20),
        Fate::Flipped(1 << 20),
        Fate::FlippedBack(300),
        Fate::Flipped(100),
        Fate::Cut(3 << 20),
        Fate::Works,
    ];
    let cuts = fates.len() as u64 - 1;
    let (address, connections) = link(receiver.address(), fates);
    let mut agent = site.agent(&address, &["--prove"]);
    assert!(agent.end().success(), "{:#?}", agent.seen);
    assert!(receiver.end().success(), "{:#?}", receiver.seen);
    assert!(connections.load(Ordering::SeqCst) > cuts, "not every fate came to pass");
    assert!(same(&site.path("disk"), &site.path("copy")));
}
