//! Where things are kept: the state of the instances and the cache of the programs, both outside the checkout.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The two directories that the testbed writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Parent of the instances: one directory per instance.
    pub state: PathBuf,
    /// Built and unpacked programs, shared by all instances.
    pub cache: PathBuf,
}

impl Dirs {
    /// From `CONME_STATE_DIR` / `CONME_CACHE_DIR`, else the XDG directories, else `~/.local/state/conme` and
    /// `~/.cache/conme`.
    ///
    /// # Errors
    /// When none of these variables nor `HOME` is set.
    pub fn from_env() -> Result<Self> {
        Self::resolve(|key| std::env::var_os(key))
    }

    fn resolve(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let dir = |own: &str, xdg: &str, below_home: &str| -> Result<PathBuf> {
            let set = |key: &str| var(key).filter(|value| !value.is_empty()).map(PathBuf::from);
            if let Some(dir) = set(own) {
                return std::path::absolute(&dir).with_context(|| format!("{own}={}", dir.display()));
            }
            // The XDG specification says that relative paths are to be ignored.
            if let Some(dir) = set(xdg).filter(|dir| dir.is_absolute()) {
                return Ok(dir.join("conme"));
            }
            match set("HOME") {
                Some(home) => Ok(home.join(below_home).join("conme")),
                None => bail!("neither {own} nor {xdg} nor HOME is set: set {own} to a writable directory"),
            }
        };
        Ok(Self {
            state: dir("CONME_STATE_DIR", "XDG_STATE_HOME", ".local/state")?,
            cache: dir("CONME_CACHE_DIR", "XDG_CACHE_HOME", ".cache")?,
        })
    }

    /// The same with another parent for the instances.
    #[must_use]
    pub fn with_state(mut self, state: impl Into<PathBuf>) -> Self {
        self.state = state.into();
        self
    }

    /// The directory of one instance.
    #[must_use]
    pub fn instance(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }
}

/// Checks the name of an instance or of a program: lower-case letters, digits and hyphens, at most 40 bytes.
///
/// # Errors
/// Says what is wrong with the name.
pub fn check_name(name: &str) -> Result<()> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    let inner = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if !edge(bytes.first()) || !edge(bytes.last()) || !inner || bytes.len() > 40 {
        bail!(
            "\"{name}\" is not a valid name: use 1 to 40 lower-case letters, digits and hyphens, with a letter or digit at both ends"
        );
    }
    Ok(())
}

/// Creates a directory and its parents; the last one gets `mode`. One that exists is left as it is: it may be `/tmp`.
pub(crate) fn create_dir(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)
        .with_context(|| format!("cannot create the directory {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Replaces a file in one step, so that a reader sees the old or the new text and never half of it.
pub(crate) fn write_file(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let parent = path.parent().context("a file needs a directory")?;
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(parent)?;
        file.write_all(content)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// `bytes` random bytes from the operating system, in hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0_u8; bytes];
    getrandom::fill(&mut buffer).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(vars: &[(&str, &str)]) -> Result<Dirs> {
        Dirs::resolve(|key| vars.iter().find(|(name, _)| *name == key).map(|(_, value)| value.into()))
    }

    #[test]
    fn own_variables_win_over_xdg_and_home() {
        let dirs = resolve(&[("CONME_STATE_DIR", "/s"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")]).unwrap();
        assert_eq!(dirs, Dirs { state: "/s".into(), cache: "/h/.cache/conme".into() });
    }

    #[test]
    fn xdg_counts_only_when_absolute() {
        let dirs = resolve(&[("XDG_CACHE_HOME", "/c"), ("XDG_STATE_HOME", "rel"), ("HOME", "/h")]).unwrap();
        assert_eq!(dirs, Dirs { state: "/h/.local/state/conme".into(), cache: "/c/conme".into() });
    }

    #[test]
    fn without_any_variable_the_error_names_the_way_out() {
        let error = resolve(&[("HOME", "")]).unwrap_err().to_string();
        assert!(error.contains("CONME_STATE_DIR"), "{error}");
    }

    #[test]
    fn names_are_safe_as_directory_names() {
        for good in ["demo", "a", "test-1", "0x"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", &"a".repeat(41)] {
            check_name(bad).unwrap_err();
        }
    }

    #[test]
    fn a_file_is_replaced_with_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_file(&path, 0o600, b"one").unwrap();
        write_file(&path, 0o600, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
