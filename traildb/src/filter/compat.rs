//! The text of filters as the C library's command reads it.
//!
//! ```text
//!   filter := clause { "&..." clause }      a word that starts with an & ends a clause
//!   clause := { word }                      words between blanks; of none, nothing matches
//!   word   := field ( "=" | "!=" ) value    the value goes to the blank, quotes and all
//! ```

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};

use super::{
    expr::{Expr, Leaf, Node, Values},
    place::{ParseError, Place},
};

/// Reads the text of a filter as the C library's command does: quotes, parentheses and negation mean
/// nothing, an empty clause matches nothing, and so does an empty text. The text need not be UTF-8.
///
/// ```
/// # fn main() -> Result<(), traildb::filter::ParseError> {
/// use traildb::filter::parse_compat;
///
/// parse_compat("user=alice user=bob && action!=login")?;
/// parse_compat(r#"page="Main"#)?; // with a quote in front
/// assert_eq!(parse_compat("user=alice time>2").unwrap_err().at(), 11);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ParseError`] names the first word without a `=`.
pub fn parse_compat(text: impl AsRef<[u8]>) -> Result<Expr, ParseError> {
    let text = text.as_ref();
    let source: Arc<[u8]> = text.into();
    let mut clauses = vec![Vec::new()];
    for word in text.split(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')) {
        if word.is_empty() {
            continue;
        }
        if word.starts_with(b"&") {
            clauses.push(Vec::new());
            continue;
        }
        let place =
            Place { text: source.clone(), at: word.as_ptr() as usize - text.as_ptr() as usize };
        let Some(equals) = word.iter().position(|&byte| byte == b'=') else {
            return Err(ParseError::new(place, "= or != and a value are expected in each word"));
        };
        let (name, value) = (&word[..equals], &word[equals + 1..]);
        let (field, negated) = match name.strip_suffix(b"!") {
            Some(field) => (field, true),
            None => (name, false),
        };
        let values = match value.strip_prefix(b"@") {
            Some(path) => Values::File(OsStr::from_bytes(path).into()),
            None => Values::These(vec![value.to_vec()]),
        };
        // What is no UTF-8 is no field's name, and stays none.
        let field = String::from_utf8_lossy(field).into();
        let leaf = Node::Leaf(Leaf { field, values, place: Some(place) });
        let last = clauses.last_mut().expect("there is always one");
        last.push(if negated { Node::not(leaf) } else { leaf });
    }
    Ok(Expr(Node::all(clauses.into_iter().map(Node::any).collect())))
}
