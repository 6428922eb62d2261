//! The page for people: an overview of a role as HTML, with its style and its script. Pure.
//!
//! It is whole as it comes: the script only fetches it again every two seconds and puts what is new in its place, and
//! without scripts the browser loads it again every five. Nothing is inline and nothing is from elsewhere; [`POLICY`]
//! has the browser hold that, also for what somebody might have smuggled into it.

use std::fmt::Write as _;

use crate::ops::overview::words::time_of_day;
use crate::ops::overview::{Cell, Content, Overview, Section, Table, Tone, Width};

/// Characters of a word that a column of a table may have room for; a longer one is broken anywhere.
const LONG_WORD: usize = 20;

/// The content security policy of the page.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page asks for: its path, media type and text.
pub(super) const FILES: [(&str, &str, &str); 3] = [
    ("/page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/page.svg", "image/svg+xml", include_str!("page.svg")),
];

/// The page, at a moment in seconds since 1970.
pub(super) fn html(now: &Overview, unix_seconds: f64) -> String {
    let mut out = String::with_capacity(16 << 10);
    let (role, headline) = (Escaped(&now.role), Escaped(&now.headline));
    let (class, ready) = if now.ready { ("good", "ready") } else { ("bad", "not ready") };
    let time = time_of_day(unix_seconds);
    put(
        &mut out,
        format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{role}: {ready}</title>\n<link rel=\"stylesheet\" href=\"page.css\">\n\
             <link rel=\"icon\" href=\"page.svg\">\n<script src=\"page.js\" defer></script>\n\
             <noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>\n</head>\n<body>\n\
             <header>\n<h1>{headline}</h1>\n<p class=\"{class}\">{ready}</p>\n<p>at {time} UTC</p>\n</header>\n\
             <p id=\"lost\" class=\"bad\" hidden>It does not answer; what is shown is what it said last.</p>\n<main>\n"
        ),
    );
    now.sections.iter().for_each(|one| section(&mut out, one));
    put(
        &mut out,
        format_args!(
            "</main>\n<footer><a href=\"status.json\">status.json</a> <a href=\"metrics\">metrics</a> \
             <a href=\"healthz\">healthz</a> <a href=\"readyz\">readyz</a> \
             <a href=\"links.json\">links.json</a></footer>\n</body>\n</html>\n"
        ),
    );
    out
}

fn section(out: &mut String, section: &Section) {
    put(out, format_args!("<section>\n"));
    if !section.title.is_empty() {
        put(out, format_args!("<h2>{}</h2>\n", Escaped(&section.title)));
    }
    match &section.content {
        Content::Facts(facts) => {
            put(out, format_args!("<dl>\n"));
            for (name, cell) in facts {
                let (name, text) = (Escaped(name), Escaped(cell.text()));
                put(out, format_args!("<div><dt>{name}</dt><dd{}>{text}</dd></div>\n", class(cell.tone)));
            }
            put(out, format_args!("</dl>\n"));
        }
        Content::Table(lines) => table(out, lines),
        Content::Minutes(counts) => minutes(out, counts),
    }
    put(out, format_args!("</section>\n"));
}

fn table(out: &mut String, Table { columns, rows }: &Table) {
    put(out, format_args!("<table>\n<thead><tr>"));
    columns.iter().for_each(|column| put(out, format_args!("<th>{}</th>", Escaped(&column.name))));
    put(out, format_args!("</tr></thead>\n<tbody>\n"));
    for row in rows {
        put(out, format_args!("<tr>"));
        for (column, cell) in columns.iter().zip(row) {
            let label = Escaped(&column.name);
            put(out, format_args!("<td data-label=\"{label}\"{}>", kind(column.width, cell)));
            put(out, format_args!("{}</td>", Escaped(cell.text())));
        }
        put(out, format_args!("</tr>\n"));
    }
    put(out, format_args!("</tbody>\n</table>\n"));
}

/// A bar for each minute, as high as its count to the highest.
fn minutes(out: &mut String, counts: &[u32]) {
    let most = counts.iter().max().copied().unwrap_or(0).max(1);
    let width = counts.len() * 10;
    put(
        out,
        format_args!(
            "<svg viewBox=\"0 0 {width} 60\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"the most in one minute: {most}\">\n"
        ),
    );
    for (at, count) in counts.iter().enumerate() {
        let height = f64::from(*count) / f64::from(most) * 60.0;
        let (x, y) = (at * 10 + 1, 60.0 - height);
        put(out, format_args!("<rect x=\"{x}\" y=\"{y:.1}\" width=\"8\" height=\"{height:.1}\"/>\n"));
    }
    put(out, format_args!("</svg>\n<p>the most in one minute: {most}</p>\n"));
}

fn class(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain => "",
        Tone::Good => " class=\"good\"",
        Tone::Warning => " class=\"warning\"",
        Tone::Bad => " class=\"bad\"",
    }
}

/// The classes of a cell: what it means, and how it may be broken into lines.
fn kind(width: Width, cell: &Cell) -> String {
    let tone = match cell.tone {
        Tone::Plain => "",
        Tone::Good => "good ",
        Tone::Warning => "warning ",
        Tone::Bad => "bad ",
    };
    let is_long = || cell.text().split(' ').any(|word| word.chars().count() > LONG_WORD);
    let breaks = match width {
        // On a phone a cell without a text has no line.
        _ if cell.text().is_empty() => "none",
        Width::Name | Width::Key => "key",
        Width::Spare => "spare",
        Width::Whole if cell.text().chars().count() <= LONG_WORD => "whole",
        _ if is_long() => "long",
        _ => "",
    };
    match format!("{tone}{breaks}").trim_end() {
        "" => String::new(),
        classes => format!(" class=\"{classes}\""),
    }
}

/// A text in which nothing is a mark of HTML, inside an element or between double quotes.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::overview::Column;

    #[test]
    fn no_text_is_a_mark() {
        let hostile = "<script>alert('1')</script>\" onload=\"x\" & \u{202e}\u{1b}[2J";
        let column = Column { name: hostile.to_owned(), width: Width::Text };
        let table = Table { columns: vec![column], rows: vec![vec![Cell::new(hostile)]] };
        let facts = vec![(hostile.to_owned(), Cell::state(hostile))];
        let sections = [Content::Table(table), Content::Facts(facts), Content::Minutes(vec![0, 3])];
        let now = Overview {
            role: hostile.to_owned(),
            headline: hostile.to_owned(),
            ready: true,
            sections: sections.map(|content| Section { title: hostile.to_owned(), content }).into(),
        };
        let page = html(&now, 3_661.0);
        assert_eq!(page.matches("<script").count(), 1, "{page}");
        assert!(!page.contains("\" onload") && !page.contains(" style="), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot; onload=&quot;x&quot; &amp; "));
        assert!(page.contains("\\u{202e}\\u{1b}[2J"), "{page}");
        assert!(page.contains("at 01:01:01 UTC") && page.contains("<rect x=\"11\" y=\"0.0\" "), "{page}");
    }

    #[test]
    fn nothing_is_inline_or_from_elsewhere() {
        for (path, _, text) in FILES {
            let foreign = text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !foreign.contains("://") && !foreign.contains("@import") && !foreign.contains("innerHTML"),
                "{path}"
            );
        }
        assert!(!POLICY.contains("unsafe") && !POLICY.contains('*'));
    }
}
