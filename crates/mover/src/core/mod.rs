//! Every decision of the mover, without a disk, a socket, a clock or a thread.
//!
//! The two ends of a transfer are [`sender::Sender`] and [`receiver::Receiver`]. They see disks and their own
//! memory of a transfer only through the traits of [`ports`], so that a test can give them a disk that forgets.

pub mod calendar;
pub mod cutover;
pub mod doors;
pub mod evidence;
pub mod ext4;
pub mod forecast;
pub mod frame;
pub mod free;
pub mod geometry;
pub mod hash;
pub mod journal;
pub mod lease;
pub mod level;
pub mod line;
pub mod pace;
pub mod pack;
pub mod partitions;
pub mod ports;
pub mod receiver;
pub mod rounds;
pub mod sender;
pub mod share;
pub mod sni;
pub mod speed;
pub mod tree;
pub mod verify;
