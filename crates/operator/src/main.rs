//! The operator's program. What it does is in the library, so that a test can build one of another version.

/// Thousands of objects are read, reduced and dropped on every thread: this allocator gives the memory back, where that of
/// the C library keeps it scattered over its arenas.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    conme_operator::cli::main(env!("CARGO_PKG_VERSION"))
}
