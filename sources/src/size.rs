//! Sizes as people write them.

/// Reads `64KiB`, `256 MB`, `4096`: a whole number and a unit. Without a unit: bytes.
///
/// # Errors
/// What a size looks like, for whoever wrote something else.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "KB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "TiB" => 1 << 40,
        _ => {
            let text = "a size is a number with one of B, KB, KiB, MB, MiB, GB, GiB, TB, TiB";
            return Err(text.to_owned());
        }
    };
    let number: u64 = number.parse().map_err(|_| "a size starts with a whole number".to_owned())?;
    number.checked_mul(scale).ok_or_else(|| "a size has at most 64 bits".to_owned())
}

/// `bytes` for people: `1.5 MiB`.
pub fn show(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut amount = bytes as f64 / 1024.0;
    if amount < 1.0 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            ("0", Some(0)),
            ("12B", Some(12)),
            ("3KB", Some(3000)),
            ("64 KiB", Some(65_536)),
            ("2TiB", Some(2 << 40)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551615KB", None),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.5MiB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
        assert_eq!((show(1023), show(1536)), ("1023 B".to_owned(), "1.5 KiB".to_owned()));
        assert_eq!(show(u64::MAX), "16.0 EiB");
    }
}
