//! Other programs, for every role that runs some: what is done with a result is the role's policy.
//!
//! * [`group`]: a program in a process group that is ended as a whole.
//! * [`ladder`]: its signals, and when. Pure.
//! * [`tool`]: a program whose output is only looked at.
//! * [`docker`]: the one client of the Docker Engine, and the labels of our containers and networks.
//! * `address`: where an engine is, and what a client needs to talk to it. `strict_ssh`: an `ssh` that checks host
//!   keys. `explained`: why one elsewhere is not reached. Pure.
//! * [`images`]: its images; [`image_store`]: those that jobs have brought, and which of them go. `evict`: the choice.
//!   Pure.
//! * [`disk`]: the disk that it keeps them on.
//! * `notify`: what a service manager is told (sd_notify).
//! * `lock`: a lock between processes, on a file.
//! * `client`: what the `docker` program is given of our environment and configuration.
//! * [`helper`]: a container that reads and changes what other containers have left.
//! * `adopted`: a program that an earlier process of ours has started.
//! * `leftovers`: processes that outlived whoever started them.
//! * `this`: which program this is.

mod address;
pub(crate) mod adopted;
pub(crate) mod client;
pub mod disk;
pub mod docker;
mod evict;
mod explained;
pub mod group;
pub mod helper;
pub mod image_store;
pub mod images;
pub mod ladder;
pub(crate) mod leftovers;
pub(crate) mod lock;
pub mod notify;
mod strict_ssh;
pub(crate) mod this;
pub mod tool;
