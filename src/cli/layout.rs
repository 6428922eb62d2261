//! Lays the sections of an overview out on a terminal of some width. Pure.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::ops::overview::{Cell, Content, Section, Table, Tone, Width};

/// The narrowest that anything is laid out for.
pub(super) const LEAST: usize = 40;

/// Between two columns.
const GAP: usize = 2;

/// Columns of a key that tell it from others; and of a text.
const KEY_COLUMNS: usize = 10;
const TEXT_COLUMNS: usize = 12;

/// Columns of the name of a fact at most.
const NAME_COLUMNS: usize = 22;

/// Bars by height.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A part of a line, of one colour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Nothing in it is obeyed by a terminal.
    pub(super) text: String,
    /// Its colour.
    pub(super) tone: Tone,
}

/// A line.
pub(super) type Line = Vec<Span>;

/// A line of one colour.
pub(super) fn plain(text: impl Into<String>) -> Line {
    vec![Span { text: text.into(), tone: Tone::Plain }]
}

/// The text of a line.
pub(super) fn text_of(line: &Line) -> String {
    line.iter().map(|span| span.text.as_str()).collect()
}

/// The colours of a terminal, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Palette(bool);

impl Palette {
    /// With colours, or without.
    pub(super) fn new(colours: bool) -> Self {
        Self(colours)
    }

    /// A line with its colours.
    pub(super) fn paint(self, line: &Line) -> String {
        let mut out = String::new();
        for Span { text, tone } in line {
            let colour = match tone {
                Tone::Good => "32",
                Tone::Warning => "33",
                Tone::Bad => "31",
                Tone::Plain => "",
            };
            if !self.0 || colour.is_empty() {
                out.push_str(text);
            } else {
                out.extend(["\x1b[", colour, "m", text, "\x1b[0m"]);
            }
        }
        out
    }
}

/// All sections; of each table at most so many rows, if that is said.
pub(super) fn lay_out(sections: &[Section], width: usize, rows: Option<usize>) -> Vec<Line> {
    let (mut lines, width) = (Vec::new(), width.max(LEAST));
    for Section { title, content } in sections {
        if !title.is_empty() {
            lines.push(plain(format!("{}:", cut(title, width - 1))));
        }
        match content {
            Content::Facts(facts) => facts.iter().for_each(|(name, cell)| fact(&mut lines, name, cell, width)),
            Content::Table(of) => table(&mut lines, of, width, rows),
            Content::Minutes(counts) => lines.push(bars(counts, width)),
        }
    }
    lines
}

/// A name and what is to be said of it, on as many lines as that takes.
fn fact(lines: &mut Vec<Line>, name: &str, cell: &Cell, width: usize) {
    let name_columns = NAME_COLUMNS.min(width / 3).max(16);
    let room = width - name_columns - 3;
    let mut name = pad(&cut(name, name_columns), name_columns);
    for (at, text) in wrapped(cell.text(), room).into_iter().enumerate() {
        if at > 0 {
            name = " ".repeat(name_columns);
        }
        let begin = Span { text: format!("  {name} "), tone: Tone::Plain };
        lines.push(vec![begin, Span { text, tone: cell.tone }]);
    }
}

fn table(lines: &mut Vec<Line>, table: &Table, width: usize, most: Option<usize>) {
    let shown = &table.rows[..most.unwrap_or(usize::MAX).min(table.rows.len())];
    let widths = widths(table, shown, width);
    let heads: Vec<Cell> = table.columns.iter().map(|column| Cell::new(&column.name.to_uppercase())).collect();
    // One column needs no head.
    let heads = (table.columns.len() > 1).then_some(&heads);
    for row in heads.into_iter().chain(shown) {
        let mut line = plain(" ");
        let cells = row.iter().zip(&widths).filter_map(|(cell, width)| Some((cell, (*width)?)));
        for (cell, width) in cells {
            line.push(Span { text: " ".to_owned(), tone: Tone::Plain });
            line.push(Span { text: pad(&cut(cell.text(), width), width), tone: cell.tone });
            line.push(Span { text: " ".repeat(GAP - 1), tone: Tone::Plain });
        }
        while let Some(last) = line.last_mut() {
            last.text.truncate(last.text.trim_end().len());
            if !last.text.is_empty() || line.len() == 1 {
                break;
            }
            line.pop();
        }
        lines.push(line);
    }
    let more = table.rows.len() - shown.len();
    if more > 0 {
        lines.push(plain(format!("  and {more} more")));
    }
}

/// The width of each column, none for one that is left out. Spare ones go first. Then texts and keys are narrowed, then
/// left out, the last ones first; then names are narrowed, and in the end the last columns go. What room that leaves,
/// the narrowed ones have.
fn widths(table: &Table, rows: &[Vec<Cell>], room: usize) -> Vec<Option<usize>> {
    let of = |at: usize| table.columns[at].width;
    let natural = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.text().width());
        cells.chain([table.columns[at].name.width()]).max().unwrap_or(0)
    };
    let natural: Vec<usize> = (0..table.columns.len()).map(natural).collect();
    let mut widths: Vec<Option<usize>> = natural.iter().copied().map(Some).collect();
    let over =
        |widths: &[Option<usize>]| widths.iter().flatten().map(|width| width + GAP).sum::<usize>().saturating_sub(room);
    if over(&widths) > 0 {
        (0..widths.len()).filter(|at| of(*at) == Width::Spare).for_each(|at| widths[at] = None);
    }
    let narrow = |widths: &mut Vec<Option<usize>>, narrowed: &dyn Fn(Width) -> Option<usize>| {
        for at in (0..widths.len()).rev() {
            let over = over(widths);
            if let (Some(width), Some(least)) = (&mut widths[at], narrowed(of(at))) {
                *width = width.saturating_sub(over).max(least.min(*width));
            }
        }
    };
    narrow(&mut widths, &|width| match width {
        Width::Key => Some(KEY_COLUMNS),
        Width::Text | Width::Spare => Some(TEXT_COLUMNS),
        Width::Name | Width::Whole => None,
    });
    for at in (1..widths.len()).rev() {
        if over(&widths) > 0 && matches!(of(at), Width::Text | Width::Key) {
            widths[at] = None;
        }
    }
    narrow(&mut widths, &|width| (width == Width::Name).then_some(KEY_COLUMNS));
    for at in (1..widths.len()).rev() {
        if over(&widths) > 0 {
            widths[at] = None;
        }
    }
    for at in 0..widths.len() {
        let left = room.saturating_sub(widths.iter().flatten().map(|width| width + GAP).sum());
        if let Some(width) = &mut widths[at] {
            *width = natural[at].min(*width + left);
        }
    }
    widths
}

/// A bar for each minute.
fn bars(counts: &[u32], width: usize) -> Line {
    let most = counts.iter().max().copied().unwrap_or(0).max(1);
    let end = format!(" most {most}");
    let shown = counts.len().min((width - 2).saturating_sub(end.len()));
    let bar = |count: &u32| {
        // From 0 to 8, and 1 for the least of what there is.
        let height = (u64::from(*count) * 8).div_ceil(u64::from(most));
        BARS[usize::try_from(height).unwrap_or(8).min(8)]
    };
    let bars: String = counts[counts.len() - shown..].iter().map(bar).collect();
    plain(format!("  {bars}{end}"))
}

/// A text on lines of so many columns, broken at spaces where there are some.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let (mut lines, mut line, mut columns) = (Vec::new(), String::new(), 0);
    for word in text.split_inclusive(' ') {
        let wide = word.trim_end().width();
        if columns + wide > room && columns > 0 {
            lines.push(std::mem::take(&mut line).trim_end().to_owned());
            columns = 0;
        }
        for c in word.chars() {
            let wide = c.width().unwrap_or(0);
            if columns + wide > room && c != ' ' {
                lines.push(std::mem::take(&mut line));
                columns = 0;
            }
            line.push(c);
            columns += wide;
        }
    }
    lines.push(line.trim_end().to_owned());
    lines
}

/// At most so many columns of a text, with `…` at its end if there is more.
pub(super) fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if text.width() <= columns {
        return Cow::Borrowed(text);
    }
    let (mut kept, mut used) = (String::new(), 0);
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used + 1 > columns {
            break;
        }
        kept.push(c);
    }
    Cow::Owned(kept + "…")
}

fn pad(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(text.width())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::overview::Column;

    fn table() -> Section {
        let columns = [
            ("job", Width::Name),
            ("stage", Width::Whole),
            ("miner", Width::Key),
            ("why", Width::Text),
            ("history", Width::Spare),
        ];
        let columns = columns.map(|(name, width)| Column { name: name.to_owned(), width }).into();
        let row = ["11111111-2222-3333-4444-555555555555", "executor_ready", &"5".repeat(48), "it is 中文 full", "x"];
        let row = row.iter().map(|text| Cell::state(text)).collect();
        Section { title: "open jobs".to_owned(), content: Content::Table(Table { columns, rows: vec![row; 3] }) }
    }

    fn texts(sections: &[Section], width: usize, rows: Option<usize>) -> Vec<String> {
        lay_out(sections, width, rows).iter().map(text_of).collect()
    }

    #[test]
    fn a_table_fits_into_any_width_and_its_first_key_stays() {
        for width in [10, 40, 50, 60, 79, 80, 100, 120, 200] {
            let lines = texts(&[table()], width, None);
            assert_eq!(lines.len(), 5, "{lines:#?}");
            for line in &lines {
                assert!(line.width() <= width.max(LEAST), "{width}: {line:?} has {}", line.width());
            }
        }
        let lines = texts(&[table()], 80, Some(1));
        let expected = [
            "open jobs:",
            "  JOB                                   STAGE           MINER       WHY",
            "  11111111-2222-3333-4444-555555555555  executor_ready  555555555…  it is 中文 …",
            "  and 2 more",
        ];
        assert_eq!(lines, expected);
        assert!(texts(&[table()], 200, None)[1].contains("HISTORY"));
    }

    #[test]
    fn a_long_fact_goes_on_below_its_beginning() {
        let cell = Cell::new(&format!("down  connection refused by {}", "x".repeat(60)));
        let facts = Content::Facts(vec![("facilitator".to_owned(), cell)]);
        let lines = texts(&[Section { title: String::new(), content: facts }], 50, None);
        let expected = [
            "  facilitator      down  connection refused by",
            &format!("                   {}", "x".repeat(31)),
            &format!("                   {}", "x".repeat(29)),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn minutes_are_bars() {
        let section = Section { title: String::new(), content: Content::Minutes(vec![0, 1, 8, 16]) };
        assert_eq!(texts(&[section], 80, None), ["   ▁▄█ most 16"]);
        let section = Section { title: String::new(), content: Content::Minutes(vec![1; 60]) };
        assert_eq!(texts(&[section], 40, None)[0].width(), 40);
    }

    #[test]
    fn a_cut_is_seen() {
        assert_eq!((cut("abc", 3), cut("abcd", 3), cut("中文字", 4)), ("abc".into(), "ab…".into(), "中…".into()));
    }
}
