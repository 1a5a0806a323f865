//! Where the programs of MariaDB come from: what is installed, else the packages of the distribution, unpacked into the
//! cache.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian::{self, Apt};
use crate::dirs::{Dirs, create_dir};
use crate::helper;
use crate::lock::Lock;
use crate::process::{CommandSpec, RunAs};
use crate::progress::Progress;

/// Names the prefix of an installation such as `/usr`, or `debian` to unpack the packages although a server is installed.
const VARIABLE: &str = "CONME_MARIADB_PREFIX";

/// The programs of MariaDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binaries {
    /// Directory with `sbin/mariadbd`, `bin/mariadb-install-db` and `share`.
    prefix: PathBuf,
    server: PathBuf,
    /// For `LD_LIBRARY_PATH`, when they come from unpacked packages.
    pub libraries: Option<PathBuf>,
    /// The tree that was unpacked, which may be copied elsewhere as a whole.
    tree: Option<PathBuf>,
}

impl Binaries {
    /// Finds or unpacks them.
    pub async fn ensure(dirs: &Dirs, progress: &Progress) -> Result<Self> {
        let wish = std::env::var(VARIABLE).unwrap_or_default();
        match wish.as_str() {
            "debian" => {}
            "" => {
                if let Some(found) =
                    ["/usr", "/usr/local"].into_iter().find_map(|prefix| in_prefix(prefix.into()))
                {
                    return Ok(found);
                }
            }
            prefix => {
                return in_prefix(prefix.into()).with_context(|| {
                    format!(
                        "{VARIABLE} is {prefix}, but there is no mariadbd with its mariadb-install-db in it"
                    )
                });
            }
        }
        unpack(dirs, progress).await
    }

    /// The server's program.
    pub fn server(&self, directory: &Path) -> CommandSpec {
        self.with_libraries(CommandSpec::new(&self.server, directory))
    }

    /// The program that makes a data directory.
    pub fn install_db(&self, directory: &Path) -> CommandSpec {
        // A script; it is handed to the shell, so that nothing depends on how the tree was mounted.
        let spec = CommandSpec::new("/bin/sh", directory)
            .args([self.prefix.join("bin/mariadb-install-db").to_string_lossy()])
            .args([format!("--basedir={}", self.prefix.display())]);
        self.with_libraries(spec)
    }

    /// The client.
    pub fn client(&self) -> PathBuf {
        self.prefix.join("bin/mariadb")
    }

    /// The files that a server of this tree reads at its start, as options.
    pub fn options(&self) -> String {
        let share = self.prefix.join("share/mysql");
        format!(
            "basedir={}\nlc-messages-dir={}\ncharacter-sets-dir={}\n",
            self.prefix.display(),
            share.display(),
            share.join("charsets").display()
        )
    }

    fn with_libraries(&self, spec: CommandSpec) -> CommandSpec {
        let spec = spec.env("LC_ALL", "C");
        match &self.libraries {
            Some(libraries) => spec.env("LD_LIBRARY_PATH", libraries.to_string_lossy()),
            None => spec,
        }
    }

    /// For example `10.11.19`.
    pub async fn version(&self) -> Result<String> {
        let command = self.server(Path::new("/")).args(["--no-defaults", "--version"]).command();
        let text = helper::run(command, "ask for the version of MariaDB").await?;
        parse_version(&text).with_context(|| format!("MariaDB has no version in {text:?}"))
    }

    /// The same programs where another user can run them; copies the unpacked tree below `home` if need be.
    pub async fn reachable(self, user: Option<&RunAs>, home: &Path) -> Result<Self> {
        if crate::user::can_reach(&self.prefix, user) {
            return Ok(self);
        }
        let Some(tree) = &self.tree else {
            bail!(
                "the user of the database servers cannot reach {}; name another directory with {VARIABLE}",
                self.prefix.display()
            );
        };
        let copy = home.join("mariadb-programs");
        debian::copy_tree(tree, &copy, "MariaDB").await?;
        in_tree(copy).context("the copied MariaDB is gone")
    }
}

fn parse_version(text: &str) -> Option<String> {
    // "/usr/sbin/mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)"
    let version = text.split_once(" Ver ")?.1.trim_start();
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    (end > 0 && version.contains("MariaDB")).then(|| version[..end].to_owned())
}

fn in_prefix(prefix: PathBuf) -> Option<Binaries> {
    let server = ["sbin/mariadbd", "bin/mariadbd"]
        .into_iter()
        .map(|program| prefix.join(program))
        .find(|program| program.is_file())?;
    let whole = prefix.join("bin/mariadb-install-db").is_file() && prefix.join("bin/mariadb").is_file();
    whole.then_some(Binaries { prefix, server, libraries: None, tree: None })
}

fn in_tree(tree: PathBuf) -> Option<Binaries> {
    let libraries = Some(debian::libraries(&tree));
    let found = in_prefix(tree.join("usr"))?;
    Some(Binaries { libraries, tree: Some(tree), ..found })
}

/// What to do when nothing works.
const ADVICE: &str = "install the MariaDB server of your distribution (Debian: `apt-get install mariadb-server`), or name the \
                      prefix of its programs with CONME_MARIADB_PREFIX";

async fn unpack(dirs: &Dirs, progress: &Progress) -> Result<Binaries> {
    let root = dirs.cache.join("mariadb");
    create_dir(&root, 0o755)?;
    let tree = root.join("debian");
    if let Some(found) = in_tree(tree.clone()) {
        return Ok(found);
    }
    let waiting = "  … another process unpacks MariaDB: waiting for it";
    let _lock = Lock::acquire(&root.join(".lock"), waiting, progress).await?;
    if let Some(found) = in_tree(tree.clone()) {
        return Ok(found);
    }
    let step =
        progress.long_step("unpacking MariaDB from the packages of the distribution", "nothing is installed");
    let found = match download_and_unpack(&Apt::of_system(&root), &tree).await {
        Ok(found) => found,
        // The lists of the system may be missing or too old; ours need no root.
        Err(_) => download_and_unpack(&Apt::with_own_lists(&root), &tree).await.with_context(|| {
            format!("there is no MariaDB here and its packages cannot be fetched: {ADVICE}")
        })?,
    };
    step.done(&found.version().await?);
    Ok(found)
}

async fn download_and_unpack(apt: &Apt, target: &Path) -> Result<Binaries> {
    apt.refresh().await?;
    let packages = ["mariadb-server-core", "mariadb-client-core"].map(str::to_owned);
    let (_work, tree) = apt.unpack("MariaDB", &packages, is_needed).await?;
    // Tried before it counts: a library may be missing.
    let trial = in_tree(tree.clone()).context("the packages hold no MariaDB server")?;
    trial.version().await?;
    std::fs::rename(&tree, target)?;
    apt.tidy();
    in_tree(target.to_owned()).context("the unpacked MariaDB is gone")
}

/// Packages with nothing but configuration are not needed: ours names everything.
fn is_needed(package: &str) -> bool {
    !matches!(package, "mysql-common" | "mariadb-common") && !package.contains("perl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_a_number() {
        let text =
            "/a Ver b/mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)\n";
        assert_eq!(parse_version(&text["/a Ver b".len()..]).as_deref(), Some("10.11.19"));
        assert_eq!(parse_version("mysqld  Ver 8.0.36 for Linux on x86_64 (MySQL)"), None);
        assert_eq!(parse_version("mariadbd"), None);
    }

    #[test]
    fn configuration_is_not_fetched() {
        let packages = ["libaio1", "mysql-common", "mariadb-common", "mariadb-server-core"];
        let needed: Vec<&str> = packages.into_iter().filter(|package| is_needed(package)).collect();
        assert_eq!(needed, ["libaio1", "mariadb-server-core"]);
    }
}
