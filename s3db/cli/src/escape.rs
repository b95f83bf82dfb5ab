//! Keys and payloads as text: what commands print of them is what they take.
//!
//! Printable ASCII is itself, but `\\`, `"` and `'`, which have a `\` before them; the rest is `\n`, `\r`, `\t`, or
//! `\x` and two hexadecimal digits, as [`slice::escape_ascii`] has it. Taken is whatever has no `\` as well, as it is.

use s3db::Key;

use crate::output::Failure;

/// Bytes of it that an error shows.
const SHOWN_BYTES_MAX: usize = 100;

/// The key that escaped text stands for.
pub(crate) fn key(text: &str) -> Result<Key, Failure> {
    Ok(Key::new(unescape(text)?)?)
}

/// The beginning of what somebody wrote, as errors show it: on one line, and short.
pub(crate) fn shown(text: &str) -> String {
    let end = text.floor_char_boundary(SHOWN_BYTES_MAX);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", text[..end].escape_debug())
}

/// The bytes that escaped text stands for.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (byte, after) = match rest {
            [b'n', after @ ..] => (b'\n', after),
            [b't', after @ ..] => (b'\t', after),
            [b'r', after @ ..] => (b'\r', after),
            [quoted @ (b'\\' | b'"' | b'\''), after @ ..] => (*quoted, after),
            [b'x', high, low, after @ ..] => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).ok();
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                (
                    byte.ok_or_else(|| {
                        Failure::Told(format!("{}: \\x and two digits", shown(text)))
                    })?,
                    after,
                )
            }
            _ => return Err(Failure::Told(format!("{}: \\ and what is not known", shown(text)))),
        };
        bytes.push(byte);
        rest = after;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let text = all.escape_ascii().to_string();
        assert_eq!(unescape(&text).unwrap(), all);
        for bad in ["\\", "\\x1", "\\xzz", "a\\q"] {
            assert!(unescape(bad).is_err(), "{bad}");
        }
    }
}
