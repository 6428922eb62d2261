//! What a peer announces takes no memory before it comes. In a process of its own, because other tests' memory would be
//! counted.

#![cfg(target_os = "linux")]

use crate::alone;
use crate::testkit::threads::NoThreads;
use crate::testkit::transport::raw_client_connected;
use std::io::Write;
use std::net::Shutdown as Half;

use phalanx::transport::{Incoming, SocketLimits};

/// The most memory that this process has held, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn announced_bytes_cost_no_memory_before_they_come() {
    alone("transport_memory::announced_bytes_cost_no_memory_before_they_come", announced_bytes);
}

fn announced_bytes() {
    let _threads = NoThreads::expected();
    let before = peak_kib();
    let mut kept = Vec::new();
    for _ in 0..20 {
        let (mut client, mut server) = raw_client_connected(SocketLimits::default());
        let mut announced = vec![0x81, 0xff];
        announced.extend_from_slice(&(50u64 << 20).to_be_bytes());
        announced.extend_from_slice(&[0; 4 + 1]);
        client.write_all(&announced).unwrap();
        client.shutdown(Half::Write).unwrap();
        assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(info) if !info.clean));
        kept.push((client, server));
    }
    // 20 × 50 MiB were announced.
    let grown = peak_kib() - before;
    assert!(grown < 100 << 10, "{grown} KiB for {} connections", kept.len());
}
