//! What was measured of the mover, and in words.

use std::{
    fmt::{self, Write as _},
    path::Path,
};

use anyhow::Result;
use serde::Serialize;

use super::{
    Case,
    link::Wire,
    one_core::OneCore,
    peers::{Peer, level},
    rate,
};
use crate::report::Machine;

/// Everything of one run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Where and when.
    pub machine: Machine,
    /// Of the programs.
    pub versions: Vec<String>,
    /// What one core can do.
    pub one_core: OneCore,
    /// Bytes a second that the disk gives.
    pub reading: f64,
    /// All figures.
    pub figures: Vec<Figure>,
    /// What could not be measured.
    pub failures: Vec<Failure>,
    /// The mover's memory with large disks.
    pub disks: Vec<Disk>,
    /// How long the run took.
    pub minutes: f64,
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
    /// MiB of the image.
    pub image_mib: u64,
    /// From the start of the sender to its end.
    pub seconds: f64,
    /// Bytes on the link, headers included.
    pub wire: Wire,
    /// Processor time of the sender; of both where it was killed.
    pub source_cpu_seconds: f64,
    /// The most memory at the source, in KiB.
    pub source_kib: u64,
    /// At the target.
    pub target_kib: u64,
    /// Bytes on the link beyond those of a first copy that was not killed.
    pub resent: Option<u64>,
}

impl Figure {
    /// Megabytes on the link, both directions.
    pub fn mb(&self) -> f64 {
        mb(self.wire.both())
    }
}

/// Something that a peer did not do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The link; 0 is unshaped.
    pub mbit: u32,
    /// Who.
    pub peer: Peer,
    /// What.
    pub case: Case,
    /// Why, in one line.
    pub why: String,
}

impl Failure {
    /// From an error.
    pub fn new(mbit: u32, peer: Peer, case: Case, error: &anyhow::Error) -> Self {
        let why = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
        Self { mbit, peer, case, why: why.chars().take(600).collect() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mbit, peer, case, why } = self;
        write!(f, "{}, {}, {}: {why}", rate(*mbit), case.name(), peer.name())
    }
}

/// The mover with a large disk.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Its size.
    pub gib: u64,
    /// Bytes of it that are not holes.
    pub content: u64,
    /// How long the first copy took, unshaped.
    pub seconds: f64,
    /// The most memory at the source, in KiB.
    pub source_kib: u64,
    /// At the target.
    pub target_kib: u64,
}

/// A limit, and where the mover is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// What is limited.
    pub figure: String,
    /// The limit.
    pub at_most: f64,
    /// What it is; nothing when it could not be measured.
    pub is: Option<f64>,
    /// Of both.
    pub unit: &'static str,
    /// Who sets the limit.
    pub set_by: String,
}

impl Target {
    /// Whether it is kept; what could not be measured is not.
    pub fn is_met(&self) -> bool {
        self.is.is_some_and(|is| is <= self.at_most)
    }

    fn verdict(&self) -> &'static str {
        if self.is_met() { "met" } else { "missed" }
    }

    fn is(&self) -> String {
        self.is.map_or_else(|| "not measured".to_owned(), |is| format!("{is:.2} {}", self.unit))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { figure, at_most, unit, set_by, .. } = self;
        write!(f, "{}: {figure}: {}, at most {at_most:.2} {unit} ({set_by})", self.verdict(), self.is())
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
        targets.extend(of_figure(run, mine));
    }
    for disk in &run.disks {
        for (end, kib) in [("source", disk.source_kib), ("target", disk.target_kib)] {
            targets.push(memory(format!("a disk of {} GiB: memory of the {end}", disk.gib), kib));
        }
    }
    for failure in run.failures.iter().filter(|failure| failure.peer == Peer::Mover) {
        targets.push(Target {
            figure: format!("{}, {}", rate(failure.mbit), failure.case.name()),
            at_most: 0.0,
            is: None,
            unit: "s",
            set_by: "it has to end".to_owned(),
        });
    }
    targets
}

fn memory(figure: String, kib: u64) -> Target {
    let set_by = "for a disk of any size".to_owned();
    Target { figure, at_most: MEMORY, is: Some(kib as f64 / 1024.0), unit: "MiB", set_by }
}

fn of_figure(run: &Run, mine: &Figure) -> Vec<Target> {
    let name = format!("{}, {}", rate(mine.mbit), mine.case.name());
    let mut targets = Vec::new();
    for (end, kib) in [("source", mine.source_kib), ("target", mine.target_kib)] {
        targets.push(memory(format!("{name}: memory of the {end}"), kib));
    }
    let others = run
        .figures
        .iter()
        .filter(|other| (other.mbit, other.case) == (mine.mbit, mine.case) && other.peer != Peer::Mover);
    let others: Vec<&Figure> = others.collect();
    let mut against = |what: &str, of: fn(&Figure) -> f64, limit: fn(f64) -> f64, unit| {
        let least = others.iter().min_by(|one, other| of(one).total_cmp(&of(other)));
        targets.extend(least.map(|least| Target {
            figure: format!("{name}: {what}"),
            at_most: limit(of(least)),
            is: Some(of(mine)),
            unit,
            set_by: format!("{} has {:.2} {unit}", least.peer.name(), of(least)),
        }));
    };
    match mine.case {
        Case::First if mine.mbit == 100 => {
            against("time", |one| one.seconds, |least| least + GRAIN, "s");
            against("bytes on the wire", Figure::mb, |least| NEARLY * least, "MB");
        }
        Case::Scattered | Case::Stretches | Case::Region => {
            against("time", |one| one.seconds, |least| least + GRAIN, "s");
            against("bytes on the wire", Figure::mb, |least| least, "MB");
        }
        Case::First if mine.mbit == 0 => targets.push(Target {
            figure: format!("{name}: time, by what one core can do"),
            at_most: run.one_core.seconds / SHARE,
            is: Some(mine.seconds),
            unit: "s",
            set_by: format!("70 % of one core, which takes {:.2} s", run.one_core.seconds),
        }),
        Case::First | Case::Resume | Case::Delay => {}
    }
    targets
}

/// Writes `mover.json` and `mover.md`; returns the targets.
///
/// # Errors
/// Of the disk.
pub fn write(run: &Run, output: &Path) -> Result<Vec<Target>> {
    std::fs::create_dir_all(output)?;
    let targets = targets(run);
    let json = serde_json::json!({ "run": run, "targets": targets });
    std::fs::write(output.join("mover.json"), serde_json::to_string_pretty(&json)? + "\n")?;
    std::fs::write(output.join("mover.md"), words(run, &targets)?)?;
    Ok(targets)
}

fn words(run: &Run, targets: &[Target]) -> Result<String> {
    let mut text = String::from("# What the mover costs\n\n");
    let Machine { at, cores, processor, memory_mib, kernel, load, conme, .. } = &run.machine;
    writeln!(
        text,
        "Written by `make bench-mover` in {:.0} minutes. Con.Me {conme}, {at}; {cores} cores ({processor}), {memory_mib} MiB,\n\
         Linux {kernel}, load {load} before the run. The disk reads {:.0} MB/s. One core hashes (BLAKE3, 4 KiB) and packs\n\
         (zstd 1, 1 MiB) {:.0} MB/s of the image. {}.\n",
        run.minutes,
        run.reading / 1e6,
        run.one_core.speed() / 1e6,
        run.versions.join("; ")
    )?;
    let missed = targets.iter().filter(|target| !target.is_met()).count();
    writeln!(text, "## Targets\n\n{} of {} are met.\n", targets.len() - missed, targets.len())?;
    writeln!(text, "| figure | at most | set by | is | |\n| --- | ---: | --- | ---: | --- |")?;
    for target in targets {
        let Target { figure, at_most, unit, set_by, .. } = target;
        let verdict = if target.is_met() { "met" } else { "**missed**" };
        writeln!(text, "| {figure} | {at_most:.2} {unit} | {set_by} | {} | {verdict} |", target.is())?;
    }
    let mut links: Vec<u32> = run.figures.iter().map(|figure| figure.mbit).collect();
    links.dedup();
    for mbit in links {
        table(run, mbit, &mut text)?;
    }
    if !run.disks.is_empty() {
        writeln!(text, "\n## The mover's memory\n\nA first copy, unshaped; compared afterwards.\n")?;
        writeln!(text, "| disk | content | time | memory, source / target |\n| ---: | ---: | ---: | ---: |")?;
        for disk in &run.disks {
            let [source, target] = [disk.source_kib, disk.target_kib].map(mib);
            let (gib, content, seconds) = (disk.gib, mb(disk.content), disk.seconds);
            writeln!(
                text,
                "| {gib} GiB | {content:.0} MB | {seconds:.2} s | {source:.0} / {target:.0} MiB |"
            )?;
        }
    }
    if !run.failures.is_empty() {
        writeln!(text, "\n## Not measured\n")?;
        for failure in &run.failures {
            writeln!(text, "- {failure}")?;
        }
    }
    text += METHOD;
    Ok(text)
}

fn table(run: &Run, mbit: u32, text: &mut String) -> Result<()> {
    let mut figures: Vec<&Figure> = run.figures.iter().filter(|figure| figure.mbit == mbit).collect();
    figures.sort_by_key(|figure| (figure.case, figure.peer));
    let image = figures.first().map_or(0, |figure| figure.image_mib);
    writeln!(text, "\n## {}\n", rate(mbit))?;
    writeln!(
        text,
        "An image of {image} MiB. rsync and borg have zstd's level {}. × is against the mover.\n",
        level(mbit)
    )?;
    writeln!(
        text,
        "| case | who | time | × | on the wire | × | there / back | processor, source | memory, source / target | sent again |"
    )?;
    writeln!(text, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
    for one in &figures {
        let mine = figures.iter().find(|mine| mine.peer == Peer::Mover && mine.case == one.case);
        let ratio = |of: fn(&Figure) -> f64| {
            mine.map_or_else(|| "–".to_owned(), |mine| format!("{:.2}", of(one) / of(mine)))
        };
        let again = one.resent.map_or_else(|| "–".to_owned(), |bytes| format!("{:.1} MB", mb(bytes)));
        writeln!(
            text,
            "| {} | {} | {:.2} s | {} | {:.1} MB | {} | {:.1} / {:.1} MB | {:.2} s | {:.0} / {:.0} MiB | {again} |",
            one.case.name(),
            one.peer.name(),
            one.seconds,
            ratio(|one| one.seconds),
            one.mb(),
            ratio(Figure::mb),
            mb(one.wire.there),
            mb(one.wire.back),
            one.source_cpu_seconds,
            mib(one.source_kib),
            mib(one.target_kib),
        )?;
    }
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// How it was measured, and what has to be known to read the figures.
const METHOD: &str = "
## Method

- A system made of packages of Debian in an ext4 image, the same for all on a link; the same blocks are changed, and each
  change is sent on top of the one before. Two network namespaces, a `tbf` at both ends of the link.
- Time runs from the start of the sending program to its end. Everything is made durable and dropped from the cache before,
  so disks are cold for all. One transfer at a time, each once.
- Bytes are counted at the link, headers included. *Sent again* is what a copy that was killed at 60 % of the bytes of
  a first copy, and started again, took beyond that first copy.
- The delay is that of a relay at the target: each byte arrives 100 ms late in either direction. TCP ends at the relay, so
  it is the protocol that waits, not the windows of TCP.
- Memory is the sum of the peaks of an end's programs. Processor time is that of the sending program and of those that it
  started and waited for.
- What each has left at the target is compared byte by byte; a difference is a failure. Taking the disk out of the
  repositories of borg and casync again is not part of their time.
- The mover has its default settings and TLS 1.3 with certificates of both ends; the target is durable at the end. The
  others do not encrypt. rsync (`--inplace --fsync --block-size=4096`), borg (`fixed,16384`, a checkpoint every 5 s) and
  nbdcopy (`--flush`, four connections) are durable at the end, too; casync (64 KiB, zstd) is not. borg and casync talk
  through a pipe in place of ssh. nbdcopy knows neither compression nor differences, and has only a first copy.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(mbit: u32, peer: Peer, case: Case, seconds: f64, bytes: u64) -> Figure {
        Figure {
            mbit,
            peer,
            case,
            image_mib: 768,
            seconds,
            wire: Wire { there: bytes - 1000, back: 1000 },
            source_cpu_seconds: 1.0,
            source_kib: 20 << 10,
            target_kib: 30 << 10,
            resent: None,
        }
    }

    fn run_of(figures: Vec<Figure>) -> Run {
        Run {
            machine: Machine::this().unwrap(),
            versions: vec!["conme-mover 1".to_owned()],
            one_core: OneCore { bytes: 700_000_000, units: 1, packed: 1, seconds: 7.0 },
            reading: 1e9,
            figures,
            failures: Vec::new(),
            disks: Vec::new(),
            minutes: 1.0,
        }
    }

    fn missed(run: &Run) -> Vec<String> {
        targets(run).into_iter().filter(|target| !target.is_met()).map(|target| target.figure).collect()
    }

    #[test]
    fn a_peer_that_is_faster_or_sends_less_is_told_by_name() {
        let mine = |seconds, bytes| figure(100, Peer::Mover, Case::Scattered, seconds, bytes);
        let rsync = || figure(100, Peer::Rsync, Case::Scattered, 3.0, 9_000_000);
        let borg = || figure(100, Peer::Borg, Case::Scattered, 2.0, 12_000_000);
        assert_eq!(missed(&run_of(vec![mine(2.05, 9_000_000), rsync(), borg()])), Vec::<String>::new());
        let run = run_of(vec![mine(2.2, 9_000_001), rsync(), borg()]);
        assert_eq!(
            missed(&run),
            ["100 Mbit/s, 1 % as 4 KiB: time", "100 Mbit/s, 1 % as 4 KiB: bytes on the wire"]
        );
        let told: Vec<String> = targets(&run).iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|line| line.starts_with("missed: ") && line.contains("borg has 2.00 s")));
        assert!(told.iter().any(|line| line.starts_with("missed: ") && line.contains("rsync has 9.00 MB")));
    }

    #[test]
    fn a_first_copy_is_held_against_peers_at_100_and_against_one_core_unshaped() {
        let pair = |mbit, seconds| {
            vec![
                figure(mbit, Peer::Mover, Case::First, seconds, 102_000_000),
                figure(mbit, Peer::Rsync, Case::First, 9.95, 100_000_000),
            ]
        };
        assert_eq!(missed(&run_of(pair(100, 10.0))), Vec::<String>::new());
        assert_eq!(missed(&run_of(pair(100, 10.1))), ["100 Mbit/s, first copy: time"]);
        // 7 s of one core are 10 s at 70 %.
        assert_eq!(missed(&run_of(pair(0, 10.0))), Vec::<String>::new());
        assert_eq!(missed(&run_of(pair(0, 10.1))), ["unshaped, first copy: time, by what one core can do"]);
        assert_eq!(missed(&run_of(pair(10, 99.0))), Vec::<String>::new());
    }

    #[test]
    fn a_peer_on_another_link_or_with_another_case_sets_no_limit() {
        let run = run_of(vec![
            figure(100, Peer::Mover, Case::Region, 5.0, 50_000_000),
            figure(0, Peer::Rsync, Case::Region, 1.0, 5_000_000),
            figure(100, Peer::Rsync, Case::Stretches, 1.0, 5_000_000),
        ]);
        assert_eq!(missed(&run), Vec::<String>::new());
        assert_eq!(targets(&run).len(), 2, "memory only");
    }

    #[test]
    fn memory_is_limited_at_each_end_and_for_each_disk() {
        let mut run = run_of(vec![figure(10, Peer::Mover, Case::Resume, 1.0, 5000)]);
        run.figures[0].target_kib = (64 << 10) + 1;
        run.disks.push(Disk {
            gib: 64,
            content: 1,
            seconds: 1.0,
            source_kib: 65 << 10,
            target_kib: 64 << 10,
        });
        assert_eq!(
            missed(&run),
            ["10 Mbit/s, killed at 60 %: memory of the target", "a disk of 64 GiB: memory of the source"]
        );
    }

    #[test]
    fn a_copy_of_the_mover_that_fails_is_a_target_that_is_missed_and_one_of_a_peer_is_only_told() {
        let mut run = run_of(Vec::new());
        let error = anyhow::anyhow!("no\nroom").context("it ended with 1");
        run.failures.push(Failure::new(100, Peer::Casync, Case::Delay, &error));
        assert_eq!(missed(&run), Vec::<String>::new());
        run.failures.push(Failure::new(0, Peer::Mover, Case::First, &error));
        assert_eq!(missed(&run), ["unshaped, first copy"]);
        let text = words(&run, &targets(&run)).unwrap();
        let told = "100 Mbit/s, first copy, 200 ms, casync: it ended with 1: no room";
        assert!(text.contains(told), "{text}");
        assert!(text.contains("not measured | **missed** |"), "{text}");
    }

    #[test]
    fn the_report_has_ratios_both_directions_and_what_was_sent_again() {
        let mut again = figure(100, Peer::Rsync, Case::Resume, 30.0, 40_000_000);
        again.resent = Some(2_500_000);
        let run = run_of(vec![
            figure(100, Peer::Mover, Case::First, 10.0, 20_000_000),
            figure(100, Peer::Rsync, Case::First, 25.0, 30_000_000),
            again,
        ]);
        let text = words(&run, &targets(&run)).unwrap();
        assert!(
            text.contains("| first copy | rsync | 25.00 s | 2.50 | 30.0 MB | 1.50 | 30.0 / 0.0 MB |"),
            "{text}"
        );
        assert!(text.contains("| killed at 60 % | rsync | 30.00 s | – |"), "{text}");
        assert!(text.contains("| 2.5 MB |"), "{text}");
        assert!(text.contains("100 MB/s of the image"), "{text}");
    }
}
