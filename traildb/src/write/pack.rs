//! Members into a package or a directory, under another name until they are whole.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{encode::Encoded, model::Model, values::Values};
use crate::{
    container::package::{self, Part},
    error::Error,
    item::Uuid,
    member::{fields::Fields, info::Info, lexicon, trails},
};

/// What a database is made of, before it is written.
pub(super) struct Parts<'a> {
    pub(super) info: Info,
    pub(super) fields: &'a Fields,
    pub(super) values: &'a [Values],
    pub(super) model: Model,
    pub(super) encoded: Encoded,
    pub(super) uuids: Vec<Uuid>,
}

impl Parts<'_> {
    /// Names and sizes, in the order of a package. `tar.toc` is the third of them.
    fn members(&self) -> Vec<Part> {
        let part = |name: &str, size: u64| Part { name: name.to_owned(), size };
        let trails = self.uuids.len() as u64;
        let data = self.encoded.bytes.len() as u64 + trails::PADDING;
        let mut parts = vec![
            part("version", 1),
            part("info", self.info.write().len() as u64),
            part("tar.toc", 0),
        ];
        for (at, values) in self.values.iter().enumerate() {
            let name = self.fields.name(at as u16 + 1).expect("one set of values for each field");
            let size = lexicon::size(values.count(), values.bytes().len() as u64);
            parts.push(part(&format!("lexicon.{name}"), size));
        }
        parts.push(part("fields", self.fields.write().len() as u64));
        parts.push(part("trails.codebook", self.model.codebook().len() as u64));
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
            "trails.codebook" => out.write_all(&self.model.codebook()),
            "trails.toc" => {
                let data = self.encoded.bytes.len() as u64 + trails::PADDING;
                trails::write_toc(self.encoded.ends.iter().copied(), data, |b| out.write_all(b))
            }
            "trails.data" => {
                out.write_all(&self.encoded.bytes)?;
                out.write_all(&[0; trails::PADDING as usize])
            }
            "uuids" => self.uuids.iter().try_for_each(|uuid| out.write_all(&uuid.0)),
            _ => {
                let field = name.strip_prefix("lexicon.").expect("every other member is a lexicon");
                let field = self.fields.find(field).expect("a lexicon of a field");
                let values = &self.values[usize::from(field) - 1];
                lexicon::write_head(values.ends(), |b| out.write_all(b))?;
                out.write_all(values.bytes())
            }
        }
    }
}

/// Writes the database to `path`. Returns its size in bytes.
pub(super) fn write(path: &Path, parts: &Parts<'_>, directory: bool) -> Result<u64, Error> {
    let unfinished = unfinished(path);
    let told = |source| Error::file(path, source);
    remove(&unfinished).map_err(told)?;
    let written = match directory {
        true => write_directory(&unfinished, parts),
        false => write_package(&unfinished, parts),
    };
    let done = written.and_then(|bytes| {
        if directory && path.is_dir() {
            remove(path)?;
        }
        fs::rename(&unfinished, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(bytes)
    });
    done.map_err(|source| {
        // The first error is the one to tell.
        let _ = remove(&unfinished);
        told(source)
    })
}

/// The name until the database is whole: beside it, so that renaming stays within one file system.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_package(path: &Path, parts: &Parts<'_>) -> io::Result<u64> {
    let members = parts.members();
    let layout = package::lay_out(&members);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for (member, before) in members.iter().zip(&layout.before) {
        out.write_all(before)?;
        match member.name.as_str() {
            "tar.toc" => out.write_all(&layout.index)?,
            name => parts.write(name, &mut out)?,
        }
    }
    out.write_all(&layout.end)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

fn write_directory(path: &Path, parts: &Parts<'_>) -> io::Result<u64> {
    fs::create_dir(path)?;
    let mut bytes = 0;
    for member in parts.members() {
        if member.name == "tar.toc" {
            continue;
        }
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path.join(&member.name))?);
        parts.write(&member.name, &mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        bytes += member.size;
    }
    File::open(path)?.sync_all()?;
    Ok(bytes)
}
