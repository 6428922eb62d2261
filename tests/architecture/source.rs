//! Reads the source of the crate: its files, what each file says in its head, and which paths its code names.
//!
//! The code is read as tokens, so comments, texts and unit tests do not count, and paths inside macros do. A path is
//! followed through `use`, `super`, and the re-exports of other files to the file that defines the thing. Methods are
//! not followed: a file names the type or the trait anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A name that a file gives to a path.
#[derive(Debug)]
struct Import {
    /// `*` for all that the path holds.
    name: String,
    path: Vec<String>,
    public: bool,
}

/// One file of the crate.
#[derive(Debug)]
pub struct SourceFile {
    /// The path below the root, as `link/rate.rs`.
    pub name: String,
    /// The module, as `["link", "outbox"]`.
    module: Vec<String>,
    /// Its `//!` lines without the marks.
    pub head: String,
    imports: Vec<Import>,
    /// Paths of at least two parts in its code, apart from `use`.
    paths: BTreeSet<Vec<String>>,
    /// Every word of its code, apart from `use`.
    words: BTreeSet<String>,
    /// What it defines.
    items: BTreeSet<String>,
    /// Its modules that are not for tests.
    children: BTreeSet<String>,
    test_children: BTreeSet<String>,
}

/// All files of a crate that are not unit tests.
#[derive(Debug)]
pub struct Source {
    files: Vec<SourceFile>,
    modules: BTreeMap<Vec<String>, usize>,
    /// The crate's name, by which its binary calls it.
    package: &'static str,
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// To a thing of the file with this number.
    Item(usize),
    /// To a module as a whole.
    Module,
    /// Out of the crate, under this path.
    Outside(Vec<String>),
}

impl Source {
    pub fn read(root: &Path, package: &'static str) -> Self {
        let mut paths = Vec::new();
        rust_files(root, &mut paths);
        paths.sort();
        let read = |path: &PathBuf| {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            SourceFile::parse(name, &fs::read_to_string(path).unwrap())
        };
        Self::of(paths.iter().map(read).collect(), package)
    }

    /// A made-up crate, for the tests of this reader.
    pub fn made_up(files: &[(&str, &str)]) -> Self {
        Self::of(files.iter().map(|(name, text)| SourceFile::parse((*name).to_owned(), text)).collect(), "made_up")
    }

    fn of(files: Vec<SourceFile>, package: &'static str) -> Self {
        let mut tests = BTreeSet::new();
        for file in &files {
            tests.extend(
                file.test_children.iter().map(|child| [&file.module[..], std::slice::from_ref(child)].concat()),
            );
        }
        let is_test = |file: &SourceFile| tests.iter().any(|test| file.module.starts_with(test));
        let files: Vec<_> = files.into_iter().filter(|file| !is_test(file)).collect();
        let modules = files.iter().enumerate().map(|(n, file)| (file.module.clone(), n)).collect();
        Self { files, modules, package }
    }

    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    pub fn name(&self, file: usize) -> &str {
        &self.files[file].name
    }

    /// The files whose things a file names. A re-export is no use, unless the file uses the name itself.
    pub fn uses(&self, file: usize) -> BTreeSet<usize> {
        let targets = self.targets(file, true, |_| true).into_iter();
        targets.filter_map(|target| if let Target::Item(other) = target { Some(other) } else { None }).collect()
    }

    /// The files whose functions a file calls; a type or a constant that it names is data.
    pub fn calls(&self, file: usize) -> BTreeSet<usize> {
        let is_function = |path: &[String]| path.last().unwrap().starts_with(char::is_lowercase);
        let targets = self.targets(file, true, is_function).into_iter();
        targets.filter_map(|target| if let Target::Item(other) = target { Some(other) } else { None }).collect()
    }

    /// The paths of other crates that a file names, re-exports included.
    pub fn outside(&self, file: usize) -> BTreeSet<String> {
        let targets = self.targets(file, false, |_| true).into_iter();
        targets
            .filter_map(|target| if let Target::Outside(path) = target { Some(path.join("::")) } else { None })
            .collect()
    }

    fn targets(&self, number: usize, without_re_exports: bool, which: impl Fn(&[String]) -> bool) -> Vec<Target> {
        let file = &self.files[number];
        let imports = file.imports.iter().filter(|import| {
            let used = import.name != "*" && file.words.contains(&import.name);
            !without_re_exports || !import.public || used
        });
        let named = imports.map(|import| &import.path).chain(&file.paths);
        let targets = named.filter(|path| which(path)).filter_map(|path| self.follow(number, path, 0));
        targets.filter(|target| *target != Target::Item(number)).collect()
    }

    /// Where a path leads that stands in the file `from`; `None` if it names nothing that is known there, as a type's
    /// part.
    fn follow(&self, from: usize, path: &[String], depth: usize) -> Option<Target> {
        assert!(depth < 30, "{}: {path:?} leads round", self.files[from].name);
        let file = &self.files[from];
        let mut module = file.module.clone();
        let mut rest = path;
        match path[0].as_str() {
            "crate" => module.clear(),
            name if name == self.package && file.name == "main.rs" => module.clear(),
            "self" => {}
            "super" => drop(module.pop()),
            name => {
                let import = file.imports.iter().find(|import| import.name == name && import.path[0] != name);
                if let Some(import) = import {
                    let whole = [&import.path[..], &path[1..]].concat();
                    return self.follow(from, &whole, depth + 1);
                }
                if file.children.contains(name) || file.items.contains(name) {
                    return self.find(from, path, depth);
                }
                let outside = name.chars().next().is_some_and(char::is_lowercase);
                return outside.then(|| Target::Outside(path.to_vec()));
            }
        }
        rest = &rest[1..];
        while rest.first().is_some_and(|part| part == "super") {
            module.pop();
            rest = &rest[1..];
        }
        match self.modules.get(&module) {
            Some(start) => self.find(*start, rest, depth),
            None => None,
        }
    }

    /// Where a path leads that begins in a module.
    fn find(&self, mut at: usize, path: &[String], depth: usize) -> Option<Target> {
        let mut rest = path;
        while let Some(part) = rest.first() {
            let file = &self.files[at];
            let child = [&file.module[..], std::slice::from_ref(part)].concat();
            if let Some(next) = self.modules.get(&child) {
                (at, rest) = (*next, &rest[1..]);
                continue;
            }
            if part == "*" || file.items.contains(part) {
                return Some(Target::Item(at));
            }
            if let Some(import) = file.imports.iter().find(|import| import.name == *part) {
                let whole = [&import.path[..], &rest[1..]].concat();
                return self.follow(at, &whole, depth + 1);
            }
            for import in file.imports.iter().filter(|import| import.name == "*") {
                let whole = [&import.path[..import.path.len() - 1], rest].concat();
                if let Some(Target::Item(other)) = self.follow(at, &whole, depth + 1) {
                    return Some(Target::Item(other));
                }
            }
            // Made by a macro, or a part of a type.
            return Some(Target::Item(at));
        }
        Some(Target::Module)
    }
}

impl SourceFile {
    fn parse(name: String, text: &str) -> Self {
        let mut module: Vec<String> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
            module.pop();
        }
        let head = text.lines().map_while(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("\n");
        let mut file = Self {
            name,
            module,
            head,
            imports: Vec::new(),
            paths: BTreeSet::new(),
            words: BTreeSet::new(),
            items: BTreeSet::new(),
            children: BTreeSet::new(),
            test_children: BTreeSet::new(),
        };
        let tokens = TokenStream::from_str(text).unwrap_or_else(|error| panic!("{}: {error}", file.name));
        file.read(&tokens.into_iter().collect::<Vec<_>>());
        file
    }

    /// The first module, under which a file of the root stands by its own name.
    pub fn module(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    fn read(&mut self, tokens: &[TokenTree]) {
        let (mut at, mut public) = (0, false);
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                let end = item_end(tokens, at + 2);
                if let [TokenTree::Ident(word), TokenTree::Ident(name), ..] = without_attributes(&tokens[at..end])
                    && word == "mod"
                {
                    self.test_children.insert(name.to_string());
                }
                at = end;
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(word) if word == "pub" => {
                    public = true;
                    // `pub(crate)`
                    if group(tokens.get(at + 1), Delimiter::Parenthesis).is_some() {
                        at += 1;
                    }
                }
                TokenTree::Ident(word) if word == "use" => {
                    let end = item_end(tokens, at);
                    self.read_use(&tokens[at + 1..end - 1], &[], public);
                    (at, public) = (end, false);
                    continue;
                }
                TokenTree::Ident(word) if word == "mod" => {
                    if let (Some(TokenTree::Ident(name)), Some(TokenTree::Punct(_))) =
                        (tokens.get(at + 1), tokens.get(at + 2))
                    {
                        self.children.insert(name.to_string());
                    }
                    (at, public) = (at + 2, false);
                    continue;
                }
                // What its body names is used where the macro is.
                TokenTree::Ident(word) if word == "macro_rules" => {
                    self.items.insert(tokens[at + 2].to_string());
                    (at, public) = (at + 4, false);
                    continue;
                }
                TokenTree::Ident(word) => {
                    public = false;
                    let (path, next) = path_at(tokens, at);
                    if path.len() > 1 {
                        self.paths.insert(path.clone());
                    }
                    self.words.extend(path.into_iter().take(1));
                    const DEFINES: [&str; 8] = ["struct", "enum", "trait", "type", "fn", "const", "static", "union"];
                    if DEFINES.contains(&word.to_string().as_str()) {
                        let name = tokens[at + 1..].iter().find_map(|token| match token {
                            TokenTree::Ident(name) if name != "mut" => Some(name.to_string()),
                            _ => None,
                        });
                        self.items.extend(name);
                    }
                    at = next;
                    continue;
                }
                TokenTree::Group(group) => {
                    public = false;
                    self.read(&group.stream().into_iter().collect::<Vec<_>>());
                }
                _ => public = false,
            }
            at += 1;
        }
    }

    /// One `use` without its semicolon, or one entry of its list.
    fn read_use(&mut self, tokens: &[TokenTree], prefix: &[String], public: bool) {
        let mut path = prefix.to_vec();
        let mut at = 0;
        let mut name = None;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(word) if word == "as" => {
                    name = Some(tokens[at + 1].to_string());
                    break;
                }
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Punct(punct) if punct.as_char() == '*' => path.push("*".to_owned()),
                TokenTree::Group(list) => {
                    let list: Vec<_> = list.stream().into_iter().collect();
                    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ',');
                    for entry in list.split(is_comma).filter(|entry| !entry.is_empty()) {
                        self.read_use(entry, &path, public);
                    }
                    return;
                }
                _ => {}
            }
            at += 1;
        }
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = name.unwrap_or_else(|| path.last().unwrap().clone());
        self.imports.push(Import { name, path, public });
    }
}

/// The path that begins with the word at `at`, and the place after it.
fn path_at(tokens: &[TokenTree], mut at: usize) -> (Vec<String>, usize) {
    let mut path = vec![tokens[at].to_string()];
    at += 1;
    while let [TokenTree::Punct(first), TokenTree::Punct(second), TokenTree::Ident(next), ..] = &tokens[at..]
        && first.as_char() == ':'
        && second.as_char() == ':'
    {
        path.push(next.to_string());
        at += 3;
    }
    (path, at)
}

fn group(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<String> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group.stream().to_string()),
        _ => None,
    }
}

fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let is_mark = matches!(tokens.first(), Some(TokenTree::Punct(p)) if p.as_char() == '#');
    let attribute = group(tokens.get(1), Delimiter::Bracket).map(|text| text.replace(' ', ""));
    is_mark && attribute.is_some_and(|text| text == "cfg(test)" || text.starts_with("cfg(all(test,") || text == "test")
}

/// An item without the attributes and the visibility before it.
fn without_attributes(mut tokens: &[TokenTree]) -> &[TokenTree] {
    loop {
        tokens = match tokens {
            [TokenTree::Punct(p), TokenTree::Group(_), rest @ ..] if p.as_char() == '#' => rest,
            [TokenTree::Ident(word), TokenTree::Group(_), rest @ ..] if word == "pub" => rest,
            [TokenTree::Ident(word), rest @ ..] if word == "pub" => rest,
            _ => return tokens,
        };
    }
}

/// The place after the item that begins at `at`: after its semicolon, its braces or, for a field, its comma.
fn item_end(tokens: &[TokenTree], at: usize) -> usize {
    const ITEMS: [&str; 11] =
        ["use", "mod", "fn", "impl", "struct", "enum", "trait", "type", "const", "static", "macro_rules"];
    let is_item = |token: &&TokenTree| matches!(token, TokenTree::Ident(word) if ITEMS.contains(&&*word.to_string()));
    let item = without_attributes(&tokens[at..]).iter().take(4).find(is_item).map(ToString::to_string);
    let is_use = item.as_deref() == Some("use");
    let end = tokens[at..].iter().position(|token| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';' || punct.as_char() == ',' && item.is_none(),
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace && !is_use,
        _ => false,
    });
    end.map_or(tokens.len(), |end| at + end + 1)
}

/// The tokens without the items that are for tests, at any depth.
pub fn without_tests(tokens: &[TokenTree]) -> Vec<TokenTree> {
    let (mut at, mut kept) = (0, Vec::new());
    while at < tokens.len() {
        if is_test_attribute(&tokens[at..]) {
            at = item_end(tokens, at + 2);
            continue;
        }
        kept.push(match &tokens[at] {
            TokenTree::Group(group) => {
                let inner = without_tests(&group.stream().into_iter().collect::<Vec<_>>());
                Group::new(group.delimiter(), inner.into_iter().collect()).into()
            }
            token => token.clone(),
        });
        at += 1;
    }
    kept
}

/// The Rust files below a folder.
pub fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}
