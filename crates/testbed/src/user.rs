//! The user that database servers run as: they refuse to run as root.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::{User, geteuid};

use crate::dirs::{create_dir, random_hex};
use crate::process::RunAs;

/// None to run as we are; for root the user `postgres`, else `nobody`.
pub(crate) fn choose() -> Result<Option<RunAs>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
        }
    }
    bail!("database servers do not run as root, and there is neither a user \"postgres\" nor \"nobody\" here")
}

/// Whether the user may pass through the directory and all its parents.
pub(crate) fn can_reach(path: &Path, user: Option<&RunAs>) -> bool {
    let Some(user) = user else { return true };
    path.ancestors().all(|dir| {
        std::fs::metadata(dir).is_ok_and(|meta| {
            let needed = if meta.uid() == user.uid {
                0o100
            } else if meta.gid() == user.gid {
                0o010
            } else {
                0o001
            };
            meta.mode() & needed != 0
        })
    })
}

/// Makes the directory that holds the data directories: in the instance when the user can reach it there, else
/// under `/var/tmp` or `/tmp`.
pub(crate) fn make_home(instance_dir: &Path, name: &str, user: Option<&RunAs>) -> Result<PathBuf> {
    if can_reach(instance_dir, user) {
        let home = instance_dir.join("databases");
        create_dir(&home, 0o711)?;
        return Ok(home);
    }
    for parent in ["/var/tmp", "/tmp"] {
        if !can_reach(Path::new(parent), user) {
            continue;
        }
        let home = Path::new(parent).join(format!("{OUTSIDE_PREFIX}{name}-{}", random_hex(6)?));
        // Not `create_dir_all`: in a directory that everybody may write to it must be us who make it.
        if std::fs::create_dir(&home).is_ok() {
            std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o711))?;
            return Ok(home);
        }
    }
    bail!(
        "the user of the database servers can reach neither {} nor /var/tmp nor /tmp",
        instance_dir.display()
    )
}

const OUTSIDE_PREFIX: &str = "conme-";

/// Removes what [`make_home`] has made, and nothing else.
pub(crate) fn remove_home(home: &Path, instance_dir: &Path) -> Result<()> {
    let named = home.file_name().is_some_and(|name| name.to_string_lossy().starts_with(OUTSIDE_PREFIX));
    let outside = named
        && home.parent().is_some_and(|parent| parent == Path::new("/var/tmp") || parent == Path::new("/tmp"));
    if !outside && !home.starts_with(instance_dir) {
        bail!("{} was not made by this program", home.display());
    }
    match std::fs::remove_dir_all(home) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", home.display()))
        }
        _ => Ok(()),
    }
}

/// Gives a file or directory to the user.
pub(crate) fn give(path: &Path, user: Option<&RunAs>) -> Result<()> {
    match user {
        Some(user) => chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("cannot give {} to the user of the database servers", path.display())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_here_is_removed() {
        for foreign in ["/", "/etc", "/var/tmp", "/var/tmp/other", "/home/conme-x", "/var/tmp/conme-a/b"] {
            remove_home(Path::new(foreign), Path::new("/state/demo")).unwrap_err();
        }
        let dir = tempfile::tempdir().unwrap();
        let home = make_home(dir.path(), "demo", None).unwrap();
        assert!(home.starts_with(dir.path()));
        remove_home(&home, dir.path()).unwrap();
        remove_home(&home, dir.path()).unwrap();
        assert!(!home.exists());
    }

    #[test]
    fn a_closed_parent_cannot_be_passed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let stranger = RunAs { uid: 65_533, gid: 65_533 };
        assert!(!can_reach(dir.path(), Some(&stranger)));
        assert!(can_reach(dir.path(), None));
        assert!(can_reach(Path::new("/usr/bin"), Some(&stranger)));
    }
}
