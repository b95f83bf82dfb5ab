//! The services of AWS, or what speaks like them.
//!
//! Retries of the SDK are off: a call is tried once and says what is known of it, and the protocols
//! above decide. An answer of 5xx to a call that changes something says nothing about its effect
//! (rule H3), so it is reported as unknown.

mod objects; // S3
mod queue; // SQS

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

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
    error::display::DisplayErrorContext,
    error::metadata::ProvideErrorMetadata,
};
use crc_fast::{CrcAlgorithm, checksum};
use sources::aws::{Aws, AwsOptions};

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
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
        // Texts of the SDK hold no credentials; signed addresses are not in them either.
        let cause = match error {
            SdkError::ServiceError(refused) => {
                let message = refused.err().message().unwrap_or("no reason given");
                let status = status.unwrap_or(0);
                format!("{status} {code}: {message}")
            }
            _ => DisplayErrorContext(error).to_string(),
        };
        let is_throttled = code.contains("Throttl") || code == "SlowDown" || status == Some(429);
        let fault = match (error, status) {
            (SdkError::ConstructionFailure(_), _) => Fault::Invalid { what, cause },
            (SdkError::ServiceError(_), Some(500..)) if changes => Fault::Unknown { what, cause },
            (SdkError::ServiceError(_), _) if is_throttled => Fault::Throttled { what },
            (SdkError::ServiceError(_), Some(500..)) => Fault::Unknown { what, cause },
            (SdkError::ServiceError(_), Some(401 | 403)) => {
                Fault::Forbidden { what, action, cause }
            }
            (SdkError::ServiceError(_), _) => Fault::Invalid { what, cause },
            _ => Fault::Unknown { what, cause },
        };
        Failed { status, code, fault }
    }
}

fn timed_out(what: &str, after: Duration) -> Fault {
    let cause = format!("no answer in {} s", after.as_secs());
    Fault::Unknown { what: what.to_owned(), cause }
}

/// What keeps a client from being made.
fn unusable(error: &pager::SourceError) -> Fault {
    Fault::Invalid { what: "the AWS client".into(), cause: error.to_string() }
}
