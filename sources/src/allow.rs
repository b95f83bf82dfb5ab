//! Which addresses may be opened: for programs that open what strangers name.
//!
//! ```text
//!   s3://logs            bucket `logs`, and no other       (not s3://logs2)
//!   s3://logs/2026/      what starts with that
//!   https://host/data/   that host and port, below /data/  (redirects, too)
//!   file:///srv/data     what really lies there, whatever links say
//! ```
//!
//! A prefix ends where a name ends: at a `/`, or with the address. Addresses are compared in one
//! spelling, and one that a server may read in two ways (`..`, encoded slashes) is refused. So are
//! options that could lead elsewhere (`endpoint`, `profile`, `ca`, `cache`): only `region` and
//! `version_id` are taken from a stranger.

use std::{
    fs,
    path::{Path, PathBuf},
};

use url::Url;

use crate::encoding::percent_decoded;

/// Prefixes of addresses, in one spelling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    prefixes: Vec<String>,
    folders: Vec<PathBuf>,
}

impl AllowList {
    /// Nothing is allowed.
    pub fn new() -> AllowList {
        AllowList::default()
    }

    /// Allows what starts with `prefix`: `s3://`, `s3://bucket/key`, `https://host/path`,
    /// `file:///folder`.
    ///
    /// # Errors
    /// What is wrong with it, in a few words. A folder must exist.
    pub fn allow(mut self, prefix: &str) -> Result<AllowList, String> {
        let (scheme, rest) = split(prefix).ok_or("a prefix starts with s3:// or the like")?;
        match scheme.as_str() {
            "file" => {
                let path = file_path(rest).ok_or("a folder is file:///absolute/path")?;
                let real = fs::canonicalize(&path)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                self.folders.push(real);
            }
            "s3" | "gs" | "az" | "http" | "https" if rest.is_empty() => {
                self.prefixes.push(format!("{scheme}://"));
            }
            _ => self.prefixes.push(spelled(prefix)?),
        }
        Ok(self)
    }

    /// Whether an address of an object elsewhere may be opened.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, url: &str) -> Result<(), String> {
        let name = spelled(url)?;
        let inside = |prefix: &String| {
            name.strip_prefix(prefix.as_str()).is_some_and(|rest| {
                rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/')
            })
        };
        match self.prefixes.iter().any(inside) {
            true => Ok(()),
            false => Err("this address is not allowed here".to_owned()),
        }
    }

    /// Where files may lie.
    pub(crate) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Whether a real path, without links, may be read.
    pub(crate) fn has_file(folders: &[PathBuf], real: &Path) -> bool {
        folders.iter().any(|folder| real.starts_with(folder))
    }
}

/// Options that a stranger may give.
pub(crate) fn is_harmless(option: &str) -> bool {
    matches!(option, "region" | "version_id")
}

fn split(url: &str) -> Option<(String, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    Some((scheme.to_ascii_lowercase(), rest))
}

fn file_path(rest: &str) -> Option<PathBuf> {
    percent_decoded(rest).filter(|path| path.starts_with('/')).map(PathBuf::from)
}

/// The one spelling of an address: without options, query and fragment, decoded where decoding is
/// harmless.
fn spelled(url: &str) -> Result<String, String> {
    let (scheme, rest) = split(url).ok_or("this is no address")?;
    match scheme.as_str() {
        "s3" | "gs" | "az" => {
            let path = rest.split('?').next().unwrap_or("");
            let path = percent_decoded(path).ok_or("the address is not well encoded")?;
            if has_dots(&path) {
                return Err("`.` and `..` are no names here".to_owned());
            }
            Ok(format!("{scheme}://{path}"))
        }
        "http" | "https" => {
            let mut url = Url::parse(url).map_err(|error| error.to_string())?;
            if !url.username().is_empty() || url.password().is_some() {
                return Err("an address with a password is not taken from others".to_owned());
            }
            // What the address says before anybody resolves it, and what servers may read in it.
            let raw = rest.split(['?', '#']).next().unwrap_or("");
            let mut path = raw.to_owned();
            for _ in 0..4 {
                let decoded = percent_decoded(&path).ok_or("the address is not well encoded")?;
                let slashes = |text: &str| text.matches(['/', '\\']).count();
                if has_dots(&decoded) || decoded.contains('\\') || slashes(&decoded) != slashes(raw)
                {
                    return Err("an address that can be read in two ways is refused".to_owned());
                }
                if decoded == path {
                    break;
                }
                path = decoded;
            }
            url.set_query(None);
            url.set_fragment(None);
            Ok(url.into())
        }
        _ => Err("there is no such kind of address here".to_owned()),
    }
}

fn has_dots(path: &str) -> bool {
    path.split(['/', '\\']).any(|part| part == "." || part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(prefixes: &[&str]) -> AllowList {
        prefixes.iter().fold(AllowList::new(), |list, prefix| list.allow(prefix).expect("a prefix"))
    }

    #[test]
    fn what_is_inside_and_what_only_looks_like_it() {
        let list = list(&["s3://logs", "s3://data/2026/", "https://host/pub/", "http://h:8080"]);
        let cases = [
            ("s3://logs/a", true),
            ("S3://logs/a?region=x", true),
            ("s3://logs/%61", true),
            ("s3://logs2/a", false),
            ("s3://LOGS/a", false),
            ("s3://data/2026/x", true),
            ("s3://data/2026", false),
            ("s3://data/2026x/y", false),
            ("s3://data/2026/../2025/x", false),
            ("s3://data/2026/%2e%2e/2025/x", false),
            ("s3://logs/../data/x", false),
            ("s3://logs%2F../x", false),
            ("gs://logs/a", false),
            ("https://host/pub/a", true),
            ("https://HOST:443/pub/a?q=../x", true),
            ("https://host/pub", false),
            ("https://host/public/a", false),
            ("http://host/pub/a", false),
            ("https://host.evil/pub/a", false),
            ("https://host/pub/../secret", false),
            ("https://host/pub/%2e%2e/secret", false),
            ("https://host/pub/%252e%252e/secret", false),
            ("https://host/pub/..%2fsecret", false),
            ("https://host/pub/a%2Fb", false),
            ("https://host/pub/..\\secret", false),
            ("https://host/pub/a%5cb", false),
            ("https://user:pw@host/pub/a", false),
            ("https://host@evil/pub/a", false),
            ("http://h:8080/x", true),
            ("http://h:80800/x", false),
            ("http://h/x", false),
            ("ftp://h/x", false),
            ("/etc/passwd", false),
            ("", false),
        ];
        for (url, expected) in cases {
            assert_eq!(list.check(url).is_ok(), expected, "{url}");
        }
        for all in ["s3://", "https://"] {
            let list = AllowList::new().allow(all).expect("a prefix");
            assert!(list.check(&format!("{all}any/thing")).is_ok());
            assert!(list.check("gs://any/thing").is_err());
        }
    }

    #[test]
    fn prefixes_that_mean_nothing_are_refused() {
        for prefix in ["", "s3", "s3:/x", "ftp://h/", "s3://a/../b", "file://relative", "http://[/"]
        {
            assert!(AllowList::new().allow(prefix).is_err(), "{prefix}");
        }
        assert!(AllowList::new().allow("file:///there/is/no/such/folder").is_err());
    }
}
