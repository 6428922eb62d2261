//! Where a validator's miners come from: a file or an HTTP endpoint, both a [`MinerSource`], and the thread that keeps
//! the list as its source has it.
//!
//! * `list`: a list of miners as text. Pure.
//! * `source`: the two sources.
//! * `feed`: the thread.

mod feed;
mod list;
mod source;

pub use feed::{FeedHandle, FeedStatus, MinerFeed};
pub use list::{parse_miners, parse_miners_json};
pub use source::{LOOK_TIME, MinerFile, MinerSource, MinersError, MinersUrl, load_miners};
