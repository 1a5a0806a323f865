//! What the mover costs: side by side with others, on one image and one shaped link.

mod image;
mod link;
mod meter;
mod one_core;
mod peers;
mod report;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use conme_testbed::{Dirs, Progress};
use serde::Serialize;

pub use self::link::relay;
use self::{
    image::Change,
    link::{Link, Wire, run, sweep_dirs, sweep_links},
    meter::{Held, Memory, of_children},
    one_core::OneCore,
    peers::{DIRS, Peer, Place, Programs},
    report::{Disk, Failure, Figure, Run},
};
use crate::report::Machine;

/// What `conme-bench mover` is told.
#[derive(Args)]
pub struct MoverArgs {
    /// MiB of the image, a system made of packages of the distribution; when not given, 768, and 128 on links below
    /// 50 Mbit/s. Below 700 the system is a small one.
    #[arg(long, value_parser = clap::value_parser!(u64).range(image::LEAST..=65536))]
    size: Option<u64>,
    /// Links in Mbit/s; 0 is unshaped.
    #[arg(long, num_args = 1.., value_delimiter = ',', default_values_t = [10, 100, 0])]
    links: Vec<u32>,
    /// Only these cases.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_enum, default_values_t = Case::ALL)]
    only: Vec<Case>,
    /// Who is measured.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_enum, default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// GiB of the disks with which the mover's memory is measured; 0 leaves it out.
    #[arg(long, num_args = 1.., value_delimiter = ',', default_values_t = [4, 64],
          value_parser = clap::value_parser!(u64).range(0..=1024))]
    disks: Vec<u64>,
    /// The mover's level of zstd; its own choice when not given.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=19))]
    level: Option<u8>,
    /// The mover; beside this program when not given.
    #[arg(long)]
    mover: Option<PathBuf>,
    /// Where mover.md and mover.json are written.
    #[arg(long, default_value = "docs/benchmarks")]
    output: PathBuf,
}

impl MoverArgs {
    /// MiB of the image that goes over a link.
    fn size_on(&self, mbit: u32) -> u64 {
        self.size.unwrap_or(if (1..THIN).contains(&mbit) { 128 } else { 768 })
    }
}

/// What `conme-bench relay` is told.
#[derive(Args)]
pub struct RelayArgs {
    /// Where to listen.
    #[arg(long)]
    pub(crate) listen: Option<String>,
    /// Where connections are carried to.
    #[arg(long)]
    pub(crate) to: Option<String>,
    /// How late, each way.
    #[arg(long, default_value_t = 0)]
    pub(crate) delay_ms: u64,
    /// Connect standard input and output to this.
    #[arg(long)]
    pub(crate) connect: Option<String>,
    /// The program that serves each connection.
    #[arg(last = true)]
    pub(crate) program: Vec<String>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// Everything, to an empty target.
    First,
    /// One percent changed, as scattered writes of 4 KiB.
    Scattered,
    /// One percent changed, as stretches of 64 KiB.
    Stretches,
    /// Ten percent rewritten in one place.
    Region,
    /// A first copy whose sender is killed at 60 % and started again.
    Resume,
    /// A first copy with 200 ms from a byte to its answer.
    Delay,
}

impl Case {
    const ALL: [Self; 6] =
        [Self::First, Self::Scattered, Self::Stretches, Self::Region, Self::Resume, Self::Delay];

    /// As it is called in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first copy",
            Self::Scattered => "1 % as 4 KiB",
            Self::Stretches => "1 % as 64 KiB",
            Self::Region => "10 % in one place",
            Self::Resume => "killed at 60 %",
            Self::Delay => "first copy, 200 ms",
        }
    }

    fn change(self) -> Option<Change> {
        match self {
            Self::Scattered => Some(Change::Scattered),
            Self::Stretches => Some(Change::Stretches),
            Self::Region => Some(Change::Region),
            Self::First | Self::Resume | Self::Delay => None,
        }
    }
}

/// Links below so many Mbit/s get a small image, or a run would take hours.
const THIN: u32 = 50;
/// Disks of up to so many GiB are full, larger ones sparse.
const FULL: u64 = 8;
/// More load than this before the run is told: a run of its own build has just ended.
const QUIET: f64 = 1.5;
/// Nothing that is measured takes longer.
const LIMIT: Duration = Duration::from_secs(1800);
/// Half of what a byte and its answer are delayed.
const ONE_WAY: Duration = Duration::from_millis(100);

/// Returns whether every target is met.
///
/// # Errors
/// When it could not be measured.
pub async fn measure(args: &MoverArgs) -> Result<bool> {
    let begin = Instant::now();
    let progress = Progress::stderr();
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it as root");
    let dirs = Dirs::from_env()?;
    sweep_links()?;
    sweep_dirs(&dirs.cache, DIRS)?;
    let beside = std::env::current_exe()?.with_file_name("conme-mover");
    let mover = args.mover.clone().unwrap_or(beside);
    let step = progress.long_step("programs and images", "a minute when they are fetched");
    let programs = Programs::ready(&dirs, &mover, args.level, &progress).await?;
    let mut images = BTreeMap::new();
    for mbit in args.links.iter().chain(&[0]) {
        let size = args.size_on(*mbit);
        images.insert(size, image::system(&dirs, size, &progress).await?);
    }
    step.done("");
    let whole = &images[&args.size_on(0)];
    let step = progress.long_step("what one core can do", "seconds");
    let one_core = OneCore::measure(whole)?;
    step.done(&format!("{:.0} MB/s", one_core.speed() / 1e6));
    let mut run = Run {
        machine: Machine::this()?,
        versions: programs.versions()?,
        reading: one_core::reading(whole)?,
        one_core,
        figures: Vec::new(),
        failures: Vec::new(),
        disks: Vec::new(),
        minutes: 0.0,
    };
    if run.machine.load.parse::<f64>().is_ok_and(|load| load > QUIET) {
        progress.note(&format!("load {}: somebody else is at work, times say little", run.machine.load));
    }
    for mbit in &args.links {
        let link = Link::up((*mbit > 0).then_some(*mbit))?;
        for peer in &args.peers {
            let step = progress.long_step(&format!("{}: {}", rate(*mbit), peer.name()), "minutes");
            let mut bench = Bench {
                programs: &programs,
                link: &link,
                mbit: *mbit,
                peer: *peer,
                image: &images[&args.size_on(*mbit)],
                image_mib: args.size_on(*mbit),
                parent: &dirs.cache,
                figures: Vec::new(),
                failures: Vec::new(),
            };
            bench.all(&args.only);
            step.done(&summary(&bench.figures));
            for failure in &bench.failures {
                progress.note(&format!("{failure}"));
            }
            run.figures.append(&mut bench.figures);
            run.failures.append(&mut bench.failures);
        }
        // After each link, so that a run that is broken off has told something.
        run.minutes = begin.elapsed().as_secs_f64() / 60.0;
        report::write(&run, &args.output)?;
    }
    for gib in args.disks.iter().filter(|gib| **gib > 0) {
        let step = progress.long_step(&format!("the mover with a disk of {gib} GiB"), "a minute");
        match move_disk(&programs, *gib, whole, &dirs.cache) {
            Ok(disk) => {
                step.done(&format!("{} / {} KiB", disk.source_kib, disk.target_kib));
                run.disks.push(disk);
            }
            Err(error) => {
                step.done("failed");
                let failure = Failure::new(0, Peer::Mover, Case::First, &error);
                progress.note(&format!("a disk of {gib} GiB: {failure}"));
                run.failures.push(failure);
            }
        }
    }
    run.minutes = begin.elapsed().as_secs_f64() / 60.0;
    let targets = report::write(&run, &args.output)?;
    targets.iter().for_each(|target| progress.note(&target.to_string()));
    let missed = targets.iter().filter(|target| !target.is_met()).count();
    progress.note(&format!(
        "{missed} of {} targets are missed; {:.1} minutes: {}",
        targets.len(),
        run.minutes,
        args.output.join("mover.md").display()
    ));
    Ok(missed == 0)
}

/// A link in words.
pub fn rate(mbit: u32) -> String {
    if mbit == 0 { "unshaped".to_owned() } else { format!("{mbit} Mbit/s") }
}

fn summary(figures: &[Figure]) -> String {
    let each =
        figures.iter().map(|one| format!("{} {:.1} s {:.1} MB", one.case.name(), one.seconds, one.mb()));
    each.collect::<Vec<_>>().join(", ")
}

/// One peer on one link.
struct Bench<'run> {
    programs: &'run Programs,
    link: &'run Link,
    mbit: u32,
    peer: Peer,
    image: &'run Path,
    image_mib: u64,
    parent: &'run Path,
    figures: Vec<Figure>,
    failures: Vec<Failure>,
}

impl<'run> Bench<'run> {
    /// All cases that the peer knows; what fails is remembered, and the next is tried.
    fn all(&mut self, only: &[Case]) {
        // What was killed is measured against a first copy, and what changed has to have arrived once.
        let first = self.place().and_then(|mut place| {
            let first = self.one(&mut place, Case::First, None)?;
            Ok((first, place))
        });
        let (first, mut place) = match first {
            Ok(first) => first,
            Err(error) => return self.failed(Case::First, &error),
        };
        let whole = first.wire.both();
        if only.contains(&Case::First) {
            self.figures.push(first);
        }
        if !self.peer.knows_differences() {
            return;
        }
        for case in only {
            let Some(what) = case.change() else { continue };
            let changed = image::change(&place.source(), what);
            match changed.and_then(|_| self.one(&mut place, *case, None)) {
                Ok(figure) => self.figures.push(figure),
                Err(error) => {
                    // Who knows what lies at the target now.
                    self.failed(*case, &error);
                    break;
                }
            }
        }
        drop(place);
        for case in [Case::Resume, Case::Delay].iter().filter(|case| only.contains(case)) {
            self.afresh(*case, (*case == Case::Resume).then_some(whole));
        }
    }

    fn afresh(&mut self, case: Case, cut: Option<u64>) {
        match self.place().and_then(|mut place| self.one(&mut place, case, cut)) {
            Ok(figure) => self.figures.push(figure),
            Err(error) => self.failed(case, &error),
        }
    }

    fn failed(&mut self, case: Case, error: &anyhow::Error) {
        self.failures.push(Failure::new(self.mbit, self.peer, case, error));
    }

    fn place(&self) -> Result<Place<'run>> {
        let copy = |source: &Path| {
            run(Command::new("cp").arg("--sparse=always").arg(self.image).arg(source)).map(drop)
        };
        Place::new(self.programs, self.link, self.mbit, self.peer, self.parent, copy)
    }

    /// With `cut`, the bytes of a first copy that was not killed.
    fn one(&self, place: &mut Place<'_>, case: Case, cut: Option<u64>) -> Result<Figure> {
        let cost = transfer(place, self.link, case == Case::Delay, cut)?;
        place.check()?;
        Ok(Figure {
            mbit: self.mbit,
            peer: self.peer,
            case,
            image_mib: self.image_mib,
            seconds: cost.seconds,
            wire: cost.wire,
            source_cpu_seconds: cost.source_cpu_seconds,
            source_kib: cost.source_kib,
            target_kib: cost.target_kib,
            resent: cut.map(|whole| cost.wire.both().saturating_sub(whole)),
        })
    }
}

/// What a transfer has cost.
struct Cost {
    seconds: f64,
    wire: Wire,
    source_cpu_seconds: f64,
    source_kib: u64,
    target_kib: u64,
}

/// The mover with a large disk, for its memory.
fn move_disk(programs: &Programs, gib: u64, image: &Path, parent: &Path) -> Result<Disk> {
    let len = gib << 30;
    // At either end, and what the ends remember.
    let needed = 2 * if gib > FULL { std::fs::metadata(image)?.len() } else { len } + (1 << 30);
    let about = nix::sys::statvfs::statvfs(parent)?;
    let free = about.blocks_available() * about.fragment_size();
    let [needed_mib, free_mib] = [needed >> 20, free >> 20];
    let place = parent.display();
    ensure!(
        free >= needed,
        "{place} has {free_mib} MiB free of {needed_mib}: make room, or leave it out with --disks"
    );
    let link = Link::up(None)?;
    let mut content = 0;
    let fill = |source: &Path| {
        content = image::disk(image, source, len, gib > FULL)?;
        Ok(())
    };
    let mut place = Place::new(programs, &link, 0, Peer::Mover, parent, fill)?;
    let cost = transfer(&mut place, &link, false, None)?;
    place.check()?;
    let Cost { seconds, source_kib, target_kib, .. } = cost;
    Ok(Disk { gib, content, seconds, source_kib, target_kib })
}

/// One transfer to its end. With `cut`, the sender is killed when 60 % of so many bytes have gone, and started again.
fn transfer(place: &mut Place<'_>, link: &Link, late: bool, cut: Option<u64>) -> Result<Cost> {
    place.cool()?;
    let _target = place.serve(late.then_some(ONE_WAY))?;
    let memory = Memory::watch(link);
    let (bytes, cpu, began) = (link.bytes()?, of_children()?, Instant::now());
    if let Some(whole) = cut {
        let mut sender = Held::start(&mut place.send(late)?)?;
        while link.bytes()?.since(bytes).both() * 10 < whole * 6 {
            ensure!(sender.ended()?.is_none(), "it ended before 60 % had gone: {}", place.said());
            ensure!(began.elapsed() < LIMIT, "it does not come to 60 %: {}", place.said());
            thread::sleep(Duration::from_millis(5));
        }
        sender.kill();
    }
    let mut sender = Held::start(&mut place.send(late)?)?;
    let ended = loop {
        match sender.ended()? {
            Some(ended) => break ended,
            None if began.elapsed() > LIMIT => anyhow::bail!("it does not end: {}", place.said()),
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    let source_cpu_seconds = of_children()? - cpu;
    let wire = link.bytes()?.since(bytes);
    let [source_kib, target_kib] = memory.peaks();
    ensure!(ended.success(), "it ended with {ended}: {}", place.said());
    Ok(Cost { seconds, wire, source_cpu_seconds, source_kib, target_kib })
}
