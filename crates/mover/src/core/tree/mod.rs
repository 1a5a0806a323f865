//! File trees: a directory at the source becomes the same directory at the target.
//!
//! Both ends keep the same two lists of entries. `base` says what the receiver has: the tree of the last round, what
//! has arrived since, and what is about to be deleted but still lies there. `work` is the list of the round that is
//! running; it grows in the order of the paths. The sender walks its tree beside `base` and says in [`op::Op`]s how
//! `work` goes on: an entry is kept, passed over, or made anew, from new content and from any content that `base` or
//! `work` has. So a file that was moved costs its name, and content that has shifted costs nothing but numbers.
//!
//! The receiver never touches the tree during a round. New files lie beside it; at the end of the round all are put
//! in their places. A session that begins after a cut folds what `work` had become into a new `base`, and the
//! sender walks again: what is there already is kept. That is the whole of resuming.

pub mod bytes;
pub mod cut;
pub mod evidence;
pub mod frame;
pub mod hashes;
pub mod item;
pub mod list;
pub mod lists;
pub mod op;
pub mod path;
pub mod ports;
pub mod receiver;
pub mod record;
pub mod sender;
pub mod settle;
