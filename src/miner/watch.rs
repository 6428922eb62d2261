//! The miner's watcher: a process that outlives a miner that was killed, and removes what it has left on its machine.
//!
//! What a killed miner leaves, its next start takes up or removes; but nobody may start it again. So it starts a
//! watcher before it makes anything: this program once more, with the same settings, in a session of its own and nobody
//! else's child, so that neither a signal to the miner's group nor one to all that descend from the miner reaches it.
//! The watcher holds the end of a pipe. A miner that ends by itself says so there, and the watcher ends with it. When
//! the pipe breaks instead, executors that live are left alone: they finish their jobs or give their miner up, or a new
//! miner takes them back. All else that carries the miner's marks is removed, until nothing is left, or another process
//! has the state folder and with it what is to be done.
//!
//! The watcher's threads, one for each host of its miner, are those of `killed_host`. [`watch`] itself blocks in the
//! pipe, and then until they have ended or the state folder has a new owner.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::config::{HostConfig, WatchCommand};
use super::executor_manager::Owner;
use super::killed_host::KilledHost;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{Kick, spawn};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::proc::group::poll_until;
use crate::proc::lock::FileNews;
use crate::store::miner::lock_file;

/// What a miner says that ends by itself.
const DONE: &[u8] = b"done\n";

/// What a watcher has to say, in the state folder: nobody reads its standard error. The next miner takes it up.
const LOG: &str = "watch.log";

/// How much of that is taken up: the last.
const LOG_BYTES: u64 = 64 << 10;

/// How long the start of a watcher may take: two starts of this program.
const START_TIME: Duration = Duration::from_secs(10);

/// The flag for whose things a watcher watches; a value of [`Owner::watched`].
const FLAG: &str = "--watch";

/// The miner's side. Clones are the same; the watcher ends when [`Watcher::finish`] is called or the last is dropped.
#[derive(Debug, Clone)]
pub(super) struct Watcher(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    command: WatchCommand,
    flag: String,
    state_dir: PathBuf,
    living: Mutex<Option<Living>>,
    /// Why there is none, as it was told.
    told: Mutex<String>,
    errors: ErrorHandler,
}

/// A watcher that was started.
#[derive(Debug)]
struct Living {
    lease: PipeWriter,
    /// Ends with it.
    gone: PipeReader,
}

impl Watcher {
    /// Starts the watcher of this miner, after taking up what an earlier one has said. Blocks for at most
    /// [`START_TIME`]. A miner without one works: it is tried again by [`Watcher::check`].
    pub(super) fn start(command: WatchCommand, owner: &Owner, state_dir: &Path, errors: ErrorHandler) -> Self {
        let flag = format!("{}:{}", owner.instance, owner.epoch);
        let (state_dir, living, told) = (state_dir.to_owned(), Mutex::default(), Mutex::default());
        let log = state_dir.join(LOG);
        let watcher = Self(Arc::new(Watched { command, flag, state_dir, living, told, errors }));
        if let Err(error) = take_log(&log) {
            watcher.trouble(&format_args!("what that of an earlier miner has said cannot be read: {error}"));
        }
        watcher.check();
        watcher
    }

    /// Starts it again if it has ended; says that it had to. Blocks for at most [`START_TIME`], and not at all if
    /// another thread is about to.
    pub(super) fn check(&self) {
        let mut living = match self.0.living.try_lock() {
            Ok(living) => living,
            Err(TryLockError::WouldBlock) => return,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        if living.as_ref().is_some_and(Living::lives) {
            return;
        }
        if living.is_some() {
            self.trouble(&"it was ended by somebody; another one is started");
        }
        *living = match self.0.launch() {
            Ok(started) => {
                lock(&self.0.told).clear();
                Some(started)
            }
            Err(error) => {
                let error = error.to_string();
                // The reaper of each host tries it again, and again.
                if *lock(&self.0.told) != error {
                    self.trouble(&format_args!(
                        "the miner has none, so what it leaves if it is killed stays until it starts again: {error}"
                    ));
                    *lock(&self.0.told) = error;
                }
                None
            }
        };
    }

    /// Lets the watcher end, because the miner does. Blocks until it has, at most until `deadline`.
    pub(super) fn finish(&self, deadline: Instant) {
        let Some(living) = lock(&self.0.living).take() else { return };
        if !living.finish(deadline) {
            self.trouble(&"it does not end");
        }
    }

    fn trouble(&self, what: &dyn Display) {
        self.0.errors.report(ErrorClass::Reconnect, "watcher", what);
    }
}

impl Watched {
    fn launch(&self) -> io::Result<Living> {
        let ((lent, lease), (gone, held)) = (io::pipe()?, io::pipe()?);
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(self.state_dir.join(LOG))?;
        let mut command = Command::new(&self.command.program);
        command.args(&self.command.arguments).args([FLAG, &self.flag]).stdin(lent).stdout(held).stderr(log);
        let mut child = command.spawn()?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let in_time = poll_until(&mut [PollFd::new(&process, PollFlags::IN)], Some(Instant::now() + START_TIME))?;
        if !in_time {
            child.kill()?;
        }
        match child.wait()? {
            status if status.success() => Ok(Living { lease, gone }),
            _ if !in_time => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not start in {START_TIME:?}")))
            }
            status => Err(io::Error::other(format!("its start ended with {status}"))),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(living) = lock(&self.living).take() {
            living.finish(Instant::now());
        }
    }
}

impl Living {
    fn lives(&self) -> bool {
        // Nothing is ever written there.
        !poll_until(&mut [PollFd::new(&self.gone, PollFlags::IN)], Some(Instant::now())).unwrap_or(true)
    }

    /// Says whether it has ended.
    fn finish(mut self, deadline: Instant) -> bool {
        // One that is gone reads nothing any more.
        let _ = self.lease.write_all(DONE);
        drop(self.lease);
        poll_until(&mut [PollFd::new(&self.gone, PollFlags::IN)], Some(deadline)).unwrap_or(true)
    }
}

/// Says in our log what a watcher has said, the last of it if that is much.
fn take_log(path: &Path) -> io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let dropped = file.metadata()?.len().saturating_sub(LOG_BYTES);
    if dropped > 0 {
        log::warn!("while no miner ran, its watcher said more than is shown: the first {dropped} bytes are left out");
    }
    file.seek(SeekFrom::Start(dropped))?;
    for line in BufReader::new(file.take(LOG_BYTES)).split(b'\n') {
        log::warn!("while no miner ran, its watcher said: {}", String::from_utf8_lossy(&line?));
    }
    std::fs::remove_file(path)
}

impl Owner {
    /// The owner that a miner has named to its watcher; things are known by the instance, so the hotkey is left out.
    ///
    /// # Errors
    /// What would be right, in words.
    pub fn watched(flag: &str) -> Result<Self, String> {
        let wrong = || "it should be INSTANCE:EPOCH, as a miner says it".to_owned();
        let (instance, epoch) = flag.split_once(':').ok_or_else(wrong)?;
        Ok(Self { miner: String::new(), instance: instance.to_owned(), epoch: epoch.parse().map_err(|_| wrong())? })
    }
}

/// Watches for the end of the miner at the other end of `lease`; then removes what it has left on its `hosts`, which
/// are asked for then: those of all settings that it may have had, as of its start and of now. Blocks until that is
/// done, which is for as long as the miner lives and its executors do, and at most 10 minutes of tries in vain longer.
///
/// # Errors
/// If the state folder cannot be watched for a new owner.
pub fn watch(
    owner: &Owner,
    state_dir: &Path,
    lease: impl Read,
    hosts: impl FnOnce() -> Vec<HostConfig>,
) -> io::Result<()> {
    // Before the miner can end, so that no new owner is missed.
    let owned_anew = FileNews::of(&lock_file(state_dir))?;
    if released(lease) {
        return Ok(());
    }
    let Owner { instance, epoch, .. } = owner;
    log::warn!("process {epoch} of miner instance {instance} was killed; what it has left is removed");
    // It ends with the last of those that hold the other end.
    let (all_done, working) = io::pipe()?;
    let (stop, working) = (Shutdown::new(), Arc::new(working));
    let mut threads = Vec::new();
    for (number, host) in KilledHost::all(owner, hosts()).into_iter().enumerate() {
        let (until, kicked, working) = (stop.clone(), stop.clone(), working.clone());
        let kick = Kick::new("stop signal of the watcher", move || kicked.cancel());
        threads.push(spawn(format!("watch-{number}"), kick, move || {
            host.run(&until);
            drop(working);
        }));
    }
    drop(working);
    if owned_anew.before(&all_done)? {
        log::info!("another process has the miner's state folder; the rest is left to it");
        // All before the first is joined, so that they end side by side.
        stop.cancel();
    }
    Ok(())
}

/// Whether the miner says that it ends by itself; blocks until it does, or has ended.
fn released(lease: impl Read) -> bool {
    let mut said = Vec::new();
    // An error is an end, too.
    let _ = lease.take(DONE.len() as u64).read_to_end(&mut said);
    said == DONE
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crossbeam_channel::{Sender, bounded};

    use super::*;
    use crate::base::wait::{far, until};
    use crate::miner::executor_manager::{ExecutorBackend, ExecutorEnd, ExecutorError, ExecutorSpec, Marked};
    use crate::proc::docker::EngineAddress;

    const LONG: Duration = Duration::from_secs(60);

    fn owner() -> Owner {
        Owner::watched("5a:3").unwrap()
    }

    /// A state folder that somebody has.
    fn state() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(lock_file(folder.path()), "1").unwrap();
        folder
    }

    /// An engine that does not answer until it is asked no more.
    struct Hangs(Sender<&'static str>);

    impl ExecutorBackend for Hangs {
        fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
            Err(ExecutorError::Lost)
        }

        fn find(&self, _: &Owner, stop: &Shutdown) -> Result<Vec<Marked>, String> {
            self.0.send("asked").unwrap();
            let _ = stop.cancel_receiver().recv_timeout(LONG);
            self.0.send("given up").unwrap();
            Err("no answer".to_owned())
        }
    }

    /// An engine that has nothing.
    struct Empty(Sender<&'static str>);

    impl ExecutorBackend for Empty {
        fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
            Err(ExecutorError::Lost)
        }

        fn find(&self, _: &Owner, _: &Shutdown) -> Result<Vec<Marked>, String> {
            self.0.send("looked at").unwrap();
            Ok(Vec::new())
        }
    }

    fn host(name: &str, backend: Arc<dyn ExecutorBackend>) -> HostConfig {
        let (name, engine) = (name.parse().unwrap(), EngineAddress::local());
        HostConfig { name, address: String::new(), engine, executors: vec![], backend }
    }

    #[test]
    fn nothing_is_done_for_a_miner_that_ends_by_itself_or_whose_folder_has_a_new_owner() {
        let (asked, asks) = bounded(1);
        let state = state();
        watch(&owner(), state.path(), DONE, || panic!("it has ended by itself")).unwrap();
        for said in [&b""[..], b"don"] {
            let owned_anew = || {
                std::fs::write(lock_file(state.path()), "2").unwrap();
                vec![host("local", Arc::new(Hangs(asked.clone())))]
            };
            watch(&owner(), state.path(), said, owned_anew).unwrap();
        }
        assert!(asks.is_empty(), "nobody is to be looked after");
        assert!(Owner::watched("5a").is_err() && Owner::watched("5a:b").is_err());
    }

    #[test]
    fn a_host_that_hangs_holds_up_no_other_and_no_new_owner() {
        let ((hangs, hung), (looks, looked)) = (bounded(2), bounded(60));
        let state = state();
        let hosts = || vec![host("far", Arc::new(Hangs(hangs))), host("local", Arc::new(Empty(looks)))];
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch(&owner(), state.path(), &b""[..], hosts));
            assert_eq!(hung.recv_timeout(LONG), Ok("asked"));
            for _ in 0..2 {
                assert_eq!(looked.recv_timeout(LONG), Ok("looked at"));
            }
            std::fs::write(lock_file(state.path()), "2").unwrap();
            assert_eq!(hung.recv_timeout(LONG), Ok("given up"));
            watching.join().unwrap().unwrap();
        });
    }

    /// Stands for this program: starts a shell that notes its number and what it is told, and ends with its input.
    const STAND_IN: &str = r#"[ "$2 $3" = "--watch 5a:3" ] || exit 9
        exec 3<&0
        setsid sh -c 'echo $$ >>"$0"/pids; cat <&3 >>"$0"/said; echo bye >&2' "$1" 3<&3 &"#;

    #[test]
    fn a_watcher_that_was_ended_is_started_again_and_its_words_are_taken_up() {
        let state = state();
        let folder = state.path().display().to_string();
        let arguments = ["-c", STAND_IN, "sh", &folder].map(OsString::from).into();
        let command = WatchCommand { program: "sh".into(), arguments };
        let text = |name: &str| std::fs::read_to_string(state.path().join(name)).unwrap_or_default();
        let watcher = Watcher::start(command, &owner(), state.path(), ErrorHandler::default());
        until("it runs", || text("pids").lines().count() == 1);
        watcher.check();
        let pid = text("pids").trim().parse().ok().and_then(Pid::from_raw).unwrap();
        rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).unwrap();
        until("another one runs", || {
            watcher.check();
            text("pids").lines().count() == 2
        });
        watcher.finish(far());
        assert_eq!((text("said").as_str(), text(LOG).as_str()), ("done\n", "bye\n"));
        take_log(&state.path().join(LOG)).unwrap();
        take_log(&state.path().join(LOG)).unwrap();
        assert_eq!(text(LOG), "");

        let missing = WatchCommand { program: "/nonexistent/phalanx".into(), arguments: vec![] };
        Watcher::start(missing, &owner(), state.path(), ErrorHandler::default()).finish(far());
    }
}
