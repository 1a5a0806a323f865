//! The authority of one municipality.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::files::{file_error, lock, make_private_dir, read, write_private};
use super::token::{Place, Token};
use super::{About, Identity, IdentityError, Role, agent_uri, hex, name, random, receiver_uri};

/// A clock that is somewhat off does no harm.
const SKEW: SignedDuration = SignedDuration::from_hours(24);
const AUTHORITY_DAYS: i64 = 3650;
const RECEIVER_DAYS: i64 = 365;
/// An agent's certificate: for one migration. Who needs longer enrols again.
const AGENT_DAYS: i64 = 90;

/// Why a token is not redeemed. The agent is told only that it is not: the rest is for the log of the data centre.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such token, or the secret is not its own.
    #[error("no such token")]
    Unknown,
    /// Its time is over.
    #[error("token {0} has expired: make a new one with `conme-mover ca token`")]
    Expired(String),
    /// Another key has used it.
    #[error("token {0} was used by another key already: find out by whom, then make a new one")]
    Used(String),
    /// The request is not one, or not signed by its key.
    #[error("token {0}: the request for a certificate is not valid: {1}")]
    Request(String, rcgen::Error),
    /// The authority itself.
    #[error(transparent)]
    Authority(#[from] IdentityError),
}

/// An authority with its directory.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    municipality: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    municipality: String,
    /// The name by which the place is called where certificates are issued.
    enrol: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredTarget {
    name: String,
}

use blake3_hex::Hex;

/// A BLAKE3 hash in a file.
mod blake3_hex {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Hex(pub blake3::Hash);

    impl Serialize for Hex {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(&self.0.to_hex())
        }
    }

    impl<'de> Deserialize<'de> for Hex {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            blake3::Hash::from_hex(&text).map(Self).map_err(serde::de::Error::custom)
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredToken {
    secret: Hex,
    source: String,
    target: String,
    expires: Timestamp,
    used_by: Option<Hex>,
}

impl Authority {
    /// Makes an authority in an empty directory.
    ///
    /// # Errors
    /// When there is one already; and of the disk.
    pub fn init(dir: &Path, municipality: &str, now: Timestamp) -> Result<Self, IdentityError> {
        let municipality = name(municipality)?;
        make_private_dir(dir)?;
        if dir.join("authority.pem").exists() {
            return Err(IdentityError::Exists(dir.into()));
        }
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = params(&format!("conme-mover {municipality}"), now, AUTHORITY_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let stored = Stored { municipality: municipality.into(), enrol: opaque_name()? };
        store(&dir.join("about.json"), &stored)?;
        write_private(&dir.join("key.pem"), key.serialize_pem().as_bytes())?;
        write_private(&dir.join("authority.pem"), certificate.pem().as_bytes())?;
        Self::open(dir)
    }

    /// Opens an authority.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        let stored: Stored = load(&dir.join("about.json"))?;
        let certificate = read(&dir.join("authority.pem"))?;
        let key = KeyPair::from_pem(&read(&dir.join("key.pem"))?)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self { dir: dir.into(), issuer, certificate, municipality: stored.municipality })
    }

    /// The identity of the place where certificates are issued.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn enrolment(&self, now: Timestamp) -> Result<(String, String), IdentityError> {
        let stored: Stored = load(&self.dir.join("about.json"))?;
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = params("conme-mover enrolment", now, RECEIVER_DAYS)?;
        params.subject_alt_names = vec![SanType::DnsName(stored.enrol.try_into()?)];
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// Makes the identity of a receiver, in a directory that is then given to it.
    ///
    /// # Errors
    /// When the name is none; and of the disk.
    pub fn receiver(&self, target: &str, out: &Path, now: Timestamp) -> Result<(), IdentityError> {
        let target = name(target)?;
        let called = self.target_name(target)?;
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = params(&format!("conme-mover receiver {target}"), now, RECEIVER_DAYS)?;
        params.subject_alt_names = vec![
            SanType::DnsName(called.clone().try_into()?),
            SanType::URI(receiver_uri(target).try_into()?),
        ];
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let about = About {
            role: Role::Receiver,
            municipality: self.municipality.clone(),
            source: None,
            target: target.into(),
            name: called,
            address: None,
        };
        Identity::save(out, &about, &certificate.pem(), &key.serialize_pem(), &self.certificate)
    }

    /// The name by which a receiver is called: it says nothing about whose it is, since it crosses the net in the
    /// clear.
    fn target_name(&self, target: &str) -> Result<String, IdentityError> {
        let path = self.dir.join("targets").join(format!("{target}.json"));
        if path.exists() {
            return Ok(load::<StoredTarget>(&path)?.name);
        }
        make_private_dir(&self.dir.join("targets"))?;
        let stored = StoredTarget { name: opaque_name()? };
        store(&path, &stored)?;
        Ok(stored.name)
    }

    /// Makes a token with which one server may enrol for one target.
    ///
    /// # Errors
    /// When a name is none; and of the disk.
    pub fn token(
        &self,
        source: &str,
        target: &str,
        expires: Timestamp,
        enrol: &str,
        receive: &str,
    ) -> Result<Token, IdentityError> {
        let (source, target) = (name(source)?, name(target)?);
        let id = hex(&random::<8>()?);
        let secret = hex(&random::<32>()?);
        let stored = StoredToken {
            secret: Hex(blake3::hash(secret.as_bytes())),
            source: source.into(),
            target: target.into(),
            expires,
            used_by: None,
        };
        make_private_dir(&self.dir.join("tokens"))?;
        store(&self.token_path(&id), &stored)?;
        let about: Stored = load(&self.dir.join("about.json"))?;
        Ok(Token {
            version: 1,
            id,
            secret,
            expires,
            municipality: self.municipality.clone(),
            source: source.into(),
            target: target.into(),
            enrol: Place { address: enrol.into(), name: about.enrol },
            receive: Place { address: receive.into(), name: self.target_name(target)? },
            authority: self.certificate.clone(),
        })
    }

    fn token_path(&self, id: &str) -> PathBuf {
        self.dir.join("tokens").join(format!("{id}.json"))
    }

    /// The certificate for the key of a request, in PEM, when the token is good for it. The same key may ask again
    /// until the token expires, since an answer may be lost; no other key may.
    ///
    /// # Errors
    /// When the token is not good for this key; and those of the authority itself.
    pub fn redeem(&self, id: &str, secret: &str, request: &[u8], now: Timestamp) -> Result<String, Refusal> {
        // What comes from the net becomes part of a path only when it can be nothing else than an id.
        if id.len() != 16 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Refusal::Unknown);
        }
        // One at a time: two keys must not both find the token unused.
        let _held = lock(&self.dir)?;
        let path = self.token_path(id);
        if !path.exists() {
            return Err(Refusal::Unknown);
        }
        let mut stored: StoredToken = load(&path)?;
        // This comparison takes the same time wherever they differ.
        if blake3::hash(secret.as_bytes()) != stored.secret.0 {
            return Err(Refusal::Unknown);
        }
        if now >= stored.expires {
            return Err(Refusal::Expired(id.into()));
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|error| Refusal::Request(id.into(), error))?;
        let key = Hex(blake3::hash(&request.public_key.subject_public_key_info()));
        match stored.used_by {
            Some(before) if before != key => return Err(Refusal::Used(id.into())),
            Some(_) => {}
            None => {
                stored.used_by = Some(key);
                store(&path, &stored)?;
            }
        }
        // Of the request only the key is taken; what it wishes to be called counts for nothing.
        let certificate = self.agent(&stored, &request.public_key, now)?;
        Ok(certificate)
    }

    fn agent(
        &self,
        token: &StoredToken,
        key: &impl PublicKeyData,
        now: Timestamp,
    ) -> Result<String, IdentityError> {
        let mut params = params(&format!("conme-mover agent {}", token.source), now, AGENT_DAYS)?;
        params.subject_alt_names = vec![SanType::URI(agent_uri(&token.source, &token.target).try_into()?)];
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

fn params(common: &str, now: Timestamp, days: i64) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let time = |at: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| rcgen::Error::Time)
    };
    let after = now.saturating_add(SignedDuration::from_hours(24 * days)).map_err(|_| rcgen::Error::Time)?;
    params.not_before = time(now.saturating_sub(SKEW).map_err(|_| rcgen::Error::Time)?)?;
    params.not_after = time(after)?;
    Ok(params)
}

fn opaque_name() -> Result<String, IdentityError> {
    Ok(format!("{}.mover.invalid", hex(&random::<16>()?)))
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T, IdentityError> {
    let text = std::fs::read(path).map_err(|error| file_error(path, error))?;
    serde_json::from_slice(&text)
        .map_err(|error| IdentityError::Form { path: path.into(), error: error.to_string() })
}

fn store(path: &Path, value: &impl Serialize) -> Result<(), IdentityError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| IdentityError::Form { path: path.into(), error: error.to_string() })?;
    write_private(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        (key, request.der().to_vec())
    }

    #[test]
    fn a_token_is_good_for_one_key_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        let expires = now + SignedDuration::from_hours(24);
        let authority = Authority::init(dir.path(), "torre-di-mosto", now).unwrap();
        let token = authority.token("protocollo", "protocollo", expires, "a:1", "b:2").unwrap();
        let (_, mine) = request();
        let (_, other) = request();
        let redeem = |secret: &str, request: &[u8], at| authority.redeem(&token.id, secret, request, at);
        assert!(matches!(redeem("guess", &mine, now), Err(Refusal::Unknown)));
        assert!(matches!(redeem(&token.secret, b"nonsense", now), Err(Refusal::Request(..))));
        assert!(redeem(&token.secret, &mine, now).unwrap().contains("BEGIN CERTIFICATE"));
        // The answer may have been lost.
        assert!(redeem(&token.secret, &mine, now).is_ok());
        assert!(matches!(redeem(&token.secret, &other, now), Err(Refusal::Used(_))));
        assert!(matches!(redeem(&token.secret, &mine, expires), Err(Refusal::Expired(_))));
        assert!(matches!(authority.redeem("../../etc/passwd", "x", &mine, now), Err(Refusal::Unknown)));
        let stored = std::fs::read_to_string(authority.token_path(&token.id)).unwrap();
        assert!(!stored.contains(&token.secret));
    }

    #[test]
    fn an_authority_is_never_replaced_by_accident() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        Authority::init(dir.path(), "a", now).unwrap();
        assert!(matches!(Authority::init(dir.path(), "a", now), Err(IdentityError::Exists(_))));
        for bad in ["", "Torre", "a/b", "a:b", &"x".repeat(41)] {
            assert!(matches!(name(bad), Err(IdentityError::Name(_))), "{bad}");
        }
    }
}
