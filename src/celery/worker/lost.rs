//! Tasks that had begun on a worker that is lost and are not to be begun again: they have failed. On the commander's
//! threads; nothing blocks.

use std::sync::Arc;

use redis::Value;

use super::core::{Core, Keys};
use super::lifecycle::Rest;
use super::outcome::{self, Op, Outcome};
use super::restore::Back;
use super::scripts;
use crate::celery::envelope::Envelope;
use crate::celery::event::Event;
use crate::celery::message::TaskMessage;
use crate::celery::meta::Exception;
use crate::ops::errors::ErrorClass;
use crate::redis::{RedisError, Repeat, Request};

const PART: &str = "cel-live";

/// Settles a message that the dead worker held, by its tag and its list, in that worker's name. Others may do the same;
/// what follows from it is sent once.
pub(super) fn fail(core: &Arc<Core>, worker: &str, (tag, list): (&str, &str), back: Back) {
    let raw = back.message.as_bytes();
    let read = Envelope::read(raw).and_then(|envelope| TaskMessage::read_in(&envelope, &core.zone));
    let mut message = match read {
        Ok(message) => message,
        Err(error) => {
            // It was read when it began.
            let what = format_args!("message {tag} of the lost worker {worker} cannot be read: {error}; it is left");
            core.board.errors.report(ErrorClass::Rejected, PART, &what);
            return;
        }
    };
    message.ignore_result.get_or_insert(core.policies.of(&message.task).ignores_result());
    let why = format!("the worker {worker} was lost");
    let exception = Exception::new("billiard.exceptions", "WorkerLostError", why);
    let outcome = Outcome::Failure(exception.clone(), None);
    let settlement = core.setting((list, &message.task), raw, |setting| outcome::settle(&message, outcome, setting));
    let Keys { alive, held, .. } = Keys::of(worker, &core.names);
    let lost = Lost { tag: tag.to_owned(), worker: worker.to_owned(), alive, held, message, exception };
    if core.results.is_none() {
        lost.begin(core, settlement.ops, Vec::new());
    } else {
        lost.ask(core, settlement.ops);
    }
}

/// What is not done now is done at the next look.
fn report(core: &Core, error: &RedisError) {
    core.board.errors.report(error.class(), PART, error);
}

struct Lost {
    tag: String,
    worker: String,
    /// Is there while the worker lives after all: then nothing is settled.
    alive: String,
    held: String,
    message: TaskMessage,
    exception: Exception,
}

impl Lost {
    /// Where results are elsewhere, nothing is stored of the task of a worker that has come back.
    fn ask(self, core: &Arc<Core>, ops: Vec<Op>) {
        let ask = Request::new(Repeat::Idempotent, core.patience()).command(redis::cmd("EXISTS").arg(&self.alive));
        let weak = Arc::downgrade(core);
        let sent = core.commands.submit(ask, move |answer| {
            let Some(core) = weak.upgrade() else { return };
            match answer.as_deref() {
                Ok([Value::Int(0)]) => self.begin(&core, ops, Vec::new()),
                Ok(_) => {}
                Err(error) => report(&core, error),
            }
        });
        if let Err(error) = sent {
            report(core, &error);
        }
    }

    /// Where results are elsewhere, they are stored first. `ended` are chords whose body will have been called.
    fn begin(self, core: &Arc<Core>, ops: Vec<Op>, ended: Vec<Op>) {
        let (results, mut rest) = core.split(ops);
        rest.ended.splice(0..0, ended);
        if results.is_empty() {
            self.settle(core, rest);
            return;
        }
        let weak = Arc::downgrade(core);
        let sent = core.stored().submit(core.settlement_for("", None, "", &results), move |answer| {
            let Some(core) = weak.upgrade() else { return };
            match answer {
                Ok(mut replies) if matches!(replies.first(), Some(Value::Array(_))) => {
                    let ops = core.continued(&results, scripts::returned(replies.swap_remove(0)));
                    self.begin(&core, [ops, rest.ops].concat(), rest.ended);
                }
                Ok(_) => self.settle(&core, rest),
                Err(error) => report(&core, &error),
            }
        });
        if let Err(error) = sent {
            report(core, &error);
        }
    }

    fn settle(self, core: &Arc<Core>, rest: Rest) {
        let request = core.settlement_for(&self.held, Some(&self.alive), &self.tag, &rest.ops);
        let weak = Arc::downgrade(core);
        let sent = core.commands.submit(request, move |answer| {
            let Some(core) = weak.upgrade() else { return };
            match answer {
                Ok(mut replies) if matches!(replies.first(), Some(Value::Array(_))) => {
                    let ops = core.continued(&rest.ops, scripts::returned(replies.swap_remove(0)));
                    self.begin(&core, ops, rest.ended);
                }
                Ok(replies) if replies.first() == Some(&Value::Int(1)) => {
                    if !rest.ended.is_empty() {
                        core.end_chords(&rest.ended);
                    }
                    let (id, task) = (&self.message.id, &self.message.task);
                    let what = format_args!("had begun on the lost worker {} and has failed", self.worker);
                    core.task_trouble(&self.message, &what);
                    core.totals.ended("FAILURE");
                    core.tell(task, || Event::failed(id, &self.exception, None));
                }
                // Another worker was faster, or this one has come back.
                Ok(_) => {}
                Err(error) => report(&core, &error),
            }
        });
        if let Err(error) = sent {
            report(core, &error);
        }
    }
}
