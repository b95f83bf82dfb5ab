//! Answers that go wrong on demand, so that a client can be seen to cope.
//!
//! A test sets one fault for the requests that match it, with a probability and a number of times.
//! The draws come from a seed: the same requests in the same order fail the same way.
//!
//! The same switch is reachable over HTTP where the endpoint allows it:
//! `GET /__fault?mode=503&p=0.2&n=10&match=GET%20/bucket`, and `mode=off`.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{StatusCode, body::Frame, header};
use s3s::{Body, HttpResponse};

use crate::line::Shape;

/// Longest a stall may last: a client's deadline must come first, and a test must end.
const STALL_MS_MAX: u64 = 600_000;
/// What a cut body may be late by, so that what precedes it is through.
const CUT_SPARE: Duration = Duration::from_millis(50);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `503 SlowDown` with `Retry-After: 1`, without doing what was asked.
    SlowDown,
    /// `500 InternalError`, without doing what was asked.
    InternalError,
    /// The connection closes without an answer, and nothing was done.
    Close,
    /// It is done, and the connection closes without an answer.
    CloseAfter,
    /// The body ends, with its connection, after so many bytes.
    Truncate(u64),
    /// One bit of the body's byte at this place is wrong.
    Corrupt(u64),
    /// The answer waits this long before it begins.
    Stall(Duration),
}

/// A fault and the requests that it hits.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub mode: Mode,
    /// How likely a matching request is hit, 0 to 1.
    pub probability: f64,
    /// How many requests are hit before the fault is spent; `None` never ends.
    pub times: Option<u64>,
    /// Only requests whose `METHOD /path?query` contains this.
    pub matching: String,
}

impl Fault {
    /// A fault that hits every request.
    pub fn always(mode: Mode) -> Fault {
        Fault { mode, probability: 1.0, times: None, matching: String::new() }
    }

    /// The same fault, spent after `times` hits.
    pub fn times(mut self, times: u64) -> Fault {
        self.times = Some(times);
        self
    }

    /// The same fault, only for requests whose `METHOD /path?query` contains `text`.
    pub fn matching(mut self, text: impl Into<String>) -> Fault {
        self.matching = text.into();
        self
    }

    /// Reads the query of `/__fault`. `None` is `mode=off`.
    ///
    /// # Errors
    /// A sentence that names what is not understood.
    pub fn parse(query: &str) -> Result<Option<Fault>, String> {
        let mut fault = Fault::always(Mode::Close);
        let (mut mode, mut at, mut ms) = (None, 0, 1_000);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value);
            let number = || value.parse().map_err(|_| format!("{name}={value}: not a number"));
            match name {
                "mode" => mode = Some(value),
                "at" => at = number()?,
                "ms" => ms = number()?.min(STALL_MS_MAX),
                "n" => fault.times = Some(number()?),
                "match" => fault.matching = value,
                "p" => match value.parse() {
                    Ok(p) if (0.0..=1.0).contains(&p) => fault.probability = p,
                    _ => return Err(format!("p={value}: use 0 to 1")),
                },
                _ => return Err(format!("{name}: use mode, p, n, match, at, ms")),
            }
        }
        fault.mode = match mode.as_deref() {
            Some("off") => return Ok(None),
            Some("503") => Mode::SlowDown,
            Some("500") => Mode::InternalError,
            Some("close") => Mode::Close,
            Some("close_after") => Mode::CloseAfter,
            Some("truncate") => Mode::Truncate(at),
            Some("corrupt") => Mode::Corrupt(at),
            Some("stall") => Mode::Stall(Duration::from_millis(ms)),
            _ => {
                let modes = "off, 503, 500, close, close_after, truncate, corrupt, stall";
                return Err(format!("mode={}: use {modes}", mode.unwrap_or_default()));
            }
        };
        Ok(Some(fault))
    }
}

/// The fault that is on, and the draws that decide whom it hits.
pub struct Faults {
    state: Mutex<State>,
}

struct State {
    fault: Option<Fault>,
    random: u64,
    hits: u64,
}

impl Faults {
    /// No fault. Equal seeds draw equally.
    pub fn new(seed: u64) -> Faults {
        // The generator stands still at zero.
        Faults { state: Mutex::new(State { fault: None, random: seed.max(1), hits: 0 }) }
    }

    /// Turns a fault on in place of the one before, or off, and forgets the hits.
    pub fn set(&self, fault: Option<Fault>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.fault, state.hits) = (fault, 0);
    }

    /// Requests hit since the last `set`.
    pub fn hits(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).hits
    }

    /// Decides about one request, described as `METHOD /path?query`.
    pub(crate) fn draw(&self, request: &str) -> Option<Mode> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let fault = state.fault.as_ref()?;
        if !request.contains(&fault.matching) || fault.times.is_some_and(|n| state.hits >= n) {
            return None;
        }
        // Marsaglia's xorshift, shifts 13, 7, 17.
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= state.random << 17;
        let drawn = (state.random >> 11) as f64 / (1u64 << 53) as f64;
        if drawn >= fault.probability {
            return None;
        }
        state.hits += 1;
        Some(fault.mode)
    }
}

/// The answer of a server that refuses to work.
pub(crate) fn refusal(mode: Mode) -> HttpResponse {
    let (status, code) = match mode {
        Mode::SlowDown => (StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    };
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <Error><Code>{code}</Code><Message>a fault that was asked for</Message></Error>"
    );
    let mut response = HttpResponse::new(Body::from(xml));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/xml"));
    if mode == Mode::SlowDown {
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

/// Damages the body of an answer. Its head, with the length it promised, stays.
///
/// A body that fails takes the connection with it at once, and what is still buffered is lost. So a
/// cut comes only when `shape` has had the time to let through what precedes it.
pub(crate) async fn damage(mode: Mode, response: HttpResponse, shape: Shape) -> HttpResponse {
    let (head, body) = response.into_parts();
    let whole = match BodyExt::collect(body).await {
        Ok(whole) => whole.to_bytes(),
        // Bodies are slices of memory; one that fails is broken enough.
        Err(_) => Bytes::new(),
    };
    let body = match mode {
        Mode::Truncate(at) if at < whole.len() as u64 => {
            let cut = whole.slice(..at as usize);
            let seconds = shape.rate.map_or(0.0, |rate| at as f64 / rate as f64);
            let leaving = shape.first_byte + Duration::from_secs_f64(seconds) + CUT_SPARE;
            let broken = stream::iter([Ok(Frame::data(cut))]).chain(stream::once(async move {
                tokio::time::sleep(leaving).await;
                Err(io::Error::other("cut short on demand"))
            }));
            Body::http_body(StreamBody::new(broken))
        }
        Mode::Corrupt(at) if at < whole.len() as u64 => {
            let mut bytes = whole.to_vec();
            bytes[at as usize] ^= 1;
            Body::from(bytes)
        }
        _ => Body::from(whole),
    };
    HttpResponse::from_parts(head, body)
}

/// Decodes `%41` and `+`; what is no escape stays as it is.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let value = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_parse_or_say_what_is_wrong() {
        let stall = Mode::Stall(Duration::from_millis(50));
        let cases = [
            ("mode=off", Ok(None)),
            ("mode=503&n=2", Ok(Some(Fault::always(Mode::SlowDown).times(2)))),
            ("mode=stall&ms=50", Ok(Some(Fault::always(stall)))),
            (
                "mode=truncate&at=7&match=GET%20/b+c",
                Ok(Some(Fault::always(Mode::Truncate(7)).matching("GET /b c"))),
            ),
            ("p=2&mode=500", Err("p=2: use 0 to 1")),
            ("p=NaN&mode=500", Err("p=NaN: use 0 to 1")),
            ("n=x&mode=500", Err("n=x: not a number")),
            ("what=1", Err("what: use mode, p, n, match, at, ms")),
        ];
        for (query, expected) in cases {
            assert_eq!(Fault::parse(query), expected.map_err(str::to_owned), "{query}");
        }
        assert!(Fault::parse("mode=melt").unwrap_err().contains("use off, 503"));
    }

    #[test]
    fn a_fault_hits_what_matches_as_often_as_it_may() {
        let faults = Faults::new(1);
        faults.set(Some(Fault::always(Mode::Close).times(2).matching("GET")));
        let drawn = ["PUT /b", "GET /b", "GET /b", "GET /b"].map(|request| faults.draw(request));
        assert_eq!(drawn, [None, Some(Mode::Close), Some(Mode::Close), None]);
        assert_eq!(faults.hits(), 2);
    }

    #[test]
    fn equal_seeds_draw_equally_and_near_the_probability() {
        let run = |seed| {
            let faults = Faults::new(seed);
            faults.set(Some(Fault { probability: 0.2, ..Fault::always(Mode::Close) }));
            (0..10_000).map(|_| faults.draw("GET /").is_some()).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        let hits = run(7).iter().filter(|hit| **hit).count();
        assert!((1_800..2_200).contains(&hits), "{hits} of 10000 at p=0.2");
    }
}
