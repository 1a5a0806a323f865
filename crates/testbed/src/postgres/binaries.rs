//! Where the programs of PostgreSQL come from: what is installed, else the packages of the distribution, unpacked
//! into the cache without installing anything, so that no service is left behind.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian::{self, Apt};
use crate::dirs::{Dirs, create_dir};
use crate::helper;
use crate::lock::Lock;
use crate::progress::Progress;

/// Names the directory with the programs, or `debian` to unpack the packages although a server is installed.
const VARIABLE: &str = "CONME_POSTGRES_BIN";

/// The programs of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binaries {
    /// Directory with `postgres`, `initdb`, `psql`.
    pub bin: PathBuf,
    /// For `LD_LIBRARY_PATH`, when they come from unpacked packages.
    pub libraries: Option<PathBuf>,
    /// The tree that was unpacked, which may be copied elsewhere as a whole.
    pub tree: Option<PathBuf>,
}

impl Binaries {
    /// Finds or unpacks them.
    pub async fn ensure(dirs: &Dirs, progress: &Progress) -> Result<Self> {
        let wish = std::env::var(VARIABLE).unwrap_or_default();
        if wish != "debian" {
            if !wish.is_empty() {
                let bin = PathBuf::from(&wish);
                return match installed(&bin) {
                    Some(found) => Ok(found),
                    None => bail!("{VARIABLE} is {wish}, but there is no postgres with its initdb in it"),
                };
            }
            if let Some(found) = find_installed() {
                return Ok(found);
            }
        }
        unpack(dirs, progress).await
    }

    /// A command of PostgreSQL with a clean environment.
    pub fn command(&self, program: &str, directory: &Path) -> crate::process::CommandSpec {
        let spec = crate::process::CommandSpec::new(self.bin.join(program), directory).env("LC_ALL", "C");
        match &self.libraries {
            Some(libraries) => spec.env("LD_LIBRARY_PATH", libraries.to_string_lossy()),
            None => spec,
        }
    }

    /// For example `15.18`.
    pub async fn version(&self) -> Result<String> {
        let command = self.command("postgres", Path::new("/")).args(["--version"]).command();
        let text = helper::run(command, "ask for the version of PostgreSQL").await?;
        parse_version(&text).with_context(|| format!("PostgreSQL has no version in {text:?}"))
    }

    /// The same programs where another user can run them; copies the unpacked tree below `home` if need be.
    pub async fn reachable(self, user: Option<&crate::process::RunAs>, home: &Path) -> Result<Self> {
        if crate::user::can_reach(&self.bin, user) {
            return Ok(self);
        }
        let Some(tree) = &self.tree else {
            bail!(
                "the user of PostgreSQL cannot reach {}; name another directory with {VARIABLE}",
                self.bin.display()
            );
        };
        let copy = home.join("programs");
        debian::copy_tree(tree, &copy, "PostgreSQL").await?;
        let moved = |path: &Path| path.strip_prefix(tree).map(|rest| copy.join(rest));
        let libraries = self.libraries.as_deref().map(moved).transpose()?;
        Ok(Self { bin: moved(&self.bin)?, libraries, tree: Some(copy) })
    }
}

fn parse_version(text: &str) -> Option<String> {
    // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
    let version = text.split_ascii_whitespace().nth(2)?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

fn installed(bin: &Path) -> Option<Binaries> {
    let real = bin.join("postgres").canonicalize().ok()?;
    let bin = real.parent()?.to_owned();
    bin.join("initdb").is_file().then_some(Binaries { bin, libraries: None, tree: None })
}

fn find_installed() -> Option<Binaries> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).find_map(|dir| installed(&dir)).or_else(|| {
        let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
            .ok()?
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.iter().find_map(|(_, bin)| installed(bin))
    })
}

/// What to do when nothing works.
const ADVICE: &str = "install the PostgreSQL server of your distribution (Debian: `apt-get install postgresql`), or name \
                      the directory of its programs with CONME_POSTGRES_BIN";

async fn unpack(dirs: &Dirs, progress: &Progress) -> Result<Binaries> {
    let root = dirs.cache.join("postgresql");
    create_dir(&root, 0o755)?;
    if let Some(found) = unpacked(&root) {
        return Ok(found);
    }
    let waiting = "  … another process unpacks PostgreSQL: waiting for it";
    let _lock = Lock::acquire(&root.join(".lock"), waiting, progress).await?;
    if let Some(found) = unpacked(&root) {
        return Ok(found);
    }
    let step = progress
        .long_step("unpacking PostgreSQL from the packages of the distribution", "nothing is installed");
    let found = match download_and_unpack(&Apt::of_system(&root), &root).await {
        Ok(found) => found,
        // The lists of the system may be missing or too old; ours need no root.
        Err(_) => download_and_unpack(&Apt::with_own_lists(&root), &root).await.with_context(|| {
            format!("there is no PostgreSQL here and its packages cannot be fetched: {ADVICE}")
        })?,
    };
    step.done(&found.version().await?);
    Ok(found)
}

/// The newest complete tree below `root`.
fn unpacked(root: &Path) -> Option<Binaries> {
    let mut trees: Vec<(u32, PathBuf)> = std::fs::read_dir(root)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.strip_prefix("debian-")?.parse().ok()?;
            Some((major, entry.path()))
        })
        .collect();
    trees.sort_unstable_by(|a, b| b.cmp(a));
    trees.into_iter().find_map(|(major, tree)| in_tree(major, tree))
}

fn in_tree(major: u32, tree: PathBuf) -> Option<Binaries> {
    let bin = tree.join(format!("usr/lib/postgresql/{major}/bin"));
    if !bin.join("postgres").is_file() || !bin.join("initdb").is_file() {
        return None;
    }
    let libraries = debian::libraries(&tree);
    Some(Binaries { bin, libraries: Some(libraries), tree: Some(tree) })
}

async fn download_and_unpack(apt: &Apt, root: &Path) -> Result<Binaries> {
    apt.refresh().await?;
    let mut depends = apt.command("apt-cache");
    depends.args(["depends", "postgresql"]);
    let depends = helper::run(depends, "find the PostgreSQL of the distribution").await?;
    let major = major_of(&depends).context("the distribution has no package \"postgresql\"")?;
    let packages = [format!("postgresql-{major}"), format!("postgresql-client-{major}")];
    let (_work, tree) = apt.unpack("PostgreSQL", &packages, is_needed).await?;
    let target = root.join(format!("debian-{major}"));
    if target.exists() {
        std::fs::remove_dir_all(&target)?;
    }
    // Tried before it counts: a library may be missing.
    let trial = in_tree(major, tree.clone()).context("the packages hold no PostgreSQL server")?;
    trial.version().await?;
    std::fs::rename(&tree, &target)?;
    apt.tidy();
    in_tree(major, target).context("the unpacked PostgreSQL is gone")
}

/// The major version that the package `postgresql` stands for.
fn major_of(depends: &str) -> Option<u32> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: postgresql-")?.parse().ok())
}

/// Packages that only make a service, or compile queries, are not needed.
fn is_needed(package: &str) -> bool {
    const NOT: [&str; 8] = [
        "postgresql-common",
        "postgresql-client-common",
        "ssl-cert",
        "perl",
        "libperl",
        "libllvm",
        "libjson-perl",
        "lsb-",
    ];
    !package.ends_with("-perl") && !NOT.iter().any(|prefix| package.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_a_number() {
        let text = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(parse_version(text).as_deref(), Some("15.18"));
        assert_eq!(parse_version("postgres"), None);
    }

    #[test]
    fn the_distribution_says_which_major_version() {
        assert_eq!(major_of("postgresql\n  Depends: postgresql-15\n  Suggests: postgresql-doc\n"), Some(15));
        assert_eq!(major_of("postgresql\n"), None);
    }

    #[test]
    fn what_only_makes_a_service_is_not_fetched() {
        let packages = ["libicu72", "libllvm14", "postgresql-common", "libjson-perl", "postgresql-15"];
        let needed: Vec<&str> = packages.into_iter().filter(|package| is_needed(package)).collect();
        assert_eq!(needed, ["libicu72", "postgresql-15"]);
    }
}
