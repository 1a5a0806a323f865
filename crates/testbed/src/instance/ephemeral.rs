//! Instances that live as long as a test.

use std::ops::Deref;

use anyhow::{Result, bail};

use super::{Instance, up};
use crate::dirs::Dirs;
use crate::lock::Lock;
use crate::options::Options;
use crate::process::Identity;
use crate::progress::{Progress, complain};
use crate::state::State;

/// An instance that is stopped and removed when this is dropped (which blocks for a second or two).
///
/// If the process is killed before that, the next [`Ephemeral::up`] on the machine removes the remains.
///
/// ```no_run
/// # async fn example() -> anyhow::Result<()> {
/// use conme_testbed::{Ephemeral, Options, Progress};
/// let name = Options::unique_name("test")?;
/// let server = Ephemeral::up(Options::databases_only(name), &Progress::silent()).await?;
/// let endpoint = server.databases()?.remove(0);
/// println!("{}:{}", endpoint.host, endpoint.port);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Ephemeral {
    instance: Instance,
    keep: bool,
}

impl Ephemeral {
    /// Starts a new instance.
    ///
    /// # Errors
    /// When there is an instance with that name already, or as for [`Instance::up`].
    pub async fn up(options: Options, progress: &Progress) -> Result<Self> {
        options.check()?;
        let dirs = options.dirs()?;
        let sweeper = dirs.clone();
        tokio::task::spawn_blocking(move || remove_orphans(&sweeper)).await?;
        let instance = Instance { dirs, name: options.name.clone() };
        if instance.layout().state().exists() {
            bail!("there is already an instance \"{}\"", instance.name);
        }
        // Made first, so that it also tidies up when this future fails or is dropped.
        let guard = Self { instance, keep: false };
        up::up(options, Identity::own(), progress).await?;
        Ok(guard)
    }

    /// Gives up the guard: the instance stays, for a look at it after a failed test.
    ///
    /// # Errors
    /// When its state cannot be written.
    pub fn keep(mut self) -> Result<Instance> {
        self.keep = true;
        let mut state = self.instance.state()?;
        state.owner = None;
        state.save(&self.instance.layout().state())?;
        Ok(self.instance.clone())
    }
}

impl Deref for Ephemeral {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.instance
    }
}

impl Drop for Ephemeral {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = self.instance.purge_blocking() {
            complain(&format!("cannot remove the instance \"{}\": {error:#}", self.instance.name));
        }
    }
}

/// Removes the instances whose owner has ended without doing so.
fn remove_orphans(dirs: &Dirs) {
    for instance in Instance::list(dirs).unwrap_or_default() {
        let orphan = State::load(&instance.layout().state())
            .ok()
            .flatten()
            .and_then(|state| state.owner)
            .is_some_and(|owner| !owner.is_alive());
        // Held by somebody: then it is being removed already.
        let free = || matches!(Lock::attempt(&instance.layout().lock()), Ok(Some(_)));
        if orphan && free() {
            // The next one tries again.
            let _ = instance.purge_blocking();
        }
    }
}
