//! Members into a package or a directory.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use super::{gather::Gathered, place::Unfinished, values::Values};
use crate::{
    container::package::{self, Layout, Part},
    error::Error,
    member::{fields::Fields, info::Info, lexicon, trails},
};

const BUFFER_BYTES: usize = 1 << 20;

/// What a database is made of, before it is written.
pub(super) struct Parts<'a> {
    pub(super) info: Info,
    pub(super) fields: &'a Fields,
    pub(super) values: &'a [Values],
    pub(super) codebook: Vec<u8>,
    pub(super) trails: Gathered,
}

impl Parts<'_> {
    /// Names and sizes, in the order of a package. `tar.toc` is the third of them.
    fn members(&self) -> Vec<Part> {
        let part = |name: &str, size: u64| Part { name: name.to_owned(), size };
        let trails = self.info.trails;
        let data = self.trails.bytes() + trails::PADDING;
        let mut parts = vec![
            part("version", 1),
            part("info", self.info.write().len() as u64),
            part("tar.toc", 0),
        ];
        for (at, values) in self.values.iter().enumerate() {
            let name = self.fields.name(at as u16 + 1).expect("one set of values for each field");
            let size = lexicon::size(values.count(), values.value_bytes());
            parts.push(part(&format!("lexicon.{name}"), size));
        }
        parts.push(part("fields", self.fields.write().len() as u64));
        parts.push(part("trails.codebook", self.codebook.len() as u64));
        parts.push(part("trails.toc", trails::offset_width(data) * (trails + 1)));
        parts.push(part("trails.data", data));
        parts.push(part("uuids", trails * 16));
        parts
    }

    /// Writes the member `name`, which is none of `tar.toc`.
    fn write(&self, name: &str, out: &mut impl Write) -> io::Result<()> {
        match name {
            "version" => out.write_all(b"1"),
            "info" => out.write_all(&self.info.write()),
            "fields" => out.write_all(&self.fields.write()),
            "trails.codebook" => out.write_all(&self.codebook),
            "trails.toc" => {
                let data = self.trails.bytes() + trails::PADDING;
                trails::write_toc(self.trails.ends(), data, |b| out.write_all(b))
            }
            "trails.data" => {
                self.trails.data(|bytes| out.write_all(bytes))?;
                out.write_all(&[0; trails::PADDING as usize])
            }
            "uuids" => self.trails.uuids().try_for_each(|uuid| out.write_all(&uuid.0)),
            _ => {
                let field = name.strip_prefix("lexicon.").expect("every other member is a lexicon");
                let field = self.fields.find(field).expect("a lexicon of a field");
                let values = &self.values[usize::from(field) - 1];
                let lengths = values.iter().map(|value| value.len() as u64);
                let (count, bytes) = (values.count(), values.value_bytes());
                lexicon::write_head(count, bytes, lengths, |b| out.write_all(b))?;
                values.iter().try_for_each(|value| out.write_all(value))
            }
        }
    }
}

/// Writes the database to `path`. Returns its size in bytes.
pub(super) fn write(path: &Path, parts: &Parts<'_>, directory: bool) -> Result<u64, Error> {
    let write = || {
        let unfinished = Unfinished::create(path, directory)?;
        let bytes = match directory {
            true => write_directory(unfinished.path(), parts)?,
            false => {
                write_package(BufWriter::with_capacity(BUFFER_BYTES, unfinished.file()), parts)?
            }
        };
        unfinished.place()?;
        Ok(bytes)
    };
    write().map_err(|source| Error::file(path, source))
}

/// Writes a package, from its first byte to its last. Returns how many there are.
fn write_package(mut out: impl Write, parts: &Parts<'_>) -> io::Result<u64> {
    let members = parts.members();
    let layout = package::lay_out(&members);
    for (member, before) in members.iter().zip(&layout.before) {
        out.write_all(before)?;
        match member.name.as_str() {
            "tar.toc" => out.write_all(&layout.index)?,
            name => parts.write(name, &mut out)?,
        }
    }
    out.write_all(&layout.end)?;
    out.flush()?;
    Ok(size(&members, &layout))
}

/// The size of a package.
fn size(members: &[Part], layout: &Layout) -> u64 {
    let between = layout.before.iter().map(Vec::len).sum::<usize>();
    let outside = between + layout.index.len() + layout.end.len();
    members.iter().map(|member| member.size).sum::<u64>() + outside as u64
}

fn write_directory(path: &Path, parts: &Parts<'_>) -> io::Result<u64> {
    let mut bytes = 0;
    for member in parts.members() {
        if member.name == "tar.toc" {
            continue;
        }
        let file = File::create(path.join(&member.name))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        parts.write(&member.name, &mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        bytes += member.size;
    }
    Ok(bytes)
}
