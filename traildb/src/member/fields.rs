//! `fields`: the names of the user fields (FORMAT.md F1-F3).

use std::collections::HashMap;

use crate::{
    container::{Member, Members},
    error::{Error, InputError},
    item::FIELDS_MAX,
    storage::Storage,
};

/// The longest name that the format allows, in bytes.
const NAME_BYTES_MAX: usize = 511;
const BYTES_MAX: u64 = FIELDS_MAX as u64 * (NAME_BYTES_MAX as u64 + 1) + 1;

/// The names of the user fields, numbered from 1. Field 0 is the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    names: Vec<Box<str>>,
    by_name: HashMap<Box<str>, u16>,
}

impl Fields {
    /// Checks names: not `time`, no duplicates, well formed, not too many.
    pub(crate) fn new<N: AsRef<str>>(names: &[N]) -> Result<Fields, InputError> {
        if names.len() > FIELDS_MAX {
            return Err(InputError::TooManyFields(names.len()));
        }
        let mut fields = Fields::default();
        for name in names {
            let name = name.as_ref();
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'%');
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(good) {
                return Err(InputError::MalformedName(name.chars().take(64).collect()));
            }
            if name == "time" {
                return Err(InputError::ReservedName);
            }
            fields.names.push(name.into());
            if fields.by_name.insert(name.into(), fields.names.len() as u16).is_some() {
                return Err(InputError::DuplicateName(name.into()));
            }
        }
        Ok(fields)
    }

    /// Number of user fields.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether events are timestamps only.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The name of a field; `time` for field 0.
    pub fn name(&self, field: u16) -> Option<&str> {
        match field {
            0 => Some("time"),
            _ => self.names.get(usize::from(field) - 1).map(|name| &**name),
        }
    }

    /// The number of the field of that name.
    pub fn find(&self, name: &str) -> Option<u16> {
        if name == "time" { Some(0) } else { self.by_name.get(name).copied() }
    }

    /// The names of the user fields, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> + DoubleEndedIterator {
        self.names.iter().map(|name| &**name)
    }

    pub(crate) fn read<S: Storage>(members: &Members<S>, member: &Member) -> Result<Fields, Error> {
        let bytes = members.read_whole(member, BYTES_MAX)?;
        let mut names = Vec::new();
        let mut at = 0;
        // The list ends at an empty line (version 1) or with the member (version 0).
        while at < bytes.len() {
            let line = bytes[at..].split(|&b| b == b'\n').next().unwrap_or_default();
            if line.is_empty() {
                break;
            }
            let name = std::str::from_utf8(line)
                .map_err(|_| member.damaged(members, at as u64, "a field name is not ASCII"))?;
            names.push(name);
            at += line.len() + 1;
        }
        Fields::new(&names).map_err(|error| member.damaged(members, 0, error.to_string()))
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut text: String = self.names().flat_map(|name| [name, "\n"]).collect();
        text.push('\n');
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_refused() {
        let long = "n".repeat(512);
        let cases: [(&[&str], InputError); 7] = [
            (&["time"], InputError::ReservedName),
            (&["a", "b", "a"], InputError::DuplicateName("a".into())),
            (&[""], InputError::MalformedName("".into())),
            (&["a b"], InputError::MalformedName("a b".into())),
            (&["a/b"], InputError::MalformedName("a/b".into())),
            (&["\u{e9}"], InputError::MalformedName("\u{e9}".into())),
            (&[&long], InputError::MalformedName("n".repeat(64))),
        ];
        for (names, error) in cases {
            assert_eq!(Fields::new(names), Err(error), "{names:?}");
        }
        let many: Vec<String> = (0..16383).map(|n| n.to_string()).collect();
        assert_eq!(Fields::new(&many), Err(InputError::TooManyFields(16383)));
        assert!(Fields::new(&many[1..]).is_ok());
    }

    #[test]
    fn names_are_found_by_name_and_number() {
        let fields = Fields::new(&["user", "ip"]).unwrap();
        assert_eq!(fields.write(), b"user\nip\n\n");
        assert_eq!(
            (fields.find("ip"), fields.find("time"), fields.find("x")),
            (Some(2), Some(0), None)
        );
        assert_eq!(
            (fields.name(0), fields.name(1), fields.name(3)),
            (Some("time"), Some("user"), None)
        );
    }
}
