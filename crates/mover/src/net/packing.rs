//! The thread that packs what an agent has read, while the next is read and the last is sent.

use std::io;
use std::sync::mpsc;
use std::time::Instant;

use tokio::sync::mpsc as frames;

use crate::core::frame::Frame as _;
use crate::core::level::Levels;
use crate::core::pack::{Load, Packer};

/// Loads that may wait to be packed: the one that is read meanwhile is enough.
pub const WAITING: usize = 1;
/// How far this thread stands back for whoever works on the server.
const NICE: i32 = 10;

/// What was packed and handed to the line, one for each load, in their order.
#[derive(Debug)]
pub struct Packed {
    /// Counted frames.
    pub frames: u64,
    /// Bytes on the line.
    pub bytes: u64,
}

/// Packs and hands over until there is nothing more, or the connection is gone. With `stand_back`, whatever else
/// wants to run on this machine goes first.
///
/// # Errors
/// When there is no memory to pack with.
pub fn run(
    mut levels: Levels,
    stand_back: bool,
    loads: &mpsc::Receiver<Load>,
    to: &frames::Sender<Vec<u8>>,
    tell: &mpsc::Sender<Packed>,
) -> io::Result<()> {
    if stand_back {
        // Of the thread, not of the process. Where it is not allowed, it goes on as it is.
        let _ = rustix::process::nice(NICE);
    }
    let mut packer = Packer::new(levels.level());
    let mut last = Instant::now();
    while let Ok(load) = loads.recv() {
        let (counted, has_content) = (load.counted(), load.content() > 0);
        let began = Instant::now();
        let level = match &load {
            Load::Parts(_, content) => {
                levels.for_next(|lowest, level| packer.makes_fewer(lowest, level, content))?
            }
            Load::Frame(_) => levels.level(),
        };
        packer.set_level(level);
        let bytes = load.pack(&mut packer)?.encode();
        let packing = began.elapsed();
        let packed = Packed { frames: counted, bytes: bytes.len() as u64 };
        if to.blocking_send(bytes).is_err() {
            return Ok(());
        }
        // Told only now: who hears it knows that the line has room again. He may have ended, and nothing depends on it
        // then.
        let _ = tell.send(packed);
        if has_content {
            std::thread::sleep(levels.pause(packing));
            levels.note(level, packing, last.elapsed());
            last = Instant::now();
        }
    }
    Ok(())
}
