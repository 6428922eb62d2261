//! The names of all threads: those that the source gives to `base::thread::spawn`, and those of the tree in the docs.
//!
//! A name that is a variable is followed to its `let`, to the field that holds it, or to the callers of the function.
//! A number in a name is `n`. A part that cannot be known from the text is a hole, which any text of the source fills.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::source;

/// One part of a thread's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Text(String),
    Hole,
}

/// A name as its spawn site gives it.
pub type Template = Vec<Part>;

/// The names that the source gives to threads.
#[derive(Debug, Default)]
pub struct Spawned {
    /// Each with its file.
    pub templates: BTreeSet<(Template, String)>,
    /// Spawn sites whose name cannot be followed.
    pub unknown: Vec<String>,
    /// Every text of the source, with `n` for each hole: what may fill one.
    texts: BTreeSet<String>,
}

struct Function {
    file: String,
    owner: Option<String>,
    name: String,
    /// Without `self`.
    parameters: Vec<String>,
    body: Vec<TokenTree>,
}

impl Spawned {
    pub fn read(root: &Path) -> Self {
        let mut paths = Vec::new();
        source::rust_files(root, &mut paths);
        paths.sort();
        let name = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let texts: Vec<_> = paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect();
        Self::of(&texts)
    }

    pub fn of(files: &[(String, String)]) -> Self {
        let mut functions = Vec::new();
        let mut spawned = Self::default();
        for (file, text) in files.iter().filter(|(file, _)| file != "base/thread.rs" && !file.ends_with("tests.rs")) {
            let tokens: Vec<_> = TokenStream::from_str(text).unwrap().into_iter().collect();
            let tokens = source::without_tests(&tokens);
            collect(file, None, &tokens, &mut functions);
            collect_texts(&tokens, &mut spawned.texts);
        }
        for function in &functions {
            let spawns = ["spawn", "try_spawn"].map(|name| calls(&function.body, None, name));
            for arguments in spawns.into_iter().flatten() {
                match name_of(&arguments[0], function, &functions, 0) {
                    Some(templates) => {
                        spawned.templates.extend(templates.into_iter().map(|name| (name, function.file.clone())));
                    }
                    None => {
                        let name: TokenStream = arguments[0].iter().cloned().collect();
                        spawned.unknown.push(format!("{}: {}: {name}", function.file, function.name));
                    }
                }
            }
        }
        spawned
    }

    pub fn matches(&self, template: &[Part], name: &str) -> bool {
        match template {
            [] => name.is_empty(),
            [Part::Text(text), rest @ ..] => name.strip_prefix(&**text).is_some_and(|left| self.matches(rest, left)),
            [Part::Hole, rest @ ..] => (1..=name.len())
                .filter(|end| name.is_char_boundary(*end))
                .any(|end| self.texts.contains(&name[..end]) && self.matches(rest, &name[end..])),
        }
    }
}

/// `val-mi-{n}-rd` as people write it, with `*` for a hole.
pub fn shown(template: &[Part]) -> String {
    template.iter().map(|part| if let Part::Text(text) = part { text } else { "*" }).collect()
}

fn collect(file: &str, owner: Option<&str>, tokens: &[TokenTree], into: &mut Vec<Function>) {
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(word) if word == "impl" => {
                let body = braces(tokens, at);
                let until = body.as_ref().map_or(tokens.len(), |(end, _)| *end);
                // The last name before the braces that is no parameter of the type: good enough for `impl X<T> for Y`.
                let head = &tokens[at..until];
                let head = head
                    .iter()
                    .rposition(|t| matches!(t, TokenTree::Ident(w) if w == "for"))
                    .map_or(head, |n| &head[n..]);
                let is_type =
                    |t: &&TokenTree| matches!(t, TokenTree::Ident(w) if w.to_string().starts_with(char::is_uppercase));
                let depth = head.iter().scan(0, |depth, t| {
                    if let TokenTree::Punct(p) = t {
                        *depth += i32::from(p.as_char() == '<') - i32::from(p.as_char() == '>');
                    }
                    Some((*depth, t))
                });
                let name = depth.filter(|(depth, t)| *depth == 0 && is_type(t)).map(|(_, t)| t.to_string()).last();
                if let Some((end, body)) = body {
                    collect(file, name.as_deref(), &body, into);
                    at = end;
                }
            }
            TokenTree::Ident(word) if word == "fn" => {
                let name = tokens[at + 1].to_string();
                let parameters =
                    tokens[at..].iter().find_map(|t| inside(t, Delimiter::Parenthesis)).unwrap_or_default();
                if let Some((end, body)) = braces(tokens, at) {
                    let first = |parameter: Vec<TokenTree>| {
                        parameter
                            .iter()
                            .find(|t| matches!(t, TokenTree::Ident(w) if w != "mut"))
                            .map(ToString::to_string)
                    };
                    let parameters = split(&parameters).into_iter().filter_map(first).filter(|p| p != "self").collect();
                    let (file, owner) = (file.to_owned(), owner.map(str::to_owned));
                    into.push(Function { file, owner, name, parameters, body });
                    at = end;
                }
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                collect(file, owner, &group.stream().into_iter().collect::<Vec<_>>(), into);
            }
            _ => {}
        }
        at += 1;
    }
}

/// The first braces of an item, and where they stand; `None` if a semicolon comes first.
fn braces(tokens: &[TokenTree], from: usize) -> Option<(usize, Vec<TokenTree>)> {
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ';' => return None,
            token => {
                if let Some(body) = inside(token, Delimiter::Brace) {
                    return Some((at, body));
                }
            }
        }
    }
    None
}

fn inside(token: &TokenTree, delimiter: Delimiter) -> Option<Vec<TokenTree>> {
    match token {
        TokenTree::Group(group) if group.delimiter() == delimiter => Some(group.stream().into_iter().collect()),
        _ => None,
    }
}

/// The entries of a list. A comma between `<` and `>` or in the list of a closure splits too, which does no harm here.
fn split(tokens: &[TokenTree]) -> Vec<Vec<TokenTree>> {
    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ',');
    tokens.split(is_comma).filter(|entry| !entry.is_empty()).map(<[_]>::to_vec).collect()
}

/// The arguments of each call of `owner::name`, or of the plain `name` and `thread::name`.
fn calls(tokens: &[TokenTree], owner: Option<&str>, name: &str) -> Vec<Vec<Vec<TokenTree>>> {
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            let inner: Vec<_> = group.stream().into_iter().collect();
            found.extend(calls(&inner, owner, name));
            let called = at > 0 && group.delimiter() == Delimiter::Parenthesis && tokens[at - 1].to_string() == name;
            let before: Vec<String> =
                tokens[at.saturating_sub(4)..at.saturating_sub(1)].iter().map(ToString::to_string).collect();
            let before: Vec<&str> = before.iter().map(String::as_str).collect();
            let fits = match (owner, &before[..]) {
                (Some(owner), [.., path, ":", ":"]) => *path == owner,
                (Some(_), _) => false,
                (None, [.., path, ":", ":"]) => path.starts_with(char::is_lowercase),
                (None, [.., last]) => !matches!(*last, "." | "fn"),
                (None, []) => true,
            };
            let arguments = split(&inner);
            if called && fits && !arguments.is_empty() {
                found.push(arguments);
            }
        }
    }
    found
}

/// What a thread may be called whose name is this expression, in this function.
fn name_of(name: &[TokenTree], function: &Function, all: &[Function], depth: usize) -> Option<BTreeSet<Template>> {
    if depth > 6 {
        return None;
    }
    match name {
        [TokenTree::Literal(text)] => Some([vec![Part::Text(unquoted(&text.to_string())?)]].into()),
        [TokenTree::Ident(word), TokenTree::Punct(_), arguments] if word == "format" => {
            Some([template(&inside(arguments, Delimiter::Parenthesis)?)?].into())
        }
        // `name.clone()`, `name.to_owned()`, `&name`
        [rest @ .., TokenTree::Punct(dot), TokenTree::Ident(_), TokenTree::Group(_)] if dot.as_char() == '.' => {
            name_of(rest, function, all, depth)
        }
        [TokenTree::Punct(reference), rest @ ..] if reference.as_char() == '&' => name_of(rest, function, all, depth),
        [TokenTree::Ident(variable)] => {
            let variable = variable.to_string();
            if let Some(value) = value_of(&function.body, &variable) {
                return name_of(&value, function, all, depth + 1);
            }
            let place = function.parameters.iter().position(|parameter| *parameter == variable)?;
            let mut found = BTreeSet::new();
            for caller in all {
                let same_owner =
                    function.owner.is_some() && caller.owner == function.owner && caller.file == function.file;
                let mut arguments = match (&function.owner, caller.file == function.file) {
                    (None, false) => Vec::new(),
                    (owner, _) => calls(&caller.body, owner.as_deref(), &function.name),
                };
                if same_owner {
                    arguments.extend(calls(&caller.body, Some("Self"), &function.name));
                }
                for arguments in arguments.iter().filter(|arguments| arguments.len() > place) {
                    found.extend(name_of(&arguments[place], caller, all, depth + 1)?);
                }
            }
            (!found.is_empty()).then_some(found)
        }
        // A field: all that is written into a field of that name.
        [.., TokenTree::Punct(dot), TokenTree::Ident(field)] if dot.as_char() == '.' => {
            let field = field.to_string();
            let mut found = BTreeSet::new();
            for other in all {
                for value in fields(&other.body, &field) {
                    found.extend(name_of(&value, other, all, depth + 1).unwrap_or_default());
                }
            }
            (!found.is_empty()).then_some(found)
        }
        _ => None,
    }
}

/// What follows `let variable =`, the last time.
fn value_of(tokens: &[TokenTree], variable: &str) -> Option<Vec<TokenTree>> {
    let mut found = None;
    for (at, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            found = value_of(&group.stream().into_iter().collect::<Vec<_>>(), variable).or(found);
        }
        if let [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Punct(equals), rest @ ..] = &tokens[at..]
            && word == "let"
            && name == variable
            && equals.as_char() == '='
        {
            let end = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ';');
            found = Some(rest.iter().take_while(|token| !end(token)).cloned().collect());
        }
    }
    found
}

/// What follows `field:` in the literals of structs.
fn fields(tokens: &[TokenTree], field: &str) -> Vec<Vec<TokenTree>> {
    let mut found = Vec::new();
    for token in tokens {
        if let TokenTree::Group(group) = token {
            let inner: Vec<_> = group.stream().into_iter().collect();
            found.extend(fields(&inner, field));
            for entry in split(&inner) {
                if let [TokenTree::Ident(name), TokenTree::Punct(colon), value @ ..] = &entry[..]
                    && name == field
                    && colon.as_char() == ':'
                {
                    found.push(value.to_vec());
                }
            }
        }
    }
    found
}

fn unquoted(literal: &str) -> Option<String> {
    Some(literal.strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

/// The arguments of `format!` as parts: what is called a number is `n`, all else a hole.
fn template(arguments: &[TokenTree]) -> Option<Template> {
    let arguments = split(arguments);
    let text = unquoted(&arguments.first()?.first()?.to_string())?;
    let mut positional = arguments[1..].iter();
    let mut parts = Vec::new();
    let mut rest = text.as_str();
    let mut push = |part: Part| match (parts.last_mut(), part) {
        (Some(Part::Text(before)), Part::Text(more)) => before.push_str(&more),
        (_, part) => parts.push(part),
    };
    while let Some((before, hole)) = rest.split_once('{') {
        let (name, after) = hole.split_once('}')?;
        let name = name.split(':').next().unwrap();
        let is_number = |name: &str| matches!(name, "n" | "number" | "count" | "index");
        let number = if name.is_empty() {
            positional.next()?.iter().any(|token| is_number(&token.to_string()))
        } else {
            is_number(name)
        };
        if !before.is_empty() {
            push(Part::Text(before.to_owned()));
        }
        push(if number { Part::Text("n".to_owned()) } else { Part::Hole });
        rest = after;
    }
    if !rest.is_empty() {
        push(Part::Text(rest.to_owned()));
    }
    Some(parts)
}

fn collect_texts(tokens: &[TokenTree], into: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Literal(text) => {
                let mut text = unquoted(&text.to_string()).unwrap_or_default();
                while let Some((start, end)) = text.find('{').zip(text.find('}')).filter(|(start, end)| start < end) {
                    text.replace_range(start..=end, "n");
                }
                into.insert(text);
            }
            TokenTree::Group(group) => collect_texts(&group.stream().into_iter().collect::<Vec<_>>(), into),
            _ => {}
        }
    }
}

/// The rows of the table under the heading "A loop that hangs": the threads, and the part that watches them, if one
/// does.
pub fn watched(document: &str) -> Vec<(BTreeSet<String>, Option<String>)> {
    let after = document.split_once("## A loop that hangs\n").expect("a heading").1;
    let section = after.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    let names = |list: &str| list.split(',').map(|name| name.trim().trim_matches('`').to_owned()).collect();
    let part = |what: &str| Some(what.strip_prefix("part `")?.split('`').next()?.to_owned());
    rows.map(|(list, what)| {
        let reason = what.strip_prefix("none: ").map(|why| why.trim_end_matches([' ', '|']));
        let part = part(what);
        assert!(part.is_some() || reason.is_some_and(|why| why.len() > 10), "neither a part nor a reason: {what}");
        (names(list), part)
    })
    .collect()
}

/// The names in the block under the heading "The thread tree": before the first two blanks or colon of each branch;
/// `val-fac-rd, -wr` are two.
pub fn tree(document: &str) -> BTreeSet<String> {
    let after = document.split_once("The thread tree\n").expect("a heading").1;
    let block = after.split("```").nth(1).expect("a block under the heading");
    let mut names = BTreeSet::new();
    for branch in block.lines().skip(1).flat_map(|line| line.split("──")) {
        let branch = branch.trim_start_matches(|c: char| c.is_whitespace() || "│├└─".contains(c));
        let part = branch.split("  ").next().unwrap().split([':', '(']).next().unwrap();
        let mut last = String::new();
        for name in part.split([',', ' ']).filter(|name| !["", "each", "with"].contains(name)) {
            let whole = match (name.strip_prefix('-'), last.rsplit_once('-')) {
                (Some(_), Some((stem, _))) => format!("{stem}{name}"),
                _ => name.to_owned(),
            };
            last.clone_from(&whole);
            names.insert(whole);
        }
    }
    names
}
