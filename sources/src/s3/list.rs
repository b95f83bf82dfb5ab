//! The keys of a bucket that start alike.
//!
//! ```text
//!   ListObjectsV2 prefix --> 1000 keys, token --> 1000 keys, token --> ...     at most keys_max
//! ```

use std::time::Duration;

use pager::SourceError;

use super::failure::Asked;
use crate::{aws::Aws, chance::Chance, retry::RetryPolicy};

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// The key.
    pub key: String,
    /// The length in bytes.
    pub len: u64,
}

/// Lists the objects of `bucket` whose keys start with `prefix`, in the order of S3: by the bytes of
/// their keys. Each page of 1000 is asked for again as `policy` says.
///
/// # Errors
/// What the service says, and [`SourceError::Permanent`] for more than `keys_max` objects.
pub async fn list(
    bucket: &str,
    prefix: &str,
    aws: &Aws,
    policy: &RetryPolicy,
    keys_max: usize,
) -> Result<Vec<Listed>, SourceError> {
    let mut found = Vec::new();
    let each = |key: &str, len| {
        if found.len() >= keys_max {
            let object = format!("s3://{bucket}/{prefix}");
            let reason = format!("more than {keys_max} objects start like this");
            return Err(SourceError::Permanent { object, reason, cause: None });
        }
        found.push(Listed { key: key.to_owned(), len });
        Ok(())
    };
    list_each(bucket, prefix, aws, policy, each).await?;
    Ok(found)
}

/// The same, where each key and its length in bytes is given to `each`, whose first error ends it.
pub(crate) async fn list_each<E: From<SourceError>>(
    bucket: &str,
    prefix: &str,
    aws: &Aws,
    policy: &RetryPolicy,
    mut each: impl FnMut(&str, u64) -> Result<(), E>,
) -> Result<(), E> {
    let name = format!("s3://{bucket}/{prefix}");
    let asked = Asked { object: &name, what: "list", range: None, version: None };
    let chance = Chance::seeded(policy.seed.unwrap_or_else(Chance::any_seed));
    let mut token: Option<String> = None;
    loop {
        let page = page(bucket, prefix, aws, token.as_deref(), &asked, policy, &chance).await?;
        for object in page.contents() {
            let Some(key) = object.key() else { continue };
            let len = object.size().and_then(|len| u64::try_from(len).ok()).unwrap_or(0);
            each(key, len)?;
        }
        match page.next_continuation_token() {
            // A server that gives the same token again would be asked for ever.
            Some(next) if token.as_deref() != Some(next) => token = Some(next.to_owned()),
            _ => return Ok(()),
        }
    }
}

type Page = aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

async fn page(
    bucket: &str,
    prefix: &str,
    aws: &Aws,
    token: Option<&str>,
    asked: &Asked<'_>,
    policy: &RetryPolicy,
    chance: &Chance,
) -> Result<Page, SourceError> {
    let mut failures = 0;
    loop {
        let work = async {
            let request = aws.s3().await?.list_objects_v2().bucket(bucket).prefix(prefix);
            let request = request.set_continuation_token(token.map(str::to_owned));
            request.send().await.map_err(|error| asked.failed(error))
        };
        let answer = tokio::time::timeout(policy.stall, work).await;
        let error = match answer {
            Ok(Ok(page)) => return Ok(page),
            Ok(Err(error)) => error,
            Err(_) => asked.transient(format!("no answer for {:?}", policy.stall), None),
        };
        failures += 1;
        if !error.is_retryable() || failures >= policy.attempts_max {
            return Err(error);
        }
        let bound = policy.backoff_min.saturating_mul(1 << failures.min(20));
        let mut wait = chance.up_to(bound.min(policy.backoff_max));
        if let SourceError::Throttled { retry_after: Some(asked), .. } = &error {
            wait = wait.saturating_add((*asked).min(Duration::from_secs(30)));
        }
        tokio::time::sleep(wait).await;
    }
}
