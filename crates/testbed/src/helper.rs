//! Helper programs that run to their end, such as `go build` or `initdb`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;

/// Kills the whole group when a helper is abandoned, for example by Ctrl-C: `go build` has many children.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a helper and returns its standard output.
///
/// The error of a failed one holds the last lines that it wrote.
pub(crate) async fn run(mut command: Command, what: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program} to {what}"))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let output = child.wait_with_output().await;
    group.0 = None;
    let output = output.with_context(|| format!("lost {program} while trying to {what}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        bail!("cannot {what}: {program} ended with {}\n{}", output.status, tail(&all, 25));
    }
    Ok(text)
}

/// The last `count` lines, indented.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines
        .get(from..)
        .unwrap_or_default()
        .iter()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "    b\n    c");
        assert_eq!(tail("a", 5), "    a");
        assert_eq!(tail("", 5), "");
    }

    #[tokio::test]
    async fn the_error_shows_what_the_helper_said() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo out; echo wrong >&2; exit 3"]);
        let error = run(command, "try").await.unwrap_err().to_string();
        assert!(error.contains("cannot try") && error.contains("wrong") && error.contains('3'), "{error}");
    }
}
