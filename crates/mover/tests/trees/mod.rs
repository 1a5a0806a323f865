//! Two ends of a tree's transfer in one process, on real directories.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use conme_mover::core::frame::{self, Frame, HEADER, RoundEnd, RoundKind, RoundResult, header};
use conme_mover::core::tree::frame::{ToReceiver, ToSender};
use conme_mover::core::tree::item::Item;
use conme_mover::core::tree::lists::Budget;
use conme_mover::core::tree::path::TreePath;
use conme_mover::core::tree::ports::{
    Bit, Fault, Outcome, Seen, Shelf, Source, Store, Target, Trouble, Walked, Where,
};
use conme_mover::core::tree::receiver::{Ending, Receiver, Verified};
use conme_mover::core::tree::sender::{Order, Sender, Step, Tally};
use conme_mover::core::tree::settle::Foreign;
use conme_mover::tree::{OpenError, Owners, SourceSettings, TargetSettings, TreeSource, TreeTarget};

/// What is done before each piece of a file is read.
pub type Hook = Box<dyn FnMut(&TreePath)>;

/// A transfer between two directories of its own.
pub struct Site {
    dir: tempfile::TempDir,
    pub source: SourceSettings,
    pub target: TargetSettings,
    pub window: u32,
    pub budget: Budget,
    pub agent: Memory,
    pub receiver: Memory,
    pub begun: Option<u32>,
    /// Called before each piece of a file is read.
    pub while_reading: Option<Hook>,
}

/// What a session has come to.
pub struct Session {
    pub result: Option<RoundResult>,
    pub tally: Tally,
    pub received: u64,
    /// Bytes of content that were received and not acknowledged when the session was cut.
    pub unacknowledged: u64,
    pub troubles: Vec<(TreePath, Trouble)>,
    pub foreign: Vec<Foreign>,
    pub verified: Option<Verified>,
    /// Frames of the sender.
    pub frames: usize,
    pub fetched: usize,
}

/// How a session is cut.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// Both processes die after so many frames: what was written is in the caches of their machines.
    Kill(usize),
    /// The receiver's machine loses its power: what was not synced is gone.
    Power(usize),
}

impl Site {
    pub fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        Self::at(dir.unwrap())
    }

    pub fn at(dir: tempfile::TempDir) -> Self {
        std::fs::create_dir(dir.path().join("from")).unwrap();
        let root = rustix::process::geteuid().is_root();
        let owners = if root { Owners::Same { users: Vec::new(), groups: Vec::new() } } else { Owners::Mine };
        Self {
            dir,
            source: SourceSettings::default(),
            target: TargetSettings { owners, privileges: true },
            window: 1 << 18,
            budget: Budget::NONE,
            agent: Memory::default(),
            receiver: Memory::default(),
            begun: None,
            while_reading: None,
        }
    }

    pub fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    pub fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("to").join(path)
    }

    pub fn open_target(&self) -> PowerCut {
        let path = self.dir.path().join("to");
        let begun = path.exists();
        // A test beside this one may be starting a program, which has this one's locks until it is another program.
        let until = Instant::now() + Duration::from_secs(60);
        let inner = loop {
            match TreeTarget::open(&path, self.target.clone(), begun, false) {
                Err(OpenError::Busy(_)) if Instant::now() < until => std::thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        PowerCut { inner, path, unsynced: Vec::new() }
    }

    pub fn receiver(&self) -> Receiver<PowerCut, Memory> {
        let target = self.open_target();
        Receiver::open(target, self.receiver.clone(), [7; 16], self.window, self.budget).unwrap()
    }

    /// One session, to its end.
    pub fn round(&mut self, kind: RoundKind) -> Session {
        self.session(kind, None).unwrap()
    }

    /// A copy, and whether both sides are alike then.
    pub fn copy(&mut self) -> Session {
        // A wish of its own: a round that was over in a session that was cut then does not count.
        self.begun = None;
        let session = self.round(RoundKind::Copy);
        assert!(session.result.as_ref().unwrap().agreed, "{:?}", session.foreign);
        self.begun = None;
        session
    }

    pub fn assert_same(&self) {
        let (from, to) = (snapshot(&self.from("")), snapshot(&self.to("")));
        for (path, entry) in &from {
            assert_eq!(Some(entry), to.get(path), "{}", path.display());
        }
        assert_eq!(
            from.len(),
            to.len(),
            "{:?}",
            to.keys().filter(|key| !from.contains_key(*key)).collect::<Vec<_>>()
        );
    }

    /// One session, perhaps cut.
    pub fn session(&mut self, kind: RoundKind, cut: Option<Cut>) -> Result<Session, Fault> {
        let source = TreeSource::open(&self.from(""), self.source.clone()).unwrap();
        let order = Order { kind, begun: self.begun, software: "test".into(), level: 1 };
        let source = Watched { inner: source, at: TreePath::default(), hook: self.while_reading.take() };
        let mut sender = Sender::new(order, source, self.agent.clone());
        let mut receiver = self.receiver();
        let (mut frames, mut acknowledged, mut fetched) = (0, 0, 0);
        let (most, power) = match cut {
            None => (usize::MAX, false),
            Some(Cut::Kill(most)) => (most, false),
            Some(Cut::Power(most)) => (most, true),
        };
        let ended = 'session: loop {
            let answers = match sender.step()? {
                Step::Send(frame) => {
                    frames += 1;
                    if frames > most {
                        break 'session None;
                    }
                    match over_the_wire(&frame) {
                        ToReceiver::Common(frame::ToReceiver::Hello(hello)) => {
                            assert_eq!(hello.cargo, frame::Cargo::Tree);
                            receiver.welcome("test").to_vec()
                        }
                        frame => receiver.handle(frame)?,
                    }
                }
                Step::Wait => {
                    let answers: Vec<_> = receiver.commit()?.into_iter().collect();
                    assert!(!answers.is_empty(), "both ends wait for one another");
                    answers
                }
                Step::Conclude(conclusion) => {
                    frames += 1;
                    if frames > most {
                        break 'session None;
                    }
                    self.begun = Some(conclusion.round);
                    let end = RoundEnd {
                        round: conclusion.round,
                        root: conclusion.root,
                        sha256: conclusion.sha256,
                        statement: Vec::new(),
                        signature: Vec::new(),
                    };
                    let end = ToReceiver::Common(frame::ToReceiver::RoundEnd(end));
                    let mut answers = receiver.handle(over_the_wire(&end))?;
                    loop {
                        // Also while everything is put in its place something may stop it.
                        frames += 1;
                        if frames > most {
                            break 'session None;
                        }
                        match receiver.end()? {
                            Ending::Result(result) => {
                                answers.push(ToSender::Common(frame::ToSender::RoundResult(result)));
                                break;
                            }
                            Ending::Settling { done, total } => {
                                answers.push(ToSender::Settling { done, total })
                            }
                            Ending::Reading { .. } => {}
                        }
                    }
                    answers
                }
                Step::Over { result, .. } => break 'session result,
            };
            for answer in answers {
                if let ToSender::Common(frame::ToSender::Ack { .. }) = answer {
                    acknowledged = receiver.tally().received;
                }
                fetched += usize::from(matches!(answer, ToSender::Block { .. }));
                sender.receive(over_the_wire(&answer))?;
            }
        };
        let session = Session {
            result: ended,
            tally: sender.tally(),
            received: receiver.tally().received,
            unacknowledged: receiver.tally().received - acknowledged,
            troubles: sender.troubles().to_vec(),
            foreign: receiver.foreign().to_vec(),
            verified: receiver.verified().cloned(),
            frames,
            fetched,
        };
        if power && session.result.is_none() {
            receiver.into_parts().0.cut();
            self.receiver.cut();
        }
        Ok(session)
    }
}

/// A source in which something happens while it is read.
struct Watched {
    inner: TreeSource,
    at: TreePath,
    hook: Option<Hook>,
}

impl Source for Watched {
    fn next(&mut self) -> io::Result<Walked> {
        let walked = self.inner.next()?;
        if let Walked::Seen(seen) = &walked {
            self.at.clone_from(&seen.path);
        }
        Ok(walked)
    }
    fn rewind(&mut self) -> io::Result<()> {
        self.inner.rewind()
    }
    fn open(&mut self, at: u64) -> io::Result<()> {
        self.inner.open(at)
    }
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Bit> {
        if let Some(hook) = &mut self.hook {
            hook(&self.at);
        }
        self.inner.read(buffer)
    }
    fn look_again(&mut self) -> io::Result<Seen> {
        self.inner.look_again()
    }
}

/// A frame as the other end reads it.
pub fn over_the_wire<F: Frame>(frame: &F) -> F {
    let bytes = frame.encode();
    let head = header::<F>(*bytes.first_chunk().unwrap()).unwrap();
    assert_eq!(head.len, bytes.len() - HEADER);
    F::decode(head.kind, &bytes[HEADER..]).unwrap()
}

/// Everything that can be seen of a tree.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let relative = path.strip_prefix(dir).unwrap().to_path_buf();
        let what = if kind.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory".into()
        } else if kind.is_symlink() {
            format!("-> {:?}", std::fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            format!("{} {}", meta.len(), blake3::hash(&std::fs::read(&path).unwrap()))
        } else {
            format!("{kind:?}")
        };
        let mut attributes = Vec::new();
        if kind.is_file() || kind.is_dir() {
            let mut list = vec![0_u8; 4096];
            let len = rustix::fs::listxattr(&path, list.as_mut_slice()).unwrap_or(0);
            for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let mut value = vec![0_u8; 4096];
                let len = rustix::fs::getxattr(&path, name, value.as_mut_slice()).unwrap();
                attributes.push((String::from_utf8_lossy(name).into_owned(), value[..len].to_vec()));
            }
        }
        attributes.sort();
        let (mode, time) = (meta.permissions().mode(), (meta.mtime(), meta.mtime_nsec()));
        let text = format!("{what} {mode:o} {}:{} {time:?} {attributes:?}", meta.uid(), meta.gid());
        if meta.nlink() > 1 && !kind.is_dir() {
            let first = names.entry(meta.ino()).or_insert_with(|| relative.clone());
            if relative < *first {
                first.clone_from(&relative);
            }
        }
        found.insert(relative, text);
    }
    // Which names belong together.
    for (path, text) in &mut found {
        let meta = std::fs::symlink_metadata(dir.join(path)).unwrap();
        if let Some(first) = names.get(&meta.ino()).filter(|_| !meta.is_dir()) {
            text.push_str(&format!(" = {}", first.display()));
        }
    }
    found
}

/// A state directory in memory, that forgets what was not synced.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<String, Pages>>>);

#[derive(Debug, Clone, Default)]
struct Pages {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug)]
pub struct Page {
    all: Memory,
    name: String,
}

impl Memory {
    pub fn cut(&self) {
        self.0.lock().unwrap().values_mut().for_each(|pages| pages.now.clone_from(&pages.durable));
    }

    /// Keeps everything in this directory instead, as the program does.
    pub fn on_disk(dir: &Path) -> conme_mover::tree::store::DirShelf {
        std::fs::create_dir(dir).unwrap();
        conme_mover::tree::store::DirShelf::new(dir)
    }

    pub fn lose(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.0.lock().unwrap().values().map(|pages| pages.now.len()).sum()
    }
}

impl Shelf for Memory {
    type Store = Page;

    fn open(&mut self, name: &str) -> io::Result<Page> {
        self.0.lock().unwrap().entry(name.into()).or_default();
        Ok(Page { all: self.clone(), name: name.into() })
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
}

impl Page {
    fn with<R>(&self, with: impl FnOnce(&mut Pages) -> R) -> R {
        with(self.all.0.lock().unwrap().entry(self.name.clone()).or_default())
    }
}

impl Store for Page {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|pages| pages.now.len() as u64))
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.with(|pages| {
            let from = pages.now.get(at as usize..).unwrap_or_default();
            let count = from.len().min(buffer.len());
            buffer[..count].copy_from_slice(&from[..count]);
            count
        }))
    }

    fn write_at(&mut self, at: u64, content: &[u8]) -> io::Result<()> {
        self.with(|pages| {
            let end = at as usize + content.len();
            pages.now.resize(pages.now.len().max(end), 0);
            pages.now[at as usize..end].copy_from_slice(content);
        });
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.with(|pages| pages.now.resize(len as usize, 0));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|pages| pages.durable.clone_from(&pages.now));
        Ok(())
    }
}

/// A real directory on a machine that may lose its power: what was not synced becomes garbage then.
pub struct PowerCut {
    inner: TreeTarget,
    path: PathBuf,
    unsynced: Vec<(u64, u64, u64)>,
}

impl PowerCut {
    fn cut(self) {
        use std::os::unix::fs::FileExt as _;
        for (id, at, len) in self.unsynced {
            let staged = self.path.join(format!(".conme-mover/{:x}/{id:x}", id / 1024));
            if let Ok(file) = std::fs::File::options().write(true).open(staged) {
                file.write_all_at(&vec![0xee; len as usize], at).unwrap();
            }
        }
    }
}

impl Target for PowerCut {
    fn stage(&mut self, id: u64) -> io::Result<()> {
        self.inner.stage(id)
    }
    fn write(&mut self, id: u64, at: u64, content: &[u8]) -> io::Result<()> {
        self.unsynced.push((id, at, content.len() as u64));
        self.inner.write(id, at, content)
    }
    fn set_len(&mut self, id: u64, len: u64) -> io::Result<()> {
        self.inner.set_len(id, len)
    }
    fn unstage(&mut self, id: u64) -> io::Result<()> {
        self.inner.unstage(id)
    }
    fn read(&mut self, place: &Where, at: u64, buffer: &mut [u8]) -> io::Result<bool> {
        self.inner.read(place, at, buffer)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.unsynced.clear();
        self.inner.sync()
    }
    fn remove(&mut self, had: &[Item]) -> io::Result<Outcome> {
        self.inner.remove(had)
    }
    fn place(&mut self, item: &Item, had: &[Item]) -> io::Result<Outcome> {
        self.inner.place(item, had)
    }
    fn close_dir(&mut self, item: &Item) -> io::Result<()> {
        self.inner.close_dir(item)
    }
    fn clear(&mut self) -> io::Result<()> {
        self.inner.clear()
    }
    fn compare(&mut self, item: &Item) -> io::Result<Option<String>> {
        self.inner.compare(item)
    }
    fn drop_cache(&mut self, place: &Where) -> io::Result<()> {
        self.inner.drop_cache(place)
    }
}

/// Noise that is the same each time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

/// So long ago that a change is noticed by its times.
pub fn age(path: &Path) {
    // The time of the change itself cannot be set: only waiting would do. So the sender is told by the content.
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    std::fs::File::open(path).unwrap().set_modified(old).unwrap();
}
