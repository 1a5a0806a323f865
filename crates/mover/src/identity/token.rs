//! The token with which a server enrols, once.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a person carries to the server, in a file or through a pipe: whom to ask, whom to trust, and the secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The form of the file: 1.
    pub version: u32,
    /// Which token.
    pub id: String,
    /// What it proves; kept by the authority only as a hash.
    pub secret: String,
    /// Until when it is good.
    pub expires: Timestamp,
    /// The municipality.
    pub municipality: String,
    /// The server that may enrol.
    pub source: String,
    /// The target that it may write to.
    pub target: String,
    /// Where certificates are issued.
    pub enrol: Place,
    /// Where the receiver is.
    pub receive: Place,
    /// The authority, in PEM: the only one that is trusted, from the first connection on.
    pub authority: String,
}

/// An address and the opaque name that is asked for there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// `host:port`.
    pub address: String,
    /// The name in its certificate.
    pub name: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("source", &self.source).finish_non_exhaustive()
    }
}
