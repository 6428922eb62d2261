//! What is done in Redis at the end of a task. Pure.

use serde_json::Value;

use crate::celery::canvas::{Place, entry};
use crate::celery::meta::Meta;

/// One thing to do in Redis, in one piece with the acknowledgement.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery::worker) enum Op {
    /// Stores and publishes a result, unless a success is there.
    Result(String, String),
    /// As `Result`, if the message is still ours.
    OwnResult(String, String),
    /// Appends to a list, if the message is still ours; the list keeps so many (0: all).
    Push(String, String, usize),
    /// How many parts a chord waits for, by the key of its group.
    Size(String, usize),
    /// How the results of a chord's header are nested, by the key of its group.
    Group(String, String),
    /// Records a part of a chord, once. Nothing behind it is done before what follows from the last part is known.
    Part(Box<Part>),
    /// What follows from a chord whose parts have all ended, if it is still ours to do.
    Claimed(Box<Claim>),
}

impl Op {
    /// The order in which they are done.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Result(..) | Self::OwnResult(..) => 0,
            Self::Part(_) => 1,
            Self::Size(..) | Self::Group(..) => 2,
            Self::Push(..) => 3,
            Self::Claimed(_) => 4,
        }
    }

    /// The messages that are sent with it.
    pub(in crate::celery::worker) fn messages(&self) -> impl Iterator<Item = &str> {
        let ops = match self {
            Self::Claimed(claim) => claim.ops.iter(),
            one => std::slice::from_ref(one).iter(),
        };
        // A list that keeps a number of its entries is no queue.
        ops.filter_map(|op| if let Self::Push(_, text, 0) = op { Some(text.as_str()) } else { None })
    }

    /// Whether it is done where the results are.
    pub(in crate::celery::worker) fn is_result(&self) -> bool {
        !matches!(self, Self::Push(..))
    }
}

/// One part of a chord that has ended.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery::worker) struct Part {
    /// The id of its group.
    pub group: String,
    /// The id of its task.
    pub task: String,
    /// Its place among the parts.
    pub index: Option<i64>,
    /// What is recorded of it.
    pub entry: String,
    /// What is called when all have ended.
    pub body: Value,
    /// The first task of its tree.
    pub root: Option<String>,
}

impl Part {
    /// The part that a task is, if it belongs to a chord.
    pub(super) fn of(task: &str, place: &Place, meta: &Meta, root: Option<&str>) -> Option<Self> {
        let (group, body) = (place.group.clone()?, place.chord.clone()?);
        let entry = entry(task, &meta.state, &meta.result);
        Some(Self { group, task: task.to_owned(), index: place.index, entry, body, root: root.map(str::to_owned) })
    }

    /// Its place as it is written.
    pub(in crate::celery::worker) fn score(&self) -> String {
        self.index.map_or_else(|| "+inf".to_owned(), |index| index.to_string())
    }

    /// What tells it from all other parts.
    pub(in crate::celery::worker) fn member(&self) -> String {
        format!("{}:{}", self.task, self.score())
    }

    /// Who says that the chord's end is theirs to deal with: the same again if the part is run again.
    pub(in crate::celery::worker) fn token(&self) -> String {
        format!("phalanx:{}", self.member())
    }
}

/// What follows from a chord whose parts have all ended.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery::worker) struct Claim {
    /// The key of its group.
    pub key: String,
    /// That of the part that was the last.
    pub token: String,
    /// Its body is not called: one of the parts has failed.
    pub failed: bool,
    pub ops: Vec<Op>,
}

/// What Redis says of a chord whose parts have all ended.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery::worker) struct Returned {
    /// What is recorded of the parts in their order; none if that is too large.
    pub entries: Option<Vec<Vec<u8>>>,
    /// How their results are nested.
    pub saved: Option<Vec<u8>>,
}
