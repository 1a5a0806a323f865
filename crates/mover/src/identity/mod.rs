//! Who is who: the authority of a municipality, the certificates that it issues, the tokens that lead to them.
//!
//! Every municipality has an authority of its own, so nothing issued for one is worth anything to another. A
//! certificate is good for one server and one target, and says so in its names.

mod authority;
mod files;
mod signing;
mod token;

pub use authority::{Authority, Refusal};
pub use files::{About, Identity, Role, write_private};
pub(crate) use files::{lock, make_private_dir, read};
pub use signing::{NotSigned, sign, signer};
pub use token::Token;

/// Why an identity cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path} is damaged or not of this program: {error}")]
    Form {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        error: String,
    },
    /// A name that cannot stand in a certificate.
    #[error("{0:?} is no name: use up to 40 lower-case letters, digits and hyphens")]
    Name(String),
    /// A certificate could not be made.
    #[error("the certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// There is one already.
    #[error(
        "{0} exists already: it is not overwritten, since certificates issued by it would be worth nothing"
    )]
    Exists(std::path::PathBuf),
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// TLS refuses what was read.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The name of a server, target or municipality, when it is one.
///
/// # Errors
/// When it cannot stand in a certificate.
pub fn name(text: &str) -> Result<&str, IdentityError> {
    let fits = !text.is_empty()
        && text.len() <= 40
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits { Ok(text) } else { Err(IdentityError::Name(text.into())) }
}

/// The name in an agent's certificate: this server, for this target.
pub fn agent_uri(source: &str, target: &str) -> String {
    format!("urn:conme-mover:agent:{source}:{target}")
}

/// The name in a receiver's certificate, besides the one by which it is called.
pub fn receiver_uri(target: &str) -> String {
    format!("urn:conme-mover:receiver:{target}")
}

/// The server that an agent's certificate is for, when it is for this target.
pub fn source_of<'a>(uri: &'a str, target: &str) -> Option<&'a str> {
    let (source, theirs) = uri.strip_prefix("urn:conme-mover:agent:")?.split_once(':')?;
    (theirs == target && name(source).is_ok()).then_some(source)
}

fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
