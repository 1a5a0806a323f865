//! From the command line to the exit code.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use crate::{
    cli::{Cli, Command, ReportFormat, ValidateArgs},
    input, output,
    problem::Note,
    rules::Rules,
    site::{Operator, Site},
    validate,
};

/// Why a command could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A file cannot be read, an argument makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The API server cannot be reached, or refused an answer.
    #[error("{0}")]
    Server(String),
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Other(_) => 1,
            Self::Usage(_) => 2,
            Self::Server(_) => 3,
        }
    }
}

impl From<input::InputError> for Failure {
    fn from(error: input::InputError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Runs a command and says with which code to exit.
pub fn run(cli: Cli) -> ExitCode {
    let outcome = dispatch(cli);
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let operator = Operator {
        data_center: cli.cluster.data_center.clone(),
        namespace: cli.cluster.namespace.clone(),
        ..Operator::default()
    };
    match cli.command {
        Command::Validate(args) => check(&args, &operator),
        _ => Err(Failure::Other("not yet".into())),
    }
}

fn check(args: &ValidateArgs, operator: &Operator) -> Result<u8, Failure> {
    let sources = input::read(&args.files)?;
    let surroundings = input::read(&args.site)?;
    let (report, _) = validate::validate(&sources, &surroundings, Site::new(operator), &Rules::default());
    match args.output {
        ReportFormat::Table => {
            tell_notes(&report.notes);
            print(&output::table(&report))?;
        }
        ReportFormat::Json => print(&format!("{:#}\n", output::json(&report)))?,
        ReportFormat::Junit => print(&output::junit(&report))?,
        ReportFormat::Sarif => print(&format!("{:#}\n", output::sarif(&report)))?,
    }
    Ok(u8::from(!report.problems.is_empty()))
}

/// Notes go beside the output, so that a pipeline reads nothing but the output.
fn tell_notes(notes: &[Note]) {
    for note in notes {
        let file = if note.file.is_empty() { String::new() } else { format!("{}: ", note.file) };
        eprintln!("note: {file}{}", note.message);
    }
}

/// Writes to standard output. A reader such as `head` may have seen enough.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(Failure::from),
    }
}

/// Whether somebody looks at the output.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
