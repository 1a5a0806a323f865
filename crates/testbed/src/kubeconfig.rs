//! The text of a kubeconfig.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A kubeconfig with one user, everything inline so that the file can be copied elsewhere.
pub(crate) fn text(
    instance: &str,
    user: &str,
    server: &str,
    ca: &Path,
    cert: &Path,
    key: &Path,
) -> Result<String> {
    let inline = |path: &Path| -> Result<String> {
        Ok(STANDARD.encode(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
    };
    Ok(format!(
        "\
apiVersion: v1
kind: Config
clusters:
- name: conme-{instance}
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: {user}
  user:
    client-certificate-data: {cert}
    client-key-data: {key}
contexts:
- name: conme-{instance}
  context:
    cluster: conme-{instance}
    user: {user}
current-context: conme-{instance}
",
        ca = inline(ca)?,
        cert = inline(cert)?,
        key = inline(key)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_inline() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "pem").unwrap();
        let text = text("demo", "admin", "https://127.0.0.1:6443", &file, &file, &file).unwrap();
        let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(value["current-context"], "conme-demo");
        assert_eq!(value["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(value["users"][0]["user"]["client-key-data"], "cGVt");
        assert!(!text.contains(&*dir.path().to_string_lossy()));
    }
}
