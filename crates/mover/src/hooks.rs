//! Runs the hooks of a cut-over, and takes them back.
//!
//! They come from a file that only root can change; nothing of them comes from the data centre.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::Output;
use crate::core::cutover::{BadHooks, Hook, Hooks, Journal, Phase, Process};
use crate::identity::{IdentityError, write_private};

/// Where hooks are looked for when nothing else is said.
pub const HOOKS: &str = "/etc/conme-mover/hooks.yaml";
/// Becomes the words behind it once it has read a line. Nothing of a hook is ever read by a shell as a command.
const GUARD: [&str; 4] = ["/bin/sh", "-c", r#"read -r go && exec "$@" </dev/null"#, "conme-mover"];
/// Bytes of a file of hooks at most.
const MOST: u64 = 64 << 10;
/// What was ended has to be gone within this time.
const GONE: Duration = Duration::from_secs(10);

/// Why a hook was not run, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Somebody else than root could change it.
    #[error(
        "{0} could be changed by others than root: chown it to root, and chmod go-w it and the directories above"
    )]
    Others(PathBuf),
    /// What would be frozen holds the state directory, too.
    #[error(
        "hook {name:?} freezes the file system that holds {state}, and nothing could be remembered or taken back: keep \
         --state on another one, such as a small volume of its own"
    )]
    Frozen {
        /// The hook.
        name: String,
        /// The state directory.
        state: PathBuf,
    },
    /// The file says nothing that can be done.
    #[error("{path}: {error}")]
    Bad {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: BadHooks,
    },
    /// A command failed.
    #[error("hook {name:?}: {program} {what}")]
    Failed {
        /// The hook.
        name: String,
        /// The program.
        program: String,
        /// What happened.
        what: String,
    },
    /// What was done could not be remembered.
    #[error(transparent)]
    State(#[from] IdentityError),
    /// What is remembered cannot be read.
    #[error(
        "{path} is not what this program writes: {error}; look what it says, undo that by hand, then delete it"
    )]
    Journal {
        /// Which.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// Some hooks were not taken back.
    #[error("not taken back: {}. The source is closed in part: mend it, then `conme-mover reopen`", .0.join("; "))]
    Left(Vec<String>),
}

fn io_error(path: &Path, error: io::Error) -> HookError {
    HookError::Io { path: path.into(), error }
}

/// Reads the hooks of this server, whose agent remembers in `state` what it does.
///
/// # Errors
/// When the file, or a program that it names, could be changed by others than root, or cannot be used; when what is to be
/// frozen holds `state`.
pub fn load(path: &Path, state: &Path) -> Result<Hooks, HookError> {
    let mut file = trusted(path)?;
    let mut text = String::new();
    (&mut file).take(MOST).read_to_string(&mut text).map_err(|error| io_error(path, error))?;
    let hooks = Hooks::parse(&text).map_err(|error| HookError::Bad { path: path.into(), error })?;
    for hook in hooks.iter() {
        for argv in [&hook.run, &hook.undo] {
            if let Some(program) = argv.first() {
                trusted(Path::new(program))?;
            }
        }
    }
    let ours = std::fs::metadata(state).map_err(|error| io_error(state, error))?.dev();
    for hook in hooks.iter().filter(|hook| hook.phase == Phase::Freeze) {
        let mut places = hook.run.iter().skip(1).filter(|word| word.starts_with('/'));
        if places.any(|place| std::fs::metadata(place).is_ok_and(|meta| meta.dev() == ours)) {
            return Err(HookError::Frozen { name: hook.name.clone(), state: state.into() });
        }
    }
    Ok(hooks)
}

/// Opens a file that nobody but root can change or replace.
fn trusted(path: &Path) -> Result<File, HookError> {
    let real = path.canonicalize().map_err(|error| io_error(path, error))?;
    let open =
        File::options().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(&real);
    let file = open.map_err(|error| io_error(&real, error))?;
    let meta = file.metadata().map_err(|error| io_error(&real, error))?;
    if !meta.is_file() || !only_root(&meta) {
        return Err(HookError::Others(real));
    }
    for above in real.ancestors().skip(1) {
        let meta = std::fs::metadata(above).map_err(|error| io_error(above, error))?;
        // In a directory such as /tmp nobody can replace what belongs to root.
        let sticky = meta.uid() == 0 && meta.mode() & 0o1000 != 0;
        if !only_root(&meta) && !sticky {
            return Err(HookError::Others(above.into()));
        }
    }
    Ok(file)
}

fn only_root(meta: &Metadata) -> bool {
    meta.uid() == 0 && meta.mode() & 0o022 == 0
}

/// A cut-over that was begun.
#[derive(Debug)]
pub struct CutOver {
    path: PathBuf,
    journal: Journal,
    output: Output,
}

impl CutOver {
    /// Begins one.
    pub fn new(state: &Path, output: &Output) -> Self {
        Self { path: path(state), journal: Journal::new(Timestamp::now()), output: output.clone() }
    }

    /// The one that this server remembers, if there is any.
    ///
    /// # Errors
    /// When what is remembered cannot be read, or others than root could have written it.
    pub fn load(state: &Path, output: &Output) -> Result<Option<Self>, HookError> {
        let path = path(state);
        if !path.try_exists().map_err(|error| io_error(&path, error))? {
            return Ok(None);
        }
        let mut text = String::new();
        trusted(&path)?.read_to_string(&mut text).map_err(|error| io_error(&path, error))?;
        let journal = serde_json::from_str(&text)
            .map_err(|error| HookError::Journal { path: path.clone(), error: error.to_string() })?;
        Ok(Some(Self { path, journal, output: output.clone() }))
    }

    /// What is remembered.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Runs one hook. Also when it fails it has been begun, and has to be taken back.
    ///
    /// # Errors
    /// When it cannot be remembered, or fails.
    pub async fn run(&mut self, hook: &Hook) -> Result<(), HookError> {
        self.journal.begin(hook);
        self.store()?;
        self.output.hook(&hook.name, "run");
        let place = self.journal.begun.len() - 1;
        self.command(place, &hook.run, hook.timeout).await
    }

    /// Takes back what was begun, last first: all, or only what froze. What cannot be taken back does not keep the
    /// rest from it, and stays remembered.
    ///
    /// # Errors
    /// When something is left.
    pub async fn undo(&mut self, frozen_only: bool) -> Result<(), HookError> {
        let mut left = Vec::new();
        for place in self.journal.to_undo(frozen_only) {
            let begun = self.journal.begun[place].clone();
            if let Some(process) = begun.process {
                end(process).await;
            }
            self.output.hook(&begun.name, "undo");
            let undone = match begun.undo.is_empty() {
                true => Ok(()),
                false => self.command(place, &begun.undo, Duration::from_secs(begun.timeout)).await,
            };
            match undone {
                Ok(()) => {
                    self.journal.begun.remove(place);
                    self.store()?;
                }
                Err(error) => {
                    self.output.warning(&error.to_string());
                    left.push(error.to_string());
                }
            }
        }
        if !left.is_empty() {
            return Err(HookError::Left(left));
        }
        if !frozen_only {
            std::fs::remove_file(&self.path)
                .and_then(|()| crate::disk::sync_parent(&self.path))
                .map_err(|error| io_error(&self.path, error))?;
        }
        Ok(())
    }

    /// The target has everything: the source stays closed.
    ///
    /// # Errors
    /// When that cannot be remembered.
    pub fn commit(&mut self, round: u32) -> Result<(), HookError> {
        self.journal.commit(Timestamp::now(), round);
        self.store()
    }

    fn store(&self) -> Result<(), HookError> {
        let text = serde_json::to_vec_pretty(&self.journal)
            .map_err(|error| HookError::Journal { path: self.path.clone(), error: error.to_string() })?;
        Ok(write_private(&self.path, &text)?)
    }

    async fn command(&mut self, place: usize, argv: &[String], time: Duration) -> Result<(), HookError> {
        let name = self.journal.begun[place].name.clone();
        let failed = |program: &str, what: String| HookError::Failed { name, program: program.into(), what };
        let Some(program) = argv.first() else {
            return Err(failed("", "is no program".into()));
        };
        let spawned = Command::new(GUARD[0])
            .args(&GUARD[1..])
            .args(argv)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(Stdio::piped())
            // Standard output belongs to the events.
            .stdout(Stdio::from(io::stderr()))
            // What a person ends with Ctrl-C is this program, which then takes back what was begun.
            .process_group(0)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return Err(failed(program, format!("cannot be run: {error}"))),
        };
        let process = child.id().and_then(|id| i32::try_from(id).ok()).and_then(process);
        self.journal.begun[place].process = process;
        // It begins once its process is remembered; if this fails, or this program ends now, it never does.
        let begin = child.stdin.take();
        self.store()?;
        if let Some(mut pipe) = begin {
            // Gone already: the wait below says how.
            let _ = pipe.write_all(b"\n").await;
        }
        let ended = timeout(time, child.wait()).await;
        if ended.is_err() {
            if let Some(process) = process {
                end(process).await;
            }
            return Err(failed(program, format!("did not end within {} s, and was ended", time.as_secs())));
        }
        self.journal.begun[place].process = None;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(failed(program, format!("ended with {status}"))),
            Ok(Err(error)) => Err(failed(program, error.to_string())),
            Err(_) => Err(failed(program, "did not end".into())),
        }
    }
}

fn path(state: &Path) -> PathBuf {
    state.join("cut-over.json")
}

/// What runs under this number, if anything does.
fn process(id: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name of the program comes second, in brackets, and may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let began = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some(Process { id, began })
}

/// Ends a process with its group, if it still is the one that was begun.
async fn end(wanted: Process) {
    let until = Instant::now() + GONE;
    while process(wanted.id) == Some(wanted) && Instant::now() < until {
        if let Some(group) = Pid::from_raw(wanted.id) {
            // Gone in between is what was wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_others_could_change_is_not_read() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: a_file_that_others_could_change_is_not_read needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hooks.yaml");
        let text = "hooks: {f: {run: [/bin/true], undo: []}}\ncut-over: {fence: [f]}\n";
        std::fs::write(&path, text).unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&path, 0o644);
        assert_eq!(load(&path, dir.path()).unwrap().iter().count(), 1);
        mode(&path, 0o664);
        assert!(matches!(load(&path, dir.path()), Err(HookError::Others(_))));
        mode(&path, 0o644);
        mode(dir.path(), 0o777);
        assert!(matches!(load(&path, dir.path()), Err(HookError::Others(_))));
        mode(dir.path(), 0o755);
        std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
        assert!(matches!(load(&path, dir.path()), Err(HookError::Others(_))));
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        // A program that is not there is known before anything is stopped.
        std::fs::write(&path, text.replace("/bin/true", "/bin/nothing-of-this-name")).unwrap();
        assert!(matches!(load(&path, dir.path()), Err(HookError::Io { .. })));
    }

    #[test]
    fn what_holds_the_state_directory_is_not_frozen() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: what_holds_the_state_directory_is_not_frozen needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hooks.yaml");
        let freezes = |place: &Path| {
            let hooks = format!(
                "hooks: {{f: {{run: [/bin/true], undo: []}}, s: {{run: [/bin/true, -f, {}], undo: []}}}}\n\
                 cut-over: {{fence: [f], freeze: [s]}}\n",
                place.display()
            );
            std::fs::write(&path, hooks).unwrap();
            load(&path, dir.path())
        };
        assert!(matches!(freezes(dir.path()), Err(HookError::Frozen { name, .. }) if name == "s"));
        assert_eq!(freezes(Path::new("/proc")).unwrap().iter().count(), 2);
    }

    #[test]
    fn this_process_is_found_by_number_and_beginning() {
        let id = i32::try_from(std::process::id()).unwrap();
        let found = process(id).unwrap();
        assert_eq!(process(id), Some(found));
        assert!(found.began > 0);
    }
}
