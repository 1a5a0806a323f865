//! The operator's program. What it does is in the library, so that a test can build one of another version.

fn main() -> anyhow::Result<()> {
    conme_operator::cli::main(env!("CARGO_PKG_VERSION"))
}
