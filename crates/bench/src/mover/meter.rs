//! What a run of a program has cost.

use std::{
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use super::link::{End, Link, is_in};

/// The most memory that the programs of each end have had together, in KiB, looked at every 50 ms.
/// Linux keeps each program's peak, so only what a program takes in its last moments may be missed.
pub struct Memory {
    stop: Arc<AtomicBool>,
    peaks: Arc<Mutex<[u64; 2]>>,
    looker: Option<JoinHandle<()>>,
}

impl Memory {
    /// Begins to look.
    pub fn watch(link: &Link) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peaks = Arc::new(Mutex::new([0; 2]));
        let ends = [End::Source, End::Target].map(|end| link.file(end));
        let (told, seen) = (Arc::clone(&stop), Arc::clone(&peaks));
        let looker = thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                let now = ends.each_ref().map(|end| resident(end));
                if let Ok(mut peaks) = seen.lock() {
                    peaks.iter_mut().zip(now).for_each(|(peak, now)| *peak = now.max(*peak));
                }
                thread::sleep(Duration::from_millis(50));
            }
        });
        Self { stop, peaks, looker: Some(looker) }
    }

    /// The peaks of source and target, in KiB.
    pub fn peaks(mut self) -> [u64; 2] {
        self.end();
        self.peaks.lock().map_or([0; 2], |peaks| *peaks)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(looker) = self.looker.take() {
            let _ = looker.join();
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.end();
    }
}

/// KiB of the programs in a namespace, without the relays of this benchmark.
fn resident(namespace: &Path) -> u64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let number = |name: &std::ffi::OsStr| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
    processes
        .filter(|entry| number(&entry.file_name()) && is_in(&entry.path(), namespace))
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok())
        .filter(|status| !status.starts_with("Name:\tconme-bench"))
        .filter_map(|status| peak(&status))
        .sum()
}

/// The most memory that a program has had, in KiB, from its `/proc/PID/status`.
fn peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Seconds of processor time that ended children of this process have had.
///
/// # Errors
/// When Linux does not tell.
pub fn of_children() -> Result<f64> {
    of_children_in(&std::fs::read_to_string("/proc/self/stat")?).context("/proc/self/stat")
}

fn of_children_in(stat: &str) -> Option<f64> {
    // The name may have spaces and brackets of its own.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    // Fields 16 and 17 of proc(5), in hundredths of a second.
    Some((field(13)? + field(14)?) / 100.0)
}

/// A program that is ended when this is dropped.
pub struct Held(Child);

impl Held {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_that_of_ended_children() {
        let stat = "77 (a b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 250 150 20 0 1 0";
        assert_eq!(of_children_in(stat), Some(4.0));
        assert_eq!(of_children_in("77 (a) S 1 2"), None);
    }

    #[test]
    fn memory_is_the_peak_and_not_what_is_left() {
        assert_eq!(peak("Name:\tborg\nVmHWM:\t   61440 kB\nVmRSS:\t    1024 kB\n"), Some(61_440));
        assert_eq!(peak("Name:\tkthreadd\n"), None);
    }
}
