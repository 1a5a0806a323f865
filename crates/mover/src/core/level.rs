//! How hard to compress: as hard as it costs no time.
//!
//! One thread packs while another reads and the line sends. While packing takes less than all of the time, something
//! else is slower: the line, the disk, or the other end. Then a higher level costs nothing but processor time, which
//! has a ceiling. When packing takes all of the time that it may, a lower level is faster.
//!
//! A higher level is not always smaller: it looks for short repetitions as well, and where records are numbers between words
//! that come again, each short one that chance makes costs more than it saves. So a piece of the content is packed both
//! ways now and then.

use std::time::Duration;

/// Levels of zstd, and what each costs in time, by the lowest: as measured over images of systems. Those between are
/// hardly smaller than the one below.
const LADDER: [(i32, f64); 7] = [(1, 1.0), (3, 1.5), (5, 2.7), (7, 4.0), (9, 6.0), (16, 45.0), (19, 90.0)];
/// Where it begins.
const BEGIN: usize = 1;
/// Time after which a level is judged.
const JUDGED: Duration = Duration::from_millis(250);
/// Packing that takes more of its time than this is what the others wait for.
const FULL: f64 = 0.95;
/// A higher level may take so much of it.
const ROOM: f64 = 0.8;
/// One content of so many is tried.
const TRIED: u32 = 4;
/// From this level on repetitions are weighed against one another, and the lowest saves nothing.
const WEIGHS: i32 = 9;

/// The share of one processor's time that packing may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceiling(f64);

impl Ceiling {
    /// So many percent, from 1 to 100.
    pub fn percent(percent: u8) -> Self {
        Self(f64::from(percent.clamp(1, 100)) / 100.0)
    }

    /// Whether it is none.
    pub fn is_all(self) -> bool {
        self.0 >= 1.0
    }

    fn pause(self, packing: Duration) -> Duration {
        packing.mul_f64(1.0 / self.0 - 1.0)
    }
}

/// Who chooses the level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The program, by what the line takes.
    Line,
    /// A person: this one.
    Fixed(i32),
}

impl Choice {
    /// The level where nothing is known of the line.
    pub fn or_usual(self) -> i32 {
        match self {
            Self::Line => 3,
            Self::Fixed(level) => level,
        }
    }
}

/// The level that is used, and what is known about it.
#[derive(Debug, Clone)]
pub struct Levels {
    at: usize,
    fixed: Option<i32>,
    ceiling: Ceiling,
    packing: Duration,
    total: Duration,
    /// Whether the lowest made fewer bytes in the last trial.
    lowest: bool,
    /// Contents until the next trial.
    until_tried: u32,
}

impl Levels {
    /// Begins with a level that suits most lines, unless a person has chosen one.
    pub fn new(choice: Choice, ceiling: Ceiling) -> Self {
        let fixed = match choice {
            Choice::Line => None,
            Choice::Fixed(level) => Some(level),
        };
        Self {
            at: BEGIN,
            fixed,
            ceiling,
            packing: Duration::ZERO,
            total: Duration::ZERO,
            lowest: false,
            until_tried: 0,
        }
    }

    /// The level that the line asks for.
    pub fn level(&self) -> i32 {
        if let Some(level) = self.fixed {
            return level;
        }
        LADDER.get(self.at).map_or(1, |(level, _)| *level)
    }

    /// The level to pack the next content with: the one that the line asks for, or the lowest where that makes fewer bytes.
    /// `makes_fewer` tries it on a piece of the content: whether the first level makes fewer bytes than the second; `None`
    /// when there is too little of it to tell.
    ///
    /// # Errors
    /// What the trial answers.
    pub fn for_next<E>(
        &mut self,
        makes_fewer: impl FnOnce(i32, i32) -> Result<Option<bool>, E>,
    ) -> Result<i32, E> {
        let [(lowest, _), ..] = LADDER;
        let level = self.level();
        if self.fixed.is_some() || level == lowest || level >= WEIGHS {
            return Ok(level);
        }
        if self.until_tried == 0
            && let Some(fewer) = makes_fewer(lowest, level)?
        {
            (self.lowest, self.until_tried) = (fewer, TRIED);
        }
        self.until_tried = self.until_tried.saturating_sub(1);
        Ok(if self.lowest { lowest } else { level })
    }

    /// How long to pause after having packed for so long.
    pub fn pause(&self, packing: Duration) -> Duration {
        self.ceiling.pause(packing)
    }

    /// Something was packed with this level: how long that took, and how long it is since the one before was packed, with
    /// all waiting.
    pub fn note(&mut self, level: i32, packing: Duration, total: Duration) {
        if level != self.level() {
            // Says nothing about what the line has time for.
            return;
        }
        self.packing += packing;
        self.total += total.max(packing);
        if self.total < JUDGED {
            return;
        }
        let taken = self.packing.as_secs_f64() / (self.total.as_secs_f64() * self.ceiling.0);
        let cost = |at: usize| LADDER.get(at).map(|(_, cost)| *cost);
        let dearer = cost(self.at + 1).zip(cost(self.at)).map(|(next, this)| next / this);
        if taken >= FULL {
            self.at = self.at.saturating_sub(1);
        } else if dearer.is_some_and(|dearer| taken * dearer <= ROOM) {
            self.at += 1;
        }
        (self.packing, self.total) = (Duration::ZERO, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The levels that are used over a line which takes so many packed bytes a second, on a processor that packs so
    /// many with level 1: 4 MiB again and again, for so many times.
    fn over(levels: &mut Levels, line: f64, processor: f64, times: usize) -> Vec<i32> {
        let ratio = |at: usize| 2.8 + 0.15 * at as f64;
        (0..times)
            .map(|_| {
                let at = LADDER.iter().position(|(level, _)| *level == levels.level()).unwrap();
                let bytes = f64::from(4 << 20);
                let packing = Duration::from_secs_f64(bytes * LADDER[at].1 / processor);
                let sending = Duration::from_secs_f64(bytes / ratio(at) / line);
                levels.note(levels.level(), packing, sending.max(packing + levels.pause(packing)));
                levels.level()
            })
            .collect()
    }

    const PROCESSOR: f64 = 300e6;

    #[test]
    fn a_thin_line_is_used_with_the_highest_level_that_keeps_it_busy() {
        let settled = |mbit: f64| {
            let mut levels = Levels::new(Choice::Line, Ceiling::percent(100));
            *over(&mut levels, mbit * 1e6 / 8.0, PROCESSOR, 200).last().unwrap()
        };
        assert_eq!(settled(100.0), 7);
        assert_eq!(settled(50.0), 9);
        assert_eq!(settled(200.0), 5);
        assert_eq!(settled(10.0), 16);
        assert_eq!(settled(2.0), 19);
    }

    #[test]
    fn a_line_that_is_faster_than_the_processor_gets_the_lowest_level_and_keeps_it() {
        let mut levels = Levels::new(Choice::Line, Ceiling::percent(100));
        let used = over(&mut levels, 1.25e9, PROCESSOR, 300);
        assert!(used[50..].iter().all(|level| *level == 1), "{used:?}");
    }

    #[test]
    fn a_line_that_becomes_thinner_or_wider_changes_the_level_while_running() {
        let mut levels = Levels::new(Choice::Line, Ceiling::percent(100));
        over(&mut levels, 1.25e9, PROCESSOR, 100);
        assert_eq!(levels.level(), 1);
        over(&mut levels, 1.25e6, PROCESSOR, 50);
        assert_eq!(levels.level(), 16);
        over(&mut levels, 1.25e9, PROCESSOR, 100);
        assert_eq!(levels.level(), 1);
    }

    #[test]
    fn a_ceiling_is_held_at_every_level_and_chooses_a_lower_one() {
        let pause = |percent, ms| Ceiling::percent(percent).pause(Duration::from_millis(ms));
        assert_eq!(pause(50, 30), Duration::from_millis(30));
        assert_eq!(pause(100, 9000), Duration::ZERO);
        let mut levels = Levels::new(Choice::Line, Ceiling::percent(25));
        assert_eq!(*over(&mut levels, 12.5e6, PROCESSOR, 200).last().unwrap(), 3);
    }

    #[test]
    fn what_a_person_has_chosen_stays() {
        let mut levels = Levels::new(Choice::Fixed(12), Ceiling::percent(100));
        for _ in 0..100 {
            levels.note(12, Duration::ZERO, Duration::from_secs(1));
        }
        assert_eq!(levels.level(), 12);
    }

    #[test]
    fn nothing_is_judged_by_a_moment() {
        let mut levels = Levels::new(Choice::Line, Ceiling::percent(100));
        levels.note(3, Duration::ZERO, Duration::from_millis(100));
        assert_eq!(levels.level(), 3);
        levels.note(3, Duration::ZERO, Duration::from_millis(200));
        assert_eq!(levels.level(), 5);
    }

    /// The level for the next content, and whether it was tried.
    fn next(levels: &mut Levels, fewer: bool) -> (i32, bool) {
        let mut tried = false;
        let level = levels.for_next(|low, high| {
            assert!(low < high);
            tried = true;
            Ok::<_, ()>(Some(fewer))
        });
        (level.unwrap(), tried)
    }

    #[test]
    fn where_the_lowest_level_makes_fewer_bytes_it_is_used_and_tried_again_now_and_then() {
        let mut levels = Levels::new(Choice::Line, Ceiling::percent(100));
        assert_eq!(next(&mut levels, true), (1, true));
        for _ in 1..TRIED {
            assert_eq!(next(&mut levels, false), (1, false));
        }
        // What was packed with another level does not raise it.
        levels.note(1, Duration::ZERO, Duration::from_secs(9));
        assert_eq!(next(&mut levels, false), (3, true));
        assert_eq!(next(&mut levels, true), (3, false));
    }

    #[test]
    fn too_little_content_is_packed_as_the_one_before_and_the_next_is_tried() {
        let mut levels = Levels::new(Choice::Line, Ceiling::percent(100));
        assert_eq!(levels.for_next(|_, _| Ok::<_, ()>(None)), Ok(3));
        assert_eq!(next(&mut levels, true), (1, true));
        let mut fixed = Levels::new(Choice::Fixed(12), Ceiling::percent(100));
        assert_eq!(next(&mut fixed, true), (12, false));
    }
}
