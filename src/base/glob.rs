//! Patterns of names, as Python's `fnmatch` reads them: Hugging Face's `allow_patterns`, Celery's `pattern`, the images
//! that an operator allows. Pure.

/// Whether `text` as a whole matches `pattern`: `*` is any text (slashes too), `?` any character, `[ab]`, `[a-z]` and
/// `[!a]` one of a set; a bracket that is never closed stands for itself. In the time of both lengths together, but for
/// parts of the pattern between two stars that have `?` or a set: those times the length of the text.
pub fn matches(pattern: &str, text: &str) -> bool {
    all_match(parts(pattern), text)
}

/// The same if only `*` has a meaning and all else stands for itself.
pub fn matches_stars(pattern: &str, text: &str) -> bool {
    all_match(pattern.split('*').map(|text| Part { text, elements: None }).collect(), text)
}

fn all_match(mut parts: Vec<Part<'_>>, text: &str) -> bool {
    let last = parts.pop().unwrap_or_default();
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else { return last.begins(text) == Some("") };
    let Some(mut rest) = first.begins(text) else { return false };
    for part in parts {
        // The first place is as good as any: what may follow there may follow later ones too.
        match part.find(rest) {
            Some(behind) => rest = behind,
            None => return false,
        }
    }
    last.ends(rest)
}

/// A part of a pattern without stars.
#[derive(Default)]
struct Part<'a> {
    text: &'a str,
    /// None if it stands for itself.
    elements: Option<Vec<Element<'a>>>,
}

enum Element<'a> {
    Any,
    /// What is between the brackets.
    Set(&'a str),
    Char(char),
}

/// What is between the stars of a pattern, at least one part.
fn parts(pattern: &str) -> Vec<Part<'_>> {
    let (mut parts, mut begin, mut at) = (Vec::new(), 0, 0);
    let (mut elements, mut plain, mut may_close) = (Vec::new(), true, true);
    let part = |text, elements: Vec<_>, plain: bool| Part { text, elements: (!plain).then_some(elements) };
    while let Some(c) = pattern[at..].chars().next() {
        let set = if c == '[' && may_close { set(&pattern[at..]) } else { None };
        may_close &= c != '[' || set.is_some();
        match (c, set) {
            ('*', _) => {
                parts.push(part(&pattern[begin..at], std::mem::take(&mut elements), plain));
                (begin, plain) = (at + 1, true);
            }
            (_, Some(set)) => {
                (plain, at) = (false, at + set.len() + 1);
                elements.push(Element::Set(set));
            }
            ('?', _) => {
                plain = false;
                elements.push(Element::Any);
            }
            _ => elements.push(Element::Char(c)),
        }
        at += c.len_utf8();
    }
    parts.push(part(&pattern[begin..], elements, plain));
    parts
}

/// What is between the bracket at the beginning and the one that closes it; one right after `[` or `[!` belongs to the
/// set.
fn set(pattern: &str) -> Option<&str> {
    let inner = &pattern[1..];
    let first = inner.strip_prefix('!').unwrap_or(inner);
    let skipped = inner.len() - first.len() + usize::from(first.starts_with(']'));
    let end = skipped + inner[skipped..].find(']')?;
    Some(&inner[..end])
}

impl<'a> Part<'a> {
    /// What follows it in a text that begins with it.
    fn begins<'t>(&self, text: &'t str) -> Option<&'t str> {
        let Some(elements) = &self.elements else { return text.strip_prefix(self.text) };
        let mut rest = text.chars();
        elements.iter().all(|element| rest.next().is_some_and(|c| element.is(c))).then_some(rest.as_str())
    }

    /// What follows the first place where it is.
    fn find<'t>(&self, text: &'t str) -> Option<&'t str> {
        if self.elements.is_none() {
            return text.split_once(self.text).map(|(_, rest)| rest);
        }
        let places = text.char_indices().map(|(at, _)| at);
        places.into_iter().find_map(|at| self.begins(&text[at..]))
    }

    fn ends(&self, text: &str) -> bool {
        let Some(elements) = &self.elements else { return text.ends_with(self.text) };
        let mut rest = text.chars();
        elements.iter().rev().all(|element| rest.next_back().is_some_and(|c| element.is(c)))
    }
}

impl Element<'_> {
    fn is(&self, c: char) -> bool {
        match self {
            Element::Any => true,
            Element::Set(set) => is_of_set(set, c),
            Element::Char(own) => *own == c,
        }
    }
}

fn is_of_set(set: &str, c: char) -> bool {
    let (negated, set) = set.strip_prefix('!').map_or((false, set), |rest| (true, rest));
    let (mut rest, mut found) = (set.chars(), false);
    while let Some(first) = rest.next() {
        let mut range = rest.clone();
        let last = match (range.next(), range.next()) {
            (Some('-'), Some(last)) => {
                rest = range;
                last
            }
            _ => first,
        };
        found |= (first..=last).contains(&c);
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn patterns_match_as_in_python() {
        for (pattern, text, expected) in [
            ("*.json", "config.json", true),
            ("*.json", "a/b/config.json", true),
            ("*.json", "config.json5", false),
            ("a/*.bin", "a/x.bin", true),
            ("a/*.bin", "b/a/x.bin", false),
            ("model-?????-of-?.st", "model-00001-of-2.st", true),
            ("?", "", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**a*", "bba", true),
            ("a*a", "a", false),
            ("*?b", "b", false),
            ("[abc]x", "bx", true),
            ("[!abc]x", "bx", false),
            ("[!abc]x", "dx", true),
            ("[a-c0-9]", "7", true),
            ("[a-c]", "d", false),
            ("[]a]", "]", true),
            ("[!]a]", "]", false),
            ("[-a]", "-", true),
            ("[*]", "*", true),
            ("[*]", "a", false),
            ("[a", "[a", true),
            ("x[*", "x[y", true),
            ("日*", "日本", true),
            ("*?本", "日本", true),
            ("A*", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn stars_alone_have_a_meaning_where_the_rest_stands_for_itself() {
        for (pattern, text, expected) in [
            ("[::1]:5000/*", "[::1]:5000/app", true),
            ("[::1]:5000/*", ":5000/app", false),
            ("a?", "ab", false),
            ("a?", "a?", true),
            ("*a*", "bab", true),
            ("a*a", "a", false),
            ("", "", true),
        ] {
            assert_eq!(matches_stars(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    /// The same, by trying everything.
    fn slowly(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], text) => text.is_empty(),
            (['*', rest @ ..], text) => (0..=text.len()).any(|skipped| slowly(rest, &text[skipped..])),
            (['?', rest @ ..], [_, text @ ..]) => slowly(rest, text),
            (['[', inner @ ..], _) => {
                // The closing bracket is not the first of the set.
                let first = if inner.first() == Some(&'!') { 2 } else { 1 };
                let end = (first..inner.len()).find(|at| inner[*at] == ']');
                match (end, text) {
                    (Some(end), [c, text @ ..]) => in_set(&inner[..end], *c) && slowly(&inner[end + 1..], text),
                    (None, ['[', text @ ..]) => slowly(inner, text),
                    _ => false,
                }
            }
            ([own, rest @ ..], [c, text @ ..]) => own == c && slowly(rest, text),
            _ => false,
        }
    }

    fn in_set(set: &[char], c: char) -> bool {
        match set {
            ['!', set @ ..] => !in_plain(set, c),
            set => in_plain(set, c),
        }
    }

    fn in_plain(set: &[char], c: char) -> bool {
        match set {
            [] => false,
            [first, '-', last, rest @ ..] => (*first <= c && c <= *last) || in_plain(rest, c),
            [first, rest @ ..] => *first == c || in_plain(rest, c),
        }
    }

    #[test]
    fn a_slow_search_finds_the_same() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut any = |of: &str, most: u64| -> Vec<char> {
            let (of, len): (Vec<char>, _) = (of.chars().collect(), rng.next_u64() % (most + 1));
            (0..len).map(|_| of[usize::try_from(rng.next_u64()).unwrap_or(0) % of.len()]).collect()
        };
        let mut matched = 0;
        for round in 0..200_000 {
            let of = ["ab*", "aé?*", "ab*?[]!-c"][round % 3];
            let (pattern, text) = (any(of, 9), any("abcé]-[!", 9));
            let [one, other] = [&pattern, &text].map(|chars| chars.iter().collect::<String>());
            let expected = slowly(&pattern, &text);
            assert_eq!(matches(&one, &other), expected, "{one:?} on {other:?}, seed {seed}");
            matched += usize::from(expected);
        }
        assert!(matched > 1_000, "{matched} of the pairs match");
    }

    #[test]
    fn a_hostile_pattern_ends_soon() {
        assert!(!matches(&"*a".repeat(200_000), &"a".repeat(150_000)));
        assert!(matches(&"*a".repeat(100_000), &"a".repeat(500_000)));
        assert!(!matches(&"[".repeat(500_000), &"[".repeat(400_000)));
        let (ones, end) = ("a".repeat(100_000), "b");
        assert!(!matches(&format!("*{ones}{end}*"), &ones.repeat(2)));
    }
}
