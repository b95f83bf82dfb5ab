//! Many objects by one name, in a bucket of more than one page.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, stream};
use sources::{AllowList, Expand, ExpandError, Options, SourceError};

use crate::servers::{Bucket, variable};

/// A page of a listing has 1000 keys.
const KEYS: usize = 1203;

fn expand() -> Expand {
    Expand::new(".tdb").members(&["info", "fields"]).except(|name| name.ends_with(".tdbidx"))
}

/// It is called on a thread of a runtime, as programs do that have one.
#[tokio::test]
async fn keys_of_more_than_one_page_are_found_by_pattern_and_prefix() {
    let Some(endpoint) = variable("TEST_S3_ENDPOINT", "patterns in S3") else { return };
    let bucket = Bucket::make(&endpoint, "expand").await;
    let month = |n: usize| format!("2016-{:02}/{n:05}.tdb", n % 12 + 1);
    let mut keys: Vec<String> = (0..KEYS).map(month).collect();
    let others = ["a*[1]%?#.tdb", "a.tdb", "notes", "2016-01/00000.tdb.tdbidx", "db/info"];
    keys.extend(others.map(str::to_owned));
    keys.extend(["db/fields", "db/lexicon.tdb", "no-db/info", "no-db/x.tdb"].map(str::to_owned));
    let puts = AtomicUsize::new(0);
    stream::iter(&keys)
        .for_each_concurrent(16, |key| async {
            bucket.put(key, b"").await;
            puts.fetch_add(1, Ordering::Relaxed);
        })
        .await;
    assert_eq!(puts.into_inner(), keys.len());

    let options = format!("?endpoint={endpoint}&region=us-east-1");
    let url = |key: &str| format!("s3://{}/{key}{options}", bucket.name);
    let names = |key: &str| expand().names(&[url(key)]).unwrap_or_else(|e| panic!("{key}: {e}"));
    let mut all: Vec<String> = (0..KEYS).map(month).collect();
    all.sort_unstable();
    let urls = |keys: &[String]| keys.iter().map(|key| url(key)).collect::<Vec<_>>();
    for pattern in ["2016-*/*.tdb", "**/0*.tdb", "2016-[01][0-9]/**", "2*-*/*[!x]"] {
        assert!(names(pattern) == urls(&all), "{pattern}: {:?}", names(pattern).len());
    }
    // Encoded marks are themselves, and what is found can be opened as it is named.
    for escaped in ["a%2A*.tdb", "a[*]*", "a*[[]1]*"] {
        assert_eq!(names(escaped), [url("a*[1]%25%3F%23.tdb")], "{escaped}");
    }
    assert_eq!(names("a%2A%5B1]%25%3F%23.tdb").len(), 1, "no pattern, so as it is");
    let first: Vec<String> =
        all.iter().filter(|key| key.starts_with("2016-01/")).cloned().collect();
    assert_eq!(names("2016-01/"), urls(&first));
    assert_eq!(names("db/"), [url("db/")], "one object of all its members");
    assert_eq!(names("no-db/"), [url("no-db/x.tdb")]);
    assert_eq!(names("").len(), KEYS + 4, "everything that ends in .tdb");

    let of = |expand: Expand, key: &str| expand.names(&[url(key)]).expect_err(key);
    for none in ["2017-*/*.tdb", "notes/", "2016-01/x*"] {
        let error = of(expand(), none);
        let ExpandError::Nothing { input } = &error else { panic!("{none}: {error}") };
        assert!(!input.contains("endpoint"), "{input}");
    }
    let error = of(expand().names_max(KEYS - 1), "2016-*/*.tdb");
    assert!(matches!(error, ExpandError::TooMany { max, .. } if max == KEYS - 1), "{error}");
    // A prefix with too many keys is no object of that name.
    for key in ["2016-*/*.tdb", "2016-01/"] {
        let error = of(expand().looked_max(90), key);
        assert!(matches!(error, ExpandError::TooMany { max: 90, .. }), "{error}");
    }
    // More than 10^100 ways to share a key among the stars, for each of more than a thousand keys.
    let hostile = format!("2016-*/{}x.tdb", "*0".repeat(100));
    assert!(matches!(of(expand(), &hostile), ExpandError::Nothing { .. }));

    let list = AllowList::new().allow("s3://elsewhere").expect("a prefix");
    let strict = expand().options(&Options::default().allow(list));
    let plain = format!("s3://{}/2016-*/*", bucket.name);
    let error = strict.names(&[plain]).expect_err("not allowed");
    assert!(matches!(error, ExpandError::Source(SourceError::Permanent { .. })), "{error}");
}
