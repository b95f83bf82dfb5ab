//! CSV and JSON: how bytes are written so that they can be read back.
//!
//! CSV follows RFC 4180, but for its lines, which end with LF alone. JSON strings are UTF-8; a value
//! that is not UTF-8 becomes `{"hex":"c3ff"}`, which no value that is a string can be taken for.

/// The byte order mark, in UTF-8. In front of all it is passed over by who reads it, unless it is in quotes.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Appends `value` as a field of CSV, in quotes if it has to be.
pub(crate) fn csv(out: &mut Vec<u8>, value: &[u8], delimiter: u8) {
    let special = |&b: &u8| b == delimiter || matches!(b, b'"' | b'\n' | b'\r');
    if !value.iter().any(special) && !value.starts_with(MARK) {
        return out.extend_from_slice(value);
    }
    out.push(b'"');
    for part in value.split_inclusive(|&b| b == b'"') {
        out.extend_from_slice(part);
        if part.ends_with(b"\"") {
            out.push(b'"');
        }
    }
    out.push(b'"');
}

/// Appends `value` as JSON: a string, or an object with its hexadecimal digits.
pub(crate) fn json(out: &mut Vec<u8>, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(_) => json_string(out, value),
        Err(_) => {
            out.extend_from_slice(b"{\"hex\":\"");
            hex(out, value);
            out.extend_from_slice(b"\"}");
        }
    }
}

fn hex(out: &mut Vec<u8>, value: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for &byte in value {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

fn json_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&b| b < 0x20 || b == b'"' || b == b'\\') {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            special @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', special]),
            control => {
                out.extend_from_slice(b"\\u00");
                hex(out, &[control]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Appends `value` as the C tool prints it: as it is, up to the first NUL byte.
pub(crate) fn plain(out: &mut Vec<u8>, value: &[u8]) {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    out.extend_from_slice(&value[..end]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(render: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        render(&mut out);
        out
    }

    #[test]
    fn csv_quotes_what_it_must() {
        let cases: [(&str, &[u8], &[u8]); 11] = [
            ("nothing", b"", b""),
            ("plain", b"a b", b"a b"),
            ("a byte order mark", b"\xef\xbb\xbfa", b"\"\xef\xbb\xbfa\""),
            ("one inside", b"a\xef\xbb\xbf", b"a\xef\xbb\xbf"),
            ("the delimiter", b"a,b", b"\"a,b\""),
            ("a quote", b"a\"b", b"\"a\"\"b\""),
            ("quotes alone", b"\"\"", b"\"\"\"\"\"\""),
            ("a line", b"a\nb", b"\"a\nb\""),
            ("a carriage return", b"a\r", b"\"a\r\""),
            ("not UTF-8", b"\xff,", b"\"\xff,\""),
            ("a NUL byte", b"a\0b", b"a\0b"),
        ];
        for (what, value, expected) in cases {
            assert_eq!(with(|out| csv(out, value, b',')), expected, "{what}");
        }
    }

    #[test]
    fn json_escapes_what_it_must() {
        let cases: [(&str, &[u8], &str); 9] = [
            ("nothing", b"", r#""""#),
            ("plain", b"a/b", r#""a/b""#),
            ("a quote and a backslash", b"\"\\", r#""\"\\""#),
            ("controls with a name", b"\n\r\t\x08\x0c", r#""\n\r\t\b\f""#),
            ("controls without", b"\0\x1f", r#""\u0000\u001f""#),
            ("delete is no control", b"\x7f", "\"\x7f\""),
            ("UTF-8", "\u{17c}\u{1f600}".as_bytes(), "\"\u{17c}\u{1f600}\""),
            ("cut UTF-8", b"\xc3", r#"{"hex":"c3"}"#),
            ("a surrogate", b"\xed\xa0\x80", r#"{"hex":"eda080"}"#),
        ];
        for (what, value, expected) in cases {
            let got = with(|out| json(out, value));
            assert_eq!(String::from_utf8_lossy(&got), expected, "{what}");
        }
    }

    #[test]
    fn every_byte_survives_json() {
        for byte in 0..=255u8 {
            let value = [b'a', byte, b'b'];
            let got = with(|out| json(out, &value));
            let parsed: serde_json::Value = serde_json::from_slice(&got).expect("JSON");
            match std::str::from_utf8(&value) {
                Ok(text) => assert_eq!(parsed, text),
                Err(_) => assert_eq!(parsed["hex"], format!("61{byte:02x}62")),
            }
        }
    }

    #[test]
    fn plain_stops_at_a_nul_byte() {
        assert_eq!(with(|out| plain(out, b"a\"b\0c")), b"a\"b");
    }
}
