//! File name patterns as Python's `fnmatch` reads them; Hugging Face's `allow_patterns` are such. Pure.

/// Whether `text` matches `pattern` as a whole: `*` is any text (slashes too), `?` any character, `[ab]`, `[a-z]` and
/// `[!a]` one of a set. A pattern that ends with `/` means everything below that folder, as Hugging Face has it.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let mut pattern: Vec<char> = pattern.chars().collect();
    if pattern.last() == Some(&'/') {
        pattern.push('*');
    }
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where to go on if a later part does not fit: after the last star, one character further in the text.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == '*' {
            retry = Some((p + 1, t));
            p += 1;
        } else if p == pattern.len() && t == text.len() {
            return true;
        } else if let Some(len) = text.get(t).and_then(|c| one(&pattern[p..], *c)) {
            p += len;
            t += 1;
        } else {
            match retry {
                Some((after_star, from)) if from < text.len() => {
                    retry = Some((after_star, from + 1));
                    (p, t) = (after_star, from + 1);
                }
                _ => return false,
            }
        }
    }
}

/// How many characters of the pattern stand for `c`, if its next element does.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => match set_end(pattern) {
            Some(end) => in_set(&pattern[1..end], c).then_some(end + 1),
            // A bracket that is never closed stands for itself.
            None => (c == '[').then_some(1),
        },
        first => (*first == c).then_some(1),
    }
}

/// The index of the bracket that closes the set at the beginning; one right after `[` or `[!` belongs to the set.
fn set_end(pattern: &[char]) -> Option<usize> {
    let first = if pattern.get(1) == Some(&'!') { 2 } else { 1 };
    (first + 1..pattern.len()).find(|at| pattern[*at] == ']')
}

fn in_set(set: &[char], c: char) -> bool {
    let (negated, mut set) = match set {
        ['!', rest @ ..] => (true, rest),
        set => (false, set),
    };
    let mut found = false;
    while let Some((first, rest)) = set.split_first() {
        match rest {
            ['-', last, rest @ ..] => {
                found |= (*first..=*last).contains(&c);
                set = rest;
            }
            rest => {
                found |= *first == c;
                set = rest;
            }
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::matches;

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
            ("[abc]x", "bx", true),
            ("[!abc]x", "bx", false),
            ("[!abc]x", "dx", true),
            ("[a-c0-9]", "7", true),
            ("[a-c]", "d", false),
            ("[]a]", "]", true),
            ("[!]a]", "]", false),
            ("[-a]", "-", true),
            ("[a", "[a", true),
            ("onnx/", "onnx/model.onnx", true),
            ("onnx/", "onnx", false),
            ("日*", "日本", true),
            ("A*", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn a_hostile_pattern_ends_soon() {
        assert!(!matches(&"*a".repeat(200), &"a".repeat(150)));
        assert!(matches(&"*a".repeat(100), &"a".repeat(5_000)));
    }
}
