//! What the mover costs: side by side with others, on one image and one shaped link.

mod image;
mod link;
mod meter;
mod peers;
mod report;

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use conme_testbed::{Dirs, Progress};
use serde::Serialize;

pub use self::link::relay;
use self::{
    image::Change,
    link::Link,
    meter::{Held, Memory, of_children},
    peers::{Peer, Place, Programs},
    report::{Figure, OneCore, Run},
};
use crate::report::Machine;

/// What `conme-bench mover` is told.
#[derive(Args)]
pub struct MoverArgs {
    /// MiB of the image: a system made of packages of the distribution, and free room.
    #[arg(long, default_value_t = 768, value_parser = clap::value_parser!(u64).range(700..=65536))]
    image_mib: u64,
    /// Links in Mbit/s; 0 is unshaped.
    #[arg(long, num_args = 1.., value_delimiter = ',', default_values_t = [10, 100, 0])]
    links: Vec<u32>,
    /// What is measured.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_enum, default_values_t = Case::ALL)]
    cases: Vec<Case>,
    /// Who is measured.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_enum,
          default_values_t = [Peer::Mover, Peer::Rsync, Peer::Borg, Peer::Nbdcopy])]
    peers: Vec<Peer>,
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

/// Nothing that is measured takes longer.
const LIMIT: Duration = Duration::from_secs(3600);
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
    let beside = std::env::current_exe()?.with_file_name("conme-mover");
    let mover = args.mover.clone().unwrap_or(beside);
    let step = progress.long_step("programs and image", "a minute when they are fetched");
    let programs = Programs::ready(&dirs, &mover, args.level, &progress).await?;
    let image = image::system(&dirs, args.image_mib, &progress).await?;
    step.done("");
    let mut run = Run {
        machine: Machine::this()?,
        versions: programs.versions()?,
        image_mib: args.image_mib,
        one_core: one_core(&mover, &image, &progress),
        figures: Vec::new(),
    };
    for mbit in &args.links {
        let link = Link::up((*mbit > 0).then_some(*mbit))?;
        for peer in &args.peers {
            let step = progress.long_step(&format!("{}: {}", rate(*mbit), peer.name()), "minutes");
            let measured = peer_on_link(args, &programs, &link, *mbit, *peer, &image, &dirs.cache)?;
            step.done(&summary(&measured));
            run.figures.extend(measured);
        }
        // After each link, so that a run that is broken off has told something.
        report::write(&run, &args.output)?;
    }
    let missed = report::write(&run, &args.output)?;
    missed.iter().for_each(|target| progress.note(&format!("missed: {target}")));
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    progress.note(&format!(
        "{} targets are missed; {minutes:.1} minutes: {}",
        missed.len(),
        args.output.join("mover.md").display()
    ));
    Ok(missed.is_empty())
}

/// What one core can do; a target is missed without it, which is said.
fn one_core(mover: &Path, image: &Path, progress: &Progress) -> Option<OneCore> {
    OneCore::measure(mover, image)
        .inspect_err(|error| progress.note(&format!("what one core can do is not measured: {error:#}")))
        .ok()
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

fn peer_on_link(
    args: &MoverArgs,
    programs: &Programs,
    link: &Link,
    mbit: u32,
    peer: Peer,
    image: &Path,
    parent: &Path,
) -> Result<Vec<Figure>> {
    let mut figures: Vec<Figure> = Vec::new();
    let mut place = Place::new(programs, link, peer, image, parent)?;
    // What was killed is measured against a first copy, and what changed has to have arrived once.
    let mut cases = vec![Case::First];
    cases.extend(args.cases.iter().filter(|case| **case != Case::First));
    for case in cases {
        if !peer.knows_differences() && (case.change().is_some() || case == Case::Resume) {
            continue;
        }
        if let Some(what) = case.change() {
            image::change(&place.source(), what)?;
        } else if case != Case::First {
            place = Place::new(programs, link, peer, image, parent)?;
        }
        let whole = figures.first().map(|first| first.wire);
        let cut = (case == Case::Resume).then(|| whole.context("no first copy")).transpose()?;
        let measured = transfer(&mut place, link, case == Case::Delay, cut)
            .with_context(|| format!("{}, {}, {}", rate(mbit), peer.name(), case.name()))?;
        let resent = cut.map(|whole| measured.wire.saturating_sub(whole));
        figures.push(Figure { mbit, peer, case, resent, ..measured });
        place.check()?;
    }
    figures.retain(|figure| args.cases.contains(&figure.case));
    Ok(figures)
}

/// One transfer to its end. With `cut`, the sender is killed when 60 % of so many bytes have gone, and started again.
fn transfer(place: &mut Place<'_>, link: &Link, late: bool, cut: Option<u64>) -> Result<Figure> {
    let _target = place.serve(late.then_some(ONE_WAY))?;
    let memory = Memory::watch(link);
    let (bytes, cpu, began) = (link.bytes()?, of_children()?, Instant::now());
    if let Some(whole) = cut {
        let mut sender = Held::start(&mut place.send(late)?)?;
        while (link.bytes()? - bytes) * 10 < whole * 6 {
            ensure!(sender.ended()?.is_none(), "the sender ended before 60 % had gone");
            thread::sleep(Duration::from_millis(5));
        }
        sender.kill();
    }
    let mut sender = Held::start(&mut place.send(late)?)?;
    let ended = loop {
        match sender.ended()? {
            Some(ended) => break ended,
            None if began.elapsed() > LIMIT => anyhow::bail!("it does not end"),
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    // Counts of bytes are asked of a program, too, which costs processor time while it is waited for the 60 %.
    let cpu = of_children()? - cpu;
    let wire = link.bytes()? - bytes;
    let [source_kib, target_kib] = memory.peaks();
    ensure!(ended.success(), place.failure(ended));
    Ok(Figure {
        mbit: 0,
        peer: Peer::Mover,
        case: Case::First,
        seconds,
        wire,
        source_cpu_seconds: cut.is_none().then_some(cpu),
        source_kib,
        target_kib,
        resent: None,
    })
}
