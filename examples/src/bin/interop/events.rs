//! The data sets: what a database can hold, as far as CSV and JSON can say it to both tools.
//!
//! The C tool's CSV has no quotes, so values have no commas and no line breaks and start with no
//! quote; its JSON keeps escapes as they are, so strings have none; both end at a NUL byte.

use std::{fs, path::Path};

use traildb::synth::{self, Spec};

/// One event.
pub(crate) struct Row {
    /// Up to 32 hexadecimal digits.
    pub(crate) uuid: String,
    pub(crate) time: u64,
    pub(crate) values: Vec<Vec<u8>>,
}

/// Events, and what is asked about them.
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) fields: Vec<String>,
    pub(crate) rows: Vec<Row>,
    /// Whether the values can be said in CSV, and in JSON.
    pub(crate) csv: bool,
    pub(crate) json: bool,
    /// Filters, in the C tool's grammar.
    pub(crate) filters: Vec<String>,
}

impl Set {
    fn new(name: &'static str, fields: &[&str], rows: Vec<Row>, filters: &[&str]) -> Set {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let (fields, filters) = (owned(fields), owned(filters));
        Set { name, fields, rows, csv: true, json: true, filters }
    }

    /// Whether a filter asks for a value that no event has.
    pub(crate) fn asks_for_nothing(&self, filter: &str) -> bool {
        let mut terms = filter.split(' ').filter_map(|term| term.split_once('='));
        terms.any(|(name, value)| {
            let name = name.strip_suffix('!').unwrap_or(name);
            let field = self.fields.iter().position(|field| field == name);
            let has = |row: &Row, field: usize| row.values[field] == value.as_bytes();
            field.is_none_or(|field| !self.rows.iter().any(|row| has(row, field)))
        })
    }

    /// The events as CSV with a header.
    pub(crate) fn as_csv(&self, rows: &[Row]) -> Vec<u8> {
        let mut out = format!(
            "uuid,time{}\n",
            self.fields.iter().map(|f| format!(",{f}")).collect::<String>()
        )
        .into_bytes();
        for row in rows {
            out.extend(format!("{},{}", row.uuid, row.time).into_bytes());
            for value in &row.values {
                out.push(b',');
                out.extend(value);
            }
            out.push(b'\n');
        }
        out
    }

    /// The events as JSON, one object a line. Empty values are left out of every other event.
    pub(crate) fn as_json(&self, rows: &[Row]) -> Vec<u8> {
        let mut out = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            out.extend(
                format!("{{\"uuid\": \"{}\", \"time\": {}", row.uuid, row.time).into_bytes(),
            );
            for (field, value) in self.fields.iter().zip(&row.values) {
                if n % 2 == 0 || !value.is_empty() {
                    out.extend(format!(", \"{field}\": \"").into_bytes());
                    out.extend(value);
                    out.push(b'"');
                }
            }
            out.extend(b"}\n");
        }
        out
    }
}

fn row(trail: u64, time: u64, values: Vec<Vec<u8>>) -> Row {
    // The first byte of a UUID counts least in the order of trails, and prints first.
    let spread = trail.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Row { uuid: format!("{spread:016x}{trail:016x}"), time, values }
}

fn text(value: impl std::fmt::Display) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Every data set.
pub(crate) fn sets() -> Vec<Set> {
    vec![
        edits(),
        fields(),
        bytes(),
        punctuation(),
        nulls(),
        equal_times(),
        times(),
        uuids(),
        skewed(),
        Set::new("one", &["a"], vec![row(1, 7, vec![text("x")])], &["a=x", "a=y", "a!=x"]),
        Set::new("empty", &["a", "b"], Vec::new(), &["a=x", "a!=x", "a="]),
        no_fields(),
    ]
}

/// Edits of a wiki: bursts, long tails, a few equal times.
fn edits() -> Set {
    let mut rows = Vec::new();
    let spec = Spec { events: 20_000, trails: 900, titles: 4000, seed: 5 };
    let added = synth::generate(&spec, |edit| {
        let values = edit.values.iter().map(|value| value.clone().into_bytes()).collect();
        rows.push(Row { uuid: edit.uuid.to_string(), time: edit.time, values });
        Ok::<_, std::convert::Infallible>(())
    });
    added.unwrap_or_else(|never| match never {});
    // Not in the order of the file, as a log is.
    rows.sort_by_key(|row| row.time);
    let of =
        |field: usize, at: usize| String::from_utf8_lossy(&rows[at].values[field]).into_owned();
    let (common, other, rare) = (of(2, 10), of(2, 5000), of(2, 19_990));
    let user =
        (0..rows.len()).map(|at| of(0, at)).find(|user| !user.is_empty()).unwrap_or_default();
    let filters = [
        format!("title={common}"),
        format!("title!={common}"),
        format!("title={common} title={other} title={rare}"),
        format!("title={common} title={other} & user={user} ip="),
        format!("title={rare} & ip!="),
        format!("title!={common} & title!={other} & user!="),
        "user= & ip=".to_owned(),
        format!("user={user}"),
        "title=no_such_title".to_owned(),
        "title!=no_such_title".to_owned(),
        format!("title=no_such_title user={user}"),
        format!("no_such_field={common}"),
        format!("no_such_field!={common} & user={user}"),
    ];
    let filters = filters.to_vec();
    Set { filters, ..Set::new("edits", &synth::FIELDS, rows, &[]) }
}

/// 400 fields: items of both forms, and an index of more than one block.
fn fields() -> Set {
    let names: Vec<String> = (0..400).map(|n| format!("f{n}")).collect();
    let value = |n: u64, f: u64| match (n * 7 + f).is_multiple_of(11) {
        true => text(format_args!("v{}", n * f % 13)),
        false => Vec::new(),
    };
    let rows = (0..800u64)
        .map(|n| row(n % 40, 1000 + n * 3, (0..400).map(|f| value(n, f)).collect()))
        .collect();
    let filters = ["f0=v0", "f0!=v0", "f126=v3 f127=v3 f128=v3", "f399=v5", "f399!= & f130!="];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Set::new("fields", &names, rows, &filters)
}

/// Bytes that are no text, control characters, long values.
fn bytes() -> Set {
    let all: Vec<u8> = (1..=255u8).filter(|byte| !b",\n\"".contains(byte)).collect();
    let values: Vec<Vec<u8>> = vec![
        b"\xff\xfe".to_vec(),
        b"a\xc3".to_vec(),
        all,
        "\u{20ac} \u{1f600}".into(),
        b"\x01\x02\x1b[0m".to_vec(),
        b" padded ".to_vec(),
        vec![b'x'; 70_000],
        b"100%s%n".to_vec(),
        b"in\"side".to_vec(),
        b"back\\slash".to_vec(),
    ];
    let rows = (0..200u64)
        .map(|n| {
            let value = |k: u64| values[((n * 3 + k) % values.len() as u64) as usize].clone();
            row(n % 9, n * 60, vec![value(0), if n % 4 == 0 { Vec::new() } else { value(n) }])
        })
        .collect();
    let filters = ["a=100%s%n", "a=back\\slash b=in\"side", "b!=a\u{fffd}", "a=\u{20ac}"];
    Set { json: false, ..Set::new("bytes", &["a", "b"], rows, &filters) }
}

/// What CSV cannot say and JSON can; and numbers, kept as they are written.
fn punctuation() -> Set {
    let values = ["a,b", ",", "a b", "{}", "[1,2]", "it's", "x=y", "&", "a&b", "@x"];
    let rows = (0..60u64)
        .map(|n| {
            let value = |k: u64| text(values[((n + k) % 10) as usize]);
            row(n % 5, n, vec![value(0), value(n * n)])
        })
        .collect();
    let filters = ["a=a,b", "a={} & b!={}", "a=x=y", "b=it's"];
    Set { csv: false, ..Set::new("punctuation", &["a", "b"], rows, &filters) }
}

/// Values that come and go.
fn nulls() -> Set {
    let rows = (0..300u64)
        .map(|n| {
            let value = |m: u64| if n % m == 0 { Vec::new() } else { text(n % 5) };
            row(n % 7, n * 10, vec![value(2), value(3), value(1), text("always")])
        })
        .collect();
    let filters = ["a=", "a!=", "a= b=", "a= & b=", "never=", "never!=", "never!= a=3", "always!="];
    Set::new("nulls", &["a", "b", "never", "always"], rows, &filters)
}

fn equal_times() -> Set {
    let rows = (0..500u64).map(|n| row(n % 3, 100 + n / 50, vec![text(n), text(n % 2)])).collect();
    Set::new("equal", &["n", "parity"], rows, &["parity=1", "n=7", "n!=7 & parity=0"])
}

/// From 0 to far behind 2^47, in steps as large as they may be. Each half starts at 0, for a first
/// event later than 2^47 would be refused where the halves are databases of their own.
fn times() -> Set {
    let most = (1u64 << 47) - 2;
    let rows = (0..40u64)
        .map(|n| {
            let time = match n % 4 {
                0 => n % 20 / 4 * most,
                1 => n,
                2 => most,
                _ => n << 40,
            };
            row(n % 4, time, vec![text(n)])
        })
        .collect();
    Set::new("times", &["n"], rows, &["n=0", "n=39 n=38", "n!=3"])
}

/// The ends of the space, short ones that are filled with zeros, capital letters.
fn uuids() -> Set {
    let uuids = [
        "00000000000000000000000000000000",
        "ffffffffffffffffffffffffffffffff",
        "00000000000000000000000000000001",
        "10000000000000000000000000000000",
        "1",
        "abc",
        "ABCDEF00000000000000000000000000",
        "80000000000000000000000000000080",
    ];
    let rows = (0..64u64)
        .map(|n| Row {
            uuid: uuids[(n % 8) as usize].to_owned(),
            time: n * n,
            values: vec![text(n % 6)],
        })
        .collect();
    Set::new("uuids", &["v"], rows, &["v=3", "v!=3"])
}

/// Frequencies that fall so steeply that code words reach their longest, and fields that go together.
fn skewed() -> Set {
    let mut rows = Vec::new();
    for n in 0..30_000u64 {
        let rank = u64::from((n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).leading_zeros());
        let rare = if n % 3 == 0 { text(n) } else { text("often") };
        rows.push(row(n % 50, n / 2, vec![text(rank), text(rank * 2), rare]));
    }
    let filters = ["a=0", "a=9 & b=18", "a=9 & b=17", "c=29997", "c!=often & a=1"];
    Set::new("skewed", &["a", "b", "c"], rows, &filters)
}

fn no_fields() -> Set {
    Set::new("nofields", &[], (0..50).map(|n| row(n % 6, n * n, Vec::new())).collect(), &[])
}

/// The events of a file.
pub(crate) fn own(path: &Path) -> Result<Set, String> {
    let told = |what: &str| format!("{}: {what}", path.display());
    let text = fs::read(path).map_err(|e| told(&e.to_string()))?;
    let mut lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let header = lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let names: Vec<&str> = header.unwrap_or_default().split(',').collect();
    if !names.starts_with(&["uuid", "time"]) {
        return Err(told("the header does not start with uuid,time"));
    }
    let mut rows = Vec::new();
    for line in lines {
        let cells: Vec<&[u8]> = line.split(|&byte| byte == b',').collect();
        let number = |cell: &[u8]| std::str::from_utf8(cell).ok()?.parse().ok();
        let time =
            cells.get(1).and_then(|cell| number(cell)).filter(|_| cells.len() == names.len());
        rows.push(Row {
            time: time.ok_or_else(|| told("a line of other cells than the header has"))?,
            uuid: String::from_utf8_lossy(cells[0]).into_owned(),
            values: cells[2..].iter().map(|cell| cell.to_vec()).collect(),
        });
    }
    let some = |field: usize| {
        let value = rows.iter().map(|row: &Row| &row.values[field]).find(|value| !value.is_empty());
        format!("{}={}", names[field + 2], String::from_utf8_lossy(value.map_or(b"", |v| v)))
    };
    let filters: Vec<String> = (0..names.len() - 2).map(some).collect();
    Ok(Set { json: false, filters, ..Set::new("own", &names[2..], rows, &[]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_event_has_is_known() {
        let rows =
            vec![row(1, 7, vec![text("x"), text("a=b")]), row(1, 8, vec![text("y"), vec![]])];
        let set = Set::new("set", &["a", "b"], rows, &[]);
        let cases = [
            ("a=x", false),
            ("a=z", true),
            ("a!=x", false),
            ("a!=z", true),
            ("b=a=b & a=y", false),
            ("a= b=", true),
            ("b=", false),
            ("c=x", true),
            ("a=x & b=x", true),
        ];
        for (filter, nothing) in cases {
            assert_eq!(set.asks_for_nothing(filter), nothing, "{filter}");
        }
    }

    /// The C library refuses a database whose first event is later than 2^47, or more than that
    /// after the one before.
    #[test]
    fn every_set_and_each_half_of_it_can_be_a_database() {
        let most = (1u64 << 47) - 2;
        for set in sets() {
            let (left, right) = set.rows.split_at(set.rows.len() / 2);
            for rows in [&set.rows[..], left, right] {
                let mut trails: std::collections::BTreeMap<&str, Vec<u64>> = Default::default();
                for row in rows {
                    trails.entry(&row.uuid).or_default().push(row.time);
                }
                let first = rows.iter().map(|row| row.time).min().unwrap_or(0);
                assert!(first <= most, "{}", set.name);
                for times in trails.values_mut() {
                    times.push(first);
                    times.sort_unstable();
                    assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= most), "{}", set.name);
                }
            }
        }
    }
}
