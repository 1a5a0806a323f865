//! An identity in a directory: certificate, key, authority, and what they are for.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::IdentityError;
use crate::disk::sync_parent;

/// What an identity is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sends.
    Agent,
    /// Receives.
    Receiver,
}

/// What is known about an identity beside its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// What it is for.
    pub role: Role,
    /// The municipality.
    pub municipality: String,
    /// The server that is moved; an agent's only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The target.
    pub target: String,
    /// The opaque name by which the receiver is called.
    pub name: String,
    /// Where the receiver, or the gateway before it, is found; an agent's only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A certificate with its key and its authority.
pub struct Identity {
    /// What it is for.
    pub about: About,
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The same in PEM, for evidence.
    pub certificate_pem: String,
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// The only authority whose certificates count.
    pub authority: CertificateDer<'static>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("about", &self.about).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads an identity.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let about = dir.join("about.json");
        let certificate = dir.join("certificate.pem");
        let key = dir.join("key.pem");
        let authority = dir.join("authority.pem");
        let form = |path: &Path, error: String| IdentityError::Form { path: path.into(), error };
        let pem = read(&certificate)?;
        Ok(Self {
            about: serde_json::from_str(&read(&about)?).map_err(|error| form(&about, error.to_string()))?,
            certificate: CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|error| form(&certificate, error.to_string()))?,
            certificate_pem: pem,
            // What is wrong with a key is not repeated: it might be the key.
            key: PrivateKeyDer::from_pem_slice(read(&key)?.as_bytes())
                .map_err(|_| form(&key, "not a private key in PEM".into()))?,
            authority: CertificateDer::from_pem_slice(read(&authority)?.as_bytes())
                .map_err(|error| form(&authority, error.to_string()))?,
        })
    }

    /// Writes an identity, readable by its owner only.
    ///
    /// # Errors
    /// Of the disk.
    pub fn save(
        dir: &Path,
        about: &About,
        certificate: &str,
        key: &str,
        authority: &str,
    ) -> Result<(), IdentityError> {
        make_private_dir(dir)?;
        let about = serde_json::to_string_pretty(about)
            .map_err(|error| IdentityError::Form { path: dir.into(), error: error.to_string() })?;
        write_private(&dir.join("key.pem"), key.as_bytes())?;
        write_private(&dir.join("authority.pem"), authority.as_bytes())?;
        write_private(&dir.join("about.json"), about.as_bytes())?;
        // The certificate is written last: with it, the identity is complete.
        write_private(&dir.join("certificate.pem"), certificate.as_bytes())
    }
}

/// A directory that only its owner may enter.
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| file_error(dir, error))
}

/// Writes a file that only its owner may read: whole or not at all, durably.
///
/// # Errors
/// Of the disk.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        sync_parent(path)
    };
    write().map_err(|error| file_error(path, error))
}

pub(crate) fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(|error| file_error(path, error))
}

/// Holds a directory for this process alone, as long as the answer lives.
pub(crate) fn lock(dir: &Path) -> Result<File, IdentityError> {
    let path = dir.join("lock");
    let open = || -> std::io::Result<File> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            match error {
                rustix::io::Errno::WOULDBLOCK => {
                    std::io::Error::other("another conme-mover works here: end it first")
                }
                error => error.into(),
            }
        })?;
        Ok(file)
    };
    open().map_err(|error| file_error(&path, error))
}

pub(crate) fn file_error(path: &Path, error: std::io::Error) -> IdentityError {
    IdentityError::File { path: path.into(), error }
}
