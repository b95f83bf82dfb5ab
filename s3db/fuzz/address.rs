//! Text that claims to be the address of a database. No error shows what may be a secret in it.

#![no_main]

use s3db::Address;

/// In no address and in no error that was not given it.
const SECRET: &str = "x7Secret7x";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(Address::Directory(path)) = text.parse() {
        assert!(path.is_absolute(), "{text:?} is {path:?}");
    }
    for with in [format!("{text}?{SECRET}"), format!("{text}#{SECRET}")] {
        if let Err(error) = with.parse::<Address>() {
            assert!(!error.to_string().contains(SECRET), "{with:?}: {error}");
        }
    }
    let Some((scheme, rest)) = text.split_once("://") else { return };
    let with = format!("{scheme}://{SECRET}@{rest}");
    if let Err(error) = with.parse::<Address>() {
        assert!(!error.to_string().contains(SECRET), "{with:?}: {error}");
    }
});
