//! The receiver: one target, one agent, one session at a time; the newest wins.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};

use super::tree::{self, Take};
use super::{tls, wire};
use crate::cli::{Output, Pass, SOFTWARE, Stage};
use crate::core::evidence::{self, Damage, Evidence, Signed, Subject, TargetStatement};
use crate::core::frame::{Cargo, Frame, Hello, RoundEnd, RoundKind, ToReceiver, ToSender};
use crate::core::geometry::Geometry;
use crate::core::hash::{Digest, transfer_name};
use crate::core::journal::Record;
use crate::core::ports::Fault;
use crate::core::receiver::{Receiver, Tables};
use crate::core::tree::frame as tree_frame;
use crate::core::verify::Verified;
use crate::disk::{Around, Disk, FileLog, FileTable};
use crate::identity::{Identity, make_private_dir, sign, signer, source_of, write_private};

/// Bytes that may be under way unacknowledged: enough for 200 Mbit/s over a second of delay.
pub(super) const WINDOW: u32 = 32 << 20;
/// Calls that may be in their handshake at once.
const CALLS: usize = 32;
/// What has been received is made durable and acknowledged this often at least.
const TICK: Duration = Duration::from_millis(200);
/// A session that is told to end ends within this time.
const ENDING: Duration = Duration::from_secs(120);
/// The last words of a session are waited for so long.
const FAREWELL: Duration = Duration::from_secs(5);
/// While the target is read back, the agent is told how far it is after so many units.
const TELL: u64 = 256;

/// What a receiver is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The block device or image, or the directory.
    pub target: PathBuf,
    /// How a directory is written; a disk when absent.
    pub tree: Option<Take>,
    /// Where its state is.
    pub state: PathBuf,
    /// Whether what is on the target may be lost.
    pub overwrite: bool,
    /// Whether it ends when a proof has succeeded.
    pub until_proven: bool,
}

/// What the receiver knows of its transfer, from the first session on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Its name.
    pub id: [u8; 16],
    /// The server that it comes from: nobody else may send.
    pub source: String,
    /// The measures of the disk.
    pub geometry: Geometry,
    /// When it began.
    pub began: Timestamp,
    /// Where it was written to at first; told to people.
    pub path: PathBuf,
    /// Whether the target has been made ready; before that, nothing is on it.
    pub ready: bool,
}

impl Transfer {
    /// The transfer of a state directory, if one has begun.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn load(state: &Path) -> anyhow::Result<Option<Self>> {
        load(&state.join("transfer.json"))
    }

    fn save(&self, state: &Path) -> anyhow::Result<()> {
        Ok(write_private(&state.join("transfer.json"), &serde_json::to_vec_pretty(self)?)?)
    }
}

/// The tables of a state directory.
///
/// # Errors
/// Of the disk.
pub fn tables(state: &Path) -> anyhow::Result<Tables<FileTable>> {
    let open = |name: &str| {
        let path = state.join(name);
        FileTable::open(&path).with_context(|| path.display().to_string())
    };
    Ok(Tables { units: open("units")?, leaves: open("leaves")? })
}

/// The damage that was ever found.
///
/// # Errors
/// When the file is damaged.
pub fn damage(state: &Path) -> anyhow::Result<Vec<Damage>> {
    Ok(load(&state.join("damage.json"))?.unwrap_or_default())
}

/// Remembers damage, for the evidence of the round that will have repaired it.
///
/// # Errors
/// Of the disk.
pub fn note_damage(state: &Path, found: &Verified) -> anyhow::Result<()> {
    if found.damaged == 0 {
        return Ok(());
    }
    let mut all = damage(state)?;
    all.push(Damage {
        place: evidence::Place::Target,
        found: Timestamp::now(),
        count: found.damaged,
        units: found.named.clone(),
        repaired_in: None,
    });
    save_damage(state, &all)
}

fn save_damage(state: &Path, all: &[Damage]) -> anyhow::Result<()> {
    Ok(write_private(&state.join("damage.json"), &serde_json::to_vec_pretty(all)?)?)
}

pub(super) fn load<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| path.display().to_string())?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

pub(super) struct Place {
    pub(super) settings: Settings,
    pub(super) identity: Identity,
    pub(super) output: Output,
    /// Held by the session that writes.
    writing: Arc<Mutex<()>>,
    /// The number of the newest session: all others end.
    newest: watch::Sender<u64>,
    pub(super) proven: watch::Sender<bool>,
}

/// Receives until the process is ended, or until a proof has succeeded when that is wished.
///
/// # Errors
/// When the address cannot be listened on, or the state directory is in use.
pub async fn serve(
    settings: Settings,
    identity: Identity,
    listen: SocketAddr,
    output: Output,
) -> anyhow::Result<()> {
    make_private_dir(&settings.state)?;
    let _held = crate::identity::lock(&settings.state)?;
    let config = tls::receiver(&identity)?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    output.listening(listener.local_addr()?);
    let until_proven = settings.until_proven;
    let (proven, mut is_proven) = watch::channel(false);
    let place = Arc::new(Place {
        settings,
        identity,
        output,
        writing: Arc::default(),
        newest: watch::Sender::new(0),
        proven,
    });
    let calls = Arc::new(Semaphore::new(CALLS));
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&calls).acquire_owned() => permit?,
            Ok(_) = is_proven.wait_for(|proven| *proven && until_proven) => return Ok(()),
        };
        let called = tokio::select! {
            called = listener.accept() => called,
            Ok(_) = is_proven.wait_for(|proven| *proven && until_proven) => return Ok(()),
        };
        let (stream, from) = match called {
            Ok(call) => call,
            Err(error) => {
                place.output.warning(&format!("a call could not be taken: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (place, config) = (Arc::clone(&place), Arc::clone(&config));
        tokio::spawn(async move {
            match answer(&place, config, stream, permit).await {
                Ok(()) => place.output.note(&format!("{from}: the session is over")),
                Err(error) => place.output.warning(&format!("{from}: {error:#}")),
            }
        });
    }
}

pub(super) enum Event<F> {
    Frame(F),
    Tick,
}

async fn answer(
    place: &Arc<Place>,
    config: Arc<rustls::ServerConfig>,
    stream: TcpStream,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls::accept(config, stream).await.context("the handshake failed")?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let names = tls::names(Some(certificates));
    let target = &place.identity.about.target;
    let Some(source) = names.iter().find_map(|uri| source_of(uri, target)).map(str::to_owned) else {
        bail!("its certificate is good for another target: enrol this server for {target}");
    };
    let Some(certificate) = certificates.first().map(|certificate| certificate.clone().into_owned()) else {
        bail!("it has no certificate");
    };
    // Who has come so far is known; the next stranger may call.
    drop(permit);

    let (mut from, mut to) = tokio::io::split(stream);
    let hello = match tokio::time::timeout(tls::HANDSHAKE, wire::read::<ToReceiver>(&mut from)).await {
        Ok(Ok(Some(ToReceiver::Hello(hello)))) => hello,
        Ok(Ok(_)) => bail!("it did not say who it is"),
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => bail!("it said nothing"),
    };
    // A link that was cut leaves a session that nobody ends: the newest takes its place.
    let mut number = 0;
    place.newest.send_modify(|newest| {
        *newest += 1;
        number = *newest;
    });
    let writing = tokio::time::timeout(ENDING, Arc::clone(&place.writing).lock_owned())
        .await
        .context("the session before does not end: see what its disk does")?;

    let session = Session { source, certificate, number, writing };
    match &place.settings.tree {
        None if hello.cargo == Cargo::Disk => {
            let engine = move |engine: &Engine<'_>, events| engine.run(|| engine.receive(&hello, events));
            let is_ping = |frame: &ToReceiver| *frame == ToReceiver::Ping;
            carry(place, session, from, to, is_ping, engine).await
        }
        Some(take) if hello.cargo == Cargo::Tree => {
            let take = take.clone();
            let engine =
                move |engine: &Engine<'_>, events| engine.run(|| tree::receive(engine, &take, events));
            let ping = tree_frame::ToReceiver::Common(ToReceiver::Ping);
            let is_ping = move |frame: &tree_frame::ToReceiver| *frame == ping;
            carry(place, session, from, to, is_ping, engine).await
        }
        None | Some(_) => {
            let text =
                "one end moves a disk, the other a directory: use --source with --target, --tree with --into";
            let refused = ToSender::Refused { later: false, text: text.into() }.encode();
            let _ =
                tokio::time::timeout(FAREWELL, tokio::io::AsyncWriteExt::write_all(&mut to, &refused)).await;
            let _ = tokio::time::timeout(FAREWELL, tokio::io::AsyncWriteExt::shutdown(&mut to)).await;
            bail!(text)
        }
    }
}

/// A session that has been let in.
struct Session {
    source: String,
    certificate: CertificateDer<'static>,
    number: u64,
    writing: tokio::sync::OwnedMutexGuard<()>,
}

/// Carries frames between an agent and a thread of this session.
async fn carry<F: Frame + Send + 'static>(
    place: &Arc<Place>,
    session: Session,
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin + Send + 'static,
    is_ping: impl Fn(&F) -> bool,
    engine: impl FnOnce(&Engine<'_>, mpsc::Receiver<Event<F>>) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let Session { source, certificate, number, writing } = session;
    let (events, engine_events) = mpsc::channel::<Event<F>>(2);
    let (answers, outgoing) = mpsc::channel::<Vec<u8>>(64);
    let mut writer = tokio::spawn(async move {
        let (_rate, unlimited) = watch::channel(None);
        wire::write(&mut to, outgoing, unlimited, None).await
    });
    let engine = {
        let (place, answers) = (Arc::clone(place), answers.clone());
        tokio::task::spawn_blocking(move || {
            let _writing = writing;
            engine(&Engine { place: &place, source, certificate, answers: &answers }, engine_events)
        })
    };
    let mut newest = place.newest.subscribe();
    let read = tokio::select! {
        read = pump(&mut from, &events, &answers, is_ping) => read,
        Ok(_) = newest.wait_for(|newest| *newest != number) => {
            Err(anyhow::anyhow!("a newer session has taken its place"))
        }
    };
    // Without a source of events, the engine ends.
    drop(events);
    drop(answers);
    tokio::pin!(engine);
    let ended = tokio::select! {
        ended = &mut engine => ended,
        // It may be about to say something to an agent that does not hear any more.
        () = tokio::time::sleep(FAREWELL) => {
            writer.abort();
            engine.await
        }
    };
    let _ = tokio::time::timeout(FAREWELL, &mut writer).await;
    writer.abort();
    ended.context("this is a defect of conme-mover")??;
    read
}

/// Hands frames to the engine; a tick in between, so that nothing waits long for its acknowledgement.
async fn pump<F: Frame>(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    events: &mpsc::Sender<Event<F>>,
    answers: &mpsc::Sender<Vec<u8>>,
    is_ping: impl Fn(&F) -> bool,
) -> anyhow::Result<()> {
    let ticking = async {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut spoken = tokio::time::Instant::now();
        loop {
            tick.tick().await;
            if spoken.elapsed() >= wire::PING {
                // On a thin line one frame may take longer than an agent waits for a word, and it cannot ask meanwhile.
                let _ = answers.try_send(ToSender::Pong.encode());
                spoken = tokio::time::Instant::now();
            }
            if events.send(Event::Tick).await.is_err() {
                return;
            }
        }
    };
    let reading = async {
        loop {
            match wire::read::<F>(from).await? {
                None => return Ok(()),
                Some(frame) if is_ping(&frame) => {
                    // When the answers queue up, the agent hears enough.
                    let _ = answers.try_send(ToSender::Pong.encode());
                }
                Some(frame) => {
                    if events.send(Event::Frame(frame)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    };
    tokio::select! {
        read = reading => read,
        () = ticking => Ok(()),
    }
}

pub(super) struct Engine<'a> {
    pub(super) place: &'a Place,
    pub(super) source: String,
    pub(super) certificate: CertificateDer<'static>,
    answers: &'a mpsc::Sender<Vec<u8>>,
}

/// The agent is gone.
pub(super) struct Gone;

impl Engine<'_> {
    fn run(&self, receive: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        match receive() {
            Ok(()) => Ok(()),
            Err(error) => {
                // The words are for both ends: the one who can help may sit at either.
                let later = error
                    .downcast_ref::<Fault>()
                    .is_some_and(|fault| matches!(fault, Fault::Disk(_) | Fault::State(_)))
                    || error.downcast_ref().is_some_and(tree::may_pass);
                let text = format!("the receiver: {error:#}");
                let _ = self.say(&ToSender::Refused { later, text });
                Err(error)
            }
        }
    }

    fn receive(&self, hello: &Hello, mut events: mpsc::Receiver<Event<ToReceiver>>) -> anyhow::Result<()> {
        let place = self.place;
        let geometry = Geometry::new(hello.len, hello.unit, hello.leaf)?;
        let (transfer, disk) = self.open(geometry)?;
        let around = disk.around();
        let state = &place.settings.state;
        let log = FileLog::open(&state.join("log")).context("the log")?;
        let mut receiver = Receiver::open(geometry, disk, tables(state)?, log, transfer.id, WINDOW)?;
        let record = receiver.record().clone();
        place.output.session(&self.source, &record, geometry.units(), receiver.tally().read_back);
        if self.say(&ToSender::Welcome(receiver.welcome(SOFTWARE))).is_err() {
            return Ok(());
        }
        while let Some(event) = events.blocking_recv() {
            let answers = match event {
                Event::Tick => receiver.commit()?.into_iter().collect(),
                Event::Frame(ToReceiver::Bye) => {
                    // The agent has heard how the round ended; without this word it would ask again.
                    let record = receiver.record();
                    place.proven.send_replace(record.complete && record.kind == RoundKind::Proof);
                    return Ok(());
                }
                Event::Frame(ToReceiver::RoundEnd(end)) => {
                    let Some(answers) = self.end(&mut receiver, &transfer, around, &end)? else {
                        return Ok(());
                    };
                    answers
                }
                Event::Frame(frame) => {
                    let answers = receiver.handle(frame)?;
                    self.note_refused(&answers)?;
                    answers
                }
            };
            self.tell(receiver.record(), geometry, Stage::Receiving, receiver.record().watermark);
            for answer in answers {
                if self.say(&answer).is_err() {
                    return Ok(());
                }
            }
        }
        // What has come so far is kept, though nobody hears of it now.
        receiver.commit()?;
        Ok(())
    }

    /// Names what was refused, here and for the evidence, before the agent hears of it.
    fn note_refused(&self, answers: &[ToSender]) -> anyhow::Result<()> {
        let refused: Vec<u64> = answers
            .iter()
            .filter_map(|answer| match answer {
                ToSender::Nack { unit, .. } => Some(*unit),
                _ => None,
            })
            .collect();
        if refused.is_empty() {
            return Ok(());
        }
        let state = &self.place.settings.state;
        let mut all = damage(state)?;
        for unit in &refused {
            evidence::arrived_damaged(&mut all, *unit, Timestamp::now());
        }
        save_damage(state, &all)?;
        self.place.output.arrived_damaged(&refused);
        Ok(())
    }

    /// How far a round is, in units, for whoever watches here.
    fn tell(&self, record: &Record, geometry: Geometry, stage: Stage, done: u64) {
        if record.round == 0 || record.complete {
            return;
        }
        let pass = Pass {
            round: record.round,
            purpose: Some(record.kind),
            stage,
            done,
            total: Some(geometry.units()),
            unit: Some(geometry.unit().into()),
            wire: 0,
            saved: None,
        };
        self.place.output.pass(&pass, serde_json::Value::Null);
    }

    fn say(&self, frame: &ToSender) -> Result<(), Gone> {
        self.say_bytes(frame.encode())
    }

    pub(super) fn say_bytes(&self, frame: Vec<u8>) -> Result<(), Gone> {
        self.answers.blocking_send(frame).map_err(|_| Gone)
    }

    /// The transfer and its target: begun with the first session, the same ever after.
    fn open(&self, geometry: Geometry) -> anyhow::Result<(Transfer, Disk)> {
        let Settings { state, target, overwrite, .. } = &self.place.settings;
        let mut transfer = match Transfer::load(state)? {
            Some(transfer) => transfer,
            None => {
                Disk::vacant(target, *overwrite)?;
                let mut id = [0; 16];
                getrandom::fill(&mut id)?;
                let began = Timestamp::now();
                let transfer = Transfer {
                    id,
                    source: self.source.clone(),
                    geometry,
                    began,
                    path: target.clone(),
                    ready: false,
                };
                transfer.save(state)?;
                transfer
            }
        };
        if transfer.source != self.source {
            bail!(
                "this target receives from {}, not from {}: give each server a target",
                transfer.source,
                self.source
            );
        }
        if transfer.geometry != geometry {
            bail!(
                "the disk has {} bytes in leaves of {}, but this transfer was begun with {} in leaves of {}: \
                 begin a new transfer with another --state and target",
                geometry.len(),
                geometry.leaf(),
                transfer.geometry.len(),
                transfer.geometry.leaf(),
            );
        }
        // That the target may be written over was settled before the transfer was entered.
        let disk = Disk::target(target, geometry.len(), transfer.ready, true)?;
        if !transfer.ready {
            transfer.ready = true;
            transfer.save(state)?;
        }
        Ok((transfer, disk))
    }

    /// The end of a round; `None` when the agent has gone meanwhile.
    fn end(
        &self,
        receiver: &mut Receiver<Disk, FileTable, FileLog>,
        transfer: &Transfer,
        around: Around,
        end: &RoundEnd,
    ) -> anyhow::Result<Option<Vec<ToSender>>> {
        let place = self.place;
        let mut answers: Vec<_> = receiver.commit()?.into_iter().collect();
        let verified = if receiver.record().kind == RoundKind::Proof {
            let mut verifier = receiver.verifier()?;
            let total = transfer.geometry.units();
            while receiver.verify(&mut verifier)?.is_some() {
                let done = verifier.done();
                self.tell(receiver.record(), transfer.geometry, Stage::ReadingBack, done);
                if done % TELL == 0 && self.say(&ToSender::Reading { done, total }).is_err() {
                    return Ok(None);
                }
            }
            let verified = verifier.finish();
            note_damage(&place.settings.state, &verified)?;
            Some(verified)
        } else {
            None
        };
        let statement = self.vouched(transfer, receiver.record().kind, end)?;
        let result = receiver.conclude(end, verified.as_ref())?;
        if result.agreed {
            let read_back = if verified.is_some() { around.word() } else { "not" };
            let path = self.evidence(statement, receiver.tally(), read_back)?;
            place.output.agreed(end.round, receiver.record().kind, &end.root, &path);
        } else {
            place.output.differs(end.round, verified.as_ref());
        }
        answers.push(ToSender::RoundResult(result));
        Ok(Some(answers))
    }

    /// The agent's statement, when it has signed it and it says what the frame says.
    fn vouched(
        &self,
        transfer: &Transfer,
        kind: RoundKind,
        end: &RoundEnd,
    ) -> anyhow::Result<(Signed, Subject)> {
        let identity = &self.place.identity;
        let subject = Subject {
            transfer: transfer_name(&transfer.id),
            source: self.source.clone(),
            target: identity.about.target.clone(),
            round: end.round,
            purpose: kind,
            geometry: transfer.geometry,
            root: end.root,
            sha256: end.sha256.map(Digest),
        };
        let statement = String::from_utf8(end.statement.clone()).context("the agent's statement")?;
        let theirs: evidence::SourceStatement =
            serde_json::from_str(&statement).context("the agent's statement")?;
        if theirs.subject != subject {
            bail!("the agent vouches for something else than it has sent");
        }
        let signed = Signed {
            statement,
            signature: BASE64_STANDARD.encode(&end.signature),
            certificate: pem(&self.certificate),
        };
        signer(&signed, &identity.authority, Timestamp::now()).context("the agent's statement")?;
        Ok((signed, subject))
    }

    fn evidence(
        &self,
        (source, subject): (Signed, Subject),
        tally: crate::core::receiver::Tally,
        read_back: &str,
    ) -> anyhow::Result<PathBuf> {
        let Place { settings, identity, .. } = self.place;
        let mut damage = damage(&settings.state)?;
        if evidence::repaired(&mut damage, subject.round, read_back != "not") {
            save_damage(&settings.state, &damage)?;
        }
        let round = subject.round;
        let statement = TargetStatement {
            subject,
            ended: Timestamp::now(),
            read_back: read_back.into(),
            software: SOFTWARE.into(),
            tally,
            damage,
        };
        let statement = serde_json::to_string(&statement)?;
        let target = Signed {
            signature: BASE64_STANDARD.encode(sign(identity, statement.as_bytes())?),
            certificate: identity.certificate_pem.clone(),
            statement,
        };
        let evidence = Evidence { version: evidence::VERSION, source, target };
        make_private_dir(&settings.state.join("evidence"))?;
        let path = settings.state.join("evidence").join(format!("round-{round:04}.json"));
        write_private(&path, &serde_json::to_vec_pretty(&evidence)?)?;
        Ok(path)
    }
}

/// A certificate in PEM.
pub(super) fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    let lines: Vec<_> = (0..text.len()).step_by(64).map(|at| &text[at..(at + 64).min(text.len())]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
