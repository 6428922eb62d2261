//! Text that others wrote: truncated, and read as editors save it. Pure.

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

/// The text of a file as people save it: as UTF-8, perhaps with the byte order mark that some editors put first, which
/// is left out.
///
/// # Errors
/// What it is instead, and what to do, in words.
pub fn of_file(bytes: &[u8]) -> Result<&str, String> {
    let utf16 = match bytes {
        // Two zeros more would make it UTF-32, of which the same is to be said.
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        // Without a mark: a first character of ASCII has a zero beside it.
        [first, 0, second, 0, ..] | [0, first, 0, second, ..] => *first != 0 && *second != 0,
        _ => false,
    };
    if utf16 {
        return Err("it is UTF-16 text; save it as UTF-8".to_owned());
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("it is not UTF-8 text, from line {line} on; save it as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_as_editors_save_it() {
        assert_eq!(of_file("a\r\nb".as_bytes()).unwrap(), "a\r\nb");
        assert_eq!(of_file("\u{feff}ä".as_bytes()).unwrap(), "ä");
        assert_eq!(of_file(b"").unwrap(), "");
        let utf16 = |text: &str, mark: Option<u16>| -> Vec<u8> {
            let units = mark.into_iter().chain(text.encode_utf16());
            units.flat_map(u16::to_le_bytes).collect()
        };
        for bytes in [utf16("{\"a", Some(0xfeff)), utf16("{\"a", None), vec![0xfe, 0xff, 0, b'{']] {
            assert_eq!(of_file(&bytes).unwrap_err(), "it is UTF-16 text; save it as UTF-8");
        }
        assert_eq!(of_file(b"a\nb\xe4").unwrap_err(), "it is not UTF-8 text, from line 2 on; save it as UTF-8");
    }

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
