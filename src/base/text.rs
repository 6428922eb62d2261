//! Truncating text that others wrote. Pure.

/// The longest beginning of `text` of at most `bytes` bytes that ends between two characters.
pub fn truncated(text: &str, bytes: usize) -> &str {
    &text[..boundary_before(text, bytes)]
}

/// Shortens `text` to [`truncated`].
pub fn truncate(text: &mut String, bytes: usize) {
    text.truncate(boundary_before(text, bytes));
}

fn boundary_before(text: &str, at: usize) -> usize {
    let last = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    last.expect("the beginning of a text is a boundary")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_kept_whole_or_left_out() {
        assert_eq!(truncated("häuser", 1), "h");
        assert_eq!(truncated("häuser", 2), "h");
        assert_eq!(truncated("häuser", 3), "hä");
        assert_eq!(truncated("häuser", 99), "häuser");
        assert_eq!(truncated("ä", 0), "");
        let mut text = "日本".to_owned();
        truncate(&mut text, 5);
        assert_eq!(text, "日");
    }
}
