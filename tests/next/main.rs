//! The operator under a later version, for the story of upgrades.

fn main() -> anyhow::Result<()> {
    conme_operator::cli::main("99.0.0")
}
