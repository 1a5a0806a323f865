//! What happens, told to a person or to a program.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::core::evidence::{Subject, TargetStatement};
use crate::core::frame::RoundKind;
use crate::core::free::Skipped;
use crate::core::hash::Digest;
use crate::core::journal::Record;
use crate::core::tree;
use crate::core::tree::evidence::{TreeSubject, TreeTarget};
use crate::core::verify::Verified;
use crate::net::agent::{Progress, Round};

/// How it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Lines for people, on standard error.
    Plain,
    /// One JSON object a line, on standard output.
    Json,
}

/// Tells what happens.
#[derive(Debug, Clone)]
pub struct Output {
    form: Form,
    told: Arc<Mutex<Option<Instant>>>,
    last: Arc<Mutex<Value>>,
}

impl Output {
    /// In this form.
    pub fn new(form: Form) -> Self {
        Self { form, told: Arc::default(), last: Arc::default() }
    }

    /// What was told last, as an event with its words.
    pub fn last(&self) -> Value {
        self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn tell(&self, event: &str, mut fields: Value, text: &str) {
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("event".into(), event.into());
            fields.insert("time".into(), jiff::Timestamp::now().to_string().into());
        }
        let last = json!({ "event": fields, "words": text });
        *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = last;
        // Nobody may be listening any more: that is no reason to stop a transfer.
        let _ = match self.form {
            Form::Plain => writeln!(std::io::stderr().lock(), "{text}"),
            Form::Json => writeln!(std::io::stdout().lock(), "{fields}"),
        };
    }

    /// A program is ready to be called.
    pub fn listening(&self, address: SocketAddr) {
        self.tell("listening", json!({ "address": address }), &format!("listening on {address}"));
    }

    /// A hook is run, or taken back.
    pub fn hook(&self, name: &str, what: &str) {
        self.tell("hook", json!({ "hook": name, "what": what }), &format!("hook {name}: {what}"));
    }

    /// The next round waits.
    pub fn next_round(&self, at: jiff::Timestamp, churn: Option<u64>) {
        let changes = churn.map_or(String::new(), |churn| {
            format!("; at the pace of the last one, a day's changes cost {} MiB", churn >> 20)
        });
        let text = format!("the next round begins at {at}, or with `conme-mover round`{changes}");
        self.tell("pause", json!({ "until": at, "changedEachDay": churn }), &text);
    }

    /// The cut-over is done.
    pub fn cut_over(&self, round: u32, state: &Path) {
        let text = format!(
            "cut over: the target has everything as of round {round}, and this server stays closed. The target may \
             be opened now. To go back: conme-mover reopen --state {}",
            state.display()
        );
        self.tell("cutOver", json!({ "round": round }), &text);
    }

    /// The source works again.
    pub fn reopened(&self) {
        self.tell("reopened", json!({}), "everything that was begun is taken back: this server works again");
    }

    /// Something worth knowing.
    pub fn note(&self, text: &str) {
        self.tell("note", json!({ "text": text }), text);
    }

    /// Something that somebody should look at.
    pub fn warning(&self, text: &str) {
        self.tell("warning", json!({ "text": text }), &format!("warning: {text}"));
    }

    /// Why the program ends.
    pub fn error(&self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        self.tell("error", json!({ "text": text }), &format!("error: {text}"));
    }

    /// An agent has come.
    pub fn session(&self, source: &str, record: &Record, units: u64, read_back: u64) {
        let Record { round, complete, watermark, .. } = record;
        let text = match (round, complete) {
            (0, _) => format!("{source} begins"),
            (_, true) => format!("{source} is back after round {round}"),
            (_, false) => format!("{source} goes on with round {round} at unit {watermark} of {units}"),
        };
        let fields = json!({
            "source": source, "round": round, "complete": complete, "watermark": watermark, "units": units,
            "readBack": read_back,
        });
        self.tell("session", fields, &text);
    }

    /// An agent has come with a tree.
    pub fn tree_session(&self, source: &str, record: &tree::record::Record) {
        let tree::record::Record { round, complete, .. } = record;
        let text = match (round, complete) {
            (0, _) => format!("{source} begins"),
            (_, true) => format!("{source} is back after round {round}"),
            (_, false) => format!("{source} goes on with round {round}"),
        };
        self.tell("session", json!({ "source": source, "round": round, "complete": complete }), &text);
    }

    /// What reading a tree back has found.
    pub fn tree_verified(&self, found: &tree::receiver::Verified) {
        for difference in &found.named {
            self.warning(&format!("{}: {}", difference.path, difference.what));
        }
        let named: Vec<_> = found.named.iter().map(|difference| difference.path.to_string()).collect();
        let text = match found.damaged {
            0 => "every entry is what was written".to_owned(),
            count => format!("{count} entries are not what was written: the agent's next round repairs them"),
        };
        let sha256 = Digest(found.sha256).to_string();
        self.tell("verified", json!({ "damaged": found.damaged, "paths": named, "sha256": sha256 }), &text);
    }

    /// What the evidence of a tree says.
    pub fn tree_evidence(&self, subject: &TreeSubject, target: &TreeTarget) {
        let text = format!(
            "{} moved to {}: a directory, round {}, root {}{}, signed by both ends at {}",
            subject.source,
            subject.target,
            subject.round,
            subject.tree,
            subject.sha256.map(|sha256| format!(", SHA-256 {sha256}")).unwrap_or_default(),
            target.ended
        );
        self.tell("evidence", json!({ "subject": subject, "target": target }), &text);
    }

    /// How far a round is; now and then.
    pub fn progress(&self, progress: &Progress) {
        let every = match self.form {
            Form::Plain => Duration::from_secs(5),
            Form::Json => Duration::from_millis(250),
        };
        {
            let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if told.is_some_and(|told| told.elapsed() < every) || progress.round == 0 {
                return;
            }
            *told = Some(Instant::now());
        }
        let Progress { round, units, tally, tree, reading } = progress;
        if let Some(tally) = tree {
            let text = match reading {
                Some((done, total)) => format!("round {round}: the target is at entry {done} of {total}"),
                None => format!(
                    "round {round}: {} entries, {} MiB read, {} MiB sent for {} MiB of content",
                    tally.entries,
                    tally.read >> 20,
                    tally.wire >> 20,
                    tally.content >> 20
                ),
            };
            return self.tell(
                "progress",
                json!({ "round": round, "tally": tally, "reading": reading }),
                &text,
            );
        }
        let text = match reading {
            Some((done, total)) => format!("round {round}: the target reads back unit {done} of {total}"),
            None => format!(
                "round {round}: unit {} of {units}, {} MiB sent for {} MiB of content",
                tally.units_done,
                tally.wire >> 20,
                tally.content >> 20
            ),
        };
        let fields = json!({ "round": round, "units": units, "tally": tally, "reading": reading });
        self.tell("progress", fields, &text);
    }

    /// A session was cut; the next one comes.
    pub fn waiting(&self, why: &str, pause: Duration) {
        let text = format!("{why}; trying again in {:.1} s", pause.as_secs_f64());
        self.tell("waiting", json!({ "why": why, "seconds": pause.as_secs_f64() }), &text);
    }

    /// The agent's round is over.
    pub fn round_over(&self, kind: RoundKind, round: &Round) {
        let root = round.result.as_ref().and_then(|result| result.root).map(|root| root.to_string());
        let text = format!(
            "round {} is over: both ends agree{}",
            round.round,
            root.as_ref().map(|root| format!(" on {root}")).unwrap_or_default()
        );
        let mut fields = json!({
            "round": round.round, "purpose": kind, "root": root, "tally": round.tally, "sessions": round.sessions,
        });
        if let Some(tree) = &round.tree {
            for (path, trouble) in &tree.troubles {
                self.warning(&format!("{path} {trouble}"));
            }
            fields["tally"] = json!(tree.tally);
        }
        self.tell("round", fields, &text);
    }

    /// The receiver's round is over.
    pub fn agreed(&self, round: u32, kind: RoundKind, root: &Digest, evidence: &Path) {
        let fields = json!({ "round": round, "purpose": kind, "root": root, "evidence": evidence });
        let text = format!(
            "round {round} is over: both ends agree on {root}; the evidence is in {}",
            evidence.display()
        );
        self.tell("round", fields, &text);
    }

    /// What a reading of the target has found.
    pub fn verified(&self, found: &Verified, around: &str) {
        let sha256 = Digest(found.sha256).to_string();
        let fields = json!({
            "damaged": found.damaged, "units": found.named, "root": found.root, "sha256": sha256, "readBack": around,
        });
        let text = if found.damaged > 0 {
            format!(
                "{} units are not what was written, the first of them {:?}: the agent's next round repairs them",
                found.damaged,
                &found.named[..found.named.len().min(10)]
            )
        } else {
            format!("every unit received is what was written; SHA-256 {sha256}")
        };
        self.tell("verified", fields, &text);
    }

    /// What evidence says.
    pub fn evidence(&self, subject: &Subject, target: &TargetStatement) {
        let text = format!(
            "{} moved to {}: {} bytes, round {}, root {}{}, signed by both ends at {}",
            subject.source,
            subject.target,
            subject.geometry.len(),
            subject.round,
            subject.root,
            subject.sha256.map(|sha256| format!(", SHA-256 {sha256}")).unwrap_or_default(),
            target.ended
        );
        self.tell("evidence", json!({ "subject": subject, "target": target }), &text);
    }

    /// What evidence says about free space.
    pub fn skipped(&self, skipped: &Skipped) {
        let text = format!(
            "{} bytes of it were free space that was not read at the source: they are zeros on the target",
            skipped.bytes
        );
        self.tell("skipped", json!({ "skipped": skipped }), &text);
    }

    /// Whether a target is still what evidence says.
    pub fn still(&self, same: bool, target: &Path, around: &str) {
        let text =
            if same { "is still what both ends signed" } else { "is not (any more) what both ends signed" };
        let fields = json!({ "same": same, "target": target, "readBack": around });
        self.tell("compared", fields, &format!("{} {text}", target.display()));
    }
}
