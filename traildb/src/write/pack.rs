//! Members into a package or a directory.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use super::{
    gather::Gathered,
    options::Options,
    place::Unfinished,
    sink::Sink,
    spill::{Lexicon, Spill},
    values::Values,
};
use crate::{
    container::package::{self, Layout, Part},
    error::Error,
    member::{fields::Fields, info::Info, lexicon, trails},
};

const BUFFER_BYTES: usize = 1 << 20;

/// What a database is made of, before it is written.
pub(super) struct Parts {
    pub(super) info: Info,
    pub(super) fields: Fields,
    pub(super) lexicons: Lexicons,
    pub(super) codebook: Vec<u8>,
    pub(super) trails: Gathered,
    /// Whose temporary files these are.
    #[expect(dead_code, reason = "held until all is written, and dropped then")]
    pub(super) spill: Option<Spill>,
}

/// The values of all fields.
pub(super) enum Lexicons {
    Memory(Vec<Values>),
    Files(Vec<Lexicon>),
}

impl Lexicons {
    /// For each field, the number of values and the bytes of all together.
    pub(super) fn sizes(&self) -> Vec<(u64, u64)> {
        match self {
            Lexicons::Memory(fields) => {
                fields.iter().map(|values| (values.count(), values.value_bytes())).collect()
            }
            Lexicons::Files(fields) => {
                fields.iter().map(|values| (values.count, values.value_bytes)).collect()
            }
        }
    }

    /// Calls `each` with the values of a field, counted from 0.
    fn each(
        &self,
        field: usize,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self {
            Lexicons::Memory(fields) => fields[field].iter().try_for_each(each),
            Lexicons::Files(fields) => fields[field].each(each),
        }
    }
}

/// Takes the bytes of a member, piece by piece.
type Put<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Error>;

impl Parts {
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
        for (at, (count, bytes)) in self.lexicons.sizes().into_iter().enumerate() {
            let name = self.fields.name(at as u16 + 1).expect("one set of values for each field");
            let size = lexicon::size(count, bytes);
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
    fn write(&self, name: &str, put: Put<'_>) -> Result<(), Error> {
        match name {
            "version" => put(b"1"),
            "info" => put(&self.info.write()),
            "fields" => put(&self.fields.write()),
            "trails.codebook" => put(&self.codebook),
            "trails.toc" => {
                let mut toc = trails::TocWriter::new(self.trails.bytes() + trails::PADDING);
                put(toc.number(0))?;
                self.trails.trails(|_, end| put(toc.number(end)))
            }
            "trails.data" => {
                self.trails.data(&mut *put)?;
                put(&[0; trails::PADDING as usize])
            }
            "uuids" => self.trails.trails(|uuid, _| put(&uuid.0)),
            _ => {
                let field = name.strip_prefix("lexicon.").expect("every other member is a lexicon");
                let field = self.fields.find(field).expect("a lexicon of a field");
                let field = usize::from(field) - 1;
                let (count, bytes) = self.lexicons.sizes()[field];
                let mut head = lexicon::HeadWriter::new(count, bytes);
                put(head.count())?;
                put(head.start())?;
                self.lexicons.each(field, &mut |value| put(head.end(value.len() as u64)))?;
                self.lexicons.each(field, put)
            }
        }
    }
}

/// Writes the database to `path`. Returns its size in bytes.
pub(super) fn write(path: &Path, parts: &Parts, options: &Options) -> Result<u64, Error> {
    let failed = |source| Error::file(path, source);
    let (directory, replace) = (options.directory, !options.keep_existing);
    let unfinished = Unfinished::create(path, directory, replace).map_err(failed)?;
    let bytes = match directory {
        true => write_directory(path, unfinished.path(), parts)?,
        false => {
            let mut out = BufWriter::with_capacity(BUFFER_BYTES, unfinished.as_file());
            let bytes = write_package(parts, &mut |bytes| out.write_all(bytes).map_err(failed))?;
            out.flush().map_err(failed)?;
            bytes
        }
    };
    unfinished.place().map_err(failed)?;
    Ok(bytes)
}

/// Writes the package to a sink. Returns its size in bytes.
pub(super) fn write_to<S: Sink>(mut sink: S, parts: &Parts) -> Result<u64, Error> {
    let members = parts.members();
    let len = size(&members, &package::lay_out(&members));
    sink.begin(len).map_err(Error::Sink)?;
    write_package(parts, &mut |bytes| sink.write(bytes).map_err(Error::Sink))?;
    sink.finish().map_err(Error::Sink)?;
    Ok(len)
}

/// Writes a package, from its first byte to its last. Returns how many there are.
fn write_package(parts: &Parts, put: Put<'_>) -> Result<u64, Error> {
    let members = parts.members();
    let layout = package::lay_out(&members);
    for (member, before) in members.iter().zip(&layout.before) {
        put(before)?;
        match member.name.as_str() {
            "tar.toc" => put(&layout.index)?,
            name => parts.write(name, put)?,
        }
    }
    put(&layout.end)?;
    Ok(size(&members, &layout))
}

/// The size of a package.
fn size(members: &[Part], layout: &Layout) -> u64 {
    let between = layout.before.iter().map(Vec::len).sum::<usize>();
    let outside = between + layout.index.len() + layout.end.len();
    members.iter().map(|member| member.size).sum::<u64>() + outside as u64
}

fn write_directory(target: &Path, path: &Path, parts: &Parts) -> Result<u64, Error> {
    let failed = |source| Error::file(target, source);
    let mut bytes = 0;
    for member in parts.members() {
        if member.name == "tar.toc" {
            continue;
        }
        let file = File::create(path.join(&member.name)).map_err(failed)?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        parts.write(&member.name, &mut |bytes| out.write_all(bytes).map_err(failed))?;
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        bytes += member.size;
    }
    Ok(bytes)
}
