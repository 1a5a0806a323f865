//! What one core does with an image: hashes and zstd's level 1 over units of 1 MiB, in bytes a second of content. The
//! benchmark holds the mover against it.

use std::io::Read as _;
use std::time::Instant;

use conme_mover::core::geometry::{Geometry, LEAF, UNIT};
use conme_mover::core::{hash, pack::Packer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("say which image")?;
    let mut content = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut content)?;
    let len = content.len() - content.len() % UNIT as usize;
    let geometry = Geometry::new(len as u64, UNIT, LEAF)?;
    let mut packer = Packer::new(1);
    let (began, mut packed, mut units) = (Instant::now(), 0, 0_u64);
    for (unit, part) in (0..).zip(content[..len].chunks_exact(UNIT as usize)) {
        if hash::is_zero(part) {
            continue;
        }
        units += 1;
        let digests = hash::leaves(&geometry, part);
        std::hint::black_box(hash::unit(&geometry, unit, &digests));
        packed += packer.pack(part.to_vec())?.1.len();
    }
    std::hint::black_box(packed);
    // Zeros are read by everybody and sent by nobody: the whole image counts.
    let seconds = began.elapsed().as_secs_f64();
    println!("{{\"bytes\": {len}, \"units\": {units}, \"packed\": {packed}, \"seconds\": {seconds}}}");
    Ok(())
}
