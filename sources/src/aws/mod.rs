//! Configuration, credentials and clients of AWS: what `s3` reads with, and databases on S3 share.
//!
//! Everything is found as the AWS tools find it: credentials from the environment, profiles, web
//! identity, containers and instances, refreshed before they expire; the region from the same
//! places; an endpoint of one's own from `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or the profile;
//! further authorities from `AWS_CA_BUNDLE`. What is set here comes before what is found.
//!
//! The SDK's own retries, its stalled-stream protection and its response checksums are off:
//! [`Retry`](crate::Retry) retries and watches, and a range of an object has no checksum.

use std::{env, fmt, path::PathBuf, sync::Arc, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableRegionProvider,
    meta::region::RegionProviderChain, profile::ProfileFileRegionProvider, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_sdk_s3::{
    config::{
        ConfigBag, Intercept, RequestChecksumCalculation, ResponseChecksumValidation,
        RuntimeComponents, interceptors::BeforeDeserializationInterceptorContextMut,
    },
    error::BoxError,
};
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::body::SdkBody;
use aws_types::service_config::ServiceConfigKey;
use http_body_util::Limited;
use pager::SourceError;
use tokio::sync::OnceCell;
use url::{Host, Url};

use crate::authorities;

/// Where requests are signed for when neither the options nor the machine name a region.
const REGION_DEFAULT: &str = "us-east-1";

/// The SDK reads answers that are errors into memory, however long they are. S3's have a few hundred
/// bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// How to reach AWS, or what speaks like it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AwsOptions {
    /// The region. Default: as the AWS tools find it, at last `us-east-1`.
    pub region: Option<String>,
    /// The profile of the AWS configuration files. Default: `AWS_PROFILE`, at last `default`.
    pub profile: Option<String>,
    /// The URL of the S3 service. Default: as the SDK finds it.
    pub endpoint: Option<String>,
    /// Whether the bucket stands in the path (`true`) or in the name of the host. Default: in the
    /// path where the endpoint's host is an IP address or `localhost`, which have no subdomains.
    pub path_style: Option<bool>,
    /// Whether to send requests without credentials. Default: `false`.
    pub anonymous: bool,
    /// A PEM file of authorities to trust besides those of the system. Default: the one that
    /// `AWS_CA_BUNDLE` names.
    pub ca: Option<PathBuf>,
    /// The longest that making a connection may take. Default: 5 s.
    pub connect: Duration,
}

/// Without what an endpoint may have of a password.
impl fmt::Debug for AwsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AwsOptions { region, profile, endpoint, path_style, anonymous, ca, connect } = self;
        f.debug_struct("AwsOptions")
            .field("region", region)
            .field("profile", profile)
            .field("endpoint", &endpoint.as_deref().map(endpoint_shown))
            .field("path_style", path_style)
            .field("anonymous", anonymous)
            .field("ca", ca)
            .field("connect", connect)
            .finish()
    }
}

/// Scheme, host and port: what stands before an `@` or behind the host may be a password.
pub fn endpoint_shown(endpoint: &str) -> String {
    match Url::parse(endpoint) {
        Ok(url) if url.has_host() => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
        }
        _ => "...".to_owned(),
    }
}

impl Default for AwsOptions {
    fn default() -> AwsOptions {
        AwsOptions {
            region: None,
            profile: None,
            endpoint: None,
            path_style: None,
            anonymous: false,
            ca: None,
            connect: Duration::from_secs(5),
        }
    }
}

/// A set of options with the clients made from them, at the first use and on the runtime of that
/// use. Clones share the clients and so their connections and credentials.
///
/// A connection belongs to the runtime that made it, so an `Aws` serves one runtime, that is one
/// pager.
#[derive(Clone, Debug)]
pub struct Aws {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: AwsOptions,
    config: OnceCell<SdkConfig>,
    s3: OnceCell<aws_sdk_s3::Client>,
}

impl Aws {
    /// Nothing is looked up before the first use.
    pub fn new(options: AwsOptions) -> Aws {
        let (config, s3) = (OnceCell::new(), OnceCell::new());
        Aws { shared: Arc::new(Shared { options, config, s3 }) }
    }

    /// The options of this set.
    pub fn options(&self) -> &AwsOptions {
        &self.shared.options
    }

    /// The configuration for clients of other services, with region, credentials, authorities and
    /// without retries.
    ///
    /// # Errors
    /// When the file of authorities cannot be used. Missing credentials show at the first request.
    pub async fn config(&self) -> Result<&SdkConfig, SourceError> {
        self.shared.config.get_or_try_init(|| load(&self.shared.options)).await
    }

    /// The client for S3.
    ///
    /// # Errors
    /// As for [`config`](Aws::config), and for an endpoint that is no URL.
    pub async fn s3(&self) -> Result<&aws_sdk_s3::Client, SourceError> {
        self.shared
            .s3
            .get_or_try_init(|| async { s3_client(&self.shared.options, self.config().await?) })
            .await
    }
}

async fn load(options: &AwsOptions) -> Result<SdkConfig, SourceError> {
    let timeouts = TimeoutConfig::builder().connect_timeout(options.connect).build();
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(region_chain(options))
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .timeout_config(timeouts);
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    if options.anonymous {
        loader = loader.no_credentials();
    }
    if let Some(client) = http_client(options)? {
        loader = loader.http_client(client);
    }
    Ok(loader.load().await)
}

fn region_chain(options: &AwsOptions) -> RegionProviderChain {
    let set = options.region.clone().map(Region::new);
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &options.profile {
        profile = profile.profile_name(name);
    }
    let chain = RegionProviderChain::first_try(set)
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build());
    // The instance's own region is asked for last, and not at all for an endpoint of one's own:
    // outside EC2 the question takes seconds to fail.
    let named = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let own =
        options.endpoint.is_some() || named("AWS_ENDPOINT_URL_S3") || named("AWS_ENDPOINT_URL");
    let chain = match own {
        true => chain,
        false => chain.or_else(aws_config::imds::region::ImdsRegionProvider::builder().build()),
    };
    chain.or_else(Region::new(REGION_DEFAULT))
}

/// A client of our own where there are authorities to add; else the SDK makes its default one.
fn http_client(options: &AwsOptions) -> Result<Option<SharedHttpClient>, SourceError> {
    let bundle = env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let Some(path) = options.ca.clone().or(bundle) else {
        return Ok(None);
    };
    let mut trusted = TrustStore::default();
    for certificate in authorities::read(&path)? {
        trusted.add_pem_certificate(certificate);
    }
    let context = TlsContext::builder().with_trust_store(trusted).build().map_err(|error| {
        SourceError::Permanent {
            object: format!("file of authorities {}", path.display()),
            reason: error.to_string(),
            cause: Some(Arc::new(error)),
        }
    })?;
    let client = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .build_https();
    Ok(Some(client))
}

fn s3_client(options: &AwsOptions, config: &SdkConfig) -> Result<aws_sdk_s3::Client, SourceError> {
    let endpoint = s3_endpoint(options, config);
    if let Some(endpoint) = &endpoint {
        let good = Url::parse(endpoint)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if !good {
            return Err(SourceError::Permanent {
                // What stands before an `@` may be a password.
                object: format!("endpoint {:?}", endpoint.rsplit('@').next().unwrap_or("")),
                reason: "it is no URL like https://host:port".to_owned(),
                cause: None,
            });
        }
    }
    let path_style =
        options.path_style.unwrap_or_else(|| endpoint.as_deref().is_some_and(has_no_subdomains));
    let builder = aws_sdk_s3::config::Builder::from(config).force_path_style(path_style);
    let mut builder = builder.interceptor(ShortErrors);
    // Set for S3 alone: the token service that credentials may come from lives elsewhere.
    if let Some(endpoint) = &options.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    Ok(aws_sdk_s3::Client::from_conf(builder.build()))
}

/// Bounds the bodies of answers that are errors.
#[derive(Debug)]
struct ShortErrors;

impl Intercept for ShortErrors {
    fn name(&self) -> &'static str {
        "ShortErrors"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response_mut();
        if !response.status().is_success() {
            let body = std::mem::replace(response.body_mut(), SdkBody::taken());
            *response.body_mut() = SdkBody::from_body_1_x(Limited::new(body, ERROR_BYTES_MAX));
        }
        Ok(())
    }
}

/// The endpoint that the S3 client will use if it is not Amazon's own.
fn s3_endpoint(options: &AwsOptions, config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all three fields are set");
    let found = || config.service_config().and_then(|service| service.load_config(key));
    let general = || config.endpoint_url().map(str::to_owned);
    options.endpoint.clone().or_else(found).or_else(general)
}

/// Whether `bucket.host` cannot exist: the host is an IP address or `localhost`.
fn has_no_subdomains(endpoint: &str) -> bool {
    let Ok(url) = Url::parse(endpoint) else { return false };
    match url.host() {
        Some(Host::Ipv4(_) | Host::Ipv6(_)) => true,
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_subdomains() {
        let cases = [
            ("http://127.0.0.1:9000", true),
            ("http://[::1]:9000", true),
            ("http://localhost:9000/", true),
            ("https://LOCALHOST", true),
            ("https://s3.example.com", false),
            ("https://localhost.example.com", false),
            ("nonsense", false),
        ];
        for (endpoint, expected) in cases {
            assert_eq!(has_no_subdomains(endpoint), expected, "{endpoint}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_is_no_url_is_refused() {
        for endpoint in ["127.0.0.1:9000", "s3://x", ""] {
            let options = AwsOptions {
                endpoint: Some(endpoint.to_owned()),
                anonymous: true,
                ..AwsOptions::default()
            };
            let error = Aws::new(options).s3().await.map(drop).expect_err(endpoint);
            assert!(matches!(error, SourceError::Permanent { .. }), "{error}");
        }
    }

    /// Where a GET would go: the request is looked at and not sent.
    async fn place(endpoint: &str, path_style: Option<bool>) -> String {
        let aws = Aws::new(AwsOptions {
            endpoint: Some(endpoint.to_owned()),
            region: Some("us-east-1".to_owned()),
            path_style,
            anonymous: true,
            ..AwsOptions::default()
        });
        let place = Arc::new(std::sync::Mutex::new(String::new()));
        let seen = place.clone();
        let get = aws.s3().await.expect("a client").get_object().bucket("bucket").key("key");
        let get = get.customize().map_request(move |request| {
            *seen.lock().expect("a place") = request.uri().to_owned();
            Err(std::io::Error::other("seen"))
        });
        get.send().await.map(drop).expect_err("it is not sent");
        let place = place.lock().expect("a place");
        place.split('?').next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn the_bucket_is_in_the_path_where_that_is_asked_for_or_needed() {
        let cases = [
            ("https://s3.example.com", None, "https://bucket.s3.example.com/key"),
            ("https://s3.example.com", Some(false), "https://bucket.s3.example.com/key"),
            ("https://s3.example.com", Some(true), "https://s3.example.com/bucket/key"),
            ("http://localhost:9000", None, "http://localhost:9000/bucket/key"),
            ("http://localhost:9000", Some(false), "http://bucket.localhost:9000/key"),
            ("http://127.0.0.1:9000", None, "http://127.0.0.1:9000/bucket/key"),
        ];
        for (endpoint, path_style, expected) in cases {
            assert_eq!(place(endpoint, path_style).await, expected, "{endpoint} {path_style:?}");
        }
    }

    /// Ours would be multiplied by the SDK's, and its guard ends bodies that our own may wait for.
    #[tokio::test]
    async fn retries_and_the_guard_of_slow_bodies_are_off() {
        let options =
            AwsOptions { anonymous: true, region: Some("r".to_owned()), ..AwsOptions::default() };
        let aws = Aws::new(options);
        let of_others = aws.config().await.expect("a configuration");
        assert_eq!(of_others.retry_config().map(RetryConfig::max_attempts), Some(1));
        assert_eq!(
            of_others.stalled_stream_protection().map(|guard| guard.is_enabled()),
            Some(false)
        );
        let s3 = aws.s3().await.expect("a client").config();
        assert_eq!(s3.retry_config().map(RetryConfig::max_attempts), Some(1));
        assert_eq!(s3.stalled_stream_protection().map(|guard| guard.is_enabled()), Some(false));
    }

    #[tokio::test]
    async fn the_password_of_an_endpoint_is_not_repeated() {
        let endpoint = Some("ftp://user:secret@host".to_owned());
        let options = AwsOptions { endpoint, anonymous: true, ..AwsOptions::default() };
        let error = Aws::new(options).s3().await.map(drop).expect_err("no URL of ours");
        assert!(error.to_string().contains("host"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn what_is_shown_of_options_has_no_password() {
        for (endpoint, shown) in [
            ("http://user:secret@host:9000/secret?a=secret", "\"http://host:9000\""),
            ("https://secret@host", "\"https://host\""),
            ("user:secret@host", "\"...\""),
            ("secret", "\"...\""),
        ] {
            let options =
                AwsOptions { endpoint: Some(endpoint.to_owned()), ..AwsOptions::default() };
            for text in [format!("{options:?}"), format!("{:?}", Aws::new(options.clone()))] {
                assert!(text.contains(shown) && !text.contains("secret"), "{text}");
            }
        }
    }
}
