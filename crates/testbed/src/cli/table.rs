//! The status for people.

use conme_testbed::{Condition, Engine, Status};

pub(crate) fn status(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| text.push_str(&format!("{key:<12} {value}\n"));
    line("Instance", status.name.clone());
    line("State", condition(status));
    if let Some(cluster) = &status.cluster {
        line("Kubeconfig", cluster.kubeconfig.display().to_string());
        if cluster.local {
            line("API server", cluster.server.clone().unwrap_or_default());
            line("Hosts", format!("{} (simulated)", cluster.hosts));
        } else {
            line("API server", "that of the existing cluster".into());
        }
        if let Some(audit_log) = &cluster.audit_log {
            line("Audit log", audit_log.display().to_string());
        }
    }
    line("Programs in", status.bin_dir.display().to_string());
    line("Logs in", status.log_dir.display().to_string());
    for database in &status.databases {
        text.push_str(&format!(
            "\n{} ({} {}{})\n  host={} port={} user={} {}\n  authority      {}\n  password file  {}\n",
            database.name,
            database.engine,
            database.version,
            if status.fast { ", does not wait for the disk" } else { "" },
            database.host,
            database.port,
            database.admin_user,
            match database.engine {
                Engine::Postgresql => "sslmode=verify-full",
                Engine::Mariadb => "ssl-verify-server-cert",
            },
            database.ca_file.display(),
            database.admin_password_file.display(),
        ));
    }
    if !status.programs.is_empty() {
        text.push('\n');
        let mut rows = vec![["PROGRAM", "VERSION", "STATE", "PID", "PORT"].map(str::to_owned)];
        for program in &status.programs {
            rows.push([
                program.name.clone(),
                program.version.clone().unwrap_or_else(|| "-".into()),
                if program.running { "runs" } else { "stopped" }.into(),
                program.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
                program.port.map_or_else(|| "-".into(), |port| port.to_string()),
            ]);
        }
        text.push_str(&columns(&rows));
    }
    text
}

pub(crate) fn list(all: &[Status]) -> String {
    if all.is_empty() {
        return "no instances\n".into();
    }
    let mut rows = vec![["NAME", "STATE", "API SERVER", "DATABASES"].map(str::to_owned)];
    for one in all {
        let server = match &one.cluster {
            Some(cluster) => cluster.server.clone().unwrap_or_else(|| "existing".into()),
            None => "-".into(),
        };
        rows.push([one.name.clone(), condition(one), server, one.databases.len().to_string()]);
    }
    columns(&rows)
}

fn condition(status: &Status) -> String {
    match status.condition {
        Condition::Running => "Running".into(),
        Condition::Stopped => "Stopped".into(),
        Condition::Degraded if status.missing.is_empty() => "Degraded (being started or stopped)".into(),
        Condition::Degraded => format!("Degraded: {}", status.missing.join(", ")),
    }
}

/// Cells side by side, as wide as the widest of their column.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A".to_owned(), "B".to_owned()], ["long".to_owned(), "è".to_owned()]];
        assert_eq!(columns(&rows), "A     B\nlong  è\n");
    }
}
