//! The programs of the control plane, built from pinned Go modules.
//!
//! Each family of programs has a module of its own, because their dependencies do not agree with one another. The
//! modules are part of this binary, so that it needs no checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::dirs::{Dirs, create_dir, write_file};
use crate::helper;
use crate::lock::Lock;
use crate::progress::Progress;

/// Raise it when the way of building changes, so that everything is built anew.
const RECIPE: &str = "1";

/// The oldest Go that the modules accept.
const GO: (u32, u32) = (1, 26);

/// The Stage documents of kwok that make a simulated host behave like a quick one.
const STAGES: [&str; 5] = [
    "kustomize/stage/node/fast/node-initialize.yaml",
    "kustomize/stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "kustomize/stage/pod/fast/pod-ready.yaml",
    "kustomize/stage/pod/fast/pod-complete.yaml",
    "kustomize/stage/pod/fast/pod-delete.yaml",
];

/// Programs that are built together from one Go module.
#[derive(Debug)]
struct Family {
    name: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// The module whose version is that of the programs.
    module: &'static str,
    /// Name of the program and its package below the module.
    programs: &'static [(&'static str, &'static str)],
    /// Variables that the linker sets, with `{version}`, `{major}` and `{minor}`.
    link: &'static str,
    /// On two processors with nothing cached.
    cold_minutes: f32,
}

const FAMILIES: [Family; 4] = [
    Family {
        name: "etcd",
        go_mod: include_str!("../tools/etcd/go.mod"),
        go_sum: include_str!("../tools/etcd/go.sum"),
        module: "go.etcd.io/etcd/server/v3",
        programs: &[("etcd", "")],
        link: "-s -w",
        cold_minutes: 0.6,
    },
    Family {
        name: "kubernetes",
        go_mod: include_str!("../tools/kubernetes/go.mod"),
        go_sum: include_str!("../tools/kubernetes/go.sum"),
        module: "k8s.io/kubernetes",
        programs: &[
            ("kube-apiserver", "/cmd/kube-apiserver"),
            ("kube-controller-manager", "/cmd/kube-controller-manager"),
            ("kube-scheduler", "/cmd/kube-scheduler"),
            ("kubectl", "/cmd/kubectl"),
        ],
        link: "-s -w -X k8s.io/component-base/version.gitVersion={version} \
               -X k8s.io/component-base/version.gitMajor={major} -X k8s.io/component-base/version.gitMinor={minor}",
        cold_minutes: 6.5,
    },
    Family {
        name: "kwok",
        go_mod: include_str!("../tools/kwok/go.mod"),
        go_sum: include_str!("../tools/kwok/go.sum"),
        module: "sigs.k8s.io/kwok",
        programs: &[("kwok", "/cmd/kwok")],
        link: "-s -w -X sigs.k8s.io/kwok/pkg/consts.Version={version}",
        cold_minutes: 1.3,
    },
    Family {
        name: "helm",
        go_mod: include_str!("../tools/helm/go.mod"),
        go_sum: include_str!("../tools/helm/go.sum"),
        module: "helm.sh/helm/v3",
        programs: &[("helm", "/cmd/helm")],
        link: "-s -w -X helm.sh/helm/v3/internal/version.version={version}",
        cold_minutes: 1.6,
    },
];

impl Family {
    fn version(&self) -> Result<&'static str> {
        required_version(self.go_mod, self.module)
            .with_context(|| format!("the go.mod of {} does not require {}", self.name, self.module))
    }

    fn link_flags(&self) -> Result<String> {
        let version = self.version()?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        Ok(self.link.replace("{version}", version).replace("{major}", major).replace("{minor}", minor))
    }

    /// Name of the directory in the cache: the version for people, the hash of everything that matters for us.
    fn key(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        let flags = self.link_flags()?;
        let programs: String =
            self.programs.iter().map(|(name, package)| format!("{name}={package}\n")).collect();
        for part in
            [RECIPE, self.go_mod, self.go_sum, &flags, &programs, &STAGES.join("\n"), std::env::consts::ARCH]
        {
            hash.update(&u64::try_from(part.len())?.to_le_bytes());
            hash.update(part.as_bytes());
        }
        let hash = hash.finalize().to_hex();
        Ok(format!("{}-{}-{}", self.name, self.version()?, hash.get(..16).unwrap_or_default()))
    }

    /// Everything that a finished directory holds.
    fn files(&self) -> Vec<&'static str> {
        let mut files: Vec<_> = self.programs.iter().map(|(name, _)| *name).collect();
        if self.name == "kwok" {
            files.push("stages.yaml");
        }
        files
    }

    fn is_complete(&self, dir: &Path) -> bool {
        self.files().iter().all(|file| dir.join(file).is_file())
    }

    async fn ensure(&self, root: &Path, progress: &Progress) -> Result<PathBuf> {
        let key = self.key()?;
        let dir = root.join(&key);
        if self.is_complete(&dir) {
            return Ok(dir);
        }
        let waiting = format!("  … another process builds {}: waiting for it", self.name);
        let lock = Lock::acquire(&root.join(format!(".{key}.lock")), &waiting, progress).await?;
        if self.is_complete(&dir) {
            return Ok(dir);
        }
        let names = self.programs.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let version = self.version()?;
        let expect = format!("takes about {} min the first time, then never again", self.cold_minutes.ceil());
        let step = progress.long_step(&format!("building {names} {version} from source"), &expect);
        self.build(root, &dir).await?;
        step.done("");
        lock.remove();
        Ok(dir)
    }

    async fn build(&self, root: &Path, dir: &Path) -> Result<()> {
        let work = tempfile::Builder::new().prefix(&format!(".build-{}-", self.name)).tempdir_in(root)?;
        let module = work.path().join("module");
        let out = work.path().join("out");
        create_dir(&module, 0o755)?;
        create_dir(&out, 0o755)?;
        write_file(&module.join("go.mod"), 0o644, self.go_mod.as_bytes())?;
        write_file(&module.join("go.sum"), 0o644, self.go_sum.as_bytes())?;

        let flags = self.link_flags()?;
        // So that an interrupted build leaves nothing in the directory for temporary files of the system.
        let temporary = work.path().join("temporary");
        create_dir(&temporary, 0o755)?;
        let mut command = go(root, &module);
        command.env("GOTMPDIR", &temporary).args([
            "build",
            "-trimpath",
            "-mod=readonly",
            "-buildvcs=false",
            "-ldflags",
            &flags,
            "-o",
        ]);
        // One package may be called otherwise than its program; several get the names of their packages.
        match self.programs {
            [(name, _)] => command.arg(out.join(name)),
            _ => command.arg(format!("{}/", out.display())),
        };
        command.args(self.programs.iter().map(|(_, package)| format!("{}{package}", self.module)));
        helper::run(command, &format!("build {}", self.name)).await.context(
            "building the programs of the local data centre needs Go, about 6 GB of disk for its caches and a Go module \
             proxy (see `go env GOPROXY`); what is built already is kept, so just run it again once that is repaired",
        )?;

        if self.name == "kwok" {
            let mut command = go(root, &module);
            command.args(["list", "-m", "-f", "{{.Dir}}", self.module]);
            let source = helper::run(command, "find the source of kwok").await?;
            let source = PathBuf::from(source.trim());
            let documents = STAGES.iter().map(|stage| {
                let path = source.join(stage);
                std::fs::read_to_string(&path).with_context(|| format!("kwok has no {}", path.display()))
            });
            let documents = documents.collect::<Result<Vec<_>>>()?;
            write_file(&out.join("stages.yaml"), 0o644, join_documents(&documents).as_bytes())?;
        }
        if !self.is_complete(&out) {
            bail!("go build has not made all of {:?}", self.files());
        }
        // A directory without all its files can only be a broken one from elsewhere.
        if dir.exists() {
            std::fs::remove_dir_all(dir)
                .with_context(|| format!("cannot remove the broken {}", dir.display()))?;
        }
        std::fs::rename(&out, dir).with_context(|| format!("cannot create {}", dir.display()))
    }
}

/// A `go` command that works in the given module.
fn go(root: &Path, module: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(module);
    // A workspace or a vendored tree around the caller has nothing to say here.
    command.env("GOWORK", "off").env_remove("GOOS").env_remove("GOARCH");
    if std::env::var_os("HOME").is_none_or(|home| home.is_empty()) {
        for (key, below) in [("GOCACHE", "go-build"), ("GOPATH", "go")] {
            if std::env::var_os(key).is_none() {
                command.env(key, root.join(below));
            }
        }
    }
    command
}

async fn check_go(root: &Path) -> Result<()> {
    let wanted = format!("Go {}.{} or later", GO.0, GO.1);
    let mut command = go(root, root);
    command.args(["env", "GOVERSION"]);
    let found = match helper::run(command, "ask for the version of Go").await {
        Ok(found) => found,
        Err(error) => bail!(
            "the programs of the local data centre are built with {wanted}, and `go` does not run here: install it \
             (https://go.dev/doc/install, or the package golang-go of a recent distribution) and put it in PATH\n{error:#}"
        ),
    };
    let found = found.trim();
    // An older one that may fetch another toolchain does so by itself, led by the go.mod.
    let mut command = go(root, root);
    command.args(["env", "GOTOOLCHAIN"]);
    let fetches =
        helper::run(command, "ask for the toolchain of Go").await.is_ok_and(|value| value.trim() != "local");
    match go_version(found) {
        Some(version) if version >= GO || (fetches && version >= (1, 21)) => Ok(()),
        _ => bail!(
            "the programs of the local data centre are built with {wanted}, but `go` here is {found}: install a later one"
        ),
    }
}

fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The version at which a `go.mod` requires a module.
fn required_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let line = line.trim().strip_prefix("require ").unwrap_or(line.trim());
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|word| word.starts_with('v'))
    })
}

fn join_documents(documents: &[String]) -> String {
    documents.iter().map(|document| document.trim()).collect::<Vec<_>>().join("\n---\n") + "\n"
}

/// Where the built programs are.
#[derive(Clone, Debug)]
pub struct Tools {
    etcd: PathBuf,
    kubernetes: PathBuf,
    kwok: PathBuf,
    helm: PathBuf,
}

impl Tools {
    /// Builds what is missing in the cache. Safe to call from several processes at once.
    ///
    /// # Errors
    /// When Go is missing or too old, or a build fails; the text says what to do.
    pub async fn ensure(dirs: &Dirs, progress: &Progress) -> Result<Self> {
        let root = dirs.cache.join("tools");
        create_dir(&root, 0o755)?;
        let mut complete = true;
        for family in &FAMILIES {
            complete &= family.is_complete(&root.join(family.key()?));
        }
        if !complete {
            check_go(&root).await?;
        }
        // One after the other: a Go build uses all processors by itself.
        let [etcd, kubernetes, kwok, helm] = &FAMILIES;
        Ok(Self {
            etcd: etcd.ensure(&root, progress).await?,
            kubernetes: kubernetes.ensure(&root, progress).await?,
            kwok: kwok.ensure(&root, progress).await?,
            helm: helm.ensure(&root, progress).await?,
        })
    }

    /// The executable of a program.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        match name {
            "etcd" => &self.etcd,
            "kwok" => &self.kwok,
            "helm" => &self.helm,
            _ => &self.kubernetes,
        }
        .join(name)
    }

    /// The Stage documents for kwok.
    pub(crate) fn stages(&self) -> PathBuf {
        self.kwok.join("stages.yaml")
    }
}

/// The pinned version of a program, for example `v1.36.1` for `kube-apiserver`.
#[must_use]
pub fn version_of(program: &str) -> Option<&'static str> {
    FAMILIES.iter().find(|family| family.programs.iter().any(|(name, _)| *name == program))?.version().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_a_version_and_its_own_key() {
        let mut keys: Vec<_> = FAMILIES.iter().map(|family| family.key().unwrap()).collect();
        assert!(keys.iter().any(|key| key.starts_with("kubernetes-v1.")), "{keys:?}");
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), FAMILIES.len());
        assert_eq!(version_of("kubectl"), version_of("kube-apiserver"));
        assert_eq!(version_of("nonsense"), None);
    }

    #[test]
    fn the_key_follows_the_module() {
        let [etcd, ..] = FAMILIES;
        let before = etcd.key().unwrap();
        let changed = Family { go_sum: "changed", ..etcd };
        assert_ne!(before, changed.key().unwrap());
    }

    #[test]
    fn the_link_flags_name_the_version() {
        let [_, kubernetes, ..] = FAMILIES;
        let flags = kubernetes.link_flags().unwrap();
        assert!(flags.contains(&format!("gitVersion={}", kubernetes.version().unwrap())), "{flags}");
        assert!(flags.contains("gitMajor=1 ") && !flags.contains('{'), "{flags}");
    }

    #[test]
    fn a_version_is_that_of_the_requirement_not_of_the_replacement() {
        let text = "replace k8s.io/api => k8s.io/api v0.1.0\nrequire (\n\tk8s.io/api v0.2.0 // indirect\n)\n";
        assert_eq!(required_version(text, "k8s.io/api"), Some("v0.2.0"));
        assert_eq!(required_version("require a/b v1.0.0\n", "a/b"), Some("v1.0.0"));
        assert_eq!(required_version(text, "k8s.io/other"), None);
    }

    #[test]
    fn versions_of_go_are_compared_as_numbers() {
        assert_eq!(go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(go_version("go1.27rc1"), Some((1, 27)));
        assert!(go_version("go1.9").unwrap() < GO);
        assert_eq!(go_version("devel"), None);
    }

    #[test]
    fn the_stages_cover_hosts_and_pods_and_are_separate_documents() {
        assert!(STAGES.iter().any(|stage| stage.contains("node-initialize")));
        assert!(STAGES.iter().any(|stage| stage.contains("pod-delete")));
        let joined = join_documents(&["kind: Stage\n".into(), "\nkind: Stage".into()]);
        assert_eq!(joined, "kind: Stage\n---\nkind: Stage\n");
    }
}
