//! Where the frames begin in the bytes of a peer, and how many of them it may send. Pure: it sees bytes and keeps
//! none.
//!
//! The codec reserves what a header announces and collects fragments without end, so a frame is judged here before the
//! codec sees its header.

use crate::transport::{IntakeLimits, TransportError};

/// Bytes of the longest header: two, eight of length, four of mask.
const HEADER_BYTES: usize = 14;

/// Frames that one message may have whatever their size.
const FRAMES: u64 = 1024;

/// Beyond [`FRAMES`], one more for so many bytes: a message in fragments of 16 bytes has as many bytes of headers and
/// of bookkeeping as of itself.
const BYTES_A_FRAME: u64 = 16;

/// What becomes of a frame.
#[derive(Debug)]
pub(super) enum Judgement {
    Pass,
    /// Not as long as the peer is a stranger.
    Wait,
    Refuse(TransportError),
}

/// What has been seen of a peer's frames.
#[derive(Debug, Default)]
pub(super) struct Scan {
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that have come.
    have: usize,
    /// Bytes of the frame's payload that have not come.
    left: u64,
    is_control: bool,
    /// The frame is the last of its message.
    is_last: bool,
    /// Of the present message.
    message: Size,
    /// Since the beginning of the connection.
    all: Size,
    /// Messages that have come whole.
    messages: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Size {
    frames: u64,
    bytes: u64,
}

/// How far [`Scan::next`] has come.
#[derive(Debug)]
pub(super) enum Scanned {
    /// So many bytes that belong to a header or a control frame.
    Frame(usize),
    /// So many of a message.
    Payload(usize),
    /// These bytes complete a header that was not passed.
    Stopped(Judgement),
}

impl Scan {
    /// Looks at the beginning of `bytes`, of which there are some, and says how many of them may go on.
    pub(super) fn next(&mut self, bytes: &[u8], stranger: Option<&IntakeLimits>) -> Scanned {
        if self.left > 0 {
            let passed = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= passed as u64;
            if self.is_control {
                return Scanned::Frame(passed);
            }
            if self.left == 0 {
                self.frame_ends();
            }
            return Scanned::Payload(passed);
        }
        let before = self.have;
        for (at, byte) in bytes.iter().enumerate() {
            self.header[self.have] = *byte;
            self.have += 1;
            let Some(length) = self.length() else { continue };
            let judgement = self.judge(length, stranger);
            if !matches!(judgement, Judgement::Pass) {
                // It is looked at again from here, when the peer is known.
                self.have = before;
                return Scanned::Stopped(judgement);
            }
            self.begin(length);
            return Scanned::Frame(at + 1);
        }
        Scanned::Frame(bytes.len())
    }

    /// How many of `bytes` come next that belong to a message.
    pub(super) fn payload_in(&self, bytes: &[u8]) -> usize {
        if self.is_control { 0 } else { bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX)) }
    }

    /// Whether the message whose payload was passed last is whole.
    pub(super) fn is_between_messages(&self) -> bool {
        self.message.frames == 0
    }

    /// The payload's length, if the header is whole.
    fn length(&self) -> Option<u64> {
        let [_, second, rest @ ..] = &self.header;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (extended, length) = match second & 0x7f {
            126 => (2, u64::from(u16::from_be_bytes([rest[0], rest[1]]))),
            127 => {
                let [a, b, c, d, e, f, g, h, ..] = *rest;
                (8, u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
            short => (0, u64::from(short)),
        };
        (self.have >= 2 && self.have == 2 + extended + mask).then_some(length)
    }

    fn is_control_frame(&self) -> bool {
        self.header[0] & 0x08 != 0
    }

    fn judge(&self, length: u64, stranger: Option<&IntakeLimits>) -> Judgement {
        let is_control = self.is_control_frame();
        let message = self.message.bytes.saturating_add(if is_control { 0 } else { length });
        if let Some(stranger) = stranger {
            let limit = stranger.message_bytes;
            if message > limit as u64 {
                // What may show who it is has not come yet, so nothing will change that.
                if self.messages == 0 {
                    let size = usize::try_from(message).unwrap_or(usize::MAX);
                    return Judgement::Refuse(TransportError::TooLarge { size, limit });
                }
                return Judgement::Wait;
            }
            let all = Size { frames: self.all.frames + 1, bytes: self.all.bytes.saturating_add(length) };
            if all.bytes > stranger.bytes as u64 || all.frames > frames(all.bytes) {
                return Judgement::Wait;
            }
        }
        if !is_control && self.message.frames >= frames(message) {
            let problem = format!("a message of {message} bytes in more than {} frames", frames(message));
            return Judgement::Refuse(TransportError::Protocol { problem });
        }
        Judgement::Pass
    }

    fn begin(&mut self, length: u64) {
        self.is_control = self.is_control_frame();
        self.is_last = self.header[0] & 0x80 != 0;
        self.have = 0;
        self.left = length;
        self.all.frames += 1;
        self.all.bytes = self.all.bytes.saturating_add(length);
        if !self.is_control {
            self.message.frames += 1;
            self.message.bytes = self.message.bytes.saturating_add(length);
            if length == 0 {
                self.frame_ends();
            }
        }
    }

    fn frame_ends(&mut self) {
        if self.is_last {
            self.message = Size::default();
            self.messages += 1;
        }
    }
}

/// Frames that a message of so many bytes may have.
fn frames(bytes: u64) -> u64 {
    FRAMES + bytes / BYTES_A_FRAME
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    const STRANGER: IntakeLimits = IntakeLimits { message_bytes: 4096, bytes: 64 << 10 };

    const TEXT: u8 = 1;
    const CONTINUE: u8 = 0;
    const PING: u8 = 9;

    fn frame(bytes: usize, code: u8, last: bool) -> Vec<u8> {
        let mut frame = vec![code | if last { 0x80 } else { 0 }];
        match bytes {
            0..126 => frame.push(0x80 | bytes as u8),
            126..65536 => frame.extend([&[0x80 | 126][..], &(bytes as u16).to_be_bytes()].concat()),
            _ => frame.extend([&[0x80 | 127][..], &(bytes as u64).to_be_bytes()].concat()),
        }
        frame.extend([1, 2, 3, 4]);
        frame.extend(vec![b'x'; bytes]);
        frame
    }

    fn text(bytes: usize) -> Vec<u8> {
        frame(bytes, TEXT, true)
    }

    /// Bytes that pass, bytes of messages among them, and what has stopped it.
    fn pass(scan: &mut Scan, mut bytes: &[u8], stranger: Option<&IntakeLimits>) -> (usize, usize, Option<Judgement>) {
        let (mut passed, mut payload) = (0, 0);
        while !bytes.is_empty() {
            let n = match scan.next(bytes, stranger) {
                Scanned::Frame(n) => n,
                Scanned::Payload(n) => {
                    payload += n;
                    n
                }
                Scanned::Stopped(judgement) => return (passed, payload, Some(judgement)),
            };
            passed += n;
            bytes = &bytes[n..];
        }
        (passed, payload, None)
    }

    #[test]
    fn a_strangers_first_message_is_small_and_a_large_one_behind_it_waits() {
        let mut scan = Scan::default();
        let refused = pass(&mut scan, &text(4097), Some(&STRANGER)).2;
        assert!(
            matches!(refused, Some(Judgement::Refuse(TransportError::TooLarge { size: 4097, limit: 4096 }))),
            "{refused:?}"
        );
        let mut scan = Scan::default();
        let (login, job) = (text(4096), text(50 << 10));
        let (passed, payload, stopped) = pass(&mut scan, &[&login[..], &job].concat(), Some(&STRANGER));
        assert_eq!((passed, payload), (login.len(), 4096));
        assert!(matches!(stopped, Some(Judgement::Wait)) && scan.is_between_messages());
        // Once it is known, the same bytes pass.
        let (passed, payload, stopped) = pass(&mut scan, &job, None);
        assert!((passed, payload) == (job.len(), 50 << 10) && stopped.is_none(), "{stopped:?}");
    }

    #[test]
    fn a_strangers_message_may_come_in_many_small_fragments_but_not_in_endless_ones() {
        for (fragments, bytes) in [(256, 1), (1024, 4)] {
            let mut scan = Scan::default();
            for n in 0..fragments {
                let fragment = frame(bytes, if n == 0 { TEXT } else { CONTINUE }, n + 1 == fragments);
                assert!(pass(&mut scan, &fragment, Some(&STRANGER)).2.is_none(), "{n} of {fragments}");
            }
            assert!(scan.is_between_messages());
        }
        let empty = frame(0, CONTINUE, false);
        for (stranger, expected) in [(Some(&STRANGER), "Wait"), (None, "Refuse")] {
            let mut scan = Scan::default();
            let mut frames = 0;
            let judgement = loop {
                match pass(&mut scan, &empty, stranger).2 {
                    None => frames += 1,
                    Some(judgement) => break judgement,
                }
            };
            assert!(frames == FRAMES && format!("{judgement:?}").starts_with(expected), "{frames} {judgement:?}");
        }
    }

    #[test]
    fn pings_and_small_messages_of_a_stranger_have_an_end_too() {
        let mut scan = Scan::default();
        let ping = frame(0, PING, true);
        assert_eq!((0..2000).take_while(|_| pass(&mut scan, &ping, Some(&STRANGER)).2.is_none()).count(), 1024);
        let (mut scan, message) = (Scan::default(), text(4096));
        assert_eq!((0..2000).take_while(|_| pass(&mut scan, &message, Some(&STRANGER)).2.is_none()).count(), 16);
    }

    /// However the bytes are cut, they pass, and as many of them are of messages.
    #[test]
    fn cuts_at_random_places_change_nothing() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for _ in 0..200 {
            let (mut bytes, mut expected) = (Vec::new(), 0);
            for _ in 0..20 {
                let size = [0, 1, 125, 126, 127, 65535, 65536, 70_000][(rng.next_u64() % 8) as usize];
                if rng.one_in(4) {
                    bytes.extend(frame(size.min(125), PING, true));
                } else {
                    expected += size;
                    bytes.extend(text(size));
                }
            }
            let mut scan = Scan::default();
            let (mut rest, mut payload) = (&bytes[..], 0);
            while !rest.is_empty() {
                let part;
                (part, rest) = rest.split_at(rest.len().min(1 + (rng.next_u64() % 9000) as usize));
                let (passed, of_messages, stopped) = pass(&mut scan, part, None);
                assert!(passed == part.len() && stopped.is_none());
                payload += of_messages;
            }
            assert!(payload == expected && scan.is_between_messages());
        }
    }
}
