//! The free space of an ext2, ext3 or ext4 file system, by its allocation bitmaps.
//!
//! Nothing here is believed because it is there: a file system with a feature that is not known is read whole, and so
//! is every group whose checksums, count of free clusters and bitmap do not agree with one another.

use std::fmt;
use std::io;
use std::ops::Range;

use crc::{Algorithm, CRC_16_MODBUS, CRC_32_ISCSI, Crc};

use super::partitions::{bytes, number};
use super::ports::Source;

/// A running checksum begins with what came out of the one before, so nothing is turned over at the end.
const CASTAGNOLI: Algorithm<u32> = Algorithm { xorout: 0, ..CRC_32_ISCSI };
static CRC32C: Crc<u32> = Crc::<u32>::new(&CASTAGNOLI);
static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// Groups of a file system at most: 512 TiB with blocks of 4 KiB.
const GROUPS: u64 = 1 << 22;

// Features that change where things are, or what a bit of a bitmap means.
const SPARSE_SUPER2: u64 = 0x200;
const RECOVER: u64 = 0x4;
const META_BG: u64 = 0x10;
const WIDE: u64 = 0x80;
const CSUM_SEED: u64 = 0x2000;
const SPARSE_SUPER: u64 = 0x1;
const GDT_CSUM: u64 = 0x10;
const BIGALLOC: u64 = 0x200;
const METADATA_CSUM: u64 = 0x400;
/// `compat`, `incompat`, `ro_compat`: what is known. Whatever is not in here may keep data in free blocks.
const KNOWN: [u64; 3] = [
    // dir_prealloc imagic has_journal ext_attr resize_inode dir_index exclude_* sparse_super2 fast_commit
    // stable_inodes orphan_file
    0x1FBF,
    // filetype recover meta_bg extent 64bit mmp flex_bg ea_inode dirdata csum_seed largedir inline encrypt casefold
    0x3F7D6,
    // sparse_super large_file btree_dir huge_file gdt_csum dir_nlink extra_isize quota bigalloc metadata_csum readonly
    // project verity orphan_present
    0x1B77F,
];

/// How a file system keeps its checksums.
#[derive(Debug, Clone, Copy)]
enum Sums {
    None,
    /// Of descriptors alone; begins with this, which is over its name.
    Crc16(u16),
    /// Of descriptors and bitmaps; begins with this.
    Crc32c(u32),
}

#[derive(Debug, Clone, Copy)]
struct Group {
    bitmap: u64,
    sum: u32,
    free: u32,
    uninit: bool,
    sound: bool,
}

/// One file system on a disk.
#[derive(Debug)]
pub struct Ext4 {
    part: Range<u64>,
    start: u64,
    disk: u64,
    uuid: [u8; 16],
    clean: bool,
    block: u64,
    /// Blocks that one bit stands for.
    ratio: u64,
    first: u64,
    blocks: u64,
    blocks_per_group: u64,
    clusters_per_group: u64,
    sums: Sums,
    /// Whether descriptors have room for the whole checksum of a bitmap, not only for half of it.
    whole_sums: bool,
    groups: Vec<Group>,
    /// Where the file system's own tables are, in blocks: in order, and apart.
    tables: Vec<Range<u64>>,
    /// The superblock and the descriptors, as they were read.
    digest: blake3::Hash,
}

/// What lies in a stretch of a disk.
#[derive(Debug)]
pub enum Found {
    /// Such a file system.
    Ext4(Box<Ext4>),
    /// No such file system.
    Other,
    /// One that is not understood, and why.
    Odd(String),
}

/// How much of a file system is free, by bitmaps that are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survey {
    /// Bytes.
    pub free: u64,
    /// Groups of which nothing is believed.
    pub doubtful: u64,
    /// Over all that was read for it: two that are alike speak of a file system that nobody wrote to in between.
    pub digest: blake3::Hash,
}

fn crc32c(state: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32C.digest_with_initial(state.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

fn crc16(state: u16, bytes: &[u8]) -> u16 {
    let mut digest = CRC16.digest_with_initial(state.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// What of the superblock is needed until the groups are known.
struct Super<'a> {
    raw: &'a [u8],
    features: [u64; 3],
    block: u64,
    descriptor: u64,
    groups: u64,
    first_meta_group: u64,
}

impl Super<'_> {
    fn per_block(&self) -> u64 {
        self.block / self.descriptor
    }

    /// Blocks of descriptors.
    fn tables(&self) -> u64 {
        self.groups.div_ceil(self.per_block())
    }

    fn meta_bg(&self, group: u64) -> bool {
        self.features[1] & META_BG != 0 && group >= self.first_meta_group * self.per_block()
    }

    fn has_super(&self, group: u64) -> bool {
        let power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        if self.features[0] & SPARSE_SUPER2 != 0 {
            return group == 0 || [0x24C, 0x250].iter().any(|at| number::<4>(self.raw, *at) == group);
        }
        group <= 1 || self.features[2] & SPARSE_SUPER == 0 || power(3) || power(5) || power(7)
    }

    /// Blocks at the beginning of a group that hold copies of the superblock and of descriptors.
    fn base(&self, group: u64) -> u64 {
        let copy = self.has_super(group);
        if self.meta_bg(group) {
            let last = self.per_block() - 1;
            let here = group % self.per_block();
            return u64::from(copy) + u64::from(here == 0 || here == 1 || here == last);
        }
        let tables = match self.features[1] & META_BG {
            0 => self.tables(),
            _ => self.first_meta_group,
        };
        if copy { 1 + tables + number::<2>(self.raw, 0xCE) } else { 0 }
    }
}

impl Ext4 {
    /// What lies in this stretch of a disk of `disk` bytes.
    ///
    /// # Errors
    /// Of the disk.
    pub fn find(source: &mut impl Source, disk: u64, part: &Range<u64>) -> io::Result<Found> {
        if part.end - part.start < 64 << 10 {
            return Ok(Found::Other);
        }
        let raw = bytes(source, disk, part.start + 1024, 1024)?;
        if number::<2>(&raw, 0x38) != 0xEF53 {
            return Ok(Found::Other);
        }
        if let Some(other) = other(source, disk, part)? {
            return Ok(Found::Odd(format!("it looks like ext4, but also like {other}")));
        }
        Self::read(source, disk, part, &raw)
    }

    fn read(source: &mut impl Source, disk: u64, part: &Range<u64>, raw: &[u8]) -> io::Result<Found> {
        let odd = |why: &str| Ok(Found::Odd(why.into()));
        let features = [0x5C, 0x60, 0x64].map(|at| number::<4>(raw, at));
        for (has, known, kind) in [
            (features[0], KNOWN[0], "compat"),
            (features[1], KNOWN[1], "incompat"),
            (features[2], KNOWN[2], "ro_compat"),
        ] {
            if has & !known != 0 {
                return Ok(Found::Odd(format!(
                    "it has features ({kind} {:#x}) that are not known",
                    has & !known
                )));
            }
        }
        let (size, cluster) = (number::<4>(raw, 0x18), number::<4>(raw, 0x1C));
        if number::<4>(raw, 0x4C) != 1 || number::<2>(raw, 0x5A) != 0 || size > 6 || cluster > 20 {
            return odd("its superblock has another form");
        }
        let has = |which: usize, feature: u64| features[which] & feature != 0;
        let block = 1024 << size;
        let ratio = match has(2, BIGALLOC) {
            true if cluster >= size => 1 << (cluster - size),
            false if cluster == size => 1,
            _ => return odd("its superblock has another form"),
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&raw[0x68..0x78]);
        let sums = if has(2, METADATA_CSUM) {
            if u64::from(crc32c(u32::MAX, &raw[..0x3FC])) != number::<4>(raw, 0x3FC) || raw[0x175] != 1 {
                return odd("the checksum of its superblock is wrong");
            }
            Sums::Crc32c(match has(1, CSUM_SEED) {
                true => number::<4>(raw, 0x270) as u32,
                false => crc32c(u32::MAX, &uuid),
            })
        } else if has(2, GDT_CSUM) {
            Sums::Crc16(crc16(u16::MAX, &uuid))
        } else {
            Sums::None
        };
        let first = number::<4>(raw, 0x14);
        let high = if has(1, WIDE) { number::<4>(raw, 0x150) << 32 } else { 0 };
        let blocks = number::<4>(raw, 0x4) | high;
        let (blocks_per_group, clusters_per_group) = (number::<4>(raw, 0x20), number::<4>(raw, 0x24));
        let descriptor = if has(1, WIDE) { number::<2>(raw, 0xFE) } else { 32 };
        let fits = first <= 1
            && blocks > first
            && blocks.checked_mul(block).is_some_and(|bytes| bytes <= part.end - part.start)
            && (1..=8 * block).contains(&clusters_per_group)
            && clusters_per_group.is_multiple_of(8)
            && clusters_per_group * ratio == blocks_per_group
            && descriptor.is_power_of_two()
            && (32..=1024).contains(&descriptor)
            && (!has(1, WIDE) || descriptor >= 64);
        if !fits {
            return odd("the measures in its superblock do not fit together");
        }
        let count = (blocks - first).div_ceil(blocks_per_group);
        let (inodes, inode) = (number::<4>(raw, 0x28), number::<2>(raw, 0x58));
        let inode_blocks = (inodes * inode).div_ceil(block);
        if count > GROUPS || inode_blocks == 0 || inode_blocks > blocks_per_group {
            return odd("the measures in its superblock do not fit together");
        }
        let superblock = Super {
            raw,
            features,
            block,
            descriptor,
            groups: count,
            first_meta_group: number::<4>(raw, 0x104),
        };
        let state = number::<2>(raw, 0x3A);
        let mut this = Self {
            part: part.clone(),
            start: part.start,
            disk,
            uuid,
            // Written down by the kernel: 1 that nobody has it open for writing without a journal, 2 that it has errors.
            clean: state & 3 == 1 && !has(1, RECOVER),
            block,
            ratio,
            first,
            blocks,
            blocks_per_group,
            clusters_per_group,
            sums,
            whole_sums: descriptor >= 64,
            groups: Vec::with_capacity(count as usize),
            tables: Vec::new(),
            digest: blake3::hash(raw),
        };
        match this.read_groups(source, &superblock, inode_blocks)? {
            true => Ok(Found::Ext4(Box::new(this))),
            false => odd("its group descriptors lie outside of it"),
        }
    }

    fn read_groups(
        &mut self,
        source: &mut impl Source,
        superblock: &Super<'_>,
        inode_blocks: u64,
    ) -> io::Result<bool> {
        let mut digest = blake3::Hasher::new();
        digest.update(self.digest.as_bytes());
        let mut tables = Vec::new();
        for table in 0..superblock.tables() {
            let group = table * superblock.per_block();
            // The superblock is the second KiB of the file system: in block 0, or in block 1 when these are that small.
            let place = match superblock.meta_bg(group) {
                true => self.first_block(group) + u64::from(superblock.has_super(group)),
                false => 1024 / self.block + 1 + table,
            };
            // Here the first KiB is a block of its own, and yet belongs to the first group.
            let shifted = superblock.meta_bg(group) && group == 0 && self.block == 1024 && self.first == 0;
            let place = place + u64::from(shifted);
            if place >= self.blocks {
                return Ok(false);
            }
            let content = self.block_at(source, place)?;
            digest.update(&content);
            for raw in content.chunks_exact(superblock.descriptor as usize) {
                let number = self.groups.len() as u64;
                if number == superblock.groups {
                    break;
                }
                self.groups.push(self.group(number, raw, superblock, inode_blocks, &mut tables));
            }
        }
        self.digest = digest.finalize();
        tables.sort_by_key(|range: &Range<u64>| range.start);
        for range in tables {
            match self.tables.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => self.tables.push(range),
            }
        }
        self.tables.shrink_to_fit();
        Ok(true)
    }

    fn group(
        &self,
        number: u64,
        raw: &[u8],
        superblock: &Super<'_>,
        inode_blocks: u64,
        tables: &mut Vec<Range<u64>>,
    ) -> Group {
        use super::partitions::number as field;
        let wide = superblock.descriptor >= 64;
        let place = |low: usize, high: usize| {
            field::<4>(raw, low) | if wide { field::<4>(raw, high) << 32 } else { 0 }
        };
        let half = |low: usize, high: usize| {
            (field::<2>(raw, low) | if wide { field::<2>(raw, high) << 16 } else { 0 }) as u32
        };
        let (bitmap, inodes, table) = (place(0, 0x20), place(4, 0x24), place(8, 0x28));
        let name = (number as u32).to_le_bytes();
        let (before, after) = (&raw[..0x1E], &raw[0x20..]);
        let summed = match self.sums {
            Sums::None => true,
            Sums::Crc16(state) => {
                let sum = crc16(crc16(crc16(state, &name), before), if wide { after } else { &[] });
                u64::from(sum) == field::<2>(raw, 0x1E)
            }
            Sums::Crc32c(state) => {
                let sum = crc32c(crc32c(crc32c(crc32c(state, &name), before), &[0; 2]), after);
                u64::from(sum & 0xFFFF) == field::<2>(raw, 0x1E)
            }
        };
        let mut sound = summed;
        let start = self.first_block(number);
        for (start, count) in
            [(start, superblock.base(number)), (bitmap, 1), (inodes, 1), (table, inode_blocks)]
        {
            match start.checked_add(count).filter(|end| *end <= self.blocks && start >= self.first) {
                Some(end) if count > 0 => tables.push(start..end),
                Some(_) => {}
                None => sound = false,
            }
        }
        Group {
            bitmap,
            sum: half(0x18, 0x38),
            free: half(0x0C, 0x2C),
            uninit: !matches!(self.sums, Sums::None) && field::<2>(raw, 0x12) & 2 != 0,
            sound,
        }
    }

    fn first_block(&self, group: u64) -> u64 {
        self.first + group * self.blocks_per_group
    }

    fn block_at(&self, source: &mut impl Source, block: u64) -> io::Result<Vec<u8>> {
        bytes(source, self.disk, self.start + block * self.block, self.block as usize)
    }

    /// The stretch of the disk in which it was found.
    pub fn part(&self) -> Range<u64> {
        self.part.clone()
    }

    /// The stretch of the disk that its groups take, in bytes.
    pub fn span(&self) -> Range<u64> {
        self.start + self.first * self.block..self.start + self.blocks * self.block
    }

    /// Whether what is on the disk is all there is: it is not mounted for writing, or frozen.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Groups that it has.
    pub fn groups(&self) -> u64 {
        self.groups.len() as u64
    }

    /// The group of this byte of the disk, which lies in [`Self::span`].
    pub fn group_of(&self, offset: u64) -> u64 {
        ((offset - self.start) / self.block - self.first) / self.blocks_per_group
    }

    /// The bytes of the disk that a group takes.
    pub fn group_span(&self, group: u64) -> Range<u64> {
        let end = (self.first_block(group) + self.blocks_per_group).min(self.blocks);
        self.start + self.first_block(group) * self.block..self.start + end * self.block
    }

    /// What of a group is free, in bytes of the disk, in order; none when its tables do not agree.
    ///
    /// # Errors
    /// Of the disk.
    pub fn free(&self, source: &mut impl Source, group: u64) -> io::Result<Option<Vec<Range<u64>>>> {
        Ok(self.bits(source, group, None)?.map(|bits| self.runs(group, &bits)))
    }

    /// How much is free, and a digest of all that says so.
    ///
    /// # Errors
    /// Of the disk.
    pub fn survey(&self, source: &mut impl Source) -> io::Result<Survey> {
        let mut digest = blake3::Hasher::new();
        digest.update(self.digest.as_bytes());
        let mut survey = Survey { free: 0, doubtful: 0, digest: self.digest };
        for group in 0..self.groups() {
            match self.bits(source, group, Some(&mut digest))? {
                Some(bits) => {
                    survey.free += self.runs(group, &bits).iter().map(|run| run.end - run.start).sum::<u64>();
                }
                None => survey.doubtful += 1,
            }
        }
        survey.digest = digest.finalize();
        Ok(survey)
    }

    /// The bitmap of a group, a bit for each cluster that is used.
    fn bits(
        &self,
        source: &mut impl Source,
        group: u64,
        digest: Option<&mut blake3::Hasher>,
    ) -> io::Result<Option<Vec<u8>>> {
        let Some(about) = self.groups.get(group as usize).filter(|about| about.sound) else {
            return Ok(None);
        };
        let count = self.clusters_per_group as usize / 8;
        let mut bits = vec![0; count];
        if !about.uninit {
            let content = self.block_at(source, about.bitmap)?;
            bits.copy_from_slice(&content[..count]);
            if let Some(digest) = digest {
                digest.update(&content);
            }
            if let Sums::Crc32c(state) = self.sums {
                let sum = crc32c(state, &bits);
                if about.sum != if self.whole_sums { sum } else { sum & 0xFFFF } {
                    return Ok(None);
                }
            }
        }
        let start = self.first_block(group);
        let end = (start + self.blocks_per_group).min(self.blocks);
        let from = self.tables.partition_point(|table| table.end <= start);
        for table in self.tables[from..].iter().take_while(|table| table.start < end) {
            let clusters = (table.start.max(start) - start) / self.ratio
                ..(table.end.min(end) - start).div_ceil(self.ratio);
            for cluster in clusters {
                let (byte, bit) = (cluster as usize / 8, 1 << (cluster % 8));
                if !about.uninit && bits[byte] & bit == 0 {
                    // Its own tables are free: this is no bitmap, or not of this file system.
                    return Ok(None);
                }
                bits[byte] |= bit;
            }
        }
        let clusters = (end - start).div_ceil(self.ratio);
        let free = (0..clusters).filter(|cluster| is_free(&bits, *cluster)).count() as u64;
        Ok((free == u64::from(about.free)).then_some(bits))
    }

    fn runs(&self, group: u64, bits: &[u8]) -> Vec<Range<u64>> {
        let span = self.group_span(group);
        let cluster = self.ratio * self.block;
        let mut runs: Vec<Range<u64>> = Vec::new();
        for number in 0..(span.end - span.start).div_ceil(cluster) {
            if !is_free(bits, number) {
                continue;
            }
            let start = span.start + number * cluster;
            let end = (start + cluster).min(span.end);
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }
}

impl fmt::Display for Ext4 {
    /// As `blkid` names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.uuid.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

fn is_free(bits: &[u8], cluster: u64) -> bool {
    bits.get(cluster as usize / 8).is_some_and(|byte| byte & (1 << (cluster % 8)) == 0)
}

/// Whether something else lies here of which only an old superblock of ext4 was left standing.
fn other(source: &mut impl Source, disk: u64, part: &Range<u64>) -> io::Result<Option<&'static str>> {
    // Where they have their marks, from the beginning of a partition.
    const MARKS: [(usize, &[u8], &str); 12] = [
        (0, b"XFSB", "xfs"),
        (0, b"LUKS\xBA\xBE", "LUKS"),
        (3, b"NTFS    ", "NTFS"),
        (0, b"LABELONE", "LVM"),
        (512, b"LABELONE", "LVM"),
        (1024, b"LABELONE", "LVM"),
        (1536, b"LABELONE", "LVM"),
        (0, b"\xFC\x4E\x2B\xA9", "a RAID"),
        (4096, b"\xFC\x4E\x2B\xA9", "a RAID"),
        (4086, b"SWAPSPACE2", "swap"),
        (4086, b"SWAP-SPACE", "swap"),
        (4120, b"\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81", "bcache"),
    ];
    let start = bytes(source, disk, part.start, 8192)?;
    let found = MARKS.iter().find(|(at, mark, _)| start[*at..].starts_with(mark));
    if let Some((_, _, name)) = found {
        return Ok(Some(*name));
    }
    if part.end - part.start >= 128 << 10 && bytes(source, disk, part.start + 0x10040, 8)? == b"_BHRfS_M" {
        return Ok(Some("btrfs"));
    }
    // The older forms of a RAID leave their mark near the end.
    let len = part.end - part.start;
    for at in [(len & !0xFFFF) - 0x10000, (len & !0xFFF).saturating_sub(8192)] {
        if bytes(source, disk, part.start + at, 4)? == b"\xFC\x4E\x2B\xA9" {
            return Ok(Some("a RAID"));
        }
    }
    Ok(None)
}
