//! What every leaf does to a range before its request, and to a body behind it.

use std::{
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use pager::{ByteStream, SourceError};
use tokio::time::{Instant, Sleep};

/// The longest wait that any timer of this crate is set to. `Duration::MAX` would overflow the
/// clock, and nobody tells a day from forever.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Refuses a range that is empty, reversed, or outside an object of `len` bytes.
pub(crate) fn check_range(object: &str, range: &Range<u64>, len: u64) -> Result<(), SourceError> {
    if range.start < range.end && range.end <= len {
        return Ok(());
    }
    Err(SourceError::bad_range(object, range.clone(), len))
}

/// Refuses a range that no object has: used where the length is not known yet.
pub(crate) fn check_shape(object: &str, range: &Range<u64>) -> Result<(), SourceError> {
    if range.start < range.end {
        return Ok(());
    }
    Err(SourceError::Permanent {
        object: object.to_owned(),
        reason: format!("bytes {}..{} are no range: it is empty", range.start, range.end),
        cause: None,
    })
}

/// A body with exactly the bytes of its range, none of which is long in coming.
///
/// Ends with [`SourceError::Corrupt`] where the inner body is short or long, and with
/// [`SourceError::Transient`] where it is silent for `stall`. Time in which nobody polls does not
/// count: a slow reader is not a slow source.
pub(crate) struct Body {
    object: String,
    range: Range<u64>,
    got: u64,
    stall: Duration,
    /// Made at the first wait, moved at later ones: most bodies arrive without any.
    silence: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    over: bool,
    inner: ByteStream,
}

impl Body {
    /// Wraps `inner`, which should be the bytes `range` of `object`.
    pub(crate) fn stream(
        object: &str,
        range: Range<u64>,
        stall: Duration,
        inner: ByteStream,
    ) -> ByteStream {
        Box::pin(Body {
            object: object.to_owned(),
            range,
            got: 0,
            stall: stall.min(WAIT_MAX),
            silence: None,
            waiting: false,
            over: false,
            inner,
        })
    }

    fn wanted(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn take(
        &mut self,
        item: Option<Result<Bytes, SourceError>>,
    ) -> Option<Result<Bytes, SourceError>> {
        self.waiting = false;
        let error = match item {
            Some(Ok(chunk)) => {
                self.got = self.got.saturating_add(chunk.len() as u64);
                if self.got <= self.wanted() {
                    return Some(Ok(chunk));
                }
                SourceError::long_body(&self.object, self.range.clone(), self.got)
            }
            Some(Err(error)) => error,
            None if self.got == self.wanted() => {
                self.over = true;
                return None;
            }
            None => SourceError::short_body(&self.object, self.range.clone(), self.got),
        };
        self.over = true;
        Some(Err(error))
    }

    fn silent_too_long(&mut self, context: &mut Context<'_>) -> bool {
        let until = Instant::now() + self.stall;
        let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if !self.waiting {
            self.waiting = true;
            silence.as_mut().reset(until);
        }
        silence.as_mut().poll(context).is_ready()
    }
}

impl Stream for Body {
    type Item = Result<Bytes, SourceError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let body = &mut *self;
        if body.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(item) = body.inner.as_mut().poll_next(context) {
            return Poll::Ready(body.take(item));
        }
        if !body.silent_too_long(context) {
            return Poll::Pending;
        }
        body.over = true;
        let reason =
            format!("no byte for {:?}, after {} of {} bytes", body.stall, body.got, body.wanted());
        let error = SourceError::transient_read(&body.object, body.range.clone(), reason, None);
        Poll::Ready(Some(Err(error)))
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};

    use super::*;

    fn chunks(sizes: &[usize]) -> ByteStream {
        let chunks: Vec<_> = sizes.iter().map(|&n| Ok(Bytes::from(vec![7; n]))).collect();
        Box::pin(stream::iter(chunks))
    }

    async fn drain(mut body: ByteStream) -> Result<usize, SourceError> {
        let mut got = 0;
        while let Some(chunk) = body.next().await {
            got += chunk?.len();
        }
        Ok(got)
    }

    #[tokio::test]
    async fn a_body_is_exact_or_corrupt() {
        let cases: [(&str, &[usize], Option<usize>); 5] = [
            ("one chunk", &[10], Some(10)),
            ("many chunks, one empty", &[4, 0, 6], Some(10)),
            ("one byte short", &[4, 5], None),
            ("one byte long", &[10, 1], None),
            ("nothing", &[], None),
        ];
        for (what, sizes, expected) in cases {
            let body = Body::stream("o", 5..15, Duration::from_secs(1), chunks(sizes));
            match (drain(body).await, expected) {
                (Ok(got), Some(expected)) => assert_eq!(got, expected, "{what}"),
                (Err(SourceError::Corrupt { .. }), None) => {}
                (got, _) => panic!("{what}: {got:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_body_and_a_slow_reader_does_not() {
        let inner = chunks(&[5]).chain(stream::pending());
        let mut body = Body::stream("o", 0..10, Duration::from_secs(3), Box::pin(inner));
        assert_eq!(body.next().await.expect("first chunk").expect("bytes").len(), 5);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before = Instant::now();
        let error = body.next().await.expect("an error").expect_err("silence");
        assert!(matches!(error, SourceError::Transient { .. }), "{error}");
        assert_eq!(before.elapsed().as_secs(), 3, "counted from the wait, not from the last chunk");
        assert!(body.next().await.is_none(), "an error ends the stream");
    }

    #[test]
    fn ranges_at_every_edge() {
        let cases = [
            ("whole", 0..10, true),
            ("last byte", 9..10, true),
            ("empty", 3..3, false),
            ("reversed", std::ops::Range { start: 5, end: 2 }, false),
            ("over the end", 9..11, false),
            ("past the end", 10..11, false),
            ("at the far end of numbers", u64::MAX - 1..u64::MAX, false),
        ];
        for (what, range, good) in cases {
            assert_eq!(check_range("o", &range, 10).is_ok(), good, "{what}");
        }
    }
}
