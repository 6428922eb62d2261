//! A port for each executor that is none of ours, for the clients of a streaming job. Ours takes one by itself; the
//! Python executor takes the one that its variable `NGINX_PORT` names, and without it all of them take the same.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use super::settings::TOKEN;
use crate::base::lock::lock;
use crate::ops::cause::Cause;
use crate::ops::errors::ErrorHandler;
use crate::proc::leftovers::values_of_leaders;

/// The variable.
pub(super) const PORT: &str = "NGINX_PORT";

/// Where trouble with them is reported.
pub(super) const PORTS: &str = "ports";

/// The Python executor takes the next port, too, to ask for the health of a job on the host.
const STEP: usize = 2;

/// The ports of one machine. Clones have the same, and so have those of other ranges that are made of them.
#[derive(Debug, Clone)]
pub struct ClientPorts {
    range: RangeInclusive<u16>,
    taken: Arc<Mutex<BTreeSet<u16>>>,
}

impl ClientPorts {
    /// Nobody has any of them.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, taken: Arc::default() }
    }

    /// The ports of the same machine in another range: what executors have of these, they have of those.
    pub fn of_range(&self, range: RangeInclusive<u16>) -> Self {
        Self { range, taken: self.taken.clone() }
    }

    /// The first that, with the next one, no executor has and on which nobody listens here; both are free again when
    /// the value is dropped. What executors of this machine have that an earlier miner or another one has started is
    /// read from their environments; without those no port is given.
    pub(super) fn take(&self, errors: &ErrorHandler) -> Option<ClientPort<'_>> {
        let of_others = values_of_leaders(PORT, TOKEN)
            .inspect_err(|error| {
                let what = format_args!("those of executors that run are not known: {error}");
                errors.report(Cause::of_io(error).class(), PORTS, &what);
            })
            .ok()?;
        let of_others = of_others.iter().filter_map(|port| port.to_str()?.parse().ok());
        let mut taken = lock(&self.taken);
        let used: BTreeSet<u16> = of_others.flat_map(both).chain(taken.iter().copied()).collect();
        let is_free = |port: u16| !used.contains(&port) && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        let port = self.range.clone().step_by(STEP).find(|port| both(*port).all(is_free))?;
        taken.extend(both(port));
        Some(ClientPort { of: self, port })
    }
}

/// A port and the one after it.
fn both(port: u16) -> RangeInclusive<u16> {
    port..=port.saturating_add(1)
}

/// A port that one executor has.
#[derive(Debug)]
pub(super) struct ClientPort<'a> {
    of: &'a ClientPorts,
    pub(super) port: u16,
}

impl Drop for ClientPort<'_> {
    fn drop(&mut self) {
        lock(&self.of.taken).retain(|port| !both(self.port).contains(port));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// The first of two ports on which nobody listens.
    fn two_free() -> u16 {
        let mut tries = (0..100).map(|_| {
            let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
            both(port).all(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()).then_some(port)
        });
        tries.find_map(|port| port.filter(|port| *port < u16::MAX)).expect("two free ports")
    }

    #[test]
    fn each_executor_has_two_ports_of_its_own_on_which_nobody_listens() {
        let first = two_free();
        let ports = ClientPorts::new(first..=first + 1);
        for used in both(first) {
            let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, used)).unwrap();
            assert!(ports.take(&ErrorHandler::default()).is_none(), "{used} of {first} is used");
        }
        let taken = ports.take(&ErrorHandler::default()).unwrap();
        assert_eq!(taken.port, first);
        assert!(ports.take(&ErrorHandler::default()).is_none(), "the next port is the first one's");
        // As by the settings after SIGHUP.
        assert!(ports.of_range(first + 1..=first + 1).take(&ErrorHandler::default()).is_none());
        drop(taken);
        assert_eq!(ports.of_range(first..=first).take(&ErrorHandler::default()).unwrap().port, first);
    }

    #[test]
    fn what_an_executor_of_an_earlier_miner_has_is_not_given_to_another() {
        let first = two_free();
        let ports = ClientPorts::new(first..=first);
        let mut executor = Command::new("cat");
        executor.env(PORT, first.to_string()).env(TOKEN, "t").process_group(0);
        let mut executor = executor.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let while_it_lives = ports.take(&ErrorHandler::default()).is_none();
        drop(executor.stdin.take());
        executor.wait().unwrap();
        assert!(while_it_lives && ports.take(&ErrorHandler::default()).is_some());
    }
}
