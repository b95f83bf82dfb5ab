//! Objects behind any HTTP server that serves ranges.
//!
//! ```text
//!   stat:  HEAD ------------------> 200, Content-Length, ETag, Accept-Ranges
//!          (refused? no ranges?)
//!          GET bytes=0-0 ---------> 206, Content-Range: bytes 0-0/LENGTH
//!   read:  GET bytes=a-b, If-Match --> 206, Content-Range checked, body exact
//! ```
//!
//! **Version.** A strong `ETag` is pinned: every read sends `If-Match` and `If-Range` and compares
//! the tag that comes back. Without one the version is weak: the weak tag, `Last-Modified` (with
//! `If-Unmodified-Since`) and the length, as far as they are told.
//!
//! **Ranges.** A server that ignores them is refused when the object is opened, by an error that
//! says so: each read would bring the whole object.
//!
//! **Redirects** are followed up to ten times, and the place found is remembered until it fails or
//! the object is opened again. Credentials and custom headers never go to another origin, and no
//! redirect leads from `https` to `http`.
//!
//! **Integrity.** Length, place and version of every answer are checked; its bytes are not, since
//! HTTP knows no checksum of a range. Over `https` a byte that changes on the way breaks the
//! connection; over `http` nobody notices but a checksum in the object itself.
//!
//! **Proxies** are taken from the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).

mod answer;
mod client;

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::TryStreamExt;
use pager::{BlockSource, ByteStream, ObjectStat, SourceError, Strength, Version};
use reqwest::{
    Method, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_RANGE,
        IF_UNMODIFIED_SINCE, LOCATION, RANGE,
    },
};
use url::Url;

use self::answer::{Answer, Validators};
pub use self::client::{Client, ClientOptions};
use crate::{
    allow::AllowList,
    body::{Body, WAIT_MAX, check_range, check_shape},
    encoding::{base64, chain_text, percent_decoded},
    wire,
};

/// More than any sane chain of redirects, and few enough to end a loop at once.
const REDIRECTS_MAX: usize = 10;

/// Who asks: added to requests to the origin of the URL, and to no other.
#[derive(Clone, Default)]
pub struct Credentials {
    headers: HeaderMap,
}

impl Credentials {
    /// Whether nothing is sent besides the requests themselves.
    pub(crate) fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Adds a header of your own.
    ///
    /// # Errors
    /// When name or value are no header, or a header that the source needs for itself.
    pub fn header(mut self, name: &str, value: &str) -> Result<Credentials, SourceError> {
        let refuse = |why: &str| SourceError::Permanent {
            object: format!("header {name:?}"),
            reason: why.to_owned(),
            cause: None,
        };
        let key: HeaderName = name.parse().map_err(|_| refuse("this is no name of a header"))?;
        let own = [RANGE, IF_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, ACCEPT_ENCODING];
        if own.contains(&key) {
            return Err(refuse("the source sets this header itself"));
        }
        let mut value = HeaderValue::from_str(value).map_err(|_| refuse("its value is no text"))?;
        value.set_sensitive(true);
        self.headers.insert(key, value);
        Ok(self)
    }

    /// Signs in with a name and a password (RFC 7617).
    ///
    /// # Errors
    /// When the name holds a colon.
    pub fn basic(self, user: &str, password: &str) -> Result<Credentials, SourceError> {
        if user.contains(':') {
            return Err(SourceError::Permanent {
                object: "basic authentication".to_owned(),
                reason: "a user's name cannot hold a colon".to_owned(),
                cause: None,
            });
        }
        let token = base64(format!("{user}:{password}").as_bytes());
        self.header(AUTHORIZATION.as_str(), &format!("Basic {token}"))
    }

    /// Signs in with a token (RFC 6750).
    ///
    /// # Errors
    /// When the token cannot stand in a header.
    pub fn bearer(self, token: &str) -> Result<Credentials, SourceError> {
        self.header(AUTHORIZATION.as_str(), &format!("Bearer {token}"))
    }
}

/// An object behind an `http://` or `https://` address. Makes one attempt; wrap it in
/// [`Retry`](crate::Retry).
pub struct Http {
    name: String,
    url: Url,
    client: Client,
    credentials: Credentials,
    /// Where redirects may lead. `None`: anywhere.
    allow: Option<Arc<AllowList>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where the redirects led last time.
    place: Option<Url>,
    /// What `stat` found: the length for which `Content-Range` is checked.
    known: Option<(Version, u64)>,
}

impl Http {
    /// A source for `url`. Nothing is sent before the first `stat` or `read`.
    ///
    /// `user:password@` in the address becomes basic authentication; the fragment is ignored; the
    /// query belongs to the server and stays out of the source's name, since it may be a signature.
    ///
    /// # Errors
    /// When `url` is no address of `http` or `https`, or its credentials cannot be sent.
    pub fn new(url: &str, client: Client, credentials: Credentials) -> Result<Http, SourceError> {
        let refuse = |reason: String| SourceError::Permanent {
            // The text may hold a password, so it is not repeated.
            object: "http address".to_owned(),
            reason,
            cause: None,
        };
        let mut url =
            Url::parse(url).map_err(|error| refuse(format!("it cannot be understood: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(refuse(format!("it is no http address but {}:", url.scheme())));
        }
        url.set_fragment(None);
        let mut credentials = credentials;
        if !url.username().is_empty() || url.password().is_some() {
            let user = decoded(url.username());
            let password = decoded(url.password().unwrap_or(""));
            credentials = credentials.basic(&user, &password)?;
            let cleared = url.set_username("").and_then(|()| url.set_password(None));
            cleared.expect("an address with a host can lose its user");
        }
        let mut shown = url.clone();
        shown.set_query(None);
        let name = match url.query() {
            Some(_) => format!("{shown}?..."),
            None => shown.to_string(),
        };
        Ok(Http { name, url, client, credentials, allow: None, state: Mutex::default() })
    }

    /// The same, with redirects followed only to addresses on this list.
    pub fn within(self, list: Arc<AllowList>) -> Http {
        Http { allow: Some(list), ..self }
    }

    fn place(&self) -> Option<Url> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).place.clone()
    }

    fn remember_place(&self, place: Option<Url>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).place = place;
    }

    fn known_len(&self, version: &Version) -> Option<u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.known.as_ref().filter(|(known, _)| known == version).map(|(_, len)| *len)
    }

    /// Sends a request and follows its redirects, within the time allowed for a first byte.
    async fn send(&self, ask: &Ask<'_>) -> Result<Response, SourceError> {
        let wait = self.client.first_byte().min(WAIT_MAX);
        let answer = tokio::time::timeout(wait, self.follow(ask)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(ask.transient(&self.name, format!("no answer for {wait:?}"), None))
        });
        if !answer.as_ref().is_ok_and(|response| !response.status().is_server_error()) {
            // It may be gone for good, and the start may know another.
            self.remember_place(None);
        }
        answer
    }

    /// From the remembered place if there is one. When that place refuses (its address may have
    /// been signed for a few minutes), the way is looked for again from the start.
    async fn follow(&self, ask: &Ask<'_>) -> Result<Response, SourceError> {
        let Some(place) = self.place() else {
            return self.follow_from(self.url.clone(), ask).await;
        };
        let response = self.follow_from(place, ask).await?;
        if !matches!(response.status().as_u16(), 400 | 401 | 403 | 404 | 410) {
            return Ok(response);
        }
        self.remember_place(None);
        self.follow_from(self.url.clone(), ask).await
    }

    async fn follow_from(&self, start: Url, ask: &Ask<'_>) -> Result<Response, SourceError> {
        let mut at = start;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send_once(&at, ask).await?;
            let Some(next) = self.redirect(&at, &response)? else {
                if at != self.url {
                    self.remember_place(Some(at));
                }
                return Ok(response);
            };
            at = next;
        }
        Err(self.permanent(format!("more than {REDIRECTS_MAX} redirects")))
    }

    async fn send_once(&self, at: &Url, ask: &Ask<'_>) -> Result<Response, SourceError> {
        let mut request = self.client.request(ask.method.clone(), at.clone());
        // No compression: its offsets are not those of the object.
        request = request.header(ACCEPT_ENCODING, "identity");
        if at.origin() == self.url.origin() {
            request = request.headers(self.credentials.headers.clone());
        }
        if let Some(range) = &ask.range {
            request = request.header(RANGE, wire::range_header(range));
        }
        for (name, value) in &ask.conditions {
            request = request.header(name, *value);
        }
        request.send().await.map_err(|error| self.transport(error, ask))
    }

    /// Where the answer sends us, if it does.
    fn redirect(&self, at: &Url, response: &Response) -> Result<Option<Url>, SourceError> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let next = location.and_then(|location| at.join(location).ok());
        let Some(mut next) = next.filter(|next| matches!(next.scheme(), "http" | "https")) else {
            return Err(self.permanent("a redirect that leads nowhere".to_owned()));
        };
        if at.scheme() == "https" && next.scheme() == "http" {
            return Err(self.permanent("a redirect from https to http is not followed".to_owned()));
        }
        if let Some(list) = &self.allow
            && list.check(next.as_str()).is_err()
        {
            return Err(self.permanent("a redirect to an address that is not allowed".to_owned()));
        }
        next.set_fragment(None);
        Ok(Some(next))
    }

    fn permanent(&self, reason: String) -> SourceError {
        SourceError::Permanent { object: self.name.clone(), reason, cause: None }
    }

    /// A request that got no answer.
    fn transport(&self, error: reqwest::Error, ask: &Ask<'_>) -> SourceError {
        // The address in the error may carry a signature.
        let error = error.without_url();
        let text = chain_text(&error);
        let hopeless = error.is_builder() || text.contains("invalid peer certificate");
        if hopeless {
            let advice = "if this server's certificate is to be trusted, name its authority's \
                          file with the option `ca`";
            let reason = if error.is_builder() { text } else { format!("{text}; {advice}") };
            let object = self.name.clone();
            return SourceError::Permanent { object, reason, cause: Some(Arc::new(error)) };
        }
        let reason = match error.is_connect() {
            true => format!("no connection: {text}"),
            false => text,
        };
        ask.transient(&self.name, reason, Some(Arc::new(error)))
    }

    /// Length and version from a first range, for servers that say too little to a HEAD.
    async fn stat_by_range(&self) -> Result<ObjectStat, SourceError> {
        let ask = Ask::get(0..1, Vec::new());
        let response = self.send(&ask).await?;
        let answer = Answer::new(&self.name, &response);
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                answer.check_encoding()?;
                let sent = answer.content_range(&(0..1))?;
                sent.check(&self.name, &(0..1), None)?;
                let Some(len) = sent.total else {
                    return Err(self.permanent("the server does not tell its length".to_owned()));
                };
                Ok(self.stat_of(len, answer.validators()))
            }
            // An empty object has no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE if answer.unsatisfied_len() == Some(0) => {
                Ok(self.stat_of(0, answer.validators()))
            }
            // No byte, or the one that was asked for: the whole object, with or without ranges.
            StatusCode::OK if response.content_length().is_some_and(|len| len < 2) => {
                answer.check_encoding()?;
                Ok(self.stat_of(response.content_length().unwrap_or(0), answer.validators()))
            }
            StatusCode::OK => Err(answer.ignores_ranges()),
            _ => Err(answer.failure("stat", None)),
        }
    }

    fn stat_of(&self, len: u64, validators: Validators) -> ObjectStat {
        let version = validators.version(len);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.known = Some((version.clone(), len));
        ObjectStat::new(len, version)
    }
}

/// One request, wherever redirects lead it.
struct Ask<'a> {
    method: Method,
    range: Option<Range<u64>>,
    conditions: Vec<(HeaderName, &'a str)>,
}

impl<'a> Ask<'a> {
    fn head() -> Ask<'a> {
        Ask { method: Method::HEAD, range: None, conditions: Vec::new() }
    }

    fn get(range: Range<u64>, conditions: Vec<(HeaderName, &'a str)>) -> Ask<'a> {
        Ask { method: Method::GET, range: Some(range), conditions }
    }

    fn transient(&self, object: &str, reason: String, cause: Option<pager::Cause>) -> SourceError {
        let what = if self.method == Method::HEAD { "stat" } else { "read" };
        let (object, range) = (object.to_owned(), self.range.clone());
        SourceError::Transient { object, what, range, attempts: 1, reason, cause }
    }
}

fn decoded(text: &str) -> String {
    percent_decoded(text).unwrap_or_else(|| text.to_owned())
}

#[async_trait]
impl BlockSource for Http {
    fn name(&self) -> &str {
        &self.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        // Where the object is today, not where the last one was.
        self.remember_place(None);
        let ask = Ask::head();
        let response = self.send(&ask).await?;
        let answer = Answer::new(&self.name, &response);
        match response.status() {
            StatusCode::OK => {}
            // Signed addresses allow one method only, and some servers know no HEAD.
            StatusCode::BAD_REQUEST
            | StatusCode::FORBIDDEN
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED => return self.stat_by_range().await,
            _ => return Err(answer.failure("stat", None)),
        }
        match answer.head_len() {
            Some(0) => Ok(self.stat_of(0, answer.validators())),
            Some(len) if answer.accepts_ranges() => Ok(self.stat_of(len, answer.validators())),
            _ => self.stat_by_range().await,
        }
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let len = self.known_len(version);
        match len {
            Some(len) => check_range(&self.name, &range, len)?,
            None => check_shape(&self.name, &range)?,
        }
        let conditions = match version.strength() {
            Strength::Strong => vec![(IF_MATCH, version.token()), (IF_RANGE, version.token())],
            Strength::Weak => Validators::modified_in(version)
                .map(|date| vec![(IF_UNMODIFIED_SINCE, date)])
                .unwrap_or_default(),
        };
        if conditions.iter().any(|(_, value)| HeaderValue::from_str(value).is_err()) {
            return Err(SourceError::Changed {
                object: self.name.clone(),
                expected: version.to_string(),
                found: "an object to which no such version can belong".to_owned(),
            });
        }
        let ask = Ask::get(range.clone(), conditions);
        let response = self.send(&ask).await?;
        let answer = Answer::new(&self.name, &response);
        let whole = range.start == 0 && len == Some(range.end);
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            // Some servers answer so when the range is the whole object.
            StatusCode::OK if whole && response.content_length() == len => {}
            StatusCode::OK => {
                // The answer to `If-Range` where the object is another one; else it is the answer
                // of a server without ranges.
                answer.check_version(version)?;
                return Err(answer.ignores_ranges());
            }
            StatusCode::PRECONDITION_FAILED => return Err(answer.changed(version)),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                answer.check_version_if_told(version)?;
                let found = answer.unsatisfied_len().or(len).unwrap_or(range.start);
                return Err(match len {
                    // It was inside the object when that was opened.
                    Some(_) => answer.changed(version),
                    None => SourceError::bad_range(&self.name, range, found),
                });
            }
            _ => return Err(answer.failure("read", Some(range))),
        }
        answer.check_encoding()?;
        let len = len.or_else(|| Validators::len_in(version));
        if response.status() == StatusCode::OK {
            answer.check_version_of(version, len)?;
        } else {
            let sent = answer.content_range(&range)?;
            answer.check_version_of(version, sent.total.or(len))?;
            sent.check(&self.name, &range, len)?;
        }
        if response.content_length().is_some_and(|body| body != range.end - range.start) {
            let got = response.content_length().unwrap_or(0);
            return Err(match got > range.end - range.start {
                true => SourceError::long_body(&self.name, range, got),
                false => SourceError::short_body(&self.name, range, got),
            });
        }
        let (object, part) = (self.name.clone(), range.clone());
        let chunks = response.bytes_stream().map_err(move |error| {
            let error = error.without_url();
            let reason = format!("the body broke: {}", chain_text(&error));
            SourceError::transient_read(&object, part.clone(), reason, Some(Arc::new(error)))
        });
        Ok(Body::stream(&self.name, range, self.client.stall(), Box::pin(chunks)))
    }
}

/// What a source waits for, unless told otherwise: connecting, the first byte, the next chunk.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
pub(crate) const FIRST_BYTE: Duration = Duration::from_secs(10);
pub(crate) const STALL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_no_secrets() {
        let cases = [
            ("http://host/a/b", "http://host/a/b"),
            ("http://u:secret@host:81/a", "http://host:81/a"),
            ("https://host/a?X-Signature=secret#part", "https://host/a?..."),
        ];
        let client = Client::new(&ClientOptions::default()).expect("a client");
        for (url, name) in cases {
            let source = Http::new(url, client.clone(), Credentials::default()).expect(url);
            assert_eq!(source.name(), name);
        }
        for bad in ["ftp://host/a", "http://", "nonsense"] {
            assert!(Http::new(bad, client.clone(), Credentials::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_of_the_source_cannot_be_set() {
        assert!(Credentials::default().header("x-token", "abc").is_ok());
        for (name, value) in [("Range", "bytes=0-1"), ("a b", "c"), ("x", "line\nbreak")] {
            assert!(Credentials::default().header(name, value).is_err(), "{name}");
        }
    }
}
