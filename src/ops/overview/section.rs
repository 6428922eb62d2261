//! What an overview is made of: sections of facts, tables and counts, in texts that are safe to be shown. Pure.

use crate::ops::redact::OneLine;

/// Characters of one cell: what is longer has its place on `/status.json`.
const CELL_CHARS: usize = 300;

/// What a text means, for its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// Nothing by itself.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Not yet or not quite as it should be.
    Warning,
    /// Not as it should be.
    Bad,
}

/// One text, safe to be shown on one line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    text: String,
    /// What it means.
    pub tone: Tone,
}

impl Cell {
    /// A text, by whomever, without a meaning of its own.
    pub fn new(text: &str) -> Self {
        Self { text: format!("{:.*}", CELL_CHARS, OneLine(text)), tone: Tone::Plain }
    }

    /// A text with a meaning.
    pub fn toned(text: &str, tone: Tone) -> Self {
        Self { tone, ..Self::new(text) }
    }

    /// A word for a state or an end, which has its meaning with us.
    pub fn state(word: &str) -> Self {
        let first = word.split([' ', ',', ':']).next().unwrap_or_default();
        let tone = match first {
            "up" | "ready" | "running" | "live" | "completed" | "closed" => Tone::Good,
            "starting" | "draining" | "cooling" | "half-open" | "declined" | "rejected" | "restored" | "given_back" => {
                Tone::Warning
            }
            "down" | "stuck" | "stopped" | "failed" | "horde_failed" | "open" | "blacklisted" | "quarantined" => {
                Tone::Bad
            }
            _ => Tone::Plain,
        };
        Self::toned(word, tone)
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// How a column may be narrowed where there is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Not at all: numbers, words of ours.
    Whole,
    /// Last of all: what a row is found by, whole, so that it can be copied.
    Name,
    /// To a beginning that still tells one from the other: keys.
    Key,
    /// To anything: texts.
    Text,
    /// It is the first to be left out.
    Spare,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its head.
    pub name: String,
    /// How it may be narrowed.
    pub width: Width,
}

/// A table; every row has a cell for each column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: &[(&str, Width)]) -> Self {
        let column = |(name, width): &(&str, Width)| Column { name: (*name).to_owned(), width: *width };
        Self { columns: columns.iter().map(column).collect(), rows: Vec::new() }
    }
}

/// What a section shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Names, each with what is to be said of it.
    Facts(Vec<(String, Cell)>),
    /// A table.
    Table(Table),
    /// How many there were of something in each of the last minutes, the present one last.
    Minutes(Vec<u32>),
}

/// A part of an overview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its title; empty for the first facts.
    pub title: String,
    /// What it shows.
    pub content: Content,
}

impl Section {
    pub(super) fn new(title: &str, content: Content) -> Self {
        Self { title: title.to_owned(), content }
    }
}
