//! What a connection costs: a delay to the first byte of each answer, a rate, a shared link.
//!
//! ```text
//!   last byte of the request read          bytes of the answer leave, at `rate`
//!   |<------- first_byte ----------------->|#####|#####|#####| - - >
//! ```
//!
//! The delay counts from the latest byte read that no answer has followed, so every request on a
//! kept connection pays it once. Bytes leave in pieces of about two milliseconds of the line; a
//! line that was idle, or a timer that came late, may catch up by as much and no more.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// How much of the line one write may take, and how far a late line may catch up. Timers tick each
/// millisecond: a smaller slice would lose rate, a larger one would be a burst.
const SLICE: Duration = Duration::from_millis(2);
/// Pieces are at least this large, so that a slow line does not write byte by byte.
const PIECE_BYTES_MIN: usize = 1 << 10;
/// Pieces are at most this large: what a socket takes at once on most systems.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// The shape of each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// From a request's last byte to the first byte of its answer.
    pub first_byte: Duration,
    /// Bytes per second of answers on one connection; `None` is as fast as the machine goes.
    pub rate: Option<u64>,
}

impl Shape {
    /// No delay and no bound.
    pub const UNSHAPED: Shape = Shape { first_byte: Duration::ZERO, rate: None };
}

impl Default for Shape {
    /// 30 ms and 90 MB/s: one connection to S3 from a machine in the same region.
    fn default() -> Shape {
        Shape { first_byte: Duration::from_millis(30), rate: Some(90_000_000) }
    }
}

/// A rate that several connections share, first come, first served.
#[derive(Clone)]
pub struct Link {
    rate: u64,
    free_at: Arc<Mutex<Instant>>,
}

impl Link {
    /// A link of `rate` bytes per second.
    ///
    /// # Panics
    /// When `rate` is zero.
    pub fn new(rate: u64) -> Link {
        assert!(rate > 0, "a link without a rate would never send");
        Link { rate, free_at: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Takes a place in the queue for `bytes` and says when it begins.
    fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*free_at).max(now - SLICE);
        *free_at = begin + time_of(bytes, self.rate);
        begin
    }

    /// Gives back what a reservation did not use.
    fn refund(&self, bytes: usize) {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at -= time_of(bytes, self.rate);
    }
}

/// A socket whose answers arrive as if from far away.
pub struct Line<S> {
    socket: S,
    shape: Shape,
    link: Option<Link>,
    /// When the latest byte was read that no answer byte has followed.
    asked_at: Option<Instant>,
    /// When this connection is free again.
    free_at: Instant,
    /// Bytes reserved on the link and not written yet, and when their place begins.
    turn: Option<(usize, Instant)>,
    timer: Pin<Box<Sleep>>,
}

impl<S> Line<S> {
    /// Puts `socket` behind a line of this shape, and behind `link` if there is one.
    ///
    /// # Panics
    /// Outside a tokio runtime with timers.
    pub fn new(socket: S, shape: Shape, link: Option<Link>) -> Line<S> {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now));
        Line { socket, shape, link, asked_at: None, free_at: now, turn: None, timer }
    }

    /// Waits for the line, and returns how many of `wanted` bytes may leave now.
    fn poll_free(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        let rates = [self.shape.rate, self.link.as_ref().map(|link| link.rate)];
        let piece = rates.into_iter().flatten().map(piece_bytes).min().unwrap_or(usize::MAX);
        let now = Instant::now();
        if let Some(asked_at) = self.asked_at.take() {
            self.free_at = self.free_at.max(asked_at + self.shape.first_byte);
        }
        self.free_at = self.free_at.max(now - SLICE);
        ready!(self.poll_until(cx, self.free_at));

        let Some(link) = &self.link else { return Poll::Ready(piece.min(wanted)) };
        let (bytes, begin) = *self.turn.get_or_insert_with(|| {
            let bytes = piece.min(wanted);
            (bytes, link.reserve(bytes, Instant::now()))
        });
        ready!(self.poll_until(cx, begin));
        Poll::Ready(bytes.min(wanted))
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if deadline <= Instant::now() {
            return Poll::Ready(());
        }
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }

    /// `bytes` have left: the line is busy for as long as they take.
    fn sent(&mut self, bytes: usize) {
        if let Some(rate) = self.shape.rate {
            self.free_at += time_of(bytes, rate);
        }
        if let (Some(link), Some((reserved, _))) = (&self.link, self.turn.take()) {
            link.refund(reserved.saturating_sub(bytes));
        }
    }
}

impl<S> Drop for Line<S> {
    fn drop(&mut self) {
        if let (Some(link), Some((reserved, _))) = (&self.link, self.turn.take()) {
            link.refund(reserved);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.asked_at = Some(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let allowed = ready!(self.poll_free(cx, wanted));
        // An answer is a head and one slice of the object: a few pieces are enough.
        let mut pieces = [IoSlice::new(&[]); 8];
        let (mut used, mut left) = (0, allowed);
        for (piece, buf) in pieces.iter_mut().zip(bufs.iter().filter(|buf| !buf.is_empty())) {
            let take = buf.len().min(left);
            *piece = IoSlice::new(&buf[..take]);
            (used, left) = (used + 1, left - take);
            if left == 0 {
                break;
            }
        }
        let sent = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, &pieces[..used]))?;
        self.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Bytes of one piece at `rate`.
fn piece_bytes(rate: u64) -> usize {
    let bytes = rate.saturating_mul(SLICE.as_millis() as u64) / 1_000;
    usize::try_from(bytes).unwrap_or(usize::MAX).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

/// How long `bytes` take at `rate`. A rate of zero, which settings refuse, counts as one.
fn time_of(bytes: usize, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Sends one request byte and times an answer of `bytes`, on a clock that only timers move.
    async fn answer(line: &mut Line<tokio::io::DuplexStream>, bytes: usize) -> Duration {
        let mut byte = [0];
        line.read_exact(&mut byte).await.unwrap();
        let asked = Instant::now();
        line.write_all(&vec![7; bytes]).await.unwrap();
        asked.elapsed()
    }

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    }

    #[test]
    fn an_answer_pays_the_delay_once_and_then_the_rate() {
        // (bytes of the answer, least milliseconds, most milliseconds) at 20 ms and 50 MB/s.
        let cases = [(1, 20, 21), (100_000, 20, 23), (5_000_000, 115, 125)];
        for (bytes, least, most) in cases {
            runtime().block_on(async {
                let (mut client, server) = duplex(1 << 23);
                let shape = Shape { first_byte: Duration::from_millis(20), rate: Some(50_000_000) };
                let mut line = Line::new(server, shape, None);
                client.write_all(b"?").await.unwrap();
                let took = answer(&mut line, bytes).await.as_millis();
                assert!((least..=most).contains(&took), "{bytes} bytes took {took} ms");
            });
        }
    }

    #[test]
    fn connections_share_a_link() {
        runtime().block_on(async {
            let link = Link::new(100_000_000);
            let began = Instant::now();
            let each = (0..4).map(|_| {
                let link = link.clone();
                async move {
                    let (mut client, server) = duplex(1 << 23);
                    let mut line = Line::new(server, Shape::UNSHAPED, Some(link));
                    client.write_all(b"?").await.unwrap();
                    answer(&mut line, 5_000_000).await
                }
            });
            let times = futures::future::join_all(each).await;
            let took = began.elapsed().as_millis();
            assert!((195..=205).contains(&took), "20 MB at 100 MB/s took {took} ms");
            // First come, first served, piece by piece: all finish near the end.
            assert!(times.iter().all(|time| time.as_millis() > 150), "unfair: {times:?}");
        });
    }
}
