//! The services of AWS, or what speaks like them.
//!
//! Retries of the SDK are off: a call is tried once and says what is known of it, and the protocols
//! above decide. An answer of 5xx to a call that changes something says nothing about its effect
//! (rule H3), so it is reported as unknown.

mod objects; // S3
mod queue; // SQS

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeDeserializationInterceptorContextRef},
        orchestrator::HttpResponse,
        result::SdkError,
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{
    config_bag::ConfigBag,
    date_time::{DateTime, Format},
    error::metadata::ProvideErrorMetadata,
};
use crc_fast::{CrcAlgorithm, checksum};
use sources::aws::{Aws, AwsOptions, endpoint_shown};

use crate::{
    cloud::{Cloud, Fault, embedded::System},
    error::StoreError,
    policy::Names,
};

pub use objects::S3;
pub use queue::Sqs;

/// How long one call may take, connection included, and bodies of a few bytes.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Bytes of a body that take a second more.
const BYTES_PER_SECOND_MIN: usize = 1 << 20;

/// How long a call with a body of `bytes` may take.
fn call_max(bytes: usize) -> Duration {
    CALL_MAX + Duration::from_secs(bytes.div_ceil(BYTES_PER_SECOND_MIN) as u64)
}

/// A database's place in AWS.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The bucket.
    pub bucket: String,
    /// What the names of all its objects begin with; empty, or ends in `/`.
    pub prefix: String,
    /// Region, profile, endpoint of S3 and the like.
    pub aws: AwsOptions,
    /// The URL of the SQS service. Default: as the SDK finds it.
    pub sqs_endpoint: Option<String>,
}

/// Without what an endpoint may have of a password.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { bucket, prefix, aws, sqs_endpoint } = self;
        f.debug_struct("Place")
            .field("bucket", bucket)
            .field("prefix", prefix)
            .field("aws", aws)
            .field("sqs_endpoint", &sqs_endpoint.as_deref().map(endpoint_shown))
            .finish()
    }
}

impl Place {
    /// What policies call it.
    pub fn names(&self) -> Names {
        let (bucket, prefix) = (self.bucket.clone(), self.prefix.clone());
        Names { bucket, prefix, queues: self.queue_prefix() }
    }

    /// What the names of all its queues begin with: they share an account with everyone else's.
    fn queue_prefix(&self) -> String {
        let whole = format!("{}/{}", self.bucket, self.prefix);
        let sum = checksum(CrcAlgorithm::Crc64Nvme, whole.as_bytes());
        format!("s3db{:010x}-", sum >> 24)
    }
}

/// The services at `place`. Nothing is asked before the first call.
///
/// # Errors
/// [`StoreError::Invalid`] when the name of the bucket is none.
pub fn connect(place: &Place) -> Result<Cloud, StoreError> {
    let is_fine = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
    };
    if !(3..=63).contains(&place.bucket.len()) || !place.bucket.bytes().all(is_fine) {
        let shown = place.bucket.escape_default();
        return Err(StoreError::Invalid(format!("\"{shown}\" is no name of a bucket")));
    }
    let aws = Aws::new(place.aws.clone());
    let system = Arc::new(System::new());
    Ok(Cloud {
        objects: Arc::new(S3::new(aws.clone(), &place.bucket, &place.prefix)),
        queue: Arc::new(Sqs::new(aws, place.queue_prefix(), place.sqs_endpoint.clone())),
        clock: system.clone(),
        chance: system,
        disk: None,
    })
}

/// The service's clock in the answer to one call. Of answers that say something of an object alone: an
/// error can come from a front end, or from a machine in between, with a clock of its own.
#[derive(Clone, Debug, Default)]
struct Dated(Arc<AtomicU64>);

impl Dated {
    /// Milliseconds since 1970; 0 where no answer told.
    fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Intercept for Dated {
    fn name(&self) -> &'static str {
        "Dated"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        if !matches!(response.status().as_u16(), 200 | 304) {
            return Ok(());
        }
        let date = response.headers().get("date");
        if let Some(date) = date.and_then(|text| DateTime::from_str(text, Format::HttpDate).ok()) {
            let ms = u64::try_from(date.secs()).unwrap_or(0).saturating_mul(1000);
            self.0.store(ms, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What came of a call that did not succeed.
struct Failed {
    /// The status, if there was an answer.
    status: Option<u16>,
    /// The service's word for it.
    code: String,
    fault: Fault,
}

impl Failed {
    /// `changes` says that the call may have an effect: then 5xx says nothing about it.
    fn of<E>(
        (what, action): (&str, &'static str),
        error: &SdkError<E, HttpResponse>,
        changes: bool,
    ) -> Failed
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = match error {
            SdkError::ServiceError(refused) => refused.err().code().unwrap_or("").to_owned(),
            _ => String::new(),
        };
        let what = what.to_owned();
        let cause = match error {
            SdkError::ServiceError(refused) => {
                let message = refused.err().message().unwrap_or("no reason given");
                let status = status.unwrap_or(0);
                brief(&format!("{status} {code}: {message}"))
            }
            _ => brief(&causes(error)),
        };
        let is_throttled = code.contains("Throttl") || code == "SlowDown" || status == Some(429);
        // Of S3, with 400: it was not sent all of the request in its time.
        let says_nothing = status.is_some_and(|status| status >= 500) || code == "RequestTimeout";
        let unclear = |what, cause| match changes {
            true => Fault::Unknown { what, cause },
            false => Fault::Unanswered { what, cause },
        };
        let fault = match (error, status) {
            (SdkError::ConstructionFailure(_), _) => Fault::Invalid { what, cause },
            (SdkError::DispatchFailure(_), _) if lacks_credentials(error) => Fault::Invalid {
                what,
                cause: format!(
                    "no credentials of AWS: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile \
                     ({cause})"
                ),
            },
            (SdkError::ServiceError(_), _) if changes && says_nothing => unclear(what, cause),
            (SdkError::ServiceError(_), _) if is_throttled => Fault::Throttled { what },
            (SdkError::ServiceError(_), _) if says_nothing => unclear(what, cause),
            (SdkError::ServiceError(_), Some(401 | 403)) => {
                Fault::Forbidden { what, action, cause }
            }
            (SdkError::ServiceError(_), _) => Fault::Invalid { what, cause },
            (SdkError::DispatchFailure(_), _) if of_credentials(error).is_some() => unclear(
                what,
                format!(
                    "none of the places for credentials of AWS gave any: are they set? {cause}"
                ),
            ),
            _ => unclear(what, cause),
        };
        Failed { status, code, fault }
    }
}

/// Bytes of what a service or the SDK says that an error repeats.
const CAUSE_BYTES_MAX: usize = 500;

/// What an error and its causes say of themselves for people. What they are beneath that, requests, answers and
/// configuration, is nobody's to see, and nobody promises that no secret is in it.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in chain(error).skip(1) {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
    }
    text
}

/// An error, and what it was caused by.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// One line, and not too long.
fn brief(text: &str) -> String {
    let end = text.floor_char_boundary(CAUSE_BYTES_MAX);
    let more = if end < text.len() { "..." } else { "" };
    let line: String = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{line}{more}")
}

/// Whether there are no credentials, or none can be made of what there is: the call was not made, and
/// another one will not be.
fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    let may_come = |error: &CredentialsError| {
        matches!(error, CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_))
    };
    of_credentials(error).is_some_and(|error| !may_come(error))
}

/// What was wrong with credentials, if that was it.
fn of_credentials<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    chain(error).find_map(|cause| cause.downcast_ref::<CredentialsError>())
}

fn timed_out(what: &str, after: Duration) -> Fault {
    let cause = format!("no answer in {} s", after.as_secs());
    Fault::Unknown { what: what.to_owned(), cause }
}

/// The same, of what changes nothing.
fn unread(what: &str, after: Duration) -> Fault {
    let cause = format!("nothing in {} s", after.as_secs());
    Fault::Unanswered { what: what.to_owned(), cause }
}

/// What keeps a client from being made.
fn unusable(error: &pager::SourceError) -> Fault {
    Fault::Invalid { what: "the AWS client".into(), cause: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_place_has_no_password() {
        let secret = Some("http://user:SECRET@host:1/SECRET?SECRET".to_owned());
        let aws = AwsOptions { endpoint: secret.clone(), ..AwsOptions::default() };
        let place =
            Place { bucket: "bucket".into(), aws, sqs_endpoint: secret, ..Place::default() };
        let text = format!("{:?}", crate::Address::Aws(place));
        assert!(text.contains("http://host:1") && !text.contains("SECRET"), "{text}");
    }

    /// A read says nothing of what may have happened, and what S3 was not sent in its time is tried again.
    #[test]
    fn what_has_no_answer_is_tried_again() {
        use aws_smithy_types::{body::SdkBody, error::metadata::ErrorMetadata};

        let failed = |status: u16, code: &str, changes| {
            let said = ErrorMetadata::builder().code(code).message("said").build();
            let raw = HttpResponse::new(status.try_into().unwrap(), SdkBody::empty());
            Failed::of(("page/1", "put"), &SdkError::service_error(said, raw), changes).fault
        };
        for (status, code) in [(400, "RequestTimeout"), (500, "InternalError")] {
            let (read, write) = (failed(status, code, false), failed(status, code, true));
            assert!(read.is_transient() && matches!(read, Fault::Unanswered { .. }), "{read:?}");
            assert!(write.is_transient() && matches!(write, Fault::Unknown { .. }), "{write:?}");
            assert!(!read.to_string().contains("happened"), "{read}");
            assert!(write.to_string().contains("may or may not have happened"), "{write}");
        }
        for changes in [false, true] {
            let refused = failed(400, "InvalidArgument", changes);
            assert!(matches!(refused, Fault::Invalid { .. }), "{refused:?}");
            let skewed = failed(403, "RequestTimeTooSkewed", changes);
            assert!(matches!(skewed, Fault::Forbidden { .. }), "{skewed:?}");
            let slow = failed(429, "SlowDown", changes);
            assert!(matches!(slow, Fault::Throttled { .. }), "{slow:?}");
        }
        assert!(matches!(failed(503, "SlowDown", false), Fault::Throttled { .. }));
        assert!(matches!(failed(503, "SlowDown", true), Fault::Unknown { .. }));
        let late = unread("page/1", Duration::from_secs(30));
        assert_eq!(late.to_string(), "page/1: no answer (nothing in 30 s)");
        assert!(late.is_transient());
    }

    #[test]
    fn causes_are_short_and_one_line() {
        let long = brief(&"\u{e9}\n".repeat(1000));
        assert!(long.len() <= CAUSE_BYTES_MAX + 3 && long.ends_with("..."), "{long}");
        assert!(!long.contains('\n'));
        assert_eq!(brief("403 AccessDenied: no"), "403 AccessDenied: no");
    }
}
