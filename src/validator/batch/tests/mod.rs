//! The batch's state machine: tables, random walks with their invariants, and 1,000 miners for hours of virtual time.

mod bench;
mod ends;
mod simulation;
mod tables;
mod walks;

pub(super) use bench::request;
