//! What a person sees while things are built and started.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a long step says that it is alive when there is no terminal for a spinner.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Where progress goes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Progress(Mode);

#[derive(Clone, Debug)]
enum Mode {
    Silent,
    Plain,
    Terminal(MultiProgress),
}

impl Progress {
    /// Says nothing: for tests.
    #[must_use]
    pub fn silent() -> Self {
        Self(Mode::Silent)
    }

    /// To the standard error: spinners on a terminal, else one line per step and a heartbeat for the long ones.
    #[must_use]
    pub fn stderr() -> Self {
        if std::io::stderr().is_terminal() {
            Self(Mode::Terminal(MultiProgress::new()))
        } else {
            Self(Mode::Plain)
        }
    }

    /// One line of information.
    pub fn note(&self, text: &str) {
        match &self.0 {
            Mode::Silent => {}
            Mode::Plain => complain(text),
            Mode::Terminal(bars) => {
                // Only fails when the terminal is gone; there is nobody to tell then.
                let _ = bars.println(text);
            }
        }
    }

    /// Begins a step that takes seconds.
    #[must_use]
    pub fn step(&self, text: &str) -> Step {
        self.begin(text, None)
    }

    /// Begins a step that may take minutes: announced at once, with what to expect, and with a heartbeat.
    #[must_use]
    pub fn long_step(&self, text: &str, expect: &str) -> Step {
        self.begin(text, Some(expect))
    }

    fn begin(&self, text: &str, expect: Option<&str>) -> Step {
        let mut bar = None;
        let mut heartbeat = None;
        match &self.0 {
            Mode::Silent => {}
            Mode::Plain => {
                if let Some(expect) = expect {
                    complain(&format!("  … {text} ({expect})"));
                    heartbeat = Some(start_heartbeat(text.to_owned()));
                }
            }
            Mode::Terminal(bars) => {
                let spinner = bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
                    spinner.set_style(style);
                }
                spinner.set_message(match expect {
                    Some(expect) => format!("{text} ({expect})"),
                    None => text.to_owned(),
                });
                spinner.enable_steady_tick(Duration::from_millis(120));
                bar = Some(spinner);
            }
        }
        Step {
            progress: self.clone(),
            text: text.to_owned(),
            started: Instant::now(),
            bar,
            _heartbeat: heartbeat,
        }
    }
}

/// A step under way. Dropped without [`Step::done`], it counts as broken off.
#[derive(Debug)]
pub struct Step {
    progress: Progress,
    text: String,
    started: Instant,
    bar: Option<ProgressBar>,
    // Dropping the sender ends the thread.
    _heartbeat: Option<Sender<()>>,
}

impl Step {
    /// The step has succeeded; `detail` is appended to its line when not empty.
    pub fn done(mut self, detail: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        self.progress.note(&format!("  ✓ {}{detail} ({seconds:.1} s)", self.text));
        self.progress = Progress::silent(); // so that `drop` does not report a failure
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.progress.note(&format!("  ✗ {}", self.text));
    }
}

/// One line to the standard error. Unlike `eprintln!` it does not panic when nobody is there to read it, for example
/// after the terminal was closed: what is to be tidied up then must be tidied up all the same.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn start_heartbeat(text: String) -> Sender<()> {
    let (sender, receiver) = channel::<()>();
    let started = Instant::now();
    std::thread::spawn(move || {
        while receiver.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
            complain(&format!("  … {text}: still at it after {} s", started.elapsed().as_secs()));
        }
    });
    sender
}
