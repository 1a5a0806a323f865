//! Texts that differ little from others of their kind, kept small.

use std::sync::Arc;

/// Keeps texts of one kind, each as its difference from the first ones.
#[derive(Debug, Default)]
pub struct Shelf {
    samples: Arc<[u8]>,
}

/// A text from a [`Shelf`].
#[derive(Debug)]
pub enum Stored {
    /// As it is.
    Plain(Box<str>),
    /// Packed, against the samples of its kind at that time.
    Packed {
        /// The packed bytes.
        bytes: Box<[u8]>,
        /// Length of the text, in bytes.
        length: u32,
        /// What it was packed against.
        samples: Arc<[u8]>,
    },
}

/// As much of the first texts as others are packed against, in bytes.
const SAMPLES: usize = 16 << 10;

impl Shelf {
    /// Puts a text away. While there are few, others are packed against it from now on.
    pub fn put(&mut self, text: &str) -> Stored {
        if self.samples.len() < SAMPLES {
            self.samples = self.samples.iter().chain(text.as_bytes()).copied().collect();
            return Stored::Plain(text.into());
        }
        self.pack(text)
    }

    /// Puts away a text that is no example for others.
    pub fn pack(&self, text: &str) -> Stored {
        let packed = lz4_flex::block::compress_with_dict(text.as_bytes(), &self.samples);
        match u32::try_from(text.len()) {
            Ok(length) if packed.len() < text.len() => {
                Stored::Packed { bytes: packed.into(), length, samples: self.samples.clone() }
            }
            _ => Stored::Plain(text.into()),
        }
    }
}

impl Stored {
    /// The text. Empty when it cannot be read, which only a broken memory can bring about.
    pub fn text(&self) -> String {
        match self {
            Self::Plain(text) => text.to_string(),
            Self::Packed { bytes, length, samples } => {
                let text = lz4_flex::block::decompress_with_dict(bytes, *length as usize, samples);
                text.ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_on_a_shelf_are_small_and_come_back_as_they_were() {
        let text = |number: usize| {
            format!("{{\"name\":\"dolo-{number}\",\"spec\":\"{}\"}}", "sempre uguale, ".repeat(60))
        };
        let mut shelf = Shelf::default();
        let stored: Vec<Stored> = (0..100).map(|number| shelf.put(&text(number))).collect();
        for (number, stored) in stored.iter().enumerate() {
            assert_eq!(stored.text(), text(number));
        }
        let Some(Stored::Packed { bytes, .. }) = stored.last() else { unreachable!("packed by now") };
        assert!(bytes.len() < 100, "{} of {}", bytes.len(), text(99).len());
    }

    #[test]
    fn a_text_that_is_no_example_is_packed_all_the_same() {
        let text = "sempre uguale, ".repeat(60);
        let shelf = Shelf::default();
        let stored = shelf.pack(&text);
        assert!(matches!(&stored, Stored::Packed { bytes, .. } if bytes.len() < 100));
        assert_eq!(stored.text(), text);
        assert_eq!(shelf.pack("x").text(), "x");
    }
}
