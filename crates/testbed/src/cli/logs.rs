//! Printing logs.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use conme_testbed::Instance;

/// How often a followed log is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

struct Log {
    /// Before each line when there are several logs.
    prefix: String,
    path: PathBuf,
    offset: u64,
    /// The beginning of a line that is still being written.
    rest: Vec<u8>,
}

/// Prints the last `tail` lines, and with `follow` whatever is added, until the reader has had enough.
pub(crate) async fn print(
    instance: &Instance,
    program: Option<&str>,
    follow: bool,
    tail: usize,
) -> Result<()> {
    let mut names: Vec<String> = std::fs::read_dir(instance.log_dir())
        .context("there are no logs")?
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".log")?.to_owned()))
        .collect();
    names.sort();
    if let Some(program) = program {
        if !names.iter().any(|name| name == program) {
            bail!("there is no log of \"{program}\"; there are those of {}", names.join(", "));
        }
        names = vec![program.to_owned()];
    }
    let several = names.len() > 1;
    let prefix = |name: &str| if several { format!("{name} | ") } else { String::new() };
    let mut logs: Vec<Log> = names
        .iter()
        .map(|name| Log { prefix: prefix(name), path: instance.log(name), offset: 0, rest: Vec::new() })
        .collect();
    for log in &mut logs {
        let lines = log.read()?;
        let from = lines.len().saturating_sub(tail);
        if !log.show(lines.get(from..).unwrap_or_default()) {
            return Ok(());
        }
    }
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(INTERVAL).await;
        for log in &mut logs {
            let lines = log.read()?;
            if !log.show(&lines) {
                return Ok(());
            }
        }
    }
}

impl Log {
    /// The whole lines since the last call.
    fn read(&mut self) -> Result<Vec<String>> {
        let open = || std::fs::File::open(&self.path);
        let mut file = open().with_context(|| format!("cannot read {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut added = Vec::new();
        file.read_to_end(&mut added)?;
        self.offset += u64::try_from(added.len())?;
        self.rest.extend(added);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        Ok(String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect())
    }

    /// False when nobody reads any more.
    fn show(&self, lines: &[String]) -> bool {
        let mut out = std::io::stdout().lock();
        lines.iter().all(|line| writeln!(out, "{}{line}", self.prefix).is_ok())
    }
}
