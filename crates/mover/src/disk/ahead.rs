//! A disk that is read on while what was read is hashed.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::core::ports::{Again, Extent, Source};

/// Pieces that are read before anybody asks for them.
const PIECES: usize = 3;

/// A stretch of the disk: where it begins, and its bytes.
type Place = (u64, usize);

/// Reads on behind what was read last, as long as it is asked for in order. What lies ready was read in this session:
/// a new session begins with nothing.
#[derive(Debug)]
pub struct Ahead<S> {
    disk: S,
    /// Bytes of the disk.
    len: u64,
    helper: Option<Helper>,
    /// What the helper was asked for and has not handed out, in order.
    asked: VecDeque<Place>,
    /// Where the read behind the last one would begin.
    next: u64,
    stretch: Option<Extent>,
}

#[derive(Debug)]
struct Helper {
    wants: mpsc::Sender<(Place, Vec<u8>)>,
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    spare: Vec<Vec<u8>>,
    thread: JoinHandle<()>,
}

impl<S: Again + Send + 'static> Ahead<S> {
    /// Of this disk of `len` bytes. The helper begins with the second read.
    pub fn new(disk: S, len: u64) -> Self {
        Self { disk, len, helper: None, asked: VecDeque::new(), next: u64::MAX, stretch: None }
    }

    /// The disk itself.
    pub fn inner(&mut self) -> &mut S {
        &mut self.disk
    }

    fn helper(&mut self) -> io::Result<&mut Helper> {
        if self.helper.is_none() {
            let mut disk = self.disk.again()?;
            let (wants, wanted) = mpsc::channel::<(Place, Vec<u8>)>();
            let (hand_out, pieces) = mpsc::channel();
            let thread = std::thread::Builder::new().name("read-ahead".into()).spawn(move || {
                while let Ok(((offset, len), mut piece)) = wanted.recv() {
                    piece.resize(len, 0);
                    let read = disk.read(offset, &mut piece).map(|()| piece);
                    if hand_out.send(read).is_err() {
                        return;
                    }
                }
            })?;
            self.helper = Some(Helper { wants, pieces, spare: Vec::new(), thread });
        }
        self.helper.as_mut().ok_or_else(|| io::Error::other("no thread to read ahead"))
    }

    /// The oldest piece that was asked for.
    fn piece(&mut self) -> io::Result<Vec<u8>> {
        self.asked.pop_front();
        let ended = |_| io::Error::other("the thread that reads ahead has ended");
        self.helper()?.pieces.recv().map_err(ended)?
    }

    /// Asks for what probably comes next: pieces of this length, without holes.
    fn ask(&mut self, len: usize) -> io::Result<()> {
        let mut offset = self.asked.back().map_or(self.next, |(offset, len)| offset + *len as u64);
        while self.asked.len() < PIECES && offset < self.len {
            let end = (offset + len as u64).min(self.len);
            let stretch = match self.stretch {
                Some(stretch) if stretch.end > offset => stretch,
                _ => *self.stretch.insert(self.disk.extent(offset)?),
            };
            if stretch.data || stretch.end < end {
                let place = (offset, usize::try_from(end - offset).unwrap_or(len));
                let helper = self.helper()?;
                let buffer = helper.spare.pop().unwrap_or_default();
                let ended = |_| io::Error::other("the thread that reads ahead has ended");
                helper.wants.send((place, buffer)).map_err(ended)?;
                self.asked.push_back(place);
                offset = end;
            } else {
                // Whole pieces: the hole may end within one.
                offset += (stretch.end - offset) / len as u64 * len as u64;
                if stretch.end >= self.len {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl<S: Again + Send + 'static> Source for Ahead<S> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let place = (offset, buffer.len());
        let ready = self.asked.contains(&place);
        let in_order = ready || offset == self.next;
        // What lies before it was passed over.
        while self.asked.front().is_some_and(|front| *front != place) {
            if let (Ok(piece), Some(helper)) = (self.piece(), &mut self.helper) {
                helper.spare.push(piece);
            }
        }
        if ready {
            let piece = self.piece()?;
            buffer.copy_from_slice(&piece);
            if let Some(helper) = &mut self.helper {
                helper.spare.push(piece);
            }
        } else {
            self.stretch = None;
            self.disk.read(offset, buffer)?;
        }
        self.next = offset + buffer.len() as u64;
        if in_order { self.ask(buffer.len()) } else { Ok(()) }
    }

    fn extent(&mut self, offset: u64) -> io::Result<Extent> {
        self.disk.extent(offset)
    }
}

impl<S> Drop for Ahead<S> {
    fn drop(&mut self) {
        if let Some(Helper { wants, pieces, thread, .. }) = self.helper.take() {
            drop((wants, pieces));
            // It has nothing more to say: what it could not read, nobody wanted.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::disk::Disk;

    const PIECE: usize = 64 << 10;

    fn content(at: u64) -> u8 {
        (at / 4096 % 251) as u8 + 1
    }

    /// An image with a hole from its third to its tenth piece, and an odd end.
    fn image(dir: &tempfile::TempDir) -> Disk {
        let path = dir.path().join("image");
        let file = File::create(&path).unwrap();
        let len = (20 * PIECE + 4100) as u64;
        file.set_len(len).unwrap();
        for at in (0..len).step_by(4096) {
            if !(3 * PIECE as u64..10 * PIECE as u64).contains(&at) {
                file.write_all_at(&vec![content(at); (len - at).min(4096) as usize], at).unwrap();
            }
        }
        file.sync_all().unwrap();
        Disk::source(&path).unwrap()
    }

    fn ahead(dir: &tempfile::TempDir) -> Ahead<Disk> {
        let disk = image(dir);
        let len = disk.len();
        Ahead::new(disk, len)
    }

    fn assert_read(ahead: &mut Ahead<Disk>, piece: u64) {
        let offset = piece * PIECE as u64;
        let mut buffer = vec![0; PIECE.min((ahead.len - offset) as usize)];
        ahead.read(offset, &mut buffer).unwrap();
        for (at, byte) in (offset..).zip(buffer) {
            let expected = if (3..10).contains(&(at / PIECE as u64)) { 0 } else { content(at) };
            assert_eq!(byte, expected, "at {at}");
        }
    }

    #[test]
    fn whatever_the_order_what_is_read_is_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let orders: [&[u64]; 4] = [
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
            // Without the hole, and with what is passed over.
            &[0, 1, 2, 10, 11, 12, 14, 15, 16, 20],
            // Back, again, and on.
            &[10, 11, 12, 5, 13, 14, 14, 0, 1, 2, 19, 20, 18],
            &[20, 0, 20, 1],
        ];
        for order in orders {
            let mut ahead = ahead(&dir);
            for piece in order {
                assert_read(&mut ahead, *piece);
            }
        }
    }

    #[test]
    fn what_comes_in_order_lies_ready_and_holes_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut ahead = ahead(&dir);
        assert_read(&mut ahead, 0);
        assert!(ahead.asked.is_empty(), "one read is no order");
        assert_read(&mut ahead, 1);
        let places: Vec<_> = ahead.asked.iter().map(|(offset, _)| offset / PIECE as u64).collect();
        let holes = !ahead.disk.extent(3 * PIECE as u64).unwrap().data;
        assert_eq!(places, if holes { [2, 10, 11] } else { [2, 3, 4] });
    }

    #[test]
    fn a_disk_that_becomes_shorter_is_an_error_where_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut ahead = ahead(&dir);
        assert_read(&mut ahead, 10);
        let file = File::options().write(true).open(dir.path().join("image")).unwrap();
        file.set_len(12 * PIECE as u64).unwrap();
        assert_read(&mut ahead, 11);
        let mut buffer = vec![0; PIECE];
        assert!(ahead.read(12 * PIECE as u64, &mut buffer).is_err());
        assert_read(&mut ahead, 10);
    }
}
