//! An event that a wait for sockets listens to as well.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Interrupts a wait for sockets without harm to them. Clones are the same; it stays raised
/// until it is lowered. It owns one file descriptor.
#[derive(Clone)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// A lowered one.
    ///
    /// # Errors
    /// What the system says when it has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Ends the present wait, or the next one. Never blocks.
    pub fn raise(&self) {
        // It can only fail when the counter is full, and then it is raised.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// What raises it for as long as it is there, and keeps no descriptor. Never blocks.
    pub fn raiser(&self) -> impl Fn() + Send + Sync + 'static {
        let fd = Arc::downgrade(&self.0);
        move || {
            if let Some(fd) = fd.upgrade() {
                Self(fd).raise();
            }
        }
    }

    /// Waits may wait again; says whether it was raised. Lower first and look then, so that nothing is missed.
    pub fn lower(&self) -> bool {
        loop {
            match rustix::io::read(&*self.0, &mut [0u8; 8]) {
                Err(Errno::INTR) => {}
                other => return other.is_ok(),
            }
        }
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_raised_until_it_is_lowered() {
        let wake = Wake::new().unwrap();
        assert!(!wake.lower());
        wake.clone().raise();
        wake.raise();
        assert!(wake.lower());
        let raise = wake.raiser();
        raise();
        assert!(wake.lower());
        assert!(!wake.lower());
    }
}
