//! The cut-over of a server: which hooks of its own are run in which order, and how to take them back.
//!
//! What was begun is remembered before it is begun, so whoever comes after a crash knows what may have been done. All
//! that may have been done is taken back, last first, unless the cut-over was committed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Time that a hook has when its file does not say.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Time that a hook may be given.
const LONGEST: Duration = Duration::from_secs(3600);

/// What is done in a cut-over: in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// What works is ended.
    Stop,
    /// Nobody can begin anew, also not after a reboot.
    Fence,
    /// Only while the last round reads; taken back after it in any case.
    Freeze,
}

/// One hook: a command of this server, and the one that takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// When it is run.
    pub phase: Phase,
    /// The program, by its whole path, and its arguments.
    pub run: Vec<String>,
    /// What takes it back, also when it was done only in part; empty when there is nothing to take back.
    pub undo: Vec<String>,
    /// Time that each of the two has.
    pub timeout: Duration,
}

/// The hooks of a server, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks(Vec<Hook>);

/// Why a file of hooks cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadHooks {
    /// It is not such a file.
    #[error("it cannot be read: {0}")]
    Form(String),
    /// A name without a hook.
    #[error("cut-over names {0:?}, but no hook has that name")]
    Unknown(String),
    /// A hook that would be run twice.
    #[error("cut-over names {0:?} twice")]
    Twice(String),
    /// A hook that nobody calls.
    #[error("hook {0:?} is not named by cut-over: name it, or take it out")]
    Unused(String),
    /// No program, or not by its whole path.
    #[error("{what} of hook {name:?} has to begin with the whole path of a program, such as /bin/systemctl")]
    Relative {
        /// The hook.
        name: String,
        /// `run` or `undo`.
        what: &'static str,
    },
    /// The time is none, or too long.
    #[error("timeout of hook {0:?} has to be between 1s and 1h")]
    Timeout(String),
    /// Nothing keeps people out.
    #[error("cut-over has no fence: name a hook that keeps everybody out, also after a reboot")]
    Open,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    hooks: BTreeMap<String, FileHook>,
    cut_over: FileOrder,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHook {
    run: Vec<String>,
    /// Has to be said, if only as `[]`: forgotten is not the same as not needed.
    undo: Vec<String>,
    timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOrder {
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    fence: Vec<String>,
    #[serde(default)]
    freeze: Vec<String>,
}

impl Hooks {
    /// Reads the YAML of a file of hooks.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn parse(text: &str) -> Result<Self, BadHooks> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| BadHooks::Form(error.to_string()))?;
        let FileOrder { stop, fence, freeze } = file.cut_over;
        if fence.is_empty() {
            return Err(BadHooks::Open);
        }
        let mut hooks = Vec::new();
        let mut left: BTreeSet<_> = file.hooks.keys().cloned().collect();
        for (phase, names) in [(Phase::Stop, stop), (Phase::Fence, fence), (Phase::Freeze, freeze)] {
            for name in names {
                let hook = file.hooks.get(&name).ok_or_else(|| BadHooks::Unknown(name.clone()))?;
                if !left.remove(&name) {
                    return Err(BadHooks::Twice(name));
                }
                let whole = |argv: &[String]| argv.first().is_some_and(|program| program.starts_with('/'));
                if !whole(&hook.run) {
                    return Err(BadHooks::Relative { name, what: "run" });
                }
                if !hook.undo.is_empty() && !whole(&hook.undo) {
                    return Err(BadHooks::Relative { name, what: "undo" });
                }
                let timeout = match &hook.timeout {
                    None => TIMEOUT,
                    Some(text) => text
                        .parse::<SignedDuration>()
                        .ok()
                        .and_then(|time| Duration::try_from(time).ok())
                        .filter(|time| (Duration::from_secs(1)..=LONGEST).contains(time))
                        .ok_or_else(|| BadHooks::Timeout(name.clone()))?,
                };
                hooks.push(Hook { name, phase, run: hook.run.clone(), undo: hook.undo.clone(), timeout });
            }
        }
        match left.pop_first() {
            Some(name) => Err(BadHooks::Unused(name)),
            None => Ok(Self(hooks)),
        }
    }

    /// The hooks, in the order in which they are run.
    pub fn iter(&self) -> impl Iterator<Item = &Hook> {
        self.0.iter()
    }
}

impl fmt::Display for Hooks {
    /// What would happen, a line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "copy      what changed since the last round, while people work")?;
        for hook in &self.0 {
            let phase = match hook.phase {
                Phase::Stop => "stop",
                Phase::Fence => "fence",
                Phase::Freeze => "freeze",
            };
            writeln!(f, "{phase:<9} {}: {:?}", hook.name, hook.run)?;
        }
        writeln!(f, "prove     everything is read once more, and the target read back; evidence is written")?;
        for hook in self.0.iter().rev().filter(|hook| hook.phase == Phase::Freeze) {
            writeln!(f, "thaw      {}: {:?}", hook.name, hook.undo)?;
        }
        writeln!(f, "commit    from here on nothing is taken back by itself")?;
        write!(f, "when anything fails before, what was begun is taken back:")?;
        for hook in self.0.iter().rev() {
            match hook.undo.is_empty() {
                true => write!(f, "\nundo      {}: nothing to do", hook.name)?,
                false => write!(f, "\nundo      {}: {:?}", hook.name, hook.undo)?,
            }
        }
        Ok(())
    }
}

/// A process that could still run after a crash: its number, and when it began, in ticks since the machine did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number, which is that of its group, too.
    pub id: i32,
    /// When it began.
    pub began: u64,
}

/// A hook that was begun, and how to take it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: Phase,
    /// What takes it back.
    pub undo: Vec<String>,
    /// Seconds that this has.
    pub timeout: u64,
    /// What may still run of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// What is remembered of a cut-over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// When it began.
    pub began: Timestamp,
    /// When it was committed: the target has everything, and the source stays closed.
    pub committed: Option<Timestamp>,
    /// The round that proved it.
    pub round: Option<u32>,
    /// What was begun and not taken back, in the order in which it was begun.
    pub begun: Vec<Begun>,
}

impl Journal {
    /// Of a cut-over that begins.
    pub fn new(began: Timestamp) -> Self {
        Self { began, committed: None, round: None, begun: Vec::new() }
    }

    /// A hook is about to be run.
    pub fn begin(&mut self, hook: &Hook) {
        self.begun.push(Begun {
            name: hook.name.clone(),
            phase: hook.phase,
            undo: hook.undo.clone(),
            timeout: hook.timeout.as_secs(),
            process: None,
        });
    }

    /// The places of what is to be taken back, last first: everything, or only what froze.
    pub fn to_undo(&self, frozen_only: bool) -> Vec<usize> {
        let wanted = |begun: &Begun| !frozen_only || begun.phase == Phase::Freeze;
        let places = self.begun.iter().enumerate().filter(|(_, begun)| wanted(begun));
        places.map(|(place, _)| place).rev().collect()
    }

    /// It is done: from now on nothing is taken back but by a person's word.
    pub fn commit(&mut self, now: Timestamp, round: u32) {
        self.committed = Some(now);
        self.round = Some(round);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
hooks:
  lock: {run: [/usr/sbin/usermod, -L, app], undo: [/usr/sbin/usermod, -U, app]}
  stop: {run: [/bin/systemctl, disable, --now, app], undo: [/bin/systemctl, enable, --now, app], timeout: 5m}
  still: {run: [/sbin/fsfreeze, -f, /srv], undo: [/sbin/fsfreeze, -u, /srv]}
cut-over: {stop: [stop], fence: [lock], freeze: [still]}
";

    #[test]
    fn hooks_are_run_in_the_order_of_their_phases_and_taken_back_from_the_last() {
        let hooks = Hooks::parse(FILE).unwrap();
        let names: Vec<_> = hooks.iter().map(|hook| hook.name.as_str()).collect();
        assert_eq!(names, ["stop", "lock", "still"]);
        assert_eq!(hooks.iter().next().unwrap().timeout, Duration::from_secs(300));
        let mut journal = Journal::new(Timestamp::UNIX_EPOCH);
        hooks.iter().for_each(|hook| journal.begin(hook));
        assert_eq!(journal.to_undo(false), [2, 1, 0]);
        assert_eq!(journal.to_undo(true), [2]);
        let plan = hooks.to_string();
        assert!(plan.find("usermod").unwrap() < plan.find("fsfreeze").unwrap(), "{plan}");
    }

    #[test]
    fn a_file_that_could_surprise_somebody_is_not_used() {
        let of = |from: &str, to: &str| Hooks::parse(&FILE.replace(from, to)).unwrap_err();
        assert_eq!(of("fence: [lock]", "fence: []"), BadHooks::Open);
        assert_eq!(of("fence: [lock]", "fence: [lokc]"), BadHooks::Unknown("lokc".into()));
        assert_eq!(of("stop: [stop]", "stop: [stop, lock]"), BadHooks::Twice("lock".into()));
        assert_eq!(of(", freeze: [still]", ""), BadHooks::Unused("still".into()));
        assert_eq!(
            of("run: [/sbin/fsfreeze", "run: [fsfreeze"),
            BadHooks::Relative { name: "still".into(), what: "run" }
        );
        assert_eq!(
            of("undo: [/sbin/fsfreeze", "undo: [fsfreeze"),
            BadHooks::Relative { name: "still".into(), what: "undo" }
        );
        assert_eq!(of("timeout: 5m", "timeout: 5d"), BadHooks::Timeout("stop".into()));
        // An undo that was forgotten, and a word that nobody knows.
        assert!(matches!(of(", undo: [/sbin/fsfreeze, -u, /srv]", ""), BadHooks::Form(_)));
        assert!(matches!(of("timeout:", "timeuot:"), BadHooks::Form(_)));
    }
}
