//! Rules that find search keys, and payloads that they look into: a rule, a value and a payload, a
//! line each.

#![no_main]

use s3db::{KEY_BYTES_MAX, Key, SearchBy};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (rule, value, payload) = (part(), part(), part());
    let Ok(by) = String::from_utf8_lossy(rule).parse::<SearchBy>() else { return };
    assert_eq!(by.to_string().parse::<SearchBy>().as_ref().ok(), Some(&by), "{by}");
    by.key(payload);
    if let (SearchBy::Json(field), Ok(value)) = (&by, std::str::from_utf8(value)) {
        let (other, field, said) = (quote(&format!("{field}x")), quote(field), quote(value));
        let json = format!("{{{other}: {said} ,{field}\t:{said}}}");
        let expected = Key::new(&value.as_bytes()[..value.len().min(KEY_BYTES_MAX)]).ok();
        assert_eq!(by.key(json.as_bytes()), expected, "{json}");
    }
});

/// As RFC 8259 has it: each character as it is or as `\u` and its UTF-16 units, by turns.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for (n, char) in text.chars().enumerate() {
        if char < ' ' || matches!(char, '"' | '\\') || n % 2 == 1 {
            for unit in char.encode_utf16(&mut [0; 2]) {
                quoted.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            quoted.push(char);
        }
    }
    quoted.push('"');
    quoted
}
