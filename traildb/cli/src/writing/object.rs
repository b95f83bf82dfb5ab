//! A database into a bucket: in parts, complete or not at all.

use std::io::{self, Write};

use pager::{Pager, SourceError};
use sources::s3::upload::{Upload, UploadOptions};
use traildb::{Builder, Sink, Written};

use crate::failure::Failure;

/// That a database can be written to `url`, and that nothing is there: before the work, not after.
pub(super) fn check(url: &str) -> Result<(), Failure> {
    let options = sources::Options::default();
    let (bucket, key, _) = options.s3_place(url)?;
    let pager = Pager::builder().build()?;
    match pager.open(options.open(url)?) {
        Ok(_) => {
            let name = format!("s3://{bucket}/{key}");
            Err(Failure::Failed(format!("{name}: exists already, and is not overwritten")))
        }
        // Who may write need not be allowed to read.
        Err(pager::Error::Source(SourceError::NotFound { .. } | SourceError::Denied { .. })) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes the database to `url`.
pub(super) fn write(url: &str, builder: Builder) -> Result<Written, Failure> {
    Ok(builder.finish_to(Object { url, upload: None })?)
}

struct Object<'u> {
    url: &'u str,
    upload: Option<Upload>,
}

impl Object<'_> {
    fn upload(upload: Option<Upload>) -> io::Result<Upload> {
        upload.ok_or_else(|| io::Error::other("nothing was begun"))
    }
}

impl Sink for Object<'_> {
    fn begin(&mut self, len: u64) -> io::Result<()> {
        let place = sources::Options::default().s3_place(self.url).map_err(io::Error::other)?;
        let (bucket, key, aws) = place;
        let upload = Upload::begin(&bucket, &key, &aws, len, UploadOptions::default());
        self.upload = Some(upload.map_err(io::Error::other)?);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.upload {
            Some(upload) => upload.write_all(bytes),
            None => Object::upload(None).map(drop),
        }
    }

    fn finish(self) -> io::Result<()> {
        Object::upload(self.upload)?.finish().map_err(io::Error::other)
    }
}
