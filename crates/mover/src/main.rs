//! `conme-mover`: see `conme-mover --help`.

use std::process::ExitCode;

use clap::Parser as _;
use conme_mover::cli::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse())
}
