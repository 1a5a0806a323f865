//! Memory as a read around the cache needs it.

/// Reads around the cache begin and end at multiples of this, in memory and on the disk.
pub const ALIGNMENT: usize = 4096;

/// A buffer that begins at a multiple of [`ALIGNMENT`].
#[derive(Debug, Default)]
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// So many bytes, rounded up to whole blocks.
    pub fn get(&mut self, len: usize) -> &mut [u8] {
        let len = len.next_multiple_of(ALIGNMENT);
        if self.memory.len() < len + ALIGNMENT {
            self.memory = vec![0; len + ALIGNMENT];
            self.start = self.memory.as_ptr().align_offset(ALIGNMENT);
        }
        &mut self.memory[self.start..self.start + len]
    }
}
