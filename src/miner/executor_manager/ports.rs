//! A port for each executor that is none of ours, for the clients of a streaming job. Ours takes one by itself; the
//! Python executor takes the one that its variable `NGINX_PORT` names, and without it all of them take the same.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::Mutex;

use crate::base::lock::lock;

/// The variable.
pub(super) const PORT: &str = "NGINX_PORT";

/// The Python executor takes the next port, too, to ask for the health of a job on the host.
const STEP: usize = 2;

/// The ports of one machine.
#[derive(Debug)]
pub struct ClientPorts {
    range: RangeInclusive<u16>,
    taken: Mutex<BTreeSet<u16>>,
}

impl ClientPorts {
    /// Nobody has any of them.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, taken: Mutex::default() }
    }

    /// The first that no executor has and on which nobody listens here; it is free again when the value is dropped.
    pub(super) fn take(&self) -> Option<ClientPort<'_>> {
        let mut taken = lock(&self.taken);
        let is_free = |port: u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        let port = self.range.clone().step_by(STEP).find(|port| !taken.contains(port) && is_free(*port))?;
        taken.insert(port);
        Some(ClientPort { of: self, port })
    }
}

/// A port that one executor has.
#[derive(Debug)]
pub(super) struct ClientPort<'a> {
    of: &'a ClientPorts,
    pub(super) port: u16,
}

impl Drop for ClientPort<'_> {
    fn drop(&mut self) {
        lock(&self.of.taken).remove(&self.port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_executor_has_a_port_of_its_own_on_which_nobody_listens() {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let used = listener.local_addr().unwrap().port();
        assert!(ClientPorts::new(used..=used).take().is_none());
        drop(listener);
        let ports = ClientPorts::new(used..=used + 1);
        let first = ports.take().unwrap();
        assert_eq!(first.port, used);
        assert!(ports.take().is_none(), "the next port is the first one's");
        drop(first);
        assert_eq!(ports.take().unwrap().port, used);
    }
}
