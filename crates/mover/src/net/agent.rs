//! The agent: brings one round to its end, over as many sessions as that takes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::dial::{Proxy, dial};
use super::packing::{self, Packed};
use super::tls;
use super::wire::{self, WireError};
use crate::cli::{Output, SOFTWARE};
use crate::core::evidence::{SourceStatement, Subject};
use crate::core::frame::{Frame, RoundEnd, RoundKind, RoundResult, ToReceiver, ToSender};
use crate::core::free::{Free, Skipped};
use crate::core::geometry::Geometry;
use crate::core::hash::{Digest, transfer_name};
use crate::core::level::{Ceiling, Choice, Levels};
use crate::core::pack::{Bundler, Load};
use crate::core::ports::Fault;
use crate::core::sender::{Conclusion, FRAMES, Order, Sender, Step, Tables, Tally};
use crate::core::tree::path::TreePath;
use crate::core::tree::ports::Trouble;
use crate::core::tree::{self, sender};
use crate::disk::{Ahead, Disk, FileTable};
use crate::identity::{Identity, IdentityError, make_private_dir, sign};
use crate::tree::SourceSettings;

/// Times that a round of a tree may end with a difference.
const REPAIRS: u32 = 5;

/// What an agent is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The disk, or the directory.
    pub source: PathBuf,
    /// What is read of a directory; of a disk when absent.
    pub tree: Option<SourceSettings>,
    /// Where its state is.
    pub state: PathBuf,
    /// `host:port` of the receiver or of the gateway before it.
    pub address: String,
    /// The proxy through which it goes out.
    pub proxy: Option<Proxy>,
    /// What it tells the gateway.
    pub told: watch::Sender<Told>,
    /// Whether free space of the disk's file systems is taken for zeros.
    pub skip_free: bool,
    /// Bytes of a leaf.
    pub leaf: u32,
    /// How hard to compress.
    pub level: Choice,
    /// How much of one processor that may take.
    pub ceiling: Ceiling,
    /// After so long without a session that gets anywhere, it gives up; never when absent.
    pub give_up: Option<Duration>,
}

/// What an agent tells the gateway, for its forecast.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Bytes that it still has to send in this round, as far as it knows.
    pub left: Option<u64>,
    /// Bytes that a day's changes cost it, as it has measured.
    pub churn: Option<u64>,
}

/// What a round has come to.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// Its number.
    pub round: u32,
    /// The receiver's answer, unless it was lost.
    pub result: Option<RoundResult>,
    /// Counts of the last session.
    pub tally: Tally,
    /// What there is to say of a tree.
    pub tree: Option<TreeRound>,
    /// Sessions that it took.
    pub sessions: u32,
    /// Bytes of frames with content that it took in all of them.
    pub wire: u64,
}

/// What a round of a tree has come to.
#[derive(Debug, Clone)]
pub struct TreeRound {
    /// Counts of the last session.
    pub tally: sender::Tally,
    /// What could not be carried as it is, the first thousand.
    pub troubles: Vec<(TreePath, Trouble)>,
}

/// Why a round does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Something that another try does not change.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The same of a tree.
    #[error(transparent)]
    Tree(#[from] tree::ports::Fault),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] crate::disk::OpenError),
    /// Its measures.
    #[error(transparent)]
    Geometry(#[from] crate::core::geometry::BadGeometry),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The state directory.
    #[error("{path}: {error}")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// Too long without getting anywhere.
    #[error("given up after {waited:?} without a connection; the last reason was: {last}")]
    GaveUp {
        /// How long it tried.
        waited: Duration,
        /// What was wrong the last time.
        last: String,
    },
    /// A thread of this program ended in a way that it should not.
    #[error("this is a defect of conme-mover: {0}")]
    Defect(String),
}

/// Why a session ends before the round does.
enum Cut {
    Wire(String),
    Fatal(AgentError),
}

impl From<AgentError> for Cut {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Fault(fault) if fault.may_pass() => Self::Wire(fault.to_string()),
            AgentError::Tree(fault) if fault.may_pass() => Self::Wire(fault.to_string()),
            error => Self::Fatal(error),
        }
    }
}

/// Brings a round to its end.
///
/// # Errors
/// When it cannot be, or when `give_up` has passed.
pub async fn round(
    settings: &Settings,
    identity: &Arc<Identity>,
    kind: RoundKind,
    rate: &watch::Receiver<Option<u64>>,
    output: &Output,
) -> Result<Round, AgentError> {
    let config = tls::agent(identity)?;
    let began = Timestamp::now();
    let (mut begun, mut sessions, mut pause) = (None, 0_u32, Duration::from_millis(500));
    let (mut repairs, mut wire) = (0, 0_u64);
    let mut stuck_since = tokio::time::Instant::now();
    loop {
        sessions += 1;
        let (progress, mut seen) = watch::channel(Progress::default());
        // What is said about the disk is said once, not after each cut.
        let words = (sessions == 1).then(|| output.clone());
        let work = Work { kind, begun, began, progress, words };
        let ended = {
            let session = session(settings, identity, Arc::clone(&config), work, rate.clone());
            tokio::pin!(session);
            loop {
                tokio::select! {
                    ended = &mut session => break ended,
                    Ok(()) = seen.changed() => {
                        let seen = seen.borrow_and_update();
                        settings.told.send_modify(|told| told.left = seen.left());
                        output.progress(&seen, kind);
                    }
                }
            }
        };
        let progress = *seen.borrow();
        wire += progress.tree.map_or(progress.tally.wire, |tree| tree.wire);
        if progress.round > 0 {
            begun = Some(progress.round);
        }
        match ended {
            // What is not in its place goes again, since a tree is put in its place only at the end of a round.
            Ok(round)
                if round.tree.is_some() && round.result.as_ref().is_some_and(|result| !result.agreed) =>
            {
                repairs += 1;
                if repairs > REPAIRS {
                    return Err(tree::ports::Fault::Differs(REPAIRS).into());
                }
            }
            Ok(round) => return Ok(Round { sessions, wire, ..round }),
            Err(Cut::Fatal(error)) => return Err(error),
            Err(Cut::Wire(why)) => {
                if progress.tally.units_sent > 0 || progress.tree.is_some_and(|tree| tree.wire > 0) {
                    stuck_since = tokio::time::Instant::now();
                    pause = Duration::from_millis(500);
                }
                let waited = stuck_since.elapsed();
                if settings.give_up.is_some_and(|limit| waited >= limit) {
                    return Err(AgentError::GaveUp { waited, last: why });
                }
                output.waiting(&why, pause);
                tokio::time::sleep(pause).await;
                // Not all agents of a site at the same moment.
                let jitter = u64::from(std::process::id()) % 200;
                pause = (pause * 2).min(Duration::from_secs(30)) + Duration::from_millis(jitter);
            }
        }
    }
}

/// How far a session is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// The round; 0 before it is known.
    pub round: u32,
    /// Units of the disk.
    pub units: u64,
    /// Counts.
    pub tally: Tally,
    /// Those of a tree.
    pub tree: Option<sender::Tally>,
    /// Units or entries that the receiver has read back, and how many that will be; of a proof.
    pub reading: Option<(u64, u64)>,
    /// Entries that the receiver has put in their places, and how many that will be; of a tree.
    pub settling: Option<(u64, u64)>,
}

impl Progress {
    /// Bytes that are still to be sent, if the rest of the disk is like what this session has read.
    pub fn left(&self) -> Option<u64> {
        let read = self.tally.units_done.checked_sub(self.tally.units_before).filter(|read| *read > 0)?;
        let rest = self.units.saturating_sub(self.tally.units_done);
        u64::try_from(u128::from(rest) * u128::from(self.tally.wire) / u128::from(read)).ok()
    }
}

pub(super) struct Work {
    pub(super) kind: RoundKind,
    pub(super) begun: Option<u32>,
    pub(super) began: Timestamp,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) words: Option<Output>,
}

async fn session(
    settings: &Settings,
    identity: &Arc<Identity>,
    config: Arc<rustls::ClientConfig>,
    work: Work,
    rate: watch::Receiver<Option<u64>>,
) -> Result<Round, Cut> {
    let (of, who) = (settings.clone(), Arc::clone(identity));
    match settings.tree.clone() {
        None => {
            let engine = move |frames: &_, answers| drive(&of, &who, &work, frames, answers);
            carry::<ToSender>(settings, identity, config, rate, engine).await
        }
        Some(tree) => {
            let engine =
                move |frames: &_, answers| super::tree::drive(&of, &tree, &who, &work, frames, answers);
            carry::<tree::frame::ToSender>(settings, identity, config, rate, engine).await
        }
    }
}

/// Carries frames between a receiver and a thread of this session.
async fn carry<F: Frame + Send + 'static>(
    settings: &Settings,
    identity: &Arc<Identity>,
    config: Arc<rustls::ClientConfig>,
    rate: watch::Receiver<Option<u64>>,
    engine: impl FnOnce(&mpsc::Sender<Vec<u8>>, mpsc::Receiver<F>) -> Result<Option<Round>, AgentError>
    + Send
    + 'static,
) -> Result<Round, Cut> {
    let address = &settings.address;
    let wire = |what: &str, error: &dyn std::fmt::Display| Cut::Wire(format!("{what}: {error}"));
    let stream = dial(address, settings.proxy.as_ref()).await.map_err(|error| wire(address, &error))?;
    let stream =
        tls::connect(config, &identity.about.name, stream).await.map_err(|error| wire(address, &error))?;
    let (mut from, mut to) = tokio::io::split(stream);

    let (frames, outgoing) = mpsc::channel::<Vec<u8>>(2);
    // Each frame under way has room for its answer here, so neither end can wait for the other for ever.
    let (incoming, answers) = mpsc::channel::<F>(FRAMES + 64);
    let mut reader = Task(tokio::spawn(async move {
        loop {
            match wire::read::<F>(&mut from).await {
                Ok(Some(frame)) => {
                    if incoming.send(frame).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }));
    let mut writer = Task(tokio::spawn(async move {
        wire::write(&mut to, outgoing, rate, Some(ToReceiver::Ping.encode())).await
    }));
    let engine = tokio::task::spawn_blocking(move || engine(&frames, answers));
    let driven = engine.await.map_err(|error| Cut::Fatal(AgentError::Defect(error.to_string())))?;
    match driven {
        Ok(Some(round)) => {
            // The farewell has to leave before the stream closes.
            let _ = tokio::time::timeout(tls::HANDSHAKE, &mut writer.0).await;
            Ok(round)
        }
        Ok(None) => Err(Cut::Wire(match (&mut reader.0).await {
            Ok(Err(error)) => WireError::to_string(&error),
            _ => "the receiver closed the connection".into(),
        })),
        Err(error) => Err(error.into()),
    }
}

/// Ends with whoever waits for it: a round that nobody wants any more must not go on behind his back.
struct Task<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The session's own threads: one reads and hashes, one packs. `None` when the connection is gone.
fn drive(
    settings: &Settings,
    identity: &Identity,
    work: &Work,
    frames: &mpsc::Sender<Vec<u8>>,
    mut answers: mpsc::Receiver<ToSender>,
) -> Result<Option<Round>, AgentError> {
    let levels = Levels::new(settings.level, settings.ceiling);
    let stand_back = !settings.ceiling.is_all();
    std::thread::scope(|scope| {
        let (loads, to_pack) = std::sync::mpsc::sync_channel(packing::WAITING);
        let (tell, packed) = std::sync::mpsc::channel();
        let packer = scope.spawn(move || packing::run(levels, stand_back, &to_pack, frames, &tell));
        let line = Line { bundler: Bundler::default(), loads, packed, under_way: 0 };
        let read = read_and_hash(settings, identity, work, line, &mut answers);
        // With the line, its loads have ended: the packer sends what is left and ends, too.
        match packer.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Fault::State(error).into()),
            Err(_) => return Err(AgentError::Defect("the thread that packs has panicked".into())),
        }
        match read? {
            Read::Over(round) => Ok(Some(*round)),
            Read::Gone(mut sender) => {
                // Perhaps the receiver has said why.
                while let Some(frame) = answers.blocking_recv() {
                    sender.receive(frame)?;
                }
                Ok(None)
            }
        }
    })
}

/// How reading ends.
enum Read {
    Over(Box<Round>),
    /// The connection is gone; who still listens to it.
    Gone(Box<Sender<Ahead<Free<Disk>>, FileTable>>),
}

/// The way to the thread that packs.
struct Line {
    bundler: Bundler,
    loads: std::sync::mpsc::SyncSender<Load>,
    packed: std::sync::mpsc::Receiver<Packed>,
    /// Loads that have not been handed to the connection yet.
    under_way: u64,
}

/// The connection is gone.
struct Gone;

impl Line {
    fn send(&mut self, frame: ToReceiver, together: bool) -> Result<(), Gone> {
        let mut ready = self.bundler.add(frame, together);
        ready.try_for_each(|load| self.load(load))?;
        // The end of a disk that has hardly changed must not be waited for with all that has.
        if self.under_way == 0 { self.bundler.early().map_or(Ok(()), |load| self.load(load)) } else { Ok(()) }
    }

    /// Nothing comes for a while: what has gathered goes.
    fn flush(&mut self) -> Result<(), Gone> {
        self.bundler.flush().map_or(Ok(()), |load| self.load(load))
    }

    fn load(&mut self, load: Load) -> Result<(), Gone> {
        self.under_way += 1;
        self.loads.send(load).map_err(|_| Gone)
    }

    /// Hears what has been packed; with `all` it waits until everything has been.
    fn hear(&mut self, sender: &mut Sender<Ahead<Free<Disk>>, FileTable>, all: bool) {
        let next = |all| if all { self.packed.recv().ok() } else { self.packed.try_recv().ok() };
        while let Some(packed) = next(all && self.under_way > 0) {
            self.under_way = self.under_way.saturating_sub(1);
            sender.packed(packed.frames, packed.bytes);
        }
    }
}

fn read_and_hash(
    settings: &Settings,
    identity: &Identity,
    work: &Work,
    mut line: Line,
    answers: &mut mpsc::Receiver<ToSender>,
) -> Result<Read, AgentError> {
    let disk = Disk::source(&settings.source)?;
    let geometry = Geometry::new(disk.len(), crate::core::geometry::UNIT, settings.leaf)?;
    let order = Order { geometry, kind: work.kind, begun: work.begun, software: SOFTWARE.into() };
    let source = Ahead::new(source(settings, work, disk)?, geometry.len());
    let mut sender = Sender::new(order, source, tables(&settings.state)?);
    let mut progress = Progress { units: geometry.units(), ..Progress::default() };
    loop {
        line.hear(&mut sender, false);
        while let Ok(frame) = answers.try_recv() {
            hear(&mut sender, &mut progress, frame)?;
        }
        let step = sender.step()?;
        progress.round = sender.round();
        progress.tally = sender.tally();
        work.progress.send_replace(progress);
        let sent = match step {
            Step::Send(frame) => line.send(frame, sender.bundles()),
            Step::Wait => match line.flush() {
                Ok(()) => match answers.blocking_recv() {
                    Some(frame) => {
                        hear(&mut sender, &mut progress, frame)?;
                        Ok(())
                    }
                    None => Err(Gone),
                },
                Err(gone) => Err(gone),
            },
            Step::Conclude(conclusion) => {
                let source = sender.source().inner();
                if work.kind == RoundKind::Proof
                    && let Some(at) = source.changed(geometry.len()).map_err(Fault::Disk)?
                {
                    return Err(Fault::Stirred(at).into());
                }
                let skipped = source.skipped();
                // What the agent vouches for says how many bytes it was.
                line.hear(&mut sender, true);
                let end = signed(identity, geometry, work, sender.tally(), skipped, &conclusion)?;
                line.send(ToReceiver::RoundEnd(end), false)
            }
            Step::Over { round, result } => {
                // Whether the farewell is heard changes nothing.
                let _ = line.send(ToReceiver::Bye, false);
                return Ok(Read::Over(Box::new(Round {
                    round,
                    result,
                    tally: sender.tally(),
                    tree: None,
                    sessions: 1,
                    wire: 0,
                })));
            }
        };
        if sent.is_err() {
            return Ok(Read::Gone(Box::new(sender)));
        }
    }
}

/// The disk as this session reads it.
fn source(settings: &Settings, work: &Work, disk: Disk) -> Result<Free<Disk>, AgentError> {
    if !settings.skip_free {
        return Ok(Free::nothing(disk));
    }
    // What is allocated in memory only would be free on the disk.
    rustix::fs::sync();
    let len = disk.len();
    let (free, words) = Free::skipping(disk, len, work.kind).map_err(Fault::Disk)?;
    if let Some(output) = &work.words {
        words.iter().for_each(|words| output.note(words));
    }
    Ok(free)
}

fn hear(
    sender: &mut Sender<Ahead<Free<Disk>>, FileTable>,
    progress: &mut Progress,
    frame: ToSender,
) -> Result<(), Fault> {
    if let ToSender::Reading { done, total } = frame {
        progress.reading = Some((done, total));
    }
    sender.receive(frame)
}

fn signed(
    identity: &Identity,
    geometry: Geometry,
    work: &Work,
    tally: Tally,
    skipped: Option<Skipped>,
    conclusion: &Conclusion,
) -> Result<RoundEnd, AgentError> {
    let statement = SourceStatement {
        subject: Subject {
            transfer: transfer_name(&conclusion.transfer),
            source: identity.about.source.clone().unwrap_or_default(),
            target: identity.about.target.clone(),
            round: conclusion.round,
            purpose: conclusion.kind,
            geometry,
            root: conclusion.root,
            sha256: conclusion.sha256.map(Digest),
        },
        began: work.began,
        ended: Timestamp::now(),
        software: SOFTWARE.into(),
        tally,
        repairs: conclusion.repairs,
        skipped,
    };
    let statement = serde_json::to_vec(&statement).map_err(|error| AgentError::Defect(error.to_string()))?;
    let signature = sign(identity, &statement)?;
    Ok(RoundEnd {
        round: conclusion.round,
        root: conclusion.root,
        sha256: conclusion.sha256,
        statement,
        signature,
    })
}

fn tables(state: &Path) -> Result<Tables<FileTable>, AgentError> {
    let dir = state.join("tables");
    make_private_dir(&dir)?;
    let open = |name: &str| {
        let path = dir.join(name);
        FileTable::open(&path).map_err(|error| AgentError::State { path, error })
    };
    Ok(Tables { units: open("units")?, leaves: open("leaves")?, seen: open("seen")? })
}
