//! What the bytes of a terminal mean as keys. Pure.

/// A key that `phalanx top` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The row above.
    Up,
    /// The row below.
    Down,
    /// A page back.
    PageUp,
    /// A page on.
    PageDown,
    /// The first row.
    Home,
    /// The last row.
    End,
    /// Look into the chosen one.
    Enter,
    /// Back to the list.
    Back,
    /// A letter.
    Letter(char),
    /// Ctrl-C, Ctrl-D, or the terminal has gone.
    Quit,
}

/// The keys of what one read gave. A sequence that is none of ours is skipped; an escape at the end is the key of that
/// name, since terminals send their sequences in one piece.
pub(super) fn keys(bytes: &[u8]) -> Vec<Key> {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            3 | 4 => found.push(Key::Quit),
            b'\r' | b'\n' => found.push(Key::Enter),
            8 | 127 => found.push(Key::Back),
            27 => match after {
                [b'[' | b'O', sequence @ ..] => {
                    // Parameters, and one byte that ends it (ECMA-48, 5.4).
                    let length = sequence
                        .iter()
                        .position(|byte| (0x40..=0x7e).contains(byte))
                        .map_or(sequence.len(), |at| at + 1);
                    found.extend(named(&sequence[..length]));
                    rest = &sequence[length..];
                }
                _ => found.push(Key::Back),
            },
            letter @ 32..=126 => found.push(Key::Letter(char::from(*letter))),
            _ => {}
        }
    }
    found
}

fn named(sequence: &[u8]) -> Option<Key> {
    Some(match sequence {
        b"A" => Key::Up,
        b"B" => Key::Down,
        b"C" => Key::Enter,
        b"D" => Key::Back,
        b"5~" => Key::PageUp,
        b"6~" => Key::PageDown,
        b"H" | b"1~" | b"7~" => Key::Home,
        b"F" | b"4~" | b"8~" => Key::End,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_and_letters() {
        for (bytes, expected) in [
            (&b"q"[..], &[Key::Letter('q')][..]),
            (b"\x1b[A\x1bOBj", &[Key::Up, Key::Down, Key::Letter('j')]),
            (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~", &[Key::PageUp, Key::PageDown, Key::Home, Key::End]),
            (b"\x1b", &[Key::Back]),
            (b"\x1b[1;5C\x1b[99\r", &[]),
            (b"\x1b[", &[]),
            (b"\r\x7f\x03", &[Key::Enter, Key::Back, Key::Quit]),
            ("ä\u{0}".as_bytes(), &[]),
        ] {
            assert_eq!(keys(bytes), expected, "{bytes:?}");
        }
    }
}
