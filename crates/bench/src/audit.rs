//! The API server's own record of every call, read as a stream: at 1000 Comuni it has hundreds of megabytes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use conme_stories::{Entry, OPERATOR_USER};
use jiff::Timestamp;
use serde::Serialize;

/// The record from a place on.
#[derive(Clone, Debug)]
pub struct Record {
    path: PathBuf,
    from: u64,
}

impl Record {
    /// From its present end on.
    ///
    /// # Errors
    /// When there is no record.
    pub fn from_now(path: &Path) -> Result<Self> {
        let from = std::fs::metadata(path).context("no audit log")?.len();
        Ok(Self { path: path.to_owned(), from })
    }

    /// Hands every call to `each`.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn each(&self, mut each: impl FnMut(&Entry)) -> Result<()> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut line = String::new();
        loop {
            line.clear();
            // The last line may still be being written.
            if reader.read_line(&mut line)? == 0 || !line.ends_with('\n') {
                return Ok(());
            }
            let entry: Entry = serde_json::from_str(&line).context("a line of the audit log")?;
            each(&entry);
        }
    }

    /// What the operator has asked for.
    ///
    /// # Errors
    /// As [`Record::each`].
    pub fn of_operator(&self) -> Result<Calls> {
        let mut calls = Calls::default();
        self.each(|entry| {
            if entry.user() == OPERATOR_USER {
                calls.count(entry);
            }
        })?;
        Ok(calls)
    }
}

/// Calls of one client.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Calls {
    /// Writes of objects, by resource and verb: neither status nor events nor leases.
    pub objects: BTreeMap<String, usize>,
    /// Writes of status, by resource.
    pub status: BTreeMap<String, usize>,
    /// Writes of events.
    pub events: usize,
    /// Calls about the lease.
    pub leases: usize,
    /// Gets and lists, by verb and resource; each page of a list counts.
    pub reads: BTreeMap<String, usize>,
    /// Lists by resource; pages of one list count once.
    pub lists: BTreeMap<String, usize>,
    /// Watches that were begun, or renewed.
    pub watches: usize,
    /// Writes that were refused, by resource and code.
    pub refused: BTreeMap<String, usize>,
    /// Objects that were made.
    pub created: usize,
    /// When the last write of an object was answered.
    #[serde(skip)]
    pub last_object: Option<Timestamp>,
}

impl Calls {
    /// Takes one call into account.
    pub fn count(&mut self, entry: &Entry) {
        let resource = entry.resource();
        if resource == "leases" {
            self.leases += 1;
            return;
        }
        let verb = entry.verb.as_str();
        let lists_by_watch = verb == "watch" && entry.uri.contains("sendInitialEvents=true");
        if (verb == "list" && !entry.uri.contains("continue=")) || lists_by_watch {
            *self.lists.entry(resource.clone()).or_default() += 1;
        }
        match verb {
            "watch" => self.watches += 1,
            "get" | "list" => *self.reads.entry(format!("{verb} {resource}")).or_default() += 1,
            _ if entry.code() >= 400 => {
                *self.refused.entry(format!("{verb} {resource} {}", entry.code())).or_default() += 1;
            }
            _ if resource == "events" => self.events += 1,
            _ if resource.ends_with("/status") => *self.status.entry(resource).or_default() += 1,
            _ => {
                *self.objects.entry(format!("{verb} {resource}")).or_default() += 1;
                self.created += usize::from(verb == "create");
                self.last_object = self.last_object.max(Some(entry.answered()));
            }
        }
    }

    /// Writes of objects, refused ones included: they cost as much.
    pub fn object_writes(&self) -> usize {
        self.objects.values().chain(self.refused.values()).sum()
    }

    /// Writes of the status of Comuni.
    pub fn comune_status(&self) -> usize {
        self.status.get("comuni/status").copied().unwrap_or(0)
    }

    /// All writes, the lease aside.
    pub fn writes(&self) -> usize {
        self.object_writes() + self.status.values().sum::<usize>() + self.events
    }

    /// All gets and lists, the lease aside.
    pub fn all_reads(&self) -> usize {
        self.reads.values().sum()
    }
}
