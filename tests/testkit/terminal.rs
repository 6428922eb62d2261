//! A real terminal of the system, on which a program runs while the test presses its keys.
//!
//! Owner: the test, through [`Terminal`]. One thread, `t-terminal`, reads what the program writes; it ends with the
//! program's side of the terminal.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use phalanx::base::thread::{Kick, Thread, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use super::wait::{LONG, until_some};

/// Before each screen, and after the last.
const HOME: &str = "\u{1b}[H";
const CLEARED: &str = "\u{1b}[J";

/// A program on a terminal; killed when dropped.
pub struct Terminal {
    child: Child,
    /// The test's side.
    keys: File,
    /// The program's side, to look at.
    side: Option<File>,
    before: Termios,
    shown: Arc<Mutex<String>>,
    _reader: Thread<()>,
}

impl Terminal {
    /// Starts a command on a terminal of that size.
    pub fn start(command: &mut Command, (columns, rows): (u16, u16)) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let side = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let before = tcgetattr(&side).unwrap();
        assert!(before.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO), "it is one that edits lines");
        let of_child = || Stdio::from(side.try_clone().unwrap());
        let child = command.stdin(of_child()).stdout(of_child()).stderr(Stdio::piped()).spawn().unwrap();
        let keys = File::from(master);
        let (mut out, shown) = (keys.try_clone().unwrap(), Arc::<Mutex<String>>::default());
        let seen = shown.clone();
        let reader = spawn("t-terminal", Kick::dropped("the terminal"), move || {
            let mut bytes = [0; 65536];
            // An error means that nobody has the other side any more.
            while let Ok(read @ 1..) = out.read(&mut bytes) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        Self { child, keys, side: Some(side), before, shown, _reader: reader }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// All that was written so far.
    pub fn written(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// The last whole screen, without its colours.
    pub fn screen(&self) -> Option<String> {
        let written = self.written();
        let whole = &written[..written.rfind(CLEARED)?];
        let screen = &whole[whole.rfind(HOME)? + HOME.len()..];
        let mut parts = screen.split('\u{1b}');
        let mut text = parts.next().unwrap().to_owned();
        for part in parts {
            // A sequence of ours ends in a letter.
            let end = part.find(|c: char| c.is_ascii_alphabetic()).unwrap();
            text.push_str(&part[end + 1..]);
        }
        Some(text.replace('\r', ""))
    }

    /// Waits for a screen in which all these stand.
    pub fn until(&self, parts: &[&str]) -> String {
        until_some(&format!("a screen with {parts:?}; the last is {:?}", self.screen()), || {
            self.screen().filter(|screen| parts.iter().all(|part| screen.contains(part)))
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether the lines of the terminal are as they were before the program.
    pub fn is_as_before(&self) -> bool {
        let now = tcgetattr(self.side.as_ref().unwrap()).unwrap();
        let modes =
            |termios: &Termios| (termios.input_modes, termios.output_modes, termios.control_modes, termios.local_modes);
        modes(&now) == modes(&self.before)
    }

    /// Waits for the end of the program, which has to come; its exit code and its stderr.
    pub fn finish(&mut self) -> (Option<i32>, String) {
        let fd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let limit = Timespec::try_from(LONG).unwrap();
        assert!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() > 0, "it does not end");
        let code = self.child.wait().unwrap().code();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (code, stderr)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // With the last of the program's side the reader ends.
        drop(self.side.take());
    }
}
