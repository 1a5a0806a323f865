//! `kubectl-comune`: the plugin that kubectl runs as `kubectl comune`.

use std::process::ExitCode;

use clap::Parser as _;
use conme_kubectl::{cli::Cli, run};

fn main() -> ExitCode {
    run(Cli::parse())
}
