//! Extended attributes, read and compared.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Stat, fgetxattr, flistxattr};
use rustix::io::Errno;

use crate::core::tree::item::{MAX_XATTRS, Meta, Time, is_carried};
use crate::core::tree::ports;

/// By name, what is carried of the attributes of an open file or directory.
///
/// # Errors
/// Of the disk; also when they are too large to be carried.
pub fn read(fd: impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0_u8; 4096];
    let len = loop {
        match flistxattr(&fd, names.as_mut_slice()) {
            Ok(len) => break len,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
            Err(Errno::RANGE) if names.len() < MAX_XATTRS => names.resize(names.len() * 4, 0),
            Err(Errno::RANGE) => return Err(too_large()),
            Err(error) => return Err(error.into()),
        }
    };
    let (mut found, mut total) = (Vec::new(), 0);
    for name in names[..len].split(|byte| *byte == 0).filter(|name| is_carried(name)) {
        let mut value = vec![0_u8; 256];
        let len = loop {
            match fgetxattr(&fd, name, value.as_mut_slice()) {
                Ok(len) => break Some(len),
                // It was there when the names were read.
                Err(Errno::NODATA) => break None,
                Err(Errno::RANGE) if value.len() < MAX_XATTRS => value.resize(value.len() * 4, 0),
                Err(Errno::RANGE) => return Err(too_large()),
                Err(error) => return Err(error.into()),
            }
        };
        let Some(len) = len else { continue };
        value.truncate(len);
        total += name.len() + value.len();
        found.push((name.to_vec(), value));
    }
    found.sort();
    if total > MAX_XATTRS || found.len() > 256 { Err(too_large()) } else { Ok(found) }
}

fn too_large() -> io::Error {
    io::Error::other("its extended attributes are larger than 64 KiB")
}

/// What a directory says of an entry.
pub fn meta(stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Meta {
    Meta {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime(stat),
        xattrs,
    }
}

/// When its content changed.
pub fn mtime(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 }
}

/// By what a change is noticed.
pub fn noticed(stat: &Stat) -> ports::Stat {
    ports::Stat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        // Its size is another on other machines.
        #[allow(clippy::unnecessary_cast)]
        links: stat.st_nlink as u64,
        size: stat.st_size as u64,
        mtime: mtime(stat),
        ctime: Time { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
    }
}
