//! A disk whose free space reads as zeros.
//!
//! Why nothing can be lost by it:
//!
//! - Only a proof lets anybody open the target, and a proof believes a bitmap only of a file system that is *clean*: not
//!   mounted for writing, or frozen, so that nothing of it waits in memory or in its journal. Of any other it reads
//!   everything. When the proof has read everything, all bitmaps are read once more: if a byte of them or of the
//!   superblock differs, somebody has written meanwhile, and the proof ends.
//! - A copy while people work is a head start. What it takes for free since the bitmap on the disk is behind, the proof
//!   reads, finds to be other than zeros, and sends.
//! - A bitmap that does not agree with its checksum, with the count of its group or with where the file system keeps its
//!   own tables frees nothing; nor does a file system or a partition table of which anything is not known.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ext4::{Ext4, Found, Survey};
use super::frame::RoundKind;
use super::partitions::{Layout, layout};
use super::ports::{Again, Extent, Source};

/// File systems that evidence names at most: a statement has an end.
pub const NAMED: usize = 32;

/// Free space that was taken for zeros, and is zeros on the target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Bytes, in all.
    pub bytes: u64,
    /// The file systems whose word was taken, the first [`NAMED`].
    pub file_systems: Vec<SkippedIn>,
}

/// A file system whose word for what is free was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedIn {
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its kind: `ext4` stands for ext2 and ext3, too.
    pub kind: String,
    /// Its name for machines.
    pub uuid: String,
    /// Bytes of it that are free.
    pub bytes: u64,
    /// Groups of blocks that were read whole, since their tables do not agree.
    pub doubtful: u64,
    /// Whether nobody had it open for writing. Always so in a proof.
    pub clean: bool,
}

#[derive(Debug)]
struct System {
    ext4: Ext4,
    survey: Survey,
}

/// A disk, and what of it is free.
#[derive(Debug)]
pub struct Free<S> {
    inner: S,
    systems: Arc<[System]>,
    /// What is free in the group that was read last.
    at: Option<(usize, u64, Vec<Range<u64>>)>,
}

impl<S: Source> Free<S> {
    /// The disk as it is: nothing is skipped.
    pub fn nothing(inner: S) -> Self {
        Self { inner, systems: Arc::new([]), at: None }
    }

    /// A disk of `len` bytes without its free space, for a round of this kind; and what there is to say about it.
    ///
    /// # Errors
    /// Of the disk.
    pub fn skipping(mut inner: S, len: u64, kind: RoundKind) -> io::Result<(Self, Vec<String>)> {
        let (mut systems, mut words) = (Vec::new(), Vec::new());
        let parts = match layout(&mut inner, len)? {
            Layout::Whole => std::iter::once(0..len).collect(),
            Layout::Parts(parts) => parts,
            Layout::Unclear(why) => {
                words.push(format!("free space is read, too: {why}"));
                Vec::new()
            }
        };
        for part in parts {
            let place = part.start;
            let ext4 = match Ext4::find(&mut inner, len, &part)? {
                Found::Ext4(ext4) => ext4,
                Found::Other => continue,
                Found::Odd(why) => {
                    words.push(format!("at byte {place}: free space is read, too: {why}"));
                    continue;
                }
            };
            if !ext4.is_clean() && kind == RoundKind::Proof {
                words.push(format!(
                    "at byte {place}: free space of ext4 {ext4} is read, too, since it is mounted for writing or was \
                     not unmounted cleanly: unmount it, mount it read-only or freeze it with a hook before the last \
                     round"
                ));
                continue;
            }
            let survey = ext4.survey(&mut inner)?;
            let doubtful = match survey.doubtful {
                0 => String::new(),
                count => format!(
                    "; {count} of its {} groups are read whole: their tables do not agree",
                    ext4.groups()
                ),
            };
            let mounted = match ext4.is_clean() {
                true => "",
                false => {
                    "; it is mounted for writing: the last round reads them all the same, unless it stands still by then"
                }
            };
            let mib = survey.free >> 20;
            words.push(format!(
                "at byte {place}: {mib} MiB of ext4 {ext4} are free and not read{doubtful}{mounted}"
            ));
            systems.push(System { ext4: *ext4, survey });
        }
        if words.is_empty() {
            words.push(
                "free space is read, too: there is no ext4 on a partition or on the disk itself".into(),
            );
        }
        Ok((Self { inner, systems: systems.into(), at: None }, words))
    }

    /// What was skipped, for evidence; none when nothing could be.
    pub fn skipped(&self) -> Option<Skipped> {
        let bytes = self.systems.iter().map(|system| system.survey.free).sum();
        let file_systems: Vec<_> = self
            .systems
            .iter()
            .take(NAMED)
            .map(|System { ext4, survey }| SkippedIn {
                offset: ext4.span().start,
                kind: "ext4".into(),
                uuid: ext4.to_string(),
                bytes: survey.free,
                doubtful: survey.doubtful,
                clean: ext4.is_clean(),
            })
            .collect();
        (!file_systems.is_empty()).then_some(Skipped { bytes, file_systems })
    }

    /// Where a file system begins that was written to since this was made, in bytes.
    ///
    /// # Errors
    /// Of the disk.
    pub fn changed(&mut self, len: u64) -> io::Result<Option<u64>> {
        for System { ext4, survey } in self.systems.iter() {
            let part = ext4.part();
            let now = match Ext4::find(&mut self.inner, len, &part)? {
                Found::Ext4(now) => now.survey(&mut self.inner)?,
                Found::Other | Found::Odd(_) => return Ok(Some(part.start)),
            };
            if now != *survey {
                return Ok(Some(part.start));
            }
        }
        Ok(None)
    }

    /// The file system and the group that this byte belongs to, if any.
    fn place(&self, offset: u64) -> Option<(usize, u64)> {
        let system = self.systems.partition_point(|system| system.ext4.span().end <= offset);
        let ext4 = &self.systems.get(system)?.ext4;
        ext4.span().contains(&offset).then(|| (system, ext4.group_of(offset)))
    }

    /// What is free in a group.
    fn runs(&mut self, system: usize, group: u64) -> io::Result<&[Range<u64>]> {
        let known = self.at.as_ref().is_some_and(|(s, g, _)| (*s, *g) == (system, group));
        if !known {
            let ext4 = &self.systems[system].ext4;
            let runs = ext4.free(&mut self.inner, group)?.unwrap_or_default();
            self.at = Some((system, group, runs));
        }
        Ok(self.at.as_ref().map_or(&[], |(_, _, runs)| runs))
    }

    /// Where the group of this byte ends; or, when it belongs to none, where the next file system begins.
    fn end_of(&self, offset: u64) -> u64 {
        match self.place(offset) {
            Some((system, group)) => self.systems[system].ext4.group_span(group).end,
            None => {
                let next = self.systems.iter().map(|system| system.ext4.span().start);
                next.filter(|start| *start > offset).min().unwrap_or(u64::MAX)
            }
        }
    }
}

impl<S: Again> Again for Free<S> {
    fn again(&self) -> io::Result<Self> {
        Ok(Self { inner: self.inner.again()?, systems: self.systems.clone(), at: None })
    }
}

impl<S: Source> Source for Free<S> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, buffer)?;
        let end = offset + buffer.len() as u64;
        let mut at = offset;
        while at < end {
            let until = self.end_of(at).min(end);
            if let Some((system, group)) = self.place(at) {
                let runs = self.runs(system, group)?;
                let first = runs.partition_point(|run| run.end <= at);
                for run in runs[first..].iter().take_while(|run| run.start < until) {
                    let (from, to) = (run.start.max(at) - offset, run.end.min(until) - offset);
                    buffer[from as usize..to as usize].fill(0);
                }
            }
            at = until;
        }
        Ok(())
    }

    fn extent(&mut self, offset: u64) -> io::Result<Extent> {
        let inner = self.inner.extent(offset)?;
        if !inner.data || self.systems.is_empty() {
            return Ok(inner);
        }
        let until = self.end_of(offset).min(inner.end);
        let Some((system, group)) = self.place(offset) else { return Ok(Extent { data: true, end: until }) };
        let runs = self.runs(system, group)?;
        Ok(match runs.get(runs.partition_point(|run| run.end <= offset)) {
            Some(run) if run.start <= offset => Extent { data: false, end: run.end },
            Some(run) => Extent { data: true, end: run.start.min(until) },
            None => Extent { data: true, end: until },
        })
    }
}
