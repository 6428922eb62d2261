//! The known name that somebody may have meant. Pure.

/// `; did you mean …?`, if a known name is near.
pub(super) fn hint(found: &str, known: &[&str]) -> String {
    let near = known.iter().map(|name| (strsim::levenshtein(found, name), name)).min();
    match near {
        Some((far, name)) if far <= 1 + found.len() / 4 => format!("; did you mean {name:?}?"),
        _ => String::new(),
    }
}
