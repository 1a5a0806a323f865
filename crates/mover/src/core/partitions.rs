//! Where the file systems of a disk may be: the whole disk, or partitions of an MBR or GPT.
//!
//! What is found here decides what need not be read, so whatever is odd makes it [`Layout::Unclear`].

use std::io;
use std::ops::Range;

use crc::{CRC_32_ISO_HDLC, Crc};

use super::ports::Source;

/// Partitions that are followed at most.
const MOST: usize = 256;
/// Reads begin and end at multiples of this.
const ALIGNMENT: u64 = 4096;
static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// How a disk is divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Not at all.
    Whole,
    /// Into these stretches of bytes, in order; what is between them belongs to nobody.
    Parts(Vec<Range<u64>>),
    /// In a way that is not understood, and why.
    Unclear(&'static str),
}

/// Bytes of a disk from any place, as a disk that is read around the cache can give them.
///
/// # Errors
/// Of the disk; also when they are behind its end.
pub(super) fn bytes(source: &mut impl Source, len: u64, offset: u64, count: usize) -> io::Result<Vec<u8>> {
    let end = offset.checked_add(count as u64).filter(|end| *end <= len);
    let end =
        end.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "behind the end of the disk"))?;
    let start = offset / ALIGNMENT * ALIGNMENT;
    let mut buffer = vec![0; (end.next_multiple_of(ALIGNMENT).min(len) - start) as usize];
    source.read(start, &mut buffer)?;
    let from = (offset - start) as usize;
    buffer.truncate(from + count);
    Ok(buffer.split_off(from))
}

/// A little-endian number of `N` bytes; 0 behind the end.
pub(super) fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    if let Some(part) = bytes.get(at..at + N) {
        number[..N].copy_from_slice(part);
    }
    u64::from_le_bytes(number)
}

/// How a disk of `len` bytes is divided.
///
/// # Errors
/// Of the disk.
pub fn layout(source: &mut impl Source, len: u64) -> io::Result<Layout> {
    if len < 4096 {
        return Ok(Layout::Whole);
    }
    let first = bytes(source, len, 0, 512)?;
    if number::<2>(&first, 510) != 0xAA55 {
        return Ok(Layout::Whole);
    }
    let entries = entries(&first);
    if entries.iter().all(|entry| entry.kind == 0 && entry.sectors == 0) {
        // A boot sector alone has the same mark.
        return Ok(Layout::Whole);
    }
    if first[446..510].chunks(16).any(|entry| entry[0] & 0x7F != 0) {
        return Ok(Layout::Unclear("its first sector is neither a boot sector nor a partition table"));
    }
    let found = if entries.iter().any(|entry| entry.kind == 0xEE) {
        gpt(source, len)?
    } else {
        mbr(source, len, &entries)?
    };
    Ok(match found {
        Ok(parts) => checked(parts, len),
        Err(why) => Layout::Unclear(why),
    })
}

fn checked(mut parts: Vec<Range<u64>>, len: u64) -> Layout {
    parts.sort_by_key(|part| part.start);
    let inside = parts.iter().all(|part| part.start < part.end && part.end <= len);
    let apart = parts.iter().zip(parts.iter().skip(1)).all(|(one, next)| one.end <= next.start);
    match inside && apart {
        true => Layout::Parts(parts),
        false => Layout::Unclear("its partitions overlap or end behind the disk"),
    }
}

struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

fn entries(sector: &[u8]) -> Vec<Entry> {
    let entry = |bytes: &[u8]| Entry {
        kind: bytes[4],
        start: number::<4>(bytes, 8),
        sectors: number::<4>(bytes, 12),
    };
    sector[446..510].chunks_exact(16).map(entry).collect()
}

type Parts = Result<Vec<Range<u64>>, &'static str>;

fn mbr(source: &mut impl Source, len: u64, entries: &[Entry]) -> io::Result<Parts> {
    let extended = |kind: u8| matches!(kind, 0x05 | 0x0F | 0x85);
    let span = |start: u64, sectors: u64| start * 512..(start + sectors) * 512;
    let mut parts = Vec::new();
    for entry in entries.iter().filter(|entry| entry.sectors > 0) {
        if !extended(entry.kind) {
            parts.push(span(entry.start, entry.sectors));
            continue;
        }
        // Each logical partition is described in a sector of its own, which says where the next of these is.
        let (base, mut at) = (entry.start, entry.start);
        loop {
            let Ok(sector) = bytes(source, len, at * 512, 512) else {
                return Ok(Err("its extended partition ends behind the disk"));
            };
            if number::<2>(&sector, 510) != 0xAA55 || parts.len() >= MOST {
                return Ok(Err("its extended partition cannot be followed"));
            }
            let mut next = None;
            for entry in self::entries(&sector).iter().take(2).filter(|entry| entry.sectors > 0) {
                if extended(entry.kind) {
                    next = Some(base + entry.start);
                } else {
                    parts.push(span(at + entry.start, entry.sectors));
                }
            }
            match next {
                // They lie one behind another, so this ends.
                Some(next) if next > at => at = next,
                Some(_) => return Ok(Err("its extended partition runs in a circle")),
                None => break,
            }
        }
    }
    Ok(Ok(parts))
}

fn gpt(source: &mut impl Source, len: u64) -> io::Result<Parts> {
    for sector in [512, 4096] {
        if len < 34 * sector {
            continue;
        }
        let header = bytes(source, len, sector, 512)?;
        let size = number::<4>(&header, 12) as usize;
        if !header.starts_with(b"EFI PART") || !(92..=512).contains(&size) {
            continue;
        }
        let mut summed = header[..size].to_vec();
        summed[16..20].fill(0);
        if u64::from(CRC.checksum(&summed)) != number::<4>(&header, 16) {
            return Ok(Err("the checksum of its GPT is wrong"));
        }
        let (place, count, entry) =
            (number::<8>(&header, 72), number::<4>(&header, 80), number::<4>(&header, 84));
        if !(1..=MOST as u64).contains(&count) || !(128..=4096).contains(&entry) {
            return Ok(Err("its GPT has another form"));
        }
        let Some(place) = place.checked_mul(sector) else { return Ok(Err("its GPT has another form")) };
        let Ok(table) = bytes(source, len, place, (count * entry) as usize) else {
            return Ok(Err("its GPT ends behind the disk"));
        };
        if u64::from(CRC.checksum(&table)) != number::<4>(&header, 88) {
            return Ok(Err("the checksum of its GPT is wrong"));
        }
        let mut parts = Vec::new();
        for entry in table.chunks_exact(entry as usize).filter(|entry| entry[..16] != [0; 16]) {
            let last = number::<8>(entry, 40).checked_add(1);
            match (number::<8>(entry, 32).checked_mul(sector), last.and_then(|last| last.checked_mul(sector)))
            {
                (Some(start), Some(end)) => parts.push(start..end),
                _ => return Ok(Err("its partitions overlap or end behind the disk")),
            }
        }
        return Ok(Ok(parts));
    }
    Ok(Err("its GPT cannot be read"))
}
