//! A connection costs one descriptor and gives it back. In a process of its own, because other tests'
//! sockets would be counted.

#![cfg(target_os = "linux")]

use crate::alone;
use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use crate::testkit::wait::far;
use kit::{Site, background, dial_ws, join};
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::transport::{Connection, Incoming, Listener, SocketLimits};

fn descriptors() -> usize {
    // One of them is that of the listing itself, each time.
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn connections_cost_one_descriptor_each_and_give_it_back() {
    let name = "transport_descriptors::connections_cost_one_descriptor_each_and_give_it_back";
    alone(name, descriptors_are_given_back);
}

fn descriptors_are_given_back() {
    let _threads = NoThreads::expected();
    for tls in [false, true] {
        let before = descriptors();
        let Site { listener, dialer } = Site::new(tls);
        let (url, limits) = (listener.url(), SocketLimits::default());
        let stop = listener.kick();
        let server = background("t-accept", move || {
            let mut connections = Vec::new();
            while let Ok(pending) = listener.accept() {
                let shutdown = Shutdown::new();
                connections
                    .push(pending.handshake(&limits, far(), &shutdown, Level::Drain, &mut |_| Ok(())).unwrap().0);
            }
            connections
        });
        let listening = descriptors();
        assert_eq!(listening, before + 2, "a listener has its socket and the one that wakes it");
        let clients: Vec<_> = (0..20).map(|_| dial_ws(&dialer, &url, &limits).unwrap()).collect();
        assert_eq!(descriptors(), listening + 2 * 20);
        stop.kick();
        let servers = join(server);

        // However a connection ends: kicked, closed, dropped.
        let mut kicks = Vec::new();
        for (n, (client, server)) in clients.into_iter().zip(servers).enumerate() {
            let Connection { mut reader, mut writer, kick, .. } = client;
            match n % 3 {
                0 => kick.kick(),
                1 => {
                    let mut server = server;
                    writer.close(1000, "").unwrap();
                    assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(_)));
                    server.writer.flush().unwrap();
                    assert!(matches!(reader.read().unwrap(), Incoming::Closed(_)));
                }
                _ => {}
            }
            kicks.push(kick);
        }
        assert_eq!(descriptors(), before, "kicks that are kept hold none");
        kicks.iter().for_each(|kick| kick.kick());
        stop.kick();
    }
}
