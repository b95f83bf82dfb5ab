//! The way without this project: fetch the whole object into a file, then ask the file.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use sources::{BlockSource, SourceError};

/// Connections of a parallel download: what common tools use, and what fills a link of 10 Gbit/s
/// at 90 MB/s each.
pub const CONNECTIONS: usize = 16;
/// Bytes of one request of a parallel download, as the same tools have it.
pub const PART_BYTES: u64 = 8 << 20;

/// Fetches all of `source` in one request over one connection.
///
/// # Errors
/// When the source fails, or the file cannot be written.
pub async fn one_connection(
    source: &dyn BlockSource,
    file: &mut File,
    progress: impl Fn(u64),
) -> Result<Duration, String> {
    let began = Instant::now();
    let stat = source.stat().await.map_err(text)?;
    if stat.len > 0 {
        let mut body = source.read(&stat.version, 0..stat.len).await.map_err(text)?;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(text)?;
            file.write_all(&chunk).map_err(|e| format!("the downloaded file: {e}"))?;
            progress(chunk.len() as u64);
        }
    }
    Ok(began.elapsed())
}

/// Fetches all of `source` in requests of [`PART_BYTES`] over [`CONNECTIONS`] connections.
///
/// # Errors
/// When the source fails, or the file cannot be written.
pub async fn parallel(
    source: Arc<dyn BlockSource>,
    file: &File,
    progress: impl Fn(u64) + Sync,
) -> Result<Duration, String> {
    let began = Instant::now();
    let stat = source.stat().await.map_err(text)?;
    let written = Mutex::new(());
    let (source, stat, written, progress) = (&source, &stat, &written, &progress);
    let starts = (0..stat.len).step_by(PART_BYTES as usize);
    stream::iter(starts)
        .map(|start| async move {
            let end = stat.len.min(start + PART_BYTES);
            let mut body = source.read(&stat.version, start..end).await.map_err(text)?;
            let mut at = start;
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(text)?;
                let _one_at_a_time = written.lock();
                file.write_all_at(&chunk, at).map_err(|e| format!("the downloaded file: {e}"))?;
                at += chunk.len() as u64;
                progress(chunk.len() as u64);
            }
            Ok::<_, String>(())
        })
        .buffer_unordered(CONNECTIONS)
        .try_collect::<()>()
        .await?;
    Ok(began.elapsed())
}

fn text(error: SourceError) -> String {
    error.to_string()
}
