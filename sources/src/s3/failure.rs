//! What a failed request to S3 means for the caller.

use std::{error::Error, ops::Range, sync::Arc, time::SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_smithy_runtime_api::{client::result::SdkError, http};
use aws_smithy_types::byte_stream::error::Error as ByteStreamError;
use pager::{Cause, SourceError, Version};

use crate::{
    encoding::{chain_text, foreign},
    wire::{self, Failure},
};

/// What a request asked for: every error names it.
pub(super) struct Asked<'a> {
    pub(super) object: &'a str,
    pub(super) what: &'static str,
    pub(super) range: Option<Range<u64>>,
    pub(super) version: Option<&'a Version>,
}

impl Asked<'_> {
    pub(super) fn transient(&self, reason: String, cause: Option<Cause>) -> SourceError {
        let (object, range) = (self.object.to_owned(), self.range.clone());
        SourceError::Transient { object, what: self.what, range, attempts: 1, reason, cause }
    }

    fn permanent(&self, reason: String, cause: Option<Cause>) -> SourceError {
        SourceError::Permanent { object: self.object.to_owned(), reason, cause }
    }

    fn denied(&self, reason: String, cause: Option<Cause>) -> SourceError {
        SourceError::Denied { object: self.object.to_owned(), reason, cause }
    }

    /// The error for a request that brought no object.
    pub(super) fn failed<E>(&self, error: SdkError<E, http::Response>) -> SourceError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match error {
            SdkError::ServiceError(ref refused) => {
                let answer = Answer {
                    status: refused.raw().status().as_u16(),
                    code: refused.err().code().unwrap_or("").to_owned(),
                    message: refused.err().message().unwrap_or("").to_owned(),
                    region: header(refused.raw(), "x-amz-bucket-region"),
                    retry_after: header(refused.raw(), "retry-after"),
                };
                self.refused(answer, cause_of(error))
            }
            SdkError::TimeoutError(_) => {
                self.transient("the connection took too long".to_owned(), cause_of(error))
            }
            SdkError::ConstructionFailure(_) => self.permanent(chain_text(&error), cause_of(error)),
            SdkError::ResponseError(ref unreadable) => {
                // A 5xx of a proxy has a body that is no XML.
                let status = unreadable.raw().status().as_u16();
                let reason = format!("an answer {status} that cannot be read");
                let retry_after = header(unreadable.raw(), "retry-after");
                let cause = cause_of(error);
                if status < 400 {
                    return self.transient(reason, cause);
                }
                let (code, message) = (String::new(), String::new());
                self.refused(Answer { status, code, message, region: None, retry_after }, cause)
            }
            _ => self.undelivered(&error, chain_text(&error)),
        }
    }

    /// A request that was not sent, or not answered.
    fn undelivered<E>(&self, error: &SdkError<E, http::Response>, text: String) -> SourceError
    where
        E: Error + Send + Sync + 'static,
    {
        if let Some(missing) = find::<CredentialsError>(error) {
            let text = format!(
                "no credentials: {}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, \
                 or ask with anonymous=true",
                chain_text(missing)
            );
            return match missing {
                CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_) => {
                    self.transient(text, None)
                }
                _ => self.denied(text, None),
            };
        }
        if text.contains("invalid peer certificate") {
            return self.permanent(
                format!(
                    "{text}; if this server's certificate is to be trusted, name its authority's \
                     file with the option `ca` or in AWS_CA_BUNDLE"
                ),
                None,
            );
        }
        match error {
            SdkError::DispatchFailure(failure) if failure.is_user() => self.permanent(text, None),
            _ => self.transient(text, None),
        }
    }

    fn refused(&self, answer: Answer, cause: Option<Cause>) -> SourceError {
        let Answer { status, code, message, region, retry_after } = answer;
        let phrase = match (code.as_str(), message.as_str()) {
            ("", "") => http_phrase(status).to_owned(),
            (code, "") => code.to_owned(),
            (code, message) => format!("{code}: {message}"),
        };
        let phrase = foreign(&phrase);
        let object = self.object.to_owned();
        match (status, code.as_str()) {
            (412, _) | (404, "NoSuchVersion") => match self.version {
                Some(version) => SourceError::Changed {
                    object,
                    expected: version.to_string(),
                    found: "another version".to_owned(),
                },
                None => SourceError::NotFound { object, cause },
            },
            // The key may be as it should.
            (404, "NoSuchBucket") => {
                SourceError::NotFound { object: format!("the bucket of {object}"), cause }
            }
            (416, _) => {
                self.permanent(format!("the range lies outside the object ({phrase})"), cause)
            }
            (301 | 307, _)
            | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
                let advice = match region.as_deref().map(foreign) {
                    Some(region) => format!("the bucket is in {region}: set region={region}"),
                    None => "the bucket is in another region: set region=...".to_owned(),
                };
                self.permanent(format!("{advice} ({status} {phrase})"), cause)
            }
            (_, "RequestTimeTooSkewed") => {
                self.denied(format!("the clock of this machine is wrong ({phrase})"), cause)
            }
            (400, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
                self.denied(phrase, cause)
            }
            (403, "InvalidObjectState") => self.permanent(
                format!("the object is archived; restore a copy first ({phrase})"),
                cause,
            ),
            (403, _) => self.denied(
                format!(
                    "{phrase} (who may not list the bucket is told so for objects that do not \
                     exist, too)"
                ),
                cause,
            ),
            (400, "RequestTimeout") | (_, "InternalError") => {
                self.transient(format!("the server answered {status} {phrase}"), cause)
            }
            (_, "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded") => {
                let (what, range) = (self.what, self.range.clone());
                let retry_after = wait(retry_after);
                SourceError::Throttled { object, what, range, attempts: 1, retry_after, cause }
            }
            _ => Failure {
                object: self.object,
                what: self.what,
                range: self.range.clone(),
                status,
                phrase: &phrase,
                retry_after: wait(retry_after),
                cause,
            }
            .error(),
        }
    }
}

/// The parts of a refusal that say what to do.
struct Answer {
    status: u16,
    code: String,
    message: String,
    region: Option<String>,
    retry_after: Option<String>,
}

/// The error of a body that ended early.
pub(super) fn broken_body(object: &str, range: Range<u64>, error: ByteStreamError) -> SourceError {
    let reason = format!("the body broke: {}", chain_text(&error));
    SourceError::transient_read(object, range, reason, Some(Arc::new(error)))
}

fn wait(header: Option<String>) -> Option<std::time::Duration> {
    wire::retry_after(&header?, SystemTime::now())
}

fn header(response: &http::Response, name: &str) -> Option<String> {
    response.headers().get(name).map(str::to_owned)
}

/// HEAD has no body to name the error, so the number must do.
fn http_phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}

/// The cause without the response, whose body would keep a connection.
fn cause_of<E>(error: SdkError<E, http::Response>) -> Option<Cause>
where
    E: Error + Send + Sync + 'static,
{
    error.into_source().ok().map(Arc::from)
}

/// The first error of type `T` in the chain.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
