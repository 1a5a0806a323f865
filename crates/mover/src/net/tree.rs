//! A directory in place of a disk, at either end: what differs from [`super::agent`] and [`super::receive`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::agent::{AgentError, Progress, Round, Settings, TreeRound, Work};
use super::receive::{Engine, Event, Gone, WINDOW, load, pem};
use crate::cli::{Pass, SOFTWARE, Stage};
use crate::core::evidence::{Evidence, Signed, VERSION};
use crate::core::frame::{self, Frame as _, RoundEnd, RoundKind};
use crate::core::hash::{Digest, transfer_name};
use crate::core::tree::evidence::{
    TreeSource as SourceStatement, TreeSubject, TreeTarget as TargetStatement,
};
use crate::core::tree::frame::{ToReceiver, ToSender};
use crate::core::tree::lists::Budget;
use crate::core::tree::ports::Fault;
use crate::core::tree::receiver::{Ending, Receiver};
use crate::core::tree::record::Record;
use crate::core::tree::sender::{Conclusion, Order, Sender, Step};
use crate::identity::{Identity, make_private_dir, sign, signer, write_private};
use crate::tree::store::DirShelf;
use crate::tree::{SourceSettings, TargetSettings, TreeSource, TreeTarget};

/// What a receiver of a tree is told besides.
#[derive(Debug, Clone)]
pub struct Take {
    /// How it is written.
    pub settings: TargetSettings,
    /// What it may become at most.
    pub budget: Budget,
}

/// What the receiver of a tree knows of its transfer, from the first session on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeTransfer {
    /// Its name.
    pub id: [u8; 16],
    /// The server that it comes from: nobody else may send.
    pub source: String,
    /// When it began.
    pub began: Timestamp,
    /// Where it was written to at first; told to people.
    pub path: PathBuf,
    /// Whether the target has been made ready; before that, nothing is in it.
    pub ready: bool,
    /// How it is written: a later look has to know, too.
    pub settings: TargetSettings,
}

impl TreeTransfer {
    /// The transfer of a state directory, if one has begun.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn load(state: &Path) -> anyhow::Result<Option<Self>> {
        load(&state.join("tree.json"))
    }

    fn save(&self, state: &Path) -> anyhow::Result<()> {
        Ok(write_private(&state.join("tree.json"), &serde_json::to_vec_pretty(self)?)?)
    }
}

/// The lists in a state directory.
///
/// # Errors
/// Of the disk.
pub fn shelf(state: &Path) -> Result<DirShelf, crate::identity::IdentityError> {
    let dir = state.join("lists");
    make_private_dir(&dir)?;
    Ok(DirShelf::new(&dir))
}

/// The agent's thread of a session. `None` when the connection is gone.
pub(super) fn drive(
    settings: &Settings,
    tree: &SourceSettings,
    identity: &Identity,
    work: &Work,
    frames: &mpsc::Sender<Vec<u8>>,
    mut answers: mpsc::Receiver<ToSender>,
) -> Result<Option<Round>, AgentError> {
    let source = TreeSource::open(&settings.source, tree.clone())
        .map_err(|error| AgentError::State { path: settings.source.clone(), error })?;
    let order = Order {
        kind: work.kind,
        begun: work.begun,
        software: SOFTWARE.into(),
        level: settings.level.or_usual(),
    };
    let mut sender = Sender::new(order, source, shelf(&settings.state)?);
    let mut progress = Progress::default();
    let hear = |sender: &mut Sender<_, _>, progress: &mut Progress, frame: ToSender| {
        match &frame {
            ToSender::Settling { done, total } => progress.settling = Some((*done, *total)),
            ToSender::Common(frame::ToSender::Reading { done, total }) => {
                progress.reading = Some((*done, *total));
            }
            _ => {}
        }
        sender.receive(frame)
    };
    loop {
        while let Ok(frame) = answers.try_recv() {
            hear(&mut sender, &mut progress, frame)?;
        }
        let step = sender.step()?;
        progress.round = sender.round();
        progress.tree = Some(sender.tally());
        work.progress.send_replace(progress);
        let sent = match step {
            Step::Send(frame) => frames.blocking_send(frame.encode()).is_ok(),
            Step::Wait => match answers.blocking_recv() {
                Some(frame) => {
                    hear(&mut sender, &mut progress, frame)?;
                    true
                }
                None => return Ok(None),
            },
            Step::Conclude(conclusion) => {
                let end = signed(identity, work, &sender, &conclusion)?;
                frames.blocking_send(frame::ToReceiver::RoundEnd(end).encode()).is_ok()
            }
            Step::Over { round, result } => {
                // Whether the farewell is heard changes nothing.
                let _ = frames.blocking_send(frame::ToReceiver::Bye.encode());
                let tree = Some(TreeRound { tally: sender.tally(), troubles: sender.troubles().to_vec() });
                return Ok(Some(Round { round, result, tree, sessions: 1, ..Round::default() }));
            }
        };
        if !sent {
            // The connection is gone; perhaps the receiver has said why.
            while let Some(frame) = answers.blocking_recv() {
                hear(&mut sender, &mut progress, frame)?;
            }
            return Ok(None);
        }
    }
}

fn signed(
    identity: &Identity,
    work: &Work,
    sender: &Sender<TreeSource, DirShelf>,
    conclusion: &Conclusion,
) -> Result<RoundEnd, AgentError> {
    let statement = SourceStatement {
        subject: TreeSubject {
            transfer: transfer_name(&conclusion.transfer),
            source: identity.about.source.clone().unwrap_or_default(),
            target: identity.about.target.clone(),
            round: conclusion.round,
            purpose: conclusion.kind,
            tree: conclusion.root,
            sha256: conclusion.sha256.map(Digest),
        },
        began: work.began,
        ended: Timestamp::now(),
        software: SOFTWARE.into(),
        tally: sender.tally(),
    };
    let statement = serde_json::to_vec(&statement).map_err(|error| AgentError::Defect(error.to_string()))?;
    let signature = sign(identity, &statement)?;
    let Conclusion { round, root, sha256, .. } = *conclusion;
    Ok(RoundEnd { round, root, sha256, statement, signature })
}

type Here = Receiver<TreeTarget, DirShelf>;

/// The receiver's thread of a session.
pub(super) fn receive(
    engine: &Engine<'_>,
    take: &Take,
    mut events: mpsc::Receiver<Event<ToReceiver>>,
) -> anyhow::Result<()> {
    let place = engine.place;
    let (transfer, target) = open(engine, take)?;
    let shelf = shelf(&place.settings.state)?;
    let mut receiver = Receiver::open(target, shelf, transfer.id, WINDOW, take.budget)?;
    let record = receiver.record().clone();
    place.output.tree_session(&engine.source, &record);
    let say = |frame: &ToSender| engine.say_bytes(frame.encode());
    for frame in receiver.welcome(SOFTWARE) {
        if say(&frame).is_err() {
            return Ok(());
        }
    }
    while let Some(event) = events.blocking_recv() {
        let answers = match event {
            Event::Tick => receiver.commit()?.into_iter().collect(),
            Event::Frame(ToReceiver::Common(frame::ToReceiver::Bye)) => {
                let record = receiver.record();
                place.proven.send_replace(record.complete && record.kind == RoundKind::Proof);
                return Ok(());
            }
            Event::Frame(ToReceiver::Common(frame::ToReceiver::RoundEnd(end))) => {
                match end_of_round(engine, &mut receiver, &transfer, &end, say)? {
                    Some(answers) => answers,
                    None => return Ok(()),
                }
            }
            Event::Frame(frame) => receiver.handle(frame)?,
        };
        let record = receiver.record();
        if !record.complete {
            tell(engine, record, Stage::Receiving, record.progress.work.items, None);
        }
        for answer in answers {
            if say(&answer).is_err() {
                return Ok(());
            }
        }
    }
    // What has come so far is kept, though nobody hears of it now.
    receiver.commit()?;
    Ok(())
}

/// How far a round is, in entries, for whoever watches here.
fn tell(engine: &Engine<'_>, record: &Record, stage: Stage, done: u64, total: Option<u64>) {
    if record.round == 0 {
        return;
    }
    let purpose = Some(record.kind);
    let pass = Pass { round: record.round, purpose, stage, done, total, unit: None, wire: 0, saved: None };
    engine.place.output.pass(&pass, serde_json::Value::Null);
}

/// The transfer and its target: begun with the first session, the same ever after.
fn open(engine: &Engine<'_>, take: &Take) -> anyhow::Result<(TreeTransfer, TreeTarget)> {
    let settings = &engine.place.settings;
    let (state, path) = (&settings.state, &settings.target);
    let mut transfer = match TreeTransfer::load(state)? {
        Some(transfer) => transfer,
        None if state.join("transfer.json").exists() => {
            bail!("{} is the state of a disk's transfer: give the tree another --state", state.display())
        }
        None => {
            let mut id = [0; 16];
            getrandom::fill(&mut id)?;
            let (source, began) = (engine.source.clone(), Timestamp::now());
            TreeTransfer {
                id,
                source,
                began,
                path: path.clone(),
                ready: false,
                settings: take.settings.clone(),
            }
        }
    };
    if transfer.source != engine.source {
        bail!(
            "this target receives from {}, not from {}: give each server a target",
            transfer.source,
            engine.source
        );
    }
    if transfer.settings != take.settings {
        bail!("this transfer was begun with other owners or privileges: start the receiver as before");
    }
    let target = TreeTarget::open(path, take.settings.clone(), transfer.ready, settings.overwrite)?;
    if !transfer.ready {
        transfer.ready = true;
        transfer.save(state)?;
    }
    Ok((transfer, target))
}

/// The end of a round; `None` when the agent has gone meanwhile: everything is put in its place all the same.
fn end_of_round(
    engine: &Engine<'_>,
    receiver: &mut Here,
    transfer: &TreeTransfer,
    end: &RoundEnd,
    say: impl Fn(&ToSender) -> Result<(), Gone>,
) -> anyhow::Result<Option<Vec<ToSender>>> {
    let output = &engine.place.output;
    let (source, subject) = vouched(engine, transfer, receiver.record().kind, end)?;
    let mut answers = receiver.handle(ToReceiver::Common(frame::ToReceiver::RoundEnd(end.clone())))?;
    let mut gone = false;
    let result = loop {
        let ending = receiver.end()?;
        match ending {
            Ending::Settling { done, total } => {
                tell(engine, receiver.record(), Stage::Placing, done, Some(total))
            }
            Ending::Reading { done, total } => {
                tell(engine, receiver.record(), Stage::ReadingBack, done, Some(total));
            }
            Ending::Result(_) => {}
        }
        let told = match ending {
            Ending::Settling { done, total } => say(&ToSender::Settling { done, total }),
            // Every entry is a step: the agent need not hear of each.
            Ending::Reading { done, total } if done % 256 == 0 => {
                say(&ToSender::Common(frame::ToSender::Reading { done, total }))
            }
            Ending::Reading { .. } => Ok(()),
            Ending::Result(result) => break result,
        };
        gone |= told.is_err();
    };
    for foreign in receiver.foreign() {
        output.warning(&format!("{}: {}", foreign.path, foreign.text));
    }
    for found in receiver.verified().map(|verified| verified.named.as_slice()).unwrap_or_default() {
        output.warning(&format!("{} is not as it should be: {}", found.path, found.what));
    }
    if result.agreed {
        let path = evidence(engine, source, subject, receiver)?;
        output.agreed(end.round, receiver.record().kind, &end.root, &path);
    } else {
        output.warning(&format!("round {}: the target differs, what differs is sent again", end.round));
    }
    answers.push(ToSender::Common(frame::ToSender::RoundResult(result)));
    Ok((!gone).then_some(answers))
}

/// The agent's statement, when it has signed it and it says what the frame says.
fn vouched(
    engine: &Engine<'_>,
    transfer: &TreeTransfer,
    kind: RoundKind,
    end: &RoundEnd,
) -> anyhow::Result<(Signed, TreeSubject)> {
    let identity = &engine.place.identity;
    let subject = TreeSubject {
        transfer: transfer_name(&transfer.id),
        source: engine.source.clone(),
        target: identity.about.target.clone(),
        round: end.round,
        purpose: kind,
        tree: end.root,
        sha256: end.sha256.map(Digest),
    };
    let statement = String::from_utf8(end.statement.clone()).context("the agent's statement")?;
    let theirs: SourceStatement = serde_json::from_str(&statement).context("the agent's statement")?;
    if theirs.subject != subject {
        bail!("the agent vouches for something else than it has sent");
    }
    let signature = BASE64_STANDARD.encode(&end.signature);
    let signed = Signed { statement, signature, certificate: pem(&engine.certificate) };
    signer(&signed, &identity.authority, Timestamp::now()).context("the agent's statement")?;
    Ok((signed, subject))
}

fn evidence(
    engine: &Engine<'_>,
    source: Signed,
    subject: TreeSubject,
    receiver: &Here,
) -> anyhow::Result<PathBuf> {
    let identity = &engine.place.identity;
    let dir = engine.place.settings.state.join("evidence");
    make_private_dir(&dir)?;
    let path = dir.join(format!("round-{:04}.json", subject.round));
    let statement = TargetStatement {
        subject,
        ended: Timestamp::now(),
        read_back: receiver.verified().is_some(),
        software: SOFTWARE.into(),
        tally: receiver.tally(),
    };
    let statement = serde_json::to_string(&statement)?;
    let target = Signed {
        signature: BASE64_STANDARD.encode(sign(identity, statement.as_bytes())?),
        certificate: identity.certificate_pem.clone(),
        statement,
    };
    let evidence = Evidence { version: VERSION, source, target };
    write_private(&path, &serde_json::to_vec_pretty(&evidence)?)?;
    Ok(path)
}

/// Whether trying again later may help against this.
pub(super) fn may_pass(fault: &Fault) -> bool {
    matches!(fault, Fault::Target(_) | Fault::State(_) | Fault::Damaged | Fault::Spoilt)
}
