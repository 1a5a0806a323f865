//! Cuts content where the content says so: what is inserted at the front moves no cut behind it.

use std::ops::Range;

use fastcdc::v2020::FastCDC;

/// Bytes of a chunk at least, but for the last of a stretch.
pub const MIN: usize = 16 << 10;
/// Bytes of a chunk on average.
pub const AVERAGE: usize = 64 << 10;
/// Bytes of a chunk at most.
pub const MAX: usize = 256 << 10;
const WINDOW: usize = 4 * MAX;

/// Takes up content as it is read and gives out chunks.
///
/// Where a chunk ends depends on nothing before its beginning. So reading may begin at any cut and finds the same.
#[derive(Debug)]
pub struct Cutter {
    window: Box<[u8]>,
    filled: Range<usize>,
}

impl Default for Cutter {
    fn default() -> Self {
        Self { window: vec![0; WINDOW].into(), filled: 0..0 }
    }
}

impl Cutter {
    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.filled = 0..0;
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// Whether it can give out a chunk before it knows what follows.
    pub fn is_ready(&self) -> bool {
        self.filled.len() >= MAX
    }

    /// Where content may be written to; [`Self::add`] says how much was.
    pub fn room(&mut self) -> &mut [u8] {
        if self.window.len() - self.filled.end < MAX {
            self.window.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        &mut self.window[self.filled.end..]
    }

    /// So many bytes were written to the room.
    pub fn add(&mut self, count: usize) {
        self.filled.end = (self.filled.end + count).min(self.window.len());
    }

    /// The next chunk; `last` says that nothing follows what it holds.
    pub fn next(&mut self, last: bool) -> Option<&[u8]> {
        if self.is_empty() || !(last || self.is_ready()) {
            return None;
        }
        let held = &self.window[self.filled.clone()];
        let len = FastCDC::new(held, MIN, AVERAGE, MAX).next().map_or(held.len(), |chunk| chunk.length);
        let start = self.filled.start;
        self.filled.start += len;
        Some(&self.window[start..start + len])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Noise that is the same each time.
    pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut noise = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
        noise
    }

    fn cut(mut content: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let (mut cutter, mut chunks) = (Cutter::default(), Vec::new());
        loop {
            while !cutter.is_ready() && !content.is_empty() {
                let room = cutter.room();
                let count = content.len().min(piece).min(room.len());
                room[..count].copy_from_slice(&content[..count]);
                cutter.add(count);
                content = &content[count..];
            }
            match cutter.next(content.is_empty()) {
                Some(chunk) => chunks.push(chunk.to_vec()),
                None => return chunks,
            }
        }
    }

    #[test]
    fn the_cuts_depend_on_the_content_and_not_on_how_it_was_read() {
        let content = noise(1, 3 << 20);
        let chunks = cut(&content, usize::MAX);
        assert_eq!(chunks, cut(&content, 7777));
        assert_eq!(chunks.concat(), content);
        assert!(chunks.iter().all(|chunk| chunk.len() <= MAX) && chunks.len() > 20, "{}", chunks.len());
        // From any cut on the same.
        assert_eq!(cut(&content[chunks[0].len()..], 99_999), chunks[1..]);
    }

    #[test]
    fn what_is_put_in_front_changes_no_chunk_but_the_first_ones() {
        let content = noise(2, 4 << 20);
        let shifted = [b"in testa".to_vec(), content.clone()].concat();
        let (before, after) = (cut(&content, usize::MAX), cut(&shifted, usize::MAX));
        let new = after.iter().filter(|chunk| !before.contains(chunk)).count();
        assert!(new <= 3, "{new} of {}", after.len());
    }
}
