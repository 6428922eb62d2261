//! The executor's link to its miner: dials `{MINER_ADDRESS}/v0.1/executor_interface/{token}` and comes back after a
//! loss.
//!
//! Owner: `role`. What the job says is sent again on every connection, in order, until the miner has answered our
//! Close: nothing else on this wire shows that it was read, and a miner knows a repeat by the phase of the job. The
//! token is the session, so there is nothing to authenticate. It is a secret and in the path, so no log line names the
//! URL, and it is taken out of whatever is reported of the miner, which may name it in a refusal.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use crate::base::backoff::BackoffConfig;
use crate::base::limits::INBOUND_MESSAGES;
use crate::base::timer::TimerHandle;
use crate::base::waits;
use crate::link::{Full, Link, LinkConfig, LinkEvent, LinkHandle, Outgoing, Text};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::protocol::{ExecutorToMiner, GenericError, MinerToExecutor, kind_of};
use crate::transport::Dialer;

/// Attempts follow one another quickly: the miner is near, and waits for this executor only some seconds.
const BACKOFF: BackoffConfig = BackoffConfig {
    base: Duration::from_millis(100),
    cap: Duration::from_secs(2),
    stable_after: Duration::from_secs(10),
};

/// What the executor gets from its miner.
#[derive(Debug)]
pub(super) enum MinerEvent {
    /// Connected, for the first time or again.
    Ready,
    /// A message.
    Message(Box<MinerToExecutor>),
    /// No connection: an attempt failed, or the connection was lost; another attempt will follow.
    Trouble {
        /// Why.
        why: String,
        /// Whether a connection was there and broke, rather than that there is none to be had.
        cut: bool,
    },
}

/// Begins to connect.
pub(super) fn start(
    miner_address: &str,
    token: &str,
    dialer: Arc<dyn Dialer>,
    timer: TimerHandle,
    errors: ErrorHandler,
) -> (Link, Receiver<MinerEvent>) {
    let url = format!("{}/v0.1/executor_interface/{token}", miner_address.trim_end_matches('/'));
    let mut config = LinkConfig::new("exe-mi", url);
    config.backoff = BACKOFF;
    config.kind_of = kind_of;
    // The miner closes so when the job is over for it.
    config.ends_on_normal_close = true;
    let (tx, events) = bounded(INBOUND_MESSAGES);
    let (handle, link) = Link::new(config, dialer, timer);
    let secret = token.to_owned();
    let link = link.start(None, Text::<_>::Message, move |event| {
        let event = match event {
            LinkEvent::Ready { .. } => MinerEvent::Ready,
            LinkEvent::Answered(_) => return,
            LinkEvent::Lost { why } => MinerEvent::Trouble { why: without(&secret, &why), cut: true },
            LinkEvent::Failed { why, cut, .. } => MinerEvent::Trouble { why: without(&secret, &why), cut },
            LinkEvent::Message(text) => match MinerToExecutor::decode(&text) {
                Ok(MinerToExecutor::GenericError(GenericError { details })) => {
                    let details = details.map(|details| without(&secret, &details));
                    MinerEvent::Message(Box::new(GenericError { details }.into()))
                }
                Ok(message) => MinerEvent::Message(Box::new(message)),
                Err(error) => {
                    let shown = without(&secret, &error.to_string());
                    errors.report(ErrorClass::Rejected, "miner-message", &format_args!("it cannot be read: {shown}"));
                    report(&errors, send(&handle, crate::protocol::answer::to_miner(&error, &text, "miner")));
                    return;
                }
            },
        };
        // The receiver goes when the job has ended; what the miner says after that concerns nobody.
        let _ = waits::send(&tx, event, "room for what the miner says");
    });
    (link, events)
}

fn without(secret: &str, text: &str) -> String {
    text.replace(secret, "(our token)")
}

/// Queues a message to the miner.
///
/// # Errors
/// [`Full`], with the message.
pub(super) fn send(link: &LinkHandle, message: impl Into<ExecutorToMiner>) -> Result<(), Full> {
    let message: ExecutorToMiner = message.into();
    let complaint = matches!(message, ExecutorToMiner::GenericError(_));
    let text = message.encode();
    link.send(if complaint { Outgoing::once(text) } else { Outgoing::repeated(text) })
}

/// Tells of a message that did not fit: an executor says a dozen things, so this is a result beyond the link's bytes.
pub(super) fn report(errors: &ErrorHandler, sent: Result<(), Full>) {
    if let Err(full) = sent {
        errors.report(ErrorClass::Rejected, "message-to-miner", &format_args!("the miner is not notified: {full}"));
    }
}
