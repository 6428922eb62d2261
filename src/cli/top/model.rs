//! What `phalanx top` shows: the state, what a key does to it, and the screen that it gives. Pure: it takes `now`.

use std::cmp::Reverse;
use std::time::Instant;

use super::keys::Key;
use crate::cli::layout::{Line, Span, cut, lay_out, plain};
use crate::ops::overview::words::{ago, bytes};
use crate::ops::overview::{Cell, Column, Content, Section, Table, Tone, Width, overview};
use crate::ops::status::Snapshot;

/// By what the roles are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// As they were given.
    Given,
    Role,
    Open,
    Rate,
    Failed,
    Memory,
}

impl Sort {
    const ALL: [Self; 6] = [Self::Given, Self::Role, Self::Open, Self::Rate, Self::Failed, Self::Memory];

    fn name(self) -> &'static str {
        match self {
            Self::Given => "as given",
            Self::Role => "role",
            Self::Open => "open jobs",
            Self::Rate => "ended per minute",
            Self::Failed => "not completed",
            Self::Memory => "memory",
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Roles,
    One,
    Help,
}

/// A role that is asked over and over.
#[derive(Debug)]
struct Watched {
    /// As it was given, safe to be shown.
    address: String,
    seen: Option<Seen>,
    /// Why the last question had no answer.
    trouble: Option<String>,
}

#[derive(Debug)]
struct Seen {
    snapshot: Box<Snapshot>,
    at: Instant,
    /// Jobs that ended in a minute, by this and the snapshot before.
    rate: Option<f64>,
}

impl Watched {
    fn open(&self) -> usize {
        self.seen.as_ref().map_or(0, |seen| seen.snapshot.jobs.open)
    }

    fn completed(&self) -> u64 {
        let seen = self.seen.as_ref().and_then(|seen| seen.snapshot.jobs.ended.get("completed"));
        seen.copied().unwrap_or(0)
    }

    fn failed(&self) -> u64 {
        self.seen.as_ref().map_or(0, |seen| seen.snapshot.jobs.ended_in_all() - self.completed())
    }

    fn memory(&self) -> usize {
        let process = self.seen.as_ref().and_then(|seen| seen.snapshot.process);
        process.map_or(0, |process| process.resident_memory_bytes)
    }

    fn rate(&self) -> Option<f64> {
        self.seen.as_ref()?.rate
    }

    fn role(&self) -> &str {
        self.seen.as_ref().map_or("", |seen| seen.snapshot.role.as_str())
    }

    fn row(&self, now: Instant) -> Vec<Cell> {
        let Some(seen) = &self.seen else {
            let trouble = self.trouble.as_deref().unwrap_or("it is asked");
            let mut row = vec![Cell::new(&self.address), Cell::new("-"), Cell::toned("?", Tone::Warning)];
            row.extend((0..4).map(|_| Cell::new("-")));
            row.push(Cell::toned(trouble, if self.trouble.is_some() { Tone::Bad } else { Tone::Plain }));
            row.extend([Cell::default(), Cell::default()]);
            return row;
        };
        let snapshot = &seen.snapshot;
        let age = now.saturating_duration_since(seen.at).as_secs();
        let state = match (&self.trouble, snapshot.ready) {
            (Some(_), _) => Cell::toned("no answer", Tone::Bad),
            (None, true) => Cell::state("ready"),
            (None, false) => Cell::toned(&snapshot.state.to_string(), Tone::Bad),
        };
        let why = match &self.trouble {
            Some(trouble) => Cell::toned(&format!("{} ago: {trouble}", ago(age)), Tone::Bad),
            None => {
                let all = snapshot.problems().into_iter().chain(snapshot.warnings.iter().cloned());
                all.map(|problem| Cell::toned(&problem, Tone::Bad)).next().unwrap_or_default()
            }
        };
        let failed = self.failed();
        vec![
            Cell::new(&self.address),
            Cell::new(&snapshot.role),
            state,
            Cell::new(&self.open().to_string()),
            Cell::new(&self.completed().to_string()),
            Cell::toned(&failed.to_string(), if failed > 0 { Tone::Warning } else { Tone::Plain }),
            Cell::new(&self.rate().map_or("-".to_owned(), |rate| format!("{rate:.0}"))),
            why,
            Cell::new(&ago(snapshot.uptime_seconds)),
            Cell::new(&bytes(self.memory() as u64)),
        ]
    }
}

const COLUMNS: [(&str, Width); 10] = [
    ("address", Width::Name),
    ("role", Width::Whole),
    ("state", Width::Whole),
    ("open", Width::Whole),
    ("good", Width::Whole),
    ("bad", Width::Whole),
    ("/min", Width::Whole),
    ("trouble", Width::Text),
    ("up", Width::Text),
    ("memory", Width::Spare),
];

const HELP: [&str; 12] = [
    "up, down, k, j         choose a role",
    "page up, page down     go a page back or on",
    "home, end              go to the first, or to the last",
    "enter, right           look into the chosen role",
    "escape, left           back to all roles",
    "s                      sort by the next of: as given, role, open jobs,",
    "                       ended per minute, not completed, memory",
    "r                      turn the order round",
    "?, h                   this text",
    "q, ctrl-c              quit",
    "",
    "good: jobs that completed; bad: all that ended otherwise; /min: ends in a minute",
];

/// One row of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// What stands in it.
    pub(super) line: Line,
    /// It is the chosen one, and shown the other way round.
    pub(super) chosen: bool,
}

/// The state.
#[derive(Debug)]
pub(super) struct Top {
    roles: Vec<Watched>,
    sort: Sort,
    turned: bool,
    view: View,
    /// The chosen role, by its place among those given.
    chosen: usize,
    /// Lines above the first that is shown of one role.
    scroll: usize,
    /// Lines of the last screen, for a page.
    page: usize,
}

impl Top {
    /// These roles, of which nothing is known yet.
    pub(super) fn new(addresses: &[String]) -> Self {
        let role =
            |address: &String| Watched { address: Cell::new(address).text().to_owned(), seen: None, trouble: None };
        Self {
            roles: addresses.iter().map(role).collect(),
            sort: Sort::Given,
            turned: false,
            view: View::Roles,
            chosen: 0,
            scroll: 0,
            page: 1,
        }
    }

    /// What a role has answered, or why it has not.
    pub(super) fn answered(&mut self, role: usize, answer: Result<Box<Snapshot>, String>, now: Instant) {
        let Some(watched) = self.roles.get_mut(role) else { return };
        match answer {
            Err(trouble) => watched.trouble = Some(trouble),
            Ok(snapshot) => {
                let rate = watched.seen.as_ref().and_then(|before| {
                    // A role that has begun anew counts anew.
                    let ended = snapshot.jobs.ended_in_all().checked_sub(before.snapshot.jobs.ended_in_all())?;
                    let took = now.saturating_duration_since(before.at).as_secs_f64();
                    (took > 0.0).then(|| ended as f64 / took * 60.0)
                });
                watched.trouble = None;
                watched.seen = Some(Seen { snapshot, at: now, rate });
            }
        }
    }

    /// What a key does; false if it ends the program.
    pub(super) fn key(&mut self, key: Key) -> bool {
        match (key, self.view) {
            (Key::Quit | Key::Letter('q'), _) => return false,
            (Key::Letter('?' | 'h'), _) => self.view = View::Help,
            (Key::Back | Key::Enter, View::Help) | (Key::Back, View::One) => self.view = View::Roles,
            (Key::Enter, View::Roles) => (self.view, self.scroll) = (View::One, 0),
            (Key::Letter('s'), View::Roles) => self.sort = self.sort.next(),
            (Key::Letter('r'), View::Roles) => self.turned = !self.turned,
            (Key::Up | Key::Letter('k'), _) => self.go(-1),
            (Key::Down | Key::Letter('j'), _) => self.go(1),
            (Key::PageUp, _) => self.go(-page(self.page)),
            (Key::PageDown, _) => self.go(page(self.page)),
            (Key::Home, _) => self.go(isize::MIN),
            (Key::End, _) => self.go(isize::MAX),
            _ => {}
        }
        true
    }

    /// Goes up or down by so many lines.
    fn go(&mut self, by: isize) {
        match self.view {
            View::Help => {}
            // What is too far is put right where the lines are known.
            View::One => self.scroll = self.scroll.saturating_add_signed(by),
            View::Roles => {
                let order = self.order();
                let at = order.iter().position(|role| *role == self.chosen).unwrap_or(0);
                let at = at.saturating_add_signed(by).min(order.len().saturating_sub(1));
                self.chosen = order.get(at).copied().unwrap_or(0);
            }
        }
    }

    /// The jobs that are open, by the first kind of role on their way that is looked at: each job is with all of them.
    fn open(&self) -> String {
        let of = |role: &str| {
            let with: Vec<usize> = self.roles.iter().filter(|w| w.role() == role).map(Watched::open).collect();
            (!with.is_empty()).then(|| (role.to_owned(), with.iter().sum::<usize>()))
        };
        match ["facilitator", "validator", "worker", "miner"].iter().find_map(|role| of(role)) {
            Some((role, open)) => format!("{open} jobs open ({role})"),
            None => "0 jobs open".to_owned(),
        }
    }

    /// The roles in the order in which they are shown, by their places.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.roles.len()).collect();
        let most = |count: &dyn Fn(&Watched) -> u64, order: &mut Vec<usize>| {
            order.sort_by_key(|role| Reverse(count(&self.roles[*role])));
        };
        match self.sort {
            Sort::Given => {}
            Sort::Role => order.sort_by(|a, b| self.roles[*a].role().cmp(self.roles[*b].role())),
            Sort::Open => most(&|role| role.open() as u64, &mut order),
            // Tenths, so that they can be compared.
            Sort::Rate => most(&|role| (role.rate().unwrap_or(0.0) * 10.0) as u64, &mut order),
            Sort::Failed => most(&Watched::failed, &mut order),
            Sort::Memory => most(&|role| role.memory() as u64, &mut order),
        }
        if self.turned {
            order.reverse();
        }
        order
    }

    /// The screen of so many columns and rows.
    pub(super) fn screen(&mut self, columns: usize, rows: usize, now: Instant) -> Vec<Row> {
        let (head, body, foot, chosen) = match self.view {
            View::Roles => self.list(columns, now),
            View::One => self.one(columns, now),
            View::Help => {
                let lines = HELP.iter().map(|line| plain(cut(line, columns)));
                (plain("phalanx top: keys"), lines.collect(), "escape back  q quit", None)
            }
        };
        // The head and the foot.
        let room = rows.saturating_sub(2).max(1);
        self.page = room;
        let begin = match (self.view, chosen) {
            (View::One, _) => {
                self.scroll = self.scroll.min(body.len().saturating_sub(room));
                self.scroll
            }
            (_, Some(chosen)) => (chosen + 1_usize).saturating_sub(room),
            _ => 0,
        };
        let shown = body.into_iter().enumerate().skip(begin).take(room);
        let mut screen = vec![Row { line: head, chosen: false }];
        screen.extend(shown.map(|(at, line)| Row { line, chosen: chosen == Some(at) }));
        screen.resize_with(room + 1, || Row { line: plain(""), chosen: false });
        screen.push(Row { line: plain(cut(foot, columns)), chosen: false });
        screen.truncate(rows.max(1));
        screen
    }

    fn list(&self, columns: usize, now: Instant) -> (Line, Vec<Line>, &'static str, Option<usize>) {
        let order = self.order();
        let is_ready = |role: &&Watched| role.trouble.is_none() && role.seen.as_ref().is_some_and(|s| s.snapshot.ready);
        let (ready, all) = (self.roles.iter().filter(is_ready).count(), self.roles.len());
        let turned = if self.turned { ", turned" } else { "" };
        let head =
            format!("phalanx top: {ready} of {all} ready, {}, sorted: {}{turned}", self.open(), self.sort.name());
        let column = |(name, width): &(&str, Width)| Column { name: (*name).to_owned(), width: *width };
        let table = Table {
            columns: COLUMNS.iter().map(column).collect(),
            rows: order.iter().map(|role| self.roles[*role].row(now)).collect(),
        };
        let section = Section { title: String::new(), content: Content::Table(table) };
        let mut lines = lay_out(&[section], columns, None);
        let at = order.iter().position(|role| *role == self.chosen).map(|at| at + 1);
        if let Some(Span { text, .. }) = at.and_then(|at| lines.get_mut(at)).and_then(|line| line.first_mut()) {
            text.replace_range(..1, ">");
        }
        (plain(cut(&head, columns)), lines, "up/down choose  enter look into it  s sort  r turn  ? help  q quit", at)
    }

    fn one(&self, columns: usize, now: Instant) -> (Line, Vec<Line>, &'static str, Option<usize>) {
        let foot = "up/down scroll  escape back  ? help  q quit";
        let Some(role) = self.roles.get(self.chosen) else { return (plain(""), Vec::new(), foot, None) };
        let Some(seen) = &role.seen else {
            let trouble = role.trouble.as_deref().unwrap_or("it is asked");
            let lines = vec![plain(cut(Cell::new(trouble).text(), columns))];
            return (plain(cut(&role.address, columns)), lines, foot, None);
        };
        let overview = overview(&seen.snapshot);
        let (word, tone) = match (&role.trouble, overview.ready) {
            (Some(_), _) => ("no answer", Tone::Bad),
            (None, true) => ("ready", Tone::Good),
            (None, false) => ("not ready", Tone::Bad),
        };
        let head = format!("{} at {}", overview.headline, role.address);
        let mut head = plain(format!("{}: ", cut(&head, columns.saturating_sub(word.len() + 2))));
        head.push(Span { text: word.to_owned(), tone });
        let mut lines = lay_out(&overview.sections, columns, None);
        if let Some(trouble) = &role.trouble {
            let age = ago(now.saturating_duration_since(seen.at).as_secs());
            let text = format!("what it said {age} ago; now: {trouble}");
            let text = cut(Cell::new(&text).text(), columns).into_owned();
            lines.insert(0, vec![Span { text, tone: Tone::Bad }]);
        }
        (head, lines, foot, None)
    }
}

fn page(lines: usize) -> isize {
    isize::try_from(lines).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::cli::layout::text_of;
    use crate::ops::health::{Part, PartState};
    use crate::ops::jobs::JobsView;
    use crate::ops::process::Process;
    use crate::ops::status::RoleState;

    fn snapshot(role: &str, open: usize, completed: u64, failed: u64) -> Box<Snapshot> {
        let ended = BTreeMap::from([("completed".to_owned(), completed), ("failed".to_owned(), failed)]);
        let down =
            Part { name: "store".to_owned(), state: PartState::Down, why: Some("disk\u{1b}[2J full".to_owned()) };
        Box::new(Snapshot {
            role: role.to_owned(),
            version: "1".to_owned(),
            state: RoleState::Running,
            ready: failed == 0,
            paused: None,
            uptime_seconds: 61,
            parts: if failed > 0 { vec![down] } else { Vec::new() },
            details: serde_json::json!({"peer": "\u{202e}\u{1b}[2J"}),
            jobs: JobsView { open, ended, ended_by_minute: vec![1; 60], ..JobsView::default() },
            errors: Vec::new(),
            process: Some(Process { resident_memory_bytes: open << 20, threads: 1, open_fds: 1 }),
            threads: Vec::new(),
            warnings: Vec::new(),
        })
    }

    fn texts(rows: &[Row]) -> Vec<String> {
        rows.iter().map(|row| text_of(&row.line)).collect()
    }

    fn top() -> (Top, Instant) {
        let (mut top, now) = (Top::new(&["a:1", "b:2", "c\u{1b}:3"].map(str::to_owned)), Instant::now());
        top.answered(0, Ok(snapshot("validator", 1, 10, 0)), now);
        top.answered(1, Ok(snapshot("miner", 5, 4, 2)), now);
        (top, now)
    }

    #[test]
    fn the_list_shows_each_role_and_what_troubles_it() {
        let (mut top, now) = top();
        let later = now + Duration::from_secs(2);
        top.answered(0, Ok(snapshot("validator", 1, 11, 0)), later);
        top.answered(2, Err("refused\n\u{1b}[2J".to_owned()), later);
        top.answered(9, Err("nobody".to_owned()), later);
        let screen = top.screen(120, 8, later);
        let shown = texts(&screen);
        assert_eq!(
            (shown.len(), shown[0].as_str()),
            (8, "phalanx top: 1 of 3 ready, 1 jobs open (validator), sorted: as given")
        );
        assert_eq!(shown[7], "up/down choose  enter look into it  s sort  r turn  ? help  q quit");
        assert!(shown[1].starts_with("  ADDRESS    ROLE       STATE    OPEN  GOOD  BAD  /MIN  TROUBLE "), "{shown:#?}");
        for (row, parts) in [
            (2, &["> a:1", "validator", "ready", "11", "30", "1 min 1 s", "1.0 MiB"][..]),
            (3, &["  b:2", "miner", "running", "store: disk"]),
            (4, &["c\\u{1b}:3", "?", "refused\\n"]),
        ] {
            assert!(parts.iter().all(|part| shown[row].contains(part)), "{}", shown[row]);
        }
        assert!(shown.iter().all(|line| line.width() <= 120 && !line.contains(['\u{1b}', '\u{202e}'])), "{shown:#?}");
        assert_eq!(screen.iter().position(|row| row.chosen), Some(2));
        // One that has answered before is shown as it was.
        top.answered(1, Err("timeout".to_owned()), later + Duration::from_secs(5));
        let shown = texts(&top.screen(120, 8, later + Duration::from_secs(5)));
        assert!(shown[3].contains("no answer") && shown[3].contains("7 s ago: "), "{shown:#?}");
    }

    #[test]
    fn keys_choose_sort_look_and_quit() {
        let (mut top, now) = top();
        let chosen = |top: &mut Top| {
            let screen = top.screen(80, 10, now);
            text_of(&screen.iter().find(|row| row.chosen).unwrap().line)
        };
        assert!(top.key(Key::Down) && chosen(&mut top).starts_with("> b:2"));
        assert!(top.key(Key::End) && top.key(Key::Down) && chosen(&mut top).starts_with("> c"));
        assert!(top.key(Key::Home) && top.key(Key::Up) && chosen(&mut top).starts_with("> a:1"));
        let order = |top: &mut Top, keys: &[Key]| {
            keys.iter().for_each(|key| assert!(top.key(*key)));
            texts(&top.screen(80, 10, now))[2..5].iter().map(|line| line[2..3].to_owned()).collect::<String>()
        };
        let s = Key::Letter('s');
        assert_eq!(order(&mut top, &[s]), "cba", "role: one that is not known, miner, validator");
        assert_eq!(order(&mut top, &[s]), "bac", "open jobs");
        assert_eq!(order(&mut top, &[Key::Letter('r')]), "cab", "turned");
        assert_eq!(order(&mut top, &[Key::Letter('r'), s, s]), "bac", "not completed");
        assert_eq!(order(&mut top, &[s, s]), "abc", "as given again");
        assert!(top.key(Key::Down) && top.key(Key::Enter));
        let shown = texts(&top.screen(80, 24, now));
        assert!(shown[0].starts_with("miner 1, running, up 1 min 1 s at b:2: not ready"), "{shown:#?}");
        assert!(shown.iter().any(|line| line.contains("store") && line.contains("down")), "{shown:#?}");
        assert!(top.key(Key::Back) && chosen(&mut top).starts_with("> b:2"));
        assert!(top.key(Key::Letter('?')) && texts(&top.screen(80, 24, now))[1].contains("choose a role"));
        assert!(top.key(Key::Back) && !top.key(Key::Letter('q')) && !top.key(Key::Quit));
    }

    #[test]
    fn any_size_of_screen_is_filled_and_not_passed_over() {
        let (mut top, now) = top();
        for view in [&[][..], &[Key::Enter], &[Key::Back, Key::Letter('?')]] {
            view.iter().for_each(|key| assert!(top.key(*key)));
            for (columns, rows) in [(40, 1), (40, 2), (40, 3), (60, 5), (80, 24), (200, 60)] {
                for key in [Key::PageDown, Key::End, Key::PageUp] {
                    let screen = top.screen(columns, rows, now);
                    assert_eq!(screen.len(), rows);
                    let lines = texts(&screen);
                    assert!(lines.iter().all(|line| line.width() <= columns), "{columns}: {lines:#?}");
                    assert!(top.key(key));
                }
            }
        }
    }

    #[test]
    fn the_chosen_one_of_many_is_on_the_screen() {
        let addresses: Vec<String> = (0..50).map(|n| format!("h{n}:1")).collect();
        let mut top = Top::new(&addresses);
        assert!(top.key(Key::End));
        let screen = top.screen(80, 10, Instant::now());
        assert!(text_of(&screen.iter().find(|row| row.chosen).unwrap().line).contains("h49:1"));
    }
}
