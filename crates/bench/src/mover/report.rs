//! What was measured of the mover, and in words.

use std::{fmt, fmt::Write as _, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Case, link::run, peers::Peer, rate};
use crate::report::Machine;

/// Everything of one run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Where and when.
    pub machine: Machine,
    /// Of the programs.
    pub versions: Vec<String>,
    /// Size of the image.
    pub image_mib: u64,
    /// What one core can do; none when its program was not built.
    pub one_core: Option<OneCore>,
    /// All figures.
    pub figures: Vec<Figure>,
}

/// Hashes and zstd's level 1 over the image, on one core.
#[derive(Debug, Serialize, Deserialize)]
pub struct OneCore {
    /// Bytes of the image.
    pub bytes: u64,
    /// Units with content.
    pub units: u64,
    /// Bytes that they were packed to.
    pub packed: u64,
    /// How long it took.
    pub seconds: f64,
}

impl OneCore {
    /// Lets the program beside the mover measure it.
    ///
    /// # Errors
    /// When that was not built.
    pub fn measure(mover: &Path, image: &Path) -> Result<Self> {
        let program = mover.with_file_name("examples").join("one_core");
        let told = run(Command::new(program).arg(image)).context("build it, as `make bench-mover` does")?;
        Ok(serde_json::from_slice(&told)?)
    }
}

/// One transfer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// The link; 0 is unshaped.
    pub mbit: u32,
    /// Who.
    pub peer: Peer,
    /// What.
    pub case: Case,
    /// From the start of the sender to its end.
    pub seconds: f64,
    /// Bytes on the link, both directions, headers included.
    pub wire: u64,
    /// Processor time of the sender; not known where it was killed.
    pub source_cpu_seconds: Option<f64>,
    /// The most memory at the source, in KiB.
    pub source_kib: u64,
    /// At the target.
    pub target_kib: u64,
    /// Bytes beyond those of a first copy that was not killed.
    pub resent: Option<u64>,
}

impl Figure {
    /// Megabytes on the link.
    pub fn mb(&self) -> f64 {
        self.wire as f64 / 1e6
    }
}

/// A limit, and where the mover is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// What is limited.
    pub figure: String,
    /// The limit.
    pub at_most: f64,
    /// What it is.
    pub is: f64,
    /// Of both.
    pub unit: &'static str,
}

impl Target {
    /// Whether it is kept; what could not be measured is not.
    pub fn is_met(&self) -> bool {
        self.is <= self.at_most
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { figure, at_most, is, unit } = self;
        write!(f, "{figure}: {is:.2} {unit}, at most {at_most:.2} {unit}")
    }
}

/// The most memory that an end may take, in MiB.
const MEMORY: f64 = 64.0;
/// Bytes of a first copy, against the fewest of all.
const NEARLY: f64 = 1.02;
/// Of what one core can do, unshaped.
const SHARE: f64 = 0.7;
/// Time is not measured more finely than this on a machine that does other things, too.
const GRAIN: f64 = 0.1;

/// The targets that this run can tell something about.
pub fn targets(run: &Run) -> Vec<Target> {
    let mut targets = Vec::new();
    for mine in run.figures.iter().filter(|figure| figure.peer == Peer::Mover) {
        let name = format!("{}, {}", rate(mine.mbit), mine.case.name());
        let mut add = |what: &str, at_most: f64, is: f64, unit: &'static str| {
            targets.push(Target { figure: format!("{name}: {what}"), at_most, is, unit });
        };
        let memory = mine.source_kib.max(mine.target_kib) as f64 / 1024.0;
        add("memory of either end", MEMORY, memory, "MiB");
        let others = || {
            let same = |other: &&Figure| other.mbit == mine.mbit && other.case == mine.case;
            run.figures.iter().filter(same).filter(|other| other.peer != Peer::Mover)
        };
        let least = |of: fn(&Figure) -> f64| others().map(of).reduce(f64::min);
        let (wall, wire) = (least(|one| one.seconds), least(Figure::mb));
        match mine.case {
            Case::First if mine.mbit == 100 => {
                wall.inspect(|wall| add("time", wall + GRAIN, mine.seconds, "s"));
                wire.inspect(|wire| add("bytes on the wire", NEARLY * wire, mine.mb(), "MB"));
            }
            Case::Scattered | Case::Stretches | Case::Region => {
                wall.inspect(|wall| add("time", wall + GRAIN, mine.seconds, "s"));
                wire.inspect(|wire| add("bytes on the wire", *wire, mine.mb(), "MB"));
            }
            Case::First if mine.mbit == 0 => {
                let limit = run.one_core.as_ref().map_or(f64::NAN, |core| core.seconds / SHARE);
                add("time, by what one core can do", limit, mine.seconds, "s");
            }
            Case::First | Case::Resume | Case::Delay => {}
        }
    }
    targets
}

/// Writes `mover.json` and `mover.md`; returns the targets that are missed.
///
/// # Errors
/// Of the disk.
pub fn write(run: &Run, output: &Path) -> Result<Vec<Target>> {
    std::fs::create_dir_all(output)?;
    let targets = targets(run);
    let json = serde_json::json!({ "run": run, "targets": targets });
    std::fs::write(output.join("mover.json"), serde_json::to_string_pretty(&json)? + "\n")?;
    std::fs::write(output.join("mover.md"), words(run, &targets)?)?;
    Ok(targets.into_iter().filter(|target| !target.is_met()).collect())
}

fn words(run: &Run, targets: &[Target]) -> Result<String> {
    let mut text = String::from("# What the mover costs\n\n");
    let Machine { at, cores, processor, memory_mib, kernel, load, conme, .. } = &run.machine;
    writeln!(
        text,
        "Written by `make bench-mover`. Con.Me {conme}, {at}; {cores} cores ({processor}), {memory_mib} MiB, Linux"
    )?;
    writeln!(text, "{kernel}, load {load} before the run. {}.\n", run.versions.join("; "))?;
    writeln!(
        text,
        "An image of {} MiB with a system from packages of Debian, between two network",
        run.image_mib
    )?;
    writeln!(
        text,
        "namespaces, shaped with `tbf` at both ends. Bytes are those of the link in both directions, headers"
    )?;
    writeln!(
        text,
        "included. The delay of 200 ms is that of a relay, which ends TCP. borg and rsync compress with zstd; nbdcopy"
    )?;
    writeln!(
        text,
        "does not, and knows no differences. None of the peers encrypts here; the mover does. What each has left"
    )?;
    writeln!(text, "at the target is compared byte by byte. × is against the mover.\n")?;
    match &run.one_core {
        Some(core) => {
            let speed = core.bytes as f64 / 1e6 / core.seconds;
            let seconds = core.seconds;
            writeln!(
                text,
                "One core hashes and packs it with zstd's level 1 in {seconds:.2} s ({speed:.0} MB/s).\n"
            )?;
        }
        None => writeln!(text, "What one core can do was not measured.\n")?,
    }
    let missed = targets.iter().filter(|target| !target.is_met()).count();
    writeln!(text, "## Targets\n\n{} of {} are met.\n", targets.len() - missed, targets.len())?;
    writeln!(text, "| figure | at most | is | |\n| --- | ---: | ---: | --- |")?;
    for target in targets {
        let Target { figure, at_most, is, unit } = target;
        let verdict = if target.is_met() { "met" } else { "**missed**" };
        writeln!(text, "| {figure} | {at_most:.2} {unit} | {is:.2} {unit} | {verdict} |")?;
    }
    let mut at = None;
    for figure in &run.figures {
        if at != Some(figure.mbit) {
            at = Some(figure.mbit);
            writeln!(text, "\n## {}\n", rate(figure.mbit))?;
            writeln!(
                text,
                "| case | who | time | × | on the wire | × | processor, source | memory, source / target | sent again |"
            )?;
            writeln!(text, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
            let mut of_link: Vec<&Figure> =
                run.figures.iter().filter(|other| other.mbit == figure.mbit).collect();
            of_link.sort_by_key(|other| (other.case, other.peer));
            for one in &of_link {
                let mine = of_link.iter().find(|mine| mine.peer == Peer::Mover && mine.case == one.case);
                let against = |of: fn(&Figure) -> f64| {
                    mine.map_or_else(|| "–".to_owned(), |mine| format!("{:.2}", of(one) / of(mine)))
                };
                let cpu = one.source_cpu_seconds.map_or_else(|| "–".to_owned(), |cpu| format!("{cpu:.2} s"));
                let again = one
                    .resent
                    .map_or_else(|| "–".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
                writeln!(
                    text,
                    "| {} | {} | {:.2} s | {} | {:.1} MB | {} | {cpu} | {:.0} / {:.0} MiB | {again} |",
                    one.case.name(),
                    one.peer.name(),
                    one.seconds,
                    against(|one| one.seconds),
                    one.mb(),
                    against(Figure::mb),
                    one.source_kib as f64 / 1024.0,
                    one.target_kib as f64 / 1024.0,
                )?;
            }
        }
    }
    Ok(text)
}
