//! Programs out of packages of the distribution: unpacked into a directory of ours, never installed, so that no service
//! is left behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::dirs::create_dir;
use crate::helper;

/// apt, with lists and downloads of our own when asked for.
pub(crate) struct Apt {
    /// Where trees are unpacked.
    parent: PathBuf,
    own_lists: bool,
}

impl Apt {
    /// With the lists that the system has.
    pub fn of_system(parent: &Path) -> Self {
        Self { parent: parent.to_owned(), own_lists: false }
    }

    /// With fresh lists, which need no root.
    pub fn with_own_lists(parent: &Path) -> Self {
        Self { parent: parent.to_owned(), own_lists: true }
    }

    fn root(&self) -> PathBuf {
        self.parent.join("apt")
    }

    /// A program of apt.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        // The user `_apt` could not write to a cache in somebody's home.
        command.args(["-q", "-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"]);
        command.arg("-o").arg(format!("Dir::Cache={}", self.root().join("cache").display()));
        if self.own_lists {
            command.arg("-o").arg(format!("Dir::State::Lists={}", self.root().join("lists").display()));
        }
        command
    }

    /// Fetches the lists, when they are to be our own.
    pub async fn refresh(&self) -> Result<()> {
        for below in ["cache/archives/partial", "lists/partial"] {
            create_dir(&self.root().join(below), 0o755)?;
        }
        if self.own_lists {
            let mut update = self.command("apt-get");
            update.arg("update");
            helper::run(update, "fetch the lists of packages").await?;
        }
        Ok(())
    }

    /// Unpacks packages and what they need beyond what is installed, as far as `is_needed`; returns the tree and the
    /// directory that holds it, which is removed when dropped.
    pub async fn unpack(
        &self,
        what: &str,
        wanted: &[String],
        is_needed: fn(&str) -> bool,
    ) -> Result<(TempDir, PathBuf)> {
        let mut simulate = self.command("apt-get");
        simulate.args(["-s", "--no-install-recommends", "install"]).args(wanted);
        let plan = helper::run(simulate, &format!("find the libraries of {what}")).await?;
        let mut packages: Vec<&str> = new_packages(&plan).filter(|package| is_needed(package)).collect();
        for package in wanted {
            if !packages.contains(&package.as_str()) {
                packages.push(package);
            }
        }

        let work = tempfile::Builder::new().prefix(".unpack-").tempdir_in(&self.parent)?;
        let mut download = self.command("apt-get");
        download.current_dir(work.path()).arg("download").args(&packages);
        helper::run(download, &format!("download the packages of {what}")).await?;
        let tree = work.path().join("tree");
        create_dir(&tree, 0o755)?;
        for entry in std::fs::read_dir(work.path())?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "deb") {
                let mut extract = Command::new("dpkg-deb");
                extract.arg("-x").arg(entry.path()).arg(&tree);
                helper::run(extract, &format!("unpack a package of {what}")).await?;
            }
        }
        // Some packages put their libraries below /lib, which is the same directory only in an installed system.
        let top = tree.join("lib");
        if top.is_dir() {
            let mut merge = Command::new("cp");
            merge.arg("-a").arg(top.join(".")).arg(tree.join("usr/lib"));
            helper::run(merge, &format!("merge the libraries of {what}")).await?;
        }
        Ok((work, tree))
    }

    /// Removes some megabytes of lists that nobody needs any more.
    pub fn tidy(&self) {
        let _ = std::fs::remove_dir_all(self.root());
    }
}

/// The packages that would be installed anew; those that would only be upgraded are there already.
fn new_packages(plan: &str) -> impl Iterator<Item = &str> {
    plan.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        (!rest.starts_with('[')).then_some(name)
    })
}

/// The libraries in an unpacked tree, for `LD_LIBRARY_PATH`.
pub(crate) fn libraries(tree: &Path) -> PathBuf {
    let libraries = tree.join("usr/lib");
    let entries = std::fs::read_dir(&libraries).into_iter().flatten().flatten();
    let multiarch = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().ends_with("-linux-gnu");
    entries.into_iter().find(multiarch).map_or(libraries, |entry| entry.path())
}

/// Copies an unpacked tree to where another user can reach it, unless it is there already.
pub(crate) async fn copy_tree(tree: &Path, copy: &Path, what: &str) -> Result<()> {
    if copy.exists() {
        return Ok(());
    }
    let part = copy.with_extension("part");
    let mut command = Command::new("cp");
    command.arg("-a").arg("--no-preserve=ownership").arg(tree).arg(&part);
    helper::run(command, &format!("copy the programs of {what}")).await?;
    Ok(std::fs::rename(&part, copy)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_fetched() {
        let plan = "\
Inst libpq5 [15.1] (15.2 Debian [amd64])
Inst libicu72 (72.1 Debian [amd64])
Inst postgresql-15 (15.2 Debian [amd64])
Conf postgresql-15 (15.2 Debian [amd64])
";
        assert_eq!(new_packages(plan).collect::<Vec<_>>(), ["libicu72", "postgresql-15"]);
    }
}
