//! The name that a TLS client asks for, read from its first bytes without answering them.
//!
//! A client says in the clear whom it wants to talk to. That is enough to lead it there; everything else stays
//! between the two ends. What is read here comes from anybody, so every length is checked before it is believed.

/// Bytes that a client may need to say whom it wants; with keys that resist quantum computers about 1800 are usual.
pub const LIMIT: usize = 16 << 10;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const MAX_RECORD: usize = 1 << 14;
const MAX_NAME: usize = 253;

/// Why a client is not led anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum BadHello {
    /// Not TLS.
    #[error("not TLS")]
    NotTls,
    /// More than [`LIMIT`].
    #[error("the greeting is longer than {LIMIT} bytes")]
    TooLong,
    /// Lengths that contradict one another.
    #[error("the greeting is malformed")]
    Malformed,
    /// It names nobody.
    #[error("the greeting names nobody")]
    NoName,
}

/// Reads a greeting as it arrives, in whatever pieces.
#[derive(Debug, Clone, Default)]
pub struct Greeting {
    taken: usize,
    header: Vec<u8>,
    /// Bytes that are still to come of the record.
    record: usize,
    message: Vec<u8>,
}

impl Greeting {
    /// Takes the bytes that came next. The name, in lower case, as soon as the greeting is whole; what follows it
    /// in the same bytes is not looked at.
    ///
    /// # Errors
    /// When it can no longer become a greeting that names somebody. Nothing may be taken after that.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<Option<String>, BadHello> {
        while !bytes.is_empty() {
            if self.taken == LIMIT {
                return Err(BadHello::TooLong);
            }
            let room = LIMIT - self.taken;
            if self.record == 0 {
                let (byte, rest) = (bytes[0], &bytes[1..]);
                bytes = rest;
                self.taken += 1;
                self.header.push(byte);
                self.look_at_header()?;
                continue;
            }
            let count = bytes.len().min(self.record).min(room);
            self.message.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.taken += count;
            self.record -= count;
            if let Some(body) = self.whole()? {
                return name(body).map(Some);
            }
        }
        Ok(None)
    }

    fn look_at_header(&mut self) -> Result<(), BadHello> {
        match *self.header {
            [HANDSHAKE] | [HANDSHAKE, 3] => Ok(()),
            [HANDSHAKE, 3, ..] if self.header.len() < RECORD_HEADER => Ok(()),
            [HANDSHAKE, 3, _, high, low] => {
                let len = usize::from(u16::from_be_bytes([high, low]));
                // An empty piece of a message helps nobody but one who wants to keep us busy.
                if len == 0 || len > MAX_RECORD {
                    return Err(BadHello::Malformed);
                }
                self.record = len;
                self.header.clear();
                Ok(())
            }
            _ => Err(BadHello::NotTls),
        }
    }

    fn whole(&self) -> Result<Option<&[u8]>, BadHello> {
        match *self.message {
            [] => Ok(None),
            [kind, ..] if kind != CLIENT_HELLO => Err(BadHello::NotTls),
            [_, a, b, c, ref body @ ..] => {
                let len = usize::try_from(u32::from_be_bytes([0, a, b, c])).map_err(|_| BadHello::TooLong)?;
                if len + HANDSHAKE_HEADER + RECORD_HEADER > LIMIT {
                    return Err(BadHello::TooLong);
                }
                Ok(body.get(..len))
            }
            _ => Ok(None),
        }
    }
}

/// What is left to read of a message.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], BadHello> {
        let (taken, left) = self.0.split_at_checked(count).ok_or(BadHello::Malformed)?;
        self.0 = left;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, BadHello> {
        Ok(self.bytes(1)?[0])
    }

    fn two(&mut self) -> Result<u16, BadHello> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A list with its length before it, in one byte.
    fn short_list(&mut self) -> Result<Rest<'a>, BadHello> {
        let len = self.byte()?.into();
        self.bytes(len).map(Rest)
    }

    /// A list with its length before it, in two bytes.
    fn list(&mut self) -> Result<Rest<'a>, BadHello> {
        let len = self.two()?.into();
        self.bytes(len).map(Rest)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The name in the body of a ClientHello.
fn name(body: &[u8]) -> Result<String, BadHello> {
    let mut hello = Rest(body);
    let (_version, _random) = (hello.two()?, hello.bytes(32)?);
    let (_session, _suites, _compressions) = (hello.short_list()?, hello.list()?, hello.short_list()?);
    if hello.is_empty() {
        return Err(BadHello::NoName);
    }
    let mut extensions = hello.list()?;
    if !hello.is_empty() {
        return Err(BadHello::Malformed);
    }
    let mut found = None;
    while !extensions.is_empty() {
        let kind = extensions.two()?;
        let content = extensions.list()?;
        if kind == SERVER_NAME {
            // Two answers to one question: the gateway could believe one and the receiver the other.
            if found.is_some() {
                return Err(BadHello::Malformed);
            }
            found = Some(host_name(content)?);
        }
    }
    found.ok_or(BadHello::NoName)
}

fn host_name(mut content: Rest<'_>) -> Result<String, BadHello> {
    let mut names = content.list()?;
    if names.byte()? != HOST_NAME {
        return Err(BadHello::Malformed);
    }
    let name = names.list()?.0;
    let fits = (1..=MAX_NAME).contains(&name.len()) && name.iter().all(|&byte| is_of_a_name(byte));
    if !names.is_empty() || !content.is_empty() || !fits {
        return Err(BadHello::Malformed);
    }
    String::from_utf8(name.to_ascii_lowercase()).map_err(|_| BadHello::Malformed)
}

fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &str, protocols: usize) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols =
            (0..protocols).map(|number| format!("protocol-{number:04}").into_bytes()).collect();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of so many bytes.
    fn cut(bytes: &[u8], record: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut message = Vec::new();
        let mut left = bytes;
        while let [kind, major, minor, high, low, rest @ ..] = left {
            assert_eq!((*kind, *major, *minor), (22, 3, 1));
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            message.extend_from_slice(&rest[..len]);
            left = &rest[len..];
        }
        for piece in message.chunks(record) {
            out.extend([22, 3, 1]);
            out.extend(u16::try_from(piece.len()).unwrap().to_be_bytes());
            out.extend(piece);
        }
        out
    }

    fn fed(bytes: &[u8], piece: usize) -> Result<Option<String>, BadHello> {
        let mut greeting = Greeting::default();
        for piece in bytes.chunks(piece) {
            if let Some(name) = greeting.take(piece)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn as_rustls_reads(bytes: &[u8]) -> Option<String> {
        let mut acceptor = rustls::server::Acceptor::default();
        let mut left = bytes;
        while !left.is_empty() {
            acceptor.read_tls(&mut left).ok()?;
            if let Some(accepted) = acceptor.accept().ok()? {
                return accepted.client_hello().server_name().map(str::to_owned);
            }
        }
        None
    }

    proptest! {
        #[test]
        fn it_reads_the_name_that_rustls_reads(
            name in "[a-z0-9]{1,20}(-[a-z0-9]{1,8})?\\.mover\\.invalid",
            protocols in 0_usize..400,
            record in 1_usize..3000,
            piece in 1_usize..3000,
        ) {
            let bytes = cut(&hello(&name, protocols), record);
            // Records of one byte cost six each: such a greeting may pass the limit, and is then refused.
            match fed(&bytes, piece) {
                Ok(read) => {
                    prop_assert_eq!(&read, &as_rustls_reads(&bytes));
                    prop_assert_eq!(read, Some(name));
                }
                Err(error) => {
                    prop_assert_eq!(error, BadHello::TooLong);
                    prop_assert!(bytes.len() > LIMIT);
                }
            }
        }

        #[test]
        fn what_is_mangled_never_leads_elsewhere_than_rustls_would(
            protocols in 0_usize..30,
            record in 30_usize..600,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = cut(&hello("label.mover.invalid", protocols), record);
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            // It may refuse what rustls takes, and read what rustls refuses; but never another name.
            if let (Ok(Some(mine)), Some(theirs)) = (fed(&bytes, 64), as_rustls_reads(&bytes)) {
                prop_assert_eq!(mine, theirs.to_ascii_lowercase());
            }
        }

        #[test]
        fn anything_at_all_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1_usize..64) {
            let _ = fed(&bytes, piece);
            let mut dressed = vec![22, 3, 1];
            dressed.extend(u16::try_from(bytes.len().max(1)).unwrap().to_be_bytes());
            dressed.extend(bytes);
            let _ = fed(&dressed, piece);
        }

        #[test]
        fn it_keeps_no_more_than_its_limit(pieces in prop::collection::vec(1_usize..2000, 1..60)) {
            let mut greeting = Greeting::default();
            let mut endless = std::iter::once(1_u8).chain([0, 0x3f, 0xf7]).chain(std::iter::repeat(0));
            for piece in pieces {
                let content: Vec<u8> = endless.by_ref().take(piece).collect();
                let mut bytes = vec![22, 3, 3];
                bytes.extend(u16::try_from(piece).unwrap().to_be_bytes());
                bytes.extend(content);
                let ended = greeting.take(&bytes);
                prop_assert!(greeting.taken <= LIMIT && greeting.message.len() <= LIMIT);
                if ended.is_err() {
                    return Ok(());
                }
            }
        }
    }

    #[test]
    fn who_names_nobody_or_speaks_something_else_is_told_apart() {
        assert_eq!(fed(b"GET / HTTP/1.1\r\n", 3), Err(BadHello::NotTls));
        assert_eq!(fed(b"SSH-2.0-x\r\n", 1), Err(BadHello::NotTls));
        // An address is not a name, so a client that dials one names nobody.
        assert_eq!(fed(&hello("127.0.0.1", 0), 7), Err(BadHello::NoName));
        assert_eq!(fed(&[22, 3, 1, 0, 0], 5), Err(BadHello::Malformed));
        assert_eq!(fed(&[22, 3, 1, 0, 4, 2, 0, 0, 0], 5), Err(BadHello::NotTls));
        assert_eq!(fed(&[22, 3, 1, 0, 4, 1, 0xff, 0, 0], 5), Err(BadHello::TooLong));
    }

    #[test]
    fn what_follows_the_greeting_is_left_alone() {
        let mut bytes = hello("label.mover.invalid", 0);
        bytes.extend([0xff; 100]);
        assert_eq!(fed(&bytes, bytes.len()), Ok(Some("label.mover.invalid".into())));
    }

    #[test]
    fn two_names_or_half_a_name_are_none() {
        let with = |extensions: &[u8]| {
            let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
            let mut body = vec![3, 3];
            body.extend([0; 32]);
            body.extend([0, 0, 2, 0x13, 1, 1, 0]);
            body.extend(len(extensions));
            body.extend(extensions);
            let message = [&[1, 0], len(&body).as_slice(), &body].concat();
            fed(&[&[22, 3, 1], len(&message).as_slice(), &message].concat(), 9)
        };
        let one = [0, 0, 0, 6, 0, 4, 0, 0, 1, b'a'];
        assert_eq!(with(&one), Ok(Some("a".into())));
        assert_eq!(with(&[one, one].concat()), Err(BadHello::Malformed));
        let two_in_one = [0, 0, 0, 10, 0, 8, 0, 0, 1, b'a', 0, 0, 1, b'b'];
        assert_eq!(with(&two_in_one), Err(BadHello::Malformed));
        for end in 1..one.len() {
            assert_eq!(with(&one[..end]), Err(BadHello::Malformed), "{end}");
        }
        assert_eq!(with(&[0, 0, 0, 6, 0, 4, 0, 0, 1, b' ']), Err(BadHello::Malformed));
        assert_eq!(with(&[]), Err(BadHello::NoName));
    }
}
