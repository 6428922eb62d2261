//! Tests that look at the whole process, and so run one at a time in a process of their own.

#[path = "../testkit/mod.rs"]
mod testkit;

mod leaks;
mod transport_descriptors;

/// What a test takes first, so that no other runs beside it.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
