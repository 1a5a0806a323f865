//! Keys and certificates of one instance.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::dirs::{create_dir, write_file};

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// To be recognised as a client: the name is the user, the organisation the group.
    Client,
    /// To be recognised as a server on the loopback interface.
    Server,
    /// Both: etcd calls itself with the certificate of its server.
    Both,
}

/// The certificate authority of an instance and the files that it has signed.
#[derive(Debug)]
pub(crate) struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Opens the authority in `dir`, or makes one.
    pub fn open(dir: &Path, instance: &str) -> Result<Self> {
        create_dir(dir, 0o700)?;
        let (cert_file, key_file) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !(cert_file.exists() && key_file.exists()) {
            let key = KeyPair::generate()?;
            let cert = authority(instance)?.self_signed(&key)?;
            write_file(&key_file, 0o600, key.serialize_pem().as_bytes())?;
            write_file(&cert_file, 0o644, cert.pem().as_bytes())?;
        }
        let key = std::fs::read_to_string(&key_file)
            .with_context(|| format!("cannot read {}", key_file.display()))?;
        let key = KeyPair::from_pem(&key).context("the key of the authority is broken")?;
        // What it writes into the certificates follows from the name and the key, so its own need not be read.
        Ok(Self { dir: dir.to_owned(), issuer: Issuer::new(authority(instance)?, key) })
    }

    /// Path of the certificate of the authority.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Path of the key of the authority.
    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    /// Path of a certificate, made or not.
    pub fn cert(&self, file: &str) -> PathBuf {
        self.dir.join(format!("{file}.crt"))
    }

    /// Path of a private key, made or not.
    pub fn key(&self, file: &str) -> PathBuf {
        self.dir.join(format!("{file}.key"))
    }

    /// Makes `FILE.crt` and `FILE.key` unless they exist.
    pub fn issue(&self, file: &str, name: &str, group: Option<&str>, usage: Usage) -> Result<()> {
        if self.cert(file).exists() && self.key(file).exists() {
            return Ok(());
        }
        let key = KeyPair::generate()?;
        let mut params = params(name, group)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if usage != Usage::Server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        if usage != Usage::Client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            params.subject_alt_names = server_names()?;
        }
        let cert = params.signed_by(&key, &self.issuer)?;
        write_file(&self.key(file), 0o600, key.serialize_pem().as_bytes())?;
        write_file(&self.cert(file), 0o644, cert.pem().as_bytes())
    }

    /// Makes `FILE.key` and `FILE.pub`, the pair that signs the tokens of service accounts, unless they exist.
    pub fn key_pair(&self, file: &str) -> Result<(PathBuf, PathBuf)> {
        let (private, public) = (self.key(file), self.dir.join(format!("{file}.pub")));
        if !(private.exists() && public.exists()) {
            let key = KeyPair::generate()?;
            write_file(&private, 0o600, key.serialize_pem().as_bytes())?;
            write_file(&public, 0o644, key.public_key_pem().as_bytes())?;
        }
        Ok((private, public))
    }
}

fn authority(instance: &str) -> Result<CertificateParams> {
    let mut params = params(&format!("conme-testbed {instance}"), None)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn params(name: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    // Whole years, so that a clock that is somewhat off does no harm.
    let year = i32::from(jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year());
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + 10, 1, 1);
    Ok(params)
}

/// The names under which the servers of an instance are called; 10.96.0.1 is the `kubernetes` service.
fn server_names() -> Result<Vec<SanType>> {
    let mut names = vec![
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1))),
    ];
    for name in ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"] {
        names.push(SanType::DnsName(name.try_into()?));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_authority_is_made_once_and_its_keys_are_secret() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), "demo").unwrap();
        pki.issue("server", "localhost", None, Usage::Server).unwrap();
        let (private, public) = pki.key_pair("tokens").unwrap();
        let before = (std::fs::read(pki.ca()).unwrap(), std::fs::read(pki.cert("server")).unwrap());
        for secret in [pki.ca_key(), pki.key("server"), private] {
            assert_eq!(std::fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(std::fs::read_to_string(public).unwrap().contains("PUBLIC KEY"));

        let again = Pki::open(dir.path(), "demo").unwrap();
        again.issue("server", "localhost", None, Usage::Server).unwrap();
        assert_eq!(
            before,
            (std::fs::read(again.ca()).unwrap(), std::fs::read(again.cert("server")).unwrap())
        );
    }
}
