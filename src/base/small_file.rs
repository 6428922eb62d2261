//! Files that operators write: settings, keys, certificates, jobs. They are read up to a limit, and a pipe is waited
//! for only a while, so that a wrong name stops nobody.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::time::Timespec;

use super::waits::waiting;

/// How long who writes into a pipe may be silent: a program that makes the text, as `<(program)`, is done by then.
pub(crate) const PIPE_TIME: Duration = Duration::from_secs(10);

/// Bytes of one read.
const CHUNK: usize = 16 << 10;

/// All of a file, of at most `limit` bytes. Blocks on the disk; for a pipe or a terminal at most [`PIPE_TIME`] for each
/// piece, and nothing interrupts it.
///
/// # Errors
/// The system's; [`ErrorKind::FileTooLarge`] beyond the limit, [`ErrorKind::TimedOut`] if nobody writes.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let kind = file.metadata()?.file_type();
    read_from(&mut file, limit, kind.is_fifo() || kind.is_char_device() || kind.is_socket())
}

/// As [`read`], of a program's own file, for which nobody is waited. Blocks on the disk.
///
/// # Errors
/// As [`read`]; [`ErrorKind::InvalidInput`] if it is a pipe, a folder or a device.
pub(crate) fn read_own(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    read_from(&mut file, limit, false)
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// As [`read`], of what is open already.
pub(crate) fn read_from(file: &mut (impl Read + std::os::fd::AsFd), limit: u64, may_wait: bool) -> io::Result<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; CHUNK]);
    loop {
        if may_wait {
            until_readable(file, Instant::now() + PIPE_TIME)?;
        }
        match file.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
        if bytes.len() as u64 > limit {
            let problem = format!("it has more than {limit} bytes, which is the most that is read");
            return Err(io::Error::new(ErrorKind::FileTooLarge, problem));
        }
    }
}

fn until_readable(file: &impl std::os::fd::AsFd, deadline: Instant) -> io::Result<()> {
    let _waiting = waiting("who writes into a pipe", Some(deadline));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&left)) {
            Ok(0) => {
                let problem = format!("nobody wrote into this pipe within {} s", PIPE_TIME.as_secs());
                return Err(io::Error::new(ErrorKind::TimedOut, problem));
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_read_up_to_its_limit_and_a_folder_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "x".repeat(20_000)).unwrap();
        assert_eq!(read(&path, 20_000).unwrap().len(), 20_000);
        assert_eq!(read(&path, 19_999).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(Path::new("/dev/zero"), 1000).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(folder.path(), 10).unwrap_err().kind(), ErrorKind::IsADirectory);
        assert_eq!(read(Path::new("/dev/null"), 10).unwrap(), b"");
    }

    #[test]
    fn a_pipe_is_read_to_its_end_and_not_waited_for_without_a_writer() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"hello").unwrap();
        let (ended, gone) = io::pipe().unwrap();
        drop(gone);
        until_readable(&ended, Instant::now()).unwrap();
        drop(writer);
        assert_eq!(read_from(&mut reader, 10, true).unwrap(), b"hello");
        let (reader, _writer) = io::pipe().unwrap();
        let error = until_readable(&reader, Instant::now()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
