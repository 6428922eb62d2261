//! The terminal while `phalanx top` has it: keys as they are pressed, a screen of its own, and as it was afterwards.

use std::io::{self, Write as _};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::model::Row;
use crate::app::exit::{self, BeforeExit};
use crate::app::output::Output;
use crate::cli::layout::{Palette, text_of};
use crate::cli::status::palette;

/// Another screen, and no cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";

/// The cursor, and the screen of before.
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";

/// What a terminal that does not say has.
const SIZE: (usize, usize) = (80, 24);

/// The terminal; it is as it was when this is dropped, and also when the process is ended at once.
pub(super) struct Terminal {
    saved: Termios,
    out: Output,
    palette: Palette,
    _last: BeforeExit,
}

impl Terminal {
    /// Takes the terminal. What is written may wait for it until the signal of `out` cancels.
    ///
    /// # Errors
    /// If stdin or stdout is no terminal, or the system refuses it.
    pub(super) fn take(mut out: Output) -> io::Result<Self> {
        let saved = tcgetattr(io::stdin())?;
        tcgetwinsize(io::stdout())?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        let restored = saved.clone();
        let last = exit::before_exit(move || restore(&restored));
        let entered = out.write_all(ENTER.as_bytes());
        let terminal = Self { saved, out, palette: palette(true), _last: last };
        entered.map(|()| terminal)
    }

    /// Columns and rows, at present.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => SIZE,
        }
    }

    /// Shows a screen in place of the one before. Blocks while the terminal takes nothing.
    ///
    /// # Errors
    /// The terminal has gone, or the signal has cancelled.
    pub(super) fn show(&mut self, screen: &[Row]) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (at, Row { line, chosen }) in screen.iter().enumerate() {
            if at > 0 {
                text.push_str("\r\n");
            }
            match chosen {
                true => text.extend(["\x1b[7m", &text_of(line), "\x1b[0m"]),
                false => text.push_str(&self.palette.paint(line)),
            }
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        self.out.write_all(text.as_bytes())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore(&self.saved);
    }
}

/// Never blocks: a terminal that takes nothing keeps its screen, and has its lines again all the same.
fn restore(saved: &Termios) {
    let stdout = io::stdout();
    let mut ready = [PollFd::new(&stdout, PollFlags::OUT)];
    let at_once = Timespec::default();
    if poll(&mut ready, Some(&at_once)).is_ok_and(|ready| ready > 0) {
        // One that has gone needs nothing.
        let _ = rustix::io::write(&stdout, LEAVE.as_bytes());
    }
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, saved);
}
