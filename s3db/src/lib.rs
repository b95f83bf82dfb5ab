//! s3db.
