//! The client's end of a connection that comes back: the outbox and the pauses are those of `src/link`, the connection
//! is the network's.

use phalanx::base::backoff::{Backoff, BackoffConfig};
use phalanx::link::outbox::{Full, Outbox, OutboxLimits, Outgoing};
use phalanx::transport::Utf8Bytes;

use super::clock::{End, Event, Node, Shared};
use super::network::{Ending, Side};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Without a connection: another try is on its way, or will be.
    Down,
    /// Connected, and not welcome yet.
    Greeting(u64),
    Ready(u64),
    Over,
}

#[derive(Debug)]
pub struct Link {
    pub outbox: Outbox,
    backoff: Backoff,
    state: State,
    me: End,
    to: Node,
    /// Whether there is nothing more to be sent than what is inside.
    is_closing: bool,
    /// The present connection was asked to close.
    is_closed: bool,
    /// Whether there has been a connection.
    pub was_ready: bool,
}

impl Link {
    /// Begins to connect.
    pub fn dial(me: End, to: Node, backoff: BackoffConfig, shared: &mut Shared) -> Self {
        shared.dial(me, to);
        Self {
            outbox: Outbox::new(OutboxLimits::default()),
            backoff: Backoff::new(backoff),
            state: State::Down,
            me,
            to,
            is_closing: false,
            is_closed: false,
            was_ready: false,
        }
    }

    /// There is a connection: says who we are.
    pub fn connected(&mut self, number: u64, hello: Option<Utf8Bytes>, shared: &mut Shared) {
        match hello {
            Some(hello) => {
                self.state = State::Greeting(number);
                shared.send(number, Side::Server, hello);
            }
            None => self.welcome(number, shared),
        }
    }

    pub fn is_greeting(&self, number: u64) -> bool {
        self.state == State::Greeting(number)
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    pub fn connection(&self) -> Option<u64> {
        match self.state {
            State::Greeting(number) | State::Ready(number) => Some(number),
            State::Down | State::Over => None,
        }
    }

    /// The peer takes what is sent from here on.
    pub fn welcome(&mut self, number: u64, shared: &mut Shared) {
        self.state = State::Ready(number);
        self.was_ready = true;
        self.is_closed = false;
        self.backoff.connected(shared.now().mono);
        self.pump(shared);
    }

    pub fn push(&mut self, message: Outgoing, shared: &mut Shared) -> Result<(), Full> {
        let pushed = self.outbox.push(message);
        self.pump(shared);
        pushed
    }

    /// Sends what may leave.
    pub fn pump(&mut self, shared: &mut Shared) {
        let State::Ready(number) = self.state else { return };
        while let Some(text) = self.outbox.next_to_write() {
            shared.send(number, Side::Server, text);
        }
        if self.is_closing && !self.is_closed && self.outbox.may_close() {
            self.is_closed = true;
            shared.close(number, Side::Client);
        }
    }

    /// Ends once the peer has all that is inside.
    pub fn close(&mut self, shared: &mut Shared) {
        self.is_closing = true;
        if self.state == State::Down && self.outbox.is_empty() {
            self.state = State::Over;
        }
        self.pump(shared);
    }

    /// Ends now.
    pub fn give_up(&mut self, shared: &mut Shared) {
        if let Some(number) = self.connection() {
            shared.close(number, Side::Client);
        }
        self.state = State::Over;
    }

    /// The connection has ended, or there was none; another try follows unless all is done. Says whether there was one.
    pub fn ended(&mut self, number: Option<u64>, ending: Ending, shared: &mut Shared) -> bool {
        if self.is_over() || number != self.connection() {
            return false;
        }
        if self.is_closing && ending == Ending::Answered {
            self.outbox.delivered();
        } else {
            self.outbox.rewind();
        }
        self.state = State::Down;
        if self.is_closing && self.outbox.is_empty() {
            self.state = State::Over;
            return true;
        }
        let (now, unit) = (shared.now().mono, shared.rng.unit());
        let pause = self.backoff.next_delay(now, unit);
        shared.after(u64::try_from(pause.as_micros()).expect("a pause is short"), Event::Redial(self.me));
        true
    }

    pub fn redial(&mut self, shared: &mut Shared) {
        if self.state == State::Down {
            shared.dial(self.me, self.to);
        }
    }
}
