//! Plain HTTP over a folder, well-behaved or not: what HTTP clients are tested against.
//!
//! | path | what differs |
//! | --- | --- |
//! | `/name` | nothing: ranges, a strong `ETag`, `Last-Modified`, conditions |
//! | `/no-range/name` | ranges are ignored: always 200 with the whole body |
//! | `/no-etag/name` | no `ETag` |
//! | `/chunked/name` | no `Content-Length`, no ranges, no `ETag` |
//! | `/gzip/name` | compressed for whoever accepts it: a weak `ETag`, no ranges |
//! | `/redirect/name` | 302 to `/name` |

use std::{
    io::{self, Write},
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::stream;
use http_body_util::StreamBody;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::Frame,
    header::{self, HeaderName, HeaderValue},
};
use s3s::{Body, HttpResponse, dto::Range};

use crate::store;

/// How a path misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Good,
    NoRange,
    NoTag,
    Chunked,
    Gzip,
    Redirect,
}

/// Answers one request for a file under `root`.
pub(crate) fn answer(
    root: &Path,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> HttpResponse {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let (manner, name) = manner_of(path);
    if manner == Manner::Redirect {
        return with(status(StatusCode::FOUND), header::LOCATION, &format!("/{name}"));
    }
    match inside(root, name).map(|path| File::open(&path)) {
        Some(Ok(file)) => file.answer(manner, method, headers),
        Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            status(StatusCode::FORBIDDEN)
        }
        Some(Err(_)) | None => status(StatusCode::NOT_FOUND),
    }
}

fn manner_of(path: &str) -> (Manner, &str) {
    let path = path.trim_start_matches('/');
    let manners = [
        ("no-range/", Manner::NoRange),
        ("no-etag/", Manner::NoTag),
        ("chunked/", Manner::Chunked),
        ("gzip/", Manner::Gzip),
        ("redirect/", Manner::Redirect),
    ];
    let found =
        manners.iter().find_map(|(prefix, manner)| Some((*manner, path.strip_prefix(prefix)?)));
    found.unwrap_or((Manner::Good, path))
}

/// The file of a name, unless the name climbs out of the folder.
fn inside(root: &Path, name: &str) -> Option<PathBuf> {
    let name = PathBuf::from(crate::faults::decode(name));
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.as_os_str().is_empty()).then(|| root.join(name))
}

struct File {
    bytes: Bytes,
    tag: String,
    modified: SystemTime,
}

impl File {
    fn open(path: &Path) -> io::Result<File> {
        let stat = path.metadata()?;
        if !stat.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let modified = stat.modified()?;
        let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let tag = format!("\"{:x}-{:x}\"", since.as_nanos(), stat.len());
        // HTTP dates have whole seconds.
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
        Ok(File { bytes: store::map_file(path)?, tag, modified })
    }

    fn answer(&self, manner: Manner, method: &Method, headers: &HeaderMap) -> HttpResponse {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let zipped = manner == Manner::Gzip
            && text(header::ACCEPT_ENCODING).is_some_and(|accepted| accepted.contains("gzip"));
        let tag = match manner {
            Manner::NoTag | Manner::Chunked => None,
            _ if zipped => Some(format!("W/{}", self.tag)),
            _ => Some(self.tag.clone()),
        };
        let ranges = !zipped && !matches!(manner, Manner::NoRange | Manner::Chunked);
        let date = httpdate::fmt_http_date(self.modified);
        let describe = |response: HttpResponse| {
            let response = with(response, header::LAST_MODIFIED, &date);
            let response = match &tag {
                Some(tag) => with(response, header::ETAG, tag),
                None => response,
            };
            if ranges { with(response, header::ACCEPT_RANGES, "bytes") } else { response }
        };

        // The conditions, in the order of RFC 9110, section 13.2.2.
        let named = |list: &str| {
            list.split(',').any(|one| one.trim() == "*" || Some(one.trim()) == tag.as_deref())
        };
        let since = |name| text(name).and_then(|text| httpdate::parse_http_date(text).ok());
        let failed = match (text(header::IF_MATCH), since(header::IF_UNMODIFIED_SINCE)) {
            (Some(list), _) => !named(list),
            (None, Some(date)) => self.modified > date,
            (None, None) => false,
        };
        if failed {
            return status(StatusCode::PRECONDITION_FAILED);
        }
        let unchanged = match (text(header::IF_NONE_MATCH), since(header::IF_MODIFIED_SINCE)) {
            (Some(list), _) => named(list),
            (None, Some(date)) => self.modified <= date,
            (None, None) => false,
        };
        if unchanged {
            return describe(status(StatusCode::NOT_MODIFIED));
        }

        let applies = match text(header::IF_RANGE) {
            Some(tag_or_date) => tag_or_date == self.tag || tag_or_date == date,
            None => true,
        };
        let asked = text(header::RANGE).filter(|_| ranges && applies && method == Method::GET);
        let len = self.bytes.len() as u64;
        match asked.map(Range::parse) {
            // A range that is no range, or several, may be ignored.
            None | Some(Err(_)) => describe(self.whole(manner, zipped)),
            Some(Ok(range)) => match range.check(len) {
                Ok(range) => {
                    let text =
                        format!("bytes {}-{}/{len}", range.start, range.end.saturating_sub(1));
                    // Inside a `Bytes`, hence of `usize`.
                    let part = self.bytes.slice(range.start as usize..range.end as usize);
                    let mut response =
                        with(HttpResponse::new(part.into()), header::CONTENT_RANGE, &text);
                    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                    describe(response)
                }
                Err(_) => {
                    let response = status(StatusCode::RANGE_NOT_SATISFIABLE);
                    with(response, header::CONTENT_RANGE, &format!("bytes */{len}"))
                }
            },
        }
    }

    fn whole(&self, manner: Manner, zipped: bool) -> HttpResponse {
        if zipped {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            let zipped = encoder.write_all(&self.bytes).and_then(|()| encoder.finish());
            let zipped = zipped.expect("a vector takes every byte");
            return with(HttpResponse::new(zipped.into()), header::CONTENT_ENCODING, "gzip");
        }
        if manner == Manner::Chunked {
            // A stream of unknown length.
            let frame = Ok::<_, io::Error>(Frame::data(self.bytes.clone()));
            return HttpResponse::new(Body::http_body(StreamBody::new(stream::iter([frame]))));
        }
        HttpResponse::new(self.bytes.clone().into())
    }
}

fn status(status: StatusCode) -> HttpResponse {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn with(mut response: HttpResponse, name: HeaderName, value: &str) -> HttpResponse {
    // Everything that comes here is printable ASCII, but for a name of a file to redirect to.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_the_folder() {
        let root = Path::new("/files");
        let cases = [
            ("a/b", Some("/files/a/b")),
            ("a%20b", Some("/files/a b")),
            ("../a", None),
            ("a/%2e%2e/%2e%2e/b", None),
            ("%2fetc/passwd", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(inside(root, name), expected.map(PathBuf::from), "{name}");
        }
    }

    #[test]
    fn manners_are_told_by_the_path() {
        let cases = [
            ("/a/b", (Manner::Good, "a/b")),
            ("/no-range/a/b", (Manner::NoRange, "a/b")),
            ("/redirect/a", (Manner::Redirect, "a")),
        ];
        for (path, expected) in cases {
            assert_eq!(manner_of(path), expected, "{path}");
        }
    }
}
