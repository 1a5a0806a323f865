//! How hard to compress: as hard as it costs no time.
//!
//! One thread packs while another reads and the line sends. While packing takes less than all of the time, something
//! else is slower: the line, the disk, or the other end. Then a higher level costs nothing but processor time, which
//! has a ceiling. When packing takes all of the time that it may, a lower level is faster.

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
}

impl Levels {
    /// Begins with a level that suits most lines, unless a person has chosen one.
    pub fn new(choice: Choice, ceiling: Ceiling) -> Self {
        let fixed = match choice {
            Choice::Line => None,
            Choice::Fixed(level) => Some(level),
        };
        Self { at: BEGIN, fixed, ceiling, packing: Duration::ZERO, total: Duration::ZERO }
    }

    /// The level to pack with.
    pub fn level(&self) -> i32 {
        if let Some(level) = self.fixed {
            return level;
        }
        LADDER.get(self.at).map_or(1, |(level, _)| *level)
    }

    /// How long to pause after having packed for so long.
    pub fn pause(&self, packing: Duration) -> Duration {
        self.ceiling.pause(packing)
    }

    /// Something was packed: how long that took, and how long it is since the one before was packed, with all waiting.
    pub fn note(&mut self, packing: Duration, total: Duration) {
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
                levels.note(packing, sending.max(packing + levels.pause(packing)));
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
            levels.note(Duration::ZERO, Duration::from_secs(1));
        }
        assert_eq!(levels.level(), 12);
    }

    #[test]
    fn nothing_is_judged_by_a_moment() {
        let mut levels = Levels::new(Choice::Line, Ceiling::percent(100));
        levels.note(Duration::ZERO, Duration::from_millis(100));
        assert_eq!(levels.level(), 3);
        levels.note(Duration::ZERO, Duration::from_millis(200));
        assert_eq!(levels.level(), 5);
    }
}
