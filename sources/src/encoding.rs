//! Text of addresses and headers: percent-encoding, options, base64, chains of errors.

/// `text` with its `%XX` decoded, or `None` if one is malformed or the bytes are no UTF-8.
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    String::from_utf8(percent_decoded_bytes(text)?).ok()
}

/// The same for what need not be text, such as a file's name. `None` if a `%XX` is malformed.
pub(crate) fn percent_decoded_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return None };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
        rest = tail;
    }
    Some(bytes)
}

/// The `name=value` pairs of `text`, in order, decoded. A name without `=` has the value `true`.
pub(crate) fn options(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let decode = |part: &str| {
        percent_decoded(part).ok_or_else(|| format!("{part:?} is not percent-encoded UTF-8"))
    };
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((decode(name)?, decode(value)?)),
            None => Ok((decode(pair)?, "true".to_owned())),
        })
        .collect()
}

/// Texts that servers send are cut to this many bytes: some hold the whole body of an answer.
#[cfg(any(feature = "s3", feature = "store"))]
const FOREIGN_BYTES_MAX: usize = 300;

/// What a server said, fit for a line of an error: not too long, and without characters that would
/// move the cursor of a terminal.
#[cfg(any(feature = "s3", feature = "store"))]
pub(crate) fn foreign(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > FOREIGN_BYTES_MAX {
        let end = (0..=FOREIGN_BYTES_MAX).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        line.truncate(end);
        line.push_str("...");
    }
    line
}

/// A path with all but letters, digits, `-._~` and `/` as `%XX`: RFC 3986, section 2.
#[cfg_attr(not(feature = "s3"), allow(dead_code))]
pub(crate) fn path_text(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for &byte in path.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte as char);
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// RFC 4648, section 4, with padding.
#[cfg(any(feature = "http", feature = "aws"))]
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let three = [group[0], *group.get(1).unwrap_or(&0), *group.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            // n bytes make n + 1 digits; the rest is padding.
            if digit <= group.len() {
                text.push(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char);
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// An error with its causes in one line. A cause whose text is already there is left out.
#[cfg(any(feature = "http", feature = "aws", feature = "store"))]
pub(crate) fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding() {
        let cases = [
            ("plain", Some("plain")),
            ("a%20b%2fc", Some("a b/c")),
            ("%C3%A4", Some("\u{e4}")),
            ("100%25", Some("100%")),
            ("100%", None),
            ("%2", None),
            ("%zz", None),
            ("%+1", None),
            ("%FF", None),
        ];
        for (text, expected) in cases {
            assert_eq!(percent_decoded(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn options_in_order() {
        let got = options("region=eu%2Dx&anonymous&endpoint=http://h:1/").expect("options");
        let got: Vec<_> = got.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let expected = [("region", "eu-x"), ("anonymous", "true"), ("endpoint", "http://h:1/")];
        assert_eq!(got, expected);
        assert!(options("a=%").is_err());
    }

    #[cfg(any(feature = "s3", feature = "store"))]
    #[test]
    fn what_servers_say_is_one_short_line() {
        assert_eq!(foreign("a\r\n\u{1b}[2Jb\u{9b}c"), "a   [2Jb c");
        let long = foreign(&"\u{e4}".repeat(1000));
        assert_eq!(long.len(), FOREIGN_BYTES_MAX + 3);
        assert!(long.ends_with("\u{e4}..."));
    }

    #[cfg(any(feature = "http", feature = "aws"))]
    #[test]
    fn paths_keep_their_slashes() {
        let text = path_text("a b/\u{e9}+~_x?#%");
        assert_eq!(text, "a%20b/%C3%A9%2B~_x%3F%23%25");
        assert_eq!(percent_decoded(&text).as_deref(), Some("a b/\u{e9}+~_x?#%"));
    }

    #[test]
    fn base64_of_every_length() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected, "{text}");
        }
    }
}
