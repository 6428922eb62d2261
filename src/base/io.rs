//! Errors of the system: which may be over the next time. Pure.

use std::io::{self, ErrorKind};

/// Whether the same call may succeed later without a change of the settings: an address that somebody has, a full disk,
/// a lack of descriptors or memory.
pub fn may_pass(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS and EIO have no kind of their own.
    const OTHERS: [i32; 4] = [24, 23, 105, 5];
    matches!(
        error.kind(),
        ErrorKind::AddrInUse
            | ErrorKind::AddrNotAvailable
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::OutOfMemory
            | ErrorKind::ResourceBusy
            | ErrorKind::TimedOut
            | ErrorKind::WouldBlock
            | ErrorKind::Interrupted
    ) || error.raw_os_error().is_some_and(|number| OTHERS.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_and_a_full_disk_may_pass_and_a_missing_right_does_not() {
        for number in [98, 99, 28, 122, 24, 5] {
            assert!(may_pass(&io::Error::from_raw_os_error(number)), "{number}");
        }
        for kind in [ErrorKind::PermissionDenied, ErrorKind::NotFound, ErrorKind::NotADirectory] {
            assert!(!may_pass(&kind.into()), "{kind:?}");
        }
    }
}
