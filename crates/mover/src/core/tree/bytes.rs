//! How numbers and texts of lists and frames are written: each in one way only.

/// What was read is not what can have been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an impossible {0}")]
pub struct Malformed(pub &'static str);

/// Adds a number, seven bits to the byte, the lowest first.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Adds bytes with their number.
pub fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads fields one after another.
#[derive(Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// One byte.
    ///
    /// # Errors
    /// At the end; so for all that follow.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, Malformed> {
        let (byte, rest) = self.0.split_first().ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(*byte)
    }

    /// So many bytes, as they are.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(taken)
    }

    /// So many bytes as an array.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(*taken)
    }

    /// A number of at most `most`.
    ///
    /// # Errors
    /// When it is larger, cut short, or longer than it need be.
    pub fn number(&mut self, most: u64, what: &'static str) -> Result<u64, Malformed> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(Malformed(what));
            }
            number |= bits << shift;
            if byte < 0x80 {
                return if number <= most { Ok(number) } else { Err(Malformed(what)) };
            }
        }
        Err(Malformed(what))
    }

    /// Bytes that come with their number.
    ///
    /// # Errors
    /// When there are fewer, or more than `most`.
    pub fn counted(&mut self, most: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.number(most as u64, what)?;
        self.take(len as usize, what)
    }

    /// Nothing is left over.
    ///
    /// # Errors
    /// When something is.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_written_in_one_way_only() {
        for bytes in [&[0x80, 0][..], &[0xff; 10], &[0x80; 11], &[0x80]] {
            assert!(Fields(bytes).number(u64::MAX, "number").is_err(), "{bytes:?}");
        }
        assert_eq!(Fields(&[5]).number(4, "number"), Err(Malformed("number")));
    }

    proptest! {
        #[test]
        fn every_number_comes_back(number: u64, behind: Vec<u8>) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            bytes.extend_from_slice(&behind);
            let mut fields = Fields(&bytes);
            prop_assert_eq!(fields.number(u64::MAX, "number"), Ok(number));
            prop_assert_eq!(fields.0, &behind[..]);
        }
    }
}
