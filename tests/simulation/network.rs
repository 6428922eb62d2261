//! Connections: texts arrive in order after a delay, until a side closes, the connection is cut, or a process dies.

use std::collections::BTreeMap;

use phalanx::transport::Utf8Bytes;

use super::clock::{End, Event, MS, Node, SECOND, Shared};

/// A side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// How a side learns of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The other side closes, behind all that it has said; it is answered.
    Close,
    /// The other side has answered, so it has read all that was said.
    Answered,
    /// It is cut: what was on its way is lost.
    Cut,
}

#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    /// When the last text arrives at each side.
    last: [u64; 2],
    told: [bool; 2],
    cut: bool,
    /// Between programs of one machine.
    is_local: bool,
}

/// All connections that some side knows nothing of the end of.
#[derive(Debug, Default)]
pub struct Connections {
    all: BTreeMap<u64, Connection>,
    made: u64,
    pub most: usize,
}

impl Connections {
    pub fn made(&self) -> u64 {
        self.made
    }

    pub fn client(&self, number: u64) -> Option<End> {
        self.all.get(&number).map(|connection| connection.ends[Side::Client as usize])
    }

    /// Those that are not cut and have an end for which this is true.
    pub fn of(&self, is_meant: impl Fn(&End) -> bool) -> Vec<u64> {
        let meant = self.all.iter().filter(|(_, c)| !c.cut && c.ends.iter().any(&is_meant));
        meant.map(|(number, _)| *number).collect()
    }

    /// Whose a text is that arrives.
    pub fn reader(&self, number: u64, side: Side) -> Option<End> {
        let connection = self.all.get(&number).filter(|connection| !connection.cut)?;
        (!connection.told[side as usize]).then_some(connection.ends[side as usize])
    }

    /// Whose it is to learn of an end; nobody's if it knows already.
    pub fn learns(&mut self, number: u64, side: Side, ending: Ending) -> Option<End> {
        let connection = self.all.get_mut(&number)?;
        if connection.cut != (ending == Ending::Cut) || std::mem::replace(&mut connection.told[side as usize], true) {
            return None;
        }
        let end = connection.ends[side as usize];
        if connection.told == [true; 2] {
            self.all.remove(&number);
        }
        Some(end)
    }
}

impl Shared {
    fn delay(&mut self, is_local: bool) -> u64 {
        if is_local { self.between(100, MS) } else { self.between(5 * MS, 80 * MS) }
    }

    /// Begins to connect; the answer comes by [`Event::Dial`].
    pub fn dial(&mut self, end: End, to: Node) {
        let is_local = matches!(end.of.node, Node::Executor(..));
        let delay = self.delay(is_local);
        self.after(delay, Event::Dial(end, to));
    }

    /// A connection is there.
    pub fn connected(&mut self, client: End, server: End) -> u64 {
        let Connections { all, made, most } = &mut self.connections;
        *made += 1;
        let is_local = matches!(client.of.node, Node::Executor(..));
        let connection =
            Connection { ends: [client, server], last: [self.at; 2], told: [false; 2], cut: false, is_local };
        all.insert(*made, connection);
        *most = all.len().max(*most);
        *made
    }

    fn arrival(&mut self, number: u64, to: Side) -> Option<u64> {
        let is_local = self.connections.all.get(&number).filter(|connection| !connection.cut)?.is_local;
        let at = self.at + self.delay(is_local);
        let last = &mut self.connections.all.get_mut(&number)?.last[to as usize];
        *last = at.max(*last);
        Some(*last)
    }

    pub fn send(&mut self, number: u64, to: Side, text: Utf8Bytes) {
        if let Some(at) = self.arrival(number, to) {
            self.plan(at, Event::Text(number, to, text));
        }
    }

    /// A side closes, behind what it has sent.
    pub fn close(&mut self, number: u64, by: Side) {
        if let Some(at) = self.arrival(number, by.other()) {
            self.plan(at, Event::Ended(number, by.other(), Ending::Close));
        }
    }

    /// The answer to a close.
    pub fn answer_close(&mut self, number: u64, to: Side) {
        if let Some(at) = self.arrival(number, to) {
            self.plan(at, Event::Ended(number, to, Ending::Answered));
        }
    }

    /// A connection breaks; each side notices by itself, most soon, some only by the silence.
    pub fn cut(&mut self, number: u64) {
        let Some(connection) = self.connections.all.get_mut(&number).filter(|connection| !connection.cut) else {
            return;
        };
        connection.cut = true;
        for side in [Side::Client, Side::Server] {
            let noticed = if self.rng.one_in(4) { self.between(SECOND, 90 * SECOND) } else { self.between(MS, SECOND) };
            self.after(noticed, Event::Ended(number, side, Ending::Cut));
        }
    }

    /// A connection breaks because the process at one side has ended; the other notices soon.
    pub fn dropped(&mut self, number: u64) {
        let Some(connection) = self.connections.all.get_mut(&number).filter(|connection| !connection.cut) else {
            return;
        };
        connection.cut = true;
        for side in [Side::Client, Side::Server] {
            let noticed = self.between(MS, 50 * MS);
            self.after(noticed, Event::Ended(number, side, Ending::Cut));
        }
    }

    /// All connections of a process that has ended break.
    pub fn died(&mut self, node: Node) {
        for number in self.connections.of(|end| end.of.node == node) {
            self.dropped(number);
        }
    }
}
