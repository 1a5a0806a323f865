//! What happens, told to a person or to a program.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::core::evidence::{Damage, Place, Subject, TargetStatement};
use crate::core::frame::RoundKind;
use crate::core::free::Skipped;
use crate::core::hash::Digest;
use crate::core::journal::Record;
use crate::core::speed::Speed;
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
    began: Instant,
    /// When and of what progress was told last.
    told: Arc<Mutex<Told>>,
    last: Arc<Mutex<Value>>,
    /// On a terminal: the one line that moves.
    bar: Option<ProgressBar>,
}

#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    of: (u32, Option<Stage>),
    speed: Speed,
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// The source is read and sent.
    Sending,
    /// What comes is written.
    Receiving,
    /// A tree is put in its place.
    Placing,
    /// The target is read back from its disk.
    ReadingBack,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Self::Sending => "sent",
            Self::Receiving => "received",
            Self::Placing => "put in place",
            Self::ReadingBack => "read back",
        }
    }
}

/// How far something is.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// The round; 0 outside of any.
    pub round: u32,
    /// What the round is for.
    pub purpose: Option<RoundKind>,
    /// What is under way.
    pub stage: Stage,
    /// How much is done, and of how much if that is known.
    pub done: u64,
    /// All there is to do.
    pub total: Option<u64>,
    /// Bytes of one of these; none for entries of a tree.
    pub unit: Option<u64>,
    /// Bytes on the line in this session.
    pub wire: u64,
    /// Bytes that had not to be sent in this session, where that is known.
    pub saved: Option<u64>,
}

impl Output {
    /// In this form.
    pub fn new(form: Form) -> Self {
        let bar = (form == Form::Plain && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(false));
            bar
        });
        Self { form, began: Instant::now(), told: Arc::default(), last: Arc::default(), bar }
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
        let is_end =
            matches!(event, "round" | "waiting" | "error" | "verified" | "pause" | "cutOver" | "reopened");
        if let Some(bar) = self.bar.as_ref().filter(|_| is_end) {
            bar.finish_and_clear();
        }
        // Nobody may be listening any more: that is no reason to stop a transfer.
        let _ = match (self.form, &self.bar) {
            (Form::Plain, Some(bar)) if event == "progress" => {
                bar.set_message(text.to_owned());
                Ok(())
            }
            // Lines stay above the one that moves.
            (Form::Plain, Some(bar)) => bar.suspend(|| writeln!(std::io::stderr().lock(), "{text}")),
            (Form::Plain, None) => writeln!(std::io::stderr().lock(), "{text}"),
            (Form::Json, _) => writeln!(std::io::stdout().lock(), "{fields}"),
        };
    }

    /// How far something is; now and then. `more` are fields for programs.
    pub fn pass(&self, pass: &Pass, more: Value) {
        let every = match (self.form, &self.bar) {
            (_, Some(_)) => Duration::from_millis(100),
            (Form::Plain, None) => Duration::from_secs(5),
            (Form::Json, _) => Duration::from_millis(250),
        };
        let (rate, left) = {
            let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let of = (pass.round, Some(pass.stage));
            if told.of != of {
                *told = Told { at: told.at, of, speed: Speed::default() };
            }
            told.speed.note(self.began.elapsed(), pass.done, pass.wire);
            if told.at.is_some_and(|at| at.elapsed() < every) {
                return;
            }
            told.at = Some(Instant::now());
            (told.speed.rate(), pass.total.and_then(|total| told.speed.left(total)))
        };
        let rate = rate.filter(|_| pass.stage == Stage::Sending);
        let text = words(pass, rate, left, self.bar.is_some());
        if let Some(bar) = &self.bar {
            if bar.is_finished() {
                bar.reset();
            }
            bar.set_style(style(pass.total.is_some()));
            bar.set_length(pass.total.unwrap_or_default());
            bar.set_position(pass.done);
        }
        let mut fields = json!({
            "round": pass.round, "purpose": pass.purpose, "stage": pass.stage, "done": pass.done,
            "total": pass.total, "rate": rate, "secondsLeft": left.map(|left| left.as_secs()), "saved": pass.saved,
        });
        if let (Some(fields), Value::Object(more)) = (fields.as_object_mut(), more) {
            fields.extend(more);
        }
        self.tell("progress", fields, &text);
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

    /// How far an agent's round is; now and then.
    pub fn progress(&self, progress: &Progress, purpose: RoundKind) {
        let Progress { round, units, tally, tree, reading, settling } = progress;
        if *round == 0 {
            return;
        }
        let unit = crate::core::geometry::UNIT.into();
        let (wire, saved, (done, total)) = match tree {
            Some(tree) => {
                let saved = tree.read.saturating_sub(tree.wire);
                (tree.wire, saved, (tree.entries, None))
            }
            None => {
                let read = tally.units_done.saturating_sub(tally.units_before).saturating_mul(unit);
                (tally.wire, read.saturating_sub(tally.wire), (tally.units_done, Some(*units)))
            }
        };
        let (stage, done, total) = match (settling, reading) {
            (_, Some((done, total))) => (Stage::ReadingBack, *done, Some(*total)),
            (Some((done, total)), None) => (Stage::Placing, *done, Some(*total)),
            (None, None) => (Stage::Sending, done, total),
        };
        let pass = Pass {
            round: *round,
            purpose: Some(purpose),
            stage,
            done,
            total,
            unit: tree.is_none().then_some(unit),
            wire,
            saved: Some(saved),
        };
        let more = match tree {
            Some(tree) => json!({ "tally": tree, "reading": reading }),
            None => json!({ "units": units, "tally": tally, "reading": reading }),
        };
        self.pass(&pass, more);
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
            "round {} is over: both ends agree{}{}",
            round.round,
            root.as_ref().map(|root| format!(" on {root}")).unwrap_or_default(),
            match round.tally.damaged {
                0 => String::new(),
                count => format!("; {count} units did not arrive as they were sent and went again"),
            }
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

    /// Units arrived damaged. They are coming again without anybody's doing.
    pub fn arrived_damaged(&self, units: &[u64]) {
        let text = format!(
            "{} units did not arrive as the agent had sent them, the first of them {:?}: nothing of them \
             was written, and the agent sends them again",
            units.len(),
            &units[..units.len().min(10)]
        );
        self.tell("warning", json!({ "text": text, "arrivedDamaged": units }), &format!("warning: {text}"));
    }

    /// A round has ended with a difference. The agent sends what is missing without anybody's doing.
    pub fn differs(&self, round: u32, found: Option<&Verified>) {
        let (damaged, named) = found.map_or((0, &[][..]), |found| (found.damaged, &found.named[..]));
        let text = match damaged {
            0 => format!("round {round}: both ends differ: what differs is sent again"),
            _ => format!(
                "round {round}: {damaged} units are not what was written to the target, the first of them \
                 {:?}: they are sent again",
                &named[..named.len().min(10)]
            ),
        };
        let fields = json!({ "text": text, "round": round, "damaged": named });
        self.tell("warning", fields, &format!("warning: {text}"));
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
            "{} moved to {}: {} bytes, round {}, root {}{}, signed by both ends at {}{}",
            subject.source,
            subject.target,
            subject.geometry.len(),
            subject.round,
            subject.root,
            subject.sha256.map(|sha256| format!(", SHA-256 {sha256}")).unwrap_or_default(),
            target.ended,
            target.damage.iter().map(suffered).collect::<String>()
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

/// What evidence says of one damage.
fn suffered(damage: &Damage) -> String {
    let place = match damage.place {
        Place::Target => "were not what had been written to the target's disk",
        Place::Arrival => "did not arrive as they were sent, and nothing of that was written",
    };
    let repaired = match damage.repaired_in {
        Some(round) => format!("repaired in round {round}"),
        None => "not repaired yet: let the agent go through a round with `--prove`".to_owned(),
    };
    let units = &damage.units[..damage.units.len().min(10)];
    format!("; {} units {place} (found at {}, first {units:?}): {repaired}", damage.count, damage.found)
}

/// The line that moves on a terminal.
fn style(measured: bool) -> ProgressStyle {
    let template = if measured { "[{bar:24}] {percent:>3} %  {wide_msg}" } else { "{spinner} {wide_msg}" };
    ProgressStyle::with_template(template)
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

/// How far something is, in words; on a terminal its bar says already how much of all that is.
fn words(pass: &Pass, rate: Option<u64>, left: Option<Duration>, bar: bool) -> String {
    let mut text = match (pass.round, pass.purpose) {
        (0, _) => String::new(),
        (round, Some(RoundKind::Proof)) => format!("round {round}, proof: "),
        (round, _) => format!("round {round}: "),
    };
    let amount = |count: u64| match pass.unit {
        Some(unit) => size(count.saturating_mul(unit)),
        None => count.to_string(),
    };
    let entries = if pass.unit.is_none() { " entries" } else { "" };
    let reached = if pass.stage == Stage::Sending { "read" } else { pass.stage.word() };
    text += &match pass.total {
        Some(total) if bar => format!("{} of {}{entries} {reached}", amount(pass.done), amount(total)),
        Some(total) => {
            let percent = pass.done.saturating_mul(100).checked_div(total).unwrap_or(100);
            format!("{} of {}{entries} {reached} ({percent} %)", amount(pass.done), amount(total))
        }
        None => format!("{}{entries} {reached}", amount(pass.done)),
    };
    if pass.stage == Stage::Sending {
        text += &format!(", {} sent", size(pass.wire));
    }
    if let Some(saved) = pass.saved.filter(|_| pass.stage == Stage::Sending) {
        text += &format!(", {} saved", size(saved));
    }
    if let Some(rate) = rate {
        text += &format!(", {}/s", size(rate));
    }
    if let Some(left) = left.filter(|left| !left.is_zero()) {
        text += &format!(", {} left", span(left));
    }
    text
}

/// Bytes, as people read them.
fn size(bytes: u64) -> String {
    const NAMES: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut names) = (bytes as f64 / 1024.0, NAMES.iter());
    let mut name = names.next();
    while value >= 1000.0
        && let Some(next) = names.next()
    {
        value /= 1024.0;
        name = Some(next);
    }
    let name = name.unwrap_or(&"");
    if value < 10.0 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
}

/// A time, as people read it.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds.div_ceil(60)),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_how_far_how_fast_how_long_and_what_was_saved() {
        let pass = Pass {
            round: 2,
            purpose: Some(RoundKind::Copy),
            stage: Stage::Sending,
            done: 512,
            total: Some(2048),
            unit: Some(1 << 20),
            wire: 5 << 20,
            saved: Some(507 << 20),
        };
        let (rate, left) = (Some(1_500_000), Some(Duration::from_secs(95)));
        assert_eq!(
            words(&pass, rate, left, false),
            "round 2: 512 MiB of 2.0 GiB read (25 %), 5.0 MiB sent, 507 MiB saved, 1.4 MiB/s, 2 min left"
        );
        let pass = Pass { stage: Stage::ReadingBack, purpose: Some(RoundKind::Proof), unit: None, ..pass };
        assert_eq!(words(&pass, None, None, true), "round 2, proof: 512 of 2048 entries read back");
        let pass = Pass { total: None, round: 0, done: 0, ..pass };
        assert_eq!(words(&pass, None, None, false), "0 entries read back");
    }

    #[test]
    fn sizes_and_times_are_rounded_for_people() {
        let sizes = [
            (0, "0.0 KiB"),
            (999_000, "976 KiB"),
            (1 << 20, "1.0 MiB"),
            (64 << 30, "64 GiB"),
            (u64::MAX, "16384 PiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [(59, "59 s"), (61, "2 min"), (3_660, "1 h 1 min"), (600_000, "6 days")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
