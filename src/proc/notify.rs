//! What a service manager is told of this process: the datagrams of sd_notify(3), to the socket that it names in
//! `NOTIFY_SOCKET`. Sending never waits: a manager that does not read loses them.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::base::text::truncated;

/// The variables that a service manager tells its service, and nobody else, what it wants to be told by: they are not
/// for the programs that the service starts.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Bytes of a status text: a manager shows one line of it.
const STATUS_BYTES: usize = 512;

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    watchdog: Option<Duration>,
}

/// One thing to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice<'a> {
    /// It has started, or read its settings again.
    Ready,
    /// It reads its settings again; [`Notice::Ready`] follows.
    Reloading,
    /// It stops.
    Stopping,
    /// It is alive.
    Alive,
    /// What it is doing, for people.
    Status(&'a str),
    /// What it is doing now, starting or stopping, may take so much longer from now on.
    Extend(Duration),
}

impl fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("READY=1"),
            Self::Reloading => {
                let now = clock_gettime(ClockId::Monotonic);
                write!(f, "RELOADING=1\nMONOTONIC_USEC={}{:06}", now.tv_sec, now.tv_nsec / 1000)
            }
            Self::Stopping => f.write_str("STOPPING=1"),
            Self::Alive => f.write_str("WATCHDOG=1"),
            Self::Status(text) => {
                f.write_str("STATUS=")?;
                truncated(text, STATUS_BYTES)
                    .chars()
                    .try_for_each(|c| f.write_char(if c.is_control() { ' ' } else { c }))
            }
            Self::Extend(by) => write!(f, "EXTEND_TIMEOUT_USEC={}", by.as_micros()),
        }
    }
}

impl Notifier {
    /// The one that the process' environment, by `env`, names; `None` without a service manager.
    ///
    /// # Errors
    /// One line: the variable, and what would be right.
    pub fn of_env(env: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, String> {
        let [socket, pid, usec] = VARIABLES.map(env);
        let Some(name) = socket.filter(|name| !name.is_empty()) else { return Ok(None) };
        let manager = address(&name)?;
        let no_socket = |error: io::Error| format!("NOTIFY_SOCKET: {error}");
        let socket = UnixDatagram::unbound().map_err(no_socket)?;
        socket.set_nonblocking(true).map_err(no_socket)?;
        let number = |value: OsString| value.to_str().and_then(|value| value.parse::<u64>().ok());
        let is_ours = pid.is_none_or(|pid| number(pid) == Some(std::process::id().into()));
        let watchdog = usec.filter(|_| is_ours).map(|usec| match number(usec.clone()) {
            Some(usec) => Ok(Duration::from_micros(usec)),
            None => Err(format!("WATCHDOG_USEC is {usec:?}; it should be a number of microseconds")),
        });
        let watchdog = watchdog.transpose()?.filter(|time| !time.is_zero());
        Ok(Some(Self { socket, manager, watchdog }))
    }

    /// The longest time between two signs of life ([`Notice::Alive`]), if the manager wants them.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Tells the manager all that in one message.
    ///
    /// # Errors
    /// It does not read ([`io::ErrorKind::WouldBlock`]), or is not there.
    pub fn tell(&self, notices: &[Notice<'_>]) -> io::Result<()> {
        let lines: Vec<String> = notices.iter().map(Notice::to_string).collect();
        self.socket.send_to_addr(lines.join("\n").as_bytes(), &self.manager).map(drop)
    }
}

/// A path, or a name after `@` that is in no file system.
fn address(name: &OsStr) -> Result<SocketAddr, String> {
    let wrong = |why: &dyn fmt::Display| {
        format!("NOTIFY_SOCKET is {name:?}: {why}; the path of a socket, or @ and a name, would be right")
    };
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).map_err(|error| wrong(&error)),
        [b'/', ..] => SocketAddr::from_pathname(name).map_err(|error| wrong(&error)),
        _ => Err(wrong(&"it is no absolute path")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notifier(variables: &[(&str, &str)]) -> Result<Option<Notifier>, String> {
        let found = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        Notifier::of_env(found)
    }

    fn received(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 1024];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn notices_reach_sockets_with_a_path_and_without() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("phalanx-test-{}", std::process::id());
        let hidden = SocketAddr::from_abstract_name(&name).unwrap();
        let managers = [UnixDatagram::bind(&path).unwrap(), UnixDatagram::bind_addr(&hidden).unwrap()];
        let names = [path.to_str().unwrap().to_owned(), format!("@{name}")];
        for (manager, name) in managers.iter().zip(&names) {
            let notifier = notifier(&[("NOTIFY_SOCKET", name)]).unwrap().unwrap();
            notifier.tell(&[Notice::Ready, Notice::Status("two\nlines")]).unwrap();
            assert_eq!(received(manager), "READY=1\nSTATUS=two lines");
            notifier.tell(&[Notice::Stopping, Notice::Extend(Duration::from_millis(26_500))]).unwrap();
            assert_eq!(received(manager), "STOPPING=1\nEXTEND_TIMEOUT_USEC=26500000");
            notifier.tell(&[Notice::Alive, Notice::Status(&"é".repeat(STATUS_BYTES))]).unwrap();
            assert_eq!(received(manager), format!("WATCHDOG=1\nSTATUS={}", "é".repeat(STATUS_BYTES / 2)));
            notifier.tell(&[Notice::Reloading]).unwrap();
            let reloading = received(manager);
            let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse::<u64>().unwrap();
            assert!(usec > 0, "{reloading}");
        }
    }

    #[test]
    fn a_manager_that_does_not_read_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).unwrap().unwrap();
        let error = (0..100_000).find_map(|_| notifier.tell(&[Notice::Alive]).err()).expect("it takes all");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(manager);
        assert!(notifier.tell(&[Notice::Alive]).is_err());
    }

    #[test]
    fn the_watchdog_is_that_of_this_process() {
        let watchdog = |pid: &str, usec: &str| {
            let found = notifier(&[("NOTIFY_SOCKET", "/run/x"), ("WATCHDOG_PID", pid), ("WATCHDOG_USEC", usec)]);
            found.map(|notifier| notifier.unwrap().watchdog())
        };
        let own = std::process::id().to_string();
        assert_eq!(watchdog(&own, "30000000"), Ok(Some(Duration::from_secs(30))));
        assert_eq!(watchdog("1", "30000000"), Ok(None));
        assert_eq!(watchdog(&own, "0"), Ok(None));
        assert!(watchdog(&own, "30s").unwrap_err().contains("a number of microseconds"));
        let without = notifier(&[("NOTIFY_SOCKET", "/run/x"), ("WATCHDOG_USEC", "1000")]).unwrap().unwrap();
        assert_eq!(without.watchdog(), Some(Duration::from_millis(1)));
        assert!(notifier(&[("WATCHDOG_USEC", "1000")]).unwrap().is_none());
        assert!(notifier(&[("NOTIFY_SOCKET", "")]).unwrap().is_none());
        for wrong in ["run/x", "vsock:2:1"] {
            assert!(notifier(&[("NOTIFY_SOCKET", wrong)]).unwrap_err().contains("no absolute path"), "{wrong}");
        }
    }
}
