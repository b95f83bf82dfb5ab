//! `--fields` and headers: which column, or which key, goes where.

use std::collections::HashSet;

use crate::failure::Failure;

/// The most columns that a row may be told to have.
const COLUMNS_MAX: usize = 1 << 20;

/// Where a column or a key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Uuid,
    Time,
    /// The n-th user field, from 0.
    Field(u32),
    Nowhere,
}

/// Where everything goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Columns {
    /// For each column of CSV.
    pub(super) columns: Vec<To>,
    /// For each key of JSON.
    pub(super) keys: Vec<(String, To)>,
    /// The user fields.
    pub(super) fields: Vec<String>,
    /// What was given no column, the first of it.
    unplaced: Option<String>,
}

/// Where a part of `--fields` takes its values from.
enum From<'s> {
    /// `name`: the column at the same place, or the one that the header calls so.
    Place(usize),
    /// `5:name` or `header:name`.
    Named(&'s str),
}

impl Columns {
    /// Reads `--fields` (uuid and time if there is none): `name,name,...` or `FROM:name,...`, where
    /// FROM is a column's number from 1, its name in the `header`, or a key of JSON. With `keys` it is
    /// a key whatever it looks like: the keys of JSON may be numbers.
    pub(super) fn new(
        spec: Option<&str>,
        header: Option<&[String]>,
        keys: bool,
    ) -> Result<Columns, Failure> {
        let number = |from: &str| if keys { None } else { number(from) };
        let joined = header.map(|names| names.join(","));
        let parts: Vec<&str> = match (spec, header) {
            (Some(spec), _) => spec.split(',').collect(),
            (None, Some(names)) => names.iter().map(String::as_str).collect(),
            (None, None) => vec!["uuid", "time"],
        };
        // Names of a header are no specification: a colon is part of them.
        let split = |part: &str| spec.is_some() && part.contains(':');
        let some = parts.iter().any(|part| split(part));
        let mut all = Columns::default();
        for (place, part) in parts.iter().enumerate() {
            let (from, name) = match part.split_once(':') {
                Some((from, name)) if split(part) => (From::Named(from), name),
                _ => (From::Place(place), *part),
            };
            let to = match name {
                "uuid" => To::Uuid,
                "time" => To::Time,
                name => {
                    all.fields.push(name.to_owned());
                    To::Field(all.fields.len() as u32 - 1)
                }
            };
            let column = match (&from, spec, header) {
                (From::Place(_), Some(_), Some(header)) => in_header(name, header)?,
                // Where some have a number, a place says nothing.
                (From::Place(place), ..) if !some => *place,
                (From::Place(_), ..) => usize::MAX,
                (From::Named(from), _, Some(header)) if number(from).is_none() => {
                    in_header(from, header)?
                }
                // Without a header it may be a key of JSON, which has no place among columns.
                (From::Named(from), ..) => number(from).unwrap_or(usize::MAX),
            };
            if column != usize::MAX {
                if all.columns.len() <= column {
                    all.columns.resize(column + 1, To::Nowhere);
                }
                if all.columns[column] != To::Nowhere {
                    let text = format!("--fields: column {} is named twice", column + 1);
                    return Err(Failure::Usage(text));
                }
                all.columns[column] = to;
            } else {
                all.unplaced.get_or_insert_with(|| (*part).to_owned());
            }
            let key = match from {
                From::Named(from) if number(from).is_none() => from,
                _ => name,
            };
            all.keys.push((key.to_owned(), to));
        }
        for (what, name) in [(To::Uuid, "uuid"), (To::Time, "time")] {
            let times = all.keys.iter().filter(|&&(_, to)| to == what).count();
            if times != 1 {
                let given = spec.or(joined.as_deref()).unwrap_or_default();
                let text = format!("the fields must name `{name}` once: {given:?}");
                return Err(Failure::Usage(text));
            }
        }
        Ok(all)
    }

    /// An error where one key of JSON would have two places to go to.
    pub(super) fn need_keys(&self) -> Result<(), Failure> {
        let mut seen = HashSet::new();
        match self.keys.iter().find(|(key, _)| !seen.insert(key)) {
            Some((key, _)) => Err(Failure::Usage(format!("--fields: {key:?} is named twice"))),
            None => Ok(()),
        }
    }

    /// An error where CSV has no column for a field.
    pub(super) fn need_columns(&self) -> Result<(), Failure> {
        let Some(part) = &self.unplaced else { return Ok(()) };
        Err(Failure::Usage(format!(
            "--fields: {part:?} has no column's number, from 1, before a colon; names of columns need \
             --csv-header"
        )))
    }
}

/// A column's number, from 1 in text, from 0 here.
fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.filter(|n| (1..=COLUMNS_MAX).contains(n)).map(|n: usize| n - 1)
}

fn in_header(name: &str, header: &[String]) -> Result<usize, Failure> {
    const SHOWN: usize = 20;
    header.iter().position(|known| known == name).ok_or_else(|| {
        let mut known: Vec<&str> = header.iter().take(SHOWN).map(String::as_str).collect();
        if header.len() > SHOWN {
            known.push("...");
        }
        let known = known.join(", ");
        Failure::Usage(format!("the header has no column {name:?}; there are {known}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn by_order_and_number() {
        let got = Columns::new(Some("uuid,x,time"), None, false).unwrap();
        assert_eq!(got.columns, [To::Uuid, To::Field(0), To::Time]);
        assert_eq!(got.fields, ["x"]);
        let got = Columns::new(Some("3:uuid,1:time"), None, false).unwrap();
        assert_eq!(got.columns, [To::Time, To::Nowhere, To::Uuid]);
        assert_eq!(got.keys, [("uuid".to_owned(), To::Uuid), ("time".to_owned(), To::Time)]);
        for bad in ["uuid", "time,x", "uuid,time,uuid", "1:uuid,1:time", "", "uuid,,time,"] {
            let got = Columns::new(Some(bad), None, false);
            let refused = got.as_ref().map_or(true, |c| c.fields.iter().any(String::is_empty));
            assert!(refused, "{bad}: {got:?}");
        }
        for bad in ["0:uuid,1:time", "a:uuid,b:time", "1:uuid,99999999999:time", "1:uuid,time"] {
            assert!(Columns::new(Some(bad), None, false).unwrap().need_columns().is_err(), "{bad}");
        }
    }

    #[test]
    fn by_the_names_of_a_header() {
        let header = names("when,who,what,uuid");
        let got = Columns::new(Some("uuid,when:time,what"), Some(&header), false).unwrap();
        assert_eq!(got.columns, [To::Time, To::Nowhere, To::Field(0), To::Uuid]);
        let got = Columns::new(Some("4:uuid,1:time,2:user"), Some(&header), false).unwrap();
        assert_eq!(got.columns, [To::Time, To::Field(0), To::Nowhere, To::Uuid]);
        assert_eq!(got.fields, ["user"]);
        assert!(Columns::new(Some("uuid,time"), Some(&header), false).is_err(), "no `time` there");
        assert!(Columns::new(None, Some(&header), false).is_err(), "no `time` there");
        let got = Columns::new(None, Some(&names("time,uuid,a")), false).unwrap();
        assert_eq!(got.columns, [To::Time, To::Uuid, To::Field(0)]);
    }

    #[test]
    fn by_the_keys_of_json() {
        let got = Columns::new(Some("id:uuid,ts:time,404:x"), None, true).unwrap();
        let keys: Vec<&str> = got.keys.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["id", "ts", "404"]);
        assert!(got.need_keys().is_ok());
        for bad in ["uuid,time,title:a,title:b", "uuid,time,a,a:b", "x:uuid,x:time"] {
            assert!(Columns::new(Some(bad), None, true).unwrap().need_keys().is_err(), "{bad}");
        }
    }
}
