//! Objects in buckets.
//!
//! ```text
//!   s3://bucket/2016-*/*.tdb  -->  keys that start with `2016-`, 1000 to a page --> those that match
//!   s3://bucket/2016-01/      -->  keys that start with `2016-01/`              --> the members, or .tdb
//! ```

use std::ffi::OsString;

use super::{Expand, ExpandError};

impl Expand {
    pub(super) fn of_url(&self, url: &str, found: &mut Vec<OsString>) -> Result<(), ExpandError> {
        let (place, _) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        let (scheme, rest) = place.split_once("://").unwrap_or(("", place));
        let in_bucket = scheme.eq_ignore_ascii_case("s3");
        let patterned = rest.contains(['*', '[']);
        if !in_bucket && patterned {
            return Err(ExpandError::Unlisted { place: format!("{scheme}://...") });
        }
        if !in_bucket || !(patterned || rest.ends_with('/')) {
            found.push(url.into());
            return Ok(());
        }
        self.of_bucket(url, patterned, found)
    }

    #[cfg(not(feature = "s3"))]
    fn of_bucket(&self, url: &str, _: bool, _: &mut Vec<OsString>) -> Result<(), ExpandError> {
        // It says that the feature is off.
        self.options.open(url)?;
        Err(ExpandError::Unlisted { place: "s3://...".to_owned() })
    }
}

#[cfg(feature = "s3")]
mod bucket {
    use std::{
        ffi::{OsStr, OsString},
        panic::resume_unwind,
        sync::Arc,
        thread,
    };

    use pager::SourceError;

    use super::super::{
        Expand, ExpandError,
        pattern::{Letter, Pattern, before_marks},
        without_options, without_secrets,
    };
    use crate::encoding::percent_decoded;

    /// The longest key that S3 takes has 1024 bytes; some that speak as it does take more. One beyond
    /// this is passed over.
    const KEY_BYTES_MAX: usize = 4096;

    /// What keys are looked for.
    enum Wanted {
        Matching(Pattern),
        /// Below this; and which members of one object are there.
        Below(String, Vec<bool>),
    }

    impl Expand {
        pub(super) fn of_bucket(
            &self,
            url: &str,
            patterned: bool,
            found: &mut Vec<OsString>,
        ) -> Result<(), ExpandError> {
            let place = without_options(url);
            let path = place.split_once("://").map_or(place, |(_, path)| path);
            let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
            let refuse = |reason: &str| {
                let (object, reason) = (without_secrets(url), reason.to_owned());
                SourceError::Permanent { object, reason, cause: None }
            };
            if bucket.is_empty() || bucket.contains(['*', '[']) {
                return Err(refuse("name one bucket, as in s3://bucket/2016-*/*").into());
            }
            let why = "the key is not percent-encoded UTF-8; write %25 for a percent sign";
            let letters = letters(key).ok_or_else(|| refuse(why))?;
            let text: String = letters.iter().map(|&(char, _)| char).collect();
            let prefix = before_marks(&letters);
            let mut wanted = match patterned {
                false => Wanted::Below(text, vec![false; self.members.len()]),
                true => Wanted::Matching(Pattern::parse(&letters).map_err(|(at, why)| {
                    ExpandError::Pattern { pattern: text, at: at + 1, why }
                })?),
            };
            let before = found.len();
            match self.look(url, bucket, &prefix, &mut wanted, found) {
                // Who may read may not be allowed to list. Then it can only be one object.
                Err(ExpandError::Source(_)) if !patterned && !key.is_empty() => {
                    found.truncate(before);
                    found.push(url.into());
                }
                done => done?,
            }
            if let Wanted::Below(_, members) = wanted
                && !key.is_empty()
                && !members.is_empty()
                && !members.contains(&false)
            {
                found.truncate(before);
                found.push(url.into());
            }
            Ok(())
        }

        /// Looks at all keys that start with `prefix`.
        fn look(
            &self,
            url: &str,
            bucket: &str,
            prefix: &str,
            wanted: &mut Wanted,
            found: &mut Vec<OsString>,
        ) -> Result<(), ExpandError> {
            let (aws, policy) = self.options.s3_bucket(url)?;
            let options = &url[without_options(url).len()..];
            let mut looked = 0;
            let each = |key: &str, _| {
                looked += 1;
                if looked > self.looked_max {
                    let url = OsStr::new(url);
                    return Err(self.too_many(url, self.looked_max, "keys are to be looked at"));
                }
                if key.len() <= KEY_BYTES_MAX && self.is_wanted(key, wanted) {
                    found.push(format!("s3://{bucket}/{}{options}", encoded(key)).into());
                    self.check(OsStr::new(url), found.len())?;
                }
                Ok(())
            };
            // A thread of a runtime may not wait for another runtime.
            thread::scope(|scope| {
                let work = || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build();
                    let runtime = runtime.map_err(|error| SourceError::Permanent {
                        object: without_secrets(url),
                        reason: "there can be no runtime for requests".to_owned(),
                        cause: Some(Arc::new(error)),
                    })?;
                    runtime.block_on(crate::s3::list_each(bucket, prefix, &aws, &policy, each))
                };
                scope.spawn(work).join().unwrap_or_else(|panic| resume_unwind(panic))
            })
        }

        fn is_wanted(&self, key: &str, wanted: &mut Wanted) -> bool {
            let name = key.rsplit('/').next().unwrap_or(key);
            match wanted {
                Wanted::Matching(pattern) => self.is_one(name) && pattern.matches(key),
                Wanted::Below(directory, members) => {
                    let within = key.strip_prefix(directory.as_str());
                    let named = self.members.iter().zip(members);
                    named.filter(|(name, _)| within == Some(name)).for_each(|(_, is)| *is = true);
                    self.ends_well(name)
                }
            }
        }
    }

    /// The characters of a key as it stands in an address. What is percent-encoded means itself.
    fn letters(key: &str) -> Option<Vec<Letter>> {
        let mut letters = Vec::with_capacity(key.len());
        let mut rest = key;
        while let Some(char) = rest.chars().next() {
            if char != '%' {
                letters.push((char, false));
                rest = &rest[char.len_utf8()..];
                continue;
            }
            // The bytes of one character may be encoded one by one.
            let mut len = 0;
            while rest[len..].starts_with('%') {
                rest.get(len..len + 3)?;
                len += 3;
            }
            letters.extend(percent_decoded(&rest[..len])?.chars().map(|char| (char, true)));
            rest = &rest[len..];
        }
        Some(letters)
    }

    /// A key as it stands in an address: what would mean something there is percent-encoded.
    fn encoded(key: &str) -> String {
        key.replace('%', "%25").replace('?', "%3F").replace('#', "%23")
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_encoded_means_itself() {
            let of = |text: &str| {
                let letters = letters(text)?;
                Some((letters.iter().map(|letter| letter.0).collect(), before_marks(&letters)))
            };
            let cases = [
                ("a/b*", Some(("a/b*", "a/b"))),
                ("a%2Ab*", Some(("a*b*", "a*b"))),
                ("%5b%C3%A4%3f[x]", Some(("[\u{e4}?[x]", "[\u{e4}?"))),
                ("a%", None),
                ("a%\u{e4}", None),
                ("%C3", None),
            ];
            for (text, expected) in cases {
                let expected = expected.map(|(all, start)| (all.to_owned(), start.to_owned()));
                assert_eq!(of(text), expected, "{text}");
            }
            assert_eq!(encoded("a %?#*"), "a %25%3F%23*");
        }

        #[test]
        fn urls_that_are_not_listed_stay_as_they_are() {
            let expand = Expand::new(".tdb");
            for url in
                ["s3://b/k.tdb?region=x*", "http://h/a.tdb?x=*", "http://h/db/", "file:///a.tdb"]
            {
                assert_eq!(expand.names(&[url]).expect(url), [url]);
            }
            for url in ["http://h/*.tdb?secret=1", "file:///x/*.tdb", "gs://b/*.tdb"] {
                let error = expand.names(&[url]).expect_err(url);
                assert!(matches!(error, ExpandError::Unlisted { .. }), "{url}: {error}");
                assert!(!error.to_string().contains("secret"), "{error}");
            }
            for url in ["s3://b*/x.tdb", "s3:///*.tdb", "s3://b/*%.tdb", "s3://b/*?colour=red"] {
                let error = expand.names(&[url]).expect_err(url);
                assert!(matches!(error, ExpandError::Source(_)), "{url}: {error}");
            }
            let error = expand.names(&["s3://b/%5b*[x"]).expect_err("no pattern");
            let ExpandError::Pattern { pattern, at, .. } = error else { panic!("{error}") };
            assert_eq!((&pattern[..], at), ("[*[x", 3));
        }
    }
}
