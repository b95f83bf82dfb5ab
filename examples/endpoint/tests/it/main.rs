//! The endpoint, driven by clients that know nothing of it.

mod conditions;
mod faults;
mod files;
mod objects;
mod reach;

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Config, Credentials, Region, retry::RetryConfig},
    error::{ProvideErrorMetadata, SdkError},
};
use endpoint::{Endpoint, Settings, line::Shape};

/// An endpoint as fast as the machine, with one bucket named `box`.
fn fast() -> Endpoint {
    let endpoint = Endpoint::start(Settings { shape: Shape::UNSHAPED, ..Settings::default() });
    let endpoint = endpoint.expect("a free port");
    endpoint.store().create_bucket("box").expect("a new store has no bucket");
    endpoint
}

fn client(endpoint: &Endpoint) -> Client {
    client_as(endpoint, "testtest")
}

fn client_as(endpoint: &Endpoint, secret: &str) -> Client {
    client_at(&endpoint.url(), secret)
}

fn client_at(url: &str, secret: &str) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .credentials_provider(Credentials::new("test", secret, None, None, "test"))
        .retry_config(RetryConfig::disabled())
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

/// Status and code of a refused request.
fn refused<E: ProvideErrorMetadata>(
    error: SdkError<E, aws_sdk_s3::config::http::HttpResponse>,
) -> (u16, String) {
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    (status, error.code().unwrap_or_default().to_owned())
}

fn run<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().expect("threads").block_on(future)
}

/// Bytes that no shift or repetition leaves in place.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
